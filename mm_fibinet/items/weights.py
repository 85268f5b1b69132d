"""Weights of strangers: which they are, and loading them without what their libraries print."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.files import sha256

# Of a config: where it comes from and who wrote it, not what is computed.
NOT_COMPUTED = frozenset(("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"))
BATCHED = frozenset(("padding", "truncation"))  # of a tokenizer: set anew for each batch


def check_weights(path: Path, expected: str, package: str) -> None:
    """A `UserError` unless a package's file of weights is there and has the SHA-256 expected."""
    if not path.is_file():
        raise UserError(f"{path}: the weights of {package} are missing; install it again with pip")
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 is {found}, expected {expected}; these are not the official weights, install "
            f"{package} again"
        )


def fingerprint(model: nn.Module, *settings: object) -> str:
    """SHA-256 over all parameters and buffers, and over what else decides on the vectors.

    Args:
        model: two models of one fingerprint compute the same vectors.
        settings: of its preprocessing, its pooling and the like; what they print as counts.
    """
    digest = hashlib.sha256(repr(settings).encode("utf-8", "backslashreplace"))
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def configs_of(model: nn.Module) -> list[object]:
    """What the configs of transformers say of a model's networks: activations, heads, positions and the like."""
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    return [plain(config.to_diff_dict()) for config in configs.values() if hasattr(config, "to_diff_dict")]


def reading_of(reader: Any) -> object:
    """How a tokenizer or a processor of pictures reads: vocabulary, merges, letter cases; sizes, means."""
    inside = getattr(reader, "backend_tokenizer", reader)
    if hasattr(inside, "to_str"):
        read: object = {name: value for name, value in json.loads(inside.to_str()).items() if name not in BATCHED}
    elif hasattr(reader, "get_vocab"):
        read = sorted(reader.get_vocab().items())
    else:
        read = reader.to_dict() if hasattr(reader, "to_dict") else None
    sides = [getattr(reader, name, None) for name in ("padding_side", "truncation_side", "do_lower_case", "stop_words")]
    return plain([read, sides])


def plain(value: Any) -> object:
    """What prints the same in every process: keys in order, and nothing of objects but their type."""
    if isinstance(value, dict):
        pairs = ((str(name), plain(each)) for name, each in value.items() if name not in NOT_COMPUTED)
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, str | int | float | None):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else type(value).__name__


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
def quiet_logging() -> Iterator[None]:
    """Without log lines up to the level of errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)

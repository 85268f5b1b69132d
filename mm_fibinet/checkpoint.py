"""Checkpoints: a model's weights, and a run's whole state to continue from.

Weights are FuxiCTR's `.model` files: a state dict, nothing else, so both projects read them. The state of a run is
`last.ckpt`, with `previous.ckpt` kept behind it; each carries a checksum of its tensors and the run's fingerprint,
so a torn file or another run's is recognised, named and passed over. All files load with weights_only: a checkpoint
from elsewhere cannot run code. What comes in a checkpoint's place, a web page or a pointer of git-lfs, is named.
"""

import logging
import pickle
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import atomic_path

FORMAT = 2
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where training scripts put a state dict among other things
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MOST_SAFETENSORS_HEADER = 100 << 20  # bytes, the format's own limit
FOREIGN = {  # how files begin that come in a checkpoint's place, in lower case
    b"<!doctype": "an HTML page (a download that needs a login, or the address of a page instead of the file)",
    b"<html": "an HTML page (a download that needs a login, or the address of a page instead of the file)",
    b"<?xml": "an XML page (a download that was refused)",
    b"version https://git-lfs": "a pointer of git-lfs; fetch the file itself with git lfs pull",
    b"par1": "a parquet file",
    b"\x89hdf": "an HDF5 file",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"rar!": "a RAR archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
}


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's state dict, whole or not at all; a `UserError` when it cannot be written."""
    _save(model.state_dict(), Path(path))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into the model, whole or not at all.

    Taken are state dicts saved by torch or as safetensors, also inside {"state_dict": ...} or {"model": ...} and with
    the prefixes that DistributedDataParallel and torch.compile put before the names. Weights of another floating
    precision are converted, and the log says so.

    Raises:
        UserError: the file is missing, not a checkpoint, or its weights are not those of this model.
    """
    own = model.state_dict()
    state = _own_names(_unwrapped(_read_weights(path), path), own, path)
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
    for name, values in state.items():
        _require_numbers(values, own[name], f"{path}: {name}")
    converted = sorted({_dtype(value) for name, value in state.items() if value.dtype != own[name].dtype})
    if converted:
        logging.warning("%s: weights of type %s are converted to the model's", path, ", ".join(converted))
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


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's random generators, of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators where `generator_states` found them."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _read_weights(path: str | Path) -> object:
    """What a file of weights holds: torch's own format, or safetensors."""
    head = _head(path)
    if head[8:9] != b"{" or int.from_bytes(head[:8], "little") > MOST_SAFETENSORS_HEADER:
        return _read(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type of number that torch has not
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


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
    """What a file of torch.save holds; a `UserError` that says what another file is."""
    head = _head(path)
    for begins, what in FOREIGN.items():
        if head.lstrip().lower().startswith(begins):
            raise UserError(f"{path}: this is {what}, not a checkpoint")
    if head.startswith(b"PK"):
        _require_torch_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():
            reason = "holds more than tensors and plain values, which is not loaded"
            raise UserError(f"{path}: {reason}; save model.state_dict()") from error
        raise UserError(f"{path}: not a checkpoint file, or not a complete one; use another one") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise UserError(f"{path}: not a complete checkpoint file; use another one or train again") from error


def _head(path: str | Path) -> bytes:
    """A file's first bytes; a `UserError` when there is no file."""
    try:
        if not Path(path).exists():
            raise UserError(f"{path}: no such checkpoint; train first with run_expid.py, or name one with --checkpoint")
        if not Path(path).is_file():
            raise UserError(f"{path}: this is no file; name the .model file in it")
        with open(path, "rb") as opened:
            head = opened.read(256)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if not head:
        raise UserError(f"{path}: the file is empty; copy it again or train again")
    return head


def _require_torch_zip(path: str | Path) -> None:
    """Refuse a zip that torch did not write, one that unpacks to more than it has bytes, and one whose bytes changed.

    Torch stores its members unpacked, with checksums that it does not look at when it reads them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            is_torchs = any(member.filename.endswith("/data.pkl") for member in members)
            fits = sum(member.file_size for member in members) <= Path(path).stat().st_size
            damaged = is_torchs and fits and not all(_is_sound(archive, member) for member in members)
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        raise UserError(f"{path}: not a complete checkpoint file; use another one or train again") from error
    if not is_torchs:
        raise UserError(f"{path}: this is a zip file, but not one of torch; if the checkpoint is inside, unpack it")
    if not fits:
        raise UserError(f"{path}: not a checkpoint of torch: it would unpack to more bytes than the file has")
    if damaged:
        raise UserError(f"{path}: the file is damaged: its bytes have changed since it was written; copy it again")


def _is_sound(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a member's bytes are those that were written, or nobody can tell: torch may leave checksums out."""
    if not member.CRC:
        return True
    crc = 0
    try:
        with archive.open(member) as opened:
            while block := opened.read(1 << 20):
                crc = zlib.crc32(block, crc)
    except zipfile.BadZipFile:  # zipfile's own checksum at the end of a member
        return False
    return crc == member.CRC


def _unwrapped(content: object, path: str | Path) -> dict[str, Tensor]:
    """The state dict itself, each value a plain tensor of numbers."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict) and {"format", "fingerprint", "state"} <= set(content):
        raise UserError(f"{path}: a run's state to --resume from, not weights; use the EXPID.model file of the run")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: not a model's weights, expected a state dict of tensors (a .model file)")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: not a model's weights: {name!r} is of type {type(value).__name__}, expected names of tensors"
            )
        kind = _unusual_kind(value)
        if kind:
            raise UserError(f"{path}: {name} is a {kind} tensor, expected a plain one; save the weights as float32")
    return content


def _own_names(state: dict[str, Tensor], own: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The state under the model's names: without the prefixes of wrappers, where the names are not the model's yet."""
    if all(name in own for name in state):
        return state
    renamed = {}
    for name, value in state.items():
        plain = name.replace("._orig_mod.", ".")
        while plain not in own and plain.startswith(PREFIXES):
            plain = plain.partition(".")[2]
        if plain in renamed:
            raise UserError(f"{path}: {plain} is there twice, once as {name}; save the state dict of one model")
        renamed[plain] = value
    return renamed


def _unusual_kind(value: Tensor) -> str | None:
    """What keeps a tensor from being weights."""
    if value.is_meta:
        return "meta (without values)"
    if value.is_quantized:
        return "quantized"
    if value.layout != torch.strided:
        return "sparse"
    if value.is_complex():
        return "complex"
    if value.is_floating_point() and value.dtype not in FLOATS:
        return _dtype(value)
    return None


def _require_numbers(values: Tensor, own: Tensor, where: str) -> None:
    """Refuse NaN, infinity, also one that only the model's precision makes, and numbers of another kind."""
    if values.is_floating_point() != own.is_floating_point() or (
        not own.is_floating_point() and values.dtype != own.dtype
    ):
        raise UserError(f"{where} has type {_dtype(values)}, expected {_dtype(own)}")
    if values.is_floating_point() and not torch.isfinite(values.to(own.dtype)).all():
        raise UserError(f"{where} has NaN or infinity, expected finite weights; use another checkpoint")


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")

"""Files appear whole or not at all: write beside the target, flush to disk, then rename.

An output is never an input, a device or a folder (`require_output`), and a folder that a process writes to is its own
while it does (`locked`). Locks are the system's (flock), which end with the process that holds them however it ends;
Windows has none, and there `locked` refuses instead of letting two processes write at once.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mm_fibinet.errors import UserError, explain_os_error, printable

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
MAGIC = {
    "parquet": b"PAR1",
    "zip": b"PK",
    "png": b"\x89PNG",
    "html": b"<!DOCTYPE html>",
    "submission csv": b"ID,",
}  # the first bytes of an output's kind


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    The parent folder is made when missing. A full disk, an unwritable folder, and a folder or a device in the file's
    place are a `UserError`.
    """
    target = Path(path)
    with _beside(target, _new_file, 0o666) as temporary:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes its place, on any failure it is removed.

    A folder that is there is replaced: `require_output_folder` says whose it is. Of a link, that is what it leads to.
    """
    target = Path(path).resolve()
    with _beside(target, _new_folder, 0o777) as temporary:
        yield temporary
        for written in temporary.iterdir():
            _flush(written)
        if target.exists():
            before = temporary.with_suffix(".before")
            os.replace(target, before)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(before, target)
                raise
            shutil.rmtree(before)
        else:
            os.replace(temporary, target)


@contextlib.contextmanager
def _beside(target: Path, new: Callable[[Path], str], mode: int) -> Iterator[Path]:
    """Yield what `new` makes beside `target`, with a mode as the umask has it; what is not moved away is removed."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(new(target))
        os.chmod(temporary, mode & ~_umask())
        yield temporary
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        if temporary is not None and temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary is not None:
            temporary.unlink(missing_ok=True)


def _new_file(target: Path) -> str:
    _require_file_or_nothing(target, "cannot write ")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    return name


def _new_folder(target: Path) -> str:
    return tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)


def _flush(path: Path) -> None:
    """Have a file on the disk before it is renamed."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder and its parents; a `UserError` when that cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return folder


def walk(
    folder: str | os.PathLike[str], on_error: Callable[[OSError], object]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in the names' order, through links to folders too, each folder once.

    Args:
        folder: where to begin.
        on_error: told of each folder that cannot be read; may raise.
    """
    seen = set()
    for root, folders, names in os.walk(os.fspath(folder), onerror=on_error, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link to a folder that holds it, say
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders.sort()
        yield root, folders, sorted(names)


def require_output(
    path: str | os.PathLike,
    inputs: Iterable[str | os.PathLike | None] = (),
    kind: str | None = None,
    option: str = "--output",
) -> Path:
    """Refuse a place to write that is an input, inside an input folder, a device, a folder, or a file of another kind.

    Args:
        path: the file that will be written.
        inputs: files and folders that are read; None is passed over.
        kind: a key of MAGIC: an existing file that begins otherwise is somebody's, and is not replaced.
        option: how the user named the path.

    Returns:
        the path.
    """
    target = Path(path)
    try:
        resolved = _resolved(target)
        _require_file_or_nothing(resolved, f"{option} ", path)
        for source in (_resolved(Path(source)) for source in inputs if source is not None):
            if source == resolved or (resolved.exists() and source.exists() and source.samefile(resolved)):
                raise UserError(f"{option} {path} is an input; inputs are never modified, choose another file")
            if source.is_dir() and resolved.is_relative_to(source):
                raise UserError(
                    f"{option} {path} is inside the input folder {source}; inputs are never modified, choose another "
                    "folder"
                )
        _require_writable(next(folder for folder in resolved.parents if folder.exists()), path)
        if kind and resolved.exists() and resolved.stat().st_size:
            with open(resolved, "rb") as opened:
                found = opened.read(len(MAGIC[kind]))
            if found != MAGIC[kind]:
                raise UserError(f"{option} {path}: there is a file that is no {kind}; remove it or choose another name")
    except OSError as error:
        raise explain_os_error(error, path) from error
    except ValueError as error:  # a NUL character
        raise UserError(f"{option} {path}: not a file name ({error})") from error
    return target


def require_output_folder(
    path: str | os.PathLike, inputs: Iterable[str | os.PathLike | None], own: Iterable[str], option: str = "--out"
) -> Path:
    """Refuse a folder to write that is an input, or holds one, or anything but what such a folder holds.

    Args:
        path: the folder that will be written, or replaced.
        inputs: files and folders that are read; None is passed over.
        own: the names that an earlier one may hold, the first of them always.
        option: how the user named the path.

    Returns:
        the path.
    """
    target, own = Path(path), tuple(own)
    try:
        resolved = _resolved(target)
        if resolved.exists() and not resolved.is_dir():
            raise UserError(f"{option} {path}: this is no folder, expected the name of a folder to write")
        for source in (_resolved(Path(source)) for source in inputs if source is not None):
            if source.is_relative_to(resolved) or (source.is_dir() and resolved.is_relative_to(source)):
                raise UserError(f"{option} {path} is an input; inputs are never modified, choose another folder")
        present = sorted(each.name for each in resolved.iterdir()) if resolved.exists() else []
        other = [name for name in present if name not in own]
        if other or (present and own[0] not in present):
            raise UserError(
                f"{option} {path}: there is {(other or present)[0]}, which is no part of an earlier one; "
                "choose another folder"
            )
        _require_writable(next(folder for folder in resolved.parents if folder.exists()), path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    except ValueError as error:  # a NUL character
        raise UserError(f"{option} {path}: not a folder's name ({error})") from error
    return target


def _resolved(path: Path) -> Path:
    """Where links lead; an `OSError` for those that go in a circle, on every Python."""
    try:
        return path.resolve()
    except RuntimeError as error:  # before 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _require_writable(folder: Path, shown: object) -> None:
    """Refuse what only the write would, after hours of work."""
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise explain_os_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), shown)


def _require_file_or_nothing(path: Path, before: str, shown: object = None) -> None:
    """Refuse a folder or a device where a file is to be written; `before` begins the sentence."""
    shown = path if shown is None else shown
    if path.is_dir():
        raise UserError(f"{before}{shown}: this is a folder, expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise UserError(f"{before}{shown}: this is a device or a pipe, expected the name of a file to write")


@contextlib.contextmanager
def locked(folder: str | os.PathLike, waiting: str | None = None) -> Iterator[int]:
    """Hold a folder's lock; yields its file descriptor, which a child process may inherit.

    Args:
        folder: made when missing.
        waiting: what to say, once, while another process holds the lock; None refuses instead of waiting.

    Raises:
        UserError: another process holds the lock, or the lock cannot be written.
    """
    if fcntl is None:
        raise UserError(f"{folder}: cannot be locked on this system; runs need Linux or macOS (on Windows: WSL)")
    path = make_folder(folder) / LOCK
    try:
        opened = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise explain_os_error(error, path) from error
    with opened:
        try:
            _lock(opened.fileno(), folder, waiting)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror or error}), as on some network file systems; choose a "
                "folder on a local disk"
            ) from error
        yield opened.fileno()


def _lock(descriptor: int, folder: str | os.PathLike, waiting: str | None) -> None:
    """Lock an open file; what is done while another process holds the lock is as `locked` says."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise UserError(
                f"{folder}: another process is at work there; wait for it, or choose another folder"
            ) from None
        print(printable(waiting), file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

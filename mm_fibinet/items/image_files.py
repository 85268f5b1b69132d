"""Images of strangers, where they lie: the files of a folder, of a .zip, and of what libarchive reads.

A `.rar` can only be read from front to back, and is read like a folder. Nothing is ever unpacked to disk: of a path
only its last part matters.
"""

import contextlib
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import walk
from mm_fibinet.items.contents import BadContent
from mm_fibinet.schema import IMAGE_SUFFIXES

MAX_IMAGE_BYTES = 64 * 2**20  # a cover has about 100 kB
READ_BYTES = 2**16


class File(NamedTuple):
    """One image, not loaded yet.

    Attributes:
        name: for messages.
        item_id: None for a file that is not named as an item's image.
        size: bytes.
        load: gives the bytes; raises `BadContent`.
    """

    name: str
    item_id: int | None
    size: int
    load: Callable[[], bytes]


def item_of(name: str) -> int | None:
    """The item of a file by its name; None when it is not ITEM_ID and a suffix of images."""
    path = PurePosixPath(name)
    fits = path.suffix.lower() in IMAGE_SUFFIXES and re.fullmatch("[0-9]{1,18}", path.stem)
    return int(path.stem) if fits else None


def unusable(name: str, kind: str, reason: str, item_id: int | None = None) -> File:
    """An image whose loading fails; the item is told by the name unless it is given."""

    def load() -> bytes:
        raise BadContent(kind, reason)

    return File(name, item_of(name) if item_id is None else item_id, 0, load)


def too_large(name: str, size: int, item_id: int | None = None) -> File:
    """An image beyond MAX_IMAGE_BYTES."""
    reason = f"{size / 2**20:,.0f} MiB, at most {MAX_IMAGE_BYTES / 2**20:,.0f}"
    return unusable(name, "oversized", reason, item_id)


def folder_files(folder: Path) -> Iterator[File]:
    """The files below a folder, those of linked folders too, each folder once."""

    def refuse(error: OSError) -> None:
        raise explain_os_error(error, error.filename, "read") from error

    for root, folders, names in walk(folder, refuse):
        for name in folders:
            if item_of(name) is not None:
                yield unusable((Path(root, name)).relative_to(folder).as_posix(), "corrupt", "a folder, not a file")
        for name in names:
            path = Path(root, name)
            yield _folder_file(path, path.relative_to(folder).as_posix())


def _folder_file(path: Path, name: str) -> File:
    try:
        status = path.stat()
    except FileNotFoundError:
        return unusable(name, "corrupt", "a link to nothing")
    except OSError as error:
        return unusable(name, "corrupt", str(explain_os_error(error, name, "read")))
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        return unusable(name, "corrupt", "a pipe or a device, not a file")
    if status.st_size > MAX_IMAGE_BYTES:
        return too_large(name, status.st_size)

    def load() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    return File(name, item_of(name), status.st_size, load)


def zip_files(path: Path) -> Iterator[File]:
    """The files of a .zip, which can be loaded in any order."""
    try:
        opened = zipfile.ZipFile(path)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except Exception as error:  # besides BadZipFile, whatever its parsing of a damaged directory ends in
        raise UserError(f"{path}: not a complete zip file ({error}); download or pack it again") from error

    def load(member: zipfile.ZipInfo) -> bytes:
        try:
            return opened.read(member)  # reads no further than the size in the directory
        except Exception as error:  # BadZipFile, and what each decompressor raises on damage
            if isinstance(error, OSError) and error.errno:
                raise explain_os_error(error, path, "read") from error
            raise BadContent("corrupt", str(error) or type(error).__name__) from error

    for member in opened.infolist():
        if item_of(member.filename) is None:
            if not member.is_dir():
                yield unusable(member.filename, "corrupt", "not an image's name")
        elif member.is_dir():
            yield unusable(member.filename, "corrupt", "a folder, not a file")
        elif member.flag_bits & 1:
            raise UserError(f"{path}: {member.filename} is encrypted; unpack it to a folder and give that as --images")
        elif member.file_size > MAX_IMAGE_BYTES:
            yield too_large(member.filename, member.file_size)
        else:
            yield File(member.filename, item_of(member.filename), member.file_size, partial(load, member))


def archive_files(path: Path) -> Iterator[File]:
    """Stream an archive through libarchive: a file can be loaded until the iteration passes on."""
    try:
        import libarchive
    except Exception as error:  # the binding raises whatever its search for the system library ends in
        raise UserError(
            f"{path}: reading {path.suffix} needs libarchive, found {type(error).__name__}: install libarchive-c with "
            "pip and the system library (libarchive13), or unpack it to a folder and give that as --images"
        ) from error
    name = "its first file"

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        try:
            yield
        except libarchive.ArchiveError as error:
            if "encrypt" in str(error).lower() or "passphrase" in str(error).lower():
                raise UserError(
                    f"{path}: {name} is encrypted; unpack it to a folder and give that as --images"
                ) from error
            raise UserError(f"{path}: cannot be read at {name} ({error}); download or pack it again") from error
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    def load(member: Any) -> bytes:
        blocks, size = [], 0
        with explained():
            for block in member.get_blocks(READ_BYTES):
                blocks.append(block)
                size += len(block)
                if size > MAX_IMAGE_BYTES:  # the size in its header was wrong
                    too_large(name, size).load()
        return b"".join(blocks)

    with explained(), libarchive.file_reader(str(path)) as members:
        for member in members:
            name = member.pathname or ""
            name = name if isinstance(name, str) else os.fsdecode(name)
            if item_of(name) is None:
                if not member.isdir:
                    yield unusable(name, "corrupt", "not an image's name")
            elif not member.isfile or member.islnk:
                yield unusable(name, "corrupt", "a folder, a link or a device, not a file")
            elif (member.size or 0) > MAX_IMAGE_BYTES:
                yield too_large(name, member.size)
            else:
                yield File(name, item_of(name), member.size or 0, partial(load, member))

"""Images of strangers, where they lie: the files of a folder, of a .zip, and of what libarchive reads.

A `.rar` can only be read from front to back, and is read like a folder. Nothing is ever unpacked to disk: of a path
only its last part matters.
"""

import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mm_fibinet import archives
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import walk
from mm_fibinet.items.contents import BadContent
from mm_fibinet.schema import IMAGE_SUFFIXES

MAX_IMAGE_BYTES = 64 * 2**20  # a cover has about 100 kB


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

    def load(member: archives.Member) -> bytes:
        blocks, size = [], 0
        for block in member.blocks():
            blocks.append(block)
            size += len(block)
            if size > MAX_IMAGE_BYTES:  # the size in its header was wrong
                too_large(member.name, size).load()
        return b"".join(blocks)

    for member in archives.members(path):
        if item_of(member.name) is None:
            if member.kind != archives.FOLDER:
                yield unusable(member.name, "corrupt", "not an image's name")
        elif member.kind != archives.FILE:
            yield unusable(member.name, "corrupt", "a folder, a link or a device, not a file")
        elif member.size > MAX_IMAGE_BYTES:
            yield too_large(member.name, member.size)
        else:
            yield File(member.name, item_of(member.name), member.size, partial(load, member))

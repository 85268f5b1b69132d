"""What an encoder reads: a stream of items' contents, and the images of a folder or an archive.

Every modality becomes a stream of `Entry`: an item id, a name for messages, and a function that loads the content when
a background thread gets to it. So 91,717 covers are never in memory at once, and a `.rar`, which can only be read from
front to back, is read like a folder. Nothing is ever unpacked to disk: of a path only its last part matters. Files that
cannot be used are counted, never passed over without a word, and are not the end of the run.
"""

import contextlib
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import walk
from mm_fibinet.schema import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES

MAX_IMAGE_BYTES = 64 * 2**20  # a cover has about 100 kB
READ_BYTES = 2**16


class BadContent(Exception):
    """One item's content cannot be used; `kind` is "corrupt" or "oversized", the message says why."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Entry:
    """One item's content in one modality, not loaded yet.

    Attributes:
        item_id: 1 .. N.
        name: for messages.
        load: gives the content; raises `BadContent`.
        size: about how many bytes of memory the content takes.
    """

    item_id: int
    name: str
    load: Callable[[], bytes]
    size: int = 0


class Source(Protocol):
    """What the build needs of a modality's source."""

    @property
    def views(self) -> Mapping[str, Iterable[Entry]]:
        """Streams of entries by name.

        The first holds the whole contents; further ones are other sights of the same items (a text's opening), whose
        features are put beside the first's.
        """

    def facts(self) -> dict[str, Any]:
        """What was read and what was not, for the manifest; final after iteration."""

    def notes(self) -> list[str]:
        """The same as sentences for a person."""


class _File(NamedTuple):
    """A file of a folder or an archive; load raises `BadContent`."""

    name: str
    size: int
    load: Callable[[], bytes]


class ImageSource:
    """Iterates over the images ITEM_ID.jpg (.jpeg, .png, .webp) of a folder or an archive, at any depth.

    An archive that must be streamed has no length beforehand (length hint 0).

    Args:
        path: folder, .zip, or what libarchive reads.
        num_items: the ids of item_info are 0 .. num_items.

    Attributes:
        unknown: how many images had an id outside 1 .. num_items and were passed over (final after iteration).
        misnamed: how many files are not named as an image of an item (likewise; hidden files are not counted).
    """

    def __init__(self, path: str | Path, num_items: int):
        self.path = Path(path)
        self.num_items = num_items
        self.unknown = self.misnamed = 0
        self._misnamed_one = ""
        self.views: Mapping[str, Iterable[Entry]] = {"image": self}
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file or folder, expected a folder or an archive of ITEM_ID.jpg")
        suffix = self.path.suffix.lower()
        if self.path.is_dir():
            self._entries: Iterable[Entry] = list(self._select(_folder_files(self.path)))
        elif not self.path.is_file():
            raise UserError(f"{self.path}: this is a device or a pipe, expected a folder or an archive of ITEM_ID.jpg")
        elif suffix == ".zip":
            self._entries = list(self._select(_zip_files(self.path)))
        elif suffix in ARCHIVE_SUFFIXES:
            self._entries = _load_as_they_come(self._select(_archive_files(self.path)))
        else:
            raise UserError(
                f"{self.path}: cannot tell what kind of archive this is; --images takes a folder, .zip, .rar or .tar"
            )
        if isinstance(self._entries, list):
            self._entries.sort(key=lambda entry: entry.item_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __length_hint__(self) -> int:
        return len(self._entries) if isinstance(self._entries, list) else 0

    def facts(self) -> dict[str, Any]:
        """See `Source`."""
        return {"unknown": self.unknown, "misnamed": self.misnamed}

    def notes(self) -> list[str]:
        """See `Source`."""
        notes = []
        if self.unknown:
            notes.append(f"{self.unknown:,} images of ids that are not in item_info were passed over")
        if self.misnamed:
            files = "files are" if self.misnamed > 1 else "file is"
            suffixes = "/".join(IMAGE_SUFFIXES)
            notes.append(f"{self.misnamed:,} {files} not named ITEM_ID{suffixes}, e.g. {self._misnamed_one}")
        return notes

    def _select(self, files: Iterable[_File]) -> Iterator[Entry]:
        names: dict[int, str] = {}
        for name, size, load in files:
            item_id = _item_id(name)
            if item_id is None:
                if not PurePosixPath(name).name.startswith("."):
                    self._misnamed_one = self._misnamed_one or name
                    self.misnamed += 1
            elif not 1 <= item_id <= self.num_items:
                self.unknown += 1
            elif item_id in names:
                raise UserError(
                    f"{self.path}: item {item_id} has two images, {names[item_id]} and {name}; keep one of them"
                )
            else:
                names[item_id] = name
                yield Entry(item_id, name, load, size)


def _item_id(name: str) -> int | None:
    """The item of a file by its name; None when it is not ITEM_ID and a suffix of images."""
    path = PurePosixPath(name)
    fits = path.suffix.lower() in IMAGE_SUFFIXES and re.fullmatch("[0-9]{1,18}", path.stem)
    return int(path.stem) if fits else None


def _unusable(name: str, kind: str, reason: str) -> _File:
    def load() -> bytes:
        raise BadContent(kind, reason)

    return _File(name, 0, load)


def _too_large(name: str, size: int) -> _File:
    return _unusable(name, "oversized", f"{size / 2**20:,.0f} MiB, at most {MAX_IMAGE_BYTES / 2**20:,.0f}")


def _folder_files(folder: Path) -> Iterator[_File]:
    """The files below a folder, those of linked folders too, each folder once."""

    def refuse(error: OSError) -> None:
        raise explain_os_error(error, error.filename, "read") from error

    for root, folders, names in walk(folder, refuse):
        for name in folders:
            if _item_id(name) is not None:
                yield _unusable((Path(root, name)).relative_to(folder).as_posix(), "corrupt", "a folder, not a file")
        for name in names:
            path = Path(root, name)
            yield _folder_file(path, path.relative_to(folder).as_posix())


def _folder_file(path: Path, name: str) -> _File:
    try:
        status = path.stat()
    except FileNotFoundError:
        return _unusable(name, "corrupt", "a link to nothing")
    except OSError as error:
        return _unusable(name, "corrupt", str(explain_os_error(error, name, "read")))
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        return _unusable(name, "corrupt", "a pipe or a device, not a file")
    if status.st_size > MAX_IMAGE_BYTES:
        return _too_large(name, status.st_size)

    def load() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    return _File(name, status.st_size, load)


def _zip_files(path: Path) -> Iterator[_File]:
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
        if _item_id(member.filename) is None:
            if not member.is_dir():
                yield _unusable(member.filename, "corrupt", "not an image's name")
        elif member.is_dir():
            yield _unusable(member.filename, "corrupt", "a folder, not a file")
        elif member.flag_bits & 1:
            raise UserError(f"{path}: {member.filename} is encrypted; unpack it to a folder and give that as --images")
        elif member.file_size > MAX_IMAGE_BYTES:
            yield _too_large(member.filename, member.file_size)
        else:
            yield _File(member.filename, member.file_size, partial(load, member))


def _archive_files(path: Path) -> Iterator[_File]:
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
                    _too_large(name, size).load()
        return b"".join(blocks)

    with explained(), libarchive.file_reader(str(path)) as members:
        for member in members:
            name = member.pathname or ""
            name = name if isinstance(name, str) else os.fsdecode(name)
            if _item_id(name) is None:
                if not member.isdir:
                    yield _unusable(name, "corrupt", "not an image's name")
            elif not member.isfile or member.islnk:
                yield _unusable(name, "corrupt", "a folder, a link or a device, not a file")
            elif (member.size or 0) > MAX_IMAGE_BYTES:
                yield _too_large(name, member.size)
            else:
                yield _File(name, member.size or 0, partial(load, member))


def _load_as_they_come(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries of a stream that cannot be read again, each with its bytes in hand."""
    for entry in entries:
        try:
            data = entry.load()
        except BadContent as error:
            yield replace(entry, load=_unusable(entry.name, error.kind, str(error)).load, size=0)
        else:
            yield replace(entry, load=partial(bytes, data), size=len(data))
            del data

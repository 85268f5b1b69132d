"""The images of a modality: a folder, an archive, an HDF5 file or a parquet column of ITEM_ID.jpg.

What cannot be read out of order (a `.rar`, a `.tar`, parquet) is streamed: each pass over the source reads it once from
front to back, and holds only the images that wait for the encoder.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.image_files import File, archive_files, folder_files, unusable, zip_files
from mm_fibinet.items.image_tables import HDF5_SUFFIXES, hdf5_files, parquet_files
from mm_fibinet.schema import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES

KINDS = "a folder, .zip, .rar, .tar, .h5 or .parquet"


class ImageSource:
    """Iterates over the images ITEM_ID.jpg (.jpeg, .png, .webp) of a folder or an archive, at any depth.

    What must be streamed has no length beforehand (length hint 0), and may be iterated over again.

    Args:
        path: folder, .zip, what libarchive reads, HDF5 or parquet.
        num_items: the ids of item_info are 0 .. num_items.

    Attributes:
        unknown: how many images had an id outside 1 .. num_items and were passed over (final after iteration).
        misnamed: how many files are not named as an image of an item (likewise; hidden files are not counted).
    """

    def __init__(self, path: str | Path, num_items: int):
        self.path = Path(path)
        self.num_items = num_items
        self.views: Mapping[str, Iterable[Entry]] = {"image": self}
        self._entries: list[Entry] | None = None
        self._start()
        suffix = self.path.suffix.lower()
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file or folder, expected a folder or an archive of ITEM_ID.jpg")
        if suffix == ".parquet":  # also a folder of such parts, if it is named so
            self._files = partial(parquet_files, self.path)
            return
        if self.path.is_dir():
            files = folder_files(self.path)
        elif not self.path.is_file():
            raise UserError(f"{self.path}: this is a device or a pipe, expected a folder or an archive of ITEM_ID.jpg")
        elif suffix == ".zip":
            files = zip_files(self.path)
        elif suffix in HDF5_SUFFIXES:
            files = hdf5_files(self.path)
        elif suffix in ARCHIVE_SUFFIXES:
            self._files = partial(archive_files, self.path)
            return
        else:
            raise UserError(f"{self.path}: cannot tell what kind of archive this is; --images takes {KINDS}")
        self._entries = sorted(self._select(files), key=lambda entry: entry.item_id)

    def __iter__(self) -> Iterator[Entry]:
        if self._entries is not None:
            return iter(self._entries)
        self._start()
        return _load_as_they_come(self._select(self._files()))

    def __length_hint__(self) -> int:
        return len(self._entries or ())

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

    def _start(self) -> None:
        self.unknown = self.misnamed = 0
        self._misnamed_one = ""

    def _select(self, files: Iterable[File]) -> Iterator[Entry]:
        names: dict[int, str] = {}
        for name, item_id, size, load in files:
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


def _load_as_they_come(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries of a stream that cannot be read again, each with its bytes in hand."""
    for entry in entries:
        try:
            data = entry.load()
        except BadContent as error:
            yield replace(entry, load=unusable(entry.name, error.kind, str(error)).load, size=0)
        else:
            yield replace(entry, load=partial(bytes, data), size=len(data))
            del data

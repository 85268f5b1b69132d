"""Where an item's texts and images come from: item_feature.parquet, and a folder or an archive of ITEM_ID.jpg.

Both modalities become a stream of `Entry`: an item id, a name for messages, and a function that loads the content when
a background thread gets to it. So 91,717 covers are never in memory at once, and a `.rar`, which can only be read from
front to back, is read like a folder. Images are strangers' files: they are measured before they are decoded, only a few
formats are tried, and one that cannot be used is a `BadImage`, which the caller counts, and not the end of the run.
"""

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image

from mm_fibinet import schema
from mm_fibinet.errors import UserError, explain_os_error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what a file of such a name really holds, now and then
ARCHIVE_SUFFIXES = (".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
MAX_IMAGE_PIXELS = 64 * 10**6  # a cover has about one million; more is a mistake or a decompression bomb
MAX_IMAGE_BYTES = 256 * 2**20
DESCRIPTION_COLUMNS = ("item_description", "description")

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_IMAGE_PIXELS is stricter


class BadImage(Exception):
    """One image cannot be used; `kind` is "corrupt" or "oversized", the message says why."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Entry:
    """One item's content in one modality, not loaded yet."""

    item_id: int
    name: str
    load: Callable[[], bytes]


def read_texts(path: str | Path, num_items: int) -> list[Entry]:
    """One text an item: title, tags and, where there is such a column, description.

    Args:
        path: parquet with item_id, and item_title, item_tags or both; titles may be null or empty, tags a list of
            strings or numbers, a single string or null.
        num_items: the ids of item_info are 0 .. num_items.

    Returns:
        entries (UTF-8) of the items that have a text, in order of item_id.
    """
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID])
    present = opened.schema_arrow.names
    columns = [name for name in ("item_title", "item_tags", *DESCRIPTION_COLUMNS) if name in present]
    if not columns:
        raise UserError(f"{path}: found columns {', '.join(present)}, expected item_title or item_tags for the text")
    texts: dict[int, str] = {}
    for first_row, arrays in schema.read_slices(path, [schema.ITEM_ID, *columns]):
        ids = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first_row).tolist()
        fields = [_strings(arrays[name], path, name) for name in columns]
        for offset, (item_id, *parts) in enumerate(zip(ids, *fields, strict=True)):
            if not 0 <= item_id <= num_items:
                raise UserError(
                    f"{path}: item_id {item_id} in row {first_row + offset} is not in item_info (0 to {num_items}); "
                    "give the item_info and item_feature of the same data set"
                )
            if item_id in texts:
                raise UserError(
                    f"{path}: item_id {item_id} occurs again in row {first_row + offset}, expected each item once"
                )
            texts[item_id] = ". ".join(part.rstrip(". ") for part in parts if part)
    texts.pop(0, None)  # the padding item
    return [_text_entry(item_id, texts[item_id]) for item_id in sorted(texts) if texts[item_id]]


def openings(entries: list[Entry], num_words: int) -> list[Entry]:
    """The first words of each text: a title without the description that follows it."""
    texts = [(entry.item_id, " ".join(entry.load().decode("utf-8").split()[:num_words])) for entry in entries]
    return [_text_entry(item_id, text) for item_id, text in texts]


def _text_entry(item_id: int, text: str) -> Entry:
    return Entry(item_id, f"item {item_id}", lambda: text.encode("utf-8"))


def _strings(array: pa.Array, path: str | Path, column: str) -> list[str]:
    """One clean string a row; lists are joined by commas, zeros (tag padding) left out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    if not (_is_string(inner) or pa.types.is_null(inner) or (is_list and pa.types.is_integer(inner))):
        raise UserError(f"{path}: column {column} has type {kind}, expected text or lists of text")
    rows = array.to_pylist()
    if not is_list:
        return [_clean(row) for row in rows]
    return [", ".join(filter(None, map(_clean, row or ()))) for row in rows]


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _clean(value: str | int | None) -> str:
    text = "" if value is None or value == 0 else str(value)
    return " ".join(text.encode("utf-8", "ignore").decode().split())


class ImageSource:
    """Iterates over the images ITEM_ID.jpg (.jpeg, .png, .webp) of a folder or an archive, at any depth.

    An archive that must be streamed has no length beforehand (length hint 0).

    Attributes:
        unknown: how many images had an id outside 1 .. num_items and were passed over (final after iteration).
    """

    def __init__(self, path: str | Path, num_items: int):
        self.path = Path(path)
        self.num_items = num_items
        self.unknown = 0
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file or folder, expected a folder or an archive of ITEM_ID.jpg")
        if self.path.is_dir():
            self._entries: Iterable[Entry] = list(self._select(_folder_files(self.path)))
        elif self.path.suffix.lower() == ".zip":
            self._entries = list(self._select(_zip_files(self.path)))
        elif self.path.suffix.lower() in ARCHIVE_SUFFIXES:
            self._entries = self._select(_archive_files(self.path))
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

    def _select(self, files: Iterable[tuple[str, Callable[[], bytes]]]) -> Iterator[Entry]:
        names: dict[int, str] = {}
        for name, load in files:
            path = PurePosixPath(name)
            if path.suffix.lower() not in IMAGE_SUFFIXES or not re.fullmatch("[0-9]{1,18}", path.stem):
                continue
            item_id = int(path.stem)
            if not 1 <= item_id <= self.num_items:
                self.unknown += 1
                continue
            if item_id in names:
                raise UserError(
                    f"{self.path}: item {item_id} has two images, {names[item_id]} and {name}; keep one of them"
                )
            names[item_id] = name
            yield Entry(item_id, name, load)


def _folder_files(folder: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    def load(path: Path) -> bytes:
        try:
            _check_bytes(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), lambda path=path: load(path)


def _zip_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a complete zip file ({error}); download or pack it again") from error

    def load(member: zipfile.ZipInfo) -> bytes:
        _check_bytes(member.file_size)
        try:
            return opened.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadImage("corrupt", str(error)) from error
        except OSError as error:
            raise explain_os_error(error, path, "read") from error

    for member in opened.infolist():
        if member.flag_bits & 1:
            raise UserError(f"{path}: {member.filename} is encrypted; unpack it to a folder and give that as --images")
        if not member.is_dir():
            yield member.filename, lambda member=member: load(member)


def _archive_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Stream an archive through libarchive: each file's bytes are read as the iteration passes over it."""
    try:
        import libarchive
    except Exception as error:  # the binding raises whatever its search for the system library ends in
        raise UserError(
            f"{path}: reading {path.suffix} needs libarchive, found {type(error).__name__}: install libarchive-c with "
            "pip and the system library (libarchive13), or unpack it to a folder and give that as --images"
        ) from error
    name = "its first file"
    try:
        with libarchive.file_reader(str(path)) as files:
            for member in files:
                name = member.pathname
                if not member.isfile or PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if (member.size or 0) > MAX_IMAGE_BYTES:
                    yield name, lambda size=member.size: _check_bytes(size)
                else:
                    data = b"".join(member.get_blocks())
                    yield name, lambda data=data: data
    except libarchive.ArchiveError as error:
        raise UserError(f"{path}: cannot be read at {name} ({error}); download or pack it again") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def _check_bytes(size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise BadImage("oversized", f"{size / 2**20:,.0f} MiB, at most {MAX_IMAGE_BYTES >> 20}")


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file to RGB; `BadImage` when it is damaged, cut short, or larger than MAX_IMAGE_PIXELS."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            width, height = opened.size  # from the header: nothing is decoded yet
            if width * height > MAX_IMAGE_PIXELS:
                raise BadImage("oversized", f"{width} x {height} pixels, at most {MAX_IMAGE_PIXELS:,}")
            return opened.convert("RGB")
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("oversized", str(error)) from error
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImage("corrupt", reason) from error

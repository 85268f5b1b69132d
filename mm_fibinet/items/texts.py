"""Titles, tags and descriptions of item_feature.parquet as one text an item.

Catalogues come from pandas, CSV files and crawlers: a title column has any of a few names, tags are lists or lists that
somebody printed, and a missing title may be the word "nan". All of that is read for what it means, what was read is
said, and what is missing is counted.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import Entry, require_new_item

TITLE_COLUMNS = ("item_title", "title", "item_name", "name")
TAG_COLUMNS = ("item_tags", "tags", "genres")
DESCRIPTION_COLUMNS = ("item_description", "description")
NOTHING = frozenset(("nan", "null", "none", "n/a", "<na>", "-"))  # how a missing value is written, in lower case
MAX_TEXT_CHARS = 2**16  # of a field; encoders read the first few hundred words
# Control characters that are not white space, marks of writing direction, byte order marks, halves of characters.
INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
ELEMENT = re.compile(r"""u?'((?:[^'\\]|\\.)*)'|u?"((?:[^"\\]|\\.)*)"|([^\s,]+)""")
ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")


@dataclass
class TextSource:
    """The texts of item_feature; a `Source`.

    Attributes:
        path: where they come from.
        entries: the items that have a text, in order of item_id; contents are UTF-8.
        columns: the columns read, in this order.
        title: the one that holds titles, None when there is none.
        untitled: how many of the entries have no title.
        damaged: how many fields held bytes that are not UTF-8 and were left out.
        opening_words: how many words the second view has; 0 for no second view.
    """

    path: Path
    entries: list[Entry]
    columns: list[str]
    title: str | None
    untitled: int
    damaged: int
    opening_words: int = 0

    @functools.cached_property
    def views(self) -> dict[str, list[Entry]]:
        """The texts and, so that a long description does not drown the title, their first words alone."""
        if not self.opening_words:
            return {"text": self.entries}
        return {"text": self.entries, "opening": openings(self.entries, self.opening_words)}

    def facts(self) -> dict[str, Any]:
        """See `Source`."""
        opening = {"opening_words": self.opening_words} if self.opening_words else {}
        return {"columns": self.columns, "untitled": self.untitled} | opening

    def notes(self) -> list[str]:
        """See `Source`."""
        notes = [f"read {', '.join(self.columns)}"]
        if self.title is None:
            notes[0] += f": no title, expected one of {', '.join(TITLE_COLUMNS)}; name yours with --text_columns"
        elif self.untitled:
            notes.append(f"{self.untitled:,} of the found have no {self.title}")
        if self.damaged:
            notes.append(f"{self.damaged:,} fields hold bytes that are not UTF-8, which were left out")
        return notes


def read_texts(
    path: str | Path, num_items: int, columns: list[str] | None = None, opening_words: int = 0
) -> TextSource:
    """One text an item: title, tags and, where there is such a column, description.

    Args:
        path: parquet with item_id and at least one of the columns; a cell is a text (string, bytes, or a category of
            such), a list of texts or integers, such a list as somebody printed it, or null.
        num_items: the ids of item_info are 0 .. num_items.
        columns: what to read, in this order; None takes the first of TITLE_COLUMNS, of TAG_COLUMNS and of
            DESCRIPTION_COLUMNS that there are, in any case of letters.
        opening_words: see `TextSource`.

    Raises:
        UserError: no such column, one of another type, an item twice or not in item_info.
    """
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID, *(columns or ())])
    title, columns = _choose_columns(path, opened.schema_arrow.names, columns)
    texts: dict[int, str] = {}
    titled: set[int] = set()
    damaged = 0
    for first_row, arrays in schema.read_slices(path, [schema.ITEM_ID, *columns]):
        ids = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first_row).tolist()
        reader = _Fields(path)
        fields = [reader.read(arrays[name], name, printed_lists=name != title) for name in columns]
        damaged += reader.damaged
        for offset, (item_id, *parts) in enumerate(zip(ids, *fields, strict=True)):
            if item_id == 0:  # the padding item
                continue
            require_new_item(item_id, texts, num_items, path, first_row + offset)
            texts[item_id] = ". ".join(part.rstrip(". ") for part in parts if part)[:MAX_TEXT_CHARS]
            if title is not None and parts[columns.index(title)]:
                titled.add(item_id)
    entries = [_text_entry(item_id, texts[item_id]) for item_id in sorted(texts) if texts[item_id]]
    untitled = len(entries) - len(titled)
    return TextSource(Path(path), entries, columns, title, untitled, damaged, opening_words)


def openings(entries: list[Entry], num_words: int) -> list[Entry]:
    """The first words of each text: a title without the description that follows it."""
    texts = [(entry.item_id, " ".join(entry.load().decode("utf-8").split()[:num_words])) for entry in entries]
    return [_text_entry(item_id, text) for item_id, text in texts]


def split_printed_list(text: str) -> list[str]:
    """The elements of a list as Python, JSON or NumPy print it; nothing is evaluated.

    Args:
        text: "['Action', 'Sci Fi']", '["a", "b"]', "[1 2 3]", "[Action, Sci Fi]".
    """
    try:
        parsed = json.loads(text)
        if all(isinstance(element, str | int | None) for element in parsed):
            return ["" if not element else str(element) for element in parsed]
    except (ValueError, RecursionError):
        pass
    inner = text[1:-1].strip()
    if re.search(r"""(?:^|[\s,])u?['"]""", inner):  # an element begins with a quotation mark
        elements = [bare or ESCAPED.sub(_unescape, single or double) for single, double, bare in ELEMENT.findall(inner)]
    else:
        elements = [element.strip() for element in (inner.split(",") if "," in inner else inner.split())]
    return ["" if element == "0" else element for element in elements]  # padding


def _unescape(match: re.Match) -> str:
    *codes, char = match.groups()
    code = next(filter(None, codes), None)
    if code is None:
        return " " if char in "nrt" else char
    return chr(int(code, 16)) if int(code, 16) < 0x110000 else ""


def _choose_columns(path: str | Path, present: list[str], asked: list[str] | None) -> tuple[str | None, list[str]]:
    """The title's column, None when there is none, and all columns to read."""
    kinds = (TITLE_COLUMNS, TAG_COLUMNS, DESCRIPTION_COLUMNS)
    if asked:
        titles = [name for name in asked if name.lower() in TITLE_COLUMNS]
        others = [name for name in asked if not any(name.lower() in kind for kind in kinds)]
        return next(iter(titles + others), None), list(dict.fromkeys(asked))
    lower = {name.lower(): name for name in reversed(present)}
    found = [next((lower[name] for name in kind if name in lower), None) for kind in kinds]
    columns = [name for name in found if name is not None]
    if not columns:
        raise UserError(
            f"{path}: found columns {', '.join(present)}, expected {' or '.join((TITLE_COLUMNS[0], TAG_COLUMNS[0]))} "
            f"(or {', '.join(TITLE_COLUMNS[1:] + TAG_COLUMNS[1:])}) for the text; name yours with --text_columns"
        )
    return found[0], columns


def _text_entry(item_id: int, text: str) -> Entry:
    return Entry(item_id, f"item {item_id}", lambda: text.encode("utf-8"), len(text))


class _Fields:
    """Reads columns of any text type; counts the fields whose bytes are not all text."""

    def __init__(self, path: str | Path):
        self.path = path
        self.damaged = 0

    def read(self, array: pa.Array, column: str, printed_lists: bool) -> list[str]:
        """One clean string a row; lists are joined by commas, zeros (tag padding) left out."""
        kind = _plain_type(array.type)
        is_list = _is_list(kind)
        inner = _plain_type(kind.value_type) if is_list else kind
        if not (_is_text(inner) or pa.types.is_null(inner) or (is_list and pa.types.is_integer(inner))):
            raise UserError(f"{self.path}: column {column} has type {kind}, expected text or lists of text")
        rows = _to_python(array)
        if is_list:
            return [", ".join(filter(None, map(self._clean, row or ()))) for row in rows]
        texts = [self._clean(row) for row in rows]
        if printed_lists:
            texts = [self._unfold(text) if text.startswith("[") and text.endswith("]") else text for text in texts]
        return texts

    def _unfold(self, text: str) -> str:
        return ", ".join(filter(None, map(self._clean, split_printed_list(text))))

    def _clean(self, value: str | bytes | int | None) -> str:
        if value is None or value == 0:
            return ""
        if isinstance(value, bytes):
            text = value.decode("utf-8", "ignore")
            self.damaged += len(text.encode()) != len(value)
        else:
            text = str(value)
        text = " ".join(INVISIBLE.sub("", text[:MAX_TEXT_CHARS]).split())
        return "" if text.lower() in NOTHING else text


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(fits(kind) for fits in (*kinds, pa.types.is_list_view, pa.types.is_large_list_view))


def _is_text(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(fits(kind) for fits in (*kinds, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _to_python(array: pa.Array) -> list:
    """Values row by row; strings that are not UTF-8 as bytes."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return [_scalar(value) for value in array]


def _scalar(value: pa.Scalar) -> Any:
    if not value.is_valid:
        return None
    if pa.types.is_dictionary(value.type):
        return _scalar(value.value)
    if _is_list(value.type):
        return [_scalar(element) for element in value.values]
    return value.as_buffer().to_pybytes()

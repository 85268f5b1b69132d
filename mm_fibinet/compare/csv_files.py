"""Tables that a comparison leaves for other programs: cells are text or numbers, files whole or not there at all."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm_fibinet import files
from mm_fibinet.errors import printable

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_value(value: object) -> object:
    """A cell of a table: numbers have six digits, NaN is an empty cell, text is of `csv_cell`."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return csv_cell(value)


def csv_cell(value: object) -> object:
    """A cell whose text no spreadsheet takes for a formula and every encoding can write; all else stays."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def as_csv(columns: list[str], records: list[dict[str, Any]], cell: Callable[[object], object] = csv_value) -> str:
    """A table, its lines ending as RFC 4180 has them.

    Args:
        columns: its heading.
        records: its lines, {column: value} each.
        cell: what becomes of a value; `csv_cell` keeps all digits of numbers.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in record.items()} for record in records)
    return text.getvalue()


def write_csv(path: Path, text: str) -> None:
    """Write a table of `as_csv`, with its line ends as they are."""
    with files.atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as opened:
        opened.write(text)

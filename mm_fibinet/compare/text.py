"""Strangers' text, names and errors, as each of a leaderboard's formats takes it: text, and nothing more than that."""

import html
import math
import re

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


def markdown_text(value: object) -> str:
    """Text that stays text within a table's cell: no column, code, link, emphasis or HTML of its own."""
    escaped = html.escape(str(value), quote=False)
    return re.sub(r"([\\`|*\[\]~])", r"\\\1", escaped)


def html_text(value: object) -> str:
    """Text that stays text in HTML, in attributes too."""
    return html.escape(str(value))


def without_nan(value: object) -> object:
    """The value with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

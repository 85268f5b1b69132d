"""Strangers' text, names and errors, as Markdown, HTML and JSON take it: text, and nothing more than that."""

import html
import math
import re


def markdown_text(value: object) -> str:
    """Text that stays text within a table's cell: no column, code, link, emphasis or HTML of its own."""
    escaped = html.escape(str(value), quote=False)
    return re.sub(r"([\\`|*\[\]~])", r"\\\1", escaped)


def html_text(value: object) -> str:
    """Text that stays text in HTML, in attributes too."""
    return html.escape(str(value))


def html_words(value: object) -> str:
    """html_text that may go on in the next line after each underscore, as an experiment ID of several words should."""
    return html_text(value).replace("_", "_<wbr>")


def without_nan(value: object) -> object:
    """The value with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

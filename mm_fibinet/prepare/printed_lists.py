"""Lists that Python, JSON or NumPy printed into a field of text, as pandas' to_csv does; nothing is evaluated.

Only what is such a list from its first character to its last is one: texts in quotation marks, whole numbers and None,
nan or null, all with commas between or, as NumPy prints them, all without. Bare words in brackets may be a tag.
"""

import ast
import json
import re

import polars as pl

SIMPLE = r"""(?:'[^'"\\]*'|"[^'"\\]*"|-?[0-9]+)"""
VALUE = r"""(?:u?'(?:[^'\\]|\\.)*'|u?"(?:[^"\\]|\\.)*"|-?[0-9]+)"""
ELEMENT = rf"(?:{VALUE}|np\.[a-z_0-9]+\({VALUE}\)|None|nan|NaN|null|<NA>)"
IN_ELEMENT = re.compile(rf"(?s){ELEMENT}")
IN_SCALAR = re.compile(rf"(?s)np\.[a-z_0-9]+\(({VALUE})\)")  # NumPy 2's: np.int64(1)
NOTHING = ("None", "nan", "NaN", "null", "<NA>")


def _list_of(element: str) -> str:
    """The expression, for polars, of a whole text that is a list of these."""
    commas, spaces = (rf"{element}(?:{gap}{element})*" for gap in (r"\s*,\s*", r"\s+"))
    return rf"(?s)\A\s*\[\s*(?:{commas}\s*,?|{spaces})?\s*\]\s*\z"


SIMPLE_LIST, PRINTED = _list_of(SIMPLE), _list_of(ELEMENT)
CUT = _list_of(rf"(?:{ELEMENT}|\.\.\.)")  # NumPy leaves out the middle of long ones; unless they are PRINTED


def lists_of(field: pl.Expr, separator: str) -> pl.Expr:
    """Each text's elements: list[str], null for null.

    Args:
        field: texts; those that are no printed list are cut by the separator.
    """
    simple, printed = field.str.contains(SIMPLE_LIST), field.str.contains(PRINTED)
    at_once = field.str.extract_all(SIMPLE).list.eval(pl.element().str.strip_chars("'\""))
    others = pl.when(printed & ~simple).then(field)
    one_by_one = others.map_batches(_split_all, pl.List(pl.String), is_elementwise=True)
    return pl.when(simple).then(at_once).when(printed).then(one_by_one).otherwise(field.str.split(separator))


def is_cut(field: pl.Expr) -> pl.Expr:
    """Whether a text is a list whose middle was left out when it was printed."""
    cut = field.str.contains("...", literal=True) & field.str.contains(CUT) & ~field.str.contains(PRINTED)
    return cut.fill_null(False)


def split_printed_list(text: str) -> list[str]:
    """The elements of a list.

    Args:
        text: as PRINTED: "['Action', 'Sci Fi']", '["a", null]', "[1 2 3]", "[np.int64(1)]".

    Returns:
        Each element as text; the empty text for nothing.
    """
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = [_value(IN_SCALAR.sub(r"\1", token)) for token in IN_ELEMENT.findall(text.strip()[1:-1])]
    return [_whole(element) for element in parsed]


def _value(token: str) -> str:
    if token in NOTHING:
        return ""
    if token[-1] not in "'\"":
        return token
    try:
        return ast.literal_eval(token)
    except (SyntaxError, ValueError):  # an escape that Python has not, a line's end within
        return token.lstrip("u")[1:-1]


def _whole(element: str | float | None) -> str:
    """As text, in which halves of characters are joined, or replaced where they are alone."""
    text = "" if element is None or element != element else str(element)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _split_all(printed: pl.Series) -> pl.Series:
    """Those of a series; null for null."""
    lists = [None if text is None else split_printed_list(text) for text in printed]
    return pl.Series(printed.name, lists, dtype=pl.List(pl.String))

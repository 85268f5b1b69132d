"""Lists that somebody printed into a field of text, as pandas' to_csv does with them; nothing is evaluated."""

import json
import re

# A pair of brackets around all of a text, with no others but in quotation marks; for Python's re and for polars.
PRINTED = r"""(?s)\A\s*\[(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\[\]])*\]\s*\z"""
PLAIN_ELEMENT = r"""(?:'[^'"\\]*'|"[^'"\\]*"|-?[0-9]+)"""  # with nothing escaped; a PLAIN list has no others
PLAIN = rf"""\A\s*\[\s*(?:{PLAIN_ELEMENT}(?:[\s,]+{PLAIN_ELEMENT})*)?[\s,]*\]\s*\z"""
CUT = r"(?s)\A\s*\[.*[\s,\[](?:\.\.\.|…)[\s,\]]"  # a list whose middle was left out, as NumPy prints long ones
ELEMENT = re.compile(r"""u?'((?:[^'\\]|\\.)*)'|u?"((?:[^"\\]|\\.)*)"|([^\s,]+)""")
ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")


def split_printed_list(text: str) -> list[str]:
    """The elements of a list as Python, JSON or NumPy print it.

    Args:
        text: "['Action', 'Sci Fi']", '["a", "b"]', "[1 2 3]", "[Action, Sci Fi]".

    Returns:
        Each element as text; the empty text for JSON's null.
    """
    try:
        parsed = json.loads(text)
        if all(isinstance(element, str | int | None) for element in parsed):
            return ["" if element is None else str(element) for element in parsed]
    except (ValueError, RecursionError):
        pass
    inner = text.strip()[1:-1].strip()
    if re.search(r"""(?:^|[\s,])u?['"]""", inner):  # an element begins with a quotation mark
        return [bare or ESCAPED.sub(_unescape, single or double) for single, double, bare in ELEMENT.findall(inner)]
    return [element.strip() for element in (inner.split(",") if "," in inner else inner.split())]


def _unescape(match: re.Match) -> str:
    *codes, char = match.groups()
    code = next(filter(None, codes), None)
    if code is None:
        return " " if char in "nrt" else char
    return chr(int(code, 16)) if int(code, 16) < 0x110000 else ""

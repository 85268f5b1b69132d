"""YAML as data: what a config says is read as it is written, or refused.

PyYAML's safe loader runs no code, but it takes the last of two equal keys without a word, makes dates, sets and bytes
of what only looks like them, follows aliases into structures larger than memory, and raises other errors than its own
for numbers and tags that do not fit. Here a file is text in UTF-8, a value is a text, a finite number, True, False,
null, a list or a mapping of texts, a key stands once, and everything else is one error. Numbers may be written as 1e-3,
which YAML 1.1 reads as text.
"""

import math
import re
from pathlib import Path
from typing import ClassVar

import yaml

from mm_fibinet.errors import UserError, explain_os_error

NEWLINE = b"\n"
MAX_BYTES = 4_000_000
MAX_VALUES = 1_000_000  # with every alias followed
MAX_DEPTH = 40
MAX_ALIASES = 5_000
MAX_DIGITS = 320  # of a number; floats end at 1e308
TAG = "tag:yaml.org,2002:"
TAGS = (*(TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")), None)
KINDS = {bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}


class _Loader(yaml.SafeLoader):
    """The safe loader without dates, sets and bytes, and with a key once."""

    yaml_constructors: ClassVar[dict] = {
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in TAGS
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    aliases = 0

    def compose_node(self, parent, index):
        """PyYAML's; aliases are counted."""
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > MAX_ALIASES:
            raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases (*name)")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor):
        """PyYAML's; a key given twice is an error."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"{key.value!r} is given twice, the second time in line {_line(key)}")
                seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        """PyYAML's merge (<<), with one pair a key: chains of merges would double their pairs otherwise."""
        super().flatten_mapping(node)
        pairs = {key.value if isinstance(key, yaml.ScalarNode) else id(key): (key, value) for key, value in node.value}
        node.value = list(pairs.values())

    def construct_scalar(self, node):
        """PyYAML's; a number without end is an error before it is computed."""
        if node.tag in (f"{TAG}int", f"{TAG}float") and len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters in line {_line(node)}")
        return super().construct_scalar(node)


_Loader.add_implicit_resolver(f"{TAG}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


def read_yaml(path: str | Path) -> dict:
    """A YAML file's mapping, as data.

    Raises:
        UserError: the file cannot be read, is no UTF-8, no YAML or no mapping, or holds what this module refuses.
    """
    try:
        with open(path, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES // 1_000_000} MB, expected a config")
    value = _load(_text(content, path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: is {shown(value)}, expected a mapping of names to settings")
    return value


def read_value(text: str, where: str) -> object:
    """A value as it stands behind `key:` in a YAML file, or behind `key=` on the command line.

    Args:
        text: the value.
        where: what the error begins with.
    """
    return _load(text, where)


def shown(value: object, length: int = 120) -> str:
    """A value in an error message: on one line, and no longer than it can be read."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _text(content: bytes, path: str | Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} in line {content.count(NEWLINE, 0, error.start) + 1}"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            found = "it begins as UTF-16 does"
        raise UserError(f"{path}: is not UTF-8 text ({found}); save it as UTF-8") from error


def _load(text: str, where: str) -> object:
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise UserError(f"{where}: lists or mappings are nested too deeply, expected at most {MAX_DEPTH}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    except (ValueError, KeyError, OverflowError) as error:  # of int, float and bool, where a tag forces text on them
        raise UserError(f"{where}: not valid YAML: a tag (!!int, !!bool, ...) does not fit its value") from error
    _require_plain(value, where)
    return value


def _require_plain(root: object, where: str) -> None:
    """Refuse what no setting can be; aliases count as often as they are used."""
    waiting, count = [(root, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: lists or mappings are nested too deeply, expected at most {MAX_DEPTH}")
        if count > MAX_VALUES:
            raise UserError(f"{where}: more than {MAX_VALUES:,} values once its aliases are followed")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    kind = KINDS.get(type(key), "something else")
                    raise UserError(f'{where}: the name {key} is read as {kind}; write it in quotes: "{key}"')
            waiting += [(key, depth) for key in value] + [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: has {value}, expected finite numbers")
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{where}: has {shown(value)}, which is no text (half a character)") from error


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1

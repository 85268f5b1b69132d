"""A repository's Python and YAML as text with places: what stands where, and what lines become by an edit.

Python is parsed to its syntax tree and YAML to its nodes; neither is run, and no object is made of what a stranger
wrote. Edits are kept by place, and lines that several edits touch are shown once, as they would be after all of them.
"""

import ast
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from mm_fibinet.errors import explain_os_error, first_line

MAX_BYTES = 2_000_000  # of a script or config; more is data
MAX_NODES = 200_000  # of a config; aliases make more
COMPARISONS = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.GtE: operator.ge, ast.Gt: operator.gt, ast.LtE: operator.le,
    ast.Lt: operator.lt,
}  # fmt: skip

Place = tuple[int, int]  # line and character, both from 0


class Edit(NamedTuple):
    """Text in place of what is between two places; equal ones for an insertion."""

    start: Place
    end: Place
    text: str
    why: str


@dataclass(frozen=True)
class Change:
    """Lines of a file and what they become.

    Attributes:
        path: within the repository.
        first: the first line, from 1.
        before, after: the lines.
        why: one sentence.
    """

    path: Path
    first: int
    before: list[str]
    after: list[str]
    why: str


@dataclass
class Text:
    """A file's lines and the edits to them.

    Attributes:
        path: of the file.
        shown: the path within the repository.
        lines: without their ends.
    """

    path: Path
    shown: Path
    lines: list[str]
    edits: list[Edit] = field(default_factory=list)

    def changes(self) -> list[Change]:
        """The edits as lines before and after, those that share lines as one."""
        groups: list[list[Edit]] = []
        for edit in sorted(set(self.edits)):
            if groups and edit.start[0] <= max(other.end[0] for other in groups[-1]):
                groups[-1].append(edit)
            else:
                groups.append([edit])
        return [self._change(group) for group in groups]

    def _change(self, group: list[Edit]) -> Change:
        first, last = group[0].start[0], max(edit.end[0] for edit in group)
        before = self.lines[first : last + 1]
        text = "\n".join(before)

        def offset(place: Place) -> int:
            return sum(len(line) + 1 for line in self.lines[first : place[0]]) + place[1]

        for edit in reversed(group):
            text = text[: offset(edit.start)] + edit.text + text[offset(edit.end) :]
        why = "; ".join(dict.fromkeys(edit.why for edit in group))
        return Change(self.shown, first + 1, before, text.split("\n"), why)


@dataclass(frozen=True)
class ClassText:
    """What a class says, with all that it names of its own module.

    Attributes:
        line: where it begins, from 1.
        strings: its string constants.
        returned: lengths of the tuples that it returns.
    """

    line: int
    strings: set[str]
    returned: set[int]


class Script(Text):
    """A Python file of a repository.

    Args:
        path: of the file.
        root: of the repository.
        source: its text.

    Raises:
        SyntaxError, ValueError, RecursionError: it is no Python of this Python's.
    """

    def __init__(self, path: Path, root: Path, source: str):
        super().__init__(path, path.relative_to(root), source.split("\n"))
        self.root = root
        self.tree = ast.parse(source)
        self.nodes = list(ast.walk(self.tree))
        self.moved: dict[ast.ImportFrom, dict[ast.alias, str]] = {}

    def handed_over(self, key: str) -> list[tuple[str, int]]:
        """What is given under a key, as `params[key] = X`, `f(key=X)` or `{key: X}`: (X as written, its line)."""
        values: list[ast.expr] = []
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                keys = [target.slice for target in node.targets if isinstance(target, ast.Subscript)]
                values += [node.value for inner in keys if _string(inner) == key]
            elif isinstance(node, ast.keyword) and node.arg == key:
                values.append(node.value)
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                values += [value for inner, value in pairs if _string(inner) == key]
        while choices := [value for value in values if isinstance(value, ast.IfExp)]:  # X if ... else Y
            values = [value for value in values if value not in choices]
            values += [branch for choice in choices for branch in (choice.body, choice.orelse)]
        return sorted({(ast.unparse(value), value.lineno) for value in values}, key=lambda found: found[::-1])

    def full_name(self, name: str) -> str:
        """A name with the module that its first part is imported from."""
        head, _, rest = name.partition(".")
        origins = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                origins.update({alias.asname: alias.name for alias in node.names if alias.asname})
            elif isinstance(node, ast.ImportFrom) and not node.level:
                origins.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        return ".".join(filter(None, [origins.get(head, head), rest]))

    def version_assertions(self, package: str, version: str) -> list[tuple[bool, ast.Constant, str]]:
        """Asserted versions of a package: (whether the assertion holds, its literal, its text).

        Versions that the script compares as text are compared as text: "2.3.10" >= "2.3.7" does not hold.
        """
        found = []
        for node in self.nodes:
            test = node.test if isinstance(node, ast.Assert) else None
            if not isinstance(test, ast.Compare) or type(test.ops[0]) not in COMPARISONS:
                continue
            inside = ast.walk(test.comparators[0])
            literals = [node for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            if f"{package}.__version__" not in ast.unparse(test.left) or len(literals) != 1:
                continue
            as_text = isinstance(test.left, ast.Attribute)
            sides = [version, str(literals[0].value)]
            values = sides if as_text else [_numbers(side) for side in sides]
            found.append((COMPARISONS[type(test.ops[0])](*values), literals[0], ast.unparse(test)))
        return found

    def calls_of_import(self, name: str, module: str) -> list[ast.Call]:
        """Calls of what is imported by this name from a module."""
        imported = self.import_of(name)
        if imported is None or imported[0].module != module:
            return []
        return [node for node in self.nodes if isinstance(node, ast.Call) and _is_name(node.func, name)]

    def method_calls(self, name: str) -> list[ast.Call]:
        """Calls of a method of this name."""
        calls = [node for node in self.nodes if isinstance(node, ast.Call)]
        return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name]

    def import_of(self, name: str) -> tuple[ast.ImportFrom, ast.alias] | None:
        """The `from ... import` that a name is of, the last one."""
        found = None
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom):
                found = next(((node, alias) for alias in node.names if (alias.asname or alias.name) == name), found)
        return found

    def find_class(
        self, name: str, node: ast.ImportFrom, scripts: dict[Path, "Script"], hops: int = 5
    ) -> tuple["Script", ClassText] | None:
        """The class that an import of the repository means, through packages that only pass it on."""
        folder = self.path.parents[node.level - 1] if node.level else self.path.parent
        bases = [folder] if node.level else [folder, self.root]
        for base in bases:
            place = base.joinpath(*(node.module or "").split(".")) if node.module else base
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                home = scripts.get(path)
                if home is None:
                    continue
                text = home.class_text(name)
                if text is not None:
                    return home, text
                passed_on = home.import_of(name)
                if passed_on and hops:
                    return home.find_class(passed_on[1].name, passed_on[0], scripts, hops - 1)
        return None

    def class_text(self, name: str) -> ClassText | None:
        """What a class of this file says, with the classes and functions of the file that it names."""
        parts = (ast.ClassDef, ast.FunctionDef)
        defined = {node.name: node for node in self.tree.body if isinstance(node, parts)}
        if not isinstance(defined.get(name), ast.ClassDef):
            return None
        reached, waiting = {name}, [name]
        strings: set[str] = set()
        returned: set[int] = set()
        while waiting:
            for node in ast.walk(defined[waiting.pop()]):
                if isinstance(node, ast.Name) and node.id in defined and node.id not in reached:
                    reached.add(node.id)
                    waiting.append(node.id)
                strings.update(filter(None, [_string(node)]))
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                    returned.add(len(node.value.elts))
        return ClassText(defined[name].lineno, strings, returned)

    def replace(self, node: ast.expr, text: str, why: str) -> None:
        """Text in place of an expression."""
        self.edits.append(Edit(self._start(node), self._end(node), text, why))

    def insert_after(self, node: ast.expr, text: str, why: str) -> None:
        """Text behind an expression."""
        self.edits.append(Edit(self._end(node), self._end(node), text, why))

    def drop_method(self, call: ast.Call, why: str) -> None:
        """Of `x.method(...)` keep x."""
        assert isinstance(call.func, ast.Attribute)
        self.edits.append(Edit(self._end(call.func.value), self._end(call), "", why))

    def move_import(self, node: ast.ImportFrom, alias: ast.alias, text: str) -> None:
        """Import one name of a `from ... import` by another statement, once `edit_imports` is called."""
        self.moved.setdefault(node, {})[alias] = text

    def edit_imports(self, why: str) -> None:
        """Write the imports that were moved, each beside what is left of its statement."""
        for node, moved in self.moved.items():
            start, kept = self._start(node), [alias for alias in node.names if alias not in moved]
            rest = [ast.unparse(ast.ImportFrom(module=node.module, names=kept, level=node.level))] if kept else []
            statements = f"\n{' ' * start[1]}".join([*rest, *(moved[alias] for alias in node.names if alias in moved)])
            self.edits.append(Edit(start, self._end(node), statements, why))

    def _start(self, node: ast.expr | ast.stmt) -> Place:
        return self._place(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> Place:
        return self._place(node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)

    def _place(self, line: int, offset: int) -> Place:
        """Python counts a line's UTF-8 bytes."""
        return line - 1, len(self.lines[line - 1].encode()[:offset].decode())


class Config(Text):
    """A YAML file of a repository, as nodes."""

    root_node: yaml.Node | None = None


class Entry:
    """A mapping of a config: a data set's entry, or a feature's.

    Args:
        config: the file.
        node: the mapping.
    """

    def __init__(self, config: Config, node: yaml.MappingNode):
        self.config = config
        self.node = node
        self.line = node.start_mark.line + 1
        self.values = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}

    def value(self, key: str) -> str | None:
        """A plain value as it is written; None for none, and for null and false."""
        node = self.values.get(key)
        written = node.value if isinstance(node, yaml.ScalarNode) else None
        return None if written is None or written.lower() in ("", "null", "~", "none", "false") else written

    def features(self) -> list["Entry"]:
        """The entries of feature_cols that are in use."""
        nodes = [node for node in self.values["feature_cols"].value if isinstance(node, yaml.MappingNode)]
        entries = [Entry(self.config, node) for node in nodes]
        return [entry for entry in entries if "active" not in entry.values or entry.value("active")]

    def insert(self, after: str, more: dict[str, str], why: str) -> None:
        """Put further keys behind one, as the mapping is written: in a line of braces, or on lines of their own."""
        mark = self.values[after].end_mark
        pairs = [f"{key}: {value}" for key, value in more.items()]
        if self.node.flow_style:
            place, text = (mark.line, mark.column), "".join(f", {pair}" for pair in pairs)
        else:
            place = (mark.line, len(self.config.lines[mark.line]))  # behind a comment
            indent = " " * next(key.start_mark.column for key, _ in self.node.value)
            text = "".join(f"\n{indent}{pair}" for pair in pairs)
        self.config.edits.append(Edit(place, place, text, why))


def read_scripts(root: Path) -> tuple[dict[Path, Script], list[str]]:
    """The Python files of a repository: ({path: script}, what was not read)."""
    scripts, unread = {}, []
    for path in own_files(root, (".py",)):
        text, problem = _read(path, path.relative_to(root))
        if text is None:
            unread.append(problem)
            continue
        try:
            scripts[path] = Script(path, root, text)
        except (SyntaxError, ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else error
            unread.append(f"{path.relative_to(root)}: not read, it is no Python ({reason})")
    return scripts, unread


def own_files(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A repository's files of a kind, hidden folders and virtual environments left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(suffixes))


def read_yaml_nodes(path: Path, shown: Path) -> tuple[Config | None, str]:
    """A YAML file as nodes, or why there are none."""
    text, problem = _read(path, shown)
    if text is None:
        return None, problem
    config = Config(path, shown, text.split("\n"))
    try:
        config.root_node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return None, f"{shown}: not read, it is no YAML ({first_line(error)})"
    return config, ""


def dataset_entries(config: Config) -> Iterator[Entry]:
    """The mappings of a config that have feature_cols, wherever they are: in a tuner's dataset_config, too."""
    waiting, seen = [config.root_node], set()
    while waiting and len(seen) < MAX_NODES:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias is the node itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            entry = Entry(config, node)
            if isinstance(entry.values.get("feature_cols"), yaml.SequenceNode):
                yield entry
            waiting += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _read(path: Path, shown: Path) -> tuple[str | None, str]:
    """A text file, lines ending in newlines alone; or None and the reason."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            return None, f"{shown}: not read, it is no file"
        with open(path, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        return None, str(explain_os_error(error, shown, "read"))
    if len(content) > MAX_BYTES:
        return None, f"{shown}: not read, it has more than {MAX_BYTES // 1_000_000} MB"
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n"), ""
    except UnicodeDecodeError:
        return None, f"{shown}: not read, it is no UTF-8 text"


def _string(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]

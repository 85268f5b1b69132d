"""What the pages tell a reader to type: the commands in blocks of code, those within sentences, and blocks of Python.

A page is a Markdown file or the Markdown cells of a notebook. Lines are read as a shell reads them: continued lines,
comments, `;`, `&&`, `&`, assignments and `for` loops, whose commands are told once for each value.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHELL = ("bash", "console", "sh", "shell")
PROGRAMS = ("make", "mm-fibinet", "pip", "pytest", "python", "torchrun")  # what begins a command within a sentence
ENDS = (";", "&&", "||", "&", "|")  # of a command, in the shell


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: path of the page, from the repository.
        line: of the page, from 1; of a notebook the number of the cell.
        text: the line as it stands there.
        words: as the shell hands them over, without assignments before the program.
        heading: the nearest heading above.
        around: its comment, its block and the paragraph above it, where a reader is told what it needs.
        fenced: whether it is in a block of code, and not within a sentence.
        variables: {name: value} of the assignments before the program.
    """

    page: str
    line: int
    text: str
    words: tuple[str, ...]
    heading: str
    around: str
    fenced: bool = True
    variables: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


@dataclass(frozen=True)
class Block:
    """One block of code: where it is, as of `Command`, its language, and its lines as one text."""

    page: str
    line: int
    language: str
    code: str
    heading: str
    around: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.language} block"


@cache
def pages() -> tuple[str, ...]:
    """All that a reader is given: the Markdown of the repository but for its history, and the notebooks."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found += [ROOT / "data" / "README.md", *sorted(ROOT.glob("examples/**/*.md")), *sorted(ROOT.glob("tests/**/*.md"))]
    found += sorted(ROOT.glob("notebooks/*.ipynb"))
    return tuple(str(path.relative_to(ROOT)) for path in found if path.is_file())


def read(page: str, root: Path = ROOT) -> list[Block | Command]:
    """The blocks of a page that are no shell's, and all its commands, in their order."""
    text = (root / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return list(_read(page, text.splitlines(), 1))
    cells = enumerate(json.loads(text)["cells"])
    markdown = [(i, "".join(cell["source"]).splitlines()) for i, cell in cells if cell["cell_type"] == "markdown"]
    return [found for i, lines in markdown for found in _read(page, lines, i, step=0)]


def _read(page: str, lines: list[str], first: int, step: int = 1) -> Iterator[Block | Command]:
    """See `read`; line i is number `first + i * step`."""
    heading, prose, start, i = "", [], 0, 0  # prose: the lines of the paragraph above, which begins at `start`
    above = ""
    while i < len(lines):
        fence = re.fullmatch(r"\s*```(\w*).*", lines[i])
        if fence:
            yield from _spans(page, prose, first + start * step, heading, step)
            above, prose = " ".join(prose) or above, []
            end = next(j for j in range(i + 1, len(lines) + 1) if j == len(lines) or lines[j].strip() == "```")
            code = "\n".join(lines[i + 1 : end]) + "\n"
            if fence[1] in SHELL:
                yield from shell(code, page, first + (i + 1) * step, heading, above, step)
            else:
                yield Block(page, first + i * step, fence[1], code, heading, f"{above} {code}")
            above, i, start = "", end + 1, end + 1
            continue
        title = re.fullmatch(r"#+ (.*)", lines[i])
        if title or not lines[i].strip():
            yield from _spans(page, prose, first + start * step, heading, step)
            above, prose, start = " ".join(prose) or above, [], i + 1
            heading, above = (title[1], "") if title else (heading, above)
        else:
            prose.append(lines[i])
        i += 1
    yield from _spans(page, prose, first + start * step, heading, step)


def _spans(page: str, prose: list[str], first: int, heading: str, step: int) -> Iterator[Command]:
    """The commands within the sentences of a paragraph; one may be broken over two lines."""
    text = "\n".join(prose)
    for span in re.finditer(r"`([^`]+)`", text):
        code = re.sub(r"\s*\\?\n\s*", " ", span[1]).removeprefix("!")
        name = code.split()[0] if code.split() else ""
        if (name in PROGRAMS and " " in code) or (name.endswith(".py") and " " in code):
            line = first + text.count("\n", 0, span.start()) * step
            alternatives = re.sub(r" \| ", f" ; {name} ", code)  # of one program, as a help line has them
            for _, words, _ in _lines(alternatives):
                yield Command(page, line, code, tuple(words), heading, text, fenced=False)


def options(page: str, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """(line, option) for every `--option` that is named within a sentence or table, in or out of a command."""
    text = (root / page).read_text(encoding="utf-8")
    fences = [match.span() for match in re.finditer(r"^\s*```.*?^\s*```", text, re.DOTALL | re.MULTILINE)]
    for span in re.finditer(r"`([^`\n]+)`", text):
        if not any(start <= span.start() < end for start, end in fences):
            ours = span[1].startswith("--") or span[1].split()[0].endswith((".py", *PROGRAMS))
            for option in ours * re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", span[1]):
                yield text.count("\n", 0, span.start()) + 1, option


def shell(code: str, page: str, first: int, heading: str, above: str, step: int = 1) -> Iterator[Command]:
    """The commands of a block of the shell's."""
    variables: dict[str, str] = {}
    for offset, words, text in _lines(code):
        assigned, rest = _assignments(words, variables)
        if not rest:
            variables.update(assigned)
            continue
        yield Command(page, first + offset * step, text, tuple(rest), heading, f"{above} {text}", variables=assigned)


def _assignments(words: list[str], known: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """NAME=VALUE before a program, and the program's words with the variables that are known put in."""
    given, place = {}, 0
    while place < len(words) and (match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[place], re.DOTALL)):
        given[match[1]] = match[2]
        place += 1
    rest = [part for word in words[place:] for part in _expanded(word, known)]
    return given, rest


def _expanded(word: str, known: dict[str, str]) -> list[str]:
    """A word with its variables' values; one that is a variable alone is cut at its spaces, as the shell does."""
    if match := re.fullmatch(r"\$(\w+)", word):
        return shlex.split(known.get(match[1], word))
    return [re.sub(r"\$(\w+)", lambda match: known.get(match[1], match[0]), word)]


def _lines(code: str) -> Iterator[tuple[int, list[str], str]]:
    """(line, words, text with its comment) of each command; those of a loop once for each of its values."""
    offset = 0
    for text in re.split(r"(?<!\\)\n", code):
        line, offset = offset, offset + text.count("\n") + 1
        joined = re.sub(r"\\\n\s*", " ", text).strip()
        joined = re.sub(r"^[!%]\s*", "", joined)  # as a notebook's cell has it
        lexer = shlex.shlex(joined, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        parts: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set(";&|") and word in ENDS:
                parts.append([])
            else:
                parts[-1].append(word)
        for words in _unrolled([part for part in parts if part]):
            yield line, words, joined


def _unrolled(parts: list[list[str]]) -> Iterator[list[str]]:
    """The commands of one line: `for NAME in VALUES`, `do COMMAND`, ..., `done` is each command for each value."""
    loop: tuple[str, list[str]] | None = None
    body: list[list[str]] = []
    for part in parts:
        if part[0] == "for":
            loop, body = (part[1], part[3:]), []
        elif part[0] == "done" and loop:
            name, values = loop
            for value in values:
                for words in body:
                    yield [re.sub(rf"\${name}\b", value, word) for word in words]
            loop = None
        elif loop:
            body.append(part[1:] if part[0] == "do" else part)
        elif part != ["wait"]:
            yield part

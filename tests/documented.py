"""Tests that run what a page shows: `@pytest.mark.documented(PAGE, HEADING)` and the fixture `documented`.

A third word, `documented(PAGE, HEADING, TEXT)`, leaves it at those with this text in them.
The commands come from the page itself, in its order, and every one of them has to be run by the time the test ends: one
that is new in the page fails the test until it runs there, too. `doc_commands.py` lists them by these marks.
"""

import ast
import glob
import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from doc_check import CLONE, OUTSIDE, SHELL
from doc_pages import ROOT, Block, Command, read

NO_GPU = {"--gpu": "-1"}
TESTS = Path(__file__).resolve().parent


def commands_of(page: str, heading: str, text: str = "") -> list[Block | Command]:
    """What stands in blocks of code below a heading, has `text` in it, and is run or saved as a file."""
    found = [each for each in read(page) if each.heading == heading and is_run(each)]
    return [each for each in found if text in (each.code if isinstance(each, Block) else each.text)]


def is_run(shown: Block | Command) -> bool:
    """Whether tests run it: commands of this project in blocks of code, Python, and blocks that name a file."""
    if isinstance(shown, Block):
        return shown.language == "python" or file_of(shown) is not None
    return shown.fenced and Path(shown.words[0]).name not in OUTSIDE and not in_ci(shown)


def in_ci(command: Command) -> str | None:
    """The file of .ci or .github/workflows that runs a command as it is; None for none."""
    for path in [ROOT / ".ci" / "run", *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]:
        if re.search(rf"^[ -]*(run: )?{re.escape(' '.join(command.words))}( |$)", path.read_text(), re.MULTILINE):
            return str(path.relative_to(ROOT))
    return None


def file_of(block: Block) -> str | None:
    """The file that a block is to be saved as, which its first line names in a comment; None for none."""
    named = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", block.code)
    return named[1] if named else None


class Documented:
    """What a test runs, from one place of a page or several.

    Attributes:
        commands: the command lines, in the page's order.
        blocks: Python, and what is to be saved as a file.
    """

    def __init__(self, places: list[tuple[str, ...]]):
        found = [each for place in places for each in commands_of(*place)]
        assert found, f"there is nothing to run at {places}: correct the heading in the test's mark"
        self.commands = [each for each in found if isinstance(each, Command)]
        self.blocks = [each for each in found if isinstance(each, Block)]
        self.left = list(found)

    def run(
        self, command: Command, *more: object, instead: Mapping[str, str | None] = NO_GPU, capsys=None
    ) -> SimpleNamespace:
        """Run a command in this process, in the current folder, as the page has it; `code`, `out` and `err` of it.

        Args:
            command: of `commands`.
            more: arguments behind its own, that keep it small, say.
            instead: {an option: its value here}, or {a word that stands for a reader's own: what takes its place, None
                for nothing}.
            capsys: of pytest.
        """
        values = {option: value for option, value in instead.items() if option.startswith("-")}
        own = {word: value for word, value in instead.items() if word not in values}
        if command.words[0] in SHELL:
            self.done(command)
            if command.words[0] == "cd":
                os.chdir(command.words[1])
            else:
                subprocess.run(command.words, check=True)
            return SimpleNamespace(code=0, out="", err="")
        filled = [values.get(before, own.get(word, word)) for before, word in pairs(command.words)]
        words = [word for word in filled if word is not None]
        words = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert Path(words[0]).name.startswith("python"), f"{command}: tests run Python programs"
        script, *arguments = words[2:] if words[1] == "-m" else words[1:]
        self.done(command)
        script = script.removeprefix(CLONE).removesuffix(".py").replace("/", ".")
        code = start(script, [*arguments, *map(str, more)])
        out = capsys.readouterr() if capsys else SimpleNamespace(out="", err="")
        return SimpleNamespace(code=code, out=out.out, err=out.err)

    def run_all(self, *more: object, instead: Mapping[str, str | None] = NO_GPU, capsys=None) -> list[SimpleNamespace]:
        """All commands, one after the other; each ends with 0."""
        results = []
        for command in self.commands:
            result = self.run(command, *more, instead=instead, capsys=capsys)
            assert result.code == 0, f"{command}\n{result.out}\n{result.err}"
            results.append(result)
        return results

    def execute(self, block: Block, **names: object) -> dict[str, object]:
        """Run a Python block as it stands there; the names that it leaves."""
        self.done(block)
        exec(compile("\n" * block.line + block.code, block.page, "exec"), names)
        return names

    def save(self, block: Block) -> Path:
        """Write a block as the file that it names, in the current folder."""
        path = Path(file_of(block) or "")
        path.write_text(block.code, encoding="utf-8")
        self.done(block)
        return path

    def done(self, each: Block | Command) -> None:
        """That a test has run it in a way of its own."""
        self.left = [other for other in self.left if other is not each]


def pairs(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(the word before, the word) of a command line."""
    words = list(words)
    return zip(["", *words], words, strict=False)


def start(module: str, arguments: list[str]) -> int:
    """Run a script or module of this project with its command line, in this process; its exit code."""
    from conftest import run_script  # which loads torch

    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):
        module = f"{module}.__main__"
        imported = importlib.import_module(module)
    if hasattr(imported, "main"):
        return run_script(module, *arguments)[0]
    with mock.patch.object(sys, "argv", [module, *arguments]), pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    return stopped.value.code or 0


@pytest.fixture
def documented(request) -> Iterator[Documented]:
    """What the test's marks name; ends with a failure where some of it was not run."""
    marks = list(request.node.iter_markers("documented"))[::-1]
    found, failed = Documented([mark.args for mark in marks]), request.session.testsfailed
    yield found
    if request.session.testsfailed > failed:  # the test has said what is wrong
        return
    left = "".join(f"\n  {each}" for each in found.left)
    assert not left, f"{request.node.nodeid} is to run these too:{left}\nor they belong below another heading"


@cache
def runners() -> dict[tuple[str, ...], list[str]]:
    """{(page, heading) or (page, heading, text): the tests that run it}, by the marks in the tests' source."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "mark.documented(" in text else []:
            for mark in getattr(node, "decorator_list", []):
                if re.fullmatch(r"pytest\.mark\.documented\(.*\)", ast.unparse(mark), re.DOTALL):
                    place = tuple(ast.literal_eval(argument) for argument in mark.args)
                    found.setdefault(place, []).append(f"{path.relative_to(ROOT)}::{node.name}")
    return found

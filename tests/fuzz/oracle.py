"""What must hold for every case, whatever was changed.

A command ends with 0 and is right, or ends with 2 and one line `error: ...` of plain text. No traceback, no other exit
code. What it was given is the same afterwards, byte for byte; a refused command leaves no result and no part file, and
nothing appears but below the folder of outputs. No code in the input has run: hostile strings try to make the folder
`canary`. Time and memory are watched from outside, in `fuzz.pool`.
"""

import contextlib
import ctypes
import importlib
import io
import logging
import os
import re
import stat
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mm_fibinet.errors import run_cli
from mm_fibinet.files import sha256

ROOT = Path(__file__).resolve().parents[2]


class Fault(AssertionError):
    """Something of the above did not hold; the message says what, without what differs from case to case."""


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Place:
    """A case's folder.

    Attributes:
        given: what the user brings: must stay as it is.
        out: where outputs may appear.
        canary: must never exist.
    """

    folder: Path
    given: Path = field(init=False)
    out: Path = field(init=False)
    canary: Path = field(init=False)
    started: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.given, self.out, self.canary = (self.folder / name for name in ("given", "out", "canary"))
        self.given.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(exist_ok=True)

    def run(self, script: str, *arguments: object, results: tuple[str, ...] = ()) -> Done:
        """Run a script's main in this process and hold it to the oracle.

        Args:
            script: a module with `main`.
            arguments: its command line.
            results: patterns below `out` of files that a refused command must not leave.
        """
        if not self.started:  # what the case took to make is not the commands' memory
            reset_peak()
            self.started = True
        existed = {path for pattern in results for path in self.out.glob(pattern)}
        before = fingerprint(self.given)
        done = invoke(script, *arguments)
        if self.canary.exists():
            raise Fault(f"{script}: code in the input was run")
        if fingerprint(self.given) != before:
            raise Fault(f"{script}: an input was changed (exit code {done.code})")
        _require_ending(script, done)
        parts = [path.name for path in self.folder.rglob("*.part")]
        if parts:
            raise Fault(f"{script}: left a part file behind (exit code {done.code})")
        strangers = {path.name for path in self.folder.iterdir()} - {"given", "out"}
        if strangers:
            raise Fault(f"{script}: wrote outside of its outputs: {sorted(strangers)}")
        left = {path for pattern in results for path in self.out.glob(pattern)} - existed
        if done.code and left:
            raise Fault(f"{script}: refused and left {sorted(path.suffix or path.name for path in left)}")
        return done


def invoke(script: str, *arguments: object) -> Done:
    """Run a script's main in this process, its output caught, as `run_cli` ends it.

    Raises:
        Fault: it ended with a traceback; the message names the error and the innermost line of ours.
    """
    module = importlib.import_module(script)
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [f"{script}.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_cli(module.main)
    except SystemExit as stopped:
        return Done(int(stopped.code or 0), out.getvalue(), err.getvalue())
    except Exception as error:
        raise Fault(f"{script}: traceback: {describe(error)}") from error
    finally:
        sys.argv = before
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    raise AssertionError("run_cli always exits")


def reset_peak() -> None:
    """Let the process's peak memory (VmHWM) start anew; where there is no /proc, memory is not watched.

    The scripts that train tell malloc to keep what is freed; what making the case has freed goes back first.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def describe(error: BaseException) -> str:
    """`TypeError at mm_fibinet/schema.py:87 in matrix: message`, the innermost frame that is ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "/tests/" not in frame.filename]
    message = " ".join(str(error).split())[:160]
    if not ours:
        return f"{type(error).__name__}: {message}"
    where = ours[-1]
    return (
        f"{type(error).__name__} at {os.path.relpath(where.filename, ROOT)}:{where.lineno} in {where.name}: {message}"
    )


def _require_ending(script: str, done: Done) -> None:
    if done.code not in (0, 2):
        raise Fault(f"{script}: exit code {done.code}")
    if "Traceback" in done.err:
        raise Fault(f"{script}: printed a traceback")
    lines = [line for line in done.err.split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if lines and lines[0].startswith("usage: "):  # argparse's own refusal, of a choice that there is not
        errors = [line for line in lines if re.match(r"[\w.]+: error: ", line)]
    if done.code == 0 and errors:
        raise Fault(f"{script}: exit code 0 with an error line")
    if done.code == 2 and script.endswith("data_check") and not errors:
        return  # its table says what is wrong
    if done.code == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
        raise Fault(f"{script}: exit code 2 with {len(errors)} error lines, expected one, the last")
    shown = done.out + done.err  # of which no terminal is at the other end: bars must not be redrawn there either
    raw = next((char for char in shown if not char.isprintable() and char not in "\n\t"), None)
    if raw:
        raise Fault(f"{script}: control character {raw!r} reached the terminal")


def fingerprint(folder: Path) -> dict[str, tuple]:
    """Kind, size and hash of everything below a folder."""
    found = {}
    for path in _walk(folder):
        mode = path.lstat().st_mode
        content: object = os.readlink(path) if stat.S_ISLNK(mode) else None
        if stat.S_ISREG(mode):
            content = sha256(path)
        found[os.fsdecode(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)

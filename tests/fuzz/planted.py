"""Targets and scripts with faults in them, for the tests of the oracle and of the watchdog."""

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mm_fibinet.errors import UserError


def make_base(base: Path) -> None:
    """Nothing to make."""


def hang(place, base, case):
    """Never ends."""
    time.sleep(3600)


def die(place, base, case):
    """Killed, as by the system when memory runs out."""
    os.kill(os.getpid(), 9)


def fill_memory(place, base, case):
    """Holds `case` MiB for a moment."""
    return [int(np.ones(case << 20, dtype=np.uint8)[-1]) - 1]


TARGETS = {run.__name__: SimpleNamespace(run=run) for run in (hang, die, fill_memory)}


def main() -> int | None:
    """A script that does what its first argument says, in the folder that its second one names."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "well":
        (folder / "out" / "result.zip").write_text("x")
    elif what == "refuse":
        print("images: 50 % (5 of 10), 00:31 so far", file=sys.stderr)
        raise UserError("no good")
    elif what == "choice":
        argparse.ArgumentParser("planted.py").parse_args(["--no_such_option"])
    elif what == "bug":
        return {}["label"]
    elif what == "one":
        return 1
    elif what == "quiet":
        return 2
    elif what == "chatty":
        print("error: one\nerror: two", file=sys.stderr)
        return 2
    elif what == "all is well with an error":
        print("error: one", file=sys.stderr)
    elif what == "input":
        (folder / "given" / "data").write_text("y")
    elif what == "part":
        (folder / "out" / ".result.zip.part").write_text("x")
    elif what == "elsewhere":
        (folder / "stray").write_text("x")
    elif what == "half":
        (folder / "out" / "result.zip").write_text("x")
        raise UserError("no good")
    elif what == "code":
        (folder / "canary").mkdir()
    elif what == "bar":
        print("  50%|#####     |\r  60%|######    |", file=sys.stderr)
    elif what == "control":
        print("title \x1b[2J")
    return None

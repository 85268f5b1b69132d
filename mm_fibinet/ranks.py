"""Several processes of one command, the ranks of a run: which of them speaks when they fail.

When one rank fails, the others fail because it is gone, or fail in the same way. So only the first speaks: it leaves a
mark in a folder that the ranks of a machine share, before its end can be noticed by any other. The folder is that of
`mm_fibinet.launcher`, or the one that torchrun makes for its processes.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

SHARED = "MM_FIBINET_RANKS"  # names the folder of ranks that the launcher started
TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"  # each rank's own: FOLDER/RANK/error.json, where FOLDER is shared
MARK = "failed"
POLL_SECONDS = 0.05


def is_rank() -> bool:
    """Whether this process is one of several that a launcher or torchrun started."""
    return "RANK" in os.environ


def own_gpu(gpus: Sequence[int]) -> int:
    """This process's GPU, -1 for the CPU, of those --gpu names; under torchrun, which counts from 0, its place."""
    place = os.environ.get("LOCAL_RANK")
    if place is None or gpus[0] < 0:
        return gpus[0]
    return gpus[int(place)] if len(gpus) > 1 else int(place)


def shared_folder() -> Path | None:
    """The folder that the ranks of this machine share; None for a process alone, or started in some other way."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    return Path(os.environ[TORCHRUN_FILE]).parent.parent if TORCHRUN_FILE in os.environ else None


def fails_first(folder: Path | None, patience: float = 0) -> bool:
    """Whether no process failed before this one; from now on one has.

    Args:
        folder: of `shared_folder`.
        patience: seconds that others have to come first.

    Returns:
        the same at every call of a process.
    """
    if folder is None:
        return True
    mark, until = folder / MARK, time.monotonic() + patience
    while time.monotonic() < until and not mark.exists():
        time.sleep(POLL_SECONDS)
    try:
        with open(mark, "x") as opened:
            opened.write(str(os.getpid()))
    except FileExistsError:
        return mark.read_text() == str(os.getpid())
    except OSError:  # better said twice than never
        return True
    return True


def first_to_fail(folder: Path) -> int | None:
    """The process that failed before all others; None while none has said so."""
    try:
        return int((folder / MARK).read_text())
    except (OSError, ValueError):
        return None


def tell_torchrun(message: str, first: bool) -> None:
    """Give torchrun a line for its summary, the last thing it prints; nothing without torchrun.

    Args:
        message: why this process ends.
        first: of `fails_first`: torchrun takes the earliest for the cause, in whole seconds.
    """
    if TORCHRUN_FILE not in os.environ:
        return
    when = int(time.time()) + (0 if first else 1)
    told = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(when)}}
    with contextlib.suppress(OSError):  # it is on stderr, too
        Path(os.environ[TORCHRUN_FILE]).write_text(json.dumps({"message": told}))

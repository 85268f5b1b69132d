"""Starts the ranks of a command, one process a GPU, for `--gpu 0 1` and `--device cuda:0 cuda:1`.

torchrun does the same and is needed for several machines; but whatever a rank says of its failure, torchrun adds a
traceback of its own and twenty lines more. Here an error is what the first rank that fails prints, and nothing else.
What ends one rank ends all of them: none waits for ever for one that is gone.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mm_fibinet import ranks, signals
from mm_fibinet.errors import EXIT_INTERRUPTED, UserError

POLL_SECONDS = 0.1
SECONDS_TO_END = 10  # from SIGTERM on, for ranks that another one's failure stops
SECONDS_TO_SAVE = 120  # for those that were asked to stop


def launch(command: Sequence[str], places: Sequence[object], option: str = "--gpu") -> int:
    """Run a command once for each place, a GPU mostly, and end as it ends; a signal to this process goes to all.

    Args:
        command: the program and its arguments, by which each rank finds its place, see `ranks.own_gpu`.
        places: of each rank, for messages: a GPU or a device.
        option: the one that names the places.

    Returns:
        0, or the exit code of the first rank that failed.

    Raises:
        UserError: a rank was ended from outside.
        KeyboardInterrupt: all were, by a signal to this process, before they could say so themselves.
    """
    running: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="mm_fibinet_") as shared:
        try:
            for rank in range(len(places)):
                running.append(_start(command, rank, len(places), shared))
            first, asked = _wait(running, Path(shared))
        finally:
            for process in running:
                process.kill()
                process.wait()
        first = _failed(running, Path(shared)) if first is None else first
        code = 0 if first is None else running[first].returncode
        if first is None or code >= 0 or not ranks.fails_first(Path(shared)):
            return code if code >= 0 else 128 - code
    if asked:
        raise KeyboardInterrupt
    name = signal.Signals(-code).name
    guess = " (out of memory?)" if name == "SIGKILL" else ""
    raise UserError(f"process {first} of {len(places)} ({option} {places[first]}) was ended by {name}{guess}")


def _start(command: Sequence[str], rank: int, size: int, shared: str) -> subprocess.Popen:
    """One rank, in a session of its own, so that Ctrl-C on the terminal reaches it once: through this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {
        "OMP_NUM_THREADS": str(max(cores // size, 1)),
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        ranks.SHARED: shared,
    }
    last_will = _end_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=last_will)


def _end_with_parent() -> None:
    """In the rank, before its program: ask Linux for SIGTERM when the launcher is gone, killed for example."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _wait(running: list[subprocess.Popen], shared: Path) -> tuple[int | None, list[int]]:
    """Wait for all, and end the others when one has failed; not for ever for those that were asked to end.

    Returns:
        the first that failed, None while none has; the signals that came.
    """
    first, deadline = None, float("inf")

    def forward(came: list[int]) -> None:
        _send(running, signal.SIGINT if came[-1] == signal.SIGINT else signal.SIGTERM)

    with signals.noted(signal.SIGHUP, react=forward) as asked:
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            if first is None:
                first = _failed(running, shared)
                if first is not None and running[first].returncode < 0:
                    ranks.fails_first(shared)  # it said nothing: we will, and no rank that only lost it
                if first is not None and running[first].returncode != EXIT_INTERRUPTED:
                    _send(running, signal.SIGTERM)
                    deadline = time.monotonic() + SECONDS_TO_END
                elif (first is not None or asked) and deadline == float("inf"):
                    deadline = time.monotonic() + SECONDS_TO_SAVE
            time.sleep(POLL_SECONDS)
    return first, asked


def _failed(running: list[subprocess.Popen], shared: Path) -> int | None:
    """A rank that failed: of several since the last look, the one that did so first."""
    failed = [rank for rank, process in enumerate(running) if process.poll()]
    first = ranks.first_to_fail(shared)
    return next((rank for rank in failed if running[rank].pid == first), next(iter(failed), None))


def _send(running: list[subprocess.Popen], number: int) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(number)

"""Signals that ask the process to end are noted, so that it can save and stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def noted(*also: int, react: Callable[[list[int]], None] | None = None) -> Iterator[list[int]]:
    """Yields a list to which SIGINT (Ctrl-C) and SIGTERM are added instead of ending the process.

    Outside the main thread, where Python installs no handlers, the caller's stay and the list stays empty.

    Args:
        also: further signals, left alone where the process ignores them (SIGHUP under nohup).
        react: called with the list after each signal.
    """
    came: list[int] = []

    def note(number, frame):
        came.append(number)
        if react:
            react(came)

    wanted = [signal.SIGINT, signal.SIGTERM, *(number for number in also if signal.getsignal(number) != signal.SIG_IGN)]
    try:
        before = {number: signal.signal(number, note) for number in wanted}
    except ValueError:
        yield came
        return
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

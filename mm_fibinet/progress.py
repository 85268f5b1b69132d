"""How far the work is: a bar on a terminal, a widget in a notebook, and now and then a plain line in a log.

A bar that redraws itself makes a log of one endless line, so off a terminal (a pipe, a file, TERM=dumb, `!python` in a
notebook) there are lines instead: no carriage return, no escape, and none at all for work that is done soon. A line
comes when LINE_SECONDS have passed and LINE_SHARE more is done, and after QUIET_SECONDS whatever is done: an hour's
work leaves twenty lines. Nothing here has a colour, so NO_COLOR asks for nothing; COLUMNS sets a bar's width.
"""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LINE_SECONDS = 30
LINE_SHARE = 0.05
QUIET_SECONDS = 600
REDRAW_SECONDS = 0.5
NOTEBOOK = "JPY_PARENT_PID"  # set for a notebook's kernel and its `!` commands, which believe to be on a terminal


def track(
    iterable: Iterable | None = None,
    desc: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    file: TextIO | None = None,
    leave: bool = True,
    shown: bool = True,
) -> Any:
    """Show how far something is, as fits the place where its output goes.

    Args:
        iterable: what is gone through; None to call `update` instead.
        desc: what is done, one or two words.
        total: how many there will be; None for the iterable's length, if it has one.
        initial: how many were done before.
        unit: one of them, in the singular.
        file: where it is shown; None for stderr.
        leave: keep the finished bar on the terminal; what follows says it again where it is False.
        shown: False shows nothing.

    Returns:
        tqdm's bar or widget, or `Lines`, which has the same methods as far as they are used here: iteration, `update`,
        `write`, `set_postfix_str`, `close`, and the context manager.
    """
    file = sys.stderr if file is None else file
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    shape: dict[str, Any] = {"desc": desc, "total": total, "initial": initial, "unit": unit, "leave": leave}
    widget = _widget() if shown else None
    if widget:
        return widget(iterable, mininterval=REDRAW_SECONDS, **shape)
    if shown and is_terminal(file):
        return tqdm(iterable, file=file, mininterval=REDRAW_SECONDS, **_width(file), **shape)
    return Lines(iterable, file=file, shown=shown, **shape)


@contextlib.contextmanager
def log_lines_above_bars(file: TextIO, shown: bool = True) -> Iterator[None]:
    """Let log lines scroll above a bar on `file` instead of breaking it; elsewhere nothing needs to be done."""
    with logging_redirect_tqdm() if shown and is_terminal(file) else contextlib.nullcontext():
        yield


def is_terminal(file: TextIO) -> bool:
    """Whether a bar can be redrawn there."""
    return file.isatty() and os.environ.get("TERM") != "dumb" and NOTEBOOK not in os.environ


class Lines:
    """tqdm's methods for a place where nothing can be redrawn; see `track` for the arguments.

    Attributes:
        n: how many are done.
        postfix: what `set_postfix_str` was told.
    """

    def __init__(
        self,
        iterable: Iterable | None,
        desc: str,
        total: int | None,
        initial: int,
        unit: str,
        leave: bool,
        file: TextIO,
        shown: bool,
    ):
        self.iterable, self.desc, self.total, self.unit = iterable, desc, total, unit
        self.file, self.shown, self.leave = file, shown, leave
        self.n = self._first = self._n_shown = initial
        self.postfix = ""
        self._started = self._last_line = monotonic()

    def __iter__(self) -> Iterator:
        assert self.iterable is not None
        try:
            for value in self.iterable:
                yield value
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.n += n
        self._show_if_due()

    def set_postfix_str(self, text: str) -> None:
        """What a line ends with."""
        self.postfix = text
        self._show_if_due()

    def write(self, text: str) -> None:
        """Print text, as tqdm does above its bar."""
        print(text, flush=True)

    def close(self) -> None:
        """Say how it ended, if it took long enough to have been worth a line."""
        if self.leave and self.n > self._n_shown and monotonic() - self._started >= LINE_SECONDS:
            self._show(monotonic())
        self.shown = False

    def _show_if_due(self) -> None:
        now = monotonic()
        passed = now - self._last_line
        more = self.n - self._n_shown
        share = LINE_SHARE * (self.total or self._n_shown)
        if passed >= QUIET_SECONDS or (passed >= LINE_SECONDS and more and more >= share):
            self._show(now)

    def _show(self, now: float) -> None:
        self._last_line, self._n_shown = now, self.n
        if self.shown:
            print(self._line(now - self._started), file=self.file, flush=True)

    def _line(self, seconds: float) -> str:
        """`epoch 2: 25 % (110 of 440), 00:31 so far, 01:33 left, 3.5 batch/s`."""
        done = self.n - self._first
        parts = [f"{self.n:,} {self.unit}"]
        if self.total:
            parts = [f"{100 * self.n // self.total} % ({self.n:,} of {self.total:,})"]
        parts.append(f"{tqdm.format_interval(seconds)} so far")
        if done and self.total and self.n < self.total:
            parts.append(f"{tqdm.format_interval(seconds / done * (self.total - self.n))} left")
        if done and seconds:
            rate = done / seconds
            parts.append(f"{rate:,.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{self.unit}")
        return f"{self.desc}: {', '.join([*parts, *filter(None, [self.postfix])])}"


def _widget() -> type | None:
    """tqdm's widget where this process is a notebook's kernel that can show one."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's advice to install ipywidgets: without them there are lines
        from tqdm.auto import tqdm as chosen
    from tqdm.notebook import tqdm_notebook

    return chosen if issubclass(chosen, tqdm_notebook) else None


def _width(file: TextIO) -> dict[str, Any]:
    """As wide as the terminal is at any time; COLUMNS, or a terminal that knows no width, makes it fixed."""
    try:
        known = os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    if known and "COLUMNS" not in os.environ:
        return {"dynamic_ncols": True}
    return {"ncols": max(shutil.get_terminal_size().columns - 1, 1)}

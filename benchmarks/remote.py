"""A contender in a process of its own.

What one side does to its process (allocator settings, threads, caches, a Ray cluster) must not reach the other, and
peak memory is a number of a whole process. So each side is made in a fresh process and answers calls.
"""

import contextlib
import multiprocessing
import signal
import traceback

CALL_SECONDS = 1800


class RemoteError(RuntimeError):
    """The other process failed, ended or took too long."""


class Remote:
    """Makes `kind(*arguments)` in a fresh process; its methods are called there and must return what pickles.

    Args:
        kind: a class that the other process can import.
        arguments: of its constructor.
        seconds: a call that takes longer is a RemoteError.
    """

    def __init__(self, kind: type, *arguments, seconds: float = CALL_SECONDS):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, arguments))
        self._seconds = seconds
        self._process.start()
        theirs.close()

    def __getattr__(self, method: str):
        return lambda *arguments, **keywords: self._call(method, arguments, keywords)

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *error) -> None:
        self._pipe.close()  # the other process ends when it reads the end of the pipe
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, method: str, arguments: tuple, keywords: dict):
        self._pipe.send((method, arguments, keywords))
        if not self._pipe.poll(self._seconds):
            self._process.kill()
            raise RemoteError(f"{method} took more than {self._seconds} s")
        try:
            succeeded, value = self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise RemoteError(f"{method}: the process ended with status {self._process.exitcode}") from error
        if not succeeded:
            raise RemoteError(value)
        return value


def _serve(pipe, kind: type, arguments: tuple) -> None:
    """Answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which closes the pipe
    contender = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            method, positional, keywords = pipe.recv()
            try:
                contender = contender or kind(*arguments)
                answer = True, getattr(contender, method)(*positional, **keywords)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send(answer)

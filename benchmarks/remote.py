"""A contender in a process of its own.

What one side does to its process (allocator settings, threads, caches, a Ray cluster) must not reach the other, and
peak memory is a number of a whole process. So each side is made in a fresh process and answers calls.
"""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
        self._seconds = seconds
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "benchmarks.remote", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        theirs.close()
        self._pipe.send((kind, arguments))

    def __getattr__(self, method: str):
        return lambda *arguments, **keywords: self._call(method, arguments, keywords)

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *error) -> None:
        self._pipe.close()  # the other process ends when it reads the end of the pipe
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, method: str, arguments: tuple, keywords: dict):
        try:
            self._pipe.send((method, arguments, keywords))
            if not self._pipe.poll(self._seconds):
                raise RemoteError(f"{method} took more than {self._seconds} s")
            succeeded, value = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise RemoteError(f"{method}: the process ended with status {self._process.wait()}") from error
        if not succeeded:
            raise RemoteError(value)
        return value


def serve(pipe: Connection) -> None:
    """Make the contender, answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which closes the pipe
    contender = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        kind, made_of = pipe.recv()
        while True:
            method, positional, keywords = pipe.recv()
            try:
                contender = contender or kind(*made_of)
                answer = True, getattr(contender, method)(*positional, **keywords)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
    os._exit(0)  # at once: what the contender holds is not worth freeing

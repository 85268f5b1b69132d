"""Processes that train one run after another, so that each loads torch once.

A run in a process of its own begins with seconds of imports, on a GPU with a context of CUDA as well: of a run of a
minute that is a good part. A worker is `run_expid.py --serve`. It takes command lines from its parent, runs each as the
script would, its output going to the run's own file, and answers with the exit code. To the parent a run is what it
would be as a process: it can be polled, asked to save and stop, and killed.

A run that fails takes its worker with it, whatever the failure was, and the next one gets a fresh worker: out of
memory, or a GPU left in an unusable state, stays one failed run. Peak memory is counted anew for each run, but main
memory from what the runs before have left, so a figure to publish comes from a process a run.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_fibinet.errors import EXIT_BUG, EXIT_INTERRUPTED, UserError, explain_os_error, run_cli

GOES_ON = (0, EXIT_INTERRUPTED)  # exit codes after which a worker takes another run
SECONDS_TO_END = 10  # an idle worker's


class Meter(NamedTuple):
    """Counts what a run costs, and stops it when it has cost enough.

    Attributes:
        file: a line of it is what the run took, in seconds, each time that it ended or was stopped.
        limit: seconds from now; when they are over the run is asked to save and stop. None for no limit.
        wall: count the clock's seconds; else those that the process's threads computed, added up.
    """

    file: str
    limit: float | None = None
    wall: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done meanwhile, in this process; the limit sends it SIGTERM."""
        timer, number = (signal.ITIMER_REAL, signal.SIGALRM) if self.wall else (signal.ITIMER_PROF, signal.SIGPROF)
        clock = time.monotonic if self.wall else time.process_time
        started = clock()

        def ring(*_: object) -> None:
            left = (self.limit or 0) - (clock() - started)
            if left > 0:  # the system's timer counts in coarser units
                signal.setitimer(timer, left)
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(number, ring)
        signal.setitimer(timer, self.limit or 0)
        try:
            yield
        finally:
            signal.setitimer(timer, 0)
            signal.signal(number, before)
            with open(self.file, "a", encoding="utf-8") as opened:
                opened.write(f"{clock() - started:.3f}\n")

    def seconds(self) -> float:
        """What the run has cost so far; a part whose worker was killed is not known.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return sum(map(float, Path(self.file).read_text(encoding="utf-8").split()))
        except FileNotFoundError:
            return 0.0
        except ValueError as error:
            raise UserError(
                f"{self.file}: {error}, expected seconds, a number a line; remove its folder, and that trial is run "
                "again"
            ) from error


class Workers:
    """Starts runs in workers that are free, or in new ones; leaving the context ends them.

    Args:
        program: the command that starts run_expid.py, without arguments.
        lock: a file descriptor that each worker inherits, see `jobs.locked`.
    """

    def __init__(self, program: Sequence[str], lock: int):
        self.program = list(program)
        self.lock = lock
        self._idle: dict[Hashable, list[_Worker]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [worker for idle in self._idle.values() for worker in idle]:
            worker.end()
        self._idle.clear()

    def start(
        self,
        command: Sequence[str],
        output: Path,
        place: Hashable,
        environment: Mapping[str, str],
        meter: Meter | None = None,
    ) -> "Run":
        """Start a run.

        Args:
            command: the program with the run's arguments.
            output: the file for what it prints.
            place: where it runs, a GPU say; a worker stays where it was first.
            environment: of the worker, where a new one is started.
            meter: of this run.

        Raises:
            UserError: the output cannot be written.
        """
        try:
            output.write_bytes(b"")
        except OSError as error:
            raise explain_os_error(error, output) from error
        idle = self._idle.setdefault(place, [])
        worker = idle.pop() if idle else _Worker([*self.program, "--serve"], output, environment, self.lock)
        request = {"arguments": list(command[len(self.program) :]), "output": str(output), "meter": meter}
        return Run(worker, request, idle.append)


class Run:
    """A run in a worker, with the methods of a `subprocess.Popen` that its parent needs.

    Attributes:
        returncode: None while it runs, then its exit code, below 0 where a signal ended the worker.
    """

    def __init__(self, worker: "_Worker", request: dict, give_back: Callable[["_Worker"], object]):
        self.returncode: int | None = None
        self._worker, self._give_back = worker, give_back
        worker.send(request)

    def poll(self) -> int | None:
        """The return code, None while the run is going on."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it has not come within `timeout` seconds.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self._worker.process.args, timeout or 0)
        return code

    def terminate(self) -> None:
        """Ask it to save and stop."""
        if self.returncode is None:
            self._worker.process.terminate()

    def kill(self) -> None:
        """End it, and its worker."""
        if self.returncode is None:
            self._worker.process.kill()

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self.returncode = self._worker.answer(timeout)
            if self.returncode in GOES_ON:
                self._give_back(self._worker)
            elif self.returncode is not None:
                self._worker.end()
        return self.returncode


class _Worker:
    """A process that serves, and the pipes to it."""

    def __init__(self, command: list[str], output: Path, environment: Mapping[str, str], lock: int):
        with open(output, "ab") as said:  # before its first run: why it could not begin
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=dict(environment),
                pass_fds=(lock,),
            )
        assert self.process.stdin and self.process.stdout
        self._requests, self._answers = self.process.stdin, self.process.stdout

    def send(self, request: dict) -> None:
        """Ask for a run; a worker that is gone is noticed when its answer is awaited."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def answer(self, timeout: float | None) -> int | None:
        """The exit code of the run it was asked for; the process's own where it has ended; None while neither is."""
        if not select.select([self._answers], [], [], timeout)[0]:
            return None
        line = self._answers.readline()
        return int(line) if line.endswith(b"\n") else self.process.wait() or EXIT_BUG

    def end(self) -> None:
        """Let it end, or end it."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()


def serve(run: Callable[[list[str]], int | None], tidy: Callable[[], None]) -> None:
    """Run the command lines that come on stdin, one after the other, until it ends or a run fails.

    Args:
        run: what the script does with a command line; the process's output is the run's as long as it lasts.
        tidy: called after each run.
    """
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        with _interruptible() as busy:
            while line := requests.readline():
                request = json.loads(line)
                sys.argv[1:] = request["arguments"]  # which the run's manifest tells
                with _output_to(request["output"], nothing):
                    with Meter(*request["meter"]).running() if request["meter"] else contextlib.nullcontext():
                        code = _code_of(run, request["arguments"], busy)
                    tidy()
                with contextlib.suppress(BrokenPipeError):  # the parent was killed: stdin has ended, too
                    answers.write(b"%d\n" % code)
                if code not in GOES_ON:
                    return


def _code_of(run: Callable[[list[str]], int | None], arguments: list[str], busy: list[bool]) -> int:
    """The exit code that the script would have, its last words printed."""
    try:
        try:
            busy.append(True)
            run_cli(lambda: run(arguments))
        finally:
            busy.clear()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_BUG
    except KeyboardInterrupt:  # it came as the run was about to end by itself
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
    return EXIT_BUG


@contextlib.contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Yields a list; SIGINT and SIGTERM interrupt what is done while it holds something, and are ignored otherwise."""
    busy: list[bool] = []

    def interrupt(number: int, frame: object) -> None:
        if busy:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield busy
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _output_to(path: str, nothing: int) -> Iterator[None]:
    """Send all that the process prints to a file, libraries in C included; afterwards nowhere."""
    with open(path, "ab") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    try:
        yield
    finally:
        for number, stream in {1: sys.stdout, 2: sys.stderr}.items():
            with contextlib.suppress(OSError):  # a full disk, which the run has said
                stream.flush()
            os.dup2(nothing, number)

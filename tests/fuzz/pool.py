"""A process that runs cases, and its watchdog.

Cases run inside one worker, where torch is loaded once, so that a training takes 50 ms. The watchdog outside sees what
a process cannot see of itself: that it hangs, or was killed. The most memory it held is kept by Linux (VmHWM), and can
be reset between cases.

`python -m fuzz.pool BASE MODULE` is the worker: it reads pickled (number, target, case), runs the target of that name
in MODULE.TARGETS, and answers with a `Result` each.
"""

import contextlib
import importlib
import os
import pickle
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0
MEMORY_MB = 2048
KEPT_MB = 1500  # what a worker may hold between cases; above that a fresh one takes its place
START_SECONDS = 120.0


@dataclass
class Result:
    """How a case ended.

    Attributes:
        fault: what did not hold, None when all did.
        codes: the commands' exit codes, in order.
        seconds, peak_mb, kept_mb: time, the process's peak memory during the case, and its memory afterwards.
    """

    fault: str | None
    codes: tuple[int, ...] = ()
    seconds: float = 0.0
    peak_mb: int = 0
    kept_mb: int = 0


class Worker:
    """Runs cases one after another; a case that hangs or kills the process costs a process, not the session.

    Args:
        base: a folder for what all cases start from, made by the first process; beside it BASE.log keeps what the
            processes print, for a look when one dies.
        module: where TARGETS and make_base are.
    """

    def __init__(self, base: Path, module: str = "fuzz.targets"):
        self.base = base
        self.module = module
        self.log = base.with_name(f"{base.name}.log")
        self.process: subprocess.Popen | None = None
        self.number = 0

    def run(self, target: str, case: object) -> Result:
        """Run one case."""
        self.number += 1
        if self.process is None:
            self._start()
        started = time.monotonic()
        assert self.process and self.process.stdin
        try:
            self.process.stdin.write(pickle.dumps((self.number, target, case)))
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._lost("the process was gone", started)
        result = self._answer(started, SECONDS)
        if isinstance(result, Result):
            if result.peak_mb > MEMORY_MB and result.fault is None:
                result.fault = f"memory: {result.peak_mb:,} MB at its peak"
            if result.kept_mb > KEPT_MB:
                self.close()
            return result
        return self._lost(result, started)

    def close(self) -> None:
        """End the process and remove its case's folder."""
        if self.process:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):  # a case that was not sent
                    if pipe:
                        pipe.close()
            self.process = None
        shutil.rmtree(case_folder(self.base, self.number), ignore_errors=True)

    def _start(self) -> None:
        path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.pool", str(self.base), self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        ready = self._answer(time.monotonic(), START_SECONDS)
        if not isinstance(ready, Result):
            self.close()
            raise RuntimeError(f"the worker did not start: {ready}; see {self.log}")

    def _answer(self, started: float, seconds: float) -> "Result | str":
        """The worker's answer, or what kept it from answering."""
        assert self.process and self.process.stdout
        while time.monotonic() - started < seconds:
            if select.select([self.process.stdout], [], [], 0.05)[0]:
                try:
                    return pickle.load(self.process.stdout)
                except (EOFError, pickle.UnpicklingError):
                    return f"the process died with code {self.process.wait()}"
            if memory_mb(self.process.pid) > 2 * MEMORY_MB:
                return f"memory: more than {2 * MEMORY_MB:,} MB, killed"
        return f"no end within {seconds:.0f} s"

    def _lost(self, fault: str, started: float) -> Result:
        self.close()
        return Result(fault, seconds=time.monotonic() - started)


def case_folder(base: Path, number: int) -> Path:
    """Where a case is run."""
    return base.with_name(f"{base.name}-case-{number}")


def memory_mb(pid: int | str, what: str = "VmRSS") -> int:
    """A process's memory in MiB: VmRSS is now, VmHWM the most so far; 0 where the system does not say."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) >> 10
    except OSError:
        pass
    return 0


def serve(base: Path, module: str) -> None:
    """The worker's loop."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(result: Result) -> None:
        pickle.dump(result, answers)
        answers.flush()

    targets = importlib.import_module(module)
    targets.make_base(base)
    answer(Result(None))
    while True:
        try:
            number, name, case = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer(_run(targets, base, number, name, case))


def _run(targets, base: Path, number: int, name: str, case: object) -> Result:
    from fuzz.oracle import Fault, Place, describe, reset_peak

    folder = case_folder(base, number)
    reset_peak()
    started, fault, codes = time.monotonic(), None, ()
    try:
        place = Place(folder)
        os.chdir(folder)  # where a relative path of an output would show
        codes = targets.TARGETS[name].run(place, base, case)
    except Fault as error:
        fault = str(error)
    except Exception as error:
        fault = f"the case itself failed: {describe(error)}"
    seconds = time.monotonic() - started
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    return Result(fault, tuple(codes), seconds, memory_mb("self", "VmHWM"), memory_mb("self"))


if __name__ == "__main__":
    from fuzz import pool  # by its name: the answers' type must be the one that the reader knows

    pool.serve(Path(sys.argv[1]), sys.argv[2])

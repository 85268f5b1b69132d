"""Beside a busy neighbour: what is left of a quiet machine's speed when another process keeps one core busy.

Ours is measured quiet and busy in turns, in the same processes; the row-wise loader once more beside it, quiet, so that
the loader's speed is not bought with its speed on a quiet machine.
"""

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks.contenders import Ours, Reference
from benchmarks.measure import in_turns
from benchmarks.remote import Remote

SHARE = 0.7  # of the quiet speed
TRIPLE_TARGET = 15.0
SPIN = "import os; parent = os.getppid(); print(flush=True)\nwhile os.getppid() == parent: sum(range(10**6))"


@contextlib.contextmanager
def neighbour() -> Iterator[subprocess.Popen]:
    """One process that never waits, from its first moment on until the end; gone too when this process is killed."""
    process = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def beside(work: Callable[[], float]) -> float:
    """What the work returns beside a neighbour."""
    with neighbour():
        return work()


def busy(bench) -> None:
    """Rows/s of loading and of training FiBiNET, quiet and beside a neighbour; lines of `bench` with their ratio.

    Args:
        bench: of speed.py.
    """
    task, batches = bench.task, 12 if bench.quick else 2000
    with (
        Remote(Ours, "DIN", task) as loading,
        Remote(Ours, "FiBiNET", task) as training,
        Remote(Reference, "DIN", dataclasses.replace(task, workers=0)) as row_wise,
    ):
        works = {
            "loader, indices": lambda: loading.pass_over("indices", batches),
            "loader, triple": lambda: loading.pass_over("triple", max(batches // 40, 2)),
            "training FiBiNET": lambda: training.train(bench.steps(3)),
        }
        training.train(2)
        all_works = [*works.values(), *(lambda work=work: beside(work) for work in works.values())]
        *rates, reference = in_turns(bench.repeats, *all_works, lambda: row_wise.pass_over(3))
    for place, what in enumerate(works):
        quiet, beside_one = rates[place], rates[place + len(works)]
        bench.add(f"{what}, beside a busy process / quiet", "rows/s", quiet, beside_one, target=SHARE)
    bench.add("loader, triple / row-wise, quiet", "rows/s", reference, rates[1], target=TRIPLE_TARGET)
    threads = torch.get_num_threads()
    share = f"{threads / (threads + 1):.0%}"
    bench.note(f"beside one busy process, work that keeps {threads} cores busy can have {share} of them")

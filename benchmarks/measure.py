"""Clocks, repeats, peaks of the machine: how the numbers are taken.

What is compared runs in turns (A B A B), so that a machine that slows down slows both. Each work is done once before
it counts; the median is reported, and the spread of the repeats beside it.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mm_fibinet.precision import Precision


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(repeats: int, *works: Callable[[], float]) -> list[list[float]]:
    """The values that each work returns, `repeats` of each, taken in turns."""
    values = [[] for _ in works]
    for _ in range(repeats):
        for own, work in zip(values, works, strict=True):
            own.append(work())
    return values


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: list[float]) -> float:
    """How far the repeats lie apart: (largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


class TimedBatches:
    """A loader cut to a few batches, with the time its consumer took for them, loading included.

    Args:
        loader: batches of `batch_size` rows.
        count: batches on the clock.
        warm_up: batches before them.
        tail: batches after them, for a consumer that does something else with the last one (our loop evaluates).

    Attributes:
        seconds: the time of the `count` batches, once all are consumed.
        rows_per_second: of these batches.
    """

    def __init__(self, loader, count: int, warm_up: int, tail: int, batch_size: int, device: torch.device):
        self.loader = loader
        self.count = max(min(count, len(loader) - 1 - warm_up), 1)  # the last batch may be short
        self.warm_up, self.tail = warm_up, tail
        self.batch_size = batch_size
        self.device = device
        self.seconds = float("nan")

    def __len__(self) -> int:
        return self.warm_up + self.count + self.tail

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        started = 0.0
        for index in range(len(self)):
            if index == self.warm_up:
                started = now(self.device)
            if index == self.warm_up + self.count:
                self.seconds = now(self.device) - started
            yield next(batches)
        if not self.tail:
            self.seconds = now(self.device) - started

    @property
    def rows_per_second(self) -> float:
        """Of all batches that were taken."""
        return self.count * self.batch_size / self.seconds


def pass_rows_per_second(loader, batches: int, batch_size: int, device: torch.device) -> float:
    """Rows/s of going through a loader without using what it yields; over several epochs when it has fewer batches."""
    count, started = 0, now(device)
    while count < batches:
        for _ in loader:
            count += 1
            if count == batches:
                break
    return count * batch_size / (now(device) - started)


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_precision(device: torch.device) -> str:
    """What `precision: auto` takes here, or bf16 where that is fp32."""
    chosen = Precision.on("auto", device).name
    return chosen if chosen in HALF else "bf16"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the best of several."""
    size = 8192 if device.type == "cuda" else 3072
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _shortest(lambda: torch.mm(a, b, out=out), device)


def peak_bandwidth(device: torch.device) -> float:
    """Bytes/s read plus written of a large copy: the best of several."""
    source = torch.ones(1 << 30 if device.type == "cuda" else 1 << 27, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / _shortest(lambda: target.copy_(source), device)


def step_flops(model, batch) -> int:
    """FLOPs of the matrix products that forward and backward do on one batch.

    A product that the backward pass makes once more counts twice; tables' look-ups do not count.
    """
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(batch)["y_pred"].sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def line_fit(x: list[float], y: list[float]) -> dict[str, float]:
    """Least-squares line: slope, intercept and R^2."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - (slope * x + intercept)
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r2": float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum()),
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """What the numbers were taken on."""
    found = {
        "cpu": _cpu_model(),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _shortest(work: Callable[[], object], device: torch.device, repeats: int = 6) -> float:
    """Seconds of the quickest of several repeats."""
    times = []
    for _ in range(repeats):
        started = now(device)
        work()
        times.append(now(device) - started)
    return min(times)

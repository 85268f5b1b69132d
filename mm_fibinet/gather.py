"""Gathering rows on a CPU without OpenMP: what a batch costs must not depend on what else the machine does.

torch splits a gather of more than 32,768 numbers over OpenMP's threads, which then wait for the slowest. On cores
shared with other work one of them is often not running, and a batch that takes a third of a millisecond waits for
several. numpy copies the same rows in the calling thread. Only where a batch is large (the challenge's triple, 140 MB)
do several threads share the copying; each takes the next part when it is done with one, so that none waits for another.

Values on another device, and those under `torch.compile` or autograd, are torch's.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BYTES_A_PART = 4 << 20  # about half a millisecond of copying
MOST_THREADS = 8  # more wait for memory, not for cores
# With numpy, among those that tables have.
SHARED_TYPES = (torch.float32, torch.float64, torch.int8, torch.int32, torch.int64)


def take_rows(values: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch.index_select(values, 0, index)`, to the bit.

    Args:
        values: [N] or [N, W].
        index: integers [M] from 0 to N - 1, on the same device.
        out: [M] or [M, W] to write to, contiguous; None for a new one.

    Raises:
        IndexError: an index is out of range; nothing has been written.
    """
    if not _is_plain(values):
        return torch.index_select(values, 0, index, out=out)
    if out is None:
        out = values.new_empty(len(index), *values.shape[1:])
    source, rows, target = values.numpy(), index.numpy(), out.numpy()
    if rows.size and not 0 <= rows.min() <= rows.max() < len(source):
        raise IndexError(f"rows {rows.min()} to {rows.max()} are asked for, expected 0 to {len(source) - 1}")
    num_parts = max(-(-out.nbytes // BYTES_A_PART), 1)
    size = -(-len(rows) // num_parts)
    parts = iter([slice(first, first + size) for first in range(0, len(rows), size or 1)])

    def take_parts() -> None:
        for part in parts:  # the interpreter hands each out once
            source.take(rows[part], axis=0, out=target[part], mode="clip")  # without it numpy copies twice

    threads = min(torch.get_num_threads(), num_parts, MOST_THREADS)
    helpers = [_pool(os.getpid()).submit(take_parts) for _ in range(threads - 1)]
    take_parts()
    for helper in helpers:
        if not helper.cancel():  # it has begun: its part may still be on the way
            helper.result()
    return out


def take_rows_for(values: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """`take_rows`, to where a copy to a device is not waited for."""
    return take_rows(values, index, out=_empty_for(len(index), values.shape[1:], values, device))


def take_tails(values: Tensor, starts: Tensor, stops: Tensor, width: int, run: int, device: torch.device) -> Tensor:
    """The last numbers of some parts of a long row, behind zeros, to where a copy to a device is not waited for.

    A look-up of each number takes several times as long as a copy of as many. So runs of numbers are copied, from
    wherever a part ends; before its start there are zeros to copy, which makes a mask needless.

    Args:
        values: [T]; before each start there are `run` zeros.
        starts, stops: int64 [M], where each part begins, and the place after its last number.
        width: how many numbers are wanted.
        run: how many are copied at once.

    Returns:
        [M, W], W at least `width`: the numbers of the part that ends at the row's end, zeros before it.

    Raises:
        IndexError: a part is not within the values.
    """
    runs = -(-width // run)
    if not _is_plain(values):
        back = torch.arange(runs * run, 0, -1, device=values.device)
        return values[torch.maximum(stops.unsqueeze(1) - back, starts.unsqueeze(1) - 1)]
    source, first, last = values.numpy(), starts.numpy(), stops.numpy()
    if first.size and not (first.min() >= run and last.max() <= len(source)):
        raise IndexError(f"parts from {first.min()} to {last.max()}, expected {run} to {len(source)}")
    places = np.ndarray((len(source) - run + 1,), f"V{run * source.itemsize}", source, strides=source.strides)
    index = last[:, None] - np.arange(runs, 0, -1) * run
    taken = places[np.maximum(index, first[:, None] - run, out=index)].view(source.dtype)
    if device.type != "cuda":
        return torch.from_numpy(taken)
    return _empty_for(len(taken), taken.shape[1:], values, device).copy_(torch.from_numpy(taken))


def flat_index(index: Tensor) -> Tensor:
    """An index of any shape as [M], for `take_rows`; positions are a part of wider rows, which makes it a copy."""
    return torch.from_numpy(index.numpy().reshape(-1)) if _is_plain(index) else index.reshape(-1)


def real_positions(index: Tensor) -> Tensor:
    """float32 of the index's shape, 1 where it is not 0, the padding."""
    return torch.from_numpy((index.numpy() > 0).astype(np.float32)) if _is_plain(index) else (index > 0).float()


def _empty_for(rows: int, shape: Sequence[int], values: Tensor, device: torch.device) -> Tensor:
    """A tensor [rows, *shape] where `values` are, page-locked where a copy to the device is then not waited for."""
    pinned = device.type == "cuda" and values.device.type == "cpu"
    return torch.empty(rows, *shape, dtype=values.dtype, device=values.device, pin_memory=pinned)


def _is_plain(values: Tensor) -> bool:
    """Whether numpy may read these, and nothing else wants to know that they are read."""
    return (
        values.device.type == "cpu"
        and values.dtype in SHARED_TYPES
        and not values.requires_grad
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """A process's helpers; those of the process that it was forked from are not in it. They start when needed."""
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix=f"gather-{process}")

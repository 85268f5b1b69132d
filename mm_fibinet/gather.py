"""Gathering rows on a CPU without OpenMP: what a batch costs must not depend on what else the machine does.

torch splits a gather of more than 32,768 numbers over OpenMP's threads, which then wait for the slowest. On cores
shared with other work one of them is often not running, and a batch that takes a third of a millisecond waits for
several. numpy copies the same rows in the calling thread. Only where a batch is large (the challenge's triple, 140 MB)
do several threads share the copying; each takes the next part when it is done with one, so that none waits for another.

Values on another device, and those under `torch.compile` or autograd, are torch's.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

BYTES_A_PART = 4 << 20  # about half a millisecond of copying
BYTES_A_BLOCK = 256 << 10  # of windows and their masks: within a core's cache
MOST_THREADS = 8  # more wait for memory, not for cores
SHARED_TYPES = (torch.float32, torch.float64, torch.int32, torch.int64)  # with numpy, among those that tables have


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

    def take(part: slice) -> None:
        source.take(rows[part], axis=0, out=target[part], mode="clip")  # without it numpy copies twice

    _in_parts(take, len(rows), out.nbytes)
    return out


def take_rows_for(values: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """`take_rows`, to where a copy to the device is not waited for."""
    return take_rows(values, index, out=empty_for(len(index), values.shape[1:], values, device))


def empty_for(rows: int, shape: Sequence[int], values: Tensor, device: torch.device) -> Tensor:
    """A tensor [rows, *shape] where `values` are, to be brought to a device: page-locked where that helps."""
    pinned = device.type == "cuda" and values.device.type == "cpu"
    return torch.empty(rows, *shape, dtype=values.dtype, device=values.device, pin_memory=pinned)


def take_windows(values: Tensor, stops: Tensor, lengths: Tensor, out: Tensor) -> Tensor:
    """The numbers before each stop, as many as its length says, behind zeros.

    Rows of a matrix are copied at the speed of memory; numbers that are looked up one by one are not. So whole windows
    are copied, and masked while a few hundred kilobytes of them are in the cache.

    Args:
        values: int32 [T].
        stops: int64 [M]; the W numbers before each are among `values`, whether they count or not.
        lengths: int64 [M], 0 to W.
        out: int32 [M, W] to write to; its rows may be parts of wider ones.

    Returns:
        `out`: its row m is W - lengths[m] zeros, then values[stops[m] - lengths[m] : stops[m]].

    Raises:
        IndexError: a window reaches beyond the values; nothing has been written.
    """
    width = out.shape[1]
    if not _is_plain(values):
        back = torch.arange(width, 0, -1, device=values.device)
        windows = values.index_select(0, (stops.unsqueeze(1) - back).view(-1)).view_as(out)
        return out.copy_(torch.where(back <= lengths.unsqueeze(1), windows, 0))
    source, firsts, counts, target = values.numpy(), (stops - width).numpy(), lengths.numpy(), out.numpy()
    if firsts.size and not (firsts.min() >= 0 and firsts.max() + width <= len(source)):
        raise IndexError(f"windows of {width} begin at {firsts.min()} to {firsts.max()} of {len(source)} values")
    windows = sliding_window_view(source, width)
    masks = sliding_window_view(np.repeat(np.array([0, -1], dtype=np.int32), width), width)  # row n: n ones at the end
    step = max(BYTES_A_BLOCK // (4 * width), 1)

    def take(part: slice) -> None:
        for first in range(part.start, min(part.stop, len(firsts)), step):
            block = slice(first, min(first + step, part.stop))
            np.bitwise_and(windows[firsts[block]], masks[counts[block]], out=target[block])

    _in_parts(take, len(firsts), 4 * target.size)
    return out


def _in_parts(work: Callable[[slice], None], rows: int, nbytes: int) -> None:
    """Do work on all rows, which write so many bytes: in this thread, or in parts that several share."""
    num_parts = max(-(-nbytes // BYTES_A_PART), 1)
    size = -(-rows // num_parts)
    parts = iter([slice(first, first + size) for first in range(0, rows, size or 1)])

    def take_parts() -> None:
        for part in parts:  # the interpreter hands each out once
            work(part)

    threads = min(torch.get_num_threads(), num_parts, MOST_THREADS)
    helpers = [_pool(os.getpid()).submit(take_parts) for _ in range(threads - 1)]
    take_parts()
    for helper in helpers:
        if not helper.cancel():  # it has begun: its part may still be on the way
            helper.result()


def flat_index(index: Tensor) -> Tensor:
    """An index of any shape as [M], for `take_rows`; positions are a part of wider rows, which makes it a copy."""
    return torch.from_numpy(index.numpy().reshape(-1)) if _is_plain(index) else index.reshape(-1)


def real_positions(index: Tensor) -> Tensor:
    """float32 of the index's shape, 1 where it is not 0, the padding."""
    return torch.from_numpy((index.numpy() > 0).astype(np.float32)) if _is_plain(index) else (index > 0).float()


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

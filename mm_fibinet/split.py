"""A split as tensors: one int32 matrix [N, L + 1 + C] (history, target item, then the other integer columns).

Rows become tensors once; a batch is then a gather of rows of that matrix, and of a float matrix where numbers are
features of the row. Where the matrices live, and in which order rows come, is the loader's.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mm_fibinet import distributed, schema
from mm_fibinet.gather import take_rows
from mm_fibinet.parquet_reader import open_parquet

Layout = dict[str, tuple[int, int, bool]]  # {column: (first, width, is_list)}
Allocate = Callable[[tuple[int, int], type], np.ndarray]  # (shape, type of number) to a matrix that is not yet filled


class Split:
    """One split as tensors.

    Attributes:
        integers: int32 [N, L + 1 + C]; the history and the target first, then columns as `layout` says.
        floats: float32 [N, F], or None when no column needs it.
        layout: {column: (first, width, is_list)} within `integers`.
        float_layout: the same for `floats`.
        history_len: L; None where there is neither history nor target, and the columns are all.
    """

    def __init__(
        self, integers: Tensor, floats: Tensor | None, layout: Layout, float_layout: Layout, history_len: int | None
    ):
        self.integers = integers
        self.floats = floats
        self.layout = layout
        self.float_layout = float_layout
        self.history_len = history_len

    def __len__(self) -> int:
        return len(self.integers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.integers.nbytes + (self.floats.nbytes if self.floats is not None else 0)

    def column(self, name: str) -> Tensor:
        """One column over all rows, [N] or [N, W]."""
        return _columns(self.integers, self.layout)[name]

    def gather(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The rows' columns.

        Args:
            rows: int64 [B], on the device of `integers`.
            device: where the columns shall be.

        Returns:
            ({column: [B] or [B, W]}, item_index int32 [B, L + 1]).
        """
        floats = None if self.floats is None else _gather(self.floats, rows, device)
        return self._split_up(_gather(self.integers, rows, device), floats)

    def slice(self, start: int, stop: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """`gather` of rows start .. stop - 1, without a copy where they are there already."""
        floats = None if self.floats is None else self.floats[start:stop].to(device, non_blocking=True)
        return self._split_up(self.integers[start:stop].to(device, non_blocking=True), floats)

    def _split_up(self, integers: Tensor, floats: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        columns = _columns(integers, self.layout)
        if floats is not None:
            columns.update(_columns(floats, self.float_layout))
        return columns, integers[:, : 0 if self.history_len is None else self.history_len + 1]

    def to(self, device: torch.device) -> "Split":
        """The same split on another device."""
        floats = self.floats.to(device) if self.floats is not None else None
        return Split(self.integers.to(device), floats, self.layout, self.float_layout, self.history_len)

    def pin(self) -> "Split":
        """The same split in page-locked memory, from which a GPU copies while it computes."""
        floats = self.floats.pin_memory() if self.floats is not None else None
        return Split(self.integers.pin_memory(), floats, self.layout, self.float_layout, self.history_len)


def in_memory(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """A matrix in main memory."""
    return np.empty(shape, dtype=dtype)


def in_a_file(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """A matrix in an unnamed file of the temporary folder, freed with the process."""
    with _unnamed_file() as opened:
        return np.memmap(opened, dtype=dtype, mode="w+", shape=shape)


def _unnamed_file() -> IO:
    return tempfile.TemporaryFile(prefix="mm-fibinet-")


def read_once_a_machine(read: Callable[[Allocate], Split], allocate: Allocate) -> Split:
    """A split that the first process of a machine reads and checks, and its others see in the same memory.

    A rank needs all rows of a split: its share of a shuffled batch is of any of them. So what can be saved is not rows
    but copies, and the time in which each process would make its own.

    Args:
        read: makes the split of matrices from an `Allocate`; called once a machine, on Linux.
        allocate: `in_memory` or `in_a_file`: of what kind the shared memory is, and where each process keeps a split of
            its own, alone or on a system where none can open another's memory.

    Raises:
        UserError: of `read`, on all ranks.
    """
    if distributed.current().size == 1 or not hasattr(os, "memfd_create") or not Path("/proc/self/fd").exists():
        return read(allocate)
    own: list[Split] = []
    paths: list[str] = []
    with contextlib.ExitStack() as files:

        def shareable(shape: tuple[int, int], dtype: type) -> np.ndarray:
            file = _unnamed_file() if allocate is in_a_file else os.fdopen(os.memfd_create("mm-fibinet"), "r+b")
            paths.append(f"/proc/{os.getpid()}/fd/{files.enter_context(file).fileno()}")
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

        def describe() -> tuple:
            split = read(shareable)
            own.append(split)
            shapes = [tuple(values.shape) for values in (split.integers, split.floats) if values is not None]
            return list(zip(paths, shapes, strict=True)), (split.layout, split.float_layout, split.history_len)

        places, layouts = distributed.once_a_machine(describe)
        if not own:
            try:
                own.append(_mapped(places, layouts))
            except OSError:  # a container may keep its processes apart
                own.append(read(allocate))
        distributed.barrier()  # until all have opened the files, which have no name to be opened by later
    return own[0]


def _mapped(places: list[tuple[str, tuple[int, int]]], layouts: tuple) -> Split:
    """The split whose matrices, integers and then floats, another process has at these paths."""
    types = zip(places, (np.int32, np.float32), strict=False)
    matrices = [torch.from_numpy(np.memmap(path, dtype, "r+", shape=shape)) for (path, shape), dtype in types]
    return Split(*(matrices if len(matrices) == 2 else [*matrices, None]), *layouts)


def read_split(
    path: str | Path,
    features: dict[str, dict],
    labels: list[str],
    num_items: int | None,
    max_len: int,
    group: str | None = None,
    allocate: Allocate = in_memory,
) -> Split:
    """Read and check one split.

    Args:
        path: a parquet file or folder of the contract.
        features: FuxiCTR feature specs by name; the item-side ones are not read here.
        labels: label columns, 0 or 1; empty for a test split.
        num_items: rows of the item table; history and target ids must be below it. None for data without either.
        max_len: the last max_len positions of the history are kept.
        group: the group id of gAUC. Ids beyond int32 become 0, 1, 2, ... in their order: they tell rows apart, no more.
        allocate: where the matrices are kept.

    Raises:
        UserError: names the file, the column and the row of the first value that breaks the contract.
    """
    num_rows = open_parquet(path).num_rows
    columns = schema.split_columns(features, labels, num_items, group, flat=num_items is None)
    numbers = [column.name for column in columns if schema.is_number(column)]
    integers = [column.name for column in columns if column.name not in numbers]
    wide = [column.name for column in columns if column.role == "group"]  # may hold more than int32 does
    groups = {name: np.empty(num_rows, dtype=np.int64) for name in wide}
    slices = _with_short_history(schema.checked_slices(path, columns), max_len)
    head = next(slices)  # a file without rows has been refused
    split, layout = _empty_split(num_rows, head[1], integers, numbers, group, allocate)
    for first, blocks in chain([head], slices):
        for name, values in groups.items():
            values[first : first + len(blocks[name])] = blocks[name]
        _fill(split.integers, blocks, layout, first)
        if split.floats is not None:
            _fill(split.floats, blocks, split.float_layout, first)
    for name, values in groups.items():
        split.integers.numpy()[:, layout[name][0]] = _codes(values)
    return split


def _with_short_history(
    slices: Iterable[tuple[int, dict[str, np.ndarray]]], max_len: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The slices with the last max_len positions of the history."""
    for first, blocks in slices:
        if schema.ITEM_SEQ in blocks:
            history = blocks[schema.ITEM_SEQ]
            blocks = {**blocks, schema.ITEM_SEQ: history[:, max(history.shape[1] - max_len, 0) :]}
        yield first, blocks


def _codes(groups: np.ndarray) -> np.ndarray:
    """The ids themselves where int32 holds them, else their ranks: int64 [N] to integers of the same equalities."""
    if groups.min() >= 0 and groups.max() < 2**31:
        return groups
    return np.unique(groups, return_inverse=True)[1]


def _empty_split(
    rows: int,
    blocks: dict[str, np.ndarray],
    integers: list[str],
    numbers: list[str],
    group: str | None,
    allocate: Allocate,
) -> tuple[Split, Layout]:
    """A split whose matrices fit these columns, not yet filled, and the layout of all its integers."""
    whole, width = _layout({name: blocks[name] for name in integers})
    float_layout, float_width = _layout({name: blocks[name] for name in numbers})
    matrix = torch.from_numpy(allocate((rows, width), np.int32))
    floats = torch.from_numpy(allocate((rows, float_width), np.float32)) if float_width else None
    history_len = blocks[schema.ITEM_SEQ].shape[1] if schema.ITEM_SEQ in blocks else None
    items = {schema.ITEM_SEQ, schema.ITEM_ID} - {group} if history_len is not None else set()
    layout = {name: place for name, place in whole.items() if name not in items}
    return Split(matrix, floats, layout, float_layout, history_len), whole


def _layout(blocks: dict[str, np.ndarray]) -> tuple[Layout, int]:
    """The columns' places in the matrix, and the matrix's width."""
    layout, first = {}, 0
    for name, block in blocks.items():
        width = block.shape[1] if block.ndim == 2 else 1
        layout[name] = (first, width, block.ndim == 2)
        first += width
    return layout, first


def _fill(target: Tensor, blocks: dict[str, np.ndarray], layout: Layout, first: int) -> None:
    for name, (start, width, _) in layout.items():
        block = blocks[name]
        target.numpy()[first : first + len(block), start : start + width] = block.reshape(len(block), width)


def _gather(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of a matrix on a device; to another one through page-locked memory, so that the copy is not waited for."""
    if values.device == device:
        return take_rows(values, rows)
    here = torch.empty(len(rows), values.shape[1], dtype=values.dtype, pin_memory=device.type == "cuda")
    return take_rows(values, rows, out=here).to(device, non_blocking=True)


def _columns(values: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Views of the matrix's columns."""
    return {
        name: values[:, first : first + width] if is_list else values[:, first]
        for name, (first, width, is_list) in layout.items()
    }

"""A split as tensors: one int32 matrix [N, L + 1 + C] (history, target item, then the other integer columns).

Rows become tensors once; a batch is then a gather of rows of that matrix, and of a float matrix where numbers are
features of the row. Where histories are in user_info the matrix is [N, 2 + C] or [N, 3 + C]: a row has the target, its
user and perhaps where its history ends, and a batch gathers the histories from the users'. Where the matrices live, and
in which order rows come, is the loader's.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm_fibinet import schema, user_info
from mm_fibinet.gather import take_rows_for
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.storage import Allocate, Stored, in_memory
from mm_fibinet.user_info import Users
from mm_fibinet.user_table import UserTable

Layout = dict[str, tuple[int, int, bool]]  # {column: (first, width, is_list)}
Batch = tuple[dict[str, Tensor], Tensor]  # ({column: [B] or [B, W]}, item_index int32 [B, L + 1])


class Split(Stored):
    """One split as tensors.

    Attributes:
        integers: int32 [N, L + 1 + C]; the history and the target first, then columns as `layout` says.
        floats: float32 [N, F], or None when no column needs it.
        layout: {column: (first, width, is_list)} within `integers`.
        float_layout: the same for `floats`.
        item_columns: how many of the first columns of `integers` are item ids, the history and then the target: L + 1;
            0 where a row has neither.
    """

    def __init__(
        self, integers: Tensor, floats: Tensor | None, layout: Layout, float_layout: Layout, item_columns: int
    ):
        self.integers = integers
        self.floats = floats
        self.layout = layout
        self.float_layout = float_layout
        self.item_columns = item_columns

    def __len__(self) -> int:
        return len(self.integers)

    def tensors(self) -> dict[str, Tensor]:
        """The matrices."""
        return {"integers": self.integers, **({} if self.floats is None else {"floats": self.floats})}

    def holding(self, tensors: dict[str, Tensor]) -> "Split":
        """The same split in other matrices."""
        return Split(tensors["integers"], tensors.get("floats"), self.layout, self.float_layout, self.item_columns)

    def column(self, name: str) -> Tensor:
        """One column over all rows, [N] or [N, W]."""
        return _columns(self.integers, self.layout)[name]

    def gather(self, rows: Tensor, device: torch.device) -> Batch:
        """The rows' columns and items.

        Args:
            rows: int64 [B], on the device of `integers`.
            device: where the batch shall be.
        """
        floats = None if self.floats is None else take_rows_for(self.floats, rows, device)
        return self._batch(take_rows_for(self.integers, rows, device), floats, device)

    def slice(self, start: int, stop: int, device: torch.device) -> Batch:
        """`gather` of rows start .. stop - 1, without a copy of what is there already."""
        floats = None if self.floats is None else self.floats[start:stop]
        return self._batch(self.integers[start:stop], floats, device)

    def _batch(self, integers: Tensor, floats: Tensor | None, device: torch.device) -> Batch:
        """The batch, on its device, of rows that are where the split is."""
        there = integers.to(device, non_blocking=True)
        columns = _columns(there, self.layout)
        if floats is not None:
            columns.update(_columns(floats.to(device, non_blocking=True), self.float_layout))
        return self._with_items(columns, integers, there)

    def _with_items(self, columns: dict[str, Tensor], here: Tensor, there: Tensor) -> Batch:
        """The batch of its columns, and of its integers where the split is and where the batch shall be."""
        return columns, there[:, : self.item_columns]


class PointingSplit(Split):
    """A split whose rows say whose history is theirs, and how much of it.

    Args:
        rows: its integers begin with the target, the user and, with `has_ends`, the end of the history.
        users: on the device of the split, or of its batches.
        history_len: L, positions of a history.
        has_ends: the rows say how many of the user's items came before them; else all did.
    """

    def __init__(self, rows: Split, users: UserTable, history_len: int, has_ends: bool):
        super().__init__(rows.integers, rows.floats, rows.layout, rows.float_layout, rows.item_columns)
        self.users = users
        self.history_len = history_len
        self.has_ends = has_ends

    def holding(self, tensors: dict[str, Tensor]) -> "PointingSplit":
        """The same split in other matrices."""
        return PointingSplit(super().holding(tensors), self.users, self.history_len, self.has_ends)

    def _with_items(self, columns: dict[str, Tensor], here: Tensor, there: Tensor) -> Batch:
        pointers = there if self.users.device == there.device else here
        user, end = pointers[:, 1], pointers[:, 2] if self.has_ends else None
        columns.update(self.users.rows(user, there.device))
        return columns, self.users.item_index(pointers[:, 0], user, end, self.history_len, there.device)


def read_split(
    path: str | Path,
    features: dict[str, dict],
    labels: list[str],
    num_items: int | None,
    max_len: int,
    group: str | None = None,
    allocate: Allocate = in_memory,
    users: Users | None = None,
) -> Split:
    """Read and check one split.

    Args:
        path: a parquet file or folder of the contract.
        features: FuxiCTR feature specs by name; the items' and the users' are not read here.
        labels: label columns, 0 or 1; empty for a test split.
        num_items: rows of the item table; history and target ids must be below it. None for data without either.
        max_len: the last max_len positions of the history are kept.
        group: the group id of gAUC. Ids beyond int32 become 0, 1, 2, ... in their order: they tell rows apart, no more.
        allocate: where the matrices are kept.
        users: who the rows point at, where the histories are in user_info.

    Raises:
        UserError: names the file, the column and the row of the first value that breaks the contract.
    """
    num_rows = open_parquet(path).num_rows
    if users:
        columns = user_info.row_columns(path, features, labels, num_items, group, users)
        slices = user_info.checked_rows(path, columns, users)
    else:
        columns = schema.split_columns(features, labels, num_items, group, flat=num_items is None)
        slices = _with_short_history(schema.checked_slices(path, columns), max_len)
    numbers = [column.name for column in columns if schema.is_number(column)]
    wide = [column.name for column in columns if column.role == "group"]  # may hold more than int32 does
    groups = {name: np.empty(num_rows, dtype=np.int64) for name in wide}
    head = next(slices)  # a file without rows has been refused
    integers = {column.name: head[1][column.name] for column in columns if column.name not in numbers}
    whole, width = _layout(integers)
    float_layout, float_width = _layout({name: head[1][name] for name in numbers})
    matrix = torch.from_numpy(allocate((num_rows, width), np.int32))
    floats = torch.from_numpy(allocate((num_rows, float_width), np.float32)) if float_width else None
    for first, blocks in chain([head], slices):
        for name, values in groups.items():
            values[first : first + len(blocks[name])] = blocks[name]
        _fill(matrix, blocks, whole, first)
        if floats is not None:
            _fill(floats, blocks, float_layout, first)
    for name, values in groups.items():
        matrix.numpy()[:, whole[name][0]] = _codes(values)
    hidden = {column.name for column in columns if column.role in schema.NOT_IN_BATCHES and not column.spec} - {group}
    layout = {name: place for name, place in whole.items() if name not in hidden}
    item_columns = sum(width for name, (_, width, _) in whole.items() if name in (schema.ITEM_SEQ, schema.ITEM_ID))
    return Split(matrix, floats, layout, float_layout, item_columns if num_items is not None else 0)


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


def _columns(values: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Views of the matrix's columns."""
    return {
        name: values[:, first : first + width] if is_list else values[:, first]
        for name, (first, width, is_list) in layout.items()
    }

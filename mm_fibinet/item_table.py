"""item_info.parquet as tensors indexed by item_id, on the device.

The table is the reason why a batch can be two small index tensors: whatever a model needs to know of an item is one
row here, read once and kept where the model runs. 91,718 items with a 128-d embedding take 49 MB. Embeddings that the
file has as int8 stay that for the models of this project, a quarter of float32: 35 million items take 4.5 GB. What is
compared needs no scale; what is a feature gets it when rows are taken.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mm_fibinet import distributed, schema
from mm_fibinet.errors import UserError
from mm_fibinet.gather import flat_index, take_rows
from mm_fibinet.parquet_reader import exists, open_parquet
from mm_fibinet.schema import LEVELS
from mm_fibinet.storage import Allocate, Stored, choose_storage, in_memory, read_stored


class ItemTable(Stored):
    """The items' columns, row = item_id; row 0 is the padding item.

    Attributes:
        columns: {name: int32 [N] or [N, W], or float32 [N] or [N, W], or int8 [N, W] of an embedding}.
        scales: {name: what the numbers of a column of int8 are times}; those that are only compared have none.
        num_items: N, the padding item counted.
    """

    def __init__(self, columns: dict[str, Tensor], scales: dict[str, float] | None = None):
        self.columns = columns
        self.scales = scales or {}
        self.num_items = len(next(iter(columns.values())))

    def __getitem__(self, column: str) -> Tensor:
        return self._scaled(column, self.columns[column])

    def tensors(self) -> dict[str, Tensor]:
        """The columns, as they are kept."""
        return self.columns

    def holding(self, tensors: dict[str, Tensor]) -> "ItemTable":
        """The same items in other tensors."""
        return ItemTable(tensors, self.scales)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The items' rows, as the challenge's `item_dict`.

        Args:
            index: integers of any shape, M values.

        Returns:
            {column: [M, ...]}, one row per index, in order.
        """
        flat = flat_index(index)
        return {name: self._scaled(name, take_rows(values, flat)) for name, values in self.columns.items()}

    def all_rows(self) -> dict[str, Tensor]:
        """{column: [N, ...]}, as `rows` has them."""
        return {name: self[name] for name in self.columns}

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        return values.float() * self.scales[name] if name in self.scales else values


def item_side_features(features: dict[str, dict], history_levels: bool = False) -> dict[str, dict]:
    """The feature specs an item table is read by: those of source `item`, and the levels when items carry them.

    Args:
        features: FuxiCTR feature specs by name.
        history_levels: the history's items carry their levels, by the specs of the row's own.

    Raises:
        UserError: history_levels is asked for, and no feature is a level.
    """
    specs = {name: spec for name, spec in features.items() if spec.get("source") == "item"}
    if history_levels:
        levels = [name for name in LEVELS if name in features and features[name]["type"] != "meta"]
        if not levels:
            raise UserError(
                f"history_levels is True, but neither {LEVELS[0]} nor {LEVELS[1]} is among the features "
                f"{', '.join(features)}; add them to feature_cols, or set history_levels: False"
            )
        specs.update({name: {**features[name], "source": "item"} for name in levels})
    return specs


def load_item_table(
    path: str | Path,
    features: dict[str, dict],
    level_file: str | Path | None = None,
    noted: schema.Noted = nullcontext,
    allocate: Allocate = in_memory,
) -> ItemTable:
    """Read the item-side features of a feature map, slice by slice.

    Args:
        path: item_info.parquet.
        features: FuxiCTR feature specs by name; those with source `item` are read, each checked against its spec. An
            embedding of int8 stays int8 where it is `compared_only`, or where its spec has a `scale` and says
            `keep_int8`.
        level_file: item_feature.parquet, read for a feature that item_info lacks (the levels of the history's items).
        noted: what a fault is handed to; by default it is raised.
        allocate: where the columns are kept.

    Raises:
        UserError: a column is missing, an id is out of its vocabulary, an embedding has another width.
    """
    opened = open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID])
    own = {
        name: spec
        for name, spec in features.items()
        if spec.get("source") == "item" and name != schema.ITEM_ID and spec["type"] != "meta"
    }
    present = opened.schema_arrow.names
    joined = {}
    for name, spec in own.items():
        with noted():
            if name not in present and level_file is not None and _has_column(level_file, name, spec):
                joined[name] = spec
            elif name not in present:
                raise _missing(path, name, spec, present)
    size = opened.num_rows
    found: dict[str, np.ndarray] = {schema.ITEM_ID: allocate((size,), np.int32)}
    found[schema.ITEM_ID][:] = np.arange(size)
    read = {name: spec for name, spec in own.items() if name in present}
    for first, arrays in schema.item_slices(path, list(read), noted):
        for name, spec in read.items():
            with noted():
                values = _values(arrays[name], path, name, spec, first, found.get(name))
                _fill(found, name, values, first, size, allocate)
    if joined and level_file is not None:
        with noted():
            for name, values in schema.read_item_feature(level_file, joined, size, noted).items():
                _fill(found, name, _widened(values), 0, size, allocate)
    vocabulary = features.get(schema.ITEM_ID, {}).get("vocab_size", size)
    with noted():
        if vocabulary != size:
            raise UserError(f"{path}: has {size} items, the dataset config says vocab_size {vocabulary} for item_id")
    scales = {
        name: own[name]["scale"]
        for name, values in found.items()
        if values.dtype == np.int8 and not own[name].get("compared_only")
    }
    return ItemTable({name: torch.from_numpy(values) for name, values in found.items()}, scales)


def shared_item_table(
    path: str | Path, features: dict[str, dict], level_file: str | Path | None, device: torch.device
) -> ItemTable:
    """`load_item_table` on a device, or in memory or a file where it does not fit; a machine's ranks read it once.

    All ranks call this at the same time.
    """
    own = [spec for spec in features.values() if spec.get("source") == "item"]
    numbers = sum(spec.get("max_len") or spec.get("pretrain_dim") or 1 for spec in own)
    needed = 4 * open_parquet(path).num_rows * numbers  # int8 takes less
    storage = "device" if device.type == "cuda" else choose_storage(needed, device)
    read = partial(load_item_table, path, features, level_file)
    return read_stored(lambda allocate: read(allocate=allocate), storage, device, distributed.current().size > 1)


def _values(
    array: pa.Array, path: str | Path, name: str, spec: dict, first_row: int, before: np.ndarray | None
) -> np.ndarray:
    """Some rows of a column of item_info, checked: int8 where that is kept, int32, or float32.

    Numbers and categories are 0 for the padding item, whatever the file says of it: models pool what is not 0.

    Args:
        before: the rows before them, whose width and number type they must have.
    """
    width = before.shape[1] if before is not None and before.ndim == 2 else None
    is_int8 = spec["type"] == "embedding" and getattr(array.type, "value_type", None) == pa.int8()
    keeps = is_int8 and bool(spec.get("compared_only") or ("scale" in spec and spec.get("keep_int8")))
    if before is not None and keeps != (before.dtype == np.int8):
        raise UserError(f"{path}: column {name} is int8 in some of the part files alone; write it alike in all of them")
    if keeps:
        return schema.embedding_matrix(array, path, name, spec, first_row, width)
    values = _widened(schema.read_feature(array, path, name, spec, first_row, width))
    if values.ndim == 1 and not first_row:
        values[0] = 0
    return values


def _widened(values: np.ndarray) -> np.ndarray:
    """Integers as int32, numbers as float32."""
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)


def _fill(
    found: dict[str, np.ndarray], name: str, values: np.ndarray, first: int, size: int, allocate: Allocate
) -> None:
    """Put some rows of a column in their place."""
    if name not in found:
        found[name] = allocate((size, *values.shape[1:]), values.dtype.type)
    found[name][first : first + len(values)] = values


def _has_column(level_file: str | Path, name: str, spec: dict) -> bool:
    """Whether item_feature has a column; a `UserError` when it is named, absent, and needed for no embedding."""
    if spec["type"] == "embedding" and not exists(level_file):
        return False
    return name in open_parquet(level_file).schema_arrow.names


def _missing(path: str | Path, name: str, spec: dict, present: list[str]) -> UserError:
    if spec["type"] == "embedding":
        return UserError(
            f"{path}: column {name} is missing; build it with build_item_emb.py, or drop it with use_features"
        )
    hint = "; name the file that has the items' levels as item_feature" if name in LEVELS else ""
    return UserError(f"{path}: column {name} is missing, found {', '.join(present)}{hint}")

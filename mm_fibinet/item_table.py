"""item_info.parquet as tensors indexed by item_id, on the device.

The table is the reason why a batch can be two small index tensors: whatever a model needs to know of an item is one
row here, read once and kept where the model runs. 91,718 items with a 128-d embedding take 49 MB.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.gather import flat_index, take_rows
from mm_fibinet.parquet_reader import exists, open_parquet, whole_column
from mm_fibinet.schema import LEVELS


class ItemTable:
    """The items' columns, row = item_id; row 0 is the padding item.

    Attributes:
        columns: {name: int32 [N] or [N, W], or float32 [N] or [N, W], or int8 [N, W] of what is only compared}.
        num_items: N, the padding item counted.
    """

    def __init__(self, columns: dict[str, Tensor]):
        self.columns = columns
        self.num_items = len(next(iter(columns.values())))

    def __getitem__(self, column: str) -> Tensor:
        return self.columns[column]

    def to(self, device: torch.device | str) -> "ItemTable":
        """The same table on another device."""
        return ItemTable({name: values.to(device) for name, values in self.columns.items()})

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The items' rows, as the challenge's `item_dict`.

        Args:
            index: integers of any shape, M values.

        Returns:
            {column: [M, ...]}, one row per index, in order.
        """
        flat = flat_index(index)
        return {name: take_rows(values, flat) for name, values in self.columns.items()}


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
) -> ItemTable:
    """Read the item-side features of a feature map.

    Args:
        path: item_info.parquet.
        features: FuxiCTR feature specs by name; those with source `item` are read, each checked against its spec. An
            embedding of int8 that is `compared_only` stays int8: a cosine needs no scale.
        level_file: item_feature.parquet, read for a feature that item_info lacks (the levels of the history's items).
        noted: what a fault is handed to; by default it is raised.

    Raises:
        UserError: a column is missing, an id is out of its vocabulary, an embedding has another width.
    """
    table = schema.read_item_info(path, noted)
    own = {
        name: spec
        for name, spec in features.items()
        if spec.get("source") == "item" and name != schema.ITEM_ID and spec["type"] != "meta"
    }
    columns: dict[str, Tensor] = {schema.ITEM_ID: torch.arange(table.num_rows, dtype=torch.int32)}
    joined = {}
    for name, spec in own.items():
        with noted():
            if name in table.column_names:
                columns[name] = _column(whole_column(table, name), path, name, spec)
            elif level_file is not None and _has_column(level_file, name, spec):
                joined[name] = spec
            else:
                raise _missing(path, name, spec, table.column_names)
    if joined and level_file is not None:
        with noted():
            found = schema.read_item_feature(level_file, joined, table.num_rows, noted)
            columns.update({name: _tensor(values) for name, values in found.items()})
    size = features.get(schema.ITEM_ID, {}).get("vocab_size", table.num_rows)
    with noted():
        if size != table.num_rows:
            raise UserError(
                f"{path}: has {table.num_rows} items, the dataset config says vocab_size {size} for item_id"
            )
    return ItemTable(columns)


def _column(array: pa.Array, path: str | Path, name: str, spec: dict) -> Tensor:
    """One column of item_info as a tensor, checked against its feature spec; numbers are zero for the padding item."""
    if spec.get("compared_only") and spec["type"] == "embedding" and pa.types.is_int8(array.type.value_type):
        return torch.from_numpy(schema.embedding_matrix(array, path, name, spec).copy())
    values = schema.read_feature(array, path, name, spec)
    if spec["type"] == "numeric":
        values[0] = 0
    return _tensor(values)


def _tensor(values: np.ndarray) -> Tensor:
    """Integers as int32, numbers as float32; float arrays that Arrow lends are read-only and copied."""
    kind = np.float32 if values.dtype.kind == "f" else np.int32
    return torch.from_numpy(values.astype(kind, copy=values.dtype != kind or not values.flags.writeable))


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

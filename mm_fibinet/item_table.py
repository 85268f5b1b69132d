"""item_info.parquet as tensors indexed by item_id, on the device.

The table is the reason why a batch can be two small index tensors: whatever a model needs to know of an item is one
row here, read once and kept where the model runs. 91,718 items with a 128-d embedding take 49 MB.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mm_fibinet import schema
from mm_fibinet.errors import UserError

LEVELS = ("likes_level", "views_level")


class ItemTable:
    """The items' columns, row = item_id; row 0 is the padding item.

    Attributes:
        columns: {name: int32 [N] or [N, W], or float32 [N, W]}.
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
        flat = index.reshape(-1)
        return {name: values.index_select(0, flat) for name, values in self.columns.items()}


def item_side_features(features: dict[str, dict], history_levels: bool = False) -> dict[str, dict]:
    """The feature specs an item table is read by: those of source `item`, and the levels when items carry them."""
    specs = {name: spec for name, spec in features.items() if spec.get("source") == "item"}
    if history_levels:
        specs.update({name: {**features[name], "source": "item"} for name in LEVELS if name in features})
    return specs


def load_item_table(path: str | Path, features: dict[str, dict], level_file: str | Path | None = None) -> ItemTable:
    """Read the item-side features of a feature map.

    Args:
        path: item_info.parquet.
        features: FuxiCTR feature specs by name; those with source `item` are read, each checked against its spec.
        level_file: item_feature.parquet, read for a feature that item_info lacks (the levels of the history's items).

    Raises:
        UserError: a column is missing, an id is out of its vocabulary, an embedding has another width.
    """
    table = schema.read_item_info(path)
    columns: dict[str, Tensor] = {schema.ITEM_ID: torch.arange(table.num_rows, dtype=torch.int32)}
    for name, spec in features.items():
        if spec.get("source") != "item" or name == schema.ITEM_ID or spec["type"] == "meta":
            continue
        if name in table.column_names:
            columns[name] = _column(schema.whole_column(table, name), path, name, spec)
        elif level_file is not None:
            columns[name] = _joined_column(level_file, name, spec, table.num_rows)
        elif spec["type"] == "embedding":
            raise UserError(
                f"{path}: column {name} is missing; build it with build_item_emb.py, or drop it with use_features"
            )
        else:
            raise UserError(f"{path}: column {name} is missing, found {', '.join(table.column_names)}")
    size = features.get(schema.ITEM_ID, {}).get("vocab_size", table.num_rows)
    if size != table.num_rows:
        raise UserError(f"{path}: has {table.num_rows} items, the dataset config says vocab_size {size} for item_id")
    return ItemTable(columns)


def embedding_width(path: str | Path, column: str) -> int:
    """The length of the lists of an embedding column, from its first row."""
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [column])
    first = next(opened.iter_batches(batch_size=1, columns=[column])).column(0)
    return schema.matrix(first, path, column, integer=False).shape[1]


def _column(array: pa.Array, path: str | Path, name: str, spec: dict) -> Tensor:
    """One column as a tensor, checked against its feature spec."""
    if spec["type"] == "embedding":
        values = schema.matrix(array, path, name, width=spec["pretrain_dim"], integer=False)
        return torch.from_numpy(values.astype(np.float32))
    if spec["type"] == "sequence":
        values = schema.matrix(array, path, name, width=spec["max_len"])
    elif spec["type"] == "numeric":
        values = schema.scalars(array, path, name, integer=False)
        schema.require_finite(values, path, name)
        return torch.from_numpy(values.astype(np.float32))
    else:
        values = schema.scalars(array, path, name)
    schema.require_range(values, path, name, spec["vocab_size"])
    return torch.from_numpy(values.astype(np.int32))


def _joined_column(path: str | Path, name: str, spec: dict, num_items: int) -> Tensor:
    """A column of item_feature.parquet (item_id 1.., any order) as a tensor indexed by item_id, 0 where absent."""
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID, name])
    table = pq.read_table(path, columns=[schema.ITEM_ID, name])
    ids = schema.scalars(schema.whole_column(table, schema.ITEM_ID), path, schema.ITEM_ID)
    schema.require_range(ids, path, schema.ITEM_ID, num_items, what="items in item_info")
    values = _column(schema.whole_column(table, name), path, name, spec)
    joined = torch.zeros((num_items, *values.shape[1:]), dtype=values.dtype)
    joined[torch.tensor(ids)] = values
    return joined

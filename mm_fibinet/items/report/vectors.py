"""The embedding columns of item_info.parquet as arrays, one at a time where that is enough."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import is_list, whole_column


def embedding_columns(table: pa.Table, item_info: str | Path, wanted: list[str] | None = None) -> list[str]:
    """The names of the columns that are lists of floats.

    Args:
        table: of `schema.read_item_info`.
        item_info: its file, for messages.
        wanted: names to choose; None for all.

    Raises:
        UserError: there is none, or not one of these.
    """
    found = [
        field.name
        for field in table.schema
        if is_list(field.type) and pa.types.is_floating(field.type.value_type) and len(table[field.name][0])
    ]
    if not found:
        raise UserError(
            f"{item_info}: has no embedding column, found {', '.join(table.column_names)}; make one (embed)"
        )
    for name in wanted or ():
        if name not in found:
            raise UserError(f"{item_info}: has no embedding column {name}, expected some of {', '.join(found)}")
    return list(dict.fromkeys(wanted)) if wanted else found


def read_vectors(table: pa.Table, item_info: str | Path, column: str) -> np.ndarray:
    """A column's vectors: float32 [items, D], row 0 the padding item."""
    spec = {"type": "embedding", "pretrain_dim": len(table[column][0])}
    return schema.read_feature(whole_column(table, column), item_info, column, spec)

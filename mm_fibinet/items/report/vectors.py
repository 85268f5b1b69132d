"""The embedding columns of item_info.parquet as arrays, one at a time where that is enough."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import is_list, whole_column


def embedding_columns(table: pa.Table, item_info: str | Path, wanted: list[str] | None = None) -> list[str]:
    """The names of the columns that are embeddings: lists of floats, and of int8 where they are named.

    Short lists of ids, of tags say, may be stored as int8 as well, so that type alone makes no embedding of a column.

    Args:
        table: of `schema.read_item_info`.
        item_info: its file, for messages.
        wanted: names to choose; None for all of floats.

    Raises:
        UserError: there is none, or not one of these.
    """
    lists = {field.name: field.type.value_type for field in table.schema if is_list(field.type)}
    lists = {name: inner for name, inner in lists.items() if len(table[name][0])}
    found = [name for name, inner in lists.items() if pa.types.is_floating(inner)]
    small = [name for name, inner in lists.items() if inner == pa.int8()]
    if not found and not wanted:
        hint = f", or name one of int8 ({', '.join(small)}) with --columns" if small else ""
        raise UserError(
            f"{item_info}: has no embedding column, found {', '.join(table.column_names)}; make one (embed){hint}"
        )
    for name in wanted or ():
        if name not in [*found, *small]:
            some = ", ".join([*found, *small]) or "none"
            raise UserError(f"{item_info}: has no embedding column {name}, expected some of {some}")
    return list(dict.fromkeys(wanted)) if wanted else found


def read_vectors(table: pa.Table, item_info: str | Path, column: str) -> np.ndarray:
    """A column's vectors: float32 [items, D], row 0 the padding item."""
    spec = {"type": "embedding", "pretrain_dim": len(table[column][0])}
    return schema.read_feature(whole_column(table, column), item_info, column, spec)

"""Columns put into the table of item_info, in the place of those of their names."""

import numpy as np
import pyarrow as pa


def add_embedding(table: pa.Table, column: str, embedding: np.ndarray) -> pa.Table:
    """The table with an embedding column replaced in its place, or appended.

    Args:
        table: item_info, rows 0 .. num_items.
        column: its name.
        embedding: float32 [num_items, emb_dim]; row 0 of the column becomes zeros.
    """
    emb_dim = embedding.shape[1]
    values = np.vstack([np.zeros((1, emb_dim), dtype=np.float32), embedding])
    return put_column(table, column, pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), emb_dim))


def put_column(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """The table with a column replaced in its place, or appended."""
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, values)
    else:
        table = table.append_column(column, values)
    return table.replace_schema_metadata(None)  # pandas' notes would describe the column that was replaced

"""Splits of some of a split's rows, for studies that train on less or on other rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet import files
from mm_fibinet.parquet_reader import SLICE_ROWS, open_parquet


def num_rows(path: str | Path) -> int:
    """How many rows a split has."""
    return open_parquet(path).num_rows


def write_rows(source: str | Path, kept: np.ndarray, output: Path) -> Path:
    """Write some rows of a split, in their order, slice by slice; whole or not at all.

    Args:
        source: a parquet file or folder.
        kept: bool [N].
        output: the file; its folder is made.

    Returns:
        its path.
    """
    files.make_folder(output.parent)
    opened, first = open_parquet(source), 0
    with (
        files.atomic_path(output) as temporary,
        open(temporary, "wb") as target,
        pq.ParquetWriter(target, opened.schema_arrow) as writer,
    ):
        for batch in opened.iter_batches(opened.schema_arrow.names, SLICE_ROWS):
            rows = pa.Table.from_batches([batch]).filter(pa.array(kept[first : first + batch.num_rows]))
            writer.write_table(rows.select(opened.schema_arrow.names).cast(opened.schema_arrow))  # parts may differ
            first += batch.num_rows
    return output

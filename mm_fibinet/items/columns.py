"""Features that are there already, in a parquet column of one vector an item: `column:NAME`, no network is run.

The organisers' txt_emb_BERT, img_emb_CLIPRN50 and item_emb_d128_v3 are of this kind. The vectors go through the feature
store like those of a network, so that fusions read them from there, however many there are.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent, Entry, require_new_item
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.parquet_reader import RowError, is_list

ROWS_AT_ONCE = 4096


class Vectors:
    """A column's vectors; a `Source` whose contents are float32 bytes. A row of null or of zeros is a missing item.

    Zeros are how item_info has an item without a vector; taken for content they would lie far from the mean.

    Args:
        name: the column's.
        tables: parquet files with item_id, the likeliest first; None is passed over.
        num_items: the ids of item_info are 0 .. num_items.

    Attributes:
        dim: D.

    Raises:
        UserError: no table has the column, or it is none of lists of numbers, all of one length.
    """

    def __init__(self, name: str, tables: Iterable[str | Path | None], num_items: int):
        self.name = name
        self.num_items = num_items
        self.path = _find(name, [Path(table) for table in tables if table is not None])
        self.views: Mapping[str, Iterable[Entry]] = {name: self}
        lengths = (_lengths(arrays[name]) for _, arrays in schema.read_slices(self.path, [name], ROWS_AT_ONCE))
        self.dim = int(next((length[length > 0][0] for length in lengths if (length > 0).any()), 0))
        if not self.dim:
            raise UserError(f"{self.path}: column {name} has no vector in any row, expected lists of numbers")

    def __iter__(self) -> Iterator[Entry]:
        seen: set[int] = set()
        for first_row, arrays in schema.read_slices(self.path, [schema.ITEM_ID, self.name], ROWS_AT_ONCE):
            ids = schema.scalars(arrays[schema.ITEM_ID], self.path, schema.ITEM_ID, first_row)
            column = arrays[self.name]
            lengths = _lengths(column)
            wrong = (lengths >= 0) & (lengths != self.dim)
            if wrong.any():
                found = f"has {lengths[wrong.argmax()]} values"
                raise RowError(self.path, self.name, found, f"{self.dim}, as in the rows before", wrong, first_row)
            rows = np.flatnonzero(lengths >= 0)
            numbers = pc.fill_null(column.drop_null().flatten().cast(pa.float32(), safe=False), np.nan)
            vectors = numbers.to_numpy(zero_copy_only=False).reshape(len(rows), self.dim)
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                item_id = int(ids[row])
                if item_id == 0:  # the padding item
                    continue
                require_new_item(item_id, seen, self.num_items, self.path, first_row + row)
                seen.add(item_id)
                if not vector.any():
                    continue
                yield Entry(item_id, f"item {item_id}", partial(bytes, vector.tobytes()), vector.nbytes)

    def __length_hint__(self) -> int:
        return self.num_items

    def facts(self) -> dict[str, Any]:
        """See `Source`."""
        return {"column": self.name}

    def notes(self) -> list[str]:
        """See `Source`."""
        return [f"read {self.name} of {self.path.name}, {self.dim} numbers an item"]


class VectorEncoder(Encoder):
    """Takes vectors as they are.

    Args:
        vectors: where they come from.
        batch_size: of `Encoder`; nothing is computed.
    """

    def __init__(self, vectors: Vectors, batch_size: int):
        self.id = f"column {vectors.name} {vectors.dim}"
        self.dim = vectors.dim
        self.batch_size = batch_size

    def prepare(self, content: bytes) -> tuple[np.ndarray, int]:
        """float32 bytes -> float32 [D]; raises `BadContent` where it is not finite."""
        vector = np.frombuffer(content, dtype=np.float32)
        if not np.isfinite(vector).all():
            raise BadContent("corrupt", "holds NaN, infinity or a null")
        return vector, 0

    def encode(self, samples: list[np.ndarray]) -> np.ndarray:
        """float32 [n, D]."""
        return np.stack(samples)


def load_column(_: str, how: Loading) -> VectorEncoder:
    """The vectors of `column:NAME`, which the build has found."""
    if how.prompt is not None:
        raise UserError(f"{how.option}: these are vectors already, no prompt comes before them; drop --text_prompt")
    assert isinstance(how.source, Vectors)
    return VectorEncoder(how.source, how.batch_size)


def _find(name: str, tables: list[Path]) -> Path:
    """The first table that has the column."""
    columns = {}
    for path in tables:
        opened = schema.open_parquet(path)
        if name not in opened.schema_arrow.names:
            columns[path] = opened.schema_arrow.names
            continue
        kind = opened.schema_arrow.field(name).type
        if not is_list(kind) or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            raise UserError(f"{path}: column {name} has type {kind}, expected lists of numbers")
        return path
    found = "; ".join(f"{path} has {', '.join(names)}" for path, names in columns.items())
    raise UserError(f"column:{name}: there is no such column: {found or 'no table is given'}")


def _lengths(column: pa.Array) -> np.ndarray:
    """The lists' lengths, -1 for null: int64 [n]."""
    return pc.fill_null(pc.list_value_length(column).cast(pa.int64()), -1).to_numpy(zero_copy_only=False)

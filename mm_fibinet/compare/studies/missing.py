"""item_info as it would be if some items lacked a modality.

A column of one modality alone, txt_emb_d128 say, is zeros for an item that lacks it, as build_item_emb.py writes it. A
fused column, item_emb_d128, is not: it is made of what is there. So it loses the part that the modality's own columns
explain of it, a linear map that is fitted to all items by least squares; of the fusions by PCA that is nearly the whole
of it. An item that lacks all modalities has zeros in every vector. Ids, tags and levels stay.

Which items lack something is drawn once, and those that lack it at one share lack it at a larger one too.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet import files, schema
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import is_list, matrix, whole_column

BOTH = "both"  # all modalities at once
SEED = 2025


class ItemVectors:
    """The vectors of an item_info.

    Args:
        path: item_info.parquet.
        modalities: {name: how the columns of that modality alone begin}.

    Raises:
        UserError: it has no vectors.
    """

    def __init__(self, path: str | Path, modalities: dict[str, str]):
        self.table = schema.read_item_info(path)
        self.vectors = {
            name: matrix(whole_column(self.table, name), path, name, integer=False)
            for name in self.table.column_names
            if _is_vector(self.table.schema.field(name).type)
        }
        if not self.vectors:
            raise UserError(f"{path}: has no column of vectors, found {', '.join(self.table.column_names)}")
        self.own = {
            modality: [name for name in self.vectors if name.startswith(f"{prefix}_")]
            for modality, prefix in modalities.items()
        }

    @property
    def removable(self) -> list[str]:
        """What items may lack: a modality, where each has columns of its own, and all together."""
        return [*(self.own if all(self.own.values()) else ()), BOTH]

    @property
    def fused(self) -> list[str]:
        """The vectors that are no modality's own."""
        of_one = {name for names in self.own.values() for name in names}
        return [name for name in self.vectors if name not in of_one]

    def chosen(self, share: float) -> np.ndarray:
        """The items that lack something: bool [N], `share` of all but the padding item."""
        order = 1 + np.random.default_rng(SEED).permutation(len(self.table) - 1)
        chosen = np.zeros(len(self.table), dtype=bool)
        chosen[order[: round(share * len(order))]] = True
        return chosen

    def without(self, modality: str, share: float) -> pa.Table:
        """The table in which a share of the items lack a modality, or BOTH; columns, order and types as before."""
        rows, table = self.chosen(share), self.table
        gone = list(self.vectors) if modality == BOTH else self.own[modality]
        for name, values in self.vectors.items():
            if name in gone:
                changed = np.where(rows[:, None], 0, values)
            elif modality != BOTH and name in self.fused:
                changed = np.where(rows[:, None], values - self._part(modality, name), values)
            else:
                continue
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(at), _list_array(changed, table.schema.field(at).type))
        return table

    def explained(self) -> dict[str, float]:
        """{fused column: share of its variance that the modalities' own columns explain}; empty without such."""
        if self.removable == [BOTH]:
            return {}
        shares = {}
        for name in self.fused:
            rest = self._centred(name) - self._stacked @ self._coefficients[name]
            shares[name] = 1 - float((rest**2).sum() / max((self._centred(name) ** 2).sum(), np.finfo(float).tiny))
        return shares

    def _part(self, modality: str, name: str) -> np.ndarray:
        """What a modality's own columns explain of a fused one: float64 [N, D]; an item without the modality has 0."""
        columns, first = [], 0
        for owner, names in self.own.items():
            width = sum(self.vectors[own].shape[1] for own in names)
            if owner == modality:
                columns = list(range(first, first + width))
            first += width
        own = np.hstack([self.vectors[column] for column in self.own[modality]])
        return own @ self._coefficients[name][columns]

    @cached_property
    def _stacked(self) -> np.ndarray:
        """All modalities' own columns side by side, centred over the items: float64 [N - 1, P]."""
        return np.hstack([self._centred(name) for names in self.own.values() for name in names])

    @cached_property
    def _coefficients(self) -> dict[str, np.ndarray]:
        """{fused column: float64 [P, D]}, by least squares with a constant over all but the padding item."""
        return {name: np.linalg.lstsq(self._stacked, self._centred(name))[0] for name in self.fused}

    def _centred(self, name: str) -> np.ndarray:
        values = self.vectors[name][1:].astype(np.float64)
        return values - values.mean(axis=0)


def write_without(vectors: ItemVectors, modality: str, share: float, folder: Path) -> Path:
    """Write the item_info of `ItemVectors.without`, whole or not at all; returns its path."""
    path = files.make_folder(folder) / f"{modality}_{share}.parquet"
    with files.atomic_path(path) as temporary, open(temporary, "wb") as opened:
        pq.write_table(vectors.without(modality, share), opened)
    return path


def _is_vector(kind: pa.DataType) -> bool:
    """Whether a column has embeddings: lists of floats, or of int8 (`scale` of the feature makes numbers of these)."""
    return is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_int8(kind.value_type))


def _list_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A matrix [N, D] as lists of a type; whole numbers are rounded."""
    flat, width = values.reshape(-1), values.shape[1]
    if pa.types.is_integer(kind.value_type):
        flat = np.clip(np.rint(flat), -127, 127)
    inner = pa.array(flat.astype(kind.value_type.to_pandas_dtype()), type=kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(inner, type=kind)
    offsets = np.arange(len(values) + 1) * width
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), inner, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, type=kind)

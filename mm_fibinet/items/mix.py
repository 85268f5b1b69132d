"""Embeddings that there are already, as a weighted sum: the organisers' variants of item_emb_d128, say."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import is_number_list, open_parquet, whole_column

SPEC = {"type": "embedding"}  # as wide as it is


def parse_weights(given: list[str] | dict[str, float]) -> dict[str, float]:
    """The weights of `--mix COLUMN=WEIGHT ...`: {column: weight}.

    Raises:
        UserError: something else, a column twice, or a weight that is no number but 0.
    """
    pairs = list(given.items()) if isinstance(given, dict) else [text.partition("=")[::2] for text in given]
    weights: dict[str, float] = {}
    for name, text in pairs:
        try:
            weight = float(text)
        except (TypeError, ValueError):
            weight = np.nan
        if not name or not np.isfinite(weight) or not weight:
            raise UserError(
                f"--mix {name}={text}: expected COLUMN=WEIGHT with a number other than 0, item_emb_d128=0.4"
            )
        if name in weights:
            raise UserError(f"--mix: {name} is there twice, expected each column once")
        weights[name] = weight
    return weights


def mix_columns(
    weights: Mapping[str, float],
    emb_dim: int,
    table: pa.Table,
    item_info: str | Path,
    item_feature: str | Path | None,
) -> np.ndarray:
    """The weighted sum of embedding columns, as they are: float32 [n, emb_dim].

    Args:
        weights: by column, of item_info or else of item_feature.
        emb_dim: the numbers that they have.
        table: item_info's, with the padding item.
        item_info, item_feature: their files.

    Raises:
        UserError: a column is nowhere, is no embedding, or has another width than the others.
    """
    total = np.zeros((table.num_rows, emb_dim))
    for name, weight in weights.items():
        values = _column(name, table, item_info, item_feature)
        if values.shape != total.shape:
            raise UserError(
                f"--mix: {name} has {values.shape[1]} numbers an item, expected {emb_dim}; choose columns of one width "
                "and --emb_dim for it"
            )
        total += weight * values.astype(np.float64)
    return total[1:].astype(np.float32)


def _column(name: str, table: pa.Table, item_info: str | Path, item_feature: str | Path | None) -> np.ndarray:
    """float32 [n + 1, D], by item_id."""
    if name in table.column_names:
        return schema.read_feature(whole_column(table, name), item_info, name, SPEC)
    found = open_parquet(item_feature).schema_arrow if item_feature is not None else None
    if item_feature is not None and found is not None and name in found.names:
        return schema.read_item_feature(item_feature, {name: SPEC}, table.num_rows)[name]
    fields = [*table.schema, *(found or [])]
    there = ", ".join(
        field.name for field in fields if is_number_list(field.type) and pa.types.is_floating(field.type.value_type)
    )
    where = f"{item_info} nor {item_feature}" if item_feature is not None else f"{item_info}"
    raise UserError(f"--mix: no column {name} in {where}, found the embeddings {there or '(none)'}")

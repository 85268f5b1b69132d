"""An item embedding that there is already, as a file of lists by item, int8 with a scale say, as a matrix by item_id.

Numbers of int8 stay int8, a quarter of float32, and the data set's entry says what they are times; others are
multiplied out.
"""

from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import columns
from mm_fibinet.prepare.catalogue import KEY
from mm_fibinet.prepare.columns import Source
from mm_fibinet.prepare.reading import collect, scan
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import Vocabulary

VECTOR = "vector"


def read_embedding(recipe: Recipe, items: Vocabulary, scratch: Path) -> np.ndarray | None:
    """The embedding of a recipe; None where it names none.

    Args:
        recipe: with `embeddings`, a table, `embedding`, its column of lists, and `embedding_scale`.
        items: whose vectors are taken, the first one of each.
        scratch: a folder for intermediate files.

    Returns:
        float32 [items + 1, N], or int8 without the scale; zeros for the padding item and for items that the table
        lacks.

    Raises:
        UserError: the column holds no lists of N numbers, or the table has none of the items.
    """
    if recipe.embeddings is None or recipe.embedding is None:
        return None
    source = Source(recipe.embeddings, scan(recipe.embeddings, recipe.data_root, scratch))
    kind = source.type_of(recipe.embedding)
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else None
    if inner is None or not (inner.is_numeric() or inner == pl.String):  # JSON's whole numbers are texts yet
        raise source.refuse(recipe.embedding, "a list of numbers a row")
    key = recipe.item_key or recipe.item
    vector = pl.col(recipe.embedding)
    vector = vector.arr.to_list() if isinstance(kind, pl.Array) else vector
    rows = source.frame.select(columns.text(source, key).alias(KEY), vector.alias(VECTOR)).drop_nulls()
    known = items.names.alias(KEY).to_frame().lazy()
    wanted = rows.join(known, on=KEY, how="semi", maintain_order="left")
    found = collect(wanted, recipe.embeddings).unique(KEY, keep="first")
    if not len(found):
        raise UserError(f"{source.shown}: column {key} has none of the log's items; is it the same kind of id?")
    return _matrix(found, source, recipe, items)


def _matrix(found: pl.DataFrame, source: Source, recipe: Recipe, items: Vocabulary) -> np.ndarray:
    """Rows of KEY and VECTOR as a matrix."""
    lengths = found[VECTOR].list.len()
    width = int(lengths[0])
    if not width or (lengths != width).any():
        other = int(lengths.min() or 0), int(lengths.max() or 0)
        raise UserError(f"{source.shown}: column {recipe.embedding} has lists of {other[0]} to {other[1]} numbers")
    kind, scale = (pl.Float32, recipe.embedding_scale) if found[VECTOR].dtype.inner != pl.Int8 else (pl.Int8, 1)
    numbers = found[VECTOR].explode().cast(kind, strict=False)
    values = numbers.to_numpy().reshape(-1, width)
    if numbers.null_count() or not np.isfinite(values).all():
        raise UserError(f"{source.shown}: column {recipe.embedding} has null, NaN or infinity, expected numbers")
    matrix = np.zeros((len(items) + 1, width), dtype=values.dtype)
    matrix[items.ids(found[KEY])] = values * values.dtype.type(scale)
    return matrix

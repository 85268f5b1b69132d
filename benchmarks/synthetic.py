"""Data in the challenge's layout, of any size, straight from numpy: for measuring speed, not quality.

Ids are uniform, which is the worst case for us: real clicks repeat popular items, so a real batch has fewer distinct
ones. Histories have 5 .. max_len items with padding in front, tags are up to five with zeros in front.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuxictr.features import FeatureMap

from mm_fibinet.feature_map import build_feature_map

NUM_TAGS = 11_740
TAG_WIDTH = 5
NUM_LEVELS = 11
ROWS_PER_WRITE = 131_072
SHORTEST_HISTORY = 5


@dataclass(frozen=True)
class Sizes:
    """How large the data is; the defaults are the challenge's but for rows.

    Attributes:
        rows: of train.parquet.
        test_rows: of test.parquet.
        items: of item_info.parquet, the padding item counted.
        max_len: history positions.
        emb_dim: width of item_emb.
    """

    rows: int = 200_000
    test_rows: int = 379_142
    items: int = 91_718
    max_len: int = 64
    emb_dim: int = 128

    @property
    def embedding(self) -> str:
        """The name of the embedding column."""
        return f"item_emb_d{self.emb_dim}"


def write_data(folder: Path, sizes: Sizes, seed: int = 2025) -> Path:
    """Write train.parquet, test.parquet and item_info.parquet; returns the folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    levels = _write_items(folder / "item_info.parquet", sizes, rng)
    _write_rows(folder / "train.parquet", sizes.rows, sizes, levels, rng)
    if sizes.test_rows:
        _write_rows(folder / "test.parquet", sizes.test_rows, sizes, levels, rng)
    return folder


def feature_map(sizes: Sizes, embedding_dim: int | None = None) -> FeatureMap:
    """The feature map of the data, through the code that reads the YAML files.

    Args:
        embedding_dim: what item_emb is projected to; None for the model's own.
    """
    columns = [
        {"name": ["user_id", "item_seq"], "type": "meta"},
        {"name": ["likes_level", "views_level"], "type": "categorical", "vocab_size": NUM_LEVELS},
        {"name": "item_id", "type": "categorical", "source": "item", "vocab_size": sizes.items},
        {
            "name": "item_tags",
            "type": "sequence",
            "source": "item",
            "max_len": TAG_WIDTH,
            "vocab_size": NUM_TAGS,
        },
        {"name": sizes.embedding, "type": "embedding", "source": "item", "pretrain_dim": sizes.emb_dim},
    ]
    if embedding_dim:
        columns[-1]["embedding_dim"] = embedding_dim
    return build_feature_map({"dataset_id": "speed", "feature_cols": columns, "group_id": "user_id"})


def _write_items(path: Path, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    """item_info.parquet; returns the items' levels, int64 [items, 2]."""
    tags = rng.integers(1, NUM_TAGS, size=(sizes.items, TAG_WIDTH))
    tags[np.arange(TAG_WIDTH) < rng.integers(0, TAG_WIDTH, size=(sizes.items, 1))] = 0
    embedding = rng.standard_normal((sizes.items, sizes.emb_dim), dtype=np.float32)
    levels = rng.integers(1, NUM_LEVELS, size=(sizes.items, 2))
    for values in (tags, embedding, levels):
        values[0] = 0
    table = {
        "item_id": np.arange(sizes.items),
        "item_tags": _lists(tags),
        "likes_level": levels[:, 0],
        "views_level": levels[:, 1],
        sizes.embedding: _lists(embedding),
    }
    pq.write_table(pa.table(table), path)
    return levels


def _write_rows(path: Path, rows: int, sizes: Sizes, levels: np.ndarray, rng: np.random.Generator) -> None:
    """train.parquet, or test.parquet when that is its name: an ID in place of the label."""
    writer = None
    for first in range(0, rows, ROWS_PER_WRITE):
        count = min(ROWS_PER_WRITE, rows - first)
        history = _draw_items(rng, sizes.items, (count, sizes.max_len))
        lengths = rng.integers(min(SHORTEST_HISTORY, sizes.max_len), sizes.max_len + 1, size=(count, 1))
        history[np.arange(sizes.max_len) < sizes.max_len - lengths] = 0
        item = _draw_items(rng, sizes.items, (count,))
        columns = {
            "user_id": rng.integers(0, max(rows // 4, 1), size=count),
            "item_seq": _lists(history),
            "item_id": item,
            "likes_level": levels[item, 0],
            "views_level": levels[item, 1],
        }
        if path.stem == "test":
            columns = {"ID": np.arange(first, first + count), **columns}
        else:
            columns["label"] = (rng.random(count) < 0.25).astype(np.int64)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def _draw_items(rng: np.random.Generator, items: int, shape: tuple[int, ...]) -> np.ndarray:
    """Item ids, some popular and most rare, as clicks are: the i-th has a share of about i^(-2/3)."""
    return 1 + ((items - 1) * rng.random(shape) ** 3).astype(np.int64)


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

"""The click-evidence figure says what the files say: cosines by the formula, AUC by counting pairs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import list_column
from PIL import Image

from mm_fibinet.errors import UserError
from mm_fibinet.items.report import click_evidence, history_cosine

ITEMS, ROWS, HISTORY, WIDTH = 30, 400, 7, 6


def slow_cosine(vectors, history, target):
    """Row by row: the mean of the history's unit vectors, and its angle to the target."""
    values = []
    vectors = vectors.astype(np.float64)
    for items, item in zip(history, target, strict=True):
        units = [vectors[i] / np.linalg.norm(vectors[i]) for i in items if i and np.linalg.norm(vectors[i])]
        mean = np.mean(units, axis=0) if units else np.zeros(vectors.shape[1])
        size = np.linalg.norm(mean) * np.linalg.norm(vectors[item])
        values.append(mean @ vectors[item] / size if size else np.nan)
    return np.array(values)


@pytest.fixture
def drawn():
    """Vectors of items, histories and targets; items 0 and 5 have no vector, some rows no history."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    vectors[[0, 5]] = 0
    history = rng.integers(1, ITEMS, size=(ROWS, HISTORY))
    history[np.arange(HISTORY) < rng.integers(0, HISTORY + 1, size=(ROWS, 1))] = 0
    history[7] = [0] * (HISTORY - 1) + [5]
    return vectors, history, rng.integers(1, ITEMS, size=ROWS)


@pytest.fixture
def written(drawn, tmp_path):
    """(item_info, split) of these, where the more alike half of the rows is mostly clicked."""
    vectors, history, target = drawn
    cosine = np.nan_to_num(slow_cosine(vectors, history, target))
    label = ((cosine + np.random.default_rng(4).normal(scale=0.3, size=ROWS)) > 0.1).astype(np.int64)
    other = vectors[::-1].copy()
    other[0] = 0
    tags = np.ones((ITEMS, 2), dtype=np.int64)
    tags[0] = 0
    columns = {"item_id": np.arange(ITEMS), "item_tags": list_column(tags), "item_emb_d6": list_column(vectors)}
    columns["img_emb_d6"] = pa.array(list(other), pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "item_info.parquet")
    split = {"item_seq": list_column(history), "item_id": target, "label": label}
    pq.write_table(pa.table(split), tmp_path / "valid.parquet")
    return tmp_path / "item_info.parquet", tmp_path / "valid.parquet"


def test_the_cosine_is_that_of_the_formula(drawn):
    vectors, history, target = drawn
    found, expected = history_cosine(vectors, history, target), slow_cosine(vectors, history, target)
    assert np.array_equal(np.isnan(found), np.isnan(expected)) and np.isnan(found[7])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    vectors[0] = 9  # whatever the padding item holds
    np.testing.assert_allclose(history_cosine(vectors, history, target), expected, atol=1e-9)


def test_the_figure_and_what_it_says(drawn, written, tmp_path):
    before = [path.read_bytes() for path in written]
    evidence = click_evidence(*written, tmp_path / "new" / "evidence.png")
    vectors, history, target = drawn
    label = pq.read_table(written[1])["label"].to_numpy()
    cosine = slow_cosine(vectors, history, target)
    usable = np.isfinite(cosine) & np.isfinite(slow_cosine(np.vstack([[[0] * 6], vectors[::-1][1:]]), history, target))
    assert evidence.rows == usable.sum() and evidence.without_history == ROWS - usable.sum() > 0
    clicked, other = cosine[usable & (label == 1)], cosine[usable & (label == 0)]
    pairs = (clicked[:, None] > other).mean() + (clicked[:, None] == other).mean() / 2
    assert evidence.auc["item_emb_d6"] == pytest.approx(pairs, abs=1e-12) and pairs > 0.7
    assert list(evidence.auc) == ["item_emb_d6", "img_emb_d6"]
    assert Image.open(evidence.figure).format == "PNG"
    assert [path.read_bytes() for path in written] == before


def test_what_cannot_be_drawn_is_refused(written, tmp_path):
    item_info, split = written
    table = pq.read_table(split)
    zeros = table.set_column(2, "label", pa.array([0] * ROWS))
    pq.write_table(zeros, tmp_path / "zeros.parquet")
    with pytest.raises(UserError, match=r"zeros.parquet: \d+ rows with a history, expected some with label 0 and some"):
        click_evidence(item_info, tmp_path / "zeros.parquet", tmp_path / "out.png")
    pq.write_table(table.drop_columns(["label"]), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"test.parquet: column label is missing"):
        click_evidence(item_info, tmp_path / "test.parquet", tmp_path / "out.png")
    pq.write_table(pq.read_table(item_info).select(["item_id", "item_tags"]), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match=r"bare.parquet: has no embedding column, found item_id, item_tags"):
        click_evidence(tmp_path / "bare.parquet", split, tmp_path / "out.png")
    with pytest.raises(UserError, match="is an input"):
        click_evidence(item_info, split, split)
    assert not (tmp_path / "out.png").exists()

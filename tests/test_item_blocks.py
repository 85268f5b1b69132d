"""Several encoders a modality, and columns of vectors: each is a block of its own in fusion, summary and manifest."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from item_files import ITEMS, Hashes, build, fails, feature_with, make_data, pack

from mm_fibinet.items import fusion, modalities
from mm_fibinet.items.columns import load_column
from mm_fibinet.items.features import ArrayFeatures
from mm_fibinet.items.modalities import Modality
from mm_fibinet.options import COLUMN


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def several(monkeypatch) -> None:
    """Two quick encoders a modality, beside columns of vectors."""

    def with_others(modality: Modality, dims: dict[str, int]) -> Modality:
        loaders = {name: lambda rest, how, name=name: Hashes(name, dims[name], how.batch_size) for name in dims}
        return dataclasses.replace(modality, encoders=lambda: loaders | {COLUMN: load_column})

    text, image = modalities.MODALITIES
    monkeypatch.setattr(
        modalities,
        "MODALITIES",
        (with_others(text, {"minilm": 20, "b": 12}), with_others(image, {"efficientnet_lite0": 30, "c": 9})),
    )


@pytest.mark.parametrize("kind", ["folder", "rar"])
def test_several_encoders_are_blocks_of_their_own(data, tmp_path, monkeypatch, capsys, kind):
    """An archive that must be streamed is read once for each."""
    if kind == "rar":
        pytest.importorskip("libarchive")
    options = {"images": pack(kind, data) if kind == "rar" else data / "images"}
    both = ["efficientnet_lite0", "c"]
    fused, pca = [], fusion.pca
    monkeypatch.setitem(fusion.FUSIONS, "pca", lambda parts, *rest: (fused.append(list(parts)), pca(parts, *rest))[1])
    build(data, tmp_path / "out.parquet", monkeypatch, text_encoder=["minilm", "b"], image_encoder=both, **options)
    blocks = ["text/minilm", "text/b", "image/efficientnet_lite0", "image/c"]
    assert fused == [blocks, blocks[:2], blocks[2:]]
    out = capsys.readouterr().out
    for block in blocks:
        assert re.search(rf"^{block} +found 23, missing 1", out, re.M)
    made = json.loads((tmp_path / "out.build.json").read_text())
    assert [made[block]["encoder"] for block in blocks] == ["minilm", "b", *both]
    assert made["columns"] == ["item_emb_d8", "txt_emb_d8", "img_emb_d8"]
    images_only = {"text_encoder": "none", "item_feature": None, "image_encoder": both}
    alone = build(data, tmp_path / "alone.parquet", monkeypatch, **images_only, **options)
    column = pq.read_table(tmp_path / "out.parquet").column("img_emb_d8").combine_chunks()
    np.testing.assert_array_equal(column.flatten().to_numpy().reshape(-1, 8), alone)


def test_columns_of_vectors_are_blocks_too(data, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(3)
    bert, clip = rng.normal(size=(2, ITEMS, 10)).astype(np.float32)
    damaged = [None if item == 1 else vector for item, vector in enumerate(clip.tolist())]
    damaged[4][2] = float("nan")
    feature = feature_with(data, txt_emb_BERT=list(bert.tolist()), img_emb_CLIPRN50=damaged)
    options = {"item_feature": feature, "images": None, "image_encoder": "column:img_emb_CLIPRN50"}
    values = build(data, tmp_path / "a.parquet", monkeypatch, text_encoder=["b", "column:txt_emb_BERT"], **options)
    ids = pq.read_table(feature).column("item_id").to_pylist()
    out = capsys.readouterr().out
    assert re.search(r"^text/column:txt_emb_BERT +found 24, missing 0", out, re.M)
    assert re.search(r"^image +found 22, missing 1, corrupt 1, oversized 0", out, re.M)
    assert f"bad: item {ids[4]} corrupt (holds NaN, infinity or a null)" in out
    images = pq.read_table(tmp_path / "a.parquet").column("img_emb_d8").to_pylist()
    assert images[ids[1]] == images[ids[4]] == [0.0] * 8, "the mean of the modality"
    assert np.isfinite(values).all()
    message = fails(data, tmp_path / "strict.parquet", monkeypatch, capsys, strict=True, **options)
    assert f"column:img_emb_CLIPRN50: found 1 bad image files, expected none with --strict: item {ids[4]}" in message

    only = {"item_feature": feature, "image_encoder": "none", "images": None, "text_encoder": "column:txt_emb_BERT"}
    alone = build(data, tmp_path / "b.parquet", monkeypatch, **only)
    expected = fusion.pca({"text": ArrayFeatures(bert[np.argsort(ids)], np.ones(ITEMS, dtype=bool))}, 8).embedding
    np.testing.assert_array_equal(alone[1:], expected)
    own = build(data, tmp_path / "c.parquet", monkeypatch, text_encoder="column:item_emb_d8", images=None,
                image_encoder="none", item_feature=None, item_info=tmp_path / "b.parquet")  # fmt: skip
    np.testing.assert_allclose(np.abs(own), np.abs(alone), atol=1e-4)


def test_encoders_that_do_not_go_together_are_refused(data, tmp_path, monkeypatch, capsys):

    def refused(expected: str, **options):
        message = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, **options)
        assert re.search(expected, message), message

    refused("--text_encoder none b: none leaves the modality out", text_encoder=["none", "b"])
    refused("--text_encoder b b: expected each encoder once", text_encoder=["b", "b"])
    refused("--text_encoder x: unknown, expected none, minilm or b or column:", text_encoder=["b", "x"])
    refused("column:nothing: there is no such column", text_encoder="column:nothing")
    refused("--images is missing; give it", images=None, image_encoder=["c", "column:item_emb_d8"])
    refused("--text_dim 0: expected a whole number, 1 or more", text_dim=0)
    refused("--image_encoder c: has vectors of 9 numbers and no shorter", image_encoder="c", image_dim=4)


def test_another_dimension_of_an_encoder_is_noticed_and_nothing_is_lost(data, tmp_path, monkeypatch, capsys):
    """A model that was trained anew under the same id, say."""
    text, image = modalities.MODALITIES
    options = {"image_encoder": "none", "images": None}
    build(data, tmp_path / "a.parquet", monkeypatch, **options)
    wider = {"minilm": lambda rest, how: Hashes("minilm", 25, how.batch_size)}
    monkeypatch.setattr(modalities, "MODALITIES", (dataclasses.replace(text, encoders=lambda: wider), image))
    found = build(data, tmp_path / "b.parquet", monkeypatch, **options)
    streams = capsys.readouterr()
    assert "holds features (23, 20), expected (23, 25), moved to" in streams.err
    assert "encoded 23, reused 0" in streams.out
    fresh = build(data, tmp_path / "c.parquet", monkeypatch, store=tmp_path / "fresh", **options)
    np.testing.assert_array_equal(found, fresh)

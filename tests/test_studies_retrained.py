"""Studies that make data or train anew: what is changed is what they say, and what is shown is what the runs scored."""

import csv
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench_runs import benchmark, trained_here
from conftest import list_column, make_dataset, run_script
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from mm_fibinet.compare import studies
from mm_fibinet.compare.studies import modality, protocol, scale
from mm_fibinet.compare.studies.missing import ItemVectors, write_without
from mm_fibinet.compare.studies.rows import write_rows
from mm_fibinet.errors import UserError
from mm_fibinet.significance import Comparison

SET = ("--set", "max_len=8", "epochs=1")
EXPIDS = ("FiBiNET_test", "FiBiNET_test_no_emb")
MODALITIES = {"text": "txt_emb", "image": "img_emb"}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(config, data, leaderboard's folder, runs that were trained): one seed, one share of items, one of rows."""
    folder = tmp_path_factory.mktemp("retrained")
    config = make_dataset(folder)
    data = folder / "TEST_DATA"
    info = pq.read_table(data / "item_info.parquet")
    fused = np.stack(info["item_emb_d16"].to_numpy())
    for name, part in {"txt_emb_d8": fused[:, :8], "img_emb_d8": fused[:, 8:]}.items():
        info = info.append_column(name, list_column(part))
    pq.write_table(info, data / "item_info.parquet")
    with pytest.MonkeyPatch.context() as patch, trained_here() as trained:
        patch.setattr(modality, "SHARES", (0.5,))
        patch.setattr(scale, "SHARES", (0.25,))
        options = [*SET, "--study", "modality", "modality_retrained", "protocol", "scale"]
        assert benchmark(config, folder / "out", *options, seeds=(1,))[0] == 0
        first = list(trained)
        assert benchmark(config, folder / "out", *options, seeds=(1,))[0] == 0
        assert len(trained) == len(first) == 2 * (1 + 3 + 1 + 1)  # nothing is trained twice
    return config, data, folder / "out", first


def lines_of(out, study):
    with open(out / f"study_{study}.csv", newline="") as opened:
        return list(csv.DictReader(opened))


def auc_of(folder, expid):
    scores = pl.read_parquet(folder / f"TEST_DATA/{expid}/valid_scores.parquet")
    return roc_auc_score(scores["label"], scores["score"])


def items_of(out, name):
    return pl.read_parquet(out / f"studies/missing/{name}.parquet")


def test_what_an_item_lacks_is_zeros_and_its_part_of_the_fused_vector(studied):
    """Here the fused vector is text and image side by side, so the part of each is known."""
    _, data, out, _ = studied
    before = pl.read_parquet(data / "item_info.parquet")
    fused = np.stack(before["item_emb_d16"].to_numpy())
    for name, gone, other, part in (
        ("text_0.5", "txt_emb_d8", "img_emb_d8", slice(0, 8)),
        ("image_0.5", "img_emb_d8", "txt_emb_d8", slice(8, 16)),
        ("both_0.5", "txt_emb_d8", None, slice(0, 16)),
    ):
        after = items_of(out, name)
        lacking = ~np.stack(after[gone].to_numpy()).any(axis=1)
        assert lacking.sum() == 1 + round(0.5 * (len(before) - 1))  # the padding item has zeros anyway
        changed = np.stack(after["item_emb_d16"].to_numpy())
        expected = fused.copy()
        expected[np.ix_(lacking, range(*part.indices(16)))] = 0
        np.testing.assert_allclose(changed, expected, atol=1e-5)
        assert after.columns == before.columns and after.schema == before.schema
        assert after["item_tags"].equals(before["item_tags"])
        if other:
            assert after[other].equals(before[other])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 6), pa.list_(pa.float64()), pa.large_list(pa.float32())])
def test_the_part_of_a_modality_is_that_of_a_linear_regression(tmp_path, kind):
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(200, 5)), rng.normal(size=(200, 3)) + 1
    fused = np.hstack([text, image]) @ rng.normal(size=(8, 6)) + 0.3 * rng.normal(size=(200, 6)) + 2
    columns = {"txt_emb_d5": text, "img_emb_d3": image, "item_emb_d6": fused}
    for values in columns.values():
        values[0] = 0
    table = pa.table({"item_id": np.arange(200), **{name: pa.array(list(values)) for name, values in columns.items()}})
    table = table.set_column(3, "item_emb_d6", pa.array(list(fused)).cast(kind))
    pq.write_table(table, tmp_path / "item_info.parquet")
    vectors = ItemVectors(tmp_path / "item_info.parquet", MODALITIES)
    model = LinearRegression().fit(np.hstack([text, image])[1:], fused[1:])
    assert vectors.explained()["item_emb_d6"] == pytest.approx(
        model.score(
            np.hstack([text, image])[1:],
            fused[1:],
        ),
        abs=0.02,
    )
    after = pq.read_table(write_without(vectors, "text", 0.3, tmp_path))
    lacking = vectors.chosen(0.3)
    expected = np.where(lacking[:, None], fused - text @ model.coef_[:, :5].T, fused)
    np.testing.assert_allclose(np.stack(after["item_emb_d6"].to_numpy()), expected, atol=1e-5)
    assert after.schema.field("item_emb_d6").type == kind
    assert not vectors.chosen(0.3)[0] and (vectors.chosen(0.1) <= vectors.chosen(0.3)).all()
    assert vectors.chosen(0.1).sum() == 20


def test_vectors_of_int8_stay_int8(tmp_path):
    values = pa.array([[0, 0], [100, -100], [3, 7]], pa.list_(pa.int8()))
    pq.write_table(pa.table({"item_id": [0, 1, 2], "emb": values}), tmp_path / "item_info.parquet")
    vectors = ItemVectors(tmp_path / "item_info.parquet", MODALITIES)
    assert vectors.removable == ["both"] and not vectors.explained()
    after = vectors.without("both", 0.5)["emb"]
    assert after.type == values.type and sorted(map(sum, after.to_pylist())) in ([0, 0, 0], [0, 0, 10])
    one = pa.table({"item_id": [0, 1], "txt_emb_d1": [[0.0], [1.0]], "item_emb_d1": [[0.0], [2.0]]})
    pq.write_table(one, tmp_path / "one.parquet")  # without the text nothing is left
    assert ItemVectors(tmp_path / "one.parquet", MODALITIES).removable == ["both"]
    pq.write_table(pa.table({"item_id": [0, 1], "tags": [[0], [1]]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="has no column of vectors, found item_id, tags"):
        ItemVectors(tmp_path / "none.parquet", MODALITIES)


def test_at_test_time_the_trained_run_scores_other_items(studied, tmp_path):
    """As prediction.py scores the validation rows with the same items."""
    config, data, out, _ = studied
    valid = pl.read_parquet(data / "valid.parquet")
    as_test = valid.drop("label").with_columns(pl.int_range(len(valid)).alias("ID"))
    as_test.write_parquet(tmp_path / "test.parquet")
    lines = {(line["expid"], line["missing"], line["share"]): float(line["auc"]) for line in lines_of(out, "modality")}
    assert len(lines) == 2 * 3 * 2
    for expid in EXPIDS:
        root = out / f"runs/{expid}/1"
        assert lines[expid, "text", "0.0"] == pytest.approx(auc_of(root, expid), abs=1e-6)
        for what in ("text", "image", "both"):
            items = out / f"studies/missing/{what}_0.5.parquet"
            code, _, _ = run_script(
                "prediction", "--config", config, "--expid", expid, "--model_root", root, "--allow_other_data",
                "--test", tmp_path / "test.parquet", "--set", f"item_info={items}", "--out", tmp_path / "scores.csv",
            )  # fmt: skip
            assert code == 0
            scores = pd.read_csv(tmp_path / "scores.csv").iloc[:, 1]
            assert lines[expid, what, "0.5"] == pytest.approx(roc_auc_score(valid["label"], scores), abs=1e-6)
    assert lines["FiBiNET_test_no_emb", "both", "0.5"] == lines["FiBiNET_test_no_emb", "both", "0.0"]  # reads none
    assert lines["FiBiNET_test", "both", "0.5"] != lines["FiBiNET_test", "both", "0.0"]


def test_retrained_runs_have_the_items_of_the_study(studied):
    _, _, out, trained = studied
    lines = {
        (line["expid"], line["missing"], line["share"]): float(line["auc"])
        for line in lines_of(out, "modality_retrained")
    }
    for expid in EXPIDS:
        assert lines[expid, "image", "0.0"] == pytest.approx(auc_of(out / f"runs/{expid}/1", expid), abs=1e-6)
        for what in ("text", "image", "both"):
            folder = out / f"studies/modality_retrained/runs/{expid}/{what}_0.5/1"
            (job,) = [one for one in trained if one.model_root == folder]
            assert Path(job.params["item_info"]) == out / f"studies/missing/{what}_0.5.parquet"
            assert lines[expid, what, "0.5"] == pytest.approx(auc_of(folder, expid), abs=1e-6)


def test_scale(studied):
    _, data, out, trained = studied
    train, part = pl.read_parquet(data / "train.parquet"), pl.read_parquet(out / "studies/scale/train_0.25.parquet")
    drawn = np.sort(np.random.default_rng(2025).permutation(len(train))[: len(train) // 4])
    assert part.equals(train[drawn]) and part.schema == train.schema
    lines = {(line["expid"], line["rows"]): float(line["auc"]) for line in lines_of(out, "scale")}
    for expid in EXPIDS:
        folder = out / f"studies/scale/runs/{expid}/train_0.25/1"
        assert lines[expid, "150"] == pytest.approx(auc_of(folder, expid), abs=1e-6)
        assert lines[expid, "600"] == pytest.approx(auc_of(out / f"runs/{expid}/1", expid), abs=1e-6)
        (job,) = [one for one in trained if one.model_root == folder]
        assert job.params["valid_data"] == str(data / "valid.parquet") and job.params["max_len"] == 8  # as --set says


def test_protocol_split_is_a_partition_of_the_training_file(studied):
    _, data, out, _ = studied
    parts = [pl.read_parquet(out / f"studies/protocol/{name}.parquet") for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [480, 60, 60]
    train = pl.read_parquet(data / "train.parquet").with_columns(pl.col("item_seq").cast(pl.List(pl.Int64)))
    together = pl.concat(parts).with_columns(pl.col("item_seq").cast(pl.List(pl.Int64)))
    assert sorted(together.rows(), key=repr) == sorted(train.rows(), key=repr)


def test_protocol_split_is_that_of_its_authors(tmp_path):
    """Ten rows: eight zeros, a one and a two, shuffled by numpy's generator of 2006 with seed 42, written out here."""
    pq.write_table(pa.table({"row": np.arange(10)}), tmp_path / "train.parquet")
    split = protocol.write_split(str(tmp_path / "train.parquet"), tmp_path / "parts")
    rows = {name: pq.read_table(path)["row"].to_pylist() for name, path in split.items()}
    order = list(range(10))  # Fisher and Yates from the end, as RandomState.shuffle does
    draws = np.random.RandomState(42)
    for at in range(9, 0, -1):
        other = _at_most(draws, at)
        order[at], order[other] = order[other], order[at]
    parts = [0] * 8 + [1, 2]
    expected = {name: [row for row in range(10) if parts[order[row]] == at] for at, name in enumerate(split)}
    assert rows == expected


def _at_most(draws, most):
    """A whole number from 0 to `most`: of 32 random bits as many as it has, until they are not too large."""
    while True:
        value = int(draws.randint(0, 2**32, dtype=np.uint32)) & ((1 << most.bit_length()) - 1)
        if value <= most:
            return value


def test_protocol(studied):
    _, _, out, trained = studied
    lines = {line["expid"]: line for line in lines_of(out, "protocol")}
    aucs = {}
    for expid in EXPIDS:
        folder = out / f"studies/protocol/runs/{expid}/protocol/1"
        (job,) = [one for one in trained if one.model_root == folder]
        assert job.params["max_len"] == 5 and not {"likes_level", "views_level", "item_tags"} & set(
            job.params["use_features"]
        )
        aucs[expid] = auc_of(out / f"runs/{expid}/1", expid), auc_of(folder, expid)
        assert float(lines[expid]["auc"]) == pytest.approx(aucs[expid][0], abs=1e-6)
        assert float(lines[expid]["auc_protocol"]) == pytest.approx(aucs[expid][1], abs=1e-6)
    here, there = (aucs["FiBiNET_test"][at] - aucs["FiBiNET_test_no_emb"][at] for at in (0, 1))
    assert float(lines["FiBiNET_test"]["difference"]) == pytest.approx(here, abs=1e-6)
    assert float(lines["FiBiNET_test"]["difference_protocol"]) == pytest.approx(there, abs=1e-6)
    assert lines["FiBiNET_test_no_emb"]["gap"] == ""
    same = int(here * there > 0)
    assert f"{same} of 1 pairs of experiments are in the same order by both" in (out / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ((0.1, 0.3), (0.2, 0.4), "survives"),
        ((-0.3, -0.1), (-0.2, -0.1), "survives"),
        ((0.1, 0.3), (-0.2, 0.4), "vanishes"),
        ((-0.1, 0.3), (0.2, 0.4), "appears"),
        ((0.1, 0.3), (-0.4, -0.2), "is reversed"),
        ((-0.1, 0.1), (0.0, 0.1), "none in both"),
    ],
)
def test_what_becomes_of_a_gap(here, there, expected):
    made = [Comparison(sum(ends) / 2, 0.5, *ends, 0.5) for ends in (here, there)]
    assert protocol.fate(*made) == expected


def test_a_variant_that_fails_is_said(studied, capsys):
    """An experiment on levels alone has nothing left by the protocol; the others are shown."""
    config, _, out, _ = studied
    with open(config / "model_config.yaml", "a") as opened:
        opened.write("Levels_test:\n    <<: *test\n    history_pooling: none\n")
        opened.write("    use_features: [user_id, item_seq, likes_level, views_level]\n")
    with trained_here():
        code, text, _ = benchmark(
            config, out, *SET, "--study", "protocol", "--expids", "FiBiNET_test", "Levels_test",
            seeds=(1,), capsys=capsys,
        )  # fmt: skip
    assert code == 1 and "Levels_test, protocol seed 1: " in text
    assert "Levels_test, protocol seed 1: " in (out / "leaderboard.html").read_text()


def test_weights_that_were_replaced_are_said(studied, capsys):
    """The other experiment is studied all the same."""
    config, _, out, _ = studied
    root = out / "runs/FiBiNET_test/1"
    (root / "modality.json").unlink()
    weights = root / "TEST_DATA/FiBiNET_test.model"
    before = weights.read_bytes()
    weights.write_bytes(before + b" ")
    with trained_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(modality, "SHARES", (0.5,))
        code, text, _ = benchmark(config, out, *SET, "--study", "modality", seeds=(1,), capsys=capsys)
    weights.write_bytes(before)
    assert code == 1 and "FiBiNET_test: " in text and "the file was replaced" in text
    assert {line["expid"] for line in lines_of(out, "modality")} == {"FiBiNET_test_no_emb"}


def test_rows_of_parts_that_are_stored_differently(tmp_path):
    """A folder whose part files have other column orders and widths of integers; and FuxiCTR's npz."""
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int64()), "b": [[1], [2]]}), tmp_path / "parts/0.parquet")
    pq.write_table(pa.table({"b": [[3], [4]], "a": pa.array([3, 4], pa.int32())}), tmp_path / "parts/1.parquet")
    kept = np.array([True, False, False, True])
    path = write_rows(tmp_path / "parts", kept, tmp_path / "out" / "some.parquet")
    assert pq.read_table(path).to_pydict() == {"a": [1, 4], "b": [[1], [4]]}
    np.savez(tmp_path / "split.npz", a=np.arange(4), b=np.arange(8).reshape(4, 2))
    path = write_rows(tmp_path / "split.npz", kept, tmp_path / "out" / "npz.parquet")
    assert pq.read_table(path).to_pydict() == {"a": [0, 3], "b": [[0, 1], [6, 7]]}


def test_a_study_that_is_stopped_leaves_the_leaderboard(studied, capsys):
    config, _, out, _ = studied
    (out / "leaderboard.md").unlink()
    with trained_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "study", mock.Mock(side_effect=KeyboardInterrupt))
        code, _, _ = benchmark(config, out, *SET, "--study", "scale", seeds=(1,), capsys=capsys)
    assert code == 130 and "| FiBiNET_test |" in (out / "leaderboard.md").read_text()

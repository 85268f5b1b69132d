"""`run_benchmark.py --task1`: the organisers' DIN on each embedding, with the settings that the challenge left open."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from bench_runs import trained_here
from conftest import EMB_DIM, NUM_ITEMS, ROOT, list_column, make_dataset, run_script

import model_zoo
from mm_fibinet.compare import jobs, task1
from mm_fibinet.errors import UserError


@pytest.fixture
def data(tmp_path):
    """A data set, the organisers' DIN among its experiments, made small, and three item_info of which one is narrow."""
    config = make_dataset(tmp_path)
    published = yaml.safe_load((ROOT / "config/model_config/challenge.yaml").read_text())[task1.EXPID]
    small = {"embedding_dim": 8, "dnn_hidden_units": [16], "attention_hidden_units": [8], "epochs": 2, "max_len": 10}
    experiments = yaml.safe_load((config / "model_config.yaml").read_text())
    experiments[task1.EXPID] = {**published, **small, "dataset_id": "TEST_DATA", "metrics": ["AUC", "logloss"]}
    (config / "model_config.yaml").write_text(yaml.safe_dump(experiments))
    info = tmp_path / "TEST_DATA" / "item_info.parquet"
    table = pq.read_table(info)
    noise = np.random.default_rng(7).normal(size=(NUM_ITEMS, EMB_DIM)).astype(np.float32)
    noise[0] = 0
    for name, written in (
        ("true/item_info", table),
        ("noise/item_info", table.set_column(2, "item_emb_d16", list_column(noise))),
        ("narrow/item_info", table.set_column(2, "item_emb_d16", list_column(np.ascontiguousarray(noise[:, :4])))),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(written, tmp_path / f"{name}.parquet")
    return tmp_path


def bench(data, *arguments, capsys):
    return run_script("run_benchmark", "--config", data / "config", "--out", data / "out", *arguments, capsys=capsys)


def test_each_file_is_a_line_of_one_board(data, capsys):
    files = [data / name for name in ("noise/item_info.parquet", "true/item_info.parquet", "narrow/item_info.parquet")]
    arguments = ["--task1", *files, "--set", "learning_rate=0.02", "batch_size=64"]
    with trained_here() as trained:
        code, printed, error = bench(data, *arguments, capsys=capsys)
    assert code == 1 and len(trained) == 3, error  # of the one that is too narrow
    with open(data / "out" / "leaderboard.csv", newline="") as opened:
        rows = {row["expid"]: row for row in csv.DictReader(opened)}
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    assert set(rows) == set(names)
    assert rows[names[0]]["difference"] == "" and float(rows[names[1]]["difference"])  # the first is the baseline
    assert "pretrain_dim" in rows[names[2]]["error"] or "4 values" in rows[names[2]]["error"], rows[names[2]]["error"]
    assert f"{task1.EXPID} on each item_info" in (data / "out" / "leaderboard.md").read_text()
    for name, file in list(zip(names, files, strict=True))[:2]:
        assert name in printed
        (manifest,) = (data / "out" / "runs" / task1.EXPID / name).rglob("manifest.json")
        config = json.loads(manifest.read_text())["config"]
        assert (config["item_info"], config["model"], config["learning_rate"]) == (str(file), "DIN", 0.02)


def test_all_files_run_with_the_same_seeds_and_settings(data):
    files = task1.name_files([data / "noise" / "item_info.parquet", data / "true" / "item_info.parquet"])
    runs = jobs.plan(
        str(data / "config"), [task1.EXPID], [1, 2], model_zoo, data / "out", ["net_dropout=0.3"], None,
        task1.variants(files),
    )  # fmt: skip
    assert [(job.shown, job.seed) for job in runs] == [(name, seed) for seed in (1, 2) for name in files]
    assert len({job.model_root for job in runs}) == len({job.fingerprint for job in runs}) == 4
    different = {"item_info", "seed", "model_root"}
    common = [{key: value for key, value in job.params.items() if key not in different} for job in runs]
    assert all(one == common[0] for one in common) and common[0]["net_dropout"] == 0.3
    assert [job.params["item_info"] for job in runs[:2]] == [str(path) for path in files.values()]
    assert all(str(files[job.shown]) in job.inputs for job in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "epochs=9"],
            "--set epochs: with --task1 only learning_rate, batch_size, embedding_regularizer, net_",
        ),
        (["--set", "item_info=x"], "--set item_info: with --task1 only"),
        (["--set", "seed=1"], "--set seed: with --task1 only"),
        (["--baseline", "item_info"], "--baseline item_info: not among the experiments that are run: noise/item_info"),
        (["noise/../noise/item_info.parquet"], "this file is given twice, expected each once"),
        (["nowhere.parquet"], "--task1 nowhere.parquet: no such file, expected an item_info with item embeddings"),
        (["--set", "dataset_id=NOPE"], "dataset_id NOPE: not in"),
    ],
)
def test_what_task_1_does_not_leave_open_is_refused(arguments, message, data, capsys, monkeypatch):
    monkeypatch.chdir(data)
    files = ["noise/item_info.parquet", "true/item_info.parquet"]
    code, printed, error = bench(data, "--task1", *files, *arguments, capsys=capsys)
    assert code in (1, 2) and message in error + printed and "Traceback" not in error + printed


def test_names_are_as_short_as_they_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x/info.parquet", "b/x/info.parquet", "b/other.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(task1.name_files(["a/x/info.parquet"])) == ["info"]
    assert list(task1.name_files(["a/x/info.parquet", "b/other.parquet"])) == ["info", "other"]
    two = task1.name_files(["a/x/info.parquet", "b/x/info.parquet"])
    assert {name: str(path) for name, path in two.items()} == {
        "a/x/info": "a/x/info.parquet",
        "b/x/info": "b/x/info.parquet",
    }
    with pytest.raises(UserError, match="given twice"):
        task1.name_files(["b/other.parquet", "b/x/../other.parquet"])
    task1.require_open([f"{key}=0" for key in task1.OPEN] + ["dataset_id=A"])

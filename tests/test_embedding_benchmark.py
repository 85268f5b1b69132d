"""The benchmark of item embeddings: every variant can be built, every run can start, the table adds up."""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_dataset

import model_zoo
from benchmarks import item_embeddings
from benchmarks.item_embeddings import CODES, EXPIDS, VARIANTS
from mm_fibinet import settings
from mm_fibinet.compare import jobs
from mm_fibinet.compare.leaderboard import Outcome
from mm_fibinet.items.fusing import make_fusing
from mm_fibinet.items.fusion import CLICK_FUSIONS, FUSIONS
from mm_fibinet.items.info_columns import add_embedding, put_column
from mm_fibinet.items.semantic_ids import METHODS, quantise


@pytest.fixture
def config(tmp_path):
    """A data set, and this project's experiments that are compared on it."""
    config = make_dataset(tmp_path)
    experiments = {
        expid: {**settings.load_model_config(item_embeddings.ROOT / "config", expid), "dataset_id": "TEST_DATA"}
        for expid in EXPIDS
    }
    (config / "model_config.yaml").write_text(item_embeddings.yaml.safe_dump(experiments))
    return config


class Builder:
    """Writes what `build` would, of random numbers, and remembers what it was asked for."""

    def __init__(self):
        self.asked = {}

    def __call__(self, item_info, output, **given):
        self.asked[output.parent.name] = {"item_info": item_info, **given}
        make_fusing(
            given.get("fusion"), 128, 0, True, given.get("train"), given.get("valid"), given.get("mix")
        )  # the options go together
        table = pq.read_table(item_info)
        vectors = np.random.default_rng(len(self.asked)).normal(size=(table.num_rows - 1, 128)).astype(np.float32)
        for prefix in ("item", "txt", "img"):
            table = add_embedding(table, f"{prefix}_emb_d128", vectors)
        if method := given.get("semantic_ids"):
            for column, values in quantise(vectors, method, 3, given["code_size"]).columns.items():
                table = put_column(table, column, values)
        output.parent.mkdir(parents=True)
        pq.write_table(table, output)


def test_the_variants_are_all_there_are():
    made = {given.get("fusion") for given in VARIANTS.values()} | {"pca", "mean"}
    assert made - {None} == {*FUSIONS, *CLICK_FUSIONS}
    assert {name for name, given in VARIANTS.items() if "semantic_ids" in given} == {
        f"{method}_{form}" for method in METHODS for form in CODES
    }


def test_every_variant_is_built_once_and_its_runs_can_start(config, tmp_path, monkeypatch, capsys):
    builder, planned = Builder(), []
    monkeypatch.setattr(item_embeddings, "build", builder)
    monkeypatch.setattr(jobs, "run_all", lambda runs, *rest: planned.extend(runs))
    line = ["--config", config, "--dataset_id", "TEST_DATA", "--images", tmp_path, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, line), "--code_size", "8", "--seeds", "1"])
    item_embeddings.main()
    assert [job.error for job in planned] == [None] * len(VARIANTS) * len(EXPIDS)
    assert set(builder.asked) == set(VARIANTS)
    data = tmp_path / "TEST_DATA"
    assert builder.asked["text"] == {
        "item_info": tmp_path / "out" / "pca" / "item_info.parquet",
        "text_encoder": "none",
        "image_encoder": "none",
        "mix": {"txt_emb_d128": 1},
    }
    assert builder.asked["contrastive"]["train"] == str(data / "train.parquet")
    assert builder.asked["kmeans_ids"]["code_size"] == 8
    for job in planned:
        assert job.params["item_info"] == str(tmp_path / "out" / job.shown / "item_info.parquet")
        names = [name for each in job.params["feature_cols"] for name in np.atleast_1d(each["name"]).tolist()]
        codes = [name for name in names if name.startswith("item_code")]
        form = job.shown.rpartition("_")[2]
        assert codes == {"sequence": ["item_codes"], "ids": ["item_code_1", "item_code_2", "item_code_3"]}.get(form, [])
    builder.asked.clear()
    item_embeddings.main()  # goes on where it was
    assert not builder.asked
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out


def test_the_table_is_the_mean_over_the_seeds(config, tmp_path, monkeypatch):
    path = tmp_path / "TEST_DATA" / "item_info.parquet"
    vectors = np.ones((pq.read_table(path).num_rows - 1, 128), dtype=np.float32)
    table = pq.read_table(path)
    for prefix in ("item", "txt", "img"):
        table = add_embedding(table, f"{prefix}_emb_d128", vectors)
    pq.write_table(table, path)
    variants = {"pca": [f"item_info={path}"], "text": [f"item_info={path}"]}
    runs = jobs.plan(str(config), ["FiBiNET_recommended"], [1, 2], model_zoo, tmp_path / "out", [], None, variants)

    def outcome(job):
        if job.shown == "text":
            return Outcome(job.shown, job.seed, None, None, "killed")
        parts = {"warm": {"AUC": 0.9}, "cold": {"AUC": 0.6 + job.seed / 10}}
        return Outcome(job.shown, job.seed, {"metrics": {"AUC": 0.7 + job.seed / 100}, **parts}, None, None)

    monkeypatch.setattr(jobs.Job, "outcome", outcome)
    lines = item_embeddings.table(runs).splitlines()
    assert lines[2:] == [
        "| FiBiNET_recommended | pca | 2 | 0.7150 | 0.0071 | 0.9000 | 0.7500 |",
        "| FiBiNET_recommended | text | 0 | | | | |",
    ]


def test_what_learns_from_clicks_is_given_the_splits_and_their_histories(tmp_path):
    asked = {}
    names = ("item_info", "item_feature", "train_data", "valid_data", "user_info")
    entry = {name: f"{name}.parquet" for name in names}
    item_embeddings.build_variants(
        ["whiten", "item2vec"],
        entry,
        "images",
        tmp_path,
        8,
        lambda _, out, **given: asked.update({out.parent.name: given}),
    )
    read = {"train": "train_data.parquet", "valid": "valid_data.parquet", "user_info": "user_info.parquet"}
    assert asked["item2vec"].items() >= read.items() and not asked["whiten"].keys() & read.keys()

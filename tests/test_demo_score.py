"""The demo's score: AUCs of a submission that another library finds too, and nothing scored that is damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from sklearn.metrics import roc_auc_score

from mm_fibinet.demo.data import generate
from mm_fibinet.demo.score import score
from mm_fibinet.submission import write_submission


def score_arguments(tmp_path: Path, **facts: object) -> list[object]:
    """A tiny demo set and a submission of one score a row, the arguments to score it; `facts` spoil demo.json."""
    generate(tmp_path / "demo", size="tiny", images=False)
    rows = pq.read_table(tmp_path / "demo" / "test_labels.parquet").num_rows
    write_submission(np.linspace(0.1, 0.9, rows), tmp_path / "s.zip", rows)
    path = tmp_path / "demo" / "demo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return ["--data", tmp_path / "demo", "--submission", tmp_path / "s.zip", "--model_root", tmp_path, "--expid", "x"]


def test_a_group_of_one_class_has_no_auc(tmp_path: Path, capsys):
    best_possible = {"all": 0.9, "warm": 0.9, "cold": None}
    arguments = score_arguments(tmp_path, bayes_auc={"valid": best_possible, "test": best_possible})
    path = tmp_path / "demo" / "test_labels.parquet"
    labels = pq.read_table(path).to_pandas()
    labels.loc[labels.cold, "label"] = 0
    labels.to_parquet(path)
    code, out, err = run_script("mm_fibinet.demo.score", *arguments, capsys=capsys)
    assert code == 0, err
    expected = roc_auc_score(labels.label, np.linspace(0.1, 0.9, len(labels)))
    reached, best = [line.split() for line in out.splitlines() if line.startswith(("x ", "best"))]
    assert reached[:3] == ["x", "-", f"{expected:.4f}"] and reached[-1] == "-"
    assert best[2:] == ["0.9000", "0.9000", "0.9000", "-"]


@pytest.mark.parametrize(
    ("facts", "metrics", "message"),
    [
        ({"bayes_auc": 3}, None, "demo.json is damaged"),
        ({"parameters": {"name": "../.."}}, None, "demo.json is damaged"),
        ({}, "epoch,loss\n1,2\n", "metrics.csv: not the metrics of a run, expected a column AUC"),
    ],
)
def test_a_damaged_set_or_run_is_not_scored(tmp_path: Path, capsys, facts, metrics, message):
    arguments = score_arguments(tmp_path, **facts)
    if metrics:
        (tmp_path / "MMCTR_demo" / "x").mkdir(parents=True)
        (tmp_path / "MMCTR_demo" / "x" / "metrics.csv").write_text(metrics)
    code, _, err = run_script("mm_fibinet.demo.score", *arguments, capsys=capsys)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [None, *[0, 1] * 300], "test_labels.parquet: column label"),
        ("label", [2, *[0, 1] * 300], "test_labels.parquet: column label"),
        ("label", ["0", *["1"] * 600], "test_labels.parquet: column label"),
        ("cold", [5, *[0, 1] * 300], "test_labels.parquet: column cold"),
        ("ID", [7] * 601, "test_labels.parquet: column ID"),
    ],
)
def test_damaged_labels_are_not_scored(tmp_path: Path, capsys, column, values, message):
    arguments = score_arguments(tmp_path)
    path = tmp_path / "demo" / "test_labels.parquet"
    labels = pq.read_table(path)
    labels = labels.set_column(labels.column_names.index(column), column, pa.array(values[: labels.num_rows]))
    pq.write_table(labels, path)
    code, out, err = run_script("mm_fibinet.demo.score", *arguments, capsys=capsys)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_scores_are_those_of_scikit_learn_wherever_they_lie(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"\xff")
    generate(folder, size="tiny", images=False)
    labels = pd.read_parquet(folder.joinpath("test_labels.parquet").open("rb"))
    scores = np.random.default_rng(0).random(len(labels)).round(3)
    write_submission(scores, folder / "s.zip", len(labels))
    found = score(folder / "s.zip", folder)
    for group, rows in (("all", labels.ID >= 0), ("warm", ~labels.cold), ("cold", labels.cold)):
        assert found[group] == pytest.approx(roc_auc_score(labels.label[rows], scores[rows]))

"""The overview of a model_root: what it shows is what the runs' own files say."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import make_dataset, run_script
from PIL import Image
from sklearn.metrics import roc_auc_score

from mm_fibinet.compare import leaderboard, overview
from mm_fibinet.errors import UserError
from mm_fibinet.run_result import read_scores


@pytest.fixture(scope="module")
def model_root(tmp_path_factory):
    """Two runs that finished, of two epochs each, and one that has only begun."""
    folder = tmp_path_factory.mktemp("overview")
    config = make_dataset(folder)
    root = folder / "checkpoints"
    for expid in ("FiBiNET_test", "FiBiNET_test_no_emb"):
        code, _, _ = run_script("run_expid", "--config", config, "--expid", expid, "--model_root", root)
        assert code == 0
    begun = root / "TEST_DATA" / "begun"
    begun.mkdir()
    shutil.copy(root / "TEST_DATA" / "FiBiNET_test" / "manifest.json", begun)
    return root


def test_runs_are_found(model_root, tmp_path):
    names = [run.folder.name for run in overview.find_runs(model_root)]
    assert names == ["FiBiNET_test", "FiBiNET_test_no_emb", "begun"]
    with pytest.raises(UserError, match="no runs there"):
        overview.find_runs(tmp_path)


def test_a_run_is_described_by_its_manifest(model_root, tmp_path):
    run = overview.find_runs(model_root)[0]
    manifest = json.loads(run.manifest.read_text())
    text = overview.described(run)
    assert "device        cpu, no GPU, 1 process\n" in text and "seed          2025\n" in text
    assert f"train_data    sha256 {manifest['data']['train_data']['sha256'][:12]}, " in text
    assert f"torch {manifest['versions']['torch']}" in text and f"finished {manifest['finished']}" in text
    manifest["machine"] = {"device": "Tesla T4", "driver": "570.1", "cuda": "12.8", "processes": 2}
    (tmp_path / "DATA" / "other").mkdir(parents=True)
    (tmp_path / "DATA" / "other" / "manifest.json").write_text(json.dumps(manifest))
    [other] = overview.find_runs(tmp_path)
    assert "device        Tesla T4, driver 570.1, CUDA 12.8, 2 processes\n" in overview.described(other)


def test_logs_are_gathered(model_root, tmp_path):
    runs = overview.find_runs(model_root)
    with open(overview.write_logs(runs, tmp_path / "logs")) as opened:
        lines = list(csv.DictReader(opened))
    assert [(line["expid"], line["epoch"]) for line in lines] == [
        ("FiBiNET_test", "1"), ("FiBiNET_test", "2"), ("FiBiNET_test_no_emb", "1"), ("FiBiNET_test_no_emb", "2"),
    ]  # fmt: skip
    with open(runs[1].history) as opened:
        assert [line["AUC"] for line in csv.DictReader(opened)] == [line["AUC"] for line in lines[2:]]
    log = tmp_path / "logs" / "TEST_DATA_FiBiNET_test.log"
    assert log.read_bytes() == runs[0].log.read_bytes() and not (tmp_path / "logs" / "TEST_DATA_begun.log").exists()


def test_curves(model_root, tmp_path):
    runs = overview.find_runs(model_root)
    path = overview.draw_curves(runs, tmp_path / "curves.png")
    drawn = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    empty = np.asarray(Image.open(overview.draw_curves(runs[2:], tmp_path / "empty.png")).convert("RGB")).reshape(-1, 3)
    blue = np.array([0x1F, 0x77, 0xB4])  # of matplotlib's first line
    assert (drawn == blue).all(axis=1).any() and not (empty == blue).all(axis=1).any()


def test_damaged_evaluations_are_one_clear_error(model_root, tmp_path):
    root = shutil.copytree(model_root, tmp_path / "runs")
    runs = overview.find_runs(root)
    runs[0].history.write_text("epoch,AUC\n1\n")
    for use in (lambda: overview.write_logs(runs, tmp_path), lambda: overview.draw_curves(runs, tmp_path / "a.png")):
        with pytest.raises(UserError, match=r"metrics.csv: cannot be read as a run's evaluations"):
            use()
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [
        ([10, 20], [1, 2], [1, 2]),
        ([4, 8, 10, 14, 18, 20], [1, 1, 1, 2, 2, 2], [0.4, 0.8, 1, 1.4, 1.8, 2]),
        ([10, 14], [1, 2], [1, 1.4]),
    ],
)
def test_steps_become_epochs(steps, epochs, expected):
    """Ten steps an epoch; evaluated at its end, or within it."""
    history = [
        {"step": str(step), "epoch": str(epoch), "AUC": "0.5"} for step, epoch in zip(steps, epochs, strict=True)
    ]
    assert overview.curve(history, "AUC") == [(pytest.approx(epoch), 0.5) for epoch in expected]
    assert overview.curve(history, "logloss") == [] == overview.curve([], "AUC")


def test_the_leaderboard_of_what_has_finished(model_root):
    runs = overview.find_runs(model_root)
    board = overview.board(runs)
    expected = {}
    for run in runs[:2]:
        scores = read_scores(run.folder)
        expected[run.folder.name] = roc_auc_score(scores["label"], scores["score"])
    assert {row["expid"]: row["auc"] for row in board.rows} == pytest.approx(expected, abs=1e-9)
    assert board.baseline == "FiBiNET_test"
    assert "begun, seed 2025: not finished: train it with --resume" in leaderboard.as_markdown(board)
    assert overview.board(runs, "FiBiNET_test_no_emb").baseline == "FiBiNET_test_no_emb"


def test_runs_of_one_name_on_two_data_sets_are_told_apart(model_root, tmp_path):
    for name in ("A", "B"):
        shutil.copytree(model_root / "TEST_DATA" / "FiBiNET_test", tmp_path / name / "FiBiNET_test")
    runs = overview.find_runs(tmp_path)
    assert overview.labels(runs) == ["FiBiNET_test (A)", "FiBiNET_test (B)"]
    assert [row["runs"] for row in overview.board(runs).rows] == [1, 1]

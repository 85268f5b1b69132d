"""prediction.py --average: what several runs say together is the mean of what each says alone."""

import copy
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import run_script
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from test_runs import EXPID, Commands

from mm_fibinet.commands.predict import average
from mm_fibinet.run_folder import RunFolder


@pytest.fixture
def runs(tmp_path, capsys):
    """Runs of two seeds, each in a model_root of its own, on the same data."""
    first = Commands(tmp_path, capsys)
    second = copy.copy(first)
    second.root = tmp_path / "again"
    second.run = RunFolder(second.root / "TEST_DATA", EXPID)
    for seed, commands in enumerate((first, second)):
        code, _, err = commands.train(f"seed={seed}")
        assert code == 0, err
    return first, second


def scores_of(path):
    return pl.read_csv(path)["Task1&2"].to_numpy()


def average_of(runs, *arguments, capsys):
    """(exit code, stdout, stderr) of prediction.py on the weights of both runs."""
    weights = [commands.run.weights for commands in runs]
    return run_script("prediction", "--average", *weights, *arguments, capsys=capsys)


@pytest.mark.parametrize("by", ["probability", "rank"])
def test_runs_are_averaged(runs, tmp_path, capsys, by):
    alone = []
    for commands in runs:
        assert commands.predict()[0] == 0
        alone.append(commands.scores())
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    code, out, err = average_of(runs, "--average_by", by, "--out", tmp_path / "both.csv", capsys=capsys)
    assert code == 0, err
    assert f"average     of 2 runs, by {by}" in out and all(str(each.run.manifest) in out for each in runs)
    expected = np.mean(alone, axis=0)
    if by == "rank":
        expected = np.mean([rankdata(each) / len(each) for each in alone], axis=0)
    np.testing.assert_allclose(scores_of(tmp_path / "both.csv"), expected, atol=1e-12)


def test_ties_share_their_ranks():
    scores = [np.array([0.2, 0.2, 0.9, 0.1]), np.array([0.6, 0.5, 0.7, 0.4])]
    assert average(scores, "rank").tolist() == pytest.approx([2.75 / 4, 2.25 / 4, 1.0, 1 / 4])
    assert average(scores, "probability").tolist() == pytest.approx([0.4, 0.35, 0.8, 0.25])


def test_experiments_are_named_by_their_ids(runs, working_folder, capsys):
    model_root, second = runs[0].root, runs[1]
    for path in list(second.run.folder.parent.iterdir()):  # a second experiment in the same place
        path.rename(model_root / "TEST_DATA" / path.name.replace(EXPID, "FiBiNET_again"))
    arguments = ["--model_root", model_root, "--average", EXPID, "FiBiNET_again"]
    code, _, err = run_script("prediction", *arguments, capsys=capsys)
    assert code == 0, err
    assert (working_folder / "submission" / "average.zip").is_file()


def test_a_run_is_not_named_by_its_id_and_by_its_file(runs, capsys):
    named = [EXPID, runs[0].run.weights]
    code, _, err = run_script("prediction", "--model_root", runs[0].root, "--average", *named, capsys=capsys)
    assert code == 2 and f"--average: {runs[0].run.weights} is named twice, expected each run once" in err


@pytest.mark.parametrize(("by", "has_logloss"), [("probability", True), ("rank", False)])
def test_ranks_have_no_logloss(runs, tmp_path, capsys, by, has_logloss):
    test = pl.read_parquet(runs[0].data / "test.parquet")
    labels = np.arange(len(test)) % 2
    pl.DataFrame({"ID": test["ID"], "label": labels}).write_parquet(tmp_path / "labels.parquet")
    given = ["--average_by", by, "--labels", tmp_path / "labels.parquet", "--out", tmp_path / "both.csv"]
    code, out, err = average_of(runs, *given, capsys=capsys)
    assert code == 0, err
    assert f"AUC: {roc_auc_score(labels, scores_of(tmp_path / 'both.csv')):.6f}" in out
    assert ("logloss: " in out.split("metrics  ")[1]) == has_logloss


def test_weights_without_a_run_need_an_experiment_of_their_name(runs, tmp_path, capsys):
    first, second = (commands.run.weights for commands in runs)
    (tmp_path / "other").mkdir()
    for name in ("swa", EXPID):
        shutil.copy(second, tmp_path / "other" / f"{name}.model")
    given = ["--config", runs[0].config, "--out", tmp_path / "both.csv", "--average", first]
    code, _, err = run_script("prediction", *given, tmp_path / "other" / "swa.model", capsys=capsys)
    assert code == 2 and len(err.splitlines()) == 1 and "--expid" not in err
    assert f"--average {tmp_path / 'other' / 'swa.model'}: has no run manifest beside it, and swa is no exper" in err
    code, out, err = run_script("prediction", *given, tmp_path / "other" / f"{EXPID}.model", capsys=capsys)
    assert code == 0 and "has no run manifest beside it" in out, err


def test_bad_input(runs, tmp_path, capsys):
    first, second = (commands.run.weights for commands in runs)
    cases = [
        (["--average", first], "expected two runs or more"),
        (["--average", first, second, "--expid", EXPID], "--average names all runs, expected no --expid beside it"),
        (["--average", first, second, "--checkpoint", first], "expected no --checkpoint beside it"),
        ([], "expected --expid EXPID, or --average RUN RUN ..."),
        (["--expid", EXPID, "--average_by", "rank"], "--average_by rank: there is no --average RUN RUN ..."),
        (["--average", first, first.parent / "." / first.name], "is named twice, expected each run once"),
        (["--average", first, tmp_path / "none.model"], "none.model: no such file, expected a run's ID"),
        (["--average", first, second, "--out", second.with_suffix(".csv"), "--average_by", "mean"], "invalid choice"),
    ]
    for arguments, message in cases:
        code, _, err = run_script("prediction", *arguments, capsys=capsys)
        assert code == 2 and message in err, (arguments, err)


def test_runs_of_other_test_splits_need_one_to_be_named(runs, tmp_path, capsys):
    second = runs[1]
    other = tmp_path / "other.parquet"
    pl.read_parquet(second.data / "test.parquet").write_parquet(other)
    assert second.train("seed=2", f"test_data={other}")[0] == 0
    out = tmp_path / "both.csv"
    code, _, err = average_of(runs, "--out", out, capsys=capsys)
    assert code == 2 and f"has the test split {other}" in err and "--test" in err and not out.exists()
    code, _, err = average_of(runs, "--out", out, "--test", other, capsys=capsys)
    assert code == 0, err

"""prediction.py --labels: the metrics of the test split's scores, and labels that are not its."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from test_runs import Commands

from mm_fibinet.labelled import KnownLabels


@pytest.fixture
def commands(tmp_path, capsys):
    """A trained run."""
    commands = Commands(tmp_path, capsys)
    assert commands.train("group_id=user_id")[0] == 0
    return commands


def write_labels(commands, **columns):
    """A file of labels of the test split."""
    rows = len(pl.read_parquet(commands.data / "test.parquet"))
    label = np.random.default_rng(3).integers(0, 2, rows)
    path = commands.folder / "test_labels.parquet"
    table = {"ID": np.arange(rows), "label": label, **columns}
    pl.DataFrame({name: values for name, values in table.items() if values is not None}).write_parquet(path)
    return path, label


def test_the_metrics_are_those_of_the_scores_that_are_written(commands):
    path, label = write_labels(commands)
    code, out, err = commands.predict("--labels", path)
    assert code == 0, err
    scores, user = commands.scores(), pl.read_parquet(commands.data / "test.parquet")["user_id"].to_numpy()
    both = [rows for rows in (user == each for each in np.unique(user)) if 0 < label[rows].mean() < 1]
    gauc = np.average(
        [roc_auc_score(label[rows], scores[rows]) for rows in both], weights=[rows.sum() for rows in both]
    )
    expected = {"AUC": roc_auc_score(label, scores), "logloss": log_loss(label, scores), "gAUC": gauc}
    assert f"metrics     {' - '.join(f'{name}: {value:.6f}' for name, value in expected.items())}\n" in out


def test_labels_of_another_split_are_refused_before_scoring(commands):
    rows = len(pl.read_parquet(commands.data / "test.parquet"))
    for columns, message in (
        ({"ID": np.arange(rows) + 1}, "column ID is 1 in row 0, expected 0"),
        ({"label": np.arange(rows)}, "column label is 2.0 in row 2, expected 0 or 1"),
        ({"label": None}, "column label is missing"),
    ):
        path, _ = write_labels(commands, **columns)
        code, _, err = commands.predict("--labels", path)
        assert code == 2 and err.count("\n") == 1 and message in err, err
        assert not commands.out.exists()
    path, _ = write_labels(commands)
    pl.read_parquet(path).head(5).write_parquet(path)
    code, _, err = commands.predict("--labels", path)
    assert code == 2 and f"test_labels.parquet: has 5 rows, expected {rows}, those of" in err
    code, _, err = commands.predict("--labels", commands.folder / "nowhere.parquet")
    assert code == 2 and "nowhere.parquet: no such file" in err


def test_groups_may_be_any_integers_as_in_training(tmp_path):
    """Hashed ids beyond int64 tell rows apart, no more: two users, of whom the first has both labels."""
    users = pl.Series("user_id", [2**64 - 1, 2**63, 2**64 - 1, 2**64 - 1], dtype=pl.UInt64)
    pl.DataFrame({"ID": range(4), "label": [1, 1, 0, 0]}).write_parquet(tmp_path / "labels.parquet")
    pl.DataFrame({"ID": range(4)}).with_columns(users).write_parquet(tmp_path / "test.parquet")
    known = KnownLabels.read(tmp_path / "labels.parquet", tmp_path / "test.parquet", "label", ["gAUC"], "user_id")
    assert known.metrics(np.array([0.5, 0.1, 0.4, 0.6])) == {"gAUC": 0.5}


def test_a_metric_that_the_labels_leave_undefined_is_explained(commands):
    rows = len(pl.read_parquet(commands.data / "test.parquet"))
    path, _ = write_labels(commands, label=np.ones(rows, int))
    code, out, err = commands.predict("--labels", path)
    assert code == 0, err
    assert "AUC: nan" in out and "gAUC: nan" in out and f"logloss: {-np.log(commands.scores()).mean():.6f}" in out
    assert f"note        AUC is not defined: all {rows} labels are the same, expected both 0 and 1\n" in out
    assert "note        gAUC is not defined: none of the " in out
    path, _ = write_labels(commands)
    assert "not defined" not in commands.predict("--labels", path)[1]

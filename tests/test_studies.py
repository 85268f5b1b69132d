"""Studies say of a run's rows what pandas and scikit-learn say of them."""

import csv

import numpy as np
import pandas as pd
import polars as pl
import pytest
from bench_runs import benchmark, trained_here
from conftest import make_dataset
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.section import Section, as_html, as_markdown
from mm_fibinet.compare.studies import STUDIES, calibration, groups, require
from mm_fibinet.errors import UserError
from mm_fibinet.options import STUDIES as NAMED
from mm_fibinet.significance import Pairs, mean_auc_intervals

EXPIDS = ("FiBiNET_test_no_emb", "FiBiNET_test")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(folder of the data, folder of the leaderboard): two experiments, two seeds, all that is scored once more."""
    folder = tmp_path_factory.mktemp("studied")
    config = make_dataset(folder, rows=2400)
    data = folder / "TEST_DATA"
    train = pd.read_parquet(data / "train.parquet")  # item i stays the target of i % 14 rows at most
    train = train[train.groupby("item_id").cumcount() < train.item_id % 14]
    pl.from_pandas(train).write_parquet(data / "train.parquet")
    with trained_here() as trained:
        code, _, _ = benchmark(config, folder / "out", "--set", "epochs=1", "--study", "cold", "history", "calibration")
    assert code == 0 and len(trained) == 4
    return data, folder / "out"


def scores_of(out):
    """{experiment: its seeds' tables of label, score, user_id}."""
    return {
        expid: [
            pl.read_parquet(out / f"runs/{expid}/{seed}/TEST_DATA/{expid}/valid_scores.parquet").to_pandas()
            for seed in (1, 2)
        ]
        for expid in EXPIDS
    }


def lines_of(out, study):
    with open(out / f"study_{study}.csv", newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_study_has_a_name_on_the_command_line():
    assert set(STUDIES) == set(NAMED)


@pytest.mark.parametrize(
    ("study", "unit", "edges"),
    [("cold", "rows of train", [0, 1, 4, 11]), ("history", "items in the history", [0, 1, 5, 16, 64])],
)
def test_auc_by_group(studied, study, unit, edges):
    data, out = studied
    valid = pd.read_parquet(data / "valid.parquet")
    if study == "cold":
        values = valid.item_id.map(pd.read_parquet(data / "train.parquet").item_id.value_counts()).fillna(0)
    else:
        values = valid.item_seq.map(lambda items: sum(item != 0 for item in items))
    cut = pd.cut(values, [*edges, np.inf], right=False, labels=range(len(edges)))
    lines = lines_of(out, study)
    names = dict(enumerate(groups.group_names(tuple(edges))))
    there = sorted(set(cut))
    assert [line["group"] for line in lines] == [f"{names[at]} {unit}" for at in there] * 2 and len(there) >= 3
    for expid, tables in scores_of(out).items():
        for at in there:
            rows = (cut == at).to_numpy()
            (line,) = [one for one in lines if one["expid"] == expid and one["group"] == f"{names[at]} {unit}"]
            assert (int(line["rows"]), int(line["clicks"])) == (rows.sum(), valid.label[rows].sum())
            aucs = [roc_auc_score(table.label[rows], table.score[rows]) for table in tables]
            assert float(line["auc"]) == pytest.approx(np.mean(aucs), abs=1e-5)
            assert float(line["low"]) < float(line["auc"]) < float(line["high"])


def test_intervals_are_of_users_with_all_their_rows():
    """The slow form: rows of the drawn users put together, and every pair of them looked at."""

    def auc(label, score):
        above = score[label == 1][:, None] - score[label == 0]
        return np.mean((above > 0) + 0.5 * (above == 0))

    rng = np.random.default_rng(3)
    label, user = rng.integers(0, 2, 80), rng.integers(100, 112, 80)
    scores = {"a": (rng.random((2, 80)) + 0.3 * label).round(1), "b": rng.random((1, 80))}
    found = mean_auc_intervals(label, user, scores)
    users, generator = np.unique(user), np.random.default_rng(2025)
    drawn = {"a": [], "b": []}
    for _ in range(1000):
        chosen = users[generator.integers(0, len(users), len(users))]
        rows = np.concatenate([np.flatnonzero(user == one) for one in chosen])
        for name, seeds in scores.items():
            drawn[name].append(np.mean([auc(label[rows], score[rows]) for score in seeds]))
    for name, seeds in scores.items():
        expected = [
            np.mean([roc_auc_score(label, score) for score in seeds]),
            *np.quantile(drawn[name], [0.025, 0.975]),
        ]
        assert list(found[name]) == pytest.approx(expected, abs=1e-12)


def test_a_group_with_few_clicks_has_no_auc():
    label, rows = np.array([1] * 9 + [0] * 30), np.ones(39, dtype=bool)
    found = groups._aucs(label, np.arange(39), {"a": np.random.default_rng(0).random((1, 39))}, rows)
    assert np.isnan(found["a"].auc) and groups._shown(found["a"]) == "-"


def test_histories_of_user_info_have_the_length_that_the_row_points_at(tmp_path):
    users = pl.DataFrame({"user_id": [0, 1, 2], "item_seq": [[], [3, 4, 5], [7]]})
    users.write_parquet(tmp_path / "user_info.parquet")
    rows = pl.DataFrame({"user_id": [2, 1, 1, 0], "history_end": [1, 2, 0, 0]})
    rows.write_parquet(tmp_path / "ends.parquet")
    rows.drop("history_end").write_parquet(tmp_path / "whole.parquet")
    of = {name: groups.history_lengths(tmp_path / f"{name}.parquet", tmp_path / "user_info.parquet") for name in ("ends", "whole")}  # fmt: skip  # noqa: E501
    assert of["ends"].tolist() == [1, 2, 0, 0] and of["whole"].tolist() == [1, 3, 3, 0]


def test_calibration(studied):
    _, out = studied
    lines = lines_of(out, "calibration")
    for expid, tables in scores_of(out).items():
        own = [line for line in lines if line["expid"] == expid]
        errors = []
        for table in tables:
            clicks, score = calibration_curve(table.label, table.score, n_bins=10, strategy="quantile")
            edges = np.quantile(table.score, np.linspace(0, 1, 11))
            rows = np.histogram(table.score, edges)[0]
            errors.append(np.sum(rows * np.abs(clicks - score)) / len(table))
        assert float(own[0]["ece"]) == pytest.approx(np.mean(errors), rel=0.02)  # a row on an edge may be in either bin
        assert sum(float(line["rows"]) for line in own) == pytest.approx(len(tables[0]))
        mean = np.average([float(line["score"]) for line in own], weights=[float(line["rows"]) for line in own])
        assert mean == pytest.approx(np.mean([table.score.mean() for table in tables]), rel=1e-4)
        loss = np.mean([log_loss(table.label, table.score) for table in tables])
        (row,) = [
            line for line in (out / "leaderboard.md").read_text().splitlines() if line.startswith(f"| {expid} |")
        ][-1:]
        assert row.split(" | ")[4].strip(" |") == f"{loss:.4f}"


def test_the_error_of_known_bins():
    """Scores 0.1 to 1.0, ten rows each; clicks are twice the score too many in the last bin only."""
    score = np.repeat(np.arange(1, 11) / 10, 10)
    label = np.concatenate([np.arange(10) < 10 * s for s in np.arange(1, 11) / 10]).astype(int)
    assert calibration.calibration_error(calibration.binned(label, score)) == pytest.approx(0, abs=1e-12)
    label[-10:] = 0
    assert calibration.calibration_error(calibration.binned(label, score)) == pytest.approx(0.1)
    sums = calibration.binned(label, np.full(100, 0.5))  # all equal: one bin, and nothing is divided by 0
    assert calibration.calibration_error(sums) == pytest.approx(abs(0.5 - label.mean()))


def test_a_study_is_in_all_the_files(studied):
    _, out = studied
    page, text = (out / "leaderboard.html").read_text(), (out / "leaderboard.md").read_text()
    for name, title in {
        "cold": "AUC by training count",
        "history": "AUC by length",
        "calibration": "Calibration",
    }.items():
        assert f'id="study-{name}"' in page and f"## {title}" in text
        assert f'download="study_{name}.csv"' in page


def test_names_of_strangers_stay_text_in_a_section():
    evil = "</script><img src=x onerror=y>|`=1"
    section = Section("cold", evil, evil, ["a", evil], [[evil, evil]], [{"expid": evil}], failed=[evil])
    assert "<img" not in as_html(section) and "<img" not in "".join(as_markdown(section))


def test_experiments_on_different_rows_are_not_studied(studied, capsys):
    data, out = studied
    config = data.parent / "config"
    text = (config / "dataset_config.yaml").read_text()
    other = text.replace("TEST_DATA:", "OTHER:").replace("valid.parquet", "train.parquet")
    (config / "dataset_config.yaml").write_text(text + other)
    with open(config / "model_config.yaml", "a") as opened:
        opened.write("Other_test:\n    <<: *test\n    dataset_id: OTHER\n")
    code, _, error = benchmark(config, out, "--study", "cold", "--expids", "FiBiNET_test", "Other_test", capsys=capsys)
    assert code == 2 and error.count("\n") == 1
    assert "--study cold: FiBiNET_test has valid_data" in error and "expected the same for all" in error


def test_what_one_model_is_above_another_the_other_is_below_it():
    rng = np.random.default_rng(1)
    label, user = rng.integers(0, 2, 200), rng.integers(0, 30, 200)
    scores = {name: rng.random((2, 200)) + shift * label for name, shift in {"a": 0.1, "b": 0.3}.items()}
    pairs = Pairs(label, user, scores)
    there, back = pairs.compare("b", "a"), pairs.compare("a", "b")
    expected = (-there.difference, there.p_delong, -there.high, -there.low, there.p_bootstrap)
    assert tuple(back) == pytest.approx(expected, abs=1e-12)


def test_data_that_a_study_cannot_read_is_refused_before_anything_runs(tmp_path, capsys):
    config = make_dataset(tmp_path, rows=60)
    valid = tmp_path / "TEST_DATA/valid.parquet"
    rows = pl.read_parquet(valid)
    for column, study in {"item_id": "cold", "item_seq": "history"}.items():
        rows.drop(column).write_parquet(valid)
        code, _, error = benchmark(config, tmp_path / "out", "--study", study, capsys=capsys)
        assert code == 2 and error.startswith(f"error: --study {study}: {valid} has no column {column}, found user_id")
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    rows.write_parquet(valid)
    other = tmp_path / "item_info.parquet"
    other.write_bytes((tmp_path / "TEST_DATA/item_info.parquet").read_bytes())
    with pytest.raises(UserError, match=r"--study modality: a has item_info .*, b has .*expected the same for all"):
        require(["modality"], [planned("a", tmp_path / "TEST_DATA/item_info.parquet"), planned("b", other)])
    require(["cold"], [planned("a", tmp_path / "TEST_DATA/item_info.parquet"), planned("b", other)])
    for study in ("modality", "modality_retrained", "protocol"):
        with pytest.raises(UserError, match=rf"^--study {study}: data set TEST has no item_info"):
            require([study], [Job("a", 1, tmp_path, params={"dataset_id": "TEST"})])


def planned(expid, item_info):
    """A job as far as `require` looks at it."""
    data = item_info.parent / "TEST_DATA" if (item_info.parent / "TEST_DATA").is_dir() else item_info.parent
    files = {"train_data": str(data / "train.parquet"), "valid_data": str(data / "valid.parquet")}
    return Job(expid, 1, item_info.parent, params={**files, "item_info": str(item_info), "dataset_id": "TEST"})

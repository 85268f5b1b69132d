"""The tuner: FuxiCTR's grid, Optuna's trials as processes, the best by the validation split, never the test split."""

import csv
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import fuxictr.autotuner
import pytest
import yaml
from conftest import EMB_DIM, NUM_ITEMS, NUM_TAGS, ROOT, make_dataset, run_script
from sklearn.metrics import roc_auc_score

import model_zoo
from mm_fibinet import files, run_result, settings
from mm_fibinet.commands import tune
from mm_fibinet.compare import jobs
from mm_fibinet.compare.search import Search
from mm_fibinet.compare.tuner import read_tuner
from mm_fibinet.compare.tuner_optuna import run_trials
from mm_fibinet.errors import UserError
from mm_fibinet.run_result import read_scores

# The organisers' files: a template whose dataset_id is open, and a tuner that brings the data set along.
DIN_DEFAULT = """
Base:
    model_root: './checkpoints/'
    num_workers: 3
    verbose: 1
    early_stop_patience: 3
    pickle_feature_encoder: True
    save_best_only: True
    eval_steps: null
    debug_mode: False
    group_id: user_id
    use_features: null
    feature_specs: null
    feature_config: null

DIN_default: # This is a config template
    model: DIN
    dataset_id: TBD
    loss: 'binary_crossentropy'
    metrics: [AUC, logloss]
    task: binary_classification
    optimizer: adam
    learning_rate: 1.0e-3
    embedding_regularizer: 0
    net_regularizer: 0
    batch_size: 4096
    embedding_dim: 8
    dnn_hidden_units: [16]
    dnn_activations: ReLU
    attention_hidden_units: [8]
    attention_hidden_activations: ReLU
    attention_output_activation: null
    attention_dropout: 0.1
    din_use_softmax: False
    net_dropout: 0
    batch_norm: True
    epochs: 2
    shuffle: True
    seed: 20242025
    monitor: "AUC"
    monitor_mode: 'max'
    max_len: 10
    accumulation_steps: 1
"""
ORGANISERS = """
base_config: ./din_config/
base_expid: DIN_default
dataset_id: MicroLens_1M_x1

dataset_config:
    MicroLens_1M_x1:
        data_root: {data}/
        data_format: parquet
        train_data: {data}/train.parquet
        valid_data: {data}/valid.parquet
        test_data: {data}/no_such_test.parquet
        item_info: {data}/item_info.parquet
        rebuild_dataset: False
        feature_cols:
            - {{name: user_id, active: True, dtype: int, type: meta}}
            - {{name: item_seq, active: True, dtype: int, type: meta}}
            - {{name: likes_level, active: True, dtype: int, type: categorical, vocab_size: 11}}
            - {{name: views_level, active: True, dtype: int, type: categorical, vocab_size: 11}}
            - {{name: item_id, active: True, dtype: int, type: categorical, vocab_size: {items}, source: item}}
            - {{name: item_tags, dtype: int, type: sequence, max_len: 5, vocab_size: {tags}, source: item}}
            - {{name: item_emb_d16, active: True, dtype: float, type: embedding, source: item, embedding_dim: {width}}}
        label_col: {{name: label, dtype: float}}

tuner_space:
    embedding_regularizer: [1.e-6, 1.e-7]
    net_regularizer: 0
    net_dropout: 0.1
    learning_rate: 5.e-3
    batch_size: 64
"""

# Stands for run_expid.py where only processes matter: three evaluations whose AUC is learning_rate, or by trial.
FAKE_RUN = """
import argparse, json, sys, time, yaml
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--config", "--expid", "--gpu", "--model_root", "--data_root"): parser.add_argument(name)
parser.add_argument("--set", nargs="+", action="extend")
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
params = yaml.safe_load((Path(args.config) / "model_config.yaml").read_text())[args.expid]
folder = Path(args.model_root) / params["dataset_id"] / args.expid
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as starts: starts.write("start\\n")
if params["batch_size"] == 13: sys.exit("error: the data is not there")
number, text = int(args.expid.split("_")[2]), "epoch,AUC,logloss\\n"
behind = 0.4 - number / 50 if number > 5 else None
level = {7: 0.5}.get(number, 0.4 - number / 50) if params["batch_size"] == 7 else params["learning_rate"]
for epoch in range(1, 6):
    auc = level + epoch / 100
    text += f"{epoch},{auc},0.5\\n"
    (folder / "next.csv").write_text(text)
    (folder / "next.csv").rename(folder / "metrics.csv")
    time.sleep(0.15 if level != behind else 30)  # what falls behind waits to be stopped
(folder / "valid_scores.parquet").touch()
metrics = {"AUC": auc, "logloss": 0.5, "gAUC": 0.5}
(folder / "result.json").write_text(json.dumps({"fingerprint": "fp", "metrics": metrics, "train_seconds": 1}))
"""


def write_organisers(folder: Path, data: Path) -> Path:
    (folder / "din_config").mkdir()
    (folder / "din_config/model_config.yaml").write_text(DIN_DEFAULT)
    path = folder / "din_tuner_01.yaml"
    path.write_text(ORGANISERS.format(data=data, items=NUM_ITEMS, tags=NUM_TAGS, width=EMB_DIM))
    return path


def write_tuner(folder: Path, base: Path, space: str, more: str = "") -> Path:
    path = folder / "tuner.yaml"
    path.write_text(f"base_config: {base}\nbase_expid: FiBiNET_test\n{more}\ntuner_space: {space}\n")
    return path


def make_search(tuner: Path, out: Path, script: str | Path = "run_expid.py", **settings) -> Search:
    return Search(read_tuner(tuner, model_zoo), model_zoo, out, [sys.executable, str(script)], [-1], **settings)


def generated(folder: Path) -> tuple[dict, dict]:
    return tuple(yaml.safe_load((folder / f"{name}_config.yaml").read_text()) for name in ("dataset", "model"))


def read_results(out: Path) -> list[dict]:
    with open(out / "results.csv", newline="") as opened:
        return list(csv.DictReader(opened))


def test_grid_is_fuxictrs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    first = write_organisers(tmp_path, Path("data"))
    more = first.read_text().replace("batch_size: 64", "batch_size: [64, 128]")
    more = more.replace("net_dropout: 0.1", "net_dropout: [0, 0.5, 0.2]\n    attention_hidden_units: [[8, 4]]")
    second = tmp_path / "several.yaml"
    second.write_text(more.replace("rebuild_dataset: False", "rebuild_dataset: True"))
    third = tmp_path / "of_folders.yaml"
    third.write_text("base_config: repository\nbase_expid: FiBiNET_demo\ntuner_space: {embedding_dim: [16, 32]}\n")
    (tmp_path / "repository/model_config").mkdir(parents=True)
    fibinet = (ROOT / "config/model_config/fibinet.yaml").read_text().replace("Base:", "Base:\n    debug_mode: False")
    (tmp_path / "repository/model_config/fibinet.yaml").write_text(fibinet)
    (tmp_path / "repository/dataset_config").symlink_to(ROOT / "config/dataset_config")
    for path, number in ((first, 2), (second, 12), (third, 2)):
        search = make_search(path, tmp_path / "out" / path.stem)
        search.run_grid()
        datasets, experiments = generated(Path(fuxictr.autotuner.enumerate_params(path.name)))
        for dataset_settings in datasets.values():
            del dataset_settings["test_data"]
        assert generated(search.out) == (datasets, experiments)
        assert len(experiments) == number == len(search.rows)


def test_values_that_vary_the_data_get_a_data_set_each(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    columns = "[[{name: user_id, type: meta}], [{name: item_seq, type: meta}]]"
    path = write_tuner(tmp_path, dataset, f"{{feature_cols: {columns}, id_dropout: [0, 0.5], seed: [3, 4]}}")
    search = make_search(path, tmp_path / "out")
    search.run_grid()
    datasets, experiments = generated(search.out)
    assert len(datasets) == 2 and len(experiments) == 8
    assert {(row["seed"], row["id_dropout"], str(row["feature_cols"])) for row in search.rows} == {
        (seed, dropout, str([{"name": name, "type": "meta"}]))
        for seed in (3, 4)
        for dropout in (0, 0.5)
        for name in ("user_id", "item_seq")
    }
    assert {job.seed for job in search.plan(list(experiments))} == {3, 4}


@pytest.fixture
def two_sets(dataset, tmp_path) -> Path:
    """A config folder with a second data set, OTHER, whose rows are fewer."""
    content = yaml.safe_load((dataset / "dataset_config.yaml").read_text())
    other = make_dataset(tmp_path / "other", rows=300).parent / "TEST_DATA"
    entry = {**content["TEST_DATA"], "data_root": str(other.parent), "item_info": str(other / "item_info.parquet")}
    entry.update({f"{split}_data": str(other / f"{split}.parquet") for split in ("train", "valid", "test")})
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "dataset_config.yaml").write_text(yaml.safe_dump({**content, "OTHER": entry}))
    (folder / "model_config.yaml").write_text((dataset / "model_config.yaml").read_text())
    return folder


def trained_on(search: Search, monkeypatch) -> list[str]:
    """The training files of a search's grid, in the order of its experiments."""
    monkeypatch.setattr(jobs, "run_all", lambda *_: None)
    search.run_grid()
    return [job.params["train_data"] for job in search.plan(list(search.experiments))]


def test_dataset_id_chooses_the_data(dataset, two_sets, tmp_path, monkeypatch):
    """In tuner_space, in the YAML and by --set; several in tuner_space are several data sets to train on."""
    first = str(dataset.parent / "TEST_DATA/train.parquet")
    other = str(tmp_path / "other/TEST_DATA/train.parquet")
    plain = make_search(write_tuner(tmp_path, two_sets, "{epochs: [1, 2]}"), tmp_path / "plain")
    assert trained_on(plain, monkeypatch) == [first] * 2
    for name, space, more, overrides in (
        ("scalar", "{dataset_id: OTHER, epochs: [1, 2]}", "", []),
        ("listed", "{dataset_id: [OTHER], epochs: [1, 2]}", "", []),
        ("yaml", "{epochs: [1, 2]}", "dataset_id: OTHER", []),
        ("set", "{epochs: [1, 2]}", "", ["dataset_id=OTHER"]),
        ("set_over_scalar", "{epochs: [1, 2], dataset_id: TEST_DATA}", "", ["net_dropout=0.2", "dataset_id=OTHER"]),
    ):
        search = make_search(write_tuner(tmp_path, two_sets, space, more), tmp_path / name, overrides=overrides)
        assert trained_on(search, monkeypatch) == [other] * 2, name
        assert all(dataset_id.startswith("OTHER_") for dataset_id in search.datasets), name
        assert not any(argument.startswith("dataset_id=") for argument in search.command)
    both = make_search(
        write_tuner(tmp_path, two_sets, "{dataset_id: [TEST_DATA, OTHER], epochs: [1, 2]}"), tmp_path / "b"
    )
    assert trained_on(both, monkeypatch) == [first, other] * 2
    assert [row["dataset_id"][:5] for row in both.rows] == ["TEST_", "OTHER"] * 2
    with pytest.raises(UserError, match="--set dataset_id: tuner_space varies it"):
        make_search(tmp_path / "tuner.yaml", tmp_path / "c", overrides=["dataset_id=OTHER"])


def test_a_run_on_another_data_set(two_sets, tmp_path, monkeypatch, capsys):
    """The real command: what was trained on is in the run's manifest."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tuner = write_tuner(tmp_path, two_sets, "{epochs: 1}")
    arguments = ["--config", tuner, "--out", tmp_path / "out", "--set", "dataset_id=OTHER"]
    code, _, error = run_script("run_param_tuner", *arguments, capsys=capsys)
    assert code == 0, error
    (manifest,) = (tmp_path / "out/runs").rglob("manifest.json")
    other = str(tmp_path / "other/TEST_DATA/train.parquet")
    assert json.loads(manifest.read_text())["data"]["train_data"]["path"] == other


def test_scalars_and_lists_are_fuxictrs(dataset, tmp_path):
    """A list is a choice, also for a setting that is a list itself; anything else is one value."""
    space = "{hidden_units: [[8], [8, 4]], metrics: [[gAUC, AUC, logloss]], monitor: {gAUC: 1, AUC: 1}, epochs: 1}"
    tuner = read_tuner(write_tuner(tmp_path, dataset, space), model_zoo)
    _, experiments = tuner.combine(tuner.space)
    assert [settings["hidden_units"] for settings in experiments.values()] == [[8], [8, 4]]
    assert all(settings["monitor"] == {"gAUC": 1, "AUC": 1} for settings in experiments.values())
    assert all(settings["metrics"] == ["gAUC", "AUC", "logloss"] for settings in experiments.values())


def test_what_is_shown_of_a_search_is_text(dataset, tmp_path, capsys):
    search = make_search(write_tuner(tmp_path, dataset, "{learning_rate: [0.1, 0.2]}"), tmp_path / "a\x1b[2Jb")
    state = {"state": "failed", "valid_monitor": None, "train_seconds": None, "error": "\u202e is\nno column"}
    search.rows = [{"expid": "a\x1b[31m", "learning_rate": "\x9b", **state}]
    tune.show(search)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    _, row, failed, results = shown.splitlines()
    assert row.split() == [r"a\x1b[31m", "failed", "-", "-", r"\x9b"]
    assert failed == r"failed    a\x1b[31m: \u202e is\nno column" and r"a\x1b[2Jb" in results


def test_results_csv_holds_any_text_and_no_formula(dataset, tmp_path):
    search = make_search(write_tuner(tmp_path, dataset, "{learning_rate: [0.1, 0.2]}"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    row = {"expid": "x", "state": "failed", "valid_monitor": None, "learning_rate": 0.123456789}
    search.keep([{**row, "error": "data\udcff/train.parquet: no such file"}, {**row, "error": "=1+1"}])
    with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["error"] for row in rows] == [r"data\udcff/train.parquet: no such file", "'=1+1"]
    assert {row["learning_rate"] for row in rows} == {"0.123456789"}


def test_organisers_tuner(tmp_path, monkeypatch, capsys):
    """The real command: the grid, its table, the best experiment, and its command once more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_dataset(tmp_path / "set", rows=900)
    path = write_organisers(tmp_path, tmp_path / "set/TEST_DATA")
    out = tmp_path / "tuner/din_tuner_01"
    code, printed, error = run_script("run_param_tuner", "--config", path.name, capsys=capsys)
    assert code == 0, error
    assert "test_data is left out" in printed
    datasets, experiments = generated(out)
    assert list(datasets) == ["MicroLens_1M_x1"] and "test_data" not in datasets["MicroLens_1M_x1"]

    rows = read_results(out)
    assert {row["expid"] for row in rows} == set(experiments)
    values = []
    for row in rows:
        (folder,) = filter(Path.is_dir, (out / "runs" / row["expid"]).glob("*/MicroLens_1M_x1/DIN_*"))
        scores = read_scores(folder)
        values.append(roc_auc_score(scores["label"], scores["score"]))
        assert float(row["valid_monitor"]) == pytest.approx(values[-1])
        assert not {"test_data"} & set(json.loads((folder / "manifest.json").read_text())["data"])
        assert json.loads((folder / "manifest.json").read_text())["config"]["embedding_regularizer"] == float(
            row["embedding_regularizer"]
        )
    assert values == sorted(values, reverse=True)
    shown = dict(line.split(maxsplit=1) for line in printed.splitlines()[-3:])
    assert shown["best"] == rows[0]["expid"] and Path(shown["results"]) == Path("tuner/din_tuner_01/results.csv")

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    tagged = run_script("run_param_tuner", "--config", path.name, "--tag", rows[1]["expid"][-8:], capsys=capsys)
    assert tagged[0] == 0 and f"best      {rows[1]['expid']}" in tagged[1]
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before

    python, script, *arguments = shlex.split(shown["repeat"])
    assert (python, Path(script).resolve()) == ("python", ROOT / "run_expid.py")
    assert run_script("run_expid", *arguments, capsys=capsys)[0] == 0
    repeated = json.loads((tmp_path / f"checkpoints/MicroLens_1M_x1/{shown['best']}/result.json").read_text())
    assert repeated["metrics"]["AUC"] == pytest.approx(values[0], abs=1e-6)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([str(ROOT / "run_expid.py")], [os.path.relpath(ROOT / "run_expid.py")]),
        (
            [str(ROOT / "run_expid.py"), "--models_from", "a b"],
            [os.path.relpath(ROOT / "run_expid.py"), "--models_from", "a b"],
        ),
        (["-m", "mm_fibinet", "train"], ["-m", "mm_fibinet", "train"]),
        (["-m", "mm_fibinet", "train", "--models_from", "/a"], ["-m", "mm_fibinet", "train", "--models_from", "/a"]),
    ],
)
def test_the_best_is_repeated_by_the_command_that_ran_it(dataset, tmp_path, command, expected):
    tuner = tmp_path / "tuner.yaml"
    tuner.write_text(f"base_config: {dataset}\nbase_expid: FiBiNET_test\ntuner_space:\n    net_dropout: [0, 0.1]\n")
    search = Search(
        read_tuner(tuner, model_zoo),
        model_zoo,
        tmp_path / "out",
        [sys.executable, *command],
        [-1],
        ["epochs=1"],
        seed=3,
    )
    arguments = ["--config", str(tmp_path / "out"), "--expid", "X", "--gpu", "-1", "--set", "epochs=1", "seed=3"]
    assert shlex.split(search.repeat_command("X")) == ["python", *expected, *arguments]


@pytest.fixture
def fake(dataset, tmp_path, monkeypatch):
    """A function: a search over this space whose runs are the fake's."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(run_result, "fingerprint", lambda params, data: "fp")
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
    script = tmp_path / "fake.py"
    script.write_text(FAKE_RUN)

    def search(space: str, out: str = "out", **settings) -> Search:
        tuner = write_tuner(tmp_path, dataset, space)
        return make_search(tuner, tmp_path / out, script, overrides=["epochs=5"], **settings)

    return search


def trials_of(search: Search) -> list:
    optuna = pytest.importorskip("optuna")
    backend = optuna.storages.journal.JournalFileBackend(str(search.out / "study.journal"))
    return optuna.load_study(study_name="FiBiNET_test", storage=optuna.storages.JournalStorage(backend)).trials


def test_trials_that_fall_behind_are_pruned(fake, capsys):
    search = fake("{learning_rate: {low: 0.1, high: 0.9}, batch_size: 7}")
    run_trials(search, 8)
    printed = capsys.readouterr().out
    trials = trials_of(search)  # each behind all before it, but for the seventh; the rule needs five to compare with,
    # and a trial's fourth evaluation
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE", "PRUNED"]
    for trial in trials:
        level = {7: 0.5}.get(trial.number + 1, 0.4 - (trial.number + 1) / 50)
        steps = len(trial.intermediate_values)
        assert trial.intermediate_values == {n: pytest.approx(level + n / 100) for n in range(1, steps + 1)}
        assert 4 <= steps <= 5 and (steps == 5) == (trial.state.name == "COMPLETE")
    assert search.best()["expid"] == trials[6].user_attrs["expid"]
    assert f"pruned  {trials[5].user_attrs['expid']}: behind after evaluation" in printed
    rows = read_results(search.out)
    assert [row["state"] for row in rows] == ["done"] * 6 + ["pruned"] * 2
    assert [row["expid"][13:16] for row in rows] == ["007", "001", "002", "003", "004", "005", "006", "008"]
    _, experiments = generated(search.out)
    assert experiments[rows[0]["expid"]]["learning_rate"] == trials[6].params["learning_rate"]


def test_a_stopped_search_goes_on_as_if_it_had_not(fake):
    space = "{learning_rate: {low: 1.0e-3, high: 0.5, log: True}, batch_size: {low: 32, high: 64, step: 16}}"
    whole = fake(space, "whole")
    run_trials(whole, 4)
    stopped = fake(space, "stopped")

    def stop_in_third():
        while not list((stopped.out / "runs").glob("FiBiNET_test_003_*/*/*/*/starts")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_in_third, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_trials(stopped, 4)
    assert [row["state"] for row in stopped.rows] == ["done", "done", "stopped"]
    again = fake(space, "stopped")
    run_trials(again, 4)
    assert [trial.params for trial in trials_of(again)] == [trial.params for trial in trials_of(whole)]
    assert again.rows == whole.rows and len(again.rows) == 4
    starts = {path.parent.name[:16]: len(path.read_text().split()) for path in again.out.rglob("starts")}
    assert starts == {f"FiBiNET_test_00{n}": 1 + (n == 3) for n in (1, 2, 3, 4)}
    assert {row["batch_size"] for row in again.rows} <= {32, 48, 64}
    run_trials(fake(space, "stopped"), 4)
    assert len(trials_of(again)) == 4
    with pytest.raises(UserError, match="a search over other settings or data"):
        run_trials(fake("{learning_rate: [0.1, 0.2]}", "stopped"), 4)


def test_a_combination_runs_once_and_a_failed_one_is_a_row(fake):
    search = fake("{hidden_units: [[8], [8, 4]], batch_size: [13, 64], learning_rate: 0.2}", seed=4)
    run_trials(search, 9)
    trials = trials_of(search)
    fine = [trial for trial in trials if trial.params["batch_size"] == "64"]
    assert len(trials) == 9 > len(search.rows)
    assert {trial.state.name for trial in fine} == {"COMPLETE"}
    assert {trial.state.name for trial in trials if trial not in fine} == {"FAIL"}
    done = [row for row in search.rows if row["state"] == "done"]
    assert len(done) == len({trial.params["hidden_units"] for trial in fine}) < len(fine)
    assert {row["error"] for row in search.rows if row["state"] == "failed"} == {"the data is not there"}
    assert all(row["hidden_units"] in ([8], [8, 4]) for row in search.rows)


@pytest.mark.parametrize("optuna", [False, True])
def test_a_search_changes_its_folder_only_while_it_holds_it(fake, monkeypatch, optuna):
    """The config that another search's runs are reading is not replaced under them."""
    search, add, refused = fake("{learning_rate: [0.1]}", "out"), Search.add, []

    def watched(self, *config):
        with pytest.raises(UserError, match="another process is at work there") as stopped, files.locked(self.out):
            pass
        refused.append(stopped.value)
        add(self, *config)

    monkeypatch.setattr(Search, "add", watched)
    run_trials(search, 1) if optuna else search.run_grid()
    assert refused and search.best()


@pytest.mark.parametrize("loss", ["logloss", "binary_crossentropy"])
def test_a_weighted_monitor_that_should_fall(fake, loss):
    """A result has the loss under the first name, whatever the config calls it."""
    space = f"{{monitor: {{AUC: -1, {loss}: 2}}, monitor_mode: min, learning_rate: [0.3, 0.1, 0.2]}}"
    for name, run in (("grid", Search.run_grid), ("trials", lambda search: run_trials(search, 3))):
        search = fake(space, name)
        run(search)
        values = [row["valid_monitor"] for row in search.rows]
        assert values == [pytest.approx(2 * 0.5 - row["learning_rate"] - 0.05) for row in search.rows]
        assert values == sorted(values) and search.best() == search.rows[0]


def test_optuna_command(tmp_path, monkeypatch, capsys):
    """The real command under Optuna: a trial's value is its run's AUC on the validation split."""
    pytest.importorskip("optuna")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = make_dataset(tmp_path, rows=300)
    tuner = write_tuner(tmp_path, base, "{learning_rate: {low: 1e-3, high: 1e-2, log: true}, epochs: 1}")
    out = tmp_path / "out"
    code, printed, error = run_script("run_param_tuner", "--config", tuner, "--optuna", 1, "--out", out, capsys=capsys)
    assert code == 0, error
    (row,) = read_results(out)
    (folder,) = filter(Path.is_dir, (out / "runs").glob("*/*/*/FiBiNET_*"))
    scores = read_scores(folder)
    assert float(row["valid_monitor"]) == pytest.approx(roc_auc_score(scores["label"], scores["score"]))
    assert 1e-3 <= float(row["learning_rate"]) <= 1e-2
    assert not list(folder.glob("*.ckpt")) and list(folder.parent.glob("*.model"))
    assert f"best      {row['expid']}" in printed and row["expid"].startswith("FiBiNET_test_001_")
    assert settings.load_params(str(out), row["expid"], model_zoo)["learning_rate"] == float(row["learning_rate"])


def test_base_config_is_looked_for_beside_the_tuner(tmp_path):
    path = write_organisers(tmp_path, tmp_path)
    assert read_tuner(path, model_zoo).name == "DIN_MicroLens_1M_x1"
    path.write_text(path.read_text().replace("din_config", "nowhere"))
    with pytest.raises(UserError, match="base_config nowhere: no such folder"):
        read_tuner(path, model_zoo)


def test_nobodys_files_are_written_over(tmp_path, capsys):
    config = make_dataset(tmp_path / "data")
    tuner = write_tuner(tmp_path, config, "{epochs: 1}")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "results.csv").write_text("of another experiment\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, name in ((config, "dataset_config.yaml"), (mine, "results.csv")):
        code, _, error = run_script("run_param_tuner", "--config", tuner, "--out", out, capsys=capsys)
        assert (code, error) == (2, f"error: --out {out}: its {name} is not of a tuner; choose another folder\n")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_example_is_sound():
    tuner = read_tuner(ROOT / "config/tuner/FiBiNET_demo.yaml", model_zoo)
    assert len(tuner.combine(tuner.space)[1]) == 8

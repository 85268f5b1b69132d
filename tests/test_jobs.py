"""Runs in processes: what is finished is not repeated, what fails stays apart, a stop stops all of them."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import polars as pl
import pytest
import yaml
from bench_runs import trained_here
from conftest import ROOT, make_dataset, run_script
from sklearn.metrics import roc_auc_score

import model_zoo
from mm_fibinet import run_result
from mm_fibinet.compare import jobs
from mm_fibinet.compare.jobs import CPU, plan, run_all
from mm_fibinet.compare.workers import Workers
from mm_fibinet.errors import UserError
from mm_fibinet.event_files import EventFiles

# Stands for run_expid.py where only processes matter: does what its seed says, and notes that it was started.
FAKE_RUN = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--jobs", "--expid", "--gpu", "--model_root"): parser.add_argument(name)
parser.add_argument("--set", nargs="+", action="extend")
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
seed = args.set[-1].removeprefix("seed=")
fingerprint, folder = json.loads(Path(args.jobs).read_text())[args.expid + seed]
folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as starts: starts.write(f"{time.monotonic()} {os.environ.get('OMP_NUM_THREADS')}\\n")
if seed == "2": sys.exit("some line\\nerror: the data is not there")
if seed == "6": sys.exit("error: \\x1b[2J is in the data")
if seed == "3": os.kill(os.getpid(), signal.SIGKILL)
if seed == "4": raise ValueError("a bug")
if seed == "5":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit(130)))
    time.sleep(60)
time.sleep(0.4)
(folder / "valid_scores.parquet").touch()
result = {"fingerprint": fingerprint, "metrics": {"AUC": 0.5}, "train_seconds": 1}
(folder / "result.json").write_text(json.dumps(result))
(folder / "ends").write_text(str(time.monotonic()))
"""


@pytest.fixture
def fake(dataset, tmp_path):
    """A function: jobs of these seeds, run by the fake."""
    script, listed = tmp_path / "fake.py", tmp_path / "jobs.json"
    script.write_text(FAKE_RUN)

    def run(seeds, devices=(CPU,), overrides=()):
        planned = plan(str(dataset), ["FiBiNET_test"], seeds, model_zoo, tmp_path / "out", list(overrides))
        listed.write_text(json.dumps({f"{job.expid}{job.seed}": [job.fingerprint, str(job.folder)] for job in planned}))
        with jobs.locked(tmp_path / "out") as lock:
            run_all(planned, [sys.executable, str(script), "--jobs", str(listed)], list(devices), lock)
        return planned

    return run


WORKER = """
import os, sys
from mm_fibinet.compare.workers import serve
fake = compile(open(os.path.join(os.path.dirname(sys.argv[0]), "fake.py")).read(), "fake", "exec")

def run(arguments):
    print(os.getpid())
    exec(fake, {})

serve(run, tidy=lambda: None)
"""


@pytest.mark.parametrize("places", [1, 2])
def test_workers_run_one_after_another(dataset, fake, tmp_path, places):
    planned = plan(str(dataset), ["FiBiNET_test"], [11, 12, 13], model_zoo, tmp_path / "out")
    fake([])
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "jobs.json").write_text(
        json.dumps({f"{job.expid}{job.seed}": [job.fingerprint, str(job.folder)] for job in planned})
    )
    program = [sys.executable, str(tmp_path / "worker.py")]
    with jobs.locked(tmp_path / "out") as lock, Workers(program, lock) as workers:
        run_all(planned, [*program, "--jobs", str(tmp_path / "jobs.json")], [CPU] * places, lock, workers)
    assert all(job.result() and job.error is None for job in planned)
    assert len({job.output.read_text() for job in planned}) == places


def starts(job):
    return (job.folder / "starts").read_text().splitlines()


def test_what_a_run_says_of_its_data_is_shown_as_text(fake, capsys):
    (job,) = fake([6])
    assert job.error == "\x1b[2J is in the data"
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and r"seed 6: \x1b[2J is in the data" in shown


def test_failures_stay_apart_and_finished_runs_are_not_repeated(fake):
    for expected_starts in (1, 2):
        fine, stated, killed, bug = fake([1, 2, 3, 4])
        assert fine.result() and fine.error is None and len(starts(fine)) == 1
        assert stated.error == "the data is not there"
        assert killed.error.startswith("ended by SIGKILL (out of memory?); see ")
        assert bug.error.startswith("ValueError: a bug (exit code 1, see ")
        assert [len(starts(job)) for job in (stated, killed, bug)] == [expected_starts] * 3


def test_a_run_whose_auc_is_undefined_is_a_row_without_figures(fake):
    (job,) = fake([1])
    path = job.folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"AUC": None}}))
    assert jobs._close(job, 0) == "done    FiBiNET_test seed 1: AUC undefined, 1 s of training"
    assert job.outcome().result is None and "all validation labels are the same" in job.outcome().error


def test_a_changed_setting_runs_again(fake):
    fake([1])
    (job,) = fake([1], overrides=["learning_rate=0.1"])
    assert len(starts(job)) == 2 and job.result()
    (job,) = fake([1], overrides=["epochs=3"])
    assert len(starts(job)) == 3


def test_only_a_run_of_other_settings_is_cleared(dataset, tmp_path, capsys):
    """The command resumes; what it would refuse to resume has to be gone before."""
    (job,) = plan(str(dataset), ["FiBiNET_test"], [7], model_zoo, tmp_path / "out", ["epochs=1"])
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", job.model_root, "--set", "seed=7"]
    assert run_script("run_expid", *arguments, "epochs=1", capsys=capsys)[0] == 0
    kept = {path: path.read_bytes() for path in job.model_root.rglob("*") if path.is_file()}
    (longer,) = plan(str(dataset), ["FiBiNET_test"], [7], model_zoo, tmp_path / "out", ["epochs=2"])
    jobs._clear_other_run(job)
    jobs._clear_other_run(longer)
    assert {path: path.read_bytes() for path in job.model_root.rglob("*") if path.is_file()} == kept
    (other,) = plan(str(dataset), ["FiBiNET_test"], [7], model_zoo, tmp_path / "out", ["learning_rate=0.1"])
    jobs._clear_other_run(other)
    left = {path.name for path in job.model_root.rglob("*") if path.is_file()}
    assert left == {"FiBiNET_test.log", ".lock", "config.csv"}
    code, out, err = run_script("run_expid", *arguments, "learning_rate=0.1", "--resume", capsys=capsys)
    assert code == 0 and "Resumed" not in out, err


def test_a_run_of_fewer_epochs_is_not_that_of_more(dataset, tmp_path):
    """What a benchmark has trained for three epochs says nothing of one, which is trained anew."""
    found = {}
    for name, several in {"after three": (3, 1), "alone": (1,)}.items():
        for epochs in several:
            changes = [f"epochs={epochs}", "learning_rate=1e-3"]
            (job,) = plan(str(dataset), ["FiBiNET_test"], [7], model_zoo, tmp_path / name, changes)
            command = ["python", "run_expid.py", "--config", str(dataset), "--set", *changes]
            with trained_here(), jobs.locked(tmp_path / name) as lock:
                run_all([job], command, [CPU], lock)
            assert job.error is None and len(job.evaluations()) == epochs
            found[name] = job.result()["metrics"]
    assert found["after three"] == found["alone"]


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine with eight cores, whose user has not said how many threads a process takes."""
    for name in jobs.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 8)


def threads_of(job):
    """OMP_NUM_THREADS as the run's process saw it."""
    return starts(job)[0].split()[1]


@pytest.mark.usefixtures("eight_cores")
def test_places_share_the_work_and_the_cores(fake):
    done = fake([11, 12, 13, 14], devices=(CPU, CPU))
    began = [float(starts(job)[0].split()[0]) for job in done]
    ended = [float((job.folder / "ends").read_text()) for job in done]
    at_once = [sum(began[i] <= began[j] < ended[i] for i in range(4)) for j in range(4)]
    assert max(at_once) == 2
    assert all(threads_of(job) == "4" for job in done)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("devices", "expected"), [((CPU,), "None"), ((0, 1), "4"), ((CPU,) * 3, "2"), ((CPU,) * 9, "1")]
)
def test_threads_of_a_run(fake, devices, expected):
    """Runs on GPUs share the cores too; a run alone takes them all."""
    assert threads_of(*fake([11], devices)) == expected


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("name", jobs.THREADS)
def test_threads_that_the_user_has_set_are_left_alone(fake, monkeypatch, name):
    monkeypatch.setenv(name, "3")
    assert threads_of(*fake([11], (CPU, CPU))) == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "None"}[name]


def test_sigterm_stops_the_runs(fake, tmp_path):
    folder = tmp_path / "out/runs/FiBiNET_test/5/TEST_DATA/FiBiNET_test"

    def stop_when_started():
        while not (folder / "starts").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_started, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        fake([5, 1])
    assert (folder / "stopped").exists()
    assert not (tmp_path / "out/runs/FiBiNET_test/1").exists()


def test_runs_that_outlive_their_benchmark_are_waited_for(fake, tmp_path, capsys):
    (job,) = fake([1])
    (job.folder / "ends").unlink()
    command = [sys.executable, str(tmp_path / "fake.py"), "--jobs", str(tmp_path / "jobs.json")]
    with jobs.locked(tmp_path / "out") as lock:
        process = jobs.start(job, command, CPU, 1, lock)
    with jobs.locked(tmp_path / "out"):
        assert (job.folder / "ends").exists()
    assert process.wait() == 0
    assert "still at work there; waiting for them" in capsys.readouterr().err


def test_killed_half_way_and_started_again(tmp_path, capsys):
    """The real command: stopped after its first run, it goes on with the second, and a broken third is a row."""
    config = make_dataset(tmp_path, rows=900)
    train = pl.read_parquet(tmp_path / "TEST_DATA/train.parquet")
    train.filter(pl.col("item_id") < 30).write_parquet(tmp_path / "TEST_DATA/train.parquet")
    with open(config / "model_config.yaml", "a") as opened:
        opened.write("Broken_test:\n    <<: *test\n    model: NoSuchModel\n")
    (config / "benchmark_config.yaml").write_text("three: [FiBiNET_test_no_emb, FiBiNET_test, Broken_test]\n")
    out = tmp_path / "out"
    arguments = ["--config", config, "--suite", "three", "--seeds", "7", "--out", out, "--set", "tensorboard=true"]
    folders = [out / f"runs/{e}/7/TEST_DATA/{e}" for e in ("FiBiNET_test_no_emb", "FiBiNET_test")]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, ROOT / "run_benchmark.py", *arguments], env=environment)
    while first.poll() is None and not (folders[1].parent.parent / "output.log").exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130
    assert (folders[0] / "result.json").exists() and not (folders[1] / "result.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folders[0].rglob("*")}

    with trained_here() as trained:
        code, _, _ = run_script("run_benchmark", *arguments, capsys=capsys)
    assert code == 1 and [job.expid for job in trained] == ["FiBiNET_test"]  # one run failed
    assert {path: path.stat().st_mtime_ns for path in folders[0].rglob("*")} == before
    with open(out / "leaderboard.csv", newline="") as opened:
        rows = {row["expid"]: row for row in csv.DictReader(opened)}
    assert set(rows) == {"FiBiNET_test_no_emb", "FiBiNET_test", "Broken_test"}
    assert "model 'NoSuchModel' is unknown" in rows["Broken_test"]["error"]
    check_result(tmp_path / "TEST_DATA", folders[1], rows["FiBiNET_test"])
    check_events(folders[1])
    assert "NoSuchModel" in (out / "leaderboard.html").read_text()
    assert "NoSuchModel" in (out / "leaderboard.md").read_text()


def check_result(data, folder, row):
    """result.json and the leaderboard's line against numbers worked out from the run's scores and the data."""
    result = json.loads((folder / "result.json").read_text())
    scores = pl.read_parquet(folder / "valid_scores.parquet")
    valid = pl.read_parquet(data / "valid.parquet")
    label, score = valid["label"].to_numpy(), scores["score"].to_numpy()
    cold = valid["item_id"].to_numpy() >= 30
    assert scores["label"].to_list() == label.tolist() and scores["user_id"].equals(valid["user_id"])
    assert scores["cold"].to_list() == cold.tolist()
    assert result["metrics"]["AUC"] == pytest.approx(roc_auc_score(label, score))
    assert result["cold"] == {
        "rows": int(cold.sum()),
        "AUC": pytest.approx(roc_auc_score(label[cold], score[cold])),
    }
    with open(folder / "metrics.csv", newline="") as opened:
        history = list(csv.DictReader(opened))
    best = max(float(entry["AUC"]) for entry in history)
    assert best == pytest.approx(result["metrics"]["AUC"])
    train_rows = len(pl.read_parquet(data / "train.parquet"))
    seconds = np.cumsum([train_rows / float(entry["rows_per_second"]) for entry in history])
    at = [float(entry["AUC"]) for entry in history].index(best)
    assert result["seconds_to_best"] == pytest.approx(seconds[at], abs=0.01)
    assert result["train_seconds"] == pytest.approx(seconds[-1], abs=0.01)
    assert float(row["auc"]) == pytest.approx(best, abs=1e-6)
    assert float(row["auc_cold"]) == pytest.approx(result["cold"]["AUC"], abs=1e-6)
    assert int(row["parameters"]) == json.loads((folder / "manifest.json").read_text())["parameters"]


def read_events(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check_events(folder):
    """The event files hold what metrics.csv holds."""
    found = read_events(folder / "tensorboard")
    with open(folder / "metrics.csv", newline="") as opened:
        history = list(csv.DictReader(opened))
    for name in ("AUC", "loss", "learning_rate"):
        assert [step for step, _ in found[name]] == [int(entry["step"]) for entry in history]
        np.testing.assert_allclose([v for _, v in found[name]], [float(entry[name]) for entry in history], rtol=1e-6)


def test_event_files_of_a_resumed_run_hold_each_evaluation_once(tmp_path):
    pytest.importorskip("tensorboard")
    history = [{"epoch": i, "step": 10 * i, "AUC": 0.5 + i / 10} for i in (1, 2, 3)]
    stopped = EventFiles(tmp_path / "events")
    stopped(history[:1])
    stopped(history[:2])
    EventFiles(tmp_path / "events")(history)
    found = read_events(tmp_path / "events")
    assert list(found) == ["AUC"]
    assert [step for step, _ in found["AUC"]] == [10, 20, 30]


def test_tensorboard_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        EventFiles(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "x"], "benchmark_config.yaml: no such file"),
        (["--expids", "Nope"], "experiment Nope is not in"),
        (["--expids", "FiBiNET_tset"], "did you mean FiBiNET_test or FiBiNET_test_no_emb?"),
        (["--expids", "FiBiNET_test", "--baseline", "DIN"], "--baseline DIN: not among the experiments"),
        (["--expids", "FiBiNET_test", "--workers", "0"], "--workers 0: expected at least 1"),
        (["--expids", "FiBiNET_test", "--gpus", "99"], "--gpu 99: found"),
        (["--expids", "FiBiNET_test", "--set", "seed=1"], "--set seed: expected --seeds instead"),
    ],
)
def test_bad_arguments(dataset, tmp_path, arguments, message, capsys):
    code, _, error = run_script("run_benchmark", "--config", dataset, "--out", tmp_path, *arguments, capsys=capsys)
    assert code == 2 and message in error and len(error.splitlines()) == 1


def test_the_suites_experiments_exist():
    known = set(jobs.settings.experiment_ids(ROOT / "config"))
    suites = yaml.safe_load((ROOT / "config" / "benchmark_config.yaml").read_text())
    for suite, listed in suites.items():
        expids = jobs.find_suite(str(ROOT / "config"), suite)
        assert expids == listed and set(expids) <= known and len(set(expids)) == len(expids) > 1, suite
    with pytest.raises(UserError, match=f"expected one of {', '.join(sorted(suites))}"):
        jobs.find_suite(str(ROOT / "config"), "nope")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_a_damaged_result_is_none(tmp_path, content):
    (tmp_path / "valid_scores.parquet").touch()
    assert run_result.read_result(tmp_path) is None
    (tmp_path / "result.json").write_bytes(content)
    assert run_result.read_result(tmp_path) is None
    (tmp_path / "result.json").write_bytes(b'{"fingerprint": "f"}')
    assert run_result.read_result(tmp_path) == {"fingerprint": "f"}


@pytest.mark.parametrize("damage", ["not parquet", "cut off", "a column less"])
def test_damaged_scores_are_one_clear_error(tmp_path, damage):
    path = tmp_path / "valid_scores.parquet"
    rows = pl.DataFrame({"label": [0, 1], "score": [0.1, 0.2], "user_id": [1, 2], "cold": [False, True]})
    rows.write_parquet(path)
    assert run_result.read_scores(tmp_path).equals(rows)
    if damage == "a column less":
        rows.drop("score").write_parquet(path)
    else:
        path.write_bytes(b"x" if damage == "not parquet" else path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"valid_scores.parquet: cannot be read .*; remove it and train the run again"):
        run_result.read_scores(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"epoch,AUC\n1,high\n",
        b"epoch,AUC\n1\n",
        b"epoch\n1,2\n",
        b"epoch,AUC\n1,\xff\n",
        b"epoch,AUC\n1,\0\n",
        b"1" * 200_000,
    ],
    ids=["a word", "too short", "too long", "no text", "zeros", "one long cell"],
)
def test_damaged_evaluations_are_one_clear_error(dataset, tmp_path, content):
    [job] = plan(str(dataset), ["FiBiNET_test"], [1], model_zoo, tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "metrics.csv").write_bytes(b"epoch,AUC\n1,0.5\n2,0.6\n")
    assert job.evaluations() == [{"epoch": 1, "AUC": 0.5}, {"epoch": 2, "AUC": 0.6}]
    assert job.state() == "FiBiNET_test seed 1: epoch 2, AUC 0.6000"
    (job.folder / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a run's evaluations .*; remove .*/FiBiNET_test, and the"):
        job.evaluations()
    assert job.state() == "FiBiNET_test seed 1: starting"

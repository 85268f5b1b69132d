"""Two ranks with half of every batch each train and score as one process with the whole batch."""

import csv
import json
import os
import socket
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
import torch
import two_ranks
from conftest import NUM_ITEMS, ROOT, make_dataset
from user_data import make_forms

from mm_fibinet import table_optimizer

SETTINGS = ["net_dropout=0", "eval_steps=1", "epochs=2", "batch_size=24", "early_stop_patience=1000", "metrics=[AUC]"]


def changed(**settings):
    """SETTINGS, some of them otherwise or besides."""
    before = [setting for setting in SETTINGS if setting.partition("=")[0] not in settings]
    return [*before, *(f"{name}={value}" for name, value in settings.items())]


def run(script, ranks, config, runs, *arguments):
    """Run a script alone or under torchrun; fails with its output."""
    prefix = [sys.executable]
    if ranks > 1:
        prefix += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    command = [*prefix, ROOT / script, "--config", config, "--expid", "FiBiNET_test", "--model_root", runs, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def history(runs):
    with open(runs / "TEST_DATA" / "FiBiNET_test" / "metrics.csv", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same experiment by one process and by two: (config, runs of one, runs of two)."""
    folder = tmp_path_factory.mktemp("distributed")
    config = make_dataset(folder, rows=610)
    for ranks in (1, 2):
        run("run_expid.py", ranks, config, folder / f"ranks{ranks}", "--set", *SETTINGS)
    return config, folder / "ranks1", folder / "ranks2"


def test_losses_and_auc_of_every_step_are_equal(pair):
    _, one, two = pair
    first, second = history(one), history(two)
    assert len(first) == len(second) >= 50
    losses = np.array([[float(row["loss"]) for row in rows] for rows in (first, second)])
    np.testing.assert_allclose(losses[1, :50], losses[0, :50], rtol=1e-6)
    aucs = np.array([[float(row["AUC"]) for row in rows] for rows in (first, second)])
    np.testing.assert_allclose(aucs[1], aucs[0], atol=1e-4)


def launch(config, runs, *arguments):
    """run_expid.py with two processes that it starts itself: (exit code, stdout, stderr)."""
    command = [sys.executable, ROOT / "run_expid.py", "--config", config, "--expid", "FiBiNET_test", "--gpu", -1, -1]
    command += ["--model_root", runs, "--set", *SETTINGS, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
    return done.returncode, done.stdout, done.stderr


def test_the_command_starts_ranks_as_torchrun_does(pair, tmp_path):
    config, _, two = pair
    code, out, err = launch(config, tmp_path)
    assert (code, err) == (0, "") and "one of 2 processes" in out
    for column in ("loss", "AUC"):
        assert [row[column] for row in history(tmp_path)] == [row[column] for row in history(two)]


def test_a_mixture_of_losses_on_two_ranks(pair, tmp_path):
    """Before the first step it is the sum of its parts."""
    config, _, two = pair
    first = {"bce": float(history(two)[0]["loss"])}
    for name, loss in {"pairwise": "{pairwise: 1}", "both": "{bce: 0.8, pairwise: 0.2}"}.items():
        run("run_expid.py", 2, config, tmp_path / name, "--set", *changed(epochs=1, loss=loss))
        first[name] = float(history(tmp_path / name)[0]["loss"])
    assert first["both"] == pytest.approx(0.8 * first["bce"] + 0.2 * first["pairwise"], rel=1e-6)


def test_what_ends_two_ranks_is_one_line_and_in_the_log(pair, tmp_path):
    code, out, err = launch(pair[0], tmp_path, "learning_rate=1e30")
    assert code == 2 and err.startswith("error: 203 of 203 scores are NaN") and err.count("\n") == 1
    assert "\r" not in out and "\x1b" not in out
    log = (tmp_path / "TEST_DATA" / "FiBiNET_test.log").read_text().splitlines()
    assert log[-1].endswith(f" ERROR {err.rstrip()}") and sum(" ERROR " in line for line in log) == 1


def test_only_rank_0_writes(pair):
    _, one, two = pair

    def names(runs):
        return sorted(str(path.relative_to(runs)) for path in runs.rglob("*"))

    assert names(one) == names(two)


def test_predictions_of_two_ranks_are_the_same_file(pair, tmp_path):
    config, runs, _ = pair
    for ranks in (1, 2):
        run(
            "prediction.py",
            ranks,
            config,
            runs,
            "--out",
            tmp_path / f"{ranks}.zip",
            "--set",
            *changed(batch_size=16),
        )
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "2.zip") as archive:
        assert pl.read_csv(archive.read("prediction.csv"))["ID"].to_list() == list(range(152))


def test_resume_works_for_two_ranks(pair, tmp_path):
    config, _, whole = pair
    run("run_expid.py", 2, config, tmp_path, "--set", *changed(epochs=1))
    run("run_expid.py", 2, config, tmp_path, "--resume", "--set", *SETTINGS)
    resumed, expected = history(tmp_path), history(whole)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in expected]
    assert [row["AUC"] for row in resumed] == [row["AUC"] for row in expected]


def test_ranks_score_with_the_same_batch_norm(pair, tmp_path):
    """Running statistics differ by rank; what is saved is the first one's, and the evaluation must be of that."""
    config, _, _ = pair
    settings = changed(batch_norm=True, epochs=1, eval_steps="null")
    run("run_expid.py", 2, config, tmp_path, "--set", *settings)
    (trained,) = history(tmp_path)
    result = json.loads((tmp_path / "TEST_DATA" / "FiBiNET_test" / "result.json").read_text())  # of the saved weights
    assert float(trained["AUC"]) == pytest.approx(result["metrics"]["AUC"], abs=1e-9)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two ranks, and one process alone, made of the cases of two_ranks.py: (config, folder, [by rank])."""
    folder = tmp_path_factory.mktemp("two_ranks")
    config = make_dataset(folder, rows=610)
    make_forms(folder / "forms")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "WORLD_SIZE": "2"}
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    command = [sys.executable, ROOT / "tests" / "two_ranks.py", config, folder]
    ranks = [
        subprocess.Popen(list(map(str, command)), env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=-1)
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], b"\n".join(errors).decode()
    return config, folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_ranks_take_the_steps_of_one(results, tmp_path, monkeypatch, case):
    config, _, ranks = results
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", table_optimizer.MIN_ROWS)  # two_ranks lowers it
    expected, losses, *_ = two_ranks.train(config, tmp_path, **two_ranks.CASES[case])
    (first, first_losses, reductions, largest, copies), (second, *_) = ranks[0][case], ranks[1][case]
    assert first_losses == pytest.approx(losses, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: name + text)
        assert torch.equal(second[name], first[name]), name
    steps = 21 if "accumulated" not in case else 7  # 610 rows, 30 a batch
    assert reductions == steps * max(reductions // steps, 1)  # a whole number of buckets a step of the optimizer
    assert reductions // steps <= 2
    assert copies == 0  # gradients are in the buckets that are sent: no memory for them twice
    assert (largest < two_ranks.TABLE_ROWS) == (case not in ("dense", "accumulated"))  # whole tables are not sent


def test_a_signal_to_one_rank_stops_and_saves_both(results):
    _, _, ranks = results
    for rank in ranks:
        assert isinstance(rank["stopped"], dict), rank["stopped"]
        for name, value in ranks[0]["lazy"][0].items():
            assert torch.equal(rank["stopped"][name], value), name


def test_a_parameter_that_nothing_uses_is_named_on_every_rank(results):
    for rank in results[2]:
        assert "Unused: the loss does not depend on spare.weight, spare.bias, so several processes" in rank["unused"]


def test_a_model_with_an_unused_parameter_trains_alone(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", table_optimizer.MIN_ROWS)
    trainer, loader = two_ranks.make_trainer(dataset, tmp_path, model_class=two_ranks.Unused)
    assert len(trainer.fit(loader, None, 1)) == 1


def test_ranks_draw_numbers_of_their_own(results, tmp_path, monkeypatch):
    """The same on both would take the same units from the rows of each."""
    config, _, (first, second) = results
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", table_optimizer.MIN_ROWS)
    assert torch.equal(first["drawn"], two_ranks.drawn(config, tmp_path))
    assert not set(first["drawn"].tolist()) & set(second["drawn"].tolist())


def test_a_batch_with_no_row_for_a_rank_is_refused(results):
    """Its loss would be NaN, and the advice to lower the learning rate."""
    for rank in results[2]:
        assert (
            "a batch has 1 rows (batch_size is 1, of all processes together), expected at least one" in rank["one_row"]
        )


def test_a_machine_is_asked_once_and_all_its_ranks_hear(results):
    assert [rank["asked"] for rank in results[2]] == [(0, "no file, says rank 0")] * 2


def test_a_machine_reads_a_split_once_and_its_ranks_share_the_memory(results, tmp_path, monkeypatch):
    config, _, ranks = results
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", table_optimizer.MIN_ROWS)
    expected = two_ranks.make_trainer(config, tmp_path)[1].data.integers
    for in_memory, in_a_file, apart in ((*rank["shared"], rank["apart"]) for rank in ranks):
        for _, _, rows in (in_memory, in_a_file, apart):
            assert torch.equal(rows, expected)
    for each in (0, 1):
        assert [rank["shared"][each][:2] for rank in ranks] == [(1, 78), (0, 77)]
    assert [rank["apart"][:2] for rank in ranks] == [(1, expected[1, 0].item()), (1, expected[0, 0].item())]


def test_a_machine_reads_its_items_once(results):
    assert [rank["items"] for rank in results[2]] == [(78, NUM_ITEMS, True), (77, NUM_ITEMS, True)]


def test_a_machine_reads_its_users_once_and_ranks_have_the_batches_of_the_row_form(results, tmp_path, monkeypatch):
    _, folder, ranks = results
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", table_optimizer.MIN_ROWS)
    rows = folder / "forms" / "rows" / "config"
    for rank, result in enumerate(ranks):
        loader = two_ranks.make_trainer(rows, tmp_path, shuffle=True)[1]
        loader.rank, loader.world_size = rank, 2
        expected = torch.cat([batch.item_index for batch in loader])
        for note, items in result["users"]:
            assert note == 77 + (1 - rank) and torch.equal(items, expected)

"""A run is a fact: who may write it, what a new start removes, what --resume and prediction.py hold against it."""

import contextlib
import json
import logging
import re
import resource
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ROOT, make_dataset, run_script

import model_zoo
from mm_fibinet import memory, run_manifest, settings
from mm_fibinet.checkpoint import RunCheckpoints, load_weights, save_weights
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import load_item_table
from mm_fibinet.run_folder import RunFolder, RunLog
from mm_fibinet.run_result import read_result
from mm_fibinet.training import Trainer

EXPID = "FiBiNET_test"


class Commands:
    """The scripts on a data set of their own, in this process."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.config = make_dataset(folder, rows=300)
        self.data = folder / "TEST_DATA"
        self.root = folder / "runs"
        self.run = RunFolder(self.root / "TEST_DATA", EXPID)
        self.out = folder / "out.zip"

    def train(self, *changes, resume=False, config=None):
        """(exit code, stdout, stderr) of run_expid.py."""
        arguments = ["--config", config or self.config, "--expid", EXPID, "--model_root", self.root]
        arguments += ["--resume"] if resume else []
        once = [] if any(change.startswith("epochs=") for change in changes) else ["epochs=1"]
        arguments += ["--set", *once, *changes]
        return run_script("run_expid", *arguments, capsys=self.capsys)

    def predict(self, *arguments):
        """(exit code, stdout, stderr) of prediction.py."""
        self.out.unlink(missing_ok=True)
        arguments = ["--expid", EXPID, "--model_root", self.root, "--out", self.out, *arguments]
        return run_script("prediction", *arguments, capsys=self.capsys)

    def scores(self):
        """What prediction.py wrote."""
        with zipfile.ZipFile(self.out) as archive:
            return pl.read_csv(archive.read("prediction.csv"))["Task1&2"].to_numpy()

    def content(self):
        """Every file of the run with its bytes."""
        return {path: path.read_bytes() for path in self.run.folder.parent.rglob("*") if path.is_file()}

    def kept(self):
        """Likewise without the log, where a start that fails says why."""
        return {path: content for path, content in self.content().items() if path != self.run.log}

    def rewrite(self, name, **columns):
        """Replace columns of a data file."""
        path = self.data / f"{name}.parquet"
        pl.read_parquet(path).with_columns(**columns).write_parquet(path)


@pytest.fixture
def commands(tmp_path, capsys):
    """Scripts on a data set that the test may change."""
    return Commands(tmp_path, capsys)


@pytest.fixture
def trained(commands):
    """Likewise, with a finished run."""
    code, _, err = commands.train()
    assert code == 0, err
    return commands


def other_items(commands):
    """item_info with another embedding, elsewhere."""
    table = pl.read_parquet(commands.data / "item_info.parquet")
    path = commands.folder / "other" / "item_info.parquet"
    path.parent.mkdir()
    table.with_columns(pl.col("item_emb_d16").reverse().shift(1, fill_value=[0.0] * 16)).write_parquet(path)
    return path


# prediction.py starts from the run


def test_prediction_needs_no_setting_again(commands):
    items = other_items(commands)
    changes = ["embedding_dim=4", "max_len=5", f"item_info={items}"]
    assert commands.train(*changes)[0] == 0
    code, out, err = commands.predict()  # the default --config does not even know the experiment
    assert code == 0, err
    assert str(commands.run.manifest) in out

    params = settings.load_params(commands.config, EXPID, model_zoo, changes)
    feature_map = build_feature_map(params)
    model = model_zoo.FiBiNET(feature_map, **params)
    load_weights(model, commands.run.weights)
    table = load_item_table(items, model.item_side_features())
    arguments = {**params, "item_info": table, "shuffle": False, "batch_format": "indices"}
    expected = model.predict(MMCTRDataLoader(feature_map, params["test_data"], split="test", **arguments))
    np.testing.assert_allclose(commands.scores(), expected, atol=1e-6)


def test_prediction_refuses_other_items_unless_they_are_meant(trained):
    assert trained.predict()[0] == 0
    expected = trained.scores()
    items = other_items(trained)
    code, _, err = trained.predict("--set", f"item_info={items}")
    assert code == 2 and not trained.out.exists()
    assert f"was trained on another item_info: {trained.data}/item_info.parquet (sha256 " in err
    assert f"now {items} (sha256 " in err and "--allow_other_data" in err
    assert trained.predict("--set", f"item_info={items}", "--allow_other_data")[0] == 0
    assert np.abs(trained.scores() - expected).max() > 0.01
    shutil.copy(items, trained.data / "item_info.parquet")  # the same path, other bytes
    assert trained.predict()[0] == 2


def test_prediction_refuses_another_item_feature(trained):
    path = trained.folder / "item_feature.parquet"
    pl.read_parquet(path).with_columns(likes_level=pl.lit(3)).write_parquet(path)
    code, _, err = trained.predict()
    assert code == 2 and f"was trained on another item_feature: {path} (sha256 " in err
    assert trained.predict("--allow_other_data")[0] == 0


def test_the_data_may_move(trained):
    assert trained.predict()[0] == 0
    expected = trained.scores()
    moved = trained.folder / "moved"
    moved.mkdir()
    trained.data.rename(moved / "TEST_DATA")
    shutil.move(trained.folder / "item_feature.parquet", moved)
    code, _, err = trained.predict("--data_root", moved)
    assert code == 0, err
    assert trained.scores().tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("max_len=4", "max_len is 4, was 10"),
        ("history_levels=True", "history_levels is true, was not set"),
        ("embedding_dim=16", "embedding_dim is 16, was 8"),
    ],
)
def test_settings_given_again_must_agree(trained, change, message):
    code, _, err = trained.predict("--set", change)
    assert code == 2 and not trained.out.exists()
    assert message in err and "--allow_other_data" in err


def test_settings_that_agree_or_do_not_matter_may_be_given_again(trained):
    code, _, err = trained.predict("--config", trained.config, "--set", "max_len=10", "batch_size=7", "epochs=9")
    assert code == 0, err


def test_a_config_changed_since_is_noticed_when_it_is_named(trained):
    path = trained.config / "model_config.yaml"
    path.write_text(path.read_text().replace("max_len: 10", "max_len: 6"))
    code, _, err = trained.predict("--config", trained.config)
    assert code == 2 and "max_len is 6, was 10" in err
    assert trained.predict()[0] == 0


def test_changes_of_the_training_command_line_hold_under_the_config_too(commands):
    assert commands.train("max_len=6")[0] == 0
    code, _, err = commands.predict("--config", commands.config)
    assert code == 0, err


def test_the_data_root_of_the_training_command_line_holds_under_the_config_too(commands):
    moved = commands.folder / "moved"
    moved.mkdir()
    commands.data.rename(moved / "TEST_DATA")
    shutil.move(commands.folder / "item_feature.parquet", moved)
    at_root = ("--expid", EXPID, "--config", commands.config, "--model_root", commands.root, "--data_root", moved)
    assert run_script("run_expid", *at_root, "--set", "epochs=1", capsys=commands.capsys)[0] == 0
    code, _, err = commands.predict("--config", commands.config)
    assert code == 0, err
    code, _, err = commands.predict("--config", commands.config, "--data_root", commands.folder)
    assert code == 2 and f"{commands.data / 'test.parquet'}: no such file" in err


def test_two_data_sets_of_one_experiment(trained):
    shutil.copytree(trained.root / "TEST_DATA", trained.root / "OTHER")
    code, _, err = trained.predict()
    assert code == 2 and "for each of OTHER, TEST_DATA" in err and "--set dataset_id=OTHER" in err
    code, _, err = trained.predict("--set", "dataset_id=TEST_DATA")
    assert code == 0, err


def test_a_run_that_is_nowhere_is_said_to_be(trained, tmp_path):
    code, _, err = trained.predict("--expid", "FiBiNET_elsewhere", "--model_root", tmp_path)
    assert (
        code == 2 and f"--expid FiBiNET_elsewhere: there is no run of it in {tmp_path}" in err and "--model_root" in err
    )


def test_weights_of_another_training_are_noticed(trained):
    kept = trained.folder / "kept.model"
    shutil.copy(trained.run.weights, kept)
    state = torch.load(kept, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, trained.run.weights)
    code, _, err = trained.predict()
    assert code == 2 and "not the weights of the run" in err and "--checkpoint" in err
    code, out, err = trained.predict("--config", trained.config, "--checkpoint", kept)
    assert code == 0, err
    assert f"{trained.config}: {kept} has no run manifest beside it" in out


def test_an_unfinished_run_is_scored_and_said_to_be_one(commands, monkeypatch):
    save = Trainer._save_state
    monkeypatch.setattr(Trainer, "_save_state", lambda self: (save(self), stop()))
    with pytest.raises(Stop):
        commands.train("epochs=3")
    code, out, err = commands.predict()
    assert code == 0, err
    assert "has not finished: its best weights so far are used" in out


def test_the_submission_is_no_input(trained):
    before = (trained.data / "test.parquet").read_bytes()
    code, _, err = trained.predict("--out", trained.data / "test.parquet")
    assert code == 2 and "is an input" in err
    assert (trained.data / "test.parquet").read_bytes() == before


# a start


class Stop(Exception):
    """Stands for a power cut."""


def stop(*_, **__):
    raise Stop


def test_a_new_start_leaves_nothing_of_the_old_run(trained, monkeypatch):
    assert trained.train("tensorboard=true")[0] == 0
    (trained.run.folder / "notes.txt").write_text("mine")
    (trained.run.folder / ".metrics.csv.abcd1234.part").write_text("torn")
    (trained.run.folder.parent / f".{EXPID}.model.abcd1234.part").write_text("torn")
    (trained.run.folder.parent / ".Other.model.abcd1234.part").write_text("of a run beside")
    monkeypatch.setattr(Trainer, "_train_step", stop)
    with pytest.raises(Stop):
        trained.train("seed=6")
    found = {str(path.relative_to(trained.root / "TEST_DATA")) for path in trained.content()}
    folder = {".lock", "manifest.json", "feature_map.json", "notes.txt"}
    assert found == {f"{EXPID}.log", ".Other.model.abcd1234.part", *(f"{EXPID}/{name}" for name in folder)}
    assert json.loads(trained.run.manifest.read_text())["seed"] == 6


def spoil_labels(commands):
    commands.rewrite("valid", label=pl.lit(1))
    return [], "AUC is not defined: all 100 labels are the same"


def spoil_items(commands):
    commands.rewrite("train", item_id=pl.lit(999))
    return [], "item_id has 999 in row 0"


def spoil_settings(commands):
    return ["learning_rate=fast"], "learning_rate is 'fast'"


def spoil_model(commands):
    return ["bilinear_type=none"], "bilinear_type is 'none'"


@pytest.mark.parametrize("spoil", [spoil_labels, spoil_items, spoil_settings, spoil_model])
@pytest.mark.parametrize("resume", [False, True])
def test_a_failed_start_leaves_the_old_run_alone(trained, spoil, resume):
    before = trained.content()
    changes, message = spoil(trained)
    code, _, err = trained.train(*changes, resume=resume)
    assert code == 2 and message in err
    after = trained.content()
    log, log_before = after.pop(trained.run.log), before.pop(trained.run.log)
    assert after == before
    assert log.startswith(log_before)  # and says why the start failed, in one line
    (line,) = log[len(log_before) :].decode().splitlines()
    assert line.partition(" ERROR ")[2] == err.rstrip("\n")


def test_a_start_that_fails_for_its_data_is_told_of_where_there_was_no_run(commands):
    _, message = spoil_items(commands)
    code, _, err = commands.train()
    assert code == 2 and message in err
    (line,) = commands.run.log.read_text().splitlines()
    assert line.partition(" ERROR ")[2] == err.rstrip("\n")
    assert {path.name for path in commands.content()} == {f"{EXPID}.log", ".lock"}


def test_a_start_that_fails_for_its_settings_makes_nothing(commands):
    changes, _ = spoil_settings(commands)
    assert commands.train(*changes)[0] == 2
    assert commands.content() == {} and not commands.root.exists()


@pytest.mark.parametrize("change", ["dataset_id=3", "learning_rate", "seed=1 seed=2"])
def test_settings_that_do_not_tell_the_run(trained, change):
    before = trained.content()
    assert trained.train(*change.split())[0] == 2
    assert trained.content() == before


def test_resume_refuses_other_settings_and_data(trained):
    before = trained.kept()
    code, _, err = trained.train("learning_rate=0.1", "hidden_units=[32]", resume=True)
    assert code == 2
    assert "hidden_units is [32], was [16]; learning_rate is 0.1, was 0.005. " in err and "without --resume" in err
    trained.rewrite("train", user_id=pl.col("user_id") + 1)
    code, _, err = trained.train(resume=True)
    assert code == 2 and "train_data is another file" in err
    assert trained.kept() == before
    assert trained.train("learning_rate=0.1")[0] == 0


def test_resume_refuses_fields_in_another_order(trained):
    """As a run has that was started by an earlier version, which did not keep the order of use_features."""
    content = json.loads(trained.run.manifest.read_text())
    features = list(content["features"])
    content["features"] = {name: content["features"][name] for name in reversed(features)}
    trained.run.manifest.write_text(json.dumps(content))
    code, _, err = trained.train(resume=True)
    assert code == 2
    assert f"its features are {', '.join(reversed(features))}, in this order, here {', '.join(features)}" in err


def test_resume_with_nothing_there_starts_anew(commands):
    code, _, err = commands.train(resume=True)
    assert code == 0, err
    assert commands.run.result.exists()


def test_resume_does_not_start_over_on_weights_it_knows_nothing_of(commands):
    commands.run.weights.parent.mkdir(parents=True)
    commands.run.weights.write_bytes(b"weights of FuxiCTR's own training")
    code, _, err = commands.train(resume=True)
    assert code == 2 and "without a manifest" in err
    assert commands.run.weights.read_bytes() == b"weights of FuxiCTR's own training"


def test_resume_needs_one_sound_state(trained):
    checkpoints = RunCheckpoints(trained.run.folder, "")
    code, out, err = trained.train("epochs=2", resume=True)
    assert code == 0 and "Resumed at epoch 2" in out, err
    checkpoints.last.write_bytes(checkpoints.last.read_bytes()[:1000])
    code, out, err = trained.train("epochs=2", resume=True)
    assert code == 0 and "Resumed at epoch 2" in out, err  # from previous.ckpt
    for path in (checkpoints.last, checkpoints.previous):
        path.write_bytes(path.read_bytes()[:1000])
    before = trained.kept()
    code, _, err = trained.train("epochs=2", resume=True)
    assert code == 2 and "there is no other to go on from" in err
    assert trained.kept() == before


def test_resume_needs_the_best_weights(trained):
    trained.run.weights.unlink()
    code, _, err = trained.train("epochs=2", resume=True)
    assert code == 2 and "the best weights are gone" in err


def test_resume_does_not_pass_weights_of_a_later_epoch_for_those_of_fewer(trained):
    """A run of three epochs cannot say what it was after one: its best weights may be of the third."""
    assert trained.train("epochs=3", resume=True)[0] == 0
    before = trained.kept()
    code, _, err = trained.train("epochs=1", resume=True)
    assert code == 2 and "has been evaluated in epoch 3, but epochs is 1" in err and "set epochs=3 or more" in err
    assert trained.kept() == before
    assert trained.train("epochs=3", resume=True)[0] == 0
    assert trained.train("epochs=1")[0] == 0


def test_fewer_epochs_are_no_mistake_where_they_are_not_over(commands, monkeypatch):
    save = Trainer._save_state
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "_save_state", lambda self: (save(self), stop()))
        commands.train("epochs=5")
    assert commands.train("epochs=2", resume=True)[0] == 0
    resumed = commands.run.weights.read_bytes(), json.loads(commands.run.result.read_text())
    assert commands.train("epochs=2")[0] == 0
    assert commands.run.weights.read_bytes() == resumed[0]
    assert json.loads(commands.run.result.read_text())["metrics"] == resumed[1]["metrics"]


def test_a_finished_run_that_goes_on_has_not_finished(trained, monkeypatch):
    """Its weights become others, so the figures of the shorter run are no longer theirs."""
    save = Trainer._save_state
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "_save_state", lambda self: (save(self), stop()))
        trained.train("epochs=4", resume=True)
    assert [line["epoch"] for line in trained.run.read_history()] == ["1", "2"]
    assert read_result(trained.run.folder) is None
    code, out, err = trained.predict()
    assert code == 0 and "has not finished" in out, err
    assert trained.train("epochs=4", resume=True)[0] == 0
    assert read_result(trained.run.folder)["fingerprint"].endswith("-4")


def test_one_run_at_a_time_in_a_folder(trained):
    before = trained.content()
    with trained.run.held():
        code, _, err = trained.train()
    assert code == 2 and f"{trained.run.folder}: another process is at work there" in err
    assert trained.content() == before
    assert trained.train()[0] == 0


def test_paths_without_parquet_are_in_the_fingerprint(commands):
    changes = [f"{split}_data={commands.data}/{split}" for split in ("train", "valid", "test")]
    assert commands.train(*changes)[0] == 0
    data = json.loads(commands.run.manifest.read_text())["data"]
    named = settings.load_params(commands.config, EXPID, model_zoo)
    expected = run_manifest.data_fingerprint(named)
    assert {key: entry["sha256"] for key, entry in data.items()} == {k: e["sha256"] for k, e in expected.items()}
    commands.rewrite("valid", user_id=pl.col("user_id") + 1)
    assert commands.train(*changes, resume=True)[0] == 2
    assert commands.predict()[0] == 0


def test_a_folder_of_parts_has_a_fingerprint(tmp_path):
    (tmp_path / "parts").mkdir()
    for name in "ab":
        (tmp_path / "parts" / f"{name}.parquet").write_text(name)
    first = run_manifest.data_fingerprint({"train_data": tmp_path / "parts"})["train_data"]
    (tmp_path / "parts" / "b.parquet").write_text("c")
    second = run_manifest.data_fingerprint({"train_data": tmp_path / "parts"})["train_data"]
    assert first["bytes"] == second["bytes"] == 2 and first["sha256"] != second["sha256"]


def test_the_run_says_first_what_it_will_do(commands):
    code, out, _ = commands.train("learning_rate=0.02")
    assert code == 0
    lines = [line.split(" INFO ", 1)[1] for line in out.splitlines() if " INFO " in line]
    before_training = lines[: next(i for i, line in enumerate(lines) if line.startswith("Start training"))]
    assert lines[0] == "Experiment FiBiNET_test: FiBiNET on TEST_DATA"
    assert re.fullmatch(r"Device: CPU, \d+ threads", lines[1])
    changed = next(line for line in before_training if line.startswith("Settings other than the defaults: "))
    assert "learning_rate=0.02" in changed and "hidden_units=[16]" in changed and "accumulation_steps" not in changed
    assert "Train samples: 300, validation samples: 100, items: 39" in before_training
    assert (
        "5 features: likes_level (categorical), views_level (categorical), item_id (categorical), "
        "item_tags (sequence), item_emb_d16 (embedding)"
    ) in before_training
    assert [line.split(" INFO ", 1)[1] for line in commands.run.log.read_text().splitlines()] == lines


def test_what_ends_a_run_is_in_its_log(commands, monkeypatch):
    monkeypatch.setattr(Trainer, "_mean_loss", lambda self: (_ for _ in ()).throw(UserError("the loss is odd")))
    assert commands.train()[0] == 2
    assert commands.run.log.read_text().splitlines()[-1].endswith("ERROR error: the loss is odd")


# not a number


def one_row_a_user(commands):
    commands.rewrite("valid", user_id=pl.int_range(pl.len()))


def test_a_monitored_metric_without_a_value_is_found_before_training(trained, monkeypatch):
    one_row_a_user(trained)
    before = trained.kept()
    monkeypatch.setattr(Trainer, "_train_step", stop)
    code, out, err = trained.train("monitor=gAUC")
    assert code == 2 and "monitor gAUC: gAUC is not defined: none of the 100 groups of group_id has both labels" in err
    assert "[Metrics]" not in out
    assert trained.kept() == before


def test_a_listed_metric_without_a_value_is_null_and_explained(commands):
    one_row_a_user(commands)
    code, out, _ = commands.train()
    assert code == 0
    result = json.loads(commands.run.result.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert result["metrics"]["gAUC"] is None and 0 < result["metrics"]["AUC"] < 1
    assert "none of the 100 groups of group_id has both labels, expected at least one" in out


@pytest.mark.parametrize(
    "users",
    [
        pl.when(pl.int_range(pl.len()) % 7 > 0).then(pl.lit("u")),
        pl.when(pl.int_range(pl.len()) % 7 > 0).then(pl.int_range(pl.len()) % 9),
        pl.concat_list(pl.int_range(pl.len())),
    ],
    ids=["text and nulls", "numbers and nulls", "lists"],
)
def test_a_column_of_users_that_nobody_asked_for_may_hold_anything(commands, users):
    """Each row is then a user of its own, as without the column."""
    config = commands.config / "dataset_config.yaml"
    config.write_text(config.read_text().replace("        - {name: user_id, type: meta}\n", ""))
    for name in ("train", "valid"):
        commands.rewrite(name, user_id=users)
    code, _, err = commands.train("group_id=null", "metrics=[AUC]")
    assert code == 0, err
    scores = pl.read_parquet(commands.run.scores)
    assert scores["user_id"].to_list() == list(range(len(scores)))
    assert json.loads(commands.run.result.read_text())["metrics"]["gAUC"] is None


@pytest.mark.parametrize("case", ["text", "only in valid", "nulls"])
def test_item_ids_that_no_feature_is_made_of_may_be_anything(commands, case):
    """Data without items, as FuxiCTR's own, may have a column of this name all the same."""
    config = commands.config / "dataset_config.yaml"
    of_items = ("item_info", "item_feature", "source: item", "item_seq")
    lines = [line for line in config.read_text().splitlines() if not any(word in line for word in of_items)]
    config.write_text("\n".join(lines))
    for name in ("train", "valid"):
        table = pl.read_parquet(commands.data / f"{name}.parquet").drop("item_seq")
        if case == "text":
            table = table.with_columns(item_id=pl.format("i{}", "item_id"))
        elif case == "nulls":
            seen = pl.int_range(pl.len()) % 4 + (2 if name == "valid" else 0)
            table = table.with_columns(item_id=pl.when(seen > 0).then(seen))
        elif name == "train":
            table = table.drop("item_id")
        table.write_parquet(commands.data / f"{name}.parquet")
    code, _, err = commands.train("model=DeepFM")
    assert code == 0, err
    cold = pl.read_parquet(commands.run.scores)["cold"].to_list()
    # train has null, 1, 2 and 3, valid 2, 3, 4 and 5
    assert cold == [case == "nulls" and row % 4 > 1 for row in range(len(cold))]


def test_one_class_is_enough_for_logloss(commands):
    commands.rewrite("valid", label=pl.lit(1))
    code, _, err = commands.train("monitor=logloss", "monitor_mode=min", "metrics=[logloss]")
    assert code == 0, err
    result = json.loads(commands.run.result.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert result["metrics"]["AUC"] is None and result["metrics"]["gAUC"] is None
    scores = pl.read_parquet(commands.run.scores)["score"].to_numpy()
    assert result["metrics"]["logloss"] == pytest.approx(-np.log(scores).mean())


def test_scores_that_are_not_numbers_stop_training_and_prediction(trained, monkeypatch):
    forward = model_zoo.FiBiNET.forward

    def spoilt(self, inputs):
        scores = forward(self, inputs)["y_pred"]
        return {"y_pred": scores if self.training else scores * float("nan")}

    monkeypatch.setattr(model_zoo.FiBiNET, "forward", spoilt)
    code, _, err = trained.predict()
    assert code == 2 and "75 of 75 scores are NaN, the first in row 0" in err and not trained.out.exists()
    code, _, err = trained.train()
    assert code == 2 and "100 of 100 scores are NaN" in err
    assert not trained.run.weights.exists() and not trained.run.result.exists()


# disk and memory


@contextlib.contextmanager
def files_up_to(size):
    """No file may grow beyond this many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_keeps_what_was_saved(trained):
    state = RunCheckpoints(trained.run.folder, "").last
    before = state.read_bytes()
    with files_up_to(len(before) - 1000):
        code, _, err = trained.train("epochs=2", resume=True)
    assert code == 2 and re.fullmatch(r"error: cannot write .*next\.ckpt: File too large\n", err)
    assert state.read_bytes() == before
    assert "cannot write" in trained.run.log.read_text().splitlines()[-1]
    assert not list(trained.root.rglob("*.part"))
    code, out, _ = trained.train("epochs=2", resume=True)
    assert code == 0 and "Resumed at epoch 2" in out


def test_weights_that_do_not_fit_keep_the_last_ones(tmp_path):
    with files_up_to(100_000):
        check_saving(tmp_path / "run" / "X.model")


def check_saving(path):
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(400, 400)
    save_weights(small, path)
    with pytest.raises(UserError, match=r"cannot write .*X\.model: File too large"):
        save_weights(large, path)
    assert torch.load(path, weights_only=True).keys() == small.state_dict().keys()
    checkpoints = RunCheckpoints(path.parent, "a run")
    checkpoints.save({"weight": torch.arange(10), "epoch": 1})
    with pytest.raises(UserError, match=r"cannot write .*ckpt: File too large"):
        checkpoints.save({"weight": torch.arange(100_000), "epoch": 2})
    assert checkpoints.load()["epoch"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["X.model", "last.ckpt"]


def test_a_log_that_cannot_be_written_is_one_error(tmp_path, capsys):
    full = tmp_path / "X.log"
    full.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*: the disk is full"), RunLog(full) as log:
        log.open(append=True)
        logging.info("a line")
    assert "Traceback" not in capsys.readouterr().err


def test_peak_memory_is_the_processs_own():
    code = "from mm_fibinet.memory import peak_memory; print(peak_memory())"
    ballast = np.ones(80_000_000)  # 640 MB of the parent's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert memory.peak_memory() > ballast.nbytes > 2 * int(done.stdout)
    assert int(done.stdout) > 20e6


def test_a_loader_changes_nothing_for_the_process(dataset, monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_: pytest.fail("malloc was changed"))
    handlers = list(logging.getLogger().handlers)
    params = settings.load_params(dataset, EXPID, model_zoo)
    MMCTRDataLoader(build_feature_map(params), params["train_data"], **params)
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_a_model_with_a_command_of_its_own_is_refused(commands, monkeypatch, name):
    monkeypatch.setattr(model_zoo.FiBiNET, name, lambda self, *_: None)
    code, _, err = commands.train()
    assert code == 2 and f"FiBiNET overrides {name}, which" in err


def test_names_in_the_log_are_text(tmp_path, capsys):
    with RunLog(tmp_path / "X.log") as log:
        log.open(append=False)
        logging.info("Reads %s", "a\x1b[2Jb\nc\udcff")
    expected = "INFO Reads a\\x1b[2Jb\\nc\\udcff"
    assert capsys.readouterr().out.rstrip("\n").endswith(expected)
    assert (tmp_path / "X.log").read_text().rstrip("\n").endswith(expected)


SOUND = {
    "config": {"model_id": "A", "model": "FM", "dataset_id": "D"},
    "data": {"train_data": {"path": "t.parquet", "sha256": "0"}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"model_id": "A", "model": "FM"}}, "its config has no dataset_id"),
        ({"data": {"item_info": 3}}, "its data have no path and sha256 of item_info"),
        ({"data": {"item_info": {"path": "i.parquet"}}}, "its data have no path and sha256 of item_info"),
        (
            {"data": {"model_code": {"path": "m.py", "sha256": "0"}}},
            "its data have no path and sha256 and class of model_code",
        ),
        ({"data": {"model_code": {"path": "m", "sha256": "0", "class": "C"}}}, "its data have no files of model_code"),
        ({"weights": "ab12"}, "its weights are 'ab12'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, changes, message):
    run = RunFolder(tmp_path, "A")
    run.folder.mkdir()
    run.manifest.write_text(json.dumps(SOUND))
    assert run_manifest.read_manifest(run) == SOUND
    run.manifest.write_text(json.dumps({**SOUND, **changes}))
    with pytest.raises(UserError, match=f"manifest.json: not a run's manifest: {message}; train the run again"):
        run_manifest.read_manifest(run)
    run.manifest.write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged JSON"):
        run_manifest.read_manifest(run)

"""The real commands on models that are not ours: train, resume, several processes, predict, one leaderboard."""

import csv
import json
import shutil
import sys

import polars as pl
import pytest
import torch
import two_ranks_any_model
import user_models
from conftest import ROOT, make_dataset, run_script
from test_any_model import SIZES

import model_zoo
from mm_fibinet import launcher
from mm_fibinet.demo.data import generate

EXPERIMENTS = """
Mine_test: &shared
    model: my_models:Mine
    dataset_id: TEST_DATA
    group_id: user_id
    metrics: [AUC, logloss, gAUC]
    learning_rate: 5e-3
    batch_size: 64
    embedding_dim: 8
    epochs: 2
    max_len: 10
    verbose: 0
Mine_similarity:
    <<: *shared
    history_levels: True
    similarity_fields: True
    similarity_only: [item_emb_d16]
SIM_test:
    <<: *shared
    model: model_zoo.LongCTR:SIM
    dnn_hidden_units: [8]
    attention_dim: 8
    topk: 3
    short_seq_len: 5
"""
OTHERS = [name for name in SIZES if name != "SIM"]  # of LongCTR
for longctr in OTHERS:
    sizes = json.dumps(SIZES[longctr]).strip("{}")
    EXPERIMENTS += f"{longctr}_test: {{<<: *shared, model: 'model_zoo.LongCTR:{longctr}', {sizes}}}\n"


@pytest.fixture
def config(working_folder):
    """A config with these experiments, on a data set of the test's own; the working working_folder has my_models.py."""
    made = make_dataset(working_folder / "data", rows=400)
    (made / "model_config.yaml").write_text(EXPERIMENTS)
    return made


def train(config, expid, runs, *arguments, capsys):
    """run_expid.py in this process: (exit code, stderr)."""
    arguments = ["--config", config, "--expid", expid, "--model_root", runs, *arguments]
    code, _, err = run_script("run_expid", *arguments, capsys=capsys)
    return code, err


def weights(runs, expid):
    return torch.load(runs / "TEST_DATA" / f"{expid}.model", weights_only=True)


def history(runs, expid):
    with open(runs / "TEST_DATA" / expid / "metrics.csv", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("expid", ["Mine_test", "Mine_similarity", "SIM_test", *(f"{name}_test" for name in OTHERS)])
def test_trains_resumes_exactly_and_predicts(config, working_folder, expid, capsys):
    assert train(config, expid, working_folder / "whole", capsys=capsys) == (0, "")
    assert train(config, expid, working_folder / "parts", "--set", "epochs=1", capsys=capsys) == (0, "")
    assert train(config, expid, working_folder / "parts", "--resume", capsys=capsys) == (0, "")
    whole, parts = weights(working_folder / "whole", expid), weights(working_folder / "parts", expid)
    assert whole.keys() == parts.keys() and all(whole[name].equal(parts[name]) for name in whole)
    assert len(history(working_folder / "parts", expid)) == 2

    out = working_folder / "out.csv"
    arguments = ["--expid", expid, "--model_root", working_folder / "whole", "--out", out]
    code, _, err = run_script("prediction", *arguments, capsys=capsys)
    assert (code, err) == (0, "")
    assert pl.read_csv(out)["Task1&2"].is_between(0, 1).all() and len(pl.read_csv(out)) == 100


def test_the_manifest_knows_the_code_and_prediction_refuses_another(config, working_folder, capsys):
    assert train(config, "Mine_test", working_folder / "runs", "--set", "epochs=1", capsys=capsys) == (0, "")
    manifest = json.loads((working_folder / "runs" / "TEST_DATA" / "Mine_test" / "manifest.json").read_text())
    code = manifest["data"]["model_code"]
    assert manifest["model"] == code["class"] == "my_models:Mine"
    assert set(code["files"]) == {str(working_folder / "my_models.py"), str(working_folder / "helpers.py")}

    helper = working_folder / "helpers.py"
    helper.write_text(user_models.HELPERS.replace("1.0", "2.0"))
    arguments = ["--expid", "Mine_test", "--model_root", working_folder / "runs", "--out", working_folder / "out.csv"]
    failed, _, err = run_script("prediction", *arguments, capsys=capsys)
    assert failed == 2 and f"was trained with other code of my_models:Mine: {helper} has changed since" in err
    assert run_script("prediction", *arguments, "--allow_other_data", capsys=capsys)[0] == 0
    failed, err = train(config, "Mine_test", working_folder / "runs", "--resume", capsys=capsys)
    assert failed == 2 and "the run in" in err and "model_code is another file" in err
    helper.write_text(user_models.HELPERS)
    assert run_script("prediction", *arguments, capsys=capsys)[0] == 0


def test_a_run_of_a_checkouts_class_knows_its_checkout(config, working_folder, capsys, monkeypatch):
    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__))
    source = working_folder / "FuxiCTR" / "model_zoo" / "Mine" / "src"
    source.mkdir(parents=True)
    (source / "Mine.py").write_text(user_models.MODULE)
    (config / "model_config.yaml").write_text(EXPERIMENTS.replace("my_models:Mine", "Mine", 1))
    failed, err = train(config, "Mine_test", working_folder / "runs", capsys=capsys)
    assert failed == 2 and "model 'Mine' is unknown" in err
    checkout = ["--models_from", "FuxiCTR", "--set", "epochs=1"]
    assert train(config, "Mine_test", working_folder / "runs", *checkout, capsys=capsys) == (0, "")
    arguments = ["--expid", "Mine_test", "--model_root", working_folder / "runs", "--out", working_folder / "out.csv"]
    assert run_script("prediction", *arguments, capsys=capsys)[0] == 0
    (working_folder / "FuxiCTR").rename(working_folder / "moved")
    failed, _, err = run_script("prediction", *arguments, capsys=capsys)
    assert failed == 2 and "FuxiCTR, where it is no longer (" in err and "name its new place with --models_from" in err
    (working_folder / "moved").rename(working_folder / "FuxiCTR")
    (source / "Mine.py").write_text(user_models.MODULE + "changed = True\n")
    failed, _, err = run_script("prediction", *arguments, capsys=capsys)
    assert failed == 2 and "was trained with other code of model_zoo.Mine.src.Mine:Mine" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Mine", "experiment Mine_test: model nowhere:Mine: there is no module nowhere"),
        ("my_models:Broken", "its forward failed on the first batch: KeyError: 'no_such_column'"),
        ("my_models:Unmakeable", "Unmakeable: its constructor failed: ValueError: units must be even"),
        ("my_models:Uncompiled", "Uncompiled: there is no optimizer, expected self.compile("),
        ("my_models:OwnStep", "OwnStep overrides train_step, which the training loop of mm_fibinet replaces"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(config, working_folder, name, message, capsys):
    (config / "model_config.yaml").write_text(EXPERIMENTS.replace("my_models:Mine", name, 1))
    code, err = train(config, "Mine_test", working_folder / "runs", capsys=capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not list((working_folder / "runs").rglob("*.json")) and not list((working_folder / "runs").rglob("*.model"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Detached", "Detached: its loss depends on no parameter"),
        ("EvalOnly", "EvalOnly: it failed in training: RuntimeError: made for scoring ("),
    ],
)
def test_what_only_training_shows_is_one_line(config, working_folder, name, message, capsys):
    (config / "model_config.yaml").write_text(EXPERIMENTS.replace("my_models:Mine", f"my_models:{name}", 1))
    code, err = train(config, "Mine_test", working_folder / "runs", capsys=capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_a_class_of_the_user_may_inherit_longctrs(config, working_folder, capsys, monkeypatch):
    """It imports from the wheel's model_zoo before any model of the wheel was asked for."""
    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__)[:1])
    for name in [name for name in sys.modules if name.startswith("model_zoo.LongCTR")]:
        monkeypatch.delitem(sys.modules, name)
    (working_folder / "based.py").write_text("from model_zoo.LongCTR import SIM\n\n\nclass Based(SIM):\n    pass\n")
    (config / "model_config.yaml").write_text(EXPERIMENTS.replace("model_zoo.LongCTR:SIM", "based:Based"))
    assert train(config, "SIM_test", working_folder / "runs", "--set", "epochs=1", capsys=capsys) == (0, "")
    (config / "model_config.yaml").write_text(EXPERIMENTS)
    assert train(config, "SIM_test", working_folder / "wheels", "--set", "epochs=1", capsys=capsys) == (0, "")
    theirs, wheels = weights(working_folder / "runs", "SIM_test"), weights(working_folder / "wheels", "SIM_test")
    assert theirs.keys() == wheels.keys() and all(theirs[name].equal(wheels[name]) for name in wheels)


@pytest.mark.slow
def test_two_ranks_train_as_one(config, working_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expids = ["Mine_test", "SIM_test", *(f"{name}_test" for name in OTHERS)]
    expected = {expid: two_ranks_any_model.train(config, working_folder, expid) for expid in expids}
    command = [sys.executable, two_ranks_any_model.__file__, config, working_folder, *expids]
    assert launcher.launch(list(map(str, command)), [-1, -1]) == 0
    found = torch.load(working_folder / "found.pt", weights_only=True)
    for expid in expids:
        (ours, after), (losses, weights) = expected[expid], found[expid]
        assert len(losses) == 7 and losses == pytest.approx(ours, rel=1e-5), expid
        for name, values in after.items():
            if "in_proj" not in name:  # TransAct's: gradients are rounding there yet, and Adam steps by their signs
                torch.testing.assert_close(weights[name], values, rtol=1e-3, atol=1e-5, msg=f"{expid} {name}")


@pytest.mark.slow
def test_ours_longctrs_and_the_users_own_in_one_leaderboard(working_folder, capsys):
    """On demo data, by the experiment IDs that ship and one of the user's own config file."""
    data = working_folder / "data"
    generate(
        data, items=140, users=300, train_rows=1500, valid_rows=400, test_rows=100, random_embedding=True, images=False
    )
    config = working_folder / "config"
    shutil.copytree(ROOT / "config", config)
    own = "Mine_demo: {model: 'my_models:Mine', dataset_id: MMCTR_demo, learning_rate: 1.0e-3, embedding_dim: 8}\n"
    (config / "model_config" / "mine.yaml").write_text(own)
    expids = ["FiBiNET_demo", "LongCTR_SIM_small", "LongCTR_DIN_small", "LongCTR_TransAct_small", "Mine_demo"]
    info = f"item_info={data}/MMCTR_demo/item_info.parquet"
    arguments = ["--config", config, "--expids", *expids, "--data_root", data, "--out", working_folder / "board"]
    arguments += ["--workers", 2]
    code, out, err = run_script("run_benchmark", *arguments, "--set", info, "epochs=1", "max_len=20", capsys=capsys)
    assert code == 0, out + err
    rows = pl.read_csv(working_folder / "board" / "leaderboard.csv")
    assert set(rows["expid"]) == set(expids) and rows["auc"].is_between(0.4, 1).all()
    code, out, _ = run_script("run_benchmark", *arguments, "--set", info, "epochs=1", "max_len=20", capsys=capsys)
    assert code == 0 and "done" not in out, out  # nothing is repeated

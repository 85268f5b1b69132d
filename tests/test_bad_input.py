"""Every mistake of a user gets one clear line, exit code 2, and leaves nothing half-written.

What is wrong with data is in test_data_contract.py.
"""

import errno
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, make_dataset, run_script


@pytest.fixture
def folder(tmp_path):
    """A data set of its own, to be spoilt."""
    make_dataset(tmp_path)
    return tmp_path


def train(folder, *arguments, capsys):
    """Run run_expid.py on the folder's data: (exit code, stderr)."""
    code, _, err = run_script(
        "run_expid", "--config", folder / "config", "--expid", "FiBiNET_test", "--model_root", folder / "runs",
        *arguments, capsys=capsys,
    )  # fmt: skip
    return code, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expid", "FiBiNET_tset"], "--expid FiBiNET_tset: not in"),
        (["--expid", "FiBiNET_tset"], "did you mean FiBiNET_test or FiBiNET_test_no_emb?"),
        (["--set", "model=FiBiNETT"], "model 'FiBiNETT' is unknown, did you mean FiBiNET? expected one of"),
        (["--set", "hiden_units=[8]"], "--set: hiden_units: unknown key, did you mean hidden_units?"),
        (["--set", "embedding_dim"], "--set embedding_dim: expected key=value"),
        (["--set", "dataset_id=NO_DATA"], "dataset_id NO_DATA: not in"),
        (["--set", "loss=os.system('true')"], "loss is \"os.system('true')\", expected one of"),
        (["--set", "optimizer=Adamm"], "optimizer is 'Adamm', expected one of"),
        (["--set", "metrics=[F1]"], "metrics has 'F1'"),
        (["--set", "eval_steps=1000"], "eval_steps is 1000, but the run has 20 steps (epochs 2 x batches 10)"),
        (["--checkpoint_every", "-3"], "checkpoint_every is -3, expected a whole number"),
        (["--set", "batch_size=0"], "batch_size is 0, expected a whole number from 1 to 2147483647"),
        (["--set", "history_pooling=max"], "history_pooling is 'max', expected one of"),
        (["--set", "bilinear_type=field"], "bilinear_type is 'field', expected one of"),
        (["--set", "embedding_dim=large"], "embedding_dim is 'large', expected a whole number"),
        (["--set", "learning_rate=high"], "learning_rate is 'high', expected a number"),
        (["--set", "hidden_units=5"], "hidden_units is 5, expected a list"),
        (["--set", "batch_norm=2"], "batch_norm is 2, expected True or False"),
        (["--set", "use_features=[item_id, colour]"], "use_features has 'colour'"),
        (["--set", "precision=fp8"], "precision is 'fp8', expected one of"),
        (["--set", "lr_schedule=cosine"], "lr_schedule is 'cosine', expected one of"),
        (["--gpu", "7"], "--gpu 7: found"),
        (["--gpu", "-5"], "--gpu -5: found"),
        (
            ["--set", "feature_specs=[{name: likes_level, embedding_dim: 3}]"],
            "feature likes_level: embedding_dim is 3, but the fields of this model have one width, 8",
        ),
        (["--data_root", "/nowhere"], "/nowhere/TEST_DATA/item_info.parquet: no such file"),
    ],
)
def test_bad_settings(dataset, tmp_path, arguments, message, capsys):
    if "--expid" not in arguments:
        arguments = ["--expid", "FiBiNET_test", *arguments]
    code, _, err = run_script(
        "run_expid", "--config", dataset, "--model_root", tmp_path / "runs", *arguments, capsys=capsys
    )
    assert code == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.glob("runs/**/*.model"))


def test_feature_encoder_is_not_evaluated(folder, capsys):
    config = folder / "config" / "dataset_config.yaml"
    trap = folder / "trap"
    encoder = f"feature_encoder: \"__import__('pathlib').Path('{trap}').touch()\", vocab_size: 9"
    config.write_text(config.read_text().replace("vocab_size: 9", encoder))
    code, err = train(folder, capsys=capsys)
    assert code == 2
    assert "feature item_tags: feature_encoder is" in err
    assert not trap.exists()


def test_broken_yaml(folder, capsys):
    (folder / "config" / "model_config.yaml").write_text("Base: {a: [1")
    code, err = train(folder, capsys=capsys)
    assert code == 2
    assert "model_config.yaml: not valid YAML" in err


def test_no_traceback_from_the_real_command(folder):
    arguments = [sys.executable, ROOT / "run_expid.py", "--config", folder / "config", "--expid", "nothing"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --expid nothing: not in")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["missing", "torn", "other", "pickle"])
def test_bad_checkpoint(dataset, tmp_path, what, capsys):
    path = tmp_path / "some.model"
    if what == "torn":
        torch.save({"weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:1500])
    elif what == "other":
        torch.save({"embedding.weight": torch.zeros(3)}, path)
    elif what == "pickle":
        torch.save({"weight": torch.zeros(1), "code": test_bad_checkpoint}, path)
    out = tmp_path / "out.zip"
    code, _, err = run_script(
        "prediction", "--config", dataset, "--expid", "FiBiNET_test", "--checkpoint", path, "--out", out, capsys=capsys
    )
    assert code == 2
    expected = {
        "missing": "no such checkpoint",
        "torn": "not a complete checkpoint file",
        "other": "checkpoint of another configuration",
        "pickle": "holds more than tensors",
    }
    assert f"{path}: {expected[what]}" in err
    assert not out.exists()


def test_unwritable_output(dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_script(
        "run_expid", "--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path / "file" / "runs",
        capsys=capsys,
    )  # fmt: skip
    assert code == 2
    assert "error: cannot write" in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_full_disk(dataset, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mm_fibinet.files.os.fsync", full)
    code, _, err = run_script(
        "run_expid", "--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path, capsys=capsys
    )
    assert code == 2
    assert "the disk is full" in err
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"FiBiNET_test.log", ".lock"}

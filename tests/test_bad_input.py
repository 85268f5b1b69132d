"""Every mistake of a user gets one clear line, exit code 2, and leaves nothing half-written."""

import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, list_column, make_dataset, run_script


@pytest.fixture
def folder(tmp_path):
    """A data set of its own, to be spoilt."""
    make_dataset(tmp_path)
    return tmp_path


def change(path, column, values):
    """Replace a column of a parquet file; values of None drop it."""
    table = pq.read_table(path)
    at = table.column_names.index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, values)
    pq.write_table(table, path)


def column(path, name):
    """A column as a numpy array that may be changed."""
    return np.array(pq.read_table(path)[name].to_pylist())


def train(folder, *arguments, capsys):
    """Run run_expid.py on the folder's data: (exit code, stderr)."""
    code, _, err = run_script(
        "run_expid", "--config", folder / "config", "--expid", "FiBiNET_test", "--model_root", folder / "runs",
        *arguments, capsys=capsys,
    )  # fmt: skip
    return code, err


def spoil_missing_file(data):
    (data / "train.parquet").unlink()
    return "train.parquet: no such file"


def spoil_missing_column(data):
    change(data / "train.parquet", "views_level", None)
    return "train.parquet: column views_level is missing, found user_id, item_seq"


def spoil_type(data):
    change(data / "train.parquet", "likes_level", pa.array(["3"] * 600))
    return "train.parquet: column likes_level has type string, expected an integer a row"


def spoil_fractional_ids(data):
    change(data / "train.parquet", "item_id", pa.array(np.full(600, 1.5)))
    return "train.parquet: column item_id has type double, expected an integer a row"


def spoil_list_length(data):
    change(data / "item_info.parquet", "item_tags", list_column(np.zeros((40, 4), dtype=np.int64)))
    return "item_info.parquet: column item_tags has 4 values in row 0, expected 5"


def spoil_embedding_length(data):
    change(data / "item_info.parquet", "item_emb_d16", list_column(np.zeros((40, 8), dtype=np.float32)))
    return "item_info.parquet: column item_emb_d16 has 8 values in row 0, expected 16"


def spoil_unequal_histories(data):
    rows = [list(row) for row in column(data / "train.parquet", "item_seq")]
    rows[9] = rows[9][:-1]
    change(data / "train.parquet", "item_seq", pa.array(rows))
    return "train.parquet: column item_seq has 11 values in row 9, expected 12"


def spoil_item_out_of_table(data):
    items = column(data / "valid.parquet", "item_id")
    items[3] = 99
    change(data / "valid.parquet", "item_id", pa.array(items))
    return "valid.parquet: column item_id has 99 in row 3, expected 0 to 39 (items in item_info 40)"


def spoil_history_out_of_table(data):
    history = column(data / "train.parquet", "item_seq")
    history[4, 11] = -1
    change(data / "train.parquet", "item_seq", list_column(history))
    return "train.parquet: column item_seq has -1 in row 4, expected 0 to 39"


def spoil_vocabulary(data):
    tags = column(data / "item_info.parquet", "item_tags")
    tags[7, 4] = 9
    change(data / "item_info.parquet", "item_tags", list_column(tags))
    return "item_info.parquet: column item_tags has 9 in row 7, expected 0 to 8 (vocab_size 9)"


def spoil_levels(data):
    levels = column(data / "train.parquet", "likes_level")
    levels[599] = 11
    change(data / "train.parquet", "likes_level", pa.array(levels))
    return "train.parquet: column likes_level has 11 in row 599, expected 0 to 10 (vocab_size 11)"


def spoil_target(data):
    items = column(data / "train.parquet", "item_id")
    items[5] = 0
    change(data / "train.parquet", "item_id", pa.array(items))
    return "train.parquet: column item_id is 0 in row 5, expected an item"


def spoil_nan(data):
    embedding = column(data / "item_info.parquet", "item_emb_d16").astype(np.float32)
    embedding[6, 2] = np.nan
    change(data / "item_info.parquet", "item_emb_d16", list_column(embedding))
    return "item_info.parquet: column item_emb_d16 has NaN or infinity in row 6"


def spoil_infinity(data):
    embedding = column(data / "item_info.parquet", "item_emb_d16").astype(np.float32)
    embedding[6, 2] = np.inf
    change(data / "item_info.parquet", "item_emb_d16", list_column(embedding))
    return "item_info.parquet: column item_emb_d16 has NaN or infinity in row 6"


def spoil_order(data):
    table = pq.read_table(data / "item_info.parquet")
    pq.write_table(table.take([1, 0, *range(2, 40)]), data / "item_info.parquet")
    return "item_info.parquet: item_id is 1 in row 0, expected 0"


def spoil_duplicates(data):
    table = pq.read_table(data / "item_info.parquet")
    pq.write_table(table.take([*range(39), 38]), data / "item_info.parquet")
    return "item_info.parquet: item_id 38 occurs 2 times"


def spoil_row_zero(data):
    tags = column(data / "item_info.parquet", "item_tags")
    tags[0, 4] = 1
    change(data / "item_info.parquet", "item_tags", list_column(tags))
    return "item_info.parquet: column item_tags is not zero in row 0"


def spoil_label(data):
    labels = column(data / "train.parquet", "label")
    labels[2] = 2
    change(data / "train.parquet", "label", pa.array(labels))
    return "train.parquet: column label is 2.0 in row 2, expected 0 or 1"


def spoil_one_class(data):
    change(data / "valid.parquet", "label", pa.array(np.zeros(200, dtype=np.int64)))
    return "AUC is not defined: all 200 labels are the same"


def spoil_empty_split(data):
    pq.write_table(pq.read_table(data / "valid.parquet").slice(0, 0), data / "valid.parquet")
    return "valid.parquet: has no rows"


def spoil_truncated(data):
    path = data / "train.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    return "train.parquet: not a complete parquet file"


def spoil_null(data):
    items = pa.array([None, *column(data / "train.parquet", "item_id")[1:].tolist()])
    change(data / "train.parquet", "item_id", items)
    return "train.parquet: column item_id is empty (null) in row 0"


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_bad_data(folder, spoil, capsys):
    message = spoil(folder / "TEST_DATA")
    code, err = train(folder, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(folder.glob("runs/**/*.model"))
    assert not list(folder.glob("**/*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expid", "FiBiNET_tset"], "--expid FiBiNET_tset: not in"),
        (["--expid", "FiBiNET_tset"], "expected one of FiBiNET_test, FiBiNET_test_no_emb"),
        (["--set", "model=FiBiNETT"], "model 'FiBiNETT' is unknown, expected one of"),
        (["--set", "hiden_units=[8]"], "--set: hiden_units: unknown key, did you mean hidden_units?"),
        (["--set", "embedding_dim"], "--set embedding_dim: expected key=value"),
        (["--set", "dataset_id=NO_DATA"], "dataset_id NO_DATA: not in"),
        (["--set", "loss=os.system('true')"], "loss is \"os.system('true')\", expected one of"),
        (["--set", "optimizer=Adamm"], "optimizer is 'Adamm', expected one of"),
        (["--set", "metrics=[F1]"], "metrics has 'F1'"),
        (["--set", "batch_size=0"], "batch_size is 0, expected a whole number above 0"),
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
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]

"""What `check` passes, every command takes; what it refuses, none does, in the same words."""

import os
import re

import data_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import list_column, make_dataset, run_script
from fuxictr.pytorch.layers import FeatureEmbedding

import model_zoo
from mm_fibinet import schema
from mm_fibinet.data_check import check_dataset, check_folder, load_entry
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import item_side_features, load_item_table
from mm_fibinet.items.sources import ImageSource
from mm_fibinet.metrics import group_auc
from mm_fibinet.parquet_reader import open_parquet, part_files, read_column
from mm_fibinet.settings import load_params
from mm_fibinet.split import read_split

SPOILERS = data_faults.functions("spoil_")
VARIETIES = data_faults.functions("vary_")


@pytest.fixture
def folder(tmp_path):
    """A data set of its own, to be changed."""
    make_dataset(tmp_path)
    return tmp_path


def run_check(folder, *arguments, capsys):
    """Run the check on the data set's entry: (exit code, what it prints)."""
    arguments = arguments or ("--config", folder / "config", "--dataset_id", "TEST_DATA")
    return run_script("mm_fibinet.data_check", "check", *arguments, capsys=capsys)[:2]


def run_training(folder, *arguments, capsys):
    """Train an epoch on the folder's data: (exit code, what is printed on stderr)."""
    code, _, err = run_script(
        "run_expid", "--config", folder / "config", "--expid", "FiBiNET_test", "--model_root", folder / "runs",
        "--set", "epochs=1", *arguments, capsys=capsys,
    )  # fmt: skip
    return code, err


def line_of(table, name):
    return next(line for line in table.splitlines() if line.startswith(name))


def all_problems(rows):
    return [problem for row in rows for problem in row.problems]


@pytest.mark.parametrize("name", SPOILERS)
def test_check_and_training_refuse_the_same(folder, name, capsys):
    message = SPOILERS[name](folder / "TEST_DATA")
    code, err = run_training(folder, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(folder.glob("runs/**/*.model"))
    assert not list(folder.glob("**/*.part"))

    code, table = run_check(folder, capsys=capsys)
    assert code == 2
    assert message.rpartition(".parquet: ")[2] in table
    params = load_entry(folder / "config", "TEST_DATA", None)
    found = [f"{row.path}: {problem}" for row in check_dataset(params) for problem in row.problems]
    found = [problem.split(" (and ")[0] for problem in found] + all_problems(check_dataset(params))
    assert any(err.removeprefix("error: ").strip() in problem for problem in found) or name == "one_class"


@pytest.mark.parametrize("name", VARIETIES)
def test_check_and_training_take_the_same(folder, name, capsys):
    VARIETIES[name](folder / "TEST_DATA")
    assert run_check(folder, capsys=capsys)[0] == 0
    assert run_check(folder, folder, capsys=capsys)[0] == 0
    assert run_training(folder, capsys=capsys) == (0, "")


@pytest.mark.parametrize("name", ["unsigned", "narrow", "float_label", "dictionaries", "parts", "row_groups"])
def test_data_written_otherwise_are_the_same_tensors(folder, name):
    def read():
        params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
        feature_map = build_feature_map(params)
        table = load_item_table(params["item_info"], item_side_features(feature_map.features))
        splits = [
            read_split(params[key], feature_map.features, ["label"], table.num_items, 10, "user_id")
            for key in ("train_data", "valid_data")
        ]
        ids = schema.read_test_ids(params["test_data"])
        return [split.integers for split in splits] + [*table.columns.values(), torch.from_numpy(ids)]

    before = read()
    VARIETIES[name](folder / "TEST_DATA")
    after = read()
    assert [values.dtype for values in before] == [values.dtype for values in after]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_all_problems_of_a_file_are_listed(folder, capsys):
    path = folder / "TEST_DATA" / "train.parquet"
    data_faults.change(path, "likes_level", pa.array([11, 12, -1] + [0] * 597))
    data_faults.change(path, "label", pa.array([0, 1, 2] * 200))
    data_faults.change(path, "views_level", None)
    history = data_faults.column(path, "item_seq")
    history[8], history[9] = 40, np.arange(12)[::-1]
    data_faults.change(path, "item_seq", list_column(history))
    row = next(row for row in check_folder(folder) if row.name == "train.parquet")
    params = load_entry(folder / "config", "TEST_DATA", None)
    expected = [
        "column item_seq has 40 in row 8, expected 0 to 39 (items in item_info 40)",
        "column item_seq has a zero after an item in row 9, expected zeros in front only",
        "column likes_level has 11 in row 0, expected 0 to 10 (vocab_size 11) (and 2 more like it)",
        "column label is 2.0 in row 2, expected 0 or 1 (and 199 more like it)",
    ]
    assert sorted(row.problems) == sorted(expected)
    row = next(row for row in check_dataset(params) if row.path == str(path))
    missing = "column views_level is missing, found user_id, item_seq, item_id, likes_level, label"
    assert sorted(row.problems) == sorted([missing, *expected])
    code, table = run_check(folder, capsys=capsys)
    assert code == 2
    assert [line.split("  ")[-1].strip() for line in table.splitlines() if "column" in line] == row.problems


def test_at_most_twenty_problems_of_a_file_are_shown(folder, capsys):
    path = folder / "TEST_DATA" / "item_info.parquet"
    table = pq.read_table(path)
    for number in range(25):
        table = table.append_column(f"bad_{number}", list_column(np.ones((40, 2))))
    pq.write_table(table, path)
    code, shown = run_check(folder, folder, capsys=capsys)
    lines = shown.splitlines()
    assert code == 2
    assert sum("is not zero in row 0" in line for line in lines) == 20
    assert sum(line.endswith("and 5 more") for line in lines) == 1


def test_levels_are_optional(folder, capsys):
    data = folder / "TEST_DATA"
    for name in ("train", "valid", "test"):
        for level in schema.LEVELS:
            data_faults.change(data / f"{name}.parquet", level, None)
    config = folder / "config" / "dataset_config.yaml"
    levels = "        - {name: [likes_level, views_level], type: categorical, vocab_size: 11}\n"
    assert levels in config.read_text()
    code, table = run_check(folder, capsys=capsys)
    assert code == 2 and "column likes_level is missing" in table  # the entry asks for them
    config.write_text(config.read_text().replace(levels, ""))
    for arguments in ((), (folder,)):
        code, table = run_check(folder, *arguments, capsys=capsys)
        assert code == 0
        assert sum("no levels" in line for line in table.splitlines()) == 3
    assert run_training(folder, capsys=capsys) == (0, "")


def test_history_levels_need_levels(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    features = build_feature_map({**params, "use_features": ["item_id", "item_tags"]}).features
    with pytest.raises(UserError, match="history_levels is True, but neither likes_level nor views_level is among"):
        item_side_features(features, history_levels=True)
    problems = all_problems(check_dataset({**params, "use_features": ["item_id", "item_tags"], "history_levels": True}))
    assert len(problems) == 1 and problems[0].startswith("history_levels is True")


def test_check_of_an_experiment_asks_its_model_for_levels(folder, capsys):
    """DIN_att6 reads the history's levels though no YAML says so."""
    config = folder / "config" / "model_config.yaml"
    for model, wrong in (("DIN", False), ("DIN_att6", True)):
        features = "use_features: [item_seq, item_id, item_tags]"
        config.write_text(f"Levels_test: {{model: {model}, dataset_id: TEST_DATA, {features}}}")
        arguments = ("check", "--config", folder / "config", "--expid", "Levels_test")
        code, table, _ = run_script("mm_fibinet.__main__", *arguments, capsys=capsys)
        assert (code == 2) == wrong and ("history_levels is True, but neither" in table) == wrong, table


def test_check_of_an_experiment_reads_its_features(folder, capsys):
    config = folder / "config" / "model_config.yaml"
    config.write_text(config.read_text() + "    similarity_fields: True\n    similarity_only: [txt_emb_d16]\n")
    arguments = ("--config", folder / "config", "--expid", "FiBiNET_test_no_emb")
    for also in ((), ("--dataset_id", "TEST_DATA")):
        code, table = run_check(folder, *arguments, *also, capsys=capsys)
        assert code == 2 and "similarity_only has 'txt_emb_d16'" in table
    code, table = run_check(folder, *arguments, "--dataset_id", "OTHER", capsys=capsys)
    assert code == 2 and table == ""
    path = folder / "TEST_DATA" / "item_info.parquet"
    table = pq.read_table(path)
    data_faults.change(path, "item_emb_d16", None)
    table = table.append_column("txt_emb_d16", table["item_emb_d16"]).drop_columns("item_emb_d16")
    pq.write_table(table, path)
    code, table = run_check(folder, *arguments, capsys=capsys)
    assert code == 0
    assert "5 features: likes_level, views_level, item_id, item_tags, txt_emb_d16" in line_of(table, "feature_cols")
    assert run_check(folder, capsys=capsys)[0] == 2  # the entry itself has item_emb_d16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("label_col: {name: label, dtype: float}", "label_col: 3"),
            r"label_col is \[?3\]?, expected",
        ),
        (("{name: user_id, type: meta}", "3"), "feature_cols has 3, expected a name and a type out of"),
        (("{name: user_id, type: meta}", "{name: user_id, type: code}"), "code.*, expected a name and a type out of"),
        (("feature_cols:", "feature_columns:"), "feature_cols is not set, expected|did you mean feature_cols"),
        (("item_info:", "item_information:"), "item_info is not set, expected|did you mean item_info"),
        (("train_data:", "train_data: 5 #"), "dataset TEST_DATA: train_data is 5, expected a path"),
    ],
)
def test_entries_that_cannot_be_checked_say_why(folder, change, message, capsys):
    config = folder / "config" / "dataset_config.yaml"
    assert change[0] in config.read_text()
    config.write_text(config.read_text().replace(*change))
    arguments = ("check", "--config", folder / "config", "--dataset_id", "TEST_DATA")
    code, out, err = run_script("mm_fibinet.data_check", *arguments, capsys=capsys)
    assert code == 2
    assert sum(bool(re.search(message, line)) for line in (out + err).splitlines()) == 1


def test_missing_files_of_an_entry_are_problems_and_of_a_folder_are_not(folder, capsys):
    (folder / "TEST_DATA" / "valid.parquet").unlink()
    code, table = run_check(folder, capsys=capsys)
    assert code == 2
    assert "no such file" in line_of(table, str(folder / "TEST_DATA" / "valid.parquet"))
    code, table = run_check(folder, folder, capsys=capsys)
    assert code == 0
    assert line_of(table, "valid.parquet").split() == ["valid.parquet", "absent"]


def test_images_are_counted_where_the_build_finds_them(folder, capsys):
    """At any depth and behind links, each folder once."""
    images = folder / "item_images"
    (images / "unpacked").mkdir(parents=True)
    (images / "unpacked" / "again").symlink_to(images)
    (folder / "elsewhere").mkdir()
    (images / "linked").symlink_to(folder / "elsewhere")
    for path in (images / "unpacked" / "1.jpg", folder / "elsewhere" / "2.png", images / "notes.txt"):
        path.write_bytes(b"")
    found = {entry.item_id for entry in ImageSource(images, 2)}
    code, table = run_check(folder, folder, capsys=capsys)
    assert code == 0 and line_of(table, "item_images/").split() == ["item_images/", f"{len(found)}", "images", "ok"]


def test_a_file_that_cannot_be_read_is_said_in_its_own_line(folder, capsys):
    path = folder / "TEST_DATA" / "item_info.parquet"
    path.unlink()
    path.symlink_to(path.name)
    code, table = run_check(folder, folder, capsys=capsys)
    assert code == 2
    assert "cannot be read: its symbolic links go in a circle" in line_of(table, "item_info.parquet")


def test_control_characters_of_names_do_not_reach_the_terminal(folder, capsys):
    path = folder / "TEST_DATA" / "item_info.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("\x1b[31mred", table["item_id"]), path)
    code, shown = run_check(folder, folder, capsys=capsys)
    assert code == 0
    assert "\x1b" not in shown and r"\x1b[31mred" in shown


@pytest.mark.parametrize("offset", [10**15, -(10**15)])
def test_group_ids_beyond_int32_group_as_they_are(folder, offset):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    feature_map = build_feature_map(params)
    users = data_faults.column(folder / "TEST_DATA" / "valid.parquet", "user_id")

    def load():
        return MMCTRDataLoader(feature_map, params["valid_data"], split="valid", item_info=params["item_info"])

    scores = np.random.default_rng(0).random(200)
    labels, groups = load().labels_and_groups()
    assert np.array_equal(groups, users)
    data_faults.change(folder / "TEST_DATA" / "valid.parquet", "user_id", pa.array(users * 10**15 + offset))
    _, wide_groups = load().labels_and_groups()
    assert wide_groups.dtype == np.int32
    assert group_auc(labels, scores, wide_groups) == group_auc(labels, scores, users)
    data_faults.change(
        folder / "TEST_DATA" / "valid.parquet", "user_id", pa.array(users.astype(np.uint64) + np.uint64(2**64 - 100))
    )
    assert group_auc(labels, scores, load().labels_and_groups()[1]) == group_auc(labels, scores, users)


def test_wide_user_ids_train_but_are_no_field(folder, capsys):
    for name in ("train", "valid", "test"):
        users = data_faults.column(folder / "TEST_DATA" / f"{name}.parquet", "user_id")
        data_faults.change(folder / "TEST_DATA" / f"{name}.parquet", "user_id", pa.array(users + 10**15))
    assert run_check(folder, capsys=capsys)[0] == 0
    assert run_training(folder, capsys=capsys) == (0, "")
    code, err = run_training(folder, "user_id_field=true", capsys=capsys)
    assert code == 2
    assert "column user_id has 10000000000000" in err and "number the ids 1, 2, 3, ..." in err


def test_the_first_user_is_no_padding(folder):
    """Users are numbered from 0, where ids of items and categories begin with 1."""
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo, ["user_id_field=true"])
    tables = FeatureEmbedding(build_feature_map(params), 4).embedding_layer.embedding_layers
    assert tables["item_id"].weight[0].abs().sum() == 0 < tables["user_id"].weight[0].abs().sum()
    tables["user_id"](torch.tensor([0, 3])).sum().backward()
    assert tables["user_id"].weight.grad.sum(dim=1)[[0, 3]].tolist() == [4.0, 4.0]


def test_items_group_too(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    feature_map = build_feature_map({**params, "group_id": "item_id"})
    loader = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", item_info=params["item_info"])
    items = data_faults.column(folder / "TEST_DATA" / "valid.parquet", "item_id")
    assert np.array_equal(loader.labels_and_groups()[1], items)
    assert np.array_equal(next(iter(loader))[0]["item_id"], items[:32])


@pytest.mark.parametrize("name", ["item_seq", "item_tags", "colour", "user_id"])
def test_groups_are_one_id_a_row(folder, name):
    """A numeric feature is none: as float32, 16777216 and 16777217 would be one group."""
    params = {**load_params(str(folder / "config"), "FiBiNET_test", model_zoo), "group_id": name}
    user_id = {"name": "user_id", "type": "numeric"}
    params["feature_cols"] = [user_id if each["name"] == "user_id" else each for each in params["feature_cols"]]
    message = {
        "colour": "column colour is missing",
        "user_id": "group_id is 'user_id', a feature of type numeric, expected ids: type meta or categorical",
    }.get(name, f"group_id is '{name}', a list a row")
    with pytest.raises(UserError, match=message):
        MMCTRDataLoader(build_feature_map(params), params["valid_data"], item_info=params["item_info"])
    assert any(message in problem for problem in all_problems(check_dataset(params)))


def test_a_test_split_needs_no_labels_and_no_groups(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    feature_map = build_feature_map(params)
    path = folder / "TEST_DATA" / "test.parquet"

    def batch():
        loader = MMCTRDataLoader(feature_map, path, split="test", item_info=params["item_info"], batch_size=150)
        return next(iter(loader))[0]

    VARIETIES["test_labels"](path.parent)
    assert set(batch()) == {"user_id", "likes_level", "views_level"}
    labels = np.arange(150) % 2
    data_faults.change(path, "label", pa.array(labels))
    assert np.array_equal(batch()["label"], labels)
    data_faults.change(path, "user_id", None)
    assert "user_id" not in batch()
    assert not all_problems(check_folder(folder))


@pytest.mark.parametrize("name", [b"a[1]b", b"*", b"what? (1)", b"\xe9t\xe9", "數據".encode(), b"~x", b"a.parquet"])
def test_paths_are_taken_literally(tmp_path, name, capsys):
    folder = tmp_path / os.fsdecode(name)
    make_dataset(tmp_path / "data")
    (tmp_path / "data").rename(folder)
    for decoy in ("1", "x", "a1b"):
        (tmp_path / decoy).mkdir()
    arguments = ("--data_root", folder)
    config = folder / "config"
    if name == b"\xe9t\xe9":
        (folder / "config").rename(tmp_path / "config")
        config = tmp_path / "config"
    code, table = run_check(folder, folder, capsys=capsys)
    assert code == 0, table
    code, _, err = run_script(
        "run_expid", "--config", config, "--expid", "FiBiNET_test", "--model_root", tmp_path / "runs",
        "--set", "epochs=1", *arguments, capsys=capsys,
    )  # fmt: skip
    assert (code, err) == (0, "")
    out = folder / "submission.zip"
    run = ("--expid", "FiBiNET_test", "--model_root", tmp_path / "runs", "--out", out)
    code, _, err = run_script("prediction", *run, capsys=capsys)
    assert (code, err) == (0, "") and out.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/null", "/dev/null: this is a device or a pipe, expected a parquet file or a folder of them"),
        ("/nowhere/train.parquet", "/nowhere/train.parquet: no such file"),
        ("a\0b", "not a file name"),
        ("x" * 300, "this name is too long"),
    ],
)
def test_paths_that_are_no_data(path, message):
    with pytest.raises(UserError, match=message):
        open_parquet(path)


def test_part_files_are_in_the_order_they_were_written(tmp_path):
    table = pa.table({"ID": np.arange(120)})
    data_faults.write_parts(tmp_path / "test", table, 12)
    assert [part.name for part in part_files(tmp_path / "test")][:3] == [
        "part-0.parquet",
        "part-1.parquet",
        "part-2.parquet",
    ]
    assert np.array_equal(read_column(tmp_path / "test", "ID"), np.arange(120))
    assert open_parquet(tmp_path / "test").num_rows == 120
    pq.write_table(table, tmp_path / "plain.parquet")
    assert part_files(tmp_path / "plain") == [tmp_path / "plain.parquet"]


@pytest.mark.parametrize("name", ["order", "duplicates", "row_zero", "nan", "infinity", "duplicate_column"])
def test_the_build_refuses_the_same_items(folder, name, capsys):
    path = folder / "TEST_DATA" / "item_info.parquet"
    if name == "duplicate_column":
        table = pq.read_table(path)
        pq.write_table(table.append_column("item_tags", table["item_tags"]), path)
    else:
        SPOILERS[name](path.parent)
    problem = next(row for row in check_folder(folder) if row.path == path).problems[0]
    code, _, err = run_script(
        "build_item_emb", "--item_info", path, "--item_feature", folder / "item_feature.parquet",
        "--output", folder / "out.parquet", "--image_encoder", "none", capsys=capsys,
    )  # fmt: skip
    assert (code, err) == (2, f"error: {path}: {problem}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: data_faults.change(path, "ID", None), "column ID is missing"),
        (lambda path: data_faults.change(path, "ID", pa.array(range(1, 151))), "column ID is 1 in row 0, expected 0"),
        (lambda path: data_faults.change(path, "ID", pa.array(["a"] * 150)), "column ID has type string"),
        (lambda path: data_faults.change(path, "item_id", pa.array([0] * 150)), "column item_id is 0 in row 0"),
        (lambda path: data_faults.change(path, "likes_level", None), "column likes_level is missing"),
        (lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path), "has no rows, expected at least one"),
    ],
)
def test_check_and_prediction_refuse_the_same_test_splits(folder, spoil, message):
    path = folder / "TEST_DATA" / "test.parquet"
    spoil(path)
    row = next(row for row in check_folder(folder) if row.path == path)
    assert message in row.problems[0] or "likes_level" in message
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    row = next(row for row in check_dataset(params) if row.path == str(path))
    assert message in row.problems[0]
    with pytest.raises(UserError) as refused:  # what prediction.py does, in its order
        schema.read_test_ids(path)
        MMCTRDataLoader(build_feature_map(params), path, split="test", item_info=params["item_info"])
    assert str(refused.value).startswith(f"{path}: ") and row.problems[0].split(" (and ")[0] in str(refused.value)


def test_the_label_may_have_another_name(folder, capsys):
    for split in ("train", "valid"):
        path = folder / "TEST_DATA" / f"{split}.parquet"
        table = pq.read_table(path)
        names = ["clicked" if name == "label" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    code, table = run_check(folder, capsys=capsys)
    assert code == 2 and "column label is missing, found user_id" in table
    config = folder / "config" / "dataset_config.yaml"
    config.write_text(config.read_text().replace("label_col: {name: label", "label_col: {name: clicked"))
    assert run_check(folder, capsys=capsys)[0] == 0
    assert run_training(folder, capsys=capsys) == (0, "")


def test_constructing_a_loader_leaves_malloc_alone(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("mm_fibinet.memory.ctypes.CDLL", opened.append)
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    MMCTRDataLoader(build_feature_map(params), params["train_data"], item_info=params["item_info"])
    assert opened == []

"""Histories once a user: the same batches, weights and scores as with histories in the rows, and the same refusals."""

import importlib.util
import itertools
import zipfile
from importlib.metadata import distribution

import data_faults
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import list_column, run_script
from user_data import FORMS, LONGEST, USERS, make_forms

import model_zoo
from benchmarks import user_info as benchmark
from benchmarks.synthetic import Sizes
from mm_fibinet import memory, storage
from mm_fibinet.data_check import check_dataset, check_folder
from mm_fibinet.dataloader import BATCH_FORMATS, MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params
from mm_fibinet.user_table import UserTable, read_user_table, user_table_bytes


@pytest.fixture(scope="module", params=["ends", "whole"])
def forms(request, tmp_path_factory):
    """{form: config} of data whose rows say where their histories end, or do not."""
    return make_forms(tmp_path_factory.mktemp("forms"), ends=request.param == "ends")


@pytest.fixture
def users(tmp_path):
    """The folder of a data set with user_info, to be changed."""
    make_forms(tmp_path)
    return tmp_path / "users"


def load(config, split="train", **settings):
    """A loader of one of the forms."""
    params = load_params(str(config), "FiBiNET_test", model_zoo)
    feature_map = build_feature_map({**params, "feature_cols": settings.pop("feature_cols", params["feature_cols"])})
    return MMCTRDataLoader(feature_map, params[f"{split}_data"], split=split, **{**params, **settings})


def flat(batch):
    """The tensors of a batch of any format by name."""
    if isinstance(batch, torch.Tensor):
        return {"": batch}
    parts = batch._asdict() if hasattr(batch, "_asdict") else batch
    parts = parts if isinstance(parts, dict) else dict(enumerate(parts))
    parts = {name: part for name, part in parts.items() if not hasattr(part, "columns")}  # the item table
    return {(name, *inner): value for name, part in parts.items() for inner, value in _inner(part)}


def _inner(part):
    return [((key,), value) for key, value in flat(part).items()]


def assert_same(batch, expected):
    """Equal names, types and bits."""
    got, wanted = flat(batch), flat(expected)
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        assert got[name].dtype == values.dtype, name
        assert torch.equal(got[name], values), name


@pytest.mark.parametrize("max_len", [1, 10, 100])
@pytest.mark.parametrize("batch_format", BATCH_FORMATS)
def test_batches_equal_the_row_form(forms, batch_format, max_len):
    """All of them, the short last one too; histories are empty, cut, padded and whole."""
    for split, shuffle in (("train", True), ("train", False), ("valid", False), ("test", False)):
        settings = {"batch_format": batch_format, "max_len": max_len, "shuffle": shuffle, "batch_size": 128}
        rows, pointing = (load(forms[form], split, **settings) for form in FORMS)
        pairs = list(zip(pointing, rows, strict=True))
        assert len(pairs) == {"train": 5, "valid": 2, "test": 2}[split]
        for batch, expected in pairs:
            assert_same(batch, expected)
    width = {1: 1, 10: 10, 100: LONGEST}[max_len]
    if batch_format == "indices":
        assert pairs[0][0].item_index.shape == (128, width + 1)
        assert pairs[0][0].mask[1].sum() == 0 and pairs[0][0].mask[0].sum() == width
        assert set(pairs[0][0].batch_dict) >= {"user_id", "age", "country", "interests", "taste"}
        assert "history_end" not in pairs[0][0].batch_dict


@pytest.mark.parametrize("storage", ["device", "memory", "memmap"])
def test_every_storage_has_the_same_batches(forms, storage):
    rows, pointing = (load(forms[form], storage=storage, shuffle=True, batch_size=250) for form in FORMS)
    for batch, expected in zip(pointing, rows, strict=True):
        assert_same(batch, expected)
    assert not pointing.users.nbytes > 4 * rows.data.nbytes  # 50 users beside 600 rows


def test_ranks_and_scoring_shards_have_their_share(forms):
    settings = {"batch_format": "indices", "shuffle": True, "batch_size": 50, "world_size": 3}
    for rank in range(3):
        rows, pointing = (load(forms[form], rank=rank, **settings) for form in FORMS)
        for batch, expected in zip(pointing, rows, strict=True):
            assert_same(batch, expected)
        for (index, batch), (same, expected) in zip(
            pointing.shard_batches(rank, 3), rows.shard_batches(rank, 3), strict=True
        ):
            assert index == same
            assert_same(batch, expected)


def test_an_epoch_goes_on_where_it_was_left(forms):
    whole, resumed = (load(forms["users"], shuffle=True, batch_size=100) for _ in range(2))
    list(whole)
    expected = list(whole)[2:]
    resumed.set_position(1, first_batch=2)
    for batch, wanted in zip(resumed, expected, strict=True):
        assert_same(batch, wanted)


def test_sizes_and_scales_are_those_of_the_row_form(forms):
    rows, users = (load(forms[form]).feature_map.features for form in FORMS)
    assert users == rows
    assert rows["age"]["scale"] != 1 and rows["country"]["vocab_size"] == 5 and rows["taste"]["pretrain_dim"] == 4


def test_user_id_is_a_field_and_a_group(forms):
    changes = [{"name": "user_id", "type": "categorical"}, {"name": "item_seq", "type": "meta"}]
    loaders = []
    for form in FORMS:
        params = load_params(str(forms[form]), "FiBiNET_test", model_zoo)
        columns = changes + [
            column for column in params["feature_cols"] if column["name"] not in ("user_id", "item_seq")
        ]
        loaders.append(load(forms[form], "valid", feature_cols=columns, batch_size=200))
    rows, users = loaders
    assert users.feature_map.features["user_id"]["vocab_size"] == USERS
    for batch, expected in zip(users, rows, strict=True):
        assert_same(batch, expected)
    assert np.array_equal(users.labels_and_groups()[1], rows.labels_and_groups()[1])


def test_splits_share_their_users(forms):
    train = load(forms["users"])
    valid = load(forms["users"], "valid", user_info=train.users)
    assert valid.users is train.users
    shorter = load(forms["users"], "valid", user_info=train.users, max_len=4)
    assert next(iter(shorter))[2].shape == (64, 4)
    longer = load(forms["users"], "valid", user_info=train.users, max_len=100)
    assert next(iter(longer))[2].shape == (64, LONGEST)


def test_gathering_for_another_device_equals_gathering_here(forms):
    """`meta` stands for a GPU: the shapes and types that arrive there."""
    data, there = load(forms["users"]).data, torch.device("meta")
    for columns, items in (data.gather(torch.tensor([5, 0, 599]), there), data.slice(3, 6, there)):
        assert (items.shape, items.dtype, items.device) == ((3, 11), torch.int32, there)
        assert {values.device for values in columns.values()} == {there}
        assert columns["taste"].shape == (3, 4) and columns["taste"].dtype == torch.float32


def test_users_without_any_history(users):
    path = users / "TEST_DATA" / "user_info.parquet"
    data_faults.change(path, "item_seq", pa.array([[]] * USERS, pa.list_(pa.int64())))
    for name in ("train", "valid", "test"):
        data_faults.change(users / "TEST_DATA" / f"{name}.parquet", "history_end", None)
    batch = next(iter(load(users / "config", batch_format="indices")))
    assert batch.item_index.shape == (64, 2) and not batch.mask.any() and batch.item_index[:, 1].all()


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.uint8())])
def test_lists_of_all_kinds_are_the_same_users(users, kind):
    path = users / "TEST_DATA" / "user_info.parquet"
    params = load_params(str(users / "config"), "FiBiNET_test", model_zoo)
    features = build_feature_map(params).features
    before = read_user_table(path, features, 40)
    table = pq.read_table(path)
    data_faults.change(path, "item_seq", table["item_seq"].cast(kind))
    data_faults.write_parts(path, pq.read_table(path), 4)
    after = read_user_table(path, features, 40)
    assert after.longest == before.longest == LONGEST
    assert_same(after.tensors(), before.tensors())
    sequences = table["item_seq"].to_pylist()
    starts = before.starts.tolist()
    assert [before.sequences[a : b - before.run].tolist() for a, b in itertools.pairwise(starts)] == sequences


@pytest.mark.parametrize(("length", "run"), [(1, 32), (255, 32), (256, 64), (511, 64), (600, 128), (5000, 128)])
def test_longer_histories_are_copied_in_longer_runs(tmp_path, length, run):
    items = np.arange(3 * length, dtype=np.int32).reshape(3, length) % 50 + 1
    pq.write_table(pa.table({"user_id": [0, 1, 2], "item_seq": list_column(items)}), tmp_path / "users.parquet")
    table = read_user_table(tmp_path / "users.parquet", {}, 51)
    assert table.run == run and table.nbytes == 4 * (3 * length + 4 * run) + 8 * 4
    user, end = torch.tensor([2, 0], dtype=torch.int32), torch.tensor([length, length // 2], dtype=torch.int32)
    batch = table.item_index(torch.tensor([7, 8]), user, end, length, torch.device("cpu")).tolist()
    half = items[0, : length // 2].tolist()
    assert batch == [[*items[2].tolist(), 7], [*[0] * (length - len(half)), *half, 8]]


def train(config, runs, *arguments, capsys):
    """Train, then predict: (the weights, the prediction's bytes)."""
    command = ["--config", config, "--expid", "FiBiNET_test", "--model_root", runs]
    code, _, err = run_script("run_expid", *command, *arguments, capsys=capsys)
    assert (code, err) == (0, "")
    code, _, err = run_script("prediction", *command, "--out", runs / "out.zip", capsys=capsys)
    assert (code, err) == (0, "")
    with zipfile.ZipFile(runs / "out.zip") as archive:
        return torch.load(runs / "TEST_DATA" / "FiBiNET_test.model", weights_only=True), archive.read("prediction.csv")


def test_commands_end_with_the_weights_and_scores_of_the_row_form(tmp_path, capsys):
    """A run of two epochs on the rows; on user_info one that is resumed after the first, from memory maps.

    Without `taste`: a matrix product rounds otherwise where a row's four numbers are not among others.
    """
    forms = make_forms(tmp_path)
    used = "user_id, item_seq, likes_level, views_level, item_id, item_tags, item_emb_d16, age, country, interests"
    settings = ["storage=memmap", f"use_features=[{used}]"]
    expected, scores = train(forms["rows"], tmp_path / "rows_runs", "--set", "epochs=2", settings[1], capsys=capsys)
    runs = tmp_path / "users_runs"
    train(forms["users"], runs, "--set", "epochs=1", *settings, capsys=capsys)
    weights, resumed = train(forms["users"], runs, "--resume", "--set", "epochs=2", *settings, capsys=capsys)
    assert resumed == scores
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert "user_info" in (runs / "TEST_DATA" / "FiBiNET_test" / "manifest.json").read_text()
    log = (runs / "TEST_DATA" / "FiBiNET_test.log").read_text()
    assert f"Reads user_info: {tmp_path}" in log

    path = tmp_path / "users" / "TEST_DATA" / "user_info.parquet"
    sequences = pq.read_table(path)["item_seq"].to_pylist()
    longest = max(range(USERS), key=lambda user: len(sequences[user]))
    sequences[longest][0] = sequences[longest][0] % 39 + 1
    data_faults.change(path, "item_seq", pa.array(sequences))
    command = ["--config", forms["users"], "--expid", "FiBiNET_test", "--model_root", runs]
    code, _, err = run_script("prediction", *command, "--out", tmp_path / "other.zip", capsys=capsys)
    assert code == 2 and "was trained on another user_info" in err and not (tmp_path / "other.zip").exists()
    code, _, err = run_script("prediction", *command, "--out", path, "--allow_other_data", capsys=capsys)
    assert code == 2 and err.count("\n") == 1  # an input is never an output
    code, _, err = run_script("run_expid", *command, "--resume", "--set", "epochs=2", *settings, capsys=capsys)
    assert code == 2 and "user_info is another file" in err


def test_what_does_not_fit_beside_other_memory_is_mapped(forms, monkeypatch):
    """Users and rows are measured apart: here the 600 rows take more than the 50 users."""
    params = load_params(str(forms["users"]), "FiBiNET_test", model_zoo)
    features = build_feature_map(params).features
    table = read_user_table(params["user_info"], features, 40)
    needed = user_table_bytes(params["user_info"], features)
    assert needed == pytest.approx(
        table.nbytes, abs=4 * table.run + 4 * USERS + 8
    )  # the last zeros, empty histories, the last start
    mapped = []
    monkeypatch.setattr(storage, "in_a_file", lambda *given: mapped.append(given) or storage.in_memory(*given))
    for free, files in ((100 * needed, 0), (2.1 * needed, 1), (1.9 * needed, 7)):  # of users six
        monkeypatch.setattr(storage, "_free_memory", lambda free=free: free)
        load(forms["users"])
        assert len(mapped) == files
        mapped.clear()


def spoil_user_order(data):
    table = pq.read_table(data / "user_info.parquet")
    pq.write_table(table.take([0, 2, 1, *range(3, USERS)]), data / "user_info.parquet")
    return "user_info.parquet: column user_id is 2 in row 1, expected the row number (number the users 0, 1, 2, ..."


def spoil_user_twice(data):
    data_faults.change(data / "user_info.parquet", "user_id", pa.array([*range(USERS - 1), 3]))
    return "user_info.parquet: column user_id is 3 in row 49, expected the row number"


def spoil_null_user(data):
    data_faults.change(data / "user_info.parquet", "user_id", pa.array([*range(USERS - 1), None]))
    return "user_info.parquet: column user_id is empty (null) in row 49, expected a value"


def sequences_of(data):
    return pq.read_table(data / "user_info.parquet")["item_seq"].to_pylist()


def spoil_sequence(data, user, items):
    sequences = sequences_of(data)
    sequences[user] = items
    data_faults.change(data / "user_info.parquet", "item_seq", pa.array(sequences, pa.list_(pa.int64())))


def spoil_null_sequence(data):
    spoil_sequence(data, 4, None)
    return "user_info.parquet: column item_seq is empty (null) in row 4, expected a list"


def spoil_null_item(data):
    spoil_sequence(data, 5, [3, None])
    return "user_info.parquet: column item_seq has a null in row 5, expected integers"


def spoil_padding(data):
    sequences = sequences_of(data)
    spoil_sequence(data, 6, [0, 0, *sequences[6]])
    return "user_info.parquet: column item_seq has 0 in row 6, expected 1 to 39 (items in item_info 40; histories of"


def spoil_item(data):
    spoil_sequence(data, 7, [3, 40, 5])
    return "user_info.parquet: column item_seq has 40 in row 7, expected 1 to 39"


def spoil_negative_item(data):
    spoil_sequence(data, 7, [3, -(2**40)])
    return f"user_info.parquet: column item_seq has {-(2**40)} in row 7, expected 1 to 39"


def spoil_text_items(data):
    texts = [[str(item) for item in items] for items in sequences_of(data)]
    data_faults.change(data / "user_info.parquet", "item_seq", pa.array(texts, pa.list_(pa.string())))
    return "user_info.parquet: column item_seq holds lists of string, expected lists of integers"


def spoil_no_sequences(data):
    data_faults.change(data / "user_info.parquet", "item_seq", None)
    return "user_info.parquet: column item_seq is missing, found user_id, age, country, interests, taste"


def spoil_country(data):
    data_faults.change(data / "user_info.parquet", "country", pa.array([1] * (USERS - 1) + [-1]))
    return "user_info.parquet: column country has -1 in row 49, expected 0 to 1 (vocab_size 2)"


def spoil_no_file(data):
    (data / "user_info.parquet").unlink()
    return "user_info.parquet: no such file"


def spoil_empty(data):
    pq.write_table(pq.read_table(data / "user_info.parquet").slice(0, 0), data / "user_info.parquet")
    return "user_info.parquet: has no rows, expected at least one"


def spoil_unknown_user(data):
    users = data_faults.column(data / "train.parquet", "user_id")
    users[9] = USERS
    data_faults.change(data / "train.parquet", "user_id", pa.array(users))
    return "train.parquet: column user_id has 50 in row 9, expected 0 to 49 (users in user_info 50)"


def spoil_no_user(data):
    data_faults.change(data / "valid.parquet", "user_id", None)
    return "valid.parquet: column user_id is missing|valid.parquet has history_end|group_id is 'user_id'"


def spoil_end(data):
    users, ends = (data_faults.column(data / "train.parquet", name) for name in ("user_id", "history_end"))
    length = len(sequences_of(data)[users[8]])
    ends[8] = length + 1
    data_faults.change(data / "train.parquet", "history_end", pa.array(ends))
    return (
        f"train.parquet: column history_end is {length + 1} for user {users[8]} with {length} items in row 8, "
        "expected at most the number of the user's items in item_seq"
    )


def spoil_negative_end(data):
    ends = data_faults.column(data / "valid.parquet", "history_end")
    ends[3] = -1
    data_faults.change(data / "valid.parquet", "history_end", pa.array(ends))
    return "valid.parquet: column history_end has -1 in row 3, expected 0 to 2147483647 (the int32 range"


def spoil_null_end(data):
    ends = data_faults.column(data / "train.parquet", "history_end").tolist()
    data_faults.change(data / "train.parquet", "history_end", pa.array([None, *ends[1:]]))
    return "train.parquet: column history_end is empty (null) in row 0, expected a value"


def spoil_both(data):
    table = pq.read_table(data / "train.parquet")
    table = table.append_column("item_seq", list_column(np.zeros((600, 3), dtype=np.int64)))
    pq.write_table(table, data / "train.parquet")
    return "train.parquet: column item_seq is there, and user_info has the histories, expected them in one place; drop"


SPOILERS = {name.removeprefix("spoil_"): value for name, value in globals().items() if name.startswith("spoil_")}
del SPOILERS["sequence"]


@pytest.mark.parametrize("name", SPOILERS)
def test_check_and_training_refuse_the_same(users, name, capsys):
    messages = SPOILERS[name](users / "TEST_DATA").split("|")
    command = ["--config", users / "config", "--expid", "FiBiNET_test", "--model_root", users / "runs"]
    code, _, err = run_script("run_expid", *command, "--set", "epochs=1", capsys=capsys)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert any(message in err for message in messages), err
    assert not list(users.glob("runs/**/*.model"))
    found = [problem for row in check_dataset(_entry(users)) for problem in row.problems]
    assert any(message.rpartition(".parquet: ")[2] in problem for problem in found for message in messages), found
    assert len(found) <= 6


def _entry(users):
    params = load_params(str(users / "config"), "FiBiNET_test", model_zoo, ["group_id=null", "metrics=[AUC]"])
    return params


def test_without_user_info_the_error_names_it(users):
    """A split that points at users whom the entry does not name."""
    message = "column item_seq is missing, found .*history_end; or name the file of the users' histories as user_info"
    with pytest.raises(UserError, match=message):
        load(users / "config", user_info=None)


def test_check_says_what_user_info_has(users, capsys):
    code, table, _ = run_script(
        "mm_fibinet.data_check", "check", "--config", users / "config", "--expid", "FiBiNET_test", capsys=capsys
    )
    lengths = [len(items) for items in sequences_of(users / "TEST_DATA")]
    said = f"50 users: histories of 0 to 20, {np.mean(lengths):.1f} on average, age, country, interests, taste"
    assert code == 0 and said in table
    row = next(row for row in check_folder(users) if row.name == "user_info.parquet")
    assert row.content == said.partition(", age")[0] and row.problems == []
    assert not [problem for row in check_folder(users) for problem in row.problems]


def test_every_row_that_points_wrong_is_counted(users):
    path = users / "TEST_DATA" / "train.parquet"
    ends = data_faults.column(path, "history_end")
    ends[10:15] = 100
    data_faults.change(path, "history_end", pa.array(ends))
    (problem,) = [problem for row in check_dataset(_entry(users)) for problem in row.problems]
    assert problem.startswith("column history_end is 100 for user") and problem.endswith("(and 4 more like it)")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("history_end", "numeric", "feature history_end: type is numeric, expected meta: with user_info this column"),
        ("user_id", "numeric", "feature user_id: type is numeric, expected meta or categorical: with user_info"),
    ],
)
def test_a_column_that_points_is_no_number(users, name, kind, message):
    params = load_params(str(users / "config"), "FiBiNET_test", model_zoo)
    columns = [column for column in params["feature_cols"] if column["name"] != name]
    with pytest.raises(UserError, match=message):
        load(users / "config", feature_cols=[*columns, {"name": name, "type": kind}])


def test_a_feature_of_users_that_user_info_lacks_is_the_rows(users):
    """`source: user` says whose it is; FuxiCTR's data sets have such columns in the rows."""
    forms = {"rows": users.parent / "rows" / "config", "users": users / "config"}
    ages = pq.read_table(users.parent / "rows" / "TEST_DATA" / "train.parquet")["age"]
    path = users / "TEST_DATA" / "train.parquet"
    pq.write_table(pq.read_table(path).append_column("age", ages), path)
    data_faults.change(users / "TEST_DATA" / "user_info.parquet", "age", None)
    batch, expected = (next(iter(load(forms[form], batch_size=600)))[0] for form in ("users", "rows"))
    assert torch.equal(batch["age"], expected["age"])


def test_inputs_are_not_modified(users):
    before = {path: path.read_bytes() for path in users.rglob("*.parquet")}
    list(load(users / "config", storage="memmap"))
    assert before == {path: path.read_bytes() for path in users.rglob("*.parquet")}


def test_tables_move_as_one(users):
    params = load_params(str(users / "config"), "FiBiNET_test", model_zoo)
    table = read_user_table(params["user_info"], build_feature_map(params).features, 40)
    there = table.to("meta")
    assert isinstance(there, UserTable) and there.longest == table.longest
    assert {values.device.type for values in there.tensors().values()} == {"meta"}
    assert {name: values.shape for name, values in there.columns.items()} == {
        name: values.shape for name, values in table.columns.items()
    }


def longctr_loader():
    """FuxiCTR's loader for long histories, which our model_zoo hides."""
    path = distribution("fuxictr").locate_file("model_zoo/LongCTR/longctr_dataloader.py")
    spec = importlib.util.spec_from_file_location("longctr_dataloader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LongCTRDataLoader


def test_longctr_has_the_same_histories_under_its_own_names(users):
    """FuxiCTR's LongCTR reads user_index, full_item_seq, seq_len and item_index for what these are called here."""
    data = users / "TEST_DATA"
    theirs = {"user_id": "user_index", "item_seq": "full_item_seq", "history_end": "seq_len", "item_id": "item_index"}
    for name in ("train", "user_info", "item_info"):
        frame = pd.read_parquet(data / f"{name}.parquet").rename(columns=theirs)
        frame.to_parquet(data / f"longctr_{name}.parquet")
    ours = load(users / "config", batch_size=600, shuffle=False)
    feature_map = ours.feature_map
    feature_map.features = {theirs.get(name, name): spec for name, spec in feature_map.features.items()}
    feature_map.features |= {"seq_len": {"type": "meta"}}
    (batch,) = longctr_loader()(
        feature_map,
        str(data / "longctr_train.parquet"),
        str(data / "longctr_user_info.parquet"),
        str(data / "longctr_item_info.parquet"),
        batch_size=600,
        num_workers=0,
        max_len=10,
    )
    ((_, item_dict, mask),) = list(ours)
    assert torch.equal(batch[2], mask)
    for name in ("item_tags", "item_emb_d16"):
        assert torch.equal(batch[1][name].float(), item_dict[name].float())


def test_the_benchmark_writes_the_same_histories_twice(tmp_path, monkeypatch):
    monkeypatch.setenv(memory.SWITCH, "0")
    sizes = Sizes(rows=300, items=50, max_len=40)
    benchmark.write_forms(tmp_path, sizes, users=60)
    rows, pointing = (benchmark.Side(form, tmp_path, sizes, {"indices": 64, "triple": 32}) for form in benchmark.FORMS)
    assert rows.digest(4) == pointing.digest(4) != rows.digest(3)
    assert pointing.pass_over("triple", 2) > 0 and pointing.measured()["files"] < rows.measured()["files"]

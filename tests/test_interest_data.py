"""Interest layers and content search from the config to the scores: settings, item tables of int8, the commands."""

import data_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import EMB_DIM, NUM_ITEMS, list_column, make_dataset, run_script

import model_zoo
from mm_fibinet import schema
from mm_fibinet.any_model import make_model
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import item_side_features, load_item_table
from mm_fibinet.parquet_reader import read_slices
from mm_fibinet.settings import load_params

EMBEDDING = "item_emb_d16"
ALL = [
    f"simtier=[{EMBEDDING}]",
    f"sa_ta=[{EMBEDDING}]",
    f"bucket_attention=[{EMBEDDING}]",
    "cross_attention_layers=1",
    f"content_search={EMBEDDING}",
    "content_search_len=6",
]


@pytest.fixture(scope="module")
def int8_data(tmp_path_factory):
    """(config folder, int8 [N, E]) of a data set whose embedding is stored so."""
    config = make_dataset(tmp_path_factory.mktemp("int8"))
    values = np.random.default_rng(0).integers(-127, 128, (NUM_ITEMS, EMB_DIM)).astype(np.int8)
    values[0] = 0
    path = config.parent / "TEST_DATA" / "item_info.parquet"
    data_faults.change(path, EMBEDDING, list_column(values))
    assert pq.read_schema(path).field(EMBEDDING).type.value_type == pa.int8()
    return config, values


def params_of(config, *changes):
    return load_params(str(config), "FiBiNET_test", model_zoo, list(changes))


def model_and_table(params):
    """The run's model and what it reads of the items."""
    model = make_model(getattr(model_zoo, params["model"]), build_feature_map(params), params)
    return model, load_item_table(params["item_info"], model.item_side_features(), params["item_feature"])


@pytest.mark.parametrize(("name", "reads"), [("FinalMLP", "fs1_context"), ("FiBiNET", "low_rank_fusion")])
def test_what_is_embedded_and_compared_too_has_its_scale(int8_data, name, reads):
    """FinalMLP's gates embed a context, FiBiNET's fusion projects; what is only compared has no scale."""
    config, values = int8_data
    params = params_of(config)
    for spec in params["feature_cols"]:
        if spec["name"] == EMBEDDING:
            spec["scale"] = 1 / 127
    settings = {"similarity_fields": True, "similarity_only": [EMBEDDING], reads: [EMBEDDING]}
    model = getattr(model_zoo, name)(build_feature_map(params), **settings)
    table = load_item_table(params["item_info"], model.item_side_features())
    expected = torch.from_numpy(values[5:8] / 127).float()
    torch.testing.assert_close(table.rows(torch.arange(5, 8))[EMBEDDING], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["FiBiNET", "DIN"])
def test_vectors_that_are_compared_only_stay_int8(int8_data, name):
    config, values = int8_data
    params = params_of(config, f"similarity_only=[{EMBEDDING}]", f"simtier=[{EMBEDDING}]")
    model = getattr(model_zoo, name)(build_feature_map(params), simtier=[EMBEDDING], similarity_only=[EMBEDDING])
    table = load_item_table(params["item_info"], model.item_side_features())
    assert table[EMBEDDING].dtype == torch.int8
    assert np.array_equal(table[EMBEDDING].numpy(), values)


def test_vectors_that_are_embedded_have_their_scale(int8_data):
    config, values = int8_data
    params = params_of(config, f"simtier=[{EMBEDDING}]")
    _, table = model_and_table(params)
    assert np.array_equal(table[EMBEDDING].numpy(), values.astype(np.float32))
    for column in params["feature_cols"]:
        if column["name"] == EMBEDDING:
            column["scale"] = 0.5
    _, table = model_and_table(params)
    assert np.array_equal(table[EMBEDDING].numpy(), values.astype(np.float32) / 2)
    features = build_feature_map(params).features
    assert np.array_equal(
        load_item_table(params["item_info"], item_side_features(features))[EMBEDDING].numpy(), values / np.float32(2)
    )


@pytest.mark.parametrize("batch_format", ["indices", "triple"])
def test_int8_vectors_of_a_model_have_the_scores_of_float32_and_a_quarter_of_their_memory(int8_data, batch_format):
    config, values = int8_data
    params = {**params_of(config), "batch_format": batch_format}
    for column in params["feature_cols"]:
        column.update({"scale": 1 / 127} if column["name"] == EMBEDDING else {})
    features = build_feature_map(params)
    torch.manual_seed(0)
    model = model_zoo.DIN(features, embedding_dim=4).eval()
    table = load_item_table(params["item_info"], model.item_side_features())
    wide = load_item_table(params["item_info"], item_side_features(features.features))
    assert table.columns[EMBEDDING].dtype == torch.int8 and wide.columns[EMBEDDING].dtype == torch.float32
    assert torch.equal(wide[EMBEDDING], torch.from_numpy(values.astype(np.float32) * np.float32(1 / 127)))
    for kept in (table[EMBEDDING], table.all_rows()[EMBEDDING], table.rows(torch.arange(NUM_ITEMS))[EMBEDDING]):
        assert torch.equal(kept, wide[EMBEDDING])
    assert wide.nbytes - table.nbytes == 3 * values.size
    loaders = [
        MMCTRDataLoader(features, params["valid_data"], "valid", **{**params, "item_info": items, "shuffle": False})
        for items in (table, wide)
    ]
    assert np.array_equal(model.predict(loaders[0]), model.predict(loaders[1]))


def test_items_are_read_by_slices(int8_data, dataset, tmp_path, monkeypatch):
    model = model_zoo.DIN(build_feature_map(params_of(dataset)), embedding_dim=4)
    path = str(dataset.parent / "TEST_DATA" / "item_info.parquet")
    whole = load_item_table(path, model.item_side_features())
    monkeypatch.setattr(schema, "read_slices", lambda path, columns: read_slices(path, columns, 7))
    by_slices = load_item_table(path, model.item_side_features())
    assert whole.columns.keys() == by_slices.columns.keys()
    assert all(torch.equal(whole[name], by_slices[name]) for name in whole.columns)
    broken = pq.read_table(path)
    vectors = np.array(broken[EMBEDDING].to_pylist(), dtype=np.float32)
    vectors[30, 2] = np.nan
    pq.write_table(
        broken.set_column(broken.column_names.index(EMBEDDING), EMBEDDING, list_column(vectors)), tmp_path / "i.parquet"
    )
    with pytest.raises(UserError, match=rf"column {EMBEDDING} has NaN or infinity in row 30"):
        load_item_table(tmp_path / "i.parquet", model.item_side_features())


def test_part_files_of_int8_and_of_wider_integers_are_refused(int8_data, tmp_path):
    config, _ = int8_data
    params = params_of(config, f"simtier=[{EMBEDDING}]", f"similarity_only=[{EMBEDDING}]")
    model, _ = model_and_table(params)
    items = pq.read_table(params["item_info"])
    pq.write_table(items.slice(0, 20), tmp_path / "part-0.parquet")
    rest = items.slice(20)
    wide = np.array(rest[EMBEDDING].to_pylist(), dtype=np.int16)
    rest = rest.set_column(rest.column_names.index(EMBEDDING), EMBEDDING, list_column(wide))
    pq.write_table(rest, tmp_path / "part-1.parquet")
    with pytest.raises(UserError, match=f"column {EMBEDDING} is int8 in some of the part files alone; write it alike"):
        load_item_table(tmp_path, model.item_side_features())


def test_a_column_that_is_no_feature_is_compared(dataset):
    """As similarity_fields, by its name in item_info; then it is no field."""
    params = params_of(dataset, f"simtier=[{EMBEDDING}]", f"similarity_only=[{EMBEDDING}]")
    params["feature_cols"] = [column for column in params["feature_cols"] if column["name"] != EMBEDDING]
    model, table = model_and_table(params)
    assert EMBEDDING not in model.field_features
    assert table[EMBEDDING].shape == (NUM_ITEMS, EMB_DIM)
    params["item_info"] = str(dataset.parent / "TEST_DATA" / "item_info.parquet")
    params["similarity_only"] = ["txt_emb"]
    with pytest.raises(UserError, match=r"similarity_only has 'txt_emb', .*item_info.parquet has item_id, item_tags, "):
        build_feature_map(params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("simtier=item_emb_d16", "simtier is 'item_emb_d16', expected a list of names of features"),
        ("cross_attention_layers=-1", "cross_attention_layers is -1, expected a whole number from 0 to"),
        (
            "content_search=[item_emb_d16]",
            r"content_search is \['item_emb_d16'\], expected the name of a column, or null",
        ),
        ("content_search_len=0", "content_search_len is 0, expected a whole number from 1"),
        ("interest_dropout=1", "interest_dropout is 1, expected a number from 0 to below 1"),
        ("sim_tier=[item_emb_d16]", "sim_tier: unknown key, did you mean simtier"),
    ],
)
def test_settings_that_are_no_settings(dataset, change, message):
    with pytest.raises(UserError, match=message):
        params_of(dataset, change)


def test_layers_can_be_switched_off_again(dataset):
    params = params_of(dataset, "simtier=[]", "sa_ta=[]", "cross_attention_layers=0", "content_search=null")
    assert model_and_table(params)[0].interest is None


def test_the_commands_train_and_score(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path / "runs"]
    code, out, err = run_script("run_expid", *arguments, "--set", "epochs=1", *ALL, capsys=capsys)
    assert code == 0, err
    assert f"simtier=['{EMBEDDING}']" in out
    code, _, err = run_script("prediction", *arguments[2:], "--out", tmp_path / "scores.csv", capsys=capsys)
    assert code == 0, err
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 151
    code, _, err = run_script("run_expid", *arguments, "--set", "simtier=[likes_level]", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "simtier has 'likes_level', expected features of source item and of type embedding, here item_emb_d16" in err

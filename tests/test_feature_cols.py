"""Lines of feature_cols that fit the data are read, the rest is refused, by `check` in the same words."""

import data_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import list_column, make_dataset

import model_zoo
from mm_fibinet.data_check import check_dataset
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import item_side_features, load_item_table
from mm_fibinet.settings import load_params


@pytest.fixture
def folder(tmp_path):
    """A data set of its own, to be changed."""
    make_dataset(tmp_path)
    return tmp_path


def columns_but(params, *names):
    """feature_cols without some features."""
    return [column for column in params["feature_cols"] if column["name"] not in names]


LINES = {
    "absent from the file": ([{"name": "colour", "type": "categorical"}], "column colour is missing, found user_id"),
    "the item as a feature of the row": (
        [{"name": "item_id", "type": "categorical", "vocab_size": 40}],
        "feature item_id: source is '', expected categorical, of source item",
    ),
    "the item as a number": (
        [{"name": "item_id", "type": "numeric", "source": "item"}],
        "feature item_id: type is 'numeric', expected categorical, of source item",
    ),
    "the history as a feature": (
        [{"name": "item_seq", "type": "sequence", "vocab_size": 40, "max_len": 12}],
        "feature item_seq: type is 'sequence', expected meta: it is the history",
    ),
    "absent from the file, its size known": (
        [{"name": "colour", "type": "categorical", "vocab_size": 3}],
        "column colour is missing, found user_id",
    ),
    "of the items, but the split's": (
        [{"name": "user_id", "type": "categorical", "source": "item", "vocab_size": 50}],
        "item_info.parquet: column user_id is missing, found item_id",
    ),
    "named twice": ([{"name": "x", "type": "meta"}, {"name": "x", "type": "meta"}], "feature_cols has x twice"),
    "the label": ([{"name": "label", "type": "categorical", "vocab_size": 2}], "label is the label and a feature"),
    "sharing with nobody": (
        [{"name": "last", "type": "categorical", "vocab_size": 40, "share_embedding": "item"}],
        "feature last: share_embedding is 'item', expected a categorical or sequence feature before it",
    ),
    "sharing with a number": (
        [{"name": "item_emb_d16", "type": "embedding", "source": "item", "share_embedding": "item_id"}],
        "feature item_emb_d16: share_embedding is 'item_id', expected",
    ),
    "sharing another width": (
        [{"name": "last", "type": "categorical", "vocab_size": 40, "share_embedding": "item_id", "embedding_dim": 3}],
        "feature last: embedding_dim must be that of item_id",
    ),
    "an encoder where there is none": (
        [{"name": "last", "type": "categorical", "vocab_size": 40, "feature_encoder": "nn.Linear(1, 2)"}],
        "feature last: feature_encoder is for type sequence",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_feature_cols_that_do_not_fit_the_data(folder, name):
    lines, message = LINES[name]
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    data = folder / "TEST_DATA"
    data_faults.change(data / "train.parquet", "user_id", pa.array(np.arange(600)))
    for split in ("train", "valid", "test"):
        table = pq.read_table(data / f"{split}.parquet")
        pq.write_table(table.append_column("last", table["item_id"]), data / f"{split}.parquet")
    params["feature_cols"] = [*columns_but(params, *(line["name"] for line in lines)), *lines]
    with pytest.raises(UserError) as refused:
        feature_map = build_feature_map(params)
        table = load_item_table(params["item_info"], item_side_features(feature_map.features), params["item_feature"])
        MMCTRDataLoader(feature_map, params["train_data"], item_info=table)
    assert message in str(refused.value)
    try:
        problems = [f"{row.path}: {text}" for row in check_dataset(params) for text in row.problems]
    except UserError as error:
        problems = [str(error)]
    assert any(message in problem for problem in problems)


def test_features_of_the_row_may_be_lists_and_share_tables(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    rng = np.random.default_rng(0)
    searched, query = {}, {}
    for split, rows in {"train": 600, "valid": 200, "test": 150}.items():
        path = folder / "TEST_DATA" / f"{split}.parquet"
        searched[split] = rng.integers(0, 45, size=(rows, 3)).astype(np.int32)
        query[split] = rng.normal(size=(rows, 6))
        table = pq.read_table(path).append_column("searched", list_column(searched[split]))
        pq.write_table(table.append_column("query", list_column(query[split])), path)
    lines = [
        {"name": "searched", "type": "sequence", "share_embedding": "likes_level"},
        {"name": "query", "type": "embedding"},
    ]
    feature_map = build_feature_map({**params, "feature_cols": [*params["feature_cols"], *lines]})
    largest = max(int(values.max()) for values in searched.values())
    assert feature_map.features["searched"]["max_len"] == 3 and feature_map.features["query"]["pretrain_dim"] == 6
    assert feature_map.features["searched"]["vocab_size"] == feature_map.features["likes_level"]["vocab_size"]
    assert feature_map.features["searched"]["vocab_size"] == largest + 1
    loader = MMCTRDataLoader(feature_map, params["train_data"], item_info=params["item_info"], batch_size=600)
    batch_dict = next(iter(loader))[0]
    assert np.array_equal(batch_dict["searched"], searched["train"])
    np.testing.assert_allclose(batch_dict["query"], query["train"], rtol=1e-6)
    model = model_zoo.FiBiNET(feature_map, **params)
    layers = model.embedding_layer.embedding_layer.embedding_layers
    assert layers["searched"] is layers["likes_level"]
    assert torch.isfinite(model(next(iter(loader)))["y_pred"]).all()


def test_levels_of_items_that_are_no_targets_count_for_the_vocabulary(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    path = folder / "item_feature.parquet"
    levels = data_faults.column(path, "likes_level")
    levels[0] = 17
    data_faults.change(path, "likes_level", pa.array(levels))
    lines = [{"name": ["likes_level", "views_level"], "type": "categorical"}]
    feature_map = build_feature_map({**params, "feature_cols": [*params["feature_cols"][:2], *lines]})
    assert feature_map.features["likes_level"]["vocab_size"] == 18
    features = item_side_features(feature_map.features, history_levels=True)
    table = load_item_table(params["item_info"], features, path)
    assert table["likes_level"][1:].tolist() == levels.tolist() and table["likes_level"][0] == 0


def test_the_padding_items_category_is_0_whatever_the_file_says(folder):
    """A shorter history has the padding item; its category would be pooled as a real item's is."""
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    shelves = np.random.default_rng(0).integers(1, 9, len(pq.read_table(params["item_info"])))
    table = pq.read_table(params["item_info"]).append_column("shelf", pa.array(shelves))
    pq.write_table(table, params["item_info"])
    lines = [{"name": "shelf", "type": "categorical", "source": "item"}]
    feature_map = build_feature_map({**params, "feature_cols": [*params["feature_cols"], *lines]})
    loader = MMCTRDataLoader(
        feature_map, params["valid_data"], item_info=params["item_info"], batch_format="flat", batch_size=200
    )
    batch = next(iter(loader))
    expected = [[shelves[item] if item else 0 for item in row] for row in batch["history_item_id"].tolist()]
    assert batch["history_shelf"].tolist() == expected and 0 in batch["history_shelf"]


def test_feature_specs_name_features(folder):
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    specs = [{"name": ["likes_level", "item_tags"], "embedding_dim": 4}]
    features = build_feature_map({**params, "feature_specs": specs}).features
    assert {name for name, spec in features.items() if "embedding_dim" in spec} == {"likes_level", "item_tags"}
    with pytest.raises(UserError, match="feature_specs has 'like_level', expected features of TEST_DATA: user_id, "):
        build_feature_map({**params, "feature_specs": [{"name": "like_level", "embedding_dim": 4}]})
    trap = "__import__('os').system('touch /tmp/trap')"
    with pytest.raises(UserError, match="item_tags: feature_encoder is"):
        build_feature_map({**params, "feature_specs": [{"name": "item_tags", "feature_encoder": trap}]})


def test_absurd_ids_are_refused_before_a_table_is_made(folder):
    path = folder / "TEST_DATA" / "item_info.parquet"
    tags = data_faults.column(path, "item_tags")
    tags[11, 3] = 10**12
    data_faults.change(path, "item_tags", list_column(tags))
    params = load_params(str(folder / "config"), "FiBiNET_test", model_zoo)
    columns = [
        {key: value for key, value in column.items() if key != "vocab_size"} for column in params["feature_cols"]
    ]
    expected = (
        r"item_tags has 1000000000000 in row 11: an embedding for each id up to that would take 29,802 GiB; number"
    )
    with pytest.raises(UserError, match=expected):
        build_feature_map({**params, "feature_cols": columns})
    problems = [text for row in check_dataset({**params, "feature_cols": columns}) for text in row.problems]
    assert any(expected in problem for problem in problems)
    with pytest.raises(UserError, match="vocab_size is 1000000000001, expected a whole number from 1 to 2147483648"):
        specs = [{"name": "item_tags", "vocab_size": 10**12 + 1}]
        build_feature_map({**params, "feature_specs": specs})

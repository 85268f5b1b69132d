"""FuxiCTR's configuration is read as FuxiCTR reads it, and the experiments that ship are sound."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, Golden
from fuxictr.features import FeatureMap
from fuxictr.utils import load_config

import model_zoo
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map, save_feature_map
from mm_fibinet.settings import experiment_ids, load_params

SHIPPED = experiment_ids(ROOT / "config")


@pytest.mark.parametrize("expid", SHIPPED)
def test_shipped_experiments_merge_as_fuxictr_merges_them(expid):
    params = load_params(str(ROOT / "config"), expid, model_zoo)
    expected = load_config(str(ROOT / "config"), expid)
    assert {key: params[key] for key in expected if key != "model_root"} == {
        key: value for key, value in expected.items() if key != "model_root"
    }


def test_every_model_has_its_experiments():
    for name in set(model_zoo.__all__) - {"QIN_variety_v9"}:
        assert {f"{name}_MicroLens_1M_x1", f"{name}_demo"} <= set(SHIPPED)


def test_overrides_and_roots(dataset):
    params = load_params(
        str(dataset), "FiBiNET_test", model_zoo,
        ["learning_rate=1e-4", "hidden_units=[8, 4]", "use_features=null"], "/elsewhere", "/runs",
    )  # fmt: skip
    assert params["learning_rate"] == 1e-4
    assert params["hidden_units"] == [8, 4]
    assert params["train_data"] == "/elsewhere/TEST_DATA/train.parquet"
    assert params["model_root"] == "/runs"


def test_numbers_without_a_dot_are_numbers(dataset):
    assert yaml.safe_load("5e-3") == "5e-3"  # what YAML 1.1 makes of it
    assert load_params(str(dataset), "FiBiNET_test", model_zoo)["learning_rate"] == 0.005


def test_feature_map_is_what_fuxictr_loads(dataset, tmp_path):
    params = load_params(str(dataset), "FiBiNET_test", model_zoo)
    feature_map = build_feature_map(params)
    save_feature_map(feature_map, tmp_path / "feature_map.json")
    loaded = FeatureMap(params["dataset_id"], str(tmp_path))
    loaded.load(str(tmp_path / "feature_map.json"), params)
    for name in ("features", "labels", "group_id", "num_fields", "input_length", "column_index", "default_emb_dim"):
        assert getattr(feature_map, name) == getattr(loaded, name), name
    assert json.loads((tmp_path / "feature_map.json").read_text())["dataset_id"] == "TEST_DATA"


def test_user_id_becomes_a_field(dataset):
    params = load_params(str(dataset), "FiBiNET_test", model_zoo, ["user_id_field=true"])
    users = [
        pq.read_table(params[key])["user_id"].to_numpy().max() for key in ("train_data", "valid_data", "test_data")
    ]
    spec = build_feature_map(params).features["user_id"]
    assert (spec["type"], spec["source"], spec["vocab_size"]) == ("categorical", "", max(users) + 1)
    plain = load_params(str(dataset), "FiBiNET_test", model_zoo)
    assert build_feature_map(plain).features["user_id"] == {"type": "meta"}
    with pytest.raises(UserError, match="user_id_field: dataset TEST_DATA has no active feature user_id"):
        build_feature_map({**params, "use_features": ["item_id", "likes_level"]})
    with pytest.raises(UserError, match="user_id_field is 'yes', expected True or False"):
        load_params(str(dataset), "FiBiNET_test", model_zoo, ["user_id_field='yes'"])


def test_compared_columns_need_no_line_in_the_dataset_config(dataset):
    settings = ["similarity_fields=true", "similarity_only=[item_emb_d16]"]
    params = load_params(str(dataset), "FiBiNET_test_no_emb", model_zoo, settings)
    spec = {"source": "item", "type": "embedding", "pretrain_dim": 16}
    assert build_feature_map(params).features["item_emb_d16"] == spec
    with pytest.raises(
        UserError, match=r"similarity_only has 'txt_emb_d128', .*item_info.parquet has item_id, .*modality"
    ):
        build_feature_map({**params, "similarity_only": ["txt_emb_d128"]})


def test_feature_specs_are_those_of_the_published_models(dataset):
    published = Golden("din").spec["features"]
    features = build_feature_map(load_params(str(dataset), "FiBiNET_test", model_zoo)).features
    for name in ("likes_level", "item_id", "item_tags"):
        assert {key: features[name][key] for key in published[name] if key != "vocab_size"} == {
            key: value for key, value in published[name].items() if key != "vocab_size"
        }


def test_sizes_that_are_left_out_come_from_the_data(dataset, tmp_path):
    content = (dataset / "dataset_config.yaml").read_text()
    for size in (", vocab_size: 11", ", vocab_size: 40", ", max_len: 5, vocab_size: 9", ", pretrain_dim: 16"):
        assert size in content
        content = content.replace(size, "")
    (tmp_path / "dataset_config.yaml").write_text(content)
    (tmp_path / "model_config.yaml").write_text((dataset / "model_config.yaml").read_text())
    explicit = build_feature_map(load_params(str(dataset), "FiBiNET_test", model_zoo)).features
    derived = build_feature_map(load_params(str(tmp_path), "FiBiNET_test", model_zoo)).features
    assert derived == explicit

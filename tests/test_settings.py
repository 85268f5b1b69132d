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
        UserError, match=r"similarity_only has 'txt_emb_d128', .*item_info.parquet has item_id, .*build_item_emb.py"
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


@pytest.mark.parametrize("expid", ["../FiBiNET", "a/b", "..", ".", "", " a", "a\0b", "a\tb", "x" * 201, "ö" * 101])
def test_experiments_that_no_file_can_be_named_for(dataset, tmp_path, expid):
    (tmp_path / "dataset_config.yaml").write_text((dataset / "dataset_config.yaml").read_text())
    content = yaml.safe_load((dataset / "model_config.yaml").read_text())
    content[expid] = content["FiBiNET_test"]
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"--expid is .*, expected a name that files can have"):
        load_params(tmp_path, expid, model_zoo)
    assert load_params(tmp_path, "FiBiNET_test", model_zoo)["model_id"] == "FiBiNET_test"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("Base: 3\nFiBiNET_test: {dataset_id: TEST_DATA}", "model_config.yaml: Base is 3, expected a mapping"),
        ("FiBiNET_test: [1, 2]", "model_config.yaml: FiBiNET_test is [1, 2], expected a mapping of settings"),
        ("FiBiNET_test:", "model_config.yaml: FiBiNET_test is None, expected a mapping of settings"),
        ("FiBiNET_test: {model: DIN}", "experiment FiBiNET_test has no dataset_id"),
        ("FiBiNET_test: {dataset_id: TEST_DATA}", "experiment FiBiNET_test: model None is unknown"),
        ("FiBiNET_test: {dataset_id: [TEST_DATA], model: DIN}", "dataset_id is ['TEST_DATA'], expected a name"),
        (
            "FiBiNET_test: {dataset_id: TEST_DAT, model: DIN}",
            "nor is there data/TEST_DAT/dataset_config.yaml, as build_dataset.py makes; did you mean TEST_DATA?",
        ),
        ("123: {dataset_id: TEST_DATA, model: DIN}", 'the name 123 is read as a number; write it in quotes: "123"'),
        ("FiBiNET_test: {epochs: 1, epochs: 2}", "'epochs' is given twice, the second time in line 1"),
        ("FiBiNET_test: {}\nFiBiNET_test: {}", "'FiBiNET_test' is given twice, the second time in line 2"),
    ],
)
def test_configs_that_are_no_experiments(dataset, tmp_path, models, message):
    (tmp_path / "dataset_config.yaml").write_text((dataset / "dataset_config.yaml").read_text())
    (tmp_path / "model_config.yaml").write_text(models)
    with pytest.raises(UserError) as error:
        load_params(tmp_path, "FiBiNET_test", model_zoo)
    assert message in str(error.value)


def test_an_id_is_in_one_file(dataset, tmp_path):
    for name in ("model_config", "dataset_config"):
        (tmp_path / name).mkdir(exist_ok=True)
        for copy in ("one", "two"):
            (tmp_path / name / f"{copy}.yaml").write_text((dataset / f"{name}.yaml").read_text())
    with pytest.raises(UserError, match=r"two.yaml: Base is in .*one.yaml too, expected it once"):
        experiment_ids(tmp_path)
    (tmp_path / "model_config/two.yaml").unlink()
    with pytest.raises(UserError, match=r"dataset_config/two.yaml: TEST_DATA is in .*one.yaml too"):
        load_params(tmp_path, "FiBiNET_test", model_zoo)
    (tmp_path / "dataset_config/two.yaml").rename(tmp_path / "dataset_config/.two.yaml")
    assert load_params(tmp_path, "FiBiNET_test", model_zoo)["dataset_id"] == "TEST_DATA"

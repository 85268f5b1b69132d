"""Every setting is held to one schema: names, types, ranges, and what settings say of each other."""

import re
import types
from typing import Literal

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from fuxictr.pytorch.torch_utils import get_activation, get_initializer, get_regularizer
from fuxictr.utils import Monitor

import model_zoo
from mm_fibinet import setting_types
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import changed_from_defaults, check_reachable, experiment_ids, load_params
from mm_fibinet.settings_fields import DatasetEntry
from mm_fibinet.settings_rules import monitor_mode
from mm_fibinet.settings_schema import ACCEPTED, schema_of, validate


def load(config, *overrides, expid="FiBiNET_test", models=model_zoo, **options):
    return load_params(str(config), expid, models, list(overrides), **options)


@pytest.fixture
def config(dataset, tmp_path):
    """A function: the config folder of the shared data, with changes to the experiment, its data set, a feature."""

    def write(experiment=(), entry=(), features=(), more="", **settings):
        for name, changes in (("dataset_config", dict(entry)), ("model_config", {**dict(experiment), **settings})):
            content = yaml.safe_load((dataset / f"{name}.yaml").read_text().replace("e-", ".0e-"))
            content[{"dataset_config": "TEST_DATA", "model_config": "FiBiNET_test"}[name]].update(changes)
            for feature, change in dict(features).items():
                for column in content.get("TEST_DATA", {}).get("feature_cols", []):
                    if feature in column["name"]:
                        column.update(change)
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content) + (more if name == "model_config" else ""))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (
            "experiment",
            {"hiden_units": [8]},
            "experiment FiBiNET_test: hiden_units: unknown key, did you mean hidden_u",
        ),
        (
            "experiment",
            {"learningrate": 1},
            "learningrate: unknown key, did you mean learning_rate or table_learning_rate?",
        ),
        (
            "experiment",
            {"use_wide": False},
            "experiment FiBiNET_test: use_wide: unknown key with model FiBiNET, expected",
        ),
        ("experiment", {"din_use_softmax": 4}, "FiBiNET_test: din_use_softmax: unknown key with model FiBiNET, e"),
        ("experiment", {"regularizer": 1e-8}, "regularizer: FuxiCTR reads this, here nothing does; set embedding_regu"),
        ("experiment", {"din_target_field": "x"}, "here nothing does; the target is item_id"),
        (
            "experiment",
            {"data_format": "csv"},
            "experiment FiBiNET_test: data_format is 'csv', expected parquet or npz",
        ),
        ("experiment", {"item_info": "b.parquet"}, "item_info is 'b.parquet', but dataset TEST_DATA has '/"),
        ("experiment", {"gpu": 0}, "choose the device with --gpu"),
        ("experiment", {"model_id": "X"}, "it is the experiment's ID"),
        ("experiment", {"checkpoints": "x"}, "checkpoints: unknown key"),
        ("experiment", {"on_evaluation": "x"}, "on_evaluation: unknown key"),
        ("entry", {"item_inf": "x"}, "dataset TEST_DATA: item_inf: unknown key, did you mean item_info?"),
        (
            "entry",
            {"data_format": "csv"},
            "dataset TEST_DATA: data_format is 'csv', expected parquet with ids; build_dataset.py makes the",
        ),
        ("entry", {"min_categr_count": 2}, "dataset TEST_DATA: min_categr_count is 2, expected 1"),
        ("entry", {"valid_size": 0.1}, "valid_size: FuxiCTR reads this, here nothing does; write valid.parquet"),
        (
            "item_tags",
            {"vocab_siz": 9},
            "dataset TEST_DATA: feature item_tags: vocab_siz: unknown key, did you mean voc",
        ),
        ("item_id", {"max_len": 9}, "dataset TEST_DATA: feature item_id: max_len: unknown key"),
        ("item_id", {"pretrained_emb": "x.npz"}, "make the vectors a column of item_info, of type embedding"),
        ("item_id", {"preprocess": "convert_hour"}, "prepare the column when you write the parquet files"),
        ("item_id", {"normalizer": "StandardScaler"}, "feature item_id: normalizer: unknown key"),
        ("item_id", {"type": "categoric"}, "expected a name and a type out of meta, numeric, categorical"),
        ("item_id", {"type": ["meta"]}, "expected a name and a type out of meta, numeric, categorical"),
        ("item_id", {"source": "Item"}, "feature item_id: source is 'Item', expected one of \"\", user, item, context"),
        (
            "item_id",
            {"vocab_size": 0},
            "feature item_id: vocab_size is 0, expected a whole number from 1 to 2147483647",
        ),
        (
            "item_id",
            {"vocab_size": True},
            "feature item_id: vocab_size is True, expected a whole number from 1 to 2147483647",
        ),
        ("item_id", {"active": "no"}, "feature item_id: active is 'no', expected True or False"),
        ("item_id", {"dtype": "__import__('os')"}, "feature item_id: dtype is \"__import__('os')\", expected int or"),
        (
            "item_tags",
            {"feature_encoder": "layers.MaxPooling()"},
            "feature item_tags: feature_encoder is 'layers.MaxPooling()', expected one of layers.M",
        ),
        ("item_emb_d16", {"pretrain_dim": 16.0}, "feature item_emb_d16: pretrain_dim is 16.0, expected a whole number"),
        ("item_emb_d16", {"name": 3}, "the feature {'name': 3, 'pretrain_dim': 16, 'source': 'item', 'type': 'embeddi"),
        ("item_emb_d16", {"name": "item_tags"}, "feature_cols has item_tags twice, expected each feature once"),
        ("item_emb_d16", {"name": "emb.16"}, "a feature cannot be called 'emb.16', for torch's names have no dot"),
        ("item_emb_d16", {"name": "type"}, "a feature cannot be called 'type', for torch has something of that name"),
        ("entry", {"feature_cols": []}, "dataset TEST_DATA: feature_cols is [], expected a list of features"),
        ("entry", {"feature_cols": ["user_id"]}, "feature_cols has 'user_id', expected a name and a type out of"),
        (
            "entry",
            {"feature_cols": [{"type": "meta"}]},
            "feature_cols has {'type': 'meta'}, expected name, the name of",
        ),
        (
            "entry",
            {"feature_cols": [{"name": "hour", "type": "numeric", "normalizer": "Robust"}]},
            "feature hour: normalizer is 'Robust', expected one of StandardScaler, MinMaxScaler, none, null",
        ),
        ("entry", {"label_col": "label"}, "dataset TEST_DATA: label_col is 'label', expected one label column"),
        ("entry", {"label_col": [{"name": "a"}, {"name": "b"}]}, "expected one label column"),
        ("entry", {"label_col": {"name": "a", "typ": "x"}}, "dataset TEST_DATA: label a: typ: unknown key"),
        ("entry", {"train_data": 3}, "dataset TEST_DATA: train_data is 3, expected a path"),
        ("entry", {"valid_data": "a\0b"}, r"dataset TEST_DATA: valid_data is 'a\x00b', expected a path"),
        ("experiment", {"use_features": []}, "use_features is [], expected a list of names of features, or null"),
        (
            "experiment",
            {"use_features": ["item_i"]},
            "use_features has 'item_i', expected active features, did you mean",
        ),
    ],
)
def test_names_and_values_are_refused_where_they_stand(config, where, changes, message):
    if where in ("experiment", "entry"):
        folder = config(**{where: changes})
    else:
        folder = config(features={where: changes})
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_data_of_an_experiment_agree_with_its_data_set_or_give_way_to_the_command_line(config, dataset):
    """The data set's entry would be taken, as in FuxiCTR, and the experiment's file never read."""
    known = yaml.safe_load((dataset / "dataset_config.yaml").read_text())["TEST_DATA"]["item_info"]
    assert load(config(experiment={"item_info": known}))["item_info"] == known
    assert load(config(experiment={"item_info": None}))["item_info"] == known
    folder = config(experiment={"item_info": "b.parquet"})
    assert load(folder, "item_info=b.parquet")["item_info"] == "b.parquet"


def test_what_is_missing_is_named(dataset, tmp_path):
    for key in ("item_info", "train_data", "feature_cols"):
        entry = yaml.safe_load((dataset / "dataset_config.yaml").read_text())
        del entry["TEST_DATA"][key]
        (tmp_path / "dataset_config.yaml").write_text(yaml.safe_dump(entry))
        (tmp_path / "model_config.yaml").write_text((dataset / "model_config.yaml").read_text())
        with pytest.raises(UserError, match=f"dataset TEST_DATA: {key} is not set, expected a"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate=0", "learning_rate is 0, expected a number above 0"),
        ("learning_rate='1e-3'", "learning_rate is '1e-3', expected a number above 0"),
        ("learning_rate=true", "learning_rate is True, expected a number above 0"),
        ("learning_rate=2025-01-01", "learning_rate is '2025-01-01', expected a number above 0"),
        ("learning_rate=.inf", "has inf, expected finite numbers"),
        ("net_dropout=1", "net_dropout is 1, expected a number from 0 to below 1"),
        ("net_dropout=[0.1]", "net_dropout is [0.1], expected a number from 0 to below 1"),
        ("id_dropout=-0.1", "id_dropout is -0.1, expected a number from 0 to below 1"),
        ("ema_decay=1", "ema_decay is 1, expected a number from 0 to below 1"),
        ("lr_decay_factor=0", "lr_decay_factor is 0, expected a number above 0, at most 1"),
        ("max_gradient_norm=0", "max_gradient_norm is 0, expected a number above 0"),
        ("seed=-1", "seed is -1, expected a whole number from 0 to 4294967295"),
        ("seed=4294967296", "seed is 4294967296, expected a whole number from 0 to 4294967295"),
        ("seed=true", "seed is True, expected a whole number"),
        ("epochs=0", "epochs is 0, expected a whole number from 1 to 2147483647"),
        ("batch_size=1.5", "batch_size is 1.5, expected a whole number from 1 to 2147483647"),
        ("batch_size=99999999999999999999", "expected a whole number from 1 to 2147483647"),
        ("max_len=true", "max_len is True, expected a whole number from 1 to 2147483647"),
        ("embedding_dim=100000", "embedding_dim is 100000, expected a whole number from 1 to 65536"),
        ("hidden_units=[64, 0]", "hidden_units has 0, expected a list of whole numbers from 1 to 65536"),
        ("hidden_units=[true]", "hidden_units has True, expected a list of whole numbers"),
        ("hidden_units=null", "hidden_units is None, expected a list of whole numbers"),
        ("reduction_ratio=0", "reduction_ratio is 0, expected a whole number from 1"),
        ("accumulation_steps=0", "accumulation_steps is 0, expected a whole number from 1 to 2147483647"),
        ("early_stop_patience=0", "early_stop_patience is 0, expected a whole number from 1 to 2147483647"),
        ("eval_steps=0", "eval_steps is 0, expected a whole number from 1 to 2147483647, or null"),
        ("checkpoint_every=0", "checkpoint_every is 0, expected a whole number from 1 to 2147483647, or null"),
        ("net_regularizer=-1", "net_regularizer is -1, expected a number from 0"),
        ("net_regularizer=l3(1)", "net_regularizer is 'l3(1)', expected a number from 0, \"l1(x)\""),
        ("net_regularizer=l1(-1)", "net_regularizer is 'l1(-1)'"),
        ("hidden_activations=relo", "hidden_activations is 'relo', expected one of ReLU, Sigmoid"),
        ("hidden_activations=Module", "hidden_activations is 'Module', expected one of ReLU"),
        (
            "hidden_activations=[relu, dice]",
            "hidden_activations is ['relu', 'dice'], expected one name, or one a layer",
        ),
        ("excitation_activation=Tanh", "excitation_activation is 'Tanh', expected one of ReLU, Sigmoid"),
        ("optimizer=Adagra", "optimizer is 'Adagra', expected one of adam"),
        ("optimizer=[adam]", "optimizer is ['adam'], expected one of adam"),
        ("task=regression", "task is 'regression', expected one of binary_classification"),
        ("metrics=[]", "metrics is [], expected a list out of AUC, logloss, gAUC"),
        ("loss=[bce]", "loss is ['bce'], expected one of binary_crossentropy"),
        ("metrics=AUC", "metrics is 'AUC', expected a list out of"),
        ("metrics=[NDCG(k=1)]", "metrics has 'NDCG(k=1)', expected a list out of"),
        ("monitor=F1", "monitor is 'F1', expected a metric (AUC, logloss, gAUC"),
        ("monitor={AUC: high}", "monitor is {'AUC': 'high'}, expected a metric"),
        ("monitor={}", "monitor is {}, expected a metric"),
        ("monitor={AUC: 1, logloss: 1}", "expected weights that pull one way"),
        ("monitor={AUC: 0}", "expected weights that pull one way"),
        ("monitor_mode=maximum", "monitor_mode is 'maximum', expected one of max, min"),
        ("monitor_mode=Max", "monitor_mode is 'Max', expected one of max, min"),
        (
            "monitor_mode=min",
            "monitor_mode is min, which would keep the worst epoch by 'AUC'; leave it out, or set max",
        ),
        ("group_id=null", "gAUC needs group_id, for example group_id: user_id"),
        ("group_id=item_id", "group_id is 'item_id', expected a column of the split"),
        ("group_id=item_seq", "group_id is 'item_seq', expected a column of the split"),
        ("group_id=label", "group_id is 'label', expected a column of the split"),
        ("group_id=item_tags", "group_id is 'item_tags', expected a column of the split"),
        ("group_id=user", "train.parquet has user_id, item_seq"),
        (
            "feature_specs=[{name: item_tag, embedding_dim: 4}]",
            "feature_specs has 'item_tag', expected active features",
        ),
        ("feature_specs=[{embedding_dim: 4}]", "feature_specs has {'embedding_dim': 4}, expected name"),
        ("feature_specs=[{name: item_tags, vocab_size: 4}]", "feature item_tags: vocab_size: unknown key"),
        (
            "feature_specs=[{name: item_tags, embedding_dim: 0}]",
            "feature item_tags: embedding_dim is 0, expected a whole",
        ),
        ("feature_specs=[{name: user_id, embedding_dim: 4}]", "changes user_id, which is of type meta"),
        ("feature_specs=item_tags", "feature_specs is 'item_tags', expected a list of mappings"),
        ("feature_specs=[{name: item_id, share_embedding: item_tags}]", "feature that stands before it"),
        ("feature_specs=[{name: item_tags, share_embedding: nothing}]", "feature that stands before it"),
        ("feature_specs=[{name: item_id, share_embedding: likes_level}]", "smaller vocab_size"),
        ("precision=half", "precision is 'half', expected one of fp32, tf32, bf16, fp16, auto"),
        ("storage=disk", "storage is 'disk', expected one of auto, device, memory, memmap"),
        ("model=[FiBiNET]", "--set: model ['FiBiNET'] is unknown"),
        ("verbose=-1", "verbose is -1, expected a whole number from 0 to 9"),
        ("data_root=/elsewhere", "--set data_root: expected --data_root"),
        ("gpu=1", "--set gpu: expected --gpu"),
        ("dataset_id=3", "dataset_id is 3, expected a name; write it in quotes"),
        ("dataset_id=../TEST_DATA", "dataset_id is '../TEST_DATA', expected a name that files can have"),
        ("epochs=[[[[", "--set epochs: not valid YAML"),
        ("epochs=!!python/name:os.system ''", "--set epochs: not valid YAML"),
    ],
)
def test_values_out_of_range(dataset, change, message):
    with pytest.raises(UserError) as error:
        load(dataset, change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sizes_of_every_model_have_a_range(dataset):
    """No whole number that a constructor takes may be 0 or below: each is a size, a width or a count."""
    entry = {name: value for name, value in load(dataset).items() if name in (*DatasetEntry.model_fields, "dataset_id")}
    for name in model_zoo.__all__:
        schema = schema_of(getattr(model_zoo, name))
        sizes = [key for key, default in schema.arguments.items() if type(default) is int]
        assert sizes
        for key in sizes:
            with pytest.raises(UserError, match=rf"{key} is -1, expected .*(above 0|from [01] to)"):
                validate({**entry, "model": name, key: -1}, schema, lambda _: "here")


@pytest.mark.parametrize(("model", "weight"), [("MARN", "adversarial_weight"), ("MAKE", "extractor_weight")])
def test_a_part_of_a_loss_has_no_weight_below_0(dataset, model, weight):
    entry = {name: value for name, value in load(dataset).items() if name in (*DatasetEntry.model_fields, "dataset_id")}
    schema = schema_of(getattr(model_zoo, model))
    assert validate({**entry, "model": model, weight: 0}, schema, lambda _: "here")[weight] == 0
    with pytest.raises(UserError, match=rf"{weight} is -0\.1, expected a number from 0"):
        validate({**entry, "model": model, weight: -0.1}, schema, lambda _: "here")


def test_a_key_given_twice_on_the_command_line(dataset):
    with pytest.raises(UserError, match=r"--set learning_rate is given twice, 0\.1 and 0\.2; expected it once"):
        load(dataset, "learning_rate=0.1", "max_len=5", " learning_rate =0.2")


def test_numbers_of_yaml_keep_their_meaning(dataset):
    params = load(dataset, "learning_rate=1", "net_regularizer=1", "embedding_regularizer=l1_l2(1e-3, 0.5)")
    assert type(params["learning_rate"]) is float and type(params["net_regularizer"]) is float
    assert get_regularizer(params["net_regularizer"]) == [(2, 1.0)]  # FuxiCTR passes over the whole number 1
    assert get_regularizer(1) == []
    assert get_regularizer(params["embedding_regularizer"]) == [(1, 0.001), (2, 0.5)]
    assert type(load(dataset, "batch_size=32")["batch_size"]) is int


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("AUC", "max"),
        ("gAUC", "max"),
        ("logloss", "min"),
        ({"AUC": 1, "logloss": -1}, "max"),
        ({"AUC": 1, "logloss": 0}, "max"),
        ({"gAUC": 1, "AUC": 1}, "max"),
        ({"AUC": -2, "binary_crossentropy": 1}, "min"),
    ],
)
def test_the_mode_follows_from_the_monitor(dataset, monitor, mode):
    """Better scores, of FuxiCTR's own Monitor, are the larger ones exactly when the mode is max."""
    better = {"AUC": 0.9, "gAUC": 0.8, "logloss": 0.3, "binary_crossentropy": 0.3}
    worse = {"AUC": 0.7, "gAUC": 0.6, "logloss": 0.5, "binary_crossentropy": 0.5}
    assert (Monitor(monitor).get_value(better) > Monitor(monitor).get_value(worse)) == (mode == "max")
    assert monitor_mode(monitor) == mode
    change = f"monitor={yaml.safe_dump(monitor, default_flow_style=True).splitlines()[0]}"
    assert load(dataset, change)["monitor_mode"] == mode
    wrong = {"max": "min", "min": "max"}[mode]
    with pytest.raises(UserError, match=f"monitor_mode is {wrong}, which would keep the worst epoch"):
        load(dataset, change, f"monitor_mode={wrong}")


def test_group_id_is_a_column_of_the_splits_that_are_there(dataset, config, tmp_path):
    table = pq.read_table(dataset.parent / "TEST_DATA/valid.parquet")
    pq.write_table(table.drop_columns("user_id"), tmp_path / "without.parquet")
    with pytest.raises(UserError, match=r"group_id is 'user_id', .*without has item_seq"):
        load(config(entry={"valid_data": str(tmp_path / "without")}))
    (tmp_path / "broken.parquet").write_text("not parquet")  # the reader says so
    assert load(config(entry={"valid_data": str(tmp_path / "broken.parquet")}))["group_id"] == "user_id"
    for path in ("/", ".", "x" * 300, "a\nb"):
        assert load(dataset, f"train_data={path!r}".replace("'", '"'))["group_id"] == "user_id"
    assert load(dataset, data_root="/nowhere")["group_id"] == "user_id"


def test_eval_steps_that_no_run_reaches():
    check_reachable({"eval_steps": 20, "epochs": 2}, 10)
    check_reachable({"eval_steps": None, "epochs": 2}, 10)
    with pytest.raises(UserError, match=r"eval_steps is 21, but the run has 20 steps \(epochs 2 x batches 10\)"):
        check_reachable({"eval_steps": 21, "epochs": 2}, 10)


def test_names_that_change_nothing_are_accepted_in_the_open(config):
    values = {name: (accepted.values or (3,))[0] for name, accepted in ACCEPTED.items()}
    plain = build_feature_map(load(config())).features
    params = load(config(experiment=values, entry=values, features={"item_id": {"dtype": "int", "remap": False}}))
    assert build_feature_map(params).features == plain
    assert {name: params[name] for name in values} == values
    assert all(accepted.reason for accepted in ACCEPTED.values())
    for name in set(ACCEPTED) - {"num_workers", "data_block_size"}:
        with pytest.raises(UserError, match=f"dataset TEST_DATA: {name} is 'other', expected "):
            load(config(entry={name: "other"}))


def test_another_name_of_a_setting(dataset):
    assert load(dataset, "factor=0.5")["lr_decay_factor"] == 0.5
    assert "factor" not in load(dataset, "factor=0.5")
    with pytest.raises(UserError, match=r"factor is 0.5 and lr_decay_factor, its other name, is 0.3"):
        load(dataset, "factor=0.5", "lr_decay_factor=0.3")
    with pytest.raises(UserError, match="lr_decay_factor is 2, expected a number above 0, at most 1"):
        load(dataset, "factor=2")
    assert load(dataset, "model_change=null")["model"] == "FiBiNET"


def test_nothing_reaches_fuxictrs_eval(config, dataset, tmp_path):
    """FuxiCTR evaluates encoders, initializers, losses and metrics, and looks optimizers and activations up."""
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path('{trap}').touch()"
    get_initializer(code)
    assert trap.exists()  # that is what FuxiCTR does
    trap.unlink()

    class Evaluating(model_zoo.DIN):
        def __init__(self, feature_map, embedding_initializer="partial(nn.init.normal_, std=1e-4)", **kwargs):
            super().__init__(feature_map, **kwargs)

    models = types.SimpleNamespace(__all__=["Evaluating", "FiBiNET"], Evaluating=Evaluating, FiBiNET=model_zoo.FiBiNET)
    quoted = f'"{code}"'
    roads = {
        "feature_specs": f"[{{name: item_tags, feature_encoder: {quoted}}}]",
        "loss": quoted,
        "metrics": f"[{quoted}]",
        "monitor": quoted,
        "optimizer": quoted,
        "hidden_activations": quoted,
        "embedding_regularizer": quoted,
        "feature_cols": f"[{{name: item_tags, type: sequence, source: item, feature_encoder: {quoted}}}]",
        "label_col": f"{{name: label, dtype: {quoted}}}",
    }
    for key, value in roads.items():
        with pytest.raises(UserError):
            build_feature_map(load(dataset, f"{key}={value}"))
        with pytest.raises(UserError):
            build_feature_map(load(config(entry={key: yaml.safe_load(value)})))
    for key in ("pretrained_emb", "normalizer", "preprocess", "dtype", "embedding_callback", "feature_encoder"):
        with pytest.raises(UserError):
            load(config(features={"item_tags": {key: code}}))
    config()
    own = {"model": "Evaluating", "dataset_id": "TEST_DATA", "embedding_initializer": code}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({"X": own}))
    with pytest.raises(UserError, match=r'embedding_initializer is .*, expected a name like "nn.init.xavier_normal_"'):
        load(tmp_path, expid="X", models=models)
    assert not trap.exists()


def test_listed_names_are_those_that_fuxictr_takes():
    for name in setting_types.ACTIVATIONS:
        assert type(get_activation(name, 8)).__name__ == name
    for name in ("nn.init.xavier_normal_", "torch.nn.init.kaiming_uniform_", "partial(nn.init.normal_, std=1e-4)"):
        assert setting_types.INITIALIZER.fullmatch(name) and callable(get_initializer(name))
    for text in ("l1(0.1)", "l2(1e-6)", "l1_l2(1e-3,1)", "l2(.5)"):
        assert setting_types.REGULARIZER.fullmatch(text) and get_regularizer(text)


def test_activations_one_a_layer(dataset):
    assert load(dataset, "hidden_units=[8, 4]", "hidden_activations=[relu, dice]")["hidden_activations"] == [
        "relu",
        "dice",
    ]
    with pytest.raises(UserError, match="expected one name, or one a layer of hidden_units"):
        load(dataset, "hidden_units=[8]", "hidden_activations=[relu, dice]")


def test_a_users_model_has_its_settings_checked(dataset, tmp_path):
    """Types come from the defaults, ranges from the field's names, choices from Literal annotations."""

    class Own(model_zoo.DIN):
        def __init__(
            self, feature_map, copy=3, weight=0.5, mode: Literal["a", "b"] = "a", gate_dropout=0, tower_dim=8, **kwargs
        ):
            super().__init__(feature_map, **kwargs)

    models = types.SimpleNamespace(__all__=["Own"], Own=Own)
    (tmp_path / "dataset_config.yaml").write_text((dataset / "dataset_config.yaml").read_text())
    (tmp_path / "model_config.yaml").write_text("X: {model: Own, dataset_id: TEST_DATA}")
    params = load(tmp_path, "copy=4", "weight=1", "mode=b", "gate_dropout=0.2", expid="X", models=models)
    assert (params["copy"], params["weight"], params["mode"]) == (4, 1.0, "b")
    assert changed_from_defaults(params, Own) == {"copy": 4, "weight": 1.0, "mode": "b", "gate_dropout": 0.2}
    for change, message in {
        "copy=1.5": "copy is 1.5, expected a whole number",
        "weight=x": "weight is 'x', expected a number",
        "mode=c": "mode is 'c', expected one of a, b",
        "gate_dropout=1": "gate_dropout is 1, expected a number from 0 to below 1",
        "tower_dim=0": "tower_dim is 0, expected a whole number from 1 to 65536",
        "num_layers=4": "--set: num_layers: unknown key",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            load(tmp_path, change, expid="X", models=models)


def test_what_differs_from_the_defaults(dataset):
    params = load(
        dataset, "embedding_regularizer=0", "hidden_activations=relu", "monitor={AUC: 1}", "batch_norm=false",
        "net_dropout=0.2", "max_len=100",
    )  # fmt: skip
    assert changed_from_defaults(params, model_zoo.FiBiNET) == {
        "batch_size": 64,
        "embedding_dim": 8,
        "epochs": 2,
        "group_id": "user_id",
        "hidden_units": [16],
        "learning_rate": 0.005,
        "metrics": ["AUC", "logloss", "gAUC"],
        "net_dropout": 0.2,
        "verbose": 0,
    }


def test_every_models_defaults_pass_its_own_schema():
    for name in model_zoo.__all__:
        schema = schema_of(getattr(model_zoo, name))
        for argument, default in schema.arguments.items():
            field = schema.model_fields.get(f"setting_{argument}") or schema.model_fields[argument]
            value = list(default) if isinstance(default, tuple) else default
            params = {"model": name, "dataset_id": "D", "train_data": "a", "valid_data": "b", "item_info": "c"}
            params["feature_cols"] = [{"name": "item_id", "type": "categorical"}]
            if value is None and argument not in ("monitor",) and "null" not in (field.description or "null"):
                continue
            schema.model_validate({**params, argument: value})


def test_shipped_configs_pass():
    for expid in experiment_ids(ROOT / "config"):
        assert load(ROOT / "config", expid=expid)["model_id"] == expid

"""A change that nothing reads is refused: each rule against what the model does, and no setting without a rule."""

import functools
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, run_script
from fuxictr.pytorch.models import BaseModel
from test_model_contract import FEATURES, LENGTH, MODELS, SIZES, make_batch, make_model, scores
from test_training import Run
from test_tuner import write_tuner
from test_tuning import SPACE

import model_zoo
from mm_fibinet import settings, training
from mm_fibinet.compare import alike, jobs
from mm_fibinet.compare.search import Search
from mm_fibinet.compare.tuner import read_tuner
from mm_fibinet.compare.tuning_space import Budget, Line, read_space
from mm_fibinet.errors import UserError
from mm_fibinet.settings_schema import constructor_arguments
from mm_fibinet.settings_unread import READ_BESIDE, refuse_unread, unread
from model_zoo.fields import FieldModel

OF_THE_LOOP = {"lr_decay_factor", "reduce_lr_on_plateau"}  # on their own below
# What the loop or the loader reads of a constructor's arguments, not the model's outputs.
NOT_OF_OUTPUTS = {
    *("optimizer", "loss", "learning_rate", "task", "monitor", "monitor_mode", "save_best_only", "early_stop_patience"),
    *("eval_steps", "reduce_lr_on_plateau", "max_len", "focal_gamma"),
}
# What happens to be the same here: a search among more than the history has, and what a model takes by itself.
SAME_HERE = {"content_search", "modality_features", "MUSE simtier", "MUSE sa_ta", "MAKE simtier"}
EMBEDDING = ["item_emb_d128"]
OTHERS = {bool: [True, False], int: [1, 3, 4, 8], float: [0.1, 0.3], str: ["Sigmoid", "field_all", "correct", "none"]}
STACKED = {"model_structure": "stacked_parallel", "stacked_dnn_hidden_units": [16]}
# Of each rule: a model, settings with which one is not read, and with which it is; then two values of it.
FUSION = ("DeepFM", {}, {"low_rank_fusion": EMBEDDING})
ATTENTION = ("GDCN", {}, {"history_pooling": "target_attention"})
MIXTURE = ("DCNv2", {}, {"use_low_rank_mixture": True})
GATES = ("FinalMLP", {"use_fs": False}, {"use_fs": True})
UNITS = ("DeepFM", {"hidden_units": []}, {})
CROSS = ("DCNv2", {"model_structure": "crossnet_only", "parallel_dnn_hidden_units": []}, {})
RULES = {
    "interest_dropout": [("DIN", {}, {"cross_attention_layers": 2}, 0.1, 0.4)],
    "content_search_len": [("DIN", {}, {"content_search": "item_emb_d128"}, 2, 3)],
    "attention_hidden_units": [(*ATTENTION, [4], [8, 4])],
    "attention_dropout": [
        (*ATTENTION, 0.1, 0.4),
        ("DIN", {"attention_hidden_units": []}, {"attention_hidden_units": [8]}, 0.1, 0.4),
    ],
    "attention_hidden_activations": [("DIN", {"attention_hidden_units": []}, {}, "ReLU", "Sigmoid")],
    "low_rank_fusion_dim": [(*FUSION, 2, 4)],
    "low_rank_fusion_ranks": [(*FUSION, 2, 4)],
    "low_rank_fusion_heads": [(*FUSION, 2, 3)],
    "low_rank_fusion_dropout": [(*FUSION, 0.1, 0.4)],
    "excitation_activation": [("FiBiNET", {"senet_plus": True}, {}, "ReLU", "Sigmoid")],
    "num_groups": [("FiBiNET", {}, {"senet_plus": True}, 1, 4)],
    "bilinear_output_dim": [("FiBiNET", {}, {"bilinear_plus": True}, 2, 4)],
    "hidden_activations": [(*UNITS, "ReLU", "Sigmoid")],
    "dnn_activations": [("GDCN", {"dnn_hidden_units": []}, {}, "ReLU", "Sigmoid"), (*CROSS, "ReLU", "Sigmoid")],
    "net_dropout": [(*UNITS, 0.1, 0.4), ("HSTU", {"dnn_hidden_units": []}, {}, 0.1, 0.4), (*CROSS, 0.1, 0.4)],
    "batch_norm": [(*UNITS, False, True), ("LMF", {"hidden_units": []}, {}, False, True), (*CROSS, False, True)],
    "stacked_dnn_hidden_units": [("DCNv2", {}, STACKED, [4], [8, 4])],
    "parallel_dnn_hidden_units": [("DCNv2", {**STACKED, "model_structure": "stacked"}, STACKED, [4], [8, 4])],
    "low_rank": [(*MIXTURE, 2, 4)],
    "num_experts": [(*MIXTURE, 2, 3)],
    "fs_hidden_units": [(*GATES, [4], [8, 4])],
    "fs1_context": [(*GATES, [], ["likes_level"])],
    "fs2_context": [(*GATES, [], ["likes_level"])],
}
CASES = [(setting, *case) for setting, cases in RULES.items() for case in cases]
BATCH = make_batch()


def behaviour(name, options):
    """What settings make of a model: its weights' shapes, its loss in training, its scores."""
    model = make_model((name, {**SIZES[name], **options}))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.train()
    torch.manual_seed(7)
    loss = (model.add_loss(model(BATCH), model.get_labels(BATCH)) + model.regularization_loss()).item()
    return shapes, loss, scores(model.eval(), BATCH).flatten().tolist()


def defaults_of(name):
    """What a small model is made with."""
    return {**{key: p.default for key, p in constructor_arguments(MODELS[name]).items()}, **SIZES[name]}


def test_each_rule_has_a_case():
    assert RULES.keys() | OF_THE_LOOP == READ_BESIDE.keys()


@pytest.mark.parametrize(("setting", "name", "off", "on", "first", "second"), CASES)
def test_a_rule_is_what_the_model_does(setting, name, off, on, first, second):
    assert behaviour(name, {**off, setting: first}) == behaviour(name, {**off, setting: second})
    assert behaviour(name, {**on, setting: first}) != behaviour(name, {**on, setting: second})
    asked = {setting: [first, second]}
    assert list(unread({**defaults_of(name), **off}, asked, MODELS[name])) == [setting]
    assert not unread({**defaults_of(name), **on}, asked, MODELS[name])


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ({"early_stop_patience": 2}, True),
        ({"early_stop_patience": 1}, False),
        ({"early_stop_patience": 2, "lr_schedule": "linear"}, False),
        ({"early_stop_patience": 2, "reduce_lr_on_plateau": False}, False),
    ],
)
def test_the_decay_of_the_learning_rate(settings, read, dataset, tmp_path, monkeypatch):
    rates = []
    for decay in (0.1, 0.9):
        shown = iter([0.6, 0.5, 0.7, 0.6])
        monkeypatch.setattr(training, "evaluate", lambda *_, shown=shown: {"AUC": next(shown), "gAUC": 0, "logloss": 0})
        run = Run(dataset, tmp_path / str(decay), epochs=4, lr_decay_factor=decay, **settings)
        rates.append([entry["learning_rate"] for entry in run.fit()])
    assert (rates[0] != rates[1]) == read
    assert read != bool(unread(run.params, {"lr_decay_factor": [0.1, 0.9]}, model_zoo.FiBiNET))
    without = {key: value for key, value in run.params.items() if key != "reduce_lr_on_plateau"}
    of_plateau = read or "reduce_lr_on_plateau" in settings
    assert of_plateau != bool(unread(without, {"reduce_lr_on_plateau": [False]}, model_zoo.FiBiNET))


def others(value):
    """Further values of a setting, most of which its model takes."""
    if value is None:
        return ["target_attention", "item_emb_d128", 0.1, [8]]
    if isinstance(value, list | tuple):
        return [[8, 8], [8], EMBEDDING, ["likes_level"]]
    return [other for other in OTHERS[type(value)] if other != value]


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("name", [name for name in SIZES if name in MODELS])
def test_no_setting_of_a_model_is_unread_without_a_rule(name, emptied):
    """Each setting alone, as the model is and without hidden layers: it changes something, or has a rule, or fails."""
    units = ("hidden_units", "dnn_hidden_units", "attention_hidden_units")
    base = {key: [] for key in units if emptied and SIZES[name].get(key)}
    own, arguments = behaviour(name, base), constructor_arguments(MODELS[name])
    params = {**defaults_of(name), **base}
    for key in arguments.keys() - NOT_OF_OUTPUTS:
        if {key, f"{name} {key}"} & SAME_HERE:
            continue
        made, taken = [], []
        for value in others(params[key]):
            try:
                made.append(behaviour(name, {**base, key: value}) != own)
            except (UserError, AttributeError, AssertionError, KeyError, RuntimeError, TypeError, ValueError):
                continue
            taken.append(value)
        if made:
            assert any(made) != bool(unread(params, {key: taken}, MODELS[name])), key


@pytest.mark.parametrize("name", ["DeepFM", "DIN"])
def test_what_is_not_there_to_be_dropped_is_said(name):
    assert make_model((name, {**SIZES[name], "id_dropout": 0.3})).idle_settings() == []
    without = {key: value for key, value in FEATURES.items() if key != "item_id"}
    (said,) = make_model((name, {**SIZES[name], "features": without, "id_dropout": 0.3})).idle_settings()
    assert said == "id_dropout is 0.3, but item_id is no feature of the items: there is no id to drop"


def test_an_embedding_that_is_only_compared_is_not_dropped():
    assert make_model(("FM", {"modality_dropout": 0.3})).idle_settings() == []
    compared = {"modality_dropout": 0.3, "similarity_fields": True, "similarity_only": EMBEDDING}
    assert make_model(("FM", compared)).idle_settings() == [
        "modality_dropout is 0.3, but no embedding of the items is a field"
    ]


@pytest.mark.parametrize("setting", [{"history_levels": True}, {"content_search": "item_emb_d128"}])
def test_a_history_that_nothing_reads(setting):
    ((key, value),) = setting.items()
    model = make_model(("FM", {**setting, "history_pooling": "none"}))
    assert model.idle_settings() == [f"{key} is {value}, but nothing reads the history here"]
    shapes, _, own = behaviour("FM", {"history_pooling": "none"})
    same_shapes, _, same = behaviour("FM", {**setting, "history_pooling": "none"})
    assert same_shapes == shapes and same == pytest.approx(own, abs=1e-6)
    for reader in ({}, {"history_pooling": "none", "similarity_fields": True}):
        assert make_model(("FM", {**setting, **reader})).idle_settings() == []


def test_what_has_nothing_to_do_is_logged_by_a_run_and_not_by_a_prediction(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path / "runs"]
    features = "use_features=[user_id, item_seq, likes_level, views_level, item_tags]"
    code, *_ = run_script("run_expid", *arguments, "--set", features, "id_dropout=0.4", "epochs=1", capsys=capsys)
    (log,) = (tmp_path / "runs").rglob("FiBiNET_test.log")
    assert code == 0 and log.read_text().count("id_dropout is 0.4, but item_id is no feature") == 1
    code, output, error = run_script("prediction", *arguments, "--out", tmp_path / "scores.csv", capsys=capsys)
    assert code == 0 and "id_dropout" not in output + error


class Shallow(BaseModel):
    """Somebody's class, whose arguments are called like ours."""

    def __init__(self, feature_map, hidden_units=(), hidden_activations="ReLU", factor=1, **kwargs):
        super().__init__(feature_map, **kwargs)


class OwnFields(FieldModel):
    """Somebody's model of fields, which reads num_groups by itself."""

    def __init__(self, feature_map, senet_plus=False, num_groups=2, **kwargs):
        super().__init__(feature_map, **kwargs)


@pytest.mark.parametrize(
    ("model_class", "changes", "read"),
    [
        (Shallow, {"hidden_activations": "Sigmoid"}, True),
        (Shallow, {"factor": 3, "lr_schedule": "linear"}, True),
        (OwnFields, {"num_groups": 4}, True),
        (OwnFields, {"low_rank_fusion_heads": 4}, False),
        (Shallow, {"lr_decay_factor": 0.5, "lr_schedule": "linear"}, False),
    ],
)
def test_rules_are_of_our_models_and_of_the_loop(model_class, changes, read):
    assert read != bool(unread({}, {key: [value] for key, value in changes.items()}, model_class))


def test_models_that_read_a_setting_alone():
    search = {"content_search_len": 3}
    assert behaviour("MUSE", search) != behaviour("MUSE", {"content_search_len": LENGTH})
    refuse_unread(search, model_zoo.MUSE, search, "--set")
    with pytest.raises(UserError, match="content_search_len is 3, which nothing reads: content_search is not set"):
        refuse_unread(search, model_zoo.DIN, search, "--set")
    for name, changes in (("LMF", {"hidden_activations": "Sigmoid"}), ("NAML", {"net_dropout": 0.3})):
        base = {"hidden_units" if name == "LMF" else "dnn_hidden_units": []}
        assert behaviour(name, {**base, **changes}) != behaviour(name, base)
        refuse_unread({**base, **changes}, MODELS[name], changes, "--set")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_rank_fusion_heads": 8}, "low_rank_fusion is not set; set low_rank_fusion as well, or leave low_rank_fu"),
        ({"low_rank_fusion_heads": 8, "low_rank_fusion": []}, "low_rank_fusion is not set"),
        ({"lr_schedule": "linear", "lr_decay_factor": 0.5}, "lr_schedule is 'linear'; set lr_schedule=plateau as well"),
        ({"low_rank_fusion_heads": 1, "num_groups": 2, "attention_hidden_units": [64]}, None),  # the defaults
        ({"senet_plus": True, "excitation_activation": "relu"}, None),  # in any case
        ({"attention_dropout": 0.2}, "history_pooling is not set; set history_pooling=target_attention as well"),
        ({"attention_dropout": 0.2, "history_pooling": "target_attention"}, None),
    ],
)
def test_changes(changes, message):
    if message is None:
        refuse_unread(changes, model_zoo.FiBiNET, changes, "--set")
        return
    with pytest.raises(UserError, match=message):
        refuse_unread(changes, model_zoo.FiBiNET, changes, "--set")


def test_a_setting_is_known_by_its_other_name():
    changes = {"lr_schedule": "linear", "factor": 0.5}
    params = {"lr_schedule": "linear", "lr_decay_factor": 0.5}
    message = r"^--set: factor is 0\.5, which nothing reads: lr_schedule is 'linear'; .*, or leave factor out$"
    with pytest.raises(UserError, match=message):
        refuse_unread(params, model_zoo.DIN, changes, "--set")


def test_a_run_is_refused_before_it_begins(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path, "--set", "num_groups=4"]
    code, _, error = run_script("run_expid", *arguments, capsys=capsys)
    assert code == 2 and len(error.splitlines()) == 1
    assert "--set: num_groups is 4, which nothing reads: senet_plus is False; set senet_plus=True as well" in error
    assert not list(tmp_path.rglob("*.model"))


def test_a_run_of_before_is_resumed(dataset, tmp_path, capsys):
    """With whatever it was begun with: what nothing reads is said, and changes nothing."""
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path, "--resume"]
    code, *_ = run_script("run_expid", *arguments, "--set", "num_groups=4", "epochs=1", capsys=capsys)
    (log,) = tmp_path.rglob("FiBiNET_test.log")
    assert code == 0 and "--set: nothing reads num_groups: senet_plus is False" in log.read_text()


def test_a_benchmark_is_refused_before_it_begins(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--out", tmp_path / "out", "--set", "num_groups=4"]
    code, _, error = run_script("run_benchmark", *arguments, capsys=capsys)
    assert code == 2 and "--set: num_groups is 4, which nothing reads: senet_plus is False" in error
    assert not (tmp_path / "out").exists()


def job(expid, **params):
    return jobs.Job(expid, 1, Path(expid), params={"model": "FiBiNET", **params})


def test_a_benchmark_says_which_lines_a_change_does_not_reach(dataset, tmp_path):
    runs, changes = [job("plain"), job("plus", senet_plus=True)], {"num_groups": 4}
    assert alike.require_read(runs, model_zoo, changes, None) == [
        "plain: --set num_groups=4 changes nothing here: senet_plus is False"
    ]
    with pytest.raises(UserError, match="num_groups is 4, which nothing reads"):
        alike.require_read(runs[:1], model_zoo, changes, None)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "models": {"FiBiNET": {"senet_plus": [False, True]}}}))
    params = settings.load_params(str(dataset), "FiBiNET_test", model_zoo, ["num_groups=4"])
    varied = [job("varied", **params)]
    assert alike.require_read(varied, model_zoo, changes, read_space(path, model_zoo)) == []


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ("{num_groups: [2, 4]}", [], "tuner_space: num_groups is [2, 4], which nothing reads: senet_plus is False"),
        ("{num_groups: [2, 4], senet_plus: False}", [], "num_groups is [2, 4], which nothing reads: senet_plus is Fal"),
        ("{epochs: [1, 2]}", ["num_groups=4"], "--set: num_groups is 4, which nothing reads: senet_plus is False"),
        ("{num_groups: [2, 4], senet_plus: [False, True]}", [], None),
        ("{num_groups: [2, 4]}", ["senet_plus=True"], None),
        ("{senet_plus: [False, True]}", ["num_groups=4"], None),
        ("{model: [FiBiNET, DeepFM], low_rank_fusion_heads: [1, 2]}", ["low_rank_fusion=[item_emb_d16]"], None),
    ],
)
def test_a_tuner_varies_what_is_read(dataset, tmp_path, space, changes, message):
    tuner = read_tuner(write_tuner(tmp_path, dataset, space), model_zoo)
    search = (tuner, model_zoo, tmp_path / "out", ["run"], [-1], changes)
    if message is None:
        Search(*search)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        Search(*search)
    assert not (tmp_path / "out").exists()


def test_a_space_leaves_out_what_an_experiment_does_not_read(dataset, tmp_path):
    params = settings.load_params(str(dataset), "FiBiNET_test", model_zoo)
    path = tmp_path / "space.yaml"
    further = {"content_search_len": [3, 5], "senet_plus": [False], "num_groups": [2, 4]}
    path.write_text(yaml.safe_dump({**SPACE, "common": {**SPACE["common"], **further}}))
    space = read_space(path, model_zoo)
    assert not {"content_search_len", "num_groups"} & space.of(params, model_zoo).keys()
    assert "content_search_len" in space.of({**params, "content_search": "item_emb_d16"}, model_zoo)
    assert list(space.split(params, model_zoo)[1]) == ["content_search_len", "num_groups"]


def test_a_space_is_refused_where_no_experiment_reads_a_setting(dataset, tmp_path, capsys):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "models": {"FiBiNET": {"num_groups": [2, 4]}}}))
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--tune", "2", "--tune_space", path]
    code, _, error = run_script("run_benchmark", *arguments, "--out", tmp_path / "out", capsys=capsys)
    assert (
        code == 2 and f"{path}: num_groups: no experiment here reads it: senet_plus is False; set senet_plus" in error
    )


def test_a_space_for_all_models_may_have_what_an_experiment_does_not_read(dataset, tmp_path):
    """As the one that ships has net_dropout, whoever has no hidden layers."""
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    space, plan = read_space(path, model_zoo), functools.partial(jobs.plan, str(dataset), models=model_zoo)
    plan = functools.partial(plan, overrides=["hidden_units=[]"])
    (tuning,) = alike.plan_tuning([Line("FiBiNET_test")], space, Budget(1), model_zoo, set(), [1], plan, tmp_path)
    assert tuning.space.keys() == {"learning_rate", "batch_size", "reduction_ratio"}


def test_shipped_spaces_vary_what_is_read():
    config = ROOT / "config"
    space = read_space(config / "tuner/benchmark.yaml", model_zoo)
    for model, values in space.models.items():
        expid = next(
            name for name in (f"{model}_small", f"{model}_recommended") if name in settings.experiment_ids(config)
        )
        params = settings.load_params(str(config), expid, model_zoo)
        assert set(values) <= set(space.of(params, model_zoo)), model

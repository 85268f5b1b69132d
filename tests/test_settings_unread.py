"""A change that nothing reads is refused: each rule against what the model does, and no setting without a rule."""

import pytest
import torch
import yaml
from conftest import ROOT, run_script
from test_model_contract import FEATURES, LENGTH, MODELS, SIZES, make_batch, make_model, scores
from test_tuner import write_tuner
from test_tuning import SPACE

import model_zoo
from mm_fibinet import settings
from mm_fibinet.compare.tuning_space import read_space
from mm_fibinet.errors import UserError
from mm_fibinet.settings_schema import constructor_arguments
from mm_fibinet.settings_unread import READ_BESIDE, refuse_unread, unread

OF_THE_LOOP = {"lr_decay_factor", "reduce_lr_on_plateau"}  # test_training has them
# What the loop or the loader reads of a constructor's arguments, not the model's outputs.
NOT_OF_OUTPUTS = {
    *("optimizer", "loss", "learning_rate", "task", "monitor", "monitor_mode", "save_best_only", "early_stop_patience"),
    *("eval_steps", "reduce_lr_on_plateau", "max_len", "focal_gamma"),
}
# What happens to be the same here: a search among more than the history has, and what a model takes by itself.
SAME_HERE = {"content_search", "modality_features", "MUSE simtier", "MUSE sa_ta", "MAKE simtier"}
EMBEDDING = ["item_emb_d128"]
OTHERS = {bool: [True, False], int: [1, 3, 4, 8], float: [0.1, 0.3], str: ["Sigmoid", "field_all", "correct", "none"]}
ON = {  # {what a setting is read beside: (a model, settings with which it is read)}
    "cross_attention_layers": ("DIN", {"cross_attention_layers": 2}),
    "content_search": ("DIN", {"content_search": "item_emb_d128"}),
    "history_pooling": ("GDCN", {"history_pooling": "target_attention"}),
    "low_rank_fusion": ("DeepFM", {"low_rank_fusion": EMBEDDING}),
    "use_low_rank_mixture": ("DCNv2", {"use_low_rank_mixture": True}),
    "use_fs": ("FinalMLP", {"use_fs": True}),
    "bilinear_plus": ("FiBiNET", {"bilinear_plus": True}),
    "hidden_units": ("FiBiNET", {"hidden_units": [16]}),
    "dnn_hidden_units": ("GDCN", {"dnn_hidden_units": [16]}),
    "model_structure": ("DCNv2", {"model_structure": "stacked_parallel", "stacked_dnn_hidden_units": [16]}),
    "senet_plus": ("FiBiNET", {"senet_plus": True}),
}
OFF = {
    "use_fs": {"use_fs": False},
    "hidden_units": {"hidden_units": []},
    "dnn_hidden_units": {"dnn_hidden_units": []},
}
VALUES = {
    "content_search_len": (2, 3),
    "attention_hidden_units": ([4], [8, 4]),
    "low_rank_fusion_heads": (1, 2),
    "excitation_activation": ("ReLU", "Sigmoid"),
    "hidden_activations": ("ReLU", "Sigmoid"),
    "dnn_activations": ("ReLU", "Sigmoid"),
    "fs_hidden_units": ([4], [8, 4]),
    "fs1_context": ([], ["likes_level"]),
    "fs2_context": ([], ["likes_level"]),
    "stacked_dnn_hidden_units": ([4], [8, 4]),
    "parallel_dnn_hidden_units": ([4], [8, 4]),
}
BATCH = make_batch()


def behaviour(name, options):
    """What settings make of a model: its weights' shapes, its loss in training, its scores."""
    model = make_model((name, {**SIZES[name], **options}))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.train()
    torch.manual_seed(7)
    loss = (model.add_loss(model(BATCH), model.get_labels(BATCH)) + model.regularization_loss()).item()
    return shapes, loss, scores(model.eval(), BATCH).tolist()


@pytest.mark.parametrize("setting", [name for name in READ_BESIDE if name not in OF_THE_LOOP])
def test_a_rule_is_what_the_model_does(setting):
    beside, needed = READ_BESIDE[setting]
    name, on = ON[beside]
    off = OFF.get(beside, {})
    if setting == "excitation_activation":
        on, off = off, on
    elif beside == "model_structure":
        off = {"model_structure": next(kind for kind in ("parallel", "stacked") if kind not in needed)}
        off |= {"stacked_dnn_hidden_units": [16]} if setting.startswith("parallel") else {}
    first, second = ({setting: value} for value in VALUES.get(setting, (0.1, 0.4) if "dropout" in setting else (2, 4)))
    assert behaviour(name, {**off, **first}) == behaviour(name, {**off, **second})
    assert behaviour(name, {**on, **first}) != behaviour(name, {**on, **second})
    params = {**{key: p.default for key, p in constructor_arguments(MODELS[name]).items()}, **SIZES[name]}
    assert list(unread({**params, **off}, [setting], MODELS[name])) == [setting]
    assert not unread({**params, **on}, [setting], MODELS[name])


def others(value):
    """Further values of a setting, most of which its model takes."""
    if value is None:
        return ["target_attention", "item_emb_d128", 0.1, [8]]
    if isinstance(value, list | tuple):
        return [[8, 8], [8], EMBEDDING, ["likes_level"]]
    return [other for other in OTHERS[type(value)] if other != value]


@pytest.mark.parametrize("name", [name for name in SIZES if name in MODELS])
def test_no_setting_of_a_model_is_unread_without_a_rule(name):
    own, arguments = behaviour(name, {}), constructor_arguments(MODELS[name])
    params = {**{key: parameter.default for key, parameter in arguments.items()}, **SIZES[name]}
    for key in arguments.keys() - NOT_OF_OUTPUTS:
        if {key, f"{name} {key}"} & SAME_HERE:
            continue
        made = []
        for value in others(params[key]):
            try:
                made.append(behaviour(name, {key: value}) != own)
            except (UserError, AttributeError, AssertionError, KeyError, RuntimeError, TypeError, ValueError):
                continue
        if made:
            assert any(made) != bool(unread(params, [key], MODELS[name])), key


@pytest.mark.parametrize("name", ["DeepFM", "DIN"])
def test_what_is_not_there_to_be_dropped_is_said(name, caplog):
    make_model((name, {**SIZES[name], "id_dropout": 0.3}))
    assert not caplog.messages
    without = {key: value for key, value in FEATURES.items() if key != "item_id"}
    make_model((name, {**SIZES[name], "features": without, "id_dropout": 0.3}))
    assert caplog.messages == ["id_dropout is 0.3, but item_id is no feature of the items: there is no id to drop"]


def test_an_embedding_that_is_only_compared_is_not_dropped(caplog):
    make_model(("FM", {"modality_dropout": 0.3}))
    assert not caplog.messages
    make_model(("FM", {"modality_dropout": 0.3, "similarity_fields": True, "similarity_only": EMBEDDING}))
    assert caplog.messages == ["modality_dropout is 0.3, but no embedding of the items is a field"]


def test_models_that_ask_for_themselves():
    search = {"content_search_len": 3}
    assert behaviour("MUSE", search) != behaviour("MUSE", {"content_search_len": LENGTH})
    refuse_unread(search, model_zoo.MUSE, ("--set", search))
    with pytest.raises(UserError, match="content_search_len is 3, which nothing reads: content_search is not set"):
        refuse_unread(search, model_zoo.DIN, ("--set", search))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"low_rank_fusion_heads": 8},
            "low_rank_fusion is not set; set it as well, or leave low_rank_fusion_heads out",
        ),
        ({"lr_schedule": "linear", "lr_decay_factor": 0.5}, None),  # together, as a tuner's grid has them
        ({"low_rank_fusion_heads": 1, "num_groups": 2, "attention_hidden_units": [64]}, None),  # the defaults
        ({"attention_dropout": 0.2}, "history_pooling is None; set history_pooling=target_attention as well"),
        ({"attention_dropout": 0.2, "history_pooling": "target_attention"}, None),
    ],
)
def test_changes(changes, message):
    if message is None:
        return refuse_unread(changes, model_zoo.FiBiNET, ("--set", changes))
    with pytest.raises(UserError, match=message):
        refuse_unread(changes, model_zoo.FiBiNET, ("--set", changes))


def test_a_setting_is_known_by_its_other_name():
    params = {"lr_schedule": "linear", "lr_decay_factor": 0.5}
    with pytest.raises(UserError, match=r"^--set: factor is 0\.5, which nothing reads: lr_schedule is 'linear'"):
        refuse_unread(params, model_zoo.DIN, ("--set", {"factor": 0.5}))


def test_a_run_is_refused_before_it_begins(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path, "--set", "num_groups=4"]
    code, _, error = run_script("run_expid", *arguments, capsys=capsys)
    assert code == 2 and len(error.splitlines()) == 1
    assert "--set: num_groups is 4, which nothing reads: senet_plus is False; set senet_plus=True as well" in error
    assert not list(tmp_path.rglob("*.model"))


def test_a_benchmark_is_refused_before_it_begins(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expids", "FiBiNET_test", "--out", tmp_path / "out", "--set", "num_groups=4"]
    code, output, error = run_script("run_benchmark", *arguments, capsys=capsys)
    assert code == 1 and "num_groups is 4, which nothing reads" in output + error
    assert not list(tmp_path.rglob("result.json"))


def test_a_tuner_is_refused_before_it_begins(dataset, tmp_path, capsys):
    tuner = write_tuner(tmp_path, dataset, "{num_groups: [2, 4]}")
    code, _, error = run_script("run_param_tuner", "--config", tuner, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2 and "tuner_space: num_groups is 4, which nothing reads: senet_plus is False" in error
    tuner = write_tuner(tmp_path, dataset, "{num_groups: [2, 4], senet_plus: [False, True], epochs: 0}")
    _, _, error = run_script("run_param_tuner", "--config", tuner, "--out", tmp_path / "out", capsys=capsys)
    assert "epochs is 0" in error  # both are varied


def test_a_space_of_all_models_leaves_out_what_one_does_not_read(dataset, tmp_path):
    params = settings.load_params(str(dataset), "FiBiNET_test", model_zoo)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "common": {**SPACE["common"], "content_search_len": [3, 5]}}))
    assert "content_search_len" not in read_space(path, model_zoo).of(params, model_zoo)
    assert "content_search_len" in read_space(path, model_zoo).of(
        {**params, "content_search": "item_emb_d16"}, model_zoo
    )
    path.write_text(yaml.safe_dump({**SPACE, "models": {"FiBiNET": {"num_groups": [2, 4]}}}))
    with pytest.raises(UserError, match="models: FiBiNET: num_groups: nothing reads it: senet_plus is False"):
        read_space(path, model_zoo).of(params, model_zoo)


def test_shipped_spaces_vary_what_is_read():
    config = ROOT / "config"
    space = read_space(config / "tuner/benchmark.yaml", model_zoo)
    for model, values in space.models.items():
        expid = next(
            name for name in (f"{model}_small", f"{model}_recommended") if name in settings.experiment_ids(config)
        )
        params = settings.load_params(str(config), expid, model_zoo)
        assert set(values) <= set(space.of(params, model_zoo)), model

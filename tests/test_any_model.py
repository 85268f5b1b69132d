"""FuxiCTR models that are not ours: what they are given, what is mended, and what is said when they do not fit."""

import copy

import pytest
import torch
from conftest import ROOT, make_feature_map
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score
from test_model_contract import FEATURES, ITEMS, LENGTH, ROWS, assert_equal_scores, make_batch, scores, some_rows
from test_model_source import LONGCTR, found

import model_zoo
from mm_fibinet import any_model, fuxictr_adapter, settings
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.flat import FlatFormat
from mm_fibinet.item_table import ItemTable, load_item_table
from mm_fibinet.training import Trainer
from model_zoo.layers import LinearPart

RETRIEVAL = {"dnn_hidden_units": [16], "attention_dim": 8, "short_seq_len": 4, "topk": 3}
SIZES = {
    "DCNv2": {"parallel_dnn_hidden_units": [16]},
    "DIEN": {"dnn_hidden_units": [16], "batch_norm": False},  # whose statistics would be each rank's own
    "DIN": {"dnn_hidden_units": [16], "attention_hidden_units": [8], "attention_hidden_activations": "ReLU"},
    "ETA": RETRIEVAL,
    "FinalMLP": {"mlp1_hidden_units": [16], "mlp2_hidden_units": [16], "use_fs": False},
    "MIRRN": RETRIEVAL,
    "SDIM": {"dnn_hidden_units": [16], "attention_dim": 8, "short_seq_len": 4},
    "SIM": RETRIEVAL,
    "TWIN": RETRIEVAL,
    "TransAct": {"dcn_hidden_units": [16], "dim_feedforward": 16},
}
every_longctr = pytest.mark.parametrize("name", LONGCTR)


def make(model_class, seed=0, features=FEATURES, **settings):
    """A model on the contract's features, in evaluation mode."""
    torch.manual_seed(seed)
    params = {"embedding_dim": 8, "learning_rate": 0.01, "max_len": LENGTH, "item_info": "items", **settings}
    return any_model.make_model(model_class, make_feature_map(features), params).eval()


def longctr(name, awake=True, **settings):
    """One of LongCTR, its tables large enough for every input to show."""
    model = make(found(f"model_zoo.LongCTR:{name}"), **SIZES[name], **settings)
    for table in [module for module in model.modules() if isinstance(module, torch.nn.Embedding)] if awake else []:
        torch.nn.init.normal_(table.weight, std=0.3)
        with torch.no_grad():
            table.weight[0] = 0
    return model


def triple(batch, features=FEATURES):
    """The batch as the loader makes it: the items' rows have the items' features and no more."""
    columns = batch.item_table.columns
    table = ItemTable({name: columns[name] for name in columns if features.get(name, {}).get("source") == "item"})
    return batch._replace(item_table=table).triple()


@every_longctr
def test_longctr_scores_are_probabilities_whatever_the_order(name):
    model, batch, order = longctr(name), make_batch(), torch.randperm(ROWS)
    predicted = scores(model, triple(batch))
    assert predicted.shape == (ROWS, 1) and 0 <= predicted.min() < predicted.max() <= 1
    assert_equal_scores(scores(model, triple(some_rows(batch, order))), predicted[order], 1e-5)


@every_longctr
def test_longctr_uses_history_and_embedding(name):
    model, batch = longctr(name), make_batch()
    predicted, index = scores(model, triple(batch)), batch.item_index.clone()
    index[:, :-1] = torch.where(index[:, :-1] > 0, index[:, :-1] % (ITEMS - 1) + 1, 0)
    moved = (scores(model, triple(batch._replace(item_index=index))) - predicted).abs().squeeze(1)
    has_history = batch.mask.sum(dim=1) > 0
    assert moved[~has_history].max() < 1e-6 and (moved[has_history] > 1e-6).float().mean() > 0.5
    batch.item_table.columns["item_emb_d128"][1:] += 1
    assert ((scores(model, triple(batch)) - predicted).abs() > 1e-6).float().mean() > 0.5


@every_longctr
def test_longctr_gradients_reach_every_weight_and_rows_without_history_are_finite(name):
    model, batch = longctr(name), make_batch()
    model.add_loss(model(triple(batch)), model.get_labels(triple(batch))).backward()
    still = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == [] and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    empty = batch._replace(item_index=batch.item_index.clone())
    empty.item_index[:, :-1] = torch.where(torch.arange(ROWS)[:, None] < 9, 0, empty.item_index[:, :-1])
    assert scores(model, triple(empty)).isfinite().all()


@every_longctr
def test_longctr_learns(name):
    model, batch = longctr(name, awake=False), make_batch()
    batch = some_rows(batch, torch.arange(64))
    for _ in range(60):
        model.train()
        model.optimizer.zero_grad()
        model.add_loss(model(triple(batch)), model.get_labels(triple(batch))).backward()
        model.optimizer.step()
    assert roc_auc_score(batch.batch_dict["label"], scores(model.eval(), triple(batch)).squeeze(1)) > 0.95


@pytest.mark.parametrize("size", ["small", "MicroLens_1M_x1"])
@every_longctr
def test_longctrs_shipped_experiments_fit(name, size):
    """Each with its own sizes and 64 positions scores, and every weight gets a gradient, as several processes need."""
    params = settings.load_params(str(ROOT / "config"), f"LongCTR_{name}_{size}", model_zoo)
    assert (params["dataset_id"], params["max_len"]) == ({"small": "MMCTR_demo"}.get(size, size), 64)
    torch.manual_seed(0)
    model = any_model.make_model(found(params["model"]), make_feature_map(FEATURES), {**params, "gpu": -1})
    assert type(model).__name__ == name and model.optimizer.param_groups[0]["lr"] == 1e-3
    batch, lengths = some_rows(make_batch(), torch.arange(32)), torch.arange(32)[:, None] * 64 // 31
    history = torch.randint(1, ITEMS, (32, 64)) * (torch.arange(64) >= 64 - lengths)
    batch = batch._replace(item_index=torch.cat([history, batch.item_index[:, -1:]], dim=1).int())
    predicted = model(triple(batch))
    assert predicted["y_pred"].shape == (32, 1) and predicted["y_pred"].std() > 0
    model.add_loss(predicted, model.get_labels(triple(batch))).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@every_longctr
def test_longctrs_own_step_is_the_one_that_our_loop_does(name):
    own = found(f"model_zoo.LongCTR:{name}")
    assert own.train_step is not BaseModel.train_step
    assert fuxictr_adapter.only_accumulates(longctr(name))
    changed = type(name, (own,), {"train_step": lambda self, batch: super(own, self).train_step(batch)})
    assert not fuxictr_adapter.only_accumulates(make(changed, **SIZES[name]))


class Run:
    """A model on the small data set, as run_expid.py makes it."""

    def __init__(self, dataset, tmp_path, name, *changes):
        given = [f"model={name}", "hidden_units=[8]", "net_dropout=0", "epochs=1", "batch_size=50", *changes]
        config = tmp_path / "config"
        config.mkdir(exist_ok=True)
        (config / "dataset_config.yaml").write_text((dataset / "dataset_config.yaml").read_text())
        (config / "model_config.yaml").write_text(f"X: {{model: '{name}', dataset_id: TEST_DATA, group_id: user_id}}\n")
        known = settings.known_settings(found(name))
        given = [change for change in given[1:] if change.partition("=")[0] in known]
        params = settings.load_params(str(config), "X", model_zoo, ["embedding_dim=8", "verbose=0", *given])
        self.params = {**params, "max_len": 10, "checkpoint": tmp_path / "best.model"}
        self.model_class, self.feature_map = found(name), build_feature_map(params)
        self.params["batch_format"] = any_model.batch_format(self.model_class, self.params)
        torch.manual_seed(0)
        self.model = any_model.make_model(self.model_class, self.feature_map, self.params)
        items = any_model.item_features(self.model, self.feature_map, self.params)
        table = load_item_table(params["item_info"], items, params["item_feature"])
        arguments = {**self.params, "item_info": table}
        self.train = MMCTRDataLoader(self.feature_map, params["train_data"], split="train", **arguments)
        self.valid = MMCTRDataLoader(self.feature_map, params["valid_data"], **{**arguments, "shuffle": False})


SIM_SIZES = ["dnn_hidden_units=[8]", "attention_dim=8", "topk=3", "short_seq_len=5"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model_zoo.LongCTR:SIM", SIM_SIZES),
        ("model_zoo.LongCTR:SIM", [*SIM_SIZES, "accumulation_steps=2"]),
        ("my_models:Mine", ["similarity_fields=True"]),
    ],
)
def test_a_model_trains_as_by_its_own_step(dataset, tmp_path, working_folder, name, changes):
    more = ["learning_rate=0.005", "embedding_regularizer=1e-2", "net_regularizer=1e-3"]
    run = Run(dataset, tmp_path, name, *changes, *more)
    reference = copy.deepcopy(run.model).train()
    BaseModel.compile(reference, "adam", "binary_crossentropy", 0.005)
    reference._max_gradient_norm = 10.0
    trainer = Trainer(run.model, **run.params)
    run.model.train()
    for index, batch in enumerate(run.train):
        trainer.step += 1
        trainer._train_step(copy.deepcopy(batch), run.train, last=False)
        reference._batch_index = index
        reference.train_step(batch)
    for (name, ours), theirs in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_flat_model_reads_target_and_history_in_any_order(working_folder):
    model, batch, order = make(found("my_models:Mine")), make_batch(), torch.randperm(ROWS)
    form = FlatFormat(make_feature_map(FEATURES))
    for table in [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]:
        torch.nn.init.normal_(table.weight[1:], std=0.3)
    predicted = scores(model, form.batch(*batch))
    assert_equal_scores(scores(model, form.batch(*some_rows(batch, order))), predicted[order])
    index = batch.item_index.clone()
    index[:, :-1] = torch.where(index[:, :-1] > 0, index[:, :-1] % (ITEMS - 1) + 1, 0)
    moved = (scores(model, form.batch(*batch._replace(item_index=index))) - predicted).abs().squeeze(1)
    has_history = batch.mask.sum(dim=1) > 0
    assert moved[~has_history].max() == 0 and (moved[has_history] > 1e-6).float().mean() > 0.9
    model.add_loss(model(form.batch(*batch)), model.get_labels(form.batch(*batch))).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
    batch.item_table.columns["item_emb_d128"][1:] += 1
    assert ((scores(model, form.batch(*batch)) - predicted).abs() > 1e-6).float().mean() > 0.9


def test_levels_of_source_item_are_in_the_history_of_longctr():
    levels = {name: {**FEATURES[name], "source": "item"} for name in ("likes_level", "views_level")}
    features = {**FEATURES, **levels}
    model, batch = make(found("model_zoo.LongCTR:SIM"), features=features, **RETRIEVAL), make_batch()
    del batch.batch_dict["likes_level"], batch.batch_dict["views_level"]
    for table in [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]:
        torch.nn.init.normal_(table.weight[1:], std=0.3)
    predicted = scores(model, triple(batch, features))
    history = torch.arange(1, ITEMS)[~torch.isin(torch.arange(1, ITEMS), batch.item_index[:, -1])]
    batch.item_table.columns["likes_level"][history] = 10
    assert ((scores(model, triple(batch, features)) - predicted).abs() > 1e-6).any()


def test_which_batches_a_class_reads(working_folder):
    assert any_model.batch_formats(model_zoo.DIN) == ("indices", "triple")
    assert any_model.batch_formats(found("model_zoo.LongCTR:DIN")) == ("triple",)
    assert any_model.batch_formats(found("my_models:Mine")) == ("flat",)
    assert any_model.batch_formats(type("Says", (BaseModel,), {"batch_format": "indices"})) == ("indices",)
    with pytest.raises(UserError, match=r"Says.batch_format is 'rows', expected one of triple, indices, flat"):
        any_model.batch_formats(type("Says", (BaseModel,), {"batch_format": "rows"}))
    with pytest.raises(UserError, match=r"batch_format is triple, but Mine reads flat; leave batch_format out, or say"):
        any_model.batch_format(found("my_models:Mine"), {"batch_format": "triple"})
    with pytest.raises(UserError, match="batch_format is flat, but DIN reads indices or triple"):
        any_model.batch_format(model_zoo.DIN, {"batch_format": "flat"})


def test_settings_of_a_class_that_is_not_ours(working_folder):
    def load(*changes, model="my_models:Mine"):
        dataset = {"dataset_id": "D", "train_data": "a", "valid_data": "b", "item_info": "c"}
        dataset["feature_cols"] = [{"name": "item_id", "type": "categorical", "source": "item"}]
        changes = settings.parse_overrides(list(changes))
        return settings.resolve("X", {"model": model}, dataset, model_zoo, ("--set", changes))

    assert load("alpha=0.5")["alpha"] == 0.5  # its default is 1, which says nothing of whole numbers
    assert type(load("alpha=2")["alpha"]) is int
    assert load("similarity_fields=True")["similarity_fields"] is True
    for changes, message in {
        ("alhpa=1",): "alhpa: unknown key, did you mean alpha",
        ("alpha=x",): "alpha is 'x', expected a number",
        ("hidden_units=[0]",): "expected a list of whole numbers",
    }.items():
        with pytest.raises(UserError, match=message):
            load(*changes)
    with pytest.raises(UserError, match="similarity_fields: unknown key"):
        load("similarity_fields=True", model="model_zoo.LongCTR:DIN")
    with pytest.raises(UserError, match=r"gru_type is .os.system.*, expected numbers or plain texts"):
        load("gru_type=\"os.system('x')\"", model="model_zoo.LongCTR:DIEN")


def mended(seed=0, **features):
    """(a model with nothing but FuxiCTR's linear part, its feature map)."""

    class Linear(BaseModel):
        def __init__(self, feature_map, learning_rate=1e-3, **kwargs):
            super().__init__(feature_map, **kwargs)
            self.lr_layer = LogisticRegression(feature_map)
            self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
            self.reset_parameters()

        def forward(self, inputs):
            return {"y_pred": self.output_activation(self.lr_layer(self.get_inputs(inputs)))}

    return make(Linear, seed=seed, features={**FEATURES, **features}, learning_rate=0.25)


def test_fuxictrs_linear_part_takes_an_embedding_as_our_linear_part_does():
    model, batch = mended(), make_batch()
    columns = FlatFormat(make_feature_map(FEATURES)).batch(*batch)
    X = model.get_inputs(columns)
    ours = LinearPart(model.feature_map)
    theirs = model.lr_layer.embedding_layer.embedding_layer.embedding_layers
    with torch.no_grad():
        model.lr_layer.bias.fill_(0.3)
        for name, weights in ours.embedding_weights.items():
            weights.weight.copy_(theirs[name].weight)
        for name, table in ours.embedding_layer.embedding_layer.embedding_layers.items():
            table.weight.copy_(theirs[name].weight)
    assert {"item_emb_d128", "history_item_emb_d128"} == set(ours.embedding_weights)
    torch.testing.assert_close(model.lr_layer(X), ours(X) + 0.3)
    assert model.lr_layer(X).std() > 1e-3


def test_the_mended_weights_are_trained():
    model = mended()
    fuxictr_adapter.refuse_untrained(model)
    assert {group["lr"] for group in model.optimizer.param_groups} == {0.25}
    trained = {id(p) for group in model.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    assert model.optimizer.defaults["fused"]


def test_an_optimizer_of_the_models_own_is_kept():
    class Decayed(type(mended())):
        def __init__(self, feature_map, **kwargs):
            super().__init__(feature_map, **kwargs)
            self.optimizer = torch.optim.Adam(self.parameters(), lr=0.5, weight_decay=0.1)

    model = make(Decayed)
    fuxictr_adapter.refuse_untrained(model)
    assert [(group["lr"], group["weight_decay"]) for group in model.optimizer.param_groups] == [(0.5, 0.1)] * 2


def test_tables_that_nobody_initialised_begin_as_their_neighbours_do():
    """FuxiCTR passes over features of share_embedding, also where its linear part gives them a table of their own."""
    tables = mended().lr_layer.embedding_layer.embedding_layer.embedding_layers
    for name in ("item_id", "history_item_id", "history_item_tags"):
        weights = tables[name].weight
        assert weights[0].abs().max() == 0 and 0.3e-4 < weights[1:].std() < 3e-4, name
    plain = FlatFormat(make_feature_map(FEATURES)).feature_map(LENGTH)
    untouched = LogisticRegression(plain).embedding_layer.embedding_layer.embedding_layers["history_item_id"]
    assert untouched.weight[1:].std() > 0.5  # what FuxiCTR leaves, in a model that nobody asked us to mend


def test_settings_of_the_history_are_refused_without_one(working_folder):
    features = {name: spec for name, spec in FEATURES.items() if name == "likes_level"}
    with pytest.raises(UserError, match="similarity_fields is True, but there is nothing to compare"):
        make(found("my_models:Mine"), features=features, item_info=None, similarity_fields=True)


def test_shared_tables_stay_shared(working_folder):
    model = make(found("my_models:Mine"))
    tables = model.embedding_layer.embedding_layer.embedding_layers
    assert tables["history_item_id"] is tables["item_id"]
    assert type(model.embedding_layer) is FeatureEmbedding


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Broken",
            r"Broken: its forward failed on the first batch: KeyError: 'no_such_column' \(.*my_models.py, line \d+\)",
        ),
        (
            "Narrow",
            r"Narrow: forward returned y_pred of shape \[3, 1\] .* for a batch of 50 rows, expected .* \[50, 1\]",
        ),
        ("Line", r"Line: forward returned y_pred of shape \[50\] and type float32 .* expected .* \[50, 1\] of floats"),
        ("Rounded", r"Rounded: forward returned y_pred of shape \[50, 1\] and type int64 .* \[50, 1\] of floats"),
        ("NoNumber", r"NoNumber: forward's y_pred goes from nan to nan, expected probabilities from 0 to 1"),
        ("Logits", r"Logits: forward's y_pred goes from .* expected probabilities .* self.output_activation"),
    ],
)
def test_a_model_that_does_not_fit_is_found_before_training(dataset, tmp_path, working_folder, name, message):
    run = Run(dataset, tmp_path, f"my_models:{name}", "alpha=9")
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        any_model.try_out(run.model, run.valid)
    assert torch.get_rng_state().equal(state)


def test_what_the_first_batch_was_is_said(dataset, tmp_path, working_folder):
    run = Run(dataset, tmp_path, "my_models:Broken")
    with pytest.raises(UserError, match=r"a batch is \{.*item_emb_d16 \[50, 16\].*\} \(batch_format: flat\)"):
        any_model.try_out(run.model, run.valid)


def test_scores_without_a_second_axis_are_for_a_loss_of_the_models_own(dataset, tmp_path, working_folder):
    run = Run(dataset, tmp_path, "my_models:LineWithLoss")
    any_model.try_out(run.model, run.valid)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unmakeable", r"Unmakeable: its constructor failed: ValueError: units must be even \(.*my_mod"),
        ("Leaves", r"Leaves: its constructor failed: SystemExit: no licence \(.*my_mod"),
        ("Unmade", r"Unmade: its constructor does not call super\(\).__init__"),
        ("Unsized", r"Unsized: out.weight, out.bias have no size before the first batch"),
        ("Frozen", r"Frozen: no parameter has requires_grad"),
        (
            "TakesNoMore",
            r"TakesNoMore: its constructor failed: KeyError: 'verbose' \(.*my_mod.*; it takes no \*\*kwargs",
        ),
    ],
)
def test_a_constructor_that_fails(working_folder, name, message):
    with pytest.raises(UserError, match=message):
        make(found(f"my_models:{name}"))


def test_a_step_of_its_own_is_refused(working_folder):
    model = make(found("my_models:OwnStep"))
    with pytest.raises(UserError, match=r"OwnStep overrides train_step, which the training loop .* would never call"):
        fuxictr_adapter.refuse_own_loop(model)

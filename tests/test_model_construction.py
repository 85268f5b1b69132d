"""A constructor's layers are a whole model: weights, device, optimizer and loss follow without a call to know."""

import inspect

import pytest
import torch
from conftest import make_feature_map
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from fuxictr.pytorch.torch_utils import seed_everything
from test_model_contract import FEATURES, MODELS, SIZES, make_batch, make_model, scores
from torch import nn

import model_zoo
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.fuxictr_adapter import initialise_own_tables
from mm_fibinet.item_table import load_item_table
from mm_fibinet.settings import load_params
from model_zoo.base import MultimodalModel
from model_zoo.history import HistoryModel


class Plain(MultimodalModel):
    """A contributor's: layers and a forward."""

    def __init__(self, feature_map, embedding_dim=4, learning_rate=0.5, **kwargs):
        super().__init__(feature_map, **kwargs)  # the learning rate is not handed on
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=["item_id"])
        self.linear = nn.Linear(embedding_dim, 1)

    def forward(self, inputs):
        batch = self.read_batch(inputs)
        target = self.embed(self.embedding_layer, {"item_id": batch.target_columns()["item_id"]})["item_id"]
        return {"y_pred": self.output_activation(self.linear(target))}


class LogitAlone(Plain):
    """The same as models of the zoo have it."""

    forward = MultimodalModel.forward

    def compute_logit(self, batch):
        return self.linear(self.embed(self.embedding_layer, {"item_id": batch.target_columns()["item_id"]})["item_id"])


class Distance(HistoryModel):
    """How far the target is from the history's mean, plus a bias of the row's."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.row = nn.Linear(self.row_dim, 1)

    def compute_logit(self, batch, items, target):
        mean = (items[batch.history.long()] * batch.mask.unsqueeze(2)).mean(dim=1)
        return self.row(self.row_vectors(batch, items, target)) - (target - mean).norm(dim=1, keepdim=True)


class InFuxiCTRsWay(Plain):
    """The same with the calls that end the constructors of FuxiCTR's models, in their order."""

    def __init__(self, feature_map, optimizer="adam", loss="binary_crossentropy", learning_rate=0.5, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.calls = 0
        self.compile(optimizer, loss, learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def reset_parameters(self):
        self.calls += 1
        super().reset_parameters()


class WithItsOwnWeights(Plain):
    """Loads weights at the end of its constructor, after FuxiCTR's initialisation."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.reset_parameters()
        nn.init.constant_(self.linear.weight, 3.0)


class Grandchild(model_zoo.Transformer_DCN):
    """Names no learning rate: its parent's default counts."""

    def __init__(self, feature_map, extra=1, **kwargs):
        super().__init__(feature_map, **SIZES["Transformer_DCN"], embedding_dim=4, **kwargs)
        self.extra = nn.Linear(2, extra)


def make(model_class, seed=3, **settings):
    torch.manual_seed(seed)
    return model_class(make_feature_map(FEATURES), **settings)


def learning_rate(model):
    return model.optimizer.param_groups[0]["lr"]


def test_layers_and_a_forward_are_a_model():
    model = make(Plain)
    assert learning_rate(model) == 0.5
    assert model.loss_fn is torch.nn.functional.binary_cross_entropy
    assert {id(p) for p in model.optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert model.linear.bias.abs().max() == 0  # FuxiCTR's initialisation, not torch's
    assert model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight.abs().max() < 1e-3
    assert model.model_id == "Plain"


def test_layers_and_a_logit_are_a_model():
    batch = make_batch()
    by_hand, model = make(Plain).eval(), make(LogitAlone).eval()
    assert scores(model, batch).equal(scores(by_hand, batch))
    assert scores(model, batch.triple()).equal(scores(by_hand, batch))


def test_a_history_models_logit_has_the_items_and_the_target():
    model, batch = make(Distance, embedding_dim=4).eval(), make_batch()
    for weights in model.parameters():
        nn.init.normal_(weights)
    predicted = scores(model, batch)
    inputs = model.read_batch(batch)
    with torch.no_grad():
        vectors = model.item_vectors(inputs)
        for row in (0, 1, 7):
            *history, target = vectors[inputs.positions[row].long()]
            real = [item for item, there in zip(history, inputs.mask[row], strict=True) if there]
            distance = (target - sum(real, torch.zeros_like(target)) / len(history)).square().sum().sqrt()
            levels = [model.embedding_layer({name: inputs.user[name][row : row + 1]}) for name in inputs.user]
            logit = model.row(torch.cat(levels, dim=-1).flatten()) - distance
            torch.testing.assert_close(predicted[row], logit.sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.documented("docs/guide.md", "Your own model")
def test_the_guides_model(documented):
    """Its lines run as they stand there."""
    [block] = documented.blocks
    namespace = documented.execute(block, __package__="model_zoo")
    model, batch = make(namespace["Tower"], embedding_dim=4).eval(), make_batch()
    with torch.no_grad():
        logit = model.mlp(model.fields(model.read_batch(batch)).flatten(1))
    assert scores(model, batch).equal(logit.sigmoid())
    assert len(model.mlp.mlp) == 5  # two hidden layers and the logit


def test_the_weights_are_those_of_fuxictrs_calls():
    """The seed gives what it gave when constructors ended in these calls: FuxiCTR's models are made so."""
    torch.manual_seed(3)
    by_hand = nn.Module.__new__(Plain)  # no metaclass: only the constructor
    by_hand.__init__(make_feature_map(FEATURES))
    by_hand.reset_parameters()
    for name, values in make(Plain).state_dict().items():
        assert values.equal(by_hand.state_dict()[name]), name


def test_a_constructor_in_fuxictrs_way_is_left_to_itself():
    model, plain = make(InFuxiCTRsWay), make(Plain)
    assert model.calls == 1
    for name, values in plain.state_dict().items():
        assert values.equal(model.state_dict()[name]), name
    assert learning_rate(model) == 0.5
    assert (make(WithItsOwnWeights).linear.weight == 3.0).all()


@pytest.mark.parametrize("model_class", [Plain, InFuxiCTRsWay, WithItsOwnWeights])
def test_optimizer_loss_and_learning_rate_are_settings(model_class):
    model = make(model_class, optimizer="SGD", loss="mse_loss", learning_rate=0.25)
    assert type(model.optimizer) is torch.optim.SGD
    assert model.loss_fn is torch.nn.functional.mse_loss
    assert learning_rate(model) == 0.25


def test_a_default_of_a_parent_counts():
    assert learning_rate(make(Grandchild)) == 5e-4
    assert learning_rate(make(Grandchild, learning_rate=0.125)) == 0.125


def test_compile_may_be_called_again():
    model = make(Plain)
    model.compile("Adagrad", "binary_crossentropy", 0.03)
    assert type(model.optimizer) is torch.optim.Adagrad
    assert learning_rate(model) == 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model_class", [Plain, InFuxiCTRsWay])
def test_adagrads_sums_are_where_the_weights_are(model_class):
    model = make(model_class, optimizer="Adagrad", gpu=0)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert {state["sum"].device.type for state in model.optimizer.state.values()} == {"cuda"}


@pytest.mark.parametrize("name", SIZES)
def test_signatures_show_the_constructors(name):
    shown = inspect.signature(MODELS[name])
    assert list(shown.parameters) == list(inspect.signature(MODELS[name].__init__).parameters)[1:]


def test_every_model_says_what_it_is_trained_with():
    for name, sizes in SIZES.items():
        model = make_model((name, sizes), optimizer="Adagrad", learning_rate=0.125)
        assert learning_rate(model) == 0.125, name
        assert type(model.optimizer) is torch.optim.Adagrad, name
        assert model.model_id == name


def test_fuxictrs_lines_train_a_model(dataset, tmp_path):
    """What published scripts do: the model from the params, then fit with the params."""
    params = {**load_params(dataset, "FiBiNET_test", model_zoo), "model_root": str(tmp_path)}
    seed_everything(params["seed"])
    feature_map = build_feature_map(params)
    model = model_zoo.FiBiNET(feature_map, **params)
    train = MMCTRDataLoader(feature_map, params["train_data"], split="train", **params)
    valid = MMCTRDataLoader(feature_map, params["valid_data"], split="valid", **{**params, "shuffle": False})
    before = model.evaluate(valid)["AUC"]
    model.fit(train, validation_data=valid, **params)
    assert model.evaluate(valid)["AUC"] > before
    expected = model.predict(valid)
    again = model_zoo.FiBiNET(feature_map, **params)
    again.load_weights(model.checkpoint)
    assert (again.predict(valid) == expected).all()


def test_din_att6_reads_levels_that_no_config_asks_for(dataset):
    """Its class has history_levels on; the table is made of what the model asks for, not of the YAML."""
    params = load_params(dataset, "FiBiNET_test", model_zoo)
    assert "history_levels" not in params
    feature_map = build_feature_map(params)
    sizes = {**SIZES["DIN_att6"], "embedding_dim": 8}
    model = model_zoo.DIN_att6(feature_map, **sizes).eval()
    table = load_item_table(params["item_info"], model.item_side_features(), params["item_feature"])
    assert {"likes_level", "views_level"} <= set(table.columns)
    loader = MMCTRDataLoader(feature_map, params["train_data"], **{**params, "item_info": table})
    assert scores(model, next(iter(loader))).isfinite().all()


ATTACK = "__import__('pathlib').Path('{}').touch()"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("feature", "key"),
    [
        ("item_tags", "feature_encoder"),
        ("item_id", "feature_encoder"),
        ("item_emb_d128", "feature_encoder"),
        ("item_id", "embedding_initializer"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_no_text_of_a_feature_map_is_run(name, feature, key, wrapped, tmp_path):
    attack = ATTACK.format(tmp_path / "owned")
    value = [attack] if wrapped and key == "feature_encoder" else attack
    features = {**SIZES[name].get("features", FEATURES), feature: {**FEATURES[feature], key: value}}
    with pytest.raises(UserError, match=f"feature {feature}: {key} is .*__import__.*expected"):
        make_model((name, {**SIZES[name], "features": features}))
    assert not list(tmp_path.iterdir())


def test_tables_apart_begin_as_their_neighbours():
    """A feature of share_embedding has a table of its own where none are shared, or the other feature has none."""
    shared = {**FEATURES, "item_tags": {**FEATURES["item_tags"], "share_embedding": "likes_level"}}
    shared["views_level"] = {**FEATURES["views_level"], "share_embedding": "likes_level"}
    user_tags = {**FEATURES["item_tags"], "source": "user", "share_embedding": "item_tags"}
    compared = {"similarity_fields": True, "similarity_only": ["item_tags"]}
    found = [
        model_zoo.LR(make_feature_map(shared)).history_layer,
        model_zoo.FM(make_feature_map(shared)).lr_layer,
        model_zoo.FinalMLP(make_feature_map(shared), fs1_context=["views_level"]).gate1,
        model_zoo.FM(make_feature_map({**FEATURES, "user_tags": user_tags}), **compared).embedding_layer,
    ]
    for module, name in zip(found, ["item_tags", "views_level", "views_level", "user_tags"], strict=True):
        (layer,) = [part for part in module.modules() if type(part) is FeatureEmbeddingDict]
        weights = layer.embedding_layers[name].weight
        assert not weights[0].any()
        assert 0.2e-4 < weights[1:].std() < 3e-4


def test_tables_that_are_shared_stay_one_and_are_initialised_once():
    features = {**FEATURES, "views_level": {**FEATURES["views_level"], "share_embedding": "likes_level"}}
    torch.manual_seed(3)
    model = model_zoo.AutoInt(make_feature_map(features))
    tables = model.embedding_layer.embedding_layer.embedding_layers
    assert tables["views_level"] is tables["likes_level"]
    before = torch.get_rng_state()
    initialise_own_tables(model)
    assert before.equal(torch.get_rng_state())


def test_no_text_of_a_setting_is_run(tmp_path):
    attack = ATTACK.format(tmp_path / "owned")
    with pytest.raises(UserError, match=r"embedding_initializer is .*__import__"):
        make_model(("FM", {"embedding_initializer": attack}))
    for loss in (f"x if 0 else {attack}", attack):
        with pytest.raises(UserError, match=r"loss is .*__import__.* expected the name of a loss"):
            make_model(("FM", {"loss": loss}))
    assert not list(tmp_path.iterdir())


def test_a_sequence_without_encoder_is_refused():
    tags = {key: value for key, value in FEATURES["item_tags"].items() if key != "feature_encoder"}
    with pytest.raises(UserError, match=r"feature item_tags: feature_encoder is None, expected layers.MaskedAverage"):
        make_model(("FM", {"features": {**FEATURES, "item_tags": tags}}))


def test_a_feature_map_of_meta_columns_is_refused():
    with pytest.raises(UserError, match="no features to score by, only user_id, item_seq as meta"):
        make_model(("FM", {"features": {name: FEATURES[name] for name in ("user_id", "item_seq")}}))


def test_fuxictrs_default_initializer_is_taken():
    model = make_model(("FM", {"embedding_initializer": "partial(nn.init.normal_, std=1e-4)"}))
    assert scores(model, make_batch()).isfinite().all()

"""The layers of the multimodal models against slow, obvious forms of their papers' equations, and what they ask for."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, make_feature_map
from test_model_contract import (
    FEATURES,
    MODALITIES,
    MODELS,
    QARM_FEATURES,
    SIZES,
    make_batch,
    make_model,
    scores,
    with_item,
)
from test_rankers import TOLERANCE, awake

import model_zoo
from mm_fibinet import settings
from mm_fibinet.any_model import make_model as make_run_model
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.fuxictr_adapter import penalties
from mm_fibinet.settings import load_params
from mm_fibinet.table_optimizer import set_table_rate
from model_zoo.marn import ModalityParts, cross_entropy, reverse_gradient
from model_zoo.modality_fusion import LowRankFusion
from model_zoo.naml import AdditiveAttention
from model_zoo.qarm import CodeEmbedding

MULTIMODAL = ["DMF", "LMF", "MAKE", "MARN", "MUSE", "NAML"]


@torch.no_grad()
def test_lmf_is_a_linear_map_of_the_outer_product():
    fusion = awake(LowRankFusion([2, 3, 4], output_dim=5, num_ranks=3))
    vectors = [torch.randn(6, dim) for dim in (2, 3, 4)]
    extended = [torch.cat([v, torch.ones(6, 1)], dim=1) for v in vectors]
    for row in range(6):
        expected = fusion.bias.clone()
        for i, j, k in itertools.product(range(3), range(4), range(5)):  # each element of the outer product
            element = extended[0][row, i] * extended[1][row, j] * extended[2][row, k]
            for r, weight in enumerate(fusion.rank_weights[0]):
                expected += (
                    element * weight * fusion.factors[0][r, i] * fusion.factors[1][r, j] * fusion.factors[2][r, k]
                )
        torch.testing.assert_close(fusion(vectors)[row], expected, rtol=1e-4, atol=1e-4)


def test_lmf_fuses_each_column_of_target_and_history_and_the_rest():
    model = make_model(("LMF", SIZES["LMF"]), features=MODALITIES, modality_features=["img_emb_d128", "item_emb_d128"])
    names = [*model.field_features, *model.pooled_features]
    groups = [[names[place] for place in group] for group in model.groups]
    assert groups[:2] == [["img_emb_d128"] * 2, ["item_emb_d128"] * 2]
    assert sorted(groups[2]) == sorted(["likes_level", "views_level", *["item_id", "item_tags"] * 2])


def test_lmf_modalities_have_the_first_of_several_activations():
    """One a layer of hidden_units, which need not be as many as the one layer of a modality's network."""
    model = make_model(("LMF", {"hidden_units": [8, 4], "hidden_activations": ["Tanh", "ReLU"]}))
    of_networks = {type(layer) for network in model.networks for layer in network.mlp[1::2]}
    assert of_networks == {torch.nn.Tanh}
    assert [type(layer) for layer in model.dnn.mlp[1::2]] == [torch.nn.Tanh, torch.nn.ReLU]


@torch.no_grad()
def test_naml_attention_is_a_weighted_sum():
    attention = awake(AdditiveAttention(3, query_dim=4))
    vectors = torch.randn(5, 6, 3)
    for row in vectors:
        raw = torch.stack([(attention.query.weight[0] * torch.tanh(attention.hidden(x))).sum() for x in row])
        weights = raw.exp() / raw.exp().sum()
        expected = sum(w * x for w, x in zip(weights, row, strict=True))
        torch.testing.assert_close(attention(row.unsqueeze(0))[0], expected, **TOLERANCE)


@torch.no_grad()
def test_naml_reads_an_item_once_as_at_each_position():
    attention = awake(AdditiveAttention(3, query_dim=4))
    items, positions = torch.randn(7, 3), torch.randint(0, 7, (4, 5))
    mask = torch.rand(4, 5) < 0.5
    mask[0], mask[1] = False, True
    pooled = attention.over_positions(items, positions, mask)
    assert pooled[0].abs().max() == 0
    for row in range(1, 4):
        real = items[positions[row][mask[row]]]
        torch.testing.assert_close(pooled[row], attention(real.unsqueeze(0))[0], **TOLERANCE)


@torch.no_grad()
def test_naml_score_is_the_product_of_user_and_item_plus_an_mlp():
    model, batch = make_model(("NAML", SIZES["NAML"])), make_batch()
    inputs = model.read_batch(batch)
    vectors = model.item_vectors(inputs)
    at = {name: i * 8 for i, name in enumerate(("item_id", "item_tags", "item_emb_d128"))}
    views = torch.stack(
        [
            torch.relu(model.views[i](vectors[:, first : first + width]))
            for i, (first, width) in enumerate([(at["item_id"], 8), (at["item_tags"], 8), (at["item_emb_d128"], 16)])
        ],
        dim=1,
    )
    items = model.view_attention(views)
    user = model.history_attention.over_positions(items, inputs.history, inputs.mask)
    target = items[inputs.target]
    row = model.row_vectors(inputs, vectors, vectors[inputs.target])
    logit = (user * target).sum(1, keepdim=True) + model.dnn(torch.cat([row, target], dim=1))
    torch.testing.assert_close(scores(model, batch), logit.sigmoid(), **TOLERANCE)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_without_an_embedding_of_the_items_it_says_so(name):
    features = {name: spec for name, spec in FEATURES.items() if name != "item_emb_d128"}
    with pytest.raises(UserError, match=f"{name} reads embeddings of the items, but the feature map has no feature"):
        MODELS[name](make_feature_map(features), **SIZES[name])
    with pytest.raises(UserError, match=r"modality_features is \['item_tags'\], expected .* here of item_emb_d128"):
        MODELS[name](make_feature_map(FEATURES), modality_features=["item_tags"], **SIZES[name])


@torch.no_grad()
def test_marn_item_is_its_weighed_specific_parts_and_the_mean_of_the_invariant_ones():
    parts = awake(ModalityParts([2, 3], dim=4))
    items = torch.randn(5, 5)
    specific, invariant = parts(items)
    for row, item in enumerate(items):
        expected, shared = torch.zeros(4), []
        for m, vector in enumerate((item[:2], item[2:])):
            own = torch.relu(parts.specific[m](vector))
            expected += torch.tanh(parts.attention[m](own)) * own
            shared.append(torch.relu(parts.invariant(parts.common[m](vector))))
        expected += sum(shared) / 2
        torch.testing.assert_close(parts.combine(specific, invariant)[row], expected, **TOLERANCE)


def test_marn_loss_has_both_discriminators_and_the_specific_one():
    model, batch = make_model(("MARN", {**SIZES["MARN"], "adversarial_weight": 0.3})), make_batch()
    output = model(batch)
    label = model.get_labels(batch)
    expected = 0.0
    for row in range(len(label)):
        for m in range(3):
            first = model.first_discriminator(output["invariant"][row, m]).softmax(0)[m]
            second = model.discriminator(output["invariant"][row, m]).softmax(0)[m]
            known = model.discriminator(output["specific"][row, m]).softmax(0)[m]
            expected -= (first.log() + (1 - first) * second.log() + known.log()).item() / (3 * len(label))
    clicks = F.binary_cross_entropy(output["y_pred"], label)
    torch.testing.assert_close(model.add_loss(output, label), clicks + 0.3 * expected, rtol=0, atol=1e-4)


def test_marn_trains_the_common_map_against_the_discriminator():
    """A step down the loss makes the discriminator surer of the specific parts and less sure of the invariant ones."""
    values = torch.randn(4, requires_grad=True)
    reverse_gradient(values).square().sum().backward()
    assert reverse_gradient(values).equal(values)
    torch.testing.assert_close(values.grad, -2 * values.detach())

    model, batch = make_model(("MARN", SIZES["MARN"])), make_batch()
    output = model(batch)
    label = model.get_labels(batch)
    (model.add_loss(output, label) - MODELS["DIN"].add_loss(model, output, label)).backward()

    def sureness(part):
        return -cross_entropy(model.discriminator(model(batch)[part]).log_softmax(dim=-1)).item()

    before = {part: sureness(part) for part in ("specific", "invariant")}
    with torch.no_grad():
        for layer in (model.parts.specific, model.parts.invariant):
            for parameter in layer.parameters():
                parameter -= parameter.grad
    assert sureness("specific") > before["specific"]
    assert sureness("invariant") < before["invariant"]


def test_marn_needs_two_modalities():
    features = {name: spec for name, spec in FEATURES.items() if name not in ("item_id", "item_tags")}
    with pytest.raises(UserError, match="MARN tells modalities apart, but item_emb_d128 is the only feature"):
        MODELS["MARN"](make_feature_map(features), **SIZES["MARN"])


@torch.no_grad()
def test_qarm_vector_is_its_codes_rows_side_by_side():
    embedding = awake(CodeEmbedding(num_codes=9, dim=2))
    codes = torch.tensor([[1, 0, 8], [0, 4, 6]])
    rows = embedding.table.weight
    for item, expected in enumerate([[rows[1], None, rows[8]], [None, rows[4], rows[6]]]):
        vectors = torch.cat([torch.zeros(2) if vector is None else vector for vector in expected])
        assert embedding(codes)[item].equal(vectors)


@torch.no_grad()
def test_qarm_reads_codes_of_target_and_history():
    model, batch = make_model(("QARM", SIZES["QARM"])), make_batch()
    expected = scores(model, batch)
    codes = batch.item_table["item_codes"]
    targets = batch.item_index[:, -1].long().unique()
    history = torch.tensor([item for item in range(1, len(codes)) if item not in set(targets.tolist())])
    for items in (targets, history):
        moved = (scores(model, with_item(batch, items, item_codes=codes[items] % 7 + 1)) - expected).abs().squeeze(1)
        has_them = torch.isin(batch.item_index, items.int()).any(dim=1)
        assert (moved[has_them] > 1e-6).float().mean() > 0.5
        assert (moved[~has_them] == 0).all()
    assert "item_codes" not in model.vector_features  # no mean of its codes


def test_qarm_codes_are_a_table_as_any_other():
    """embedding_regularizer and table_learning_rate are of it, net_regularizer and learning_rate are not."""
    regularizers = {"embedding_regularizer": 0.5, "net_regularizer": 0.25}
    model = make_model(("QARM", SIZES["QARM"]), **regularizers)
    found = {weight: {id(part) for part in parameters} for _, weight, parameters in penalties(model)}
    tables = model.embedding_layer.embedding_layer
    expected = {id(part) for part in (*tables.parameters(), model.codes.table.weight)}
    assert found == {0.5: expected, 0.25: {id(part) for part in model.parameters()} - expected}
    set_table_rate(model, 0.125)
    rates = {id(part): group["lr"] for group in model.optimizer.param_groups for part in group["params"]}
    assert rates[id(model.codes.table.weight)] == rates[id(tables.embedding_layers["item_id"].weight)] == 0.125
    assert rates[id(model.dnn.mlp[0].weight)] == 0.01


def test_qarm_without_codes_says_what_it_needs():
    with pytest.raises(UserError, match="QARM reads codes of the items, but item_codes is no feature of source item"):
        MODELS["QARM"](make_feature_map(FEATURES))
    with pytest.raises(UserError, match="but item_emb_d128 is no feature of source item and of type sequence"):
        MODELS["QARM"](make_feature_map(FEATURES), code_feature="item_emb_d128")


@torch.no_grad()
def test_muse_reads_the_nearest_items_alone():
    model, batch = make_model(("MUSE", {**SIZES["MUSE"], "content_search_len": 2})), make_batch()
    vectors = F.normalize(batch.item_table["item_emb_d128"], dim=1)
    nearest = batch.item_index.clone()
    for row in nearest:
        near = {place: float(vectors[row[place]] @ vectors[row[-1]]) for place in range(len(row) - 1) if row[place]}
        for place in sorted(near, key=near.get)[:-2]:
            row[place] = 0
    assert (nearest != batch.item_index).any(dim=1).float().mean() > 0.3
    torch.testing.assert_close(scores(model, batch._replace(item_index=nearest)), scores(model, batch), **TOLERANCE)


def test_muse_compares_all_embeddings_or_those_that_are_named():
    model = make_model(("MUSE", SIZES["MUSE"]), features=MODALITIES)
    assert model.content_search == "item_emb_d128"
    assert model.interest.columns["simtier"] == model.interest.columns["sa_ta"] == ["item_emb_d128", "img_emb_d128"]
    model = make_model(
        ("MUSE", SIZES["MUSE"]), features=MODALITIES, modality_features=["img_emb_d128"], sa_ta=["item_emb_d128"]
    )
    assert (model.content_search, model.interest.columns["simtier"]) == ("img_emb_d128", ["img_emb_d128"])
    assert model.interest.columns["sa_ta"] == ["item_emb_d128"]


@torch.no_grad()
def test_dmf_adds_its_two_readings_by_a_learned_weight():
    model, batch = make_model(("DMF", SIZES["DMF"])), make_batch()
    inputs = model.read_batch(batch)
    items = model.item_vectors(inputs)
    target = items[inputs.target]
    raw = F.normalize(inputs.items["item_emb_d128"], dim=1)
    cosine = (raw[inputs.history] * raw[inputs.target].unsqueeze(1)).sum(-1).clamp(-1, 1)
    by_content = model.by_content(model.histograms[0](cosine, inputs.mask))
    by_ids = model.by_ids(target, items, inputs.history, inputs.mask, [cosine])
    share = 1 / (1 + (-model.balance).exp())
    interest = share * by_ids + (1 - share) * by_content
    logit = model.dnn(torch.cat([model.row_vectors(inputs, items, target), target, interest], dim=1))
    torch.testing.assert_close(scores(model, batch), logit.sigmoid(), **TOLERANCE)


def test_make_trains_extractor_and_ranker_apart():
    model, batch = make_model(("MAKE", SIZES["MAKE"])), make_batch()
    label = model.get_labels(batch)
    F.binary_cross_entropy(model(batch)["y_pred"], label).backward()
    assert all(p.grad is None for p in model.extractor.parameters())
    assert model.dnn.mlp[0].weight.grad.abs().max() > 0
    model.zero_grad()
    output = model(batch)
    F.binary_cross_entropy(output["extractor_pred"], label).backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.startswith("extractor.") for name in alone)
    both = sum(F.binary_cross_entropy(model(batch)[name], label) for name in ("y_pred", "extractor_pred"))
    torch.testing.assert_close(model.add_loss(model(batch), label), both)


@torch.no_grad()
def test_make_extractor_reads_content_alone():
    model, batch = make_model(("MAKE", SIZES["MAKE"])), make_batch()
    before = model(batch)["extractor_pred"]
    other = with_item(batch, slice(1, None), item_id=1, item_tags=torch.tensor([1, 2, 3, 4, 5]))
    assert model(other)["extractor_pred"].equal(before)
    scaled = with_item(batch, slice(1, None), item_emb_d128=batch.item_table["item_emb_d128"][1:] * 3)
    torch.testing.assert_close(model(scaled)["extractor_pred"], before, **TOLERANCE)


def test_a_column_of_item_info_alone_is_a_modality_or_codes(dataset):
    """The entry of the data set need not name it."""
    params = load_params(str(dataset), "FiBiNET_test", model_zoo, [])
    params["feature_cols"] = [column for column in params["feature_cols"] if column["name"] != "item_emb_d16"]
    assert "item_emb_d16" not in build_feature_map(params).features
    features = build_feature_map({**params, "modality_features": ["item_emb_d16"]}).features
    assert features["item_emb_d16"]["type"] == "embedding" and features["item_emb_d16"]["pretrain_dim"] == 16
    params["feature_cols"] = [column for column in params["feature_cols"] if column["name"] != "item_tags"]
    features = build_feature_map({**params, "code_feature": "item_tags"}).features
    assert features["item_tags"]["type"] == "sequence" and features["item_tags"]["source"] == "item"
    for setting, value in (("modality_features", ["sound_emb"]), ("code_feature", "sound_codes")):
        with pytest.raises(UserError, match=f"{setting} has 'sound_.*item_info.parquet has item_id, item_tags"):
            build_feature_map({**params, setting: value})


@pytest.fixture
def config_once(monkeypatch):
    """The project's config folder, whose files are read once for all tests."""
    monkeypatch.setattr(settings, "read_yaml", lambda *args: copy.deepcopy(read_yaml_once(*args)))
    return str(ROOT / "config")


read_yaml_once = functools.cache(settings.read_yaml)


@pytest.mark.parametrize("name", [*MULTIMODAL, "HSTU", "OneTrans", "QARM", "RankMixer", "WuKong"])
def test_its_experiments_make_it(name, config_once, monkeypatch):
    """Each size of each model, on a feature map that has what the experiment names."""
    for step in ("model_to_device", "compile"):  # of weights without values: RankMixer has 100 million
        monkeypatch.setattr(MODELS[name], step, lambda *args: None)
    for size in ("demo", "small", "MicroLens_1M_x1"):
        params = load_params(config_once, f"{name}_{size}", model_zoo, [])
        used = params.get("use_features") or list(FEATURES)
        features = {feature: dict(spec) for feature, spec in QARM_FEATURES.items() if feature in used}
        for modality in params.get("modality_features", ()):
            features[modality] = {"type": "embedding", "source": "item", "pretrain_dim": 128}
        if name == "QARM":
            features["item_codes"] = QARM_FEATURES["item_codes"]
        with torch.device("meta"):
            model = make_run_model(MODELS[name], make_feature_map(features), params)
        assert type(model) is MODELS[name]
        assert {*model.vector_features, *model.compared_features} >= set(params.get("modality_features", ()))

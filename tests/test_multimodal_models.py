"""The layers of the multimodal models against slow, obvious forms of their papers' equations, and what they ask for."""

import itertools

import pytest
import torch
from conftest import make_feature_map
from test_model_contract import FEATURES, MODELS, SIZES, WIDTH, make_batch, make_model, scores
from test_rankers import TOLERANCE, awake

from mm_fibinet.errors import UserError
from model_zoo.lmf import LowRankFusion
from model_zoo.naml import AdditiveAttention

MULTIMODAL = ["LMF", "NAML"]
IMAGE = {"type": "embedding", "source": "item", "pretrain_dim": WIDTH}
TWO = {**FEATURES, "img_emb_d128": IMAGE}


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
    model = make_model(("LMF", SIZES["LMF"]), features=TWO, modality_features=["img_emb_d128", "item_emb_d128"])
    names = [*model.field_features, *model.pooled_features]
    groups = [[names[place] for place in group] for group in model.groups]
    assert groups[:2] == [["img_emb_d128"] * 2, ["item_emb_d128"] * 2]
    assert sorted(groups[2]) == sorted(["likes_level", "views_level", *["item_id", "item_tags"] * 2])


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

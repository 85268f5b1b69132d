"""FiBiNET's low-rank fusion of the items' embeddings: row by row, item by item, and beside the interactions alone."""

import pytest
import torch
from conftest import make_feature_map
from test_model_contract import LENGTH, MODALITIES, make_batch, make_model

import model_zoo
from mm_fibinet.errors import UserError

COLUMNS = ["img_emb_d128", "item_emb_d128"]
SETTINGS = {"low_rank_fusion": COLUMNS, "low_rank_fusion_dim": 5, "low_rank_fusion_ranks": 3, "hidden_units": [16]}


def fused(**settings):
    return make_model(("FiBiNET", SETTINGS), features=MODALITIES, **settings)


def relu_layer(block, vector):
    """The first layer of an MLP."""
    return (block.mlp[0].weight @ vector + block.mlp[0].bias).clamp(min=0)


def fusion_of_a_row(fusion, head, batch, row, fields):
    """A head's logit of one row, from its items one by one."""
    items = batch.item_table
    *history, target = batch.item_index[row].tolist()
    read = []
    for column, project in zip(COLUMNS, fusion.projections, strict=True):
        vectors = [project.weight @ items[column][item] for item in history if item > 0]
        mean = sum(vectors) / len(vectors) if vectors else torch.zeros(8)
        read.append(torch.cat([project.weight @ items[column][target], mean]))
    hidden = [relu_layer(net, part) for net, part in zip(head.networks, [*read, fields[row].flatten()], strict=True)]
    low_rank, total = head.fusion, head.fusion.bias.clone()
    for rank, weight in enumerate(low_rank.rank_weights[0]):
        product = torch.ones(5)
        for vector, factor in zip(hidden, low_rank.factors, strict=True):
            product = product * (torch.cat([vector, torch.ones(1)]) @ factor[rank])
        total = total + weight * product
    top = head.dnn.mlp
    return top[-1].weight @ relu_layer(head.dnn, total) + top[-1].bias


@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_the_fusion_of_each_row(heads):
    model, batch = fused(low_rank_fusion_heads=heads), make_batch()
    inputs = model.read_batch(batch)
    fields = model.fields(inputs)
    fusion = model.modality_fusion
    logits = fusion(inputs.modalities, fields)
    assert batch.mask[0].sum() == 0 and batch.mask[1].sum() == LENGTH
    for row in range(20):
        expected = torch.cat([fusion_of_a_row(fusion, head, batch, row, fields) for head in fusion.heads])
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_a_score_is_the_mean_of_the_heads_and_each_has_a_loss():
    model, batch = fused(low_rank_fusion_heads=3), make_batch()
    model.eval()
    labels = model.get_labels(batch)
    outputs = model(batch)
    of_each, losses = [], []
    for head in range(3):
        alone = fused()
        theirs = {
            name.replace(f"heads.{head}.", "heads.0."): value
            for name, value in model.state_dict().items()
            if "heads." not in name or f"heads.{head}." in name
        }
        alone.load_state_dict(theirs, strict=True)
        score = alone.eval()(batch)["y_pred"].double()
        of_each.append(score)
        losses += [-(labels * score.log() + (1 - labels) * (1 - score).log()).mean()]
    torch.testing.assert_close(outputs["y_pred"].double(), sum(of_each) / 3)
    assert (of_each[0] - of_each[1]).abs().max() > 1e-4
    torch.testing.assert_close(model.add_loss(outputs, labels).double(), sum(losses) / 3)


def test_heads_learn_apart():
    """The gradient of a head is a third of what it has alone: nothing of the others' scores is in it."""
    model, batch = fused(low_rank_fusion_heads=3).eval(), make_batch()
    labels = model.get_labels(batch)
    model.add_loss(model(batch), labels).backward()
    second = model.modality_fusion.heads[1].dnn.mlp[-1].weight
    scores = model(batch)["heads"][:, 1:2]
    (alone,) = torch.autograd.grad(torch.nn.functional.binary_cross_entropy(scores, labels), second)
    torch.testing.assert_close(second.grad, alone / 3)


@torch.no_grad()
def test_the_logit_is_that_of_the_interactions_plus_the_fusions():
    compared = {"similarity_fields": True, "similarity_only": COLUMNS}
    model, batch = fused(**compared), make_batch()
    alone = make_model(("FiBiNET", {"hidden_units": [16], **compared}), features=MODALITIES)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("modality_fusion.")}
    alone.load_state_dict(weights, strict=True)
    inputs = model.read_batch(batch)
    fields = model.fields(inputs)
    torch.testing.assert_close(fields, alone.fields(alone.read_batch(batch)))
    of_both = model(batch)["y_pred"].logit()
    expected = alone(batch)["y_pred"].logit() + model.modality_fusion(inputs.modalities, fields)
    torch.testing.assert_close(of_both, expected, rtol=1e-4, atol=1e-4)


def test_ranks_start_alike():
    (head,) = fused().modality_fusion.heads
    assert torch.equal(head.fusion.rank_weights, torch.full((1, 3), 3**-0.5))


def test_a_model_that_makes_its_scores_itself_is_refused():
    class Own(model_zoo.DeepFM):
        def forward(self, inputs):
            batch = self.read_batch(inputs)
            return {"y_pred": self.compute_logit(batch, *self.logit_inputs(batch)).sigmoid()}

    features = make_feature_map(MODALITIES)
    Own(features)
    with pytest.raises(UserError, match="but Own has a forward of its own; leave one of the two out"):
        Own(features, low_rank_fusion=COLUMNS)


def test_fused_columns_are_no_fields_and_are_compared_where_they_are_named():
    model = fused()
    assert not {*model.field_features, *model.pooled_features} & set(COLUMNS)
    assert model.similarity is None
    assert fused(similarity_fields=True).similarity.embeddings == []
    assert fused(similarity_fields=True, similarity_only=COLUMNS[1:]).similarity.embeddings == COLUMNS[1:]


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        (["item_tags"], r"low_rank_fusion is \['item_tags'\], expected features of source item and of type embedding"),
        (["item_emb_d128"] * 2, "low_rank_fusion is .*, each once, here of item_emb_d128, img_emb_d128"),
    ],
)
def test_what_cannot_be_fused(columns, error):
    with pytest.raises(UserError, match=error):
        fused(low_rank_fusion=columns)

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


def relu_layer(layer, head, vector):
    """A head's linear layer, whose weights have the outputs first, and ReLU."""
    return (layer.weight[head] @ vector + layer.bias[head]).clamp(min=0)


def fusion_of_a_row(fusion, head, batch, row, fields):
    """A head's logit of one row, from its items one by one."""
    items = batch.item_table
    *history, target = batch.item_index[row].tolist()
    read = []
    for column, project in zip(COLUMNS, fusion.projections, strict=True):
        vectors = [project.weight @ items[column][item] for item in history if item > 0]
        mean = sum(vectors) / len(vectors) if vectors else torch.zeros(8)
        read.append(torch.cat([project.weight @ items[column][target], mean]))
    heads, low_rank = fusion.heads, fusion.heads.fusion
    read = zip(heads.networks, [*read, fields[row].flatten()], strict=True)
    hidden = [relu_layer(network, head, part) for network, part in read]
    total = low_rank.bias[head].clone()
    for rank, weight in enumerate(low_rank.rank_weights[head]):
        product = torch.ones(5)
        for vector, factor in zip(hidden, low_rank.factors, strict=True):
            product = product * (torch.cat([vector, torch.ones(1)]) @ factor[head, rank])
        total = total + weight * product
    top = (total @ heads.hidden.weight[head] + heads.hidden.bias[head]).clamp(min=0)
    return top @ heads.output.weight[head] + heads.output.bias[head]


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
        expected = torch.cat([fusion_of_a_row(fusion, head, batch, row, fields) for head in range(heads)])
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_a_score_is_the_mean_of_the_heads_and_each_has_a_loss():
    model, batch = fused(low_rank_fusion_heads=3), make_batch()
    model.eval()
    labels = model.get_labels(batch)
    outputs = model(batch)
    of_each, losses = [], []
    for head in range(3):
        alone = fused()
        of_all = model.state_dict()
        theirs = {name: value[head : head + 1] if "heads." in name else value for name, value in of_all.items()}
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
    output = model.modality_fusion.heads.output.weight
    scores = model(batch)["heads"][:, 1:2]
    (alone,) = torch.autograd.grad(torch.nn.functional.binary_cross_entropy(scores, labels), output)
    assert alone[0].abs().max() == 0
    torch.testing.assert_close(output.grad[1], alone[1] / 3)


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
    weights = fused(low_rank_fusion_heads=2).modality_fusion.heads.fusion.rank_weights
    assert torch.equal(weights, torch.full((2, 3), 3**-0.5))


def test_heads_start_apart_and_as_one_alone_would():
    """Xavier's bound on the spread of a weight is that of one head, not of all heads' units side by side."""
    heads = fused(low_rank_fusion_heads=64, low_rank_fusion_dim=32).modality_fusion.heads
    for layer in (*heads.networks, heads.hidden):
        outputs, inputs = layer.weight.shape[1:]
        torch.testing.assert_close(layer.weight.std(), torch.tensor((2 / (outputs + inputs)) ** 0.5), rtol=0.03, atol=0)
        assert (layer.weight[0] - layer.weight[1]).abs().max() > 0.01


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

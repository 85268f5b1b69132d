"""The fast layers equal FuxiCTR's, or their formulas written out: outputs and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_feature_map
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    DIN_Attention,
    LogisticRegression,
    MaskedAveragePooling,
    MaskedSumPooling,
    MLP_Block,
)
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.similarity import cosine_features, history_weights
from model_zoo.autoint import FieldAttention
from model_zoo.base import Inputs, distinct_items, pool_sequence
from model_zoo.cross_attention import RMSNorm, TargetAttention
from model_zoo.finalmlp import BilinearFusion, ContextGate
from model_zoo.gdcn import GatedCrossLayer
from model_zoo.layers import (
    BILINEAR_TYPES,
    BilinearInteraction,
    DINAttention,
    LinearPart,
    masked_softmax,
    mean_pooling,
    sparing,
)
from model_zoo.qin import QuadraticLayer, ReLUTargetAttention
from model_zoo.similarity import SimilarityFields

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ITEMS, BATCH, LENGTH, DIM = 11, 6, 5, 8


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def some_history(empty_row=True):
    """Items [M, W] with a non-zero padding row 0, positions [B, L] padded in front, mask [B, L]; row 0 is full."""
    items = torch.randn(ITEMS, DIM, requires_grad=True)
    positions = torch.randint(1, ITEMS, (BATCH, LENGTH), dtype=torch.int32)
    for row in range(1, BATCH):
        positions[row, :row] = 0
    if not empty_row:
        positions[-1, -1] = 3
    return items, positions, (positions > 0).float()


def gradients(output, *inputs):
    """The gradients of a fixed mixture of the outputs."""
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)


def assert_same(output, expected, inputs, expected_inputs=None):
    """The outputs are close, and their gradients for the inputs."""
    torch.testing.assert_close(output, expected, **CLOSE)
    ours, theirs = gradients(output, *inputs), gradients(expected, *(expected_inputs or inputs))
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, **CLOSE)


@pytest.mark.parametrize("bilinear_type", BILINEAR_TYPES)
def test_bilinear_interaction_is_fuxictrs(bilinear_type):
    ours, theirs = BilinearInteraction(5, DIM, bilinear_type), BilinearInteractionV2(5, DIM, bilinear_type)
    ours.load_state_dict(theirs.state_dict())
    fields = torch.randn(BATCH, 5, DIM, requires_grad=True)
    inputs, expected_inputs = (fields, ours.bilinear_W), (fields, theirs.bilinear_W)
    assert_same(ours(fields), theirs(fields).flatten(1), inputs, expected_inputs)


def test_bilinear_interaction_in_bf16_is_off_by_its_roundings_only():
    """To nearest, a rounding to bf16 is off by 2^-8 of its value at most; sums are of float32.

    The output is rounded 5 times (field, weights, their product, the other field, the product with it), a gradient 4
    times (the two factors, the product with the other field, the sum). The function is a sum of products: with all
    values positive, and so are their gradients, it bounds what each relative error can amount to.
    """
    layer, fields = BilinearInteraction(4, DIM), torch.randn(64, 4, DIM, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(fields)
    assert output.dtype == torch.bfloat16
    mixture = torch.linspace(-1, 1, output.numel()).view_as(output).bfloat16()
    found = [output, *torch.autograd.grad(output, (fields, layer.bilinear_W), mixture)]
    assert [values.dtype for values in found[1:]] == [torch.float32] * 2

    def in_float64(change):
        inputs = [change(x.detach().double()).requires_grad_() for x in (fields, layer.bilinear_W)]
        pairs = enumerate(torch.triu_indices(4, 4, offset=1).t().tolist())
        value = torch.cat([(inputs[0][:, i] @ inputs[1][p]) * inputs[0][:, j] for p, (i, j) in pairs], dim=1)
        return [value, *torch.autograd.grad(value, inputs, change(mixture.double()))]

    for values, exact, bound, roundings in zip(
        found, in_float64(lambda x: x), in_float64(torch.abs), (5, 4, 4), strict=True
    ):
        error = (values.double() - exact).abs()
        assert (error <= 1.02 * roundings * 2**-8 * bound).all()  # 1.02: roundings of roundings, and float32's
        assert error.max() > 0


def test_bilinear_interaction_keeps_its_inputs_only():
    layer, fields = BilinearInteraction(5, DIM), torch.randn(BATCH, 5, DIM, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        layer(fields)
    assert kept == [fields.shape, layer.bilinear_W.shape]


def test_unknown_bilinear_type_is_refused():
    with pytest.raises(UserError, match="bilinear_type is 'field'"):
        BilinearInteraction(3, 4, "field")


@pytest.mark.parametrize("path", ["items alone", "every position"])
@pytest.mark.parametrize("use_softmax", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "Dice"])
def test_din_attention_is_fuxictrs(path, use_softmax, activation, monkeypatch):
    theirs = DIN_Attention(DIM, [16, 4], activation, use_softmax=use_softmax).eval()
    ours = DINAttention(DIM, (16, 4), activation, use_softmax=use_softmax).eval()
    ours.load_state_dict(theirs.state_dict())
    if path != "items alone":
        monkeypatch.setattr(DINAttention, "skips_padding", lambda self, positions: False)
    items, positions, mask = some_history(empty_row=not use_softmax)
    target = torch.randn(BATCH, DIM, requires_grad=True)
    expected = theirs(target, F.embedding(positions, items), mask)
    for kind_of_mask in (mask, mask.bool()):
        inputs, expected_inputs = (target, items, *ours.parameters()), (target, items, *theirs.parameters())
        assert_same(ours(target, items, positions, kind_of_mask), expected, inputs, expected_inputs)


@pytest.mark.parametrize("use_softmax", [False, True])
@pytest.mark.parametrize(("activation", "batch_norm"), [("Dice", False), ("ReLU", True), ("ReLU", False)])
def test_din_attention_trains_as_fuxictrs(activation, batch_norm, use_softmax):
    """A batch norm's statistics are those of all positions, items or padding."""
    theirs = DIN_Attention(DIM, [16, 4], activation, batch_norm=batch_norm, use_softmax=use_softmax).train()
    ours = DINAttention(DIM, (16, 4), activation, batch_norm=batch_norm, use_softmax=use_softmax).train()
    ours.load_state_dict(theirs.state_dict())
    items, positions, mask = some_history(empty_row=not use_softmax)
    target = torch.randn(BATCH, DIM, requires_grad=True)
    output, expected = ours(target, items, positions, mask), theirs(target, F.embedding(positions, items), mask)
    assert_same(output, expected, (target, items, *ours.parameters()), (target, items, *theirs.parameters()))
    for name, values in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, **CLOSE)


@pytest.mark.parametrize("activation", ["ReLU", "Dice"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_sparing_layers_compute_what_the_layers_do(activation, precision):
    layers = MLP_Block(DIM, [16, 4], activation, output_dim=1, dropout_rates=0.4).mlp.train()
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.5)  # Dice's alpha among them
    reference, x = copy.deepcopy(layers), torch.randn(200, DIM, requires_grad=True)
    found, states = [], []
    for compute in (lambda: sparing(layers, x), lambda: reference(x)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found.append(compute())
        states.append(torch.get_rng_state())
    assert torch.equal(*found)
    assert torch.equal(*states)
    ours, theirs = (
        gradients(output.float(), x, *module.parameters())
        for output, module in zip(found, (layers, reference), strict=True)
    )
    tolerance = (
        CLOSE if precision == torch.float32 else {"rtol": 0.02, "atol": 0.02 * max(g.abs().max() for g in theirs)}
    )
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, **tolerance)
    for values, expected in zip(layers.buffers(), reference.buffers(), strict=True):
        assert torch.equal(values, expected)
    with torch.no_grad():
        assert torch.equal(sparing(layers.eval(), x), layers(x))


@pytest.mark.parametrize(("activation", "kept"), [("ReLU", (1, 3)), ("Dice", (4, 6))])
def test_sparing_layers_keep_what_they_say(activation, kept):
    """One tensor [N, 16] of a hidden layer with ReLU and dropout; Dice's x, its norm, the mask and the output."""
    layers = MLP_Block(DIM, [16], activation, output_dim=1, dropout_rates=0.4).mlp.train()
    x = torch.randn(200, DIM)
    wide = [shape for shape in kept_shapes(lambda: sparing(layers, x)) if shape == (200, 16)]
    before = [shape for shape in kept_shapes(lambda: layers(x)) if shape == (200, 16)]
    assert (len(wide), len(before)) == kept


def kept_shapes(compute):
    """The shapes of what autograd keeps, each storage once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t) is None or t, lambda t: t):
        output = compute()  # alive, and so is all that it keeps
    del output
    return [tuple(tensor.shape) for tensor in kept.values()]


@pytest.mark.parametrize("use_softmax", [False, True])
def test_din_attention_without_history_is_zero(use_softmax):
    layer = DINAttention(DIM, (16,), use_softmax=use_softmax)
    items, positions, mask = some_history()
    target = torch.randn(BATCH, DIM)
    assert layer(target, items, positions, mask)[-1].abs().max() == 0
    assert layer(target, items, 0 * positions, 0 * mask).abs().max() == 0
    assert layer(target, items, positions[:, :0], mask[:, :0]).equal(torch.zeros_like(target))


def test_masked_softmax_is_the_softmax_of_what_is_real():
    scores = torch.randn(2, 4, requires_grad=True)
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]])
    weights = masked_softmax(scores, mask)
    expected = torch.zeros(2, 4).index_put(
        (torch.tensor([0, 0]), torch.tensor([1, 3])), scores[0, [1, 3]].softmax(dim=0)
    )
    assert_same(weights, expected, (scores,))


def test_qin_attention_is_its_formula():
    items, positions, mask = some_history()
    layer = ReLUTargetAttention(DIM, 2 * DIM)
    target, history = torch.randn(BATCH, DIM, requires_grad=True), F.embedding(positions, items)
    scores = torch.einsum("ba,bla->bl", layer.W_q(target), layer.W_k(history)) / (2 * DIM) ** 0.5
    attended = torch.einsum("bl,bla->ba", (scores * mask).relu(), layer.W_v(history))
    expected = layer.W_o(attended) + target
    assert_same(layer(target, history, mask), expected, (target, items, *layer.parameters()))


def test_quadratic_layer_is_its_formula():
    layer, x = QuadraticLayer(DIM, 3, 0.0), torch.randn(BATCH, DIM)
    rows = layer.linear[0].weight.view(3, DIM, DIM) @ x.T  # [R, D, B]
    expected = x * (rows.sum(dim=0).T + layer.linear[0].bias.view(3, DIM).sum(dim=0))
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_din_att6_attention_is_torchs():
    items, positions, mask = some_history(empty_row=False)
    layer = TargetAttention(DIM, 0.0, norm=nn.Identity())
    nn.init.normal_(layer.multihead_attn.in_proj_bias)
    target, history = torch.randn(BATCH, DIM, requires_grad=True), F.embedding(positions, items)
    expected, _ = layer.multihead_attn(
        layer.query_proj(target).unsqueeze(0),
        layer.key_proj(history).transpose(0, 1),
        layer.value_proj(history).transpose(0, 1),
        key_padding_mask=mask == 0,
    )
    trainable = [p for p in layer.parameters() if p.requires_grad]
    assert_same(layer(target, history, mask), expected.squeeze(0), (target, items, *trainable))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_field_attention_is_torchs(num_heads):
    layer, fields = FieldAttention(DIM, DIM, num_heads, use_scale=True), torch.randn(BATCH, 5, DIM)
    attended, _ = F.multi_head_attention_forward(
        *[fields.transpose(0, 1)] * 3,
        embed_dim_to_check=DIM,
        num_heads=num_heads,
        in_proj_weight=torch.cat([layer.W_q.weight, layer.W_k.weight, layer.W_v.weight]),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(DIM),
        out_proj_bias=None,
    )
    torch.testing.assert_close(layer(fields), (attended.transpose(0, 1) + layer.W_res(fields)).relu(), **CLOSE)


def test_field_attention_does_not_scale_unless_told():
    layer, fields = FieldAttention(DIM, DIM, 1, use_scale=False), torch.randn(BATCH, 5, DIM)
    weights = (layer.W_q(fields) @ layer.W_k(fields).transpose(1, 2)).softmax(dim=-1)
    torch.testing.assert_close(layer(fields), (weights @ layer.W_v(fields) + layer.W_res(fields)).relu(), **CLOSE)


def test_bilinear_fusion_is_its_formula():
    layer, x, y = BilinearFusion(6, 4, 2), torch.randn(BATCH, 6), torch.randn(BATCH, 4)
    whole = torch.block_diag(*layer.weight.detach())  # heads are blocks of one matrix
    expected = (x @ whole * y).sum(dim=1, keepdim=True) + layer.linear_x(x) + layer.linear_y(y)
    torch.testing.assert_close(layer(x, y), expected, **CLOSE)


def test_context_gate_is_two_where_its_logit_is_large():
    gate = ContextGate(None, [], 3, [4], 2)
    with torch.no_grad():
        gate.gate.mlp[-2].weight.zero_()
        gate.gate.mlp[-2].bias.copy_(torch.tensor([100.0, -100.0]))
    torch.testing.assert_close(gate({}), torch.tensor([[2.0, 0.0]]))


def test_gated_cross_layer_by_hand():
    layer = GatedCrossLayer(2)
    with torch.no_grad():
        layer.cross.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        layer.cross.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.gate.weight.copy_(torch.tensor([[0.0, 0.0], [100.0, 100.0]]))
    out = layer(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(out, torch.tensor([[2 * 3.5 * 0.5 + 1, 3 * 1 * 1 + 1.0]]))


TARGET_FEATURES = {
    "likes_level": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 5},
    "item_tags": {
        "type": "sequence",
        "source": "item",
        "feature_encoder": "layers.MaskedAveragePooling()",
        "padding_idx": 0,
        "max_len": 3,
        "vocab_size": 7,
    },
}
EMBEDDING_FEATURE = {"item_emb": {"type": "embedding", "source": "item", "pretrain_dim": 4, "embedding_dim": 2}}


def target_columns():
    return {
        "likes_level": torch.randint(0, 5, (BATCH,)),
        "item_tags": torch.randint(0, 7, (BATCH, 3)),
        "item_emb": torch.randn(BATCH, 4),
    }


def test_linear_part_is_fuxictrs_without_embedding_fields():
    feature_map = make_feature_map(TARGET_FEATURES)
    ours, theirs = LinearPart(feature_map), LogisticRegression(feature_map, use_bias=False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    columns = target_columns()
    columns.pop("item_emb")
    assert_same(ours(columns), theirs(columns), tuple(ours.parameters()), tuple(theirs.parameters()))


def test_linear_part_adds_one_weight_per_dimension_of_an_embedding_field():
    layer = LinearPart(make_feature_map({**TARGET_FEATURES, **EMBEDDING_FEATURE}))
    columns = target_columns()
    doubled = {**columns, "item_emb": 2 * columns["item_emb"]}
    expected = columns["item_emb"] @ layer.embedding_weights["item_emb"].weight[0]
    torch.testing.assert_close((layer(doubled) - layer(columns)).squeeze(1), expected, **CLOSE)


def test_linear_part_of_embedding_fields_alone():
    layer = LinearPart(make_feature_map({**TARGET_FEATURES, **EMBEDDING_FEATURE}), ["item_emb"])
    columns = target_columns()
    [(name, weights)] = layer.named_parameters()
    assert name == "embedding_weights.item_emb.weight"
    torch.testing.assert_close(layer(columns), columns["item_emb"] @ weights.T, **CLOSE)


def test_linear_part_of_some_features_has_weights_for_these_alone():
    layer = LinearPart(make_feature_map({**TARGET_FEATURES, **EMBEDDING_FEATURE}), ["item_tags"])
    columns = target_columns()
    [(name, table)] = layer.named_parameters()
    assert name.endswith("item_tags.weight")
    nn.init.normal_(table)
    torch.testing.assert_close(layer(columns), table[columns["item_tags"]].sum(dim=1), **CLOSE)


@pytest.mark.parametrize("padding_row", [0, None])
def test_mean_pooling_is_the_mean_of_the_real_items(padding_row):
    items, positions, mask = some_history()
    means = [items[positions[row][positions[row] > 0].long()].mean(dim=0) for row in range(BATCH - 1)]
    expected = torch.stack([*means, torch.zeros(DIM)])  # the last row has no history
    assert_same(mean_pooling(items, positions, mask, padding_row), expected, (items,))


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("padding", ["zero", "trained"])
def test_pool_sequence_is_fuxictrs(mode, padding):
    table = nn.Embedding(7, DIM, padding_idx=0)
    if padding == "trained":
        nn.init.normal_(table.weight)
    ids = torch.tensor([[0, 0, 1, 2], [3, 3, 4, 5], [0, 0, 0, 0], [0, 0, 0, 6]])
    theirs = {"mean": MaskedAveragePooling(), "sum": MaskedSumPooling()}[mode](table(ids))
    ours = pool_sequence(ids, table.weight, mode)
    if padding == "trained":  # FuxiCTR's empty list has a mean, ours too
        assert theirs[2].abs().max() > 0
    assert_same(ours, theirs, (table.weight,))
    assert gradients(ours, table.weight)[0][0].abs().max() == 0


def test_distinct_items_name_each_item_once():
    index = torch.tensor([[0, 5, 2], [5, 5, 9]], dtype=torch.int32)
    items, rows = distinct_items(index, 12)
    assert items.tolist() == [0, 2, 5, 9]
    assert items[rows].equal(index.long())
    items, rows = distinct_items(index[:, 1:], 12)  # without padding it is there all the same
    assert items.tolist() == [0, 2, 5, 9]
    assert items[rows].equal(index[:, 1:].long())


def test_distinct_items_are_those_of_unique():
    index = torch.randint(0, 900, (40, 33), dtype=torch.int32)[:, 1:]  # a part of wider rows, as the loader's
    index[0, 0] = 0
    expected, places = index.unique(return_inverse=True)
    items, rows = distinct_items(index, 1000)
    assert items.equal(expected.long()) and rows.equal(places)
    assert len(items) < 900 and items.dtype == rows.dtype == torch.int64


def test_similarity_fields_compare_the_target_with_the_history():
    items = torch.randn(50, 6)
    items[0] = 0
    tags = torch.randint(0, 6, (50, 3))  # some are there twice, which makes the set no larger
    tags[0] = 0
    levels = torch.randint(0, 11, (50,))
    target = torch.randint(1, 50, (9,))
    history = torch.randint(1, 50, (9, 7))
    history[0] = 0
    history[1, :6] = 0
    batch = Inputs({}, {"e": items, "t": tags, "l": levels}, torch.cat([history, target[:, None]], 1), history > 0, 0)
    features = SimilarityFields(["e"], "t", ["l"], 4).features(batch)
    for row in range(9):
        real = [(h, 0.85**age) for age, h in enumerate(reversed(history[row].tolist())) if h]
        own = set(tags[target[row]].tolist()) - {0}

        def means(values, real=real):  # one value a history item, the newest first
            weights = [weight for _, weight in real]
            recent = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if real else 0.0
            return [sum(values) / max(len(values), 1), recent]

        cosines = [F.cosine_similarity(items[h], items[target[row]], dim=0).item() for h, _ in real]
        nearest = sorted(cosines, reverse=True)[:4]
        sets = [set(tags[h].tolist()) - {0} for h, _ in real]
        difference = [(levels[target[row]] - levels[h]).item() / 10 for h, _ in real]
        mean, recent = means(cosines)
        expected = [
            [mean, sum(nearest) / max(len(nearest), 1), max(nearest, default=0.0), recent],
            [means([float(bool(s & own)) for s in sets])[0], *means([len(s & own) / len(s | own) for s in sets])],
            [*means(difference), *means([abs(d) for d in difference])],
        ]
        for got, want in zip(features, expected, strict=True):
            torch.testing.assert_close(got[row], torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_cosines_of_few_and_of_many_items_are_the_same():
    items = torch.randn(30, 5)
    target, history = torch.randint(0, 30, (8,)), torch.randint(0, 30, (8, 3))
    real = torch.rand(8, 3) < 0.7
    weights = history_weights(real)
    few = cosine_features(items, target, history, real, weights)
    many = cosine_features(torch.cat([items, torch.randn(100, 5)]), target, history, real, weights)
    torch.testing.assert_close(few, many)


def test_rms_norm_in_bf16_has_the_epsilon_of_float32():
    layer, values = RMSNorm(6), torch.randn(4, 6) * 0.01  # squares of 1e-4, far below bfloat16's epsilon
    expected = values / values.square().mean(dim=1, keepdim=True).sqrt()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(values.bfloat16()), expected, atol=0.01, rtol=0.01)

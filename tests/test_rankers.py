"""The layers of WuKong, RankMixer, HSTU and OneTrans against slow, obvious forms of their papers' equations."""

import pytest
import torch
import torch.nn.functional as F
from test_model_contract import SIZES, make_batch, make_model
from torch import nn

from model_zoo.hstu import HSTULayer
from model_zoo.onetrans import OneTransLayer, query_counts
from model_zoo.rankmixer import RankMixerBlock, mix_tokens
from model_zoo.wukong import WuKongLayer

TOLERANCE = {"rtol": 0, "atol": 1e-5}


def awake(module: nn.Module) -> nn.Module:
    """The module in evaluation, with every weight of some size."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def fmb_row_by_row(block, fields):
    """reshape(MLP(LN(flatten(X X^T Y)))) with all F x F dot products made."""
    made = []
    for x in fields:
        y = block.projection
        if block.attention is not None:
            compressed = torch.stack([sum(y[f, c] * x[f] for f in range(len(x))) for c in range(y.shape[1])], dim=1)
            y = block.attention(compressed.reshape(1, -1)).reshape(y.shape)
        products = torch.tensor([[float(a @ b) for b in x] for a in x])
        made.append(block.mlp(block.norm((products @ y).reshape(1, -1))).reshape(block.num_made, -1))
    return torch.stack(made)


@torch.no_grad()
def test_wukong_layer_is_normed_fmb_and_lcb_plus_residual():
    for attentive in (True, False):
        layer = awake(WuKongLayer(5, 4, 2, 3, num_compressed=2, fmb_hidden_units=[6], attentive=attentive))
        fields = torch.randn(7, 5, 4)
        mixed = torch.stack(
            [torch.stack([sum(w * f for w, f in zip(row, x, strict=True)) for row in layer.lcb.weight]) for x in fields]
        )
        made = torch.cat([fmb_row_by_row(layer.fmb, fields), mixed], dim=1)
        expected = F.layer_norm(made + fields, (4,), layer.norm.weight, layer.norm.bias)  # 2 + 3 = 5: no map
        torch.testing.assert_close(layer(fields), expected, **TOLERANCE)


@torch.no_grad()
def test_wukong_residual_is_mapped_to_another_number_of_fields():
    layer = awake(WuKongLayer(6, 4, 2, 1, num_compressed=2, fmb_hidden_units=[6], attentive=True))
    fields = torch.randn(7, 6, 4)
    made = torch.cat([layer.fmb(fields), layer.lcb(fields)], dim=1)
    expected = layer.norm(made + torch.einsum("nf,bfd->bnd", layer.residual.weight, fields))
    torch.testing.assert_close(layer(fields), expected, **TOLERANCE)


def test_rankmixer_token_h_is_made_of_all_heads_h():
    tokens = torch.arange(2 * 3 * 6).view(2, 3, 6)
    first = [[0, 1, 6, 7, 12, 13], [2, 3, 8, 9, 14, 15], [4, 5, 10, 11, 16, 17]]
    assert mix_tokens(tokens).tolist() == [first, [[value + 18 for value in token] for token in first]]
    assert mix_tokens(mix_tokens(tokens)).equal(tokens)  # an exchange


@torch.no_grad()
def test_rankmixer_block_has_a_network_for_each_token():
    block = awake(RankMixerBlock(num_tokens=3, dim=6, ratio=2, dropout=0.5))
    tokens = torch.randn(5, 3, 6)
    into, _, _, out = block.ffn
    for row in range(5):
        for t in range(3):
            mixed = torch.cat([tokens[row, other, 2 * t : 2 * t + 2] for other in range(3)]) + tokens[row, t]
            mixed = F.layer_norm(mixed, (6,), block.mixing_norm.weight, block.mixing_norm.bias)
            hidden = F.gelu(mixed @ into.weight[t] + into.bias[t])
            made = hidden @ out.weight[t] + out.bias[t] + mixed
            expected = F.layer_norm(made, (6,), block.ffn_norm.weight, block.ffn_norm.bias)
            torch.testing.assert_close(block(tokens)[row, t], expected, **TOLERANCE)


def hstu_by_position(layer, hidden, real):
    """Eq. 1-3 for one row, a position, a head and a pair at a time."""
    length, dim = hidden.shape
    width = dim // layer.num_heads
    gate, value, query, key = F.silu(layer.input(layer.input_norm(hidden))).split(dim, dim=1)
    rows = []
    for i in range(length):
        heads = []
        for h in range(layer.num_heads):
            part = slice(h * width, (h + 1) * width)
            total = torch.zeros(width)
            for j in range(i + 1):
                if real[j]:
                    bias = layer.distance_bias[h, min(i - j, layer.max_distance)]
                    total += F.silu(query[i, part] @ key[j, part] + bias) * value[j, part] / real.sum()
            heads.append(total)
        rows.append(hidden[i] + layer.output(layer.output_norm(torch.cat(heads)) * gate[i]))
    return torch.stack(rows)


@torch.no_grad()
def test_hstu_layer_is_pointwise_attention_over_the_past():
    layer = awake(HSTULayer(6, num_heads=2, max_distance=3, dropout=0.5))
    hidden, real = torch.randn(4, 6, 6), torch.rand(4, 6) < 0.6
    real[:, -1] = True
    output = layer(hidden, layer.maps(hidden), real)
    for row in range(4):
        torch.testing.assert_close(output[row], hstu_by_position(layer, hidden[row], real[row]), **TOLERANCE)
    last = layer(hidden, layer.maps(hidden), real, last_only=True)
    torch.testing.assert_close(last, output[:, -1:], **TOLERANCE)


def onetrans_by_token(layer, history, real, tokens, kept):
    """Sections 3.3.1 and 3.3.2 for one row, a token at a time, with its own weights or the shared ones."""
    length, dim = history.shape
    width = dim // layer.num_heads

    def maps(token, place):
        normed = layer.attention_norm(token)
        if place < length:
            weights = layer.history_maps.weight  # keys, values and, unless it is the last layer, queries
            return [part @ normed for part in weights.split(dim)]
        own = place - length
        return (normed @ layer.token_maps.weight[own] + layer.token_maps.bias[own]).split(dim)

    everything = torch.cat([history, tokens])
    mapped = [maps(token, place) for place, token in enumerate(everything)]
    made = []
    for i in range(length - kept, len(everything)):
        seen = [j for j in range(i + 1) if j == i or j >= length or real[j]]
        heads = []
        for part in torch.arange(dim).split(width):
            scores = torch.stack([mapped[i][2][part] @ mapped[j][0][part] / width**0.5 for j in seen])
            heads.append(sum(w * mapped[j][1][part] for w, j in zip(scores.softmax(0), seen, strict=True)))
        hidden = everything[i] + layer.output(torch.cat(heads))
        normed = layer.ffn_norm(hidden)
        if i < length:
            made.append(hidden + layer.history_ffn(normed))
        else:
            first, _, second = layer.token_ffn
            inner = F.gelu(normed @ first.weight[i - length] + first.bias[i - length])
            made.append(hidden + inner @ second.weight[i - length] + second.bias[i - length])
    return torch.stack(made)


@torch.no_grad()
def test_onetrans_layer_is_causal_attention_with_mixed_weights():
    history, tokens, real = torch.randn(3, 5, 4), torch.randn(3, 2, 4), torch.rand(3, 5) < 0.6
    for kept in (3, 0):
        layer = awake(OneTransLayer(4, num_heads=2, num_tokens=2, ffn_ratio=2, dropout=0.5, is_last=kept == 0))
        later, ours = layer(history, layer.maps(history), real, tokens, kept)
        assert later.shape == (3, kept, 4)
        for row in range(3):
            expected = onetrans_by_token(layer, history[row], real[row], tokens[row], kept)
            torch.testing.assert_close(torch.cat([later[row], ours[row]]), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "asked"),
    [({}, [4, 2, 0]), ({"max_len": 3}, [2, 1, 0]), ({"content_search": "item_emb_d128"}, [2, 1, 0])],
)
def test_onetrans_asks_by_its_length_and_not_by_the_batchs(settings, asked, monkeypatch):
    """Of 6 positions, of 3 of which it is told, and of 4 that are searched for; padding adds none."""
    sizes = {**SIZES["OneTrans"], "num_layers": 3, "content_search_len": 4, **settings}
    model, batch, found = make_model(("OneTrans", sizes)), make_batch(), []
    forward = OneTransLayer.forward
    monkeypatch.setattr(OneTransLayer, "forward", lambda *args: found.append(args[-1]) or forward(*args))
    for further in (0, 7):
        found.clear()
        model(batch._replace(item_index=F.pad(batch.item_index, (further, 0))))
        assert found == asked


def test_onetrans_asks_for_fewer_of_the_last_tokens_in_each_layer():
    assert query_counts(64, 4) == [48, 32, 16, 0]
    assert query_counts(5, 2) == [2, 0]
    assert query_counts(0, 3) == [0, 0, 0]

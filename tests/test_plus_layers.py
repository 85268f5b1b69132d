"""FiBiNET++'s layers against its formulas, field by field and pair by pair."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model_zoo.layers import BILINEAR_TYPES
from model_zoo.plus_layers import BilinearPlus, FieldNorm, SENETPlus
from model_zoo.served_pairs import PairsWithOneHistory

BATCH, FIELDS, DIM = 7, 5, 6


@pytest.fixture
def fields():
    return torch.randn(BATCH, FIELDS, DIM, generator=torch.Generator().manual_seed(0))


def shaken(layer):
    """The layer with every weight random, norms included."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("bilinear_type", BILINEAR_TYPES)
def test_bilinear_plus_is_an_inner_product_a_pair(fields, bilinear_type):
    layer = shaken(BilinearPlus(FIELDS, DIM, bilinear_type, output_dim=3))
    pairs = list(itertools.combinations(range(FIELDS), 2))
    expected = torch.zeros(BATCH, len(pairs))
    for p, (i, j) in enumerate(pairs):
        weights = {"field_all": lambda: layer.bilinear_W, "field_each": lambda i=i: layer.bilinear_W[i]}
        w = weights.get(bilinear_type, lambda p=p: layer.bilinear_W[p])()
        for row in range(BATCH):
            expected[row, p] = fields[row, i] @ w @ fields[row, j]
    torch.testing.assert_close(layer.products(fields), expected, atol=1e-4, rtol=1e-5)
    low_rank = expected @ layer.low_rank.weight.T + layer.low_rank.bias
    torch.testing.assert_close(layer(fields), low_rank, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shared", [range(2, 4), range(2, 3), range(2), range(3, 5), range(1, 5)])
def test_with_one_history_the_pairs_are_the_same(fields, shared):
    layer = shaken(BilinearPlus(FIELDS, DIM, "field_interaction", output_dim=3))
    fields[:, shared.start : shared.stop] = fields[:1, shared.start : shared.stop].clone()
    found = PairsWithOneHistory(layer, FIELDS, shared)(fields)
    torch.testing.assert_close(found, layer(fields), atol=1e-4, rtol=1e-5)


class Widened(TorchDispatchMode):
    """The operations that store at least so many float32 numbers."""

    def __init__(self, least):
        super().__init__()
        self.least, self.names = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.numel() >= self.least:
            stored_before = [arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)]
            if result.untyped_storage().data_ptr() not in stored_before:
                self.names.append(str(func))
        return result


@pytest.mark.parametrize("bilinear_type", BILINEAR_TYPES)
def test_bilinear_plus_in_16_bits_stores_no_vector_in_32(bilinear_type):
    torch.manual_seed(2)
    rows, num_fields = 256, 8
    fields = torch.randn(rows, num_fields, DIM, requires_grad=True)
    layer = shaken(BilinearPlus(num_fields, DIM, bilinear_type, output_dim=3))
    with Widened(rows * (num_fields - 1) * DIM) as watched, torch.autocast("cpu", torch.bfloat16):
        products = layer.products(fields)
    assert watched.names == []
    expected = layer.products(fields)
    gradients = [
        torch.autograd.grad(p.float().square().sum(), [fields, layer.bilinear_W]) for p in (products, expected)
    ]
    for value, exact in zip((products.float(), *gradients[0]), (expected, *gradients[1]), strict=True):
        assert value.dtype == torch.float32
        assert (value - exact).norm() < 0.01 * exact.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_senet_plus_weighs_every_element(fields, num_groups):
    layer = shaken(SENETPlus(FIELDS, DIM, reduction_ratio=2, num_groups=num_groups))
    first, second = (layer.excitation[i].weight for i in (0, 2))
    assert first.shape == (num_groups * FIELDS, 2 * num_groups * FIELDS)
    size = DIM // num_groups
    for row in range(BATCH):
        squeezed = []
        for field in fields[row]:
            groups = [field[g * size : (g + 1) * size] for g in range(num_groups)]
            squeezed += [max(group.tolist()) for group in groups] + [sum(group.tolist()) / size for group in groups]
        weights = (second @ (first @ torch.tensor(squeezed)).relu()).view(FIELDS, DIM)
        fused = fields[row] * (1 + weights)
        centred = fused - fused.mean(dim=1, keepdim=True)
        normed = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(layer(fields)[row], normed * layer.weight + layer.bias, atol=1e-4, rtol=1e-4)


def test_field_norm_keeps_what_a_number_says(fields):
    layer = shaken(FieldNorm(DIM, [False, True, False, True, False])).train()
    normed = layer(fields)
    for field, place in ((0, 0), (2, 1), (4, 2)):
        expected = nn.functional.layer_norm(fields[:, field], (DIM,), layer.weight[place], layer.bias[place])
        torch.testing.assert_close(normed[:, field], expected)
    for field, place in ((1, 0), (3, 1)):
        column = fields[:, field]
        scaled = (column - column.mean(0)) / (column.var(0, unbiased=False) + 1e-5).sqrt()
        part = slice(place * DIM, (place + 1) * DIM)
        expected = scaled * layer.batch_norm.weight[part] + layer.batch_norm.bias[part]
        torch.testing.assert_close(normed[:, field], expected, atol=1e-5, rtol=1e-5)


def test_field_norm_without_numeric_fields_is_a_layer_norm(fields):
    torch.testing.assert_close(FieldNorm(DIM, [False] * FIELDS)(fields), nn.functional.layer_norm(fields, (DIM,)))


def test_the_gradients_of_a_w_a_pair_are_those_of_its_formula():
    torch.manual_seed(3)
    layer = shaken(BilinearPlus(FIELDS, DIM, "field_interaction", output_dim=3)).double()
    fields = torch.randn(BATCH, FIELDS, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda fields, _: layer.products(fields), (fields, layer.bilinear_W))
    trained = layer.products(fields).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.products(fields), trained)

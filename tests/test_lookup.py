"""The look-ups of a GPU give torch's values and gradients: plain indexing is the slow form they are held to."""

import pytest
import torch

from model_zoo import lookup

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def made(device, length=30, seed=0):
    """A table, rows of it of which most are 0, and what each of them counts for later: float64, [9, 4], [50, L]."""
    torch.manual_seed(seed)
    table = torch.randn(9, 4, dtype=torch.float64, device=device, requires_grad=True)
    positions = torch.randint(0, 9, (50, length), device=device) * (torch.rand(50, length, device=device) < 0.3)
    positions[0], positions[1] = 0, 3
    return table, positions.int()


def gradient(table, output, seed=1):
    weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad((output * weights.to(output.device)).sum(), table)[0]


@pytest.fixture(params=[4096, 7])
def spare(request, monkeypatch):
    """More spare rows than padded positions, and fewer."""
    monkeypatch.setattr(lookup, "SPARE", request.param)


@pytest.mark.parametrize("device", DEVICES)
def test_rows(spare, device):
    table, positions = made(device)
    expected = table[positions.long()]
    found = lookup._Rows.apply(table, positions)
    assert torch.equal(found, expected)
    exact = gradient(table, expected)
    torch.testing.assert_close(gradient(table, found), exact, rtol=1e-12, atol=1e-12)
    assert exact[0].abs().min() > 0  # that of the row which is asked for most counts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_row", [0, 3])
@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_pooled_rows(spare, device, padding_row, mode):
    table, positions = made(device)
    real = (positions != padding_row).unsqueeze(-1)
    expected = (table[positions.long()] * real).sum(dim=1)
    if mode == "mean":
        expected = expected / real.sum(dim=1).clamp(min=1)
    found = lookup._PooledRows.apply(table, positions, mode, padding_row)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    own = gradient(table, found)
    torch.testing.assert_close(own, gradient(table, expected), rtol=1e-12, atol=1e-12)
    assert not own[padding_row].any() and own.isfinite().all()


def test_a_list_of_positions_as_din_has_it():
    table, positions = made("cpu")
    chosen = positions[positions > 0]
    torch.testing.assert_close(
        gradient(table, lookup._Rows.apply(table, chosen)),
        gradient(table, table[chosen.long()]),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_cpu_and_a_pass_without_gradients_take_torchs_own():
    table, positions = made("cpu")
    assert "Embedding" in lookup.look_up(table, positions).grad_fn.name()
    assert "EmbeddingBag" in lookup.pool_rows(table, positions, "mean").grad_fn.name()
    on_a_gpu = table.detach().to("meta").requires_grad_()
    assert "_Rows" in lookup.look_up(on_a_gpu, positions.to("meta")).grad_fn.name()
    with torch.no_grad():
        assert lookup.look_up(on_a_gpu, positions.to("meta")).grad_fn is None

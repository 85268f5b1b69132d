"""What a step is said to cost is what it does."""

from collections import Counter

import pytest
import torch

from benchmarks import step_cost
from benchmarks.step_cost import Cost, Watch
from benchmarks.synthetic import Sizes

ATTENTION_UNITS = 512 + 256


def din_kept(rows, length, **settings):
    return step_cost.step_cost("DIN", rows, Sizes(items=50, max_len=length, emb_dim=8), **settings).kept


def test_a_position_of_dins_history_keeps_four_things():
    """The item's vector, its product with the target's, and each hidden layer's output; all else is below 1 %."""
    rows, width = 32, 64 + 64 + 8
    found = din_kept(rows, 21) - din_kept(rows, 20)
    assert found == pytest.approx(4 * rows * (2 * width + ATTENTION_UNITS), rel=0.01)


def test_a_position_of_din_with_dice_keeps_its_norm_the_mask_and_the_input_too():
    rows, width = 32, 64 + 64 + 8
    settings = {"attention_hidden_activations": "Dice"}
    found = din_kept(rows, 21, **settings) - din_kept(rows, 20, **settings)
    assert found == pytest.approx(4 * rows * (2 * width + 4 * ATTENTION_UNITS), rel=0.01)


def test_watch_counts_what_runs_and_what_is_alive():
    weight = torch.empty(100, 100, device="meta")
    with Watch([weight]) as watch:
        first = weight + 1
        second = (first.t() * 2).sum()  # the product is gone afterwards
        del first
        third = weight + second
    assert watch.operations == Counter(add=2, t=1, mul=1, sum=1)
    assert watch.peak == 4 * (2 * 100 * 100 + 1)
    assert Cost(watch.operations, 0, 0).kernels == 4
    assert sum(size for _, size in watch.alive.values()) == 4 * 100 * 100 + 4
    del third


@pytest.mark.documented("docs/performance.md", "On a GPU", "step_cost.py")
def test_the_table_is_printed(documented, monkeypatch, capsys):
    monkeypatch.setattr(step_cost, "step_cost", lambda name, **settings: Cost(Counter(mm=3, view=2), 2e9, 3e9))
    [done] = documented.run_all(capsys=capsys)
    assert done.out.splitlines()[1].split() == ["FiBiNET", "5", "3", "2.00", "GB", "3.00", "GB"]

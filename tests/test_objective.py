"""What a step minimises: the loss's own gradient to the last bit, and whose loss it is."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from test_model_contract import make_batch, make_model

from mm_fibinet.objective import Objective

HEADS = {"low_rank_fusion": ["item_emb_d128"], "low_rank_fusion_heads": 2}


def objective_gradients(model, batch):
    """{parameter: gradient} of Objective's loss."""
    model.zero_grad()
    Objective(model)(model, batch, model.get_labels(batch), contextlib.nullcontext()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["FiBiNET", "DIN"])
def test_the_gradient_is_that_of_the_cross_entropy_to_the_last_bit(name):
    """Looking for NaN must leave no trace: beside a gradient of 1e-4, 1 - 1 rounds off half of its digits."""
    model, batch = make_model((name, {})).eval(), make_batch()
    found = objective_gradients(model, batch)
    model.zero_grad()
    F.binary_cross_entropy(model(batch)["y_pred"], model.get_labels(batch)).backward()
    for parameter, gradient in found.items():
        assert torch.equal(gradient, model.get_parameter(parameter).grad), parameter


def test_a_score_that_is_nan_makes_the_loss_nan():
    model, batch = make_model(("FiBiNET", {})).eval(), make_batch()
    nan_at_one = torch.zeros(len(model.get_labels(batch)), 1)
    nan_at_one[3] = torch.nan

    def forward(inputs):
        return {"y_pred": model(inputs)["y_pred"] + nan_at_one}

    assert Objective(model)(forward, batch, model.get_labels(batch), contextlib.nullcontext()).isnan()


def test_only_a_model_with_heads_has_a_loss_of_its_own():
    one, two = (make_model(("FiBiNET", {**HEADS, "low_rank_fusion_heads": heads})) for heads in (1, 2))
    assert Objective(one).own == []
    assert Objective(two).own == ["add_loss"]


def test_a_copys_loss_is_that_of_the_copy():
    model, batch = make_model(("FiBiNET", HEADS)).eval(), make_batch()
    copied = copy.deepcopy(model)
    before = objective_gradients(model, batch)
    copied.loss_fn = lambda scores, labels, reduction: scores.sum() * 0
    assert all(gradient.abs().max() == 0 for gradient in objective_gradients(copied, batch).values())
    assert all(torch.equal(gradient, before[name]) for name, gradient in objective_gradients(model, batch).items())

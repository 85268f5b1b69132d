"""Losses of click probabilities, mixed by weights: cross entropy, focal loss, and the order of clicks and no clicks.

FuxiCTR knows one loss at a time, by its name; `loss: {bce: 0.8, pairwise: 0.2}` is a sum of several, for whichever
model has FuxiCTR's `loss_fn`. All read probabilities, as FuxiCTR's do, in float32.

The pairwise loss is over all pairs of a click and a no click of a batch, which is what AUC counts. The pairs of 8192
rows are 12.6 million; they are walked through in blocks, and since the gradient of a pair's loss is had with the loss
itself, nothing of them is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_fibinet.errors import UserError
from mm_fibinet.setting_types import LOSS_TERMS
from mm_fibinet.settings_rules import require_loss

SMALLEST = 2.0**-24  # of a probability and of its distance to 1, where float32 has no smaller one
PAIRS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}  # what a core's cache holds; what fills a GPU


@dataclass(frozen=True)
class MixedLoss:
    """A weighted sum of losses; called as FuxiCTR calls its loss functions.

    Attributes:
        weights: {one of LOSS_TERMS: its weight}.
        pos_weight: of clicks in bce and focal, as torch's BCEWithLogitsLoss has it; the mean stays one over all rows.
        focal_gamma: of focal.
        calls: not empty once it was called, for whoever asks whether a model's own loss reads it.
    """

    weights: Mapping[str, float]
    pos_weight: float = 1.0
    focal_gamma: float = 2.0
    calls: list[bool] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, y_pred: Tensor, y_true: Tensor, reduction: str = "mean") -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            y_pred: float [B, 1] or [B], probabilities.
            y_true: float of the same shape, 0 or 1.
            reduction: "mean", there is no other.
        """
        if reduction != "mean":
            raise UserError(f"reduction is {reduction!r}, expected mean: a pairwise loss is none of single rows")
        self.calls[:] = [True]
        probability, label = y_pred.float().flatten(), y_true.float().flatten()
        terms = {
            "bce": lambda: weighted_bce(probability, label, self.pos_weight),
            "focal": lambda: focal(probability, label, self.focal_gamma, self.pos_weight),
            "pairwise": lambda: pairwise(probability.logit(SMALLEST), label),
        }
        return torch.stack([weight * terms[name]() for name, weight in self.weights.items()]).sum()


def resolve(loss: object, pos_weight: float = 1.0, focal_gamma: float = 2.0) -> object:
    """What a model is compiled with: FuxiCTR's name of a loss, or a MixedLoss.

    Args:
        loss: one of FuxiCTR's names, a mapping of LOSS_TERMS to weights, or a function, which is left alone.
        pos_weight, focal_gamma: see MixedLoss.

    Raises:
        UserError: a term or a weight is none, or pos_weight or focal_gamma changes nothing.
    """
    if not isinstance(loss, str | Mapping):
        return loss
    require_loss(loss, pos_weight, focal_gamma)
    if isinstance(loss, Mapping):
        for name, weight in loss.items():
            if name not in LOSS_TERMS or not weight > 0:
                raise UserError(f"loss has {name}: {weight}, expected weights above 0 of {', '.join(LOSS_TERMS)}")
        return MixedLoss(dict(loss), pos_weight, focal_gamma)
    return loss if pos_weight == 1 else MixedLoss({"bce": 1.0}, pos_weight)


def name_of(loss: object) -> object:
    """The loss that FuxiCTR's own `compile` takes in place of one that it does not know."""
    return "binary_crossentropy" if isinstance(loss, Mapping | MixedLoss) else loss


def weighted_bce(probability: Tensor, label: Tensor, pos_weight: float = 1.0) -> Tensor:
    """The mean over the rows of -(pos_weight y log p + (1 - y) log(1 - p)): float [B] twice to a scalar."""
    return F.binary_cross_entropy(probability, label, weight=_weights(label, pos_weight))


def focal(probability: Tensor, label: Tensor, gamma: float, pos_weight: float = 1.0) -> Tensor:
    """The mean of -(1 - q)^gamma log q, q the probability of what happened (Lin et al. 2017, eq. 4); clicks weighted.

    Args:
        probability, label: float [B].
        gamma: 0 makes it the cross entropy.
        pos_weight: of clicks.

    Returns:
        a scalar.
    """
    entropy = F.binary_cross_entropy(probability, label, weight=_weights(label, pos_weight), reduction="none")
    missed = torch.where(label == 1, 1 - probability, probability).clamp(min=SMALLEST)
    return (missed**gamma * entropy).mean()


def pairwise(logit: Tensor, label: Tensor) -> Tensor:
    """The mean over all (click, no click) of -log sigmoid(their logits' difference); 0 where there are none.

    Args:
        logit: float [B].
        label: [B], 1 = click.

    Returns:
        a scalar.
    """
    clicked = label == 1
    if logit.device.type == "cpu":  # counting them would make a GPU wait; there those of weight 0 are walked too
        high, low = logit[clicked], logit[~clicked]
        return _PairLoss.apply(high, low, torch.ones_like(high), torch.ones_like(low))
    return _PairLoss.apply(logit, logit, clicked.to(logit.dtype), (~clicked).to(logit.dtype))


class _PairLoss(torch.autograd.Function):
    """The weighted mean of softplus(low - high) over all pairs, from logits and weights [P] and [N] of both sides."""

    @staticmethod
    def forward(ctx, high: Tensor, low: Tensor, high_weight: Tensor, low_weight: Tensor) -> Tensor:
        """A scalar."""
        total = torch.zeros((), dtype=torch.float64, device=high.device)
        grad_high, grad_low = torch.zeros_like(high), torch.zeros_like(low)
        rows = max(PAIRS_AT_ONCE.get(high.device.type, 1 << 16) // max(len(low), 1), 1)
        for first in range(0, len(high), rows):
            part = slice(first, first + rows)
            difference = low - high[part].unsqueeze(1)
            weight, slope = high_weight[part], difference.sigmoid()
            loss = difference.relu() - difference.abs().sigmoid().log()  # softplus, whose log1p is slow on a CPU
            total += weight @ (loss @ low_weight)
            grad_high[part] = -weight * (slope @ low_weight)
            grad_low += low_weight * (weight @ slope)
        count = (high_weight.sum() * low_weight.sum()).clamp(min=1)
        ctx.save_for_backward(grad_high / count, grad_low / count)
        return (total / count).to(high.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients of both sides' logits."""
        grad_high, grad_low = ctx.saved_tensors
        return grad * grad_high, grad * grad_low, None, None


def _weights(label: Tensor, pos_weight: float) -> Tensor | None:
    return None if pos_weight == 1 else torch.where(label == 1, pos_weight, 1.0)

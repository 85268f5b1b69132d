"""What a training step minimises: a model's own loss where it has one, else FuxiCTR's in a cheaper form.

FuxiCTR's loss is that of the data plus a penalty over every parameter. A model that overrides none of its methods gets
the data's loss alone, and the penalty enters as its gradient. A model that overrides one is called as FuxiCTR calls
it, with the dictionary that its forward returned.
"""

import inspect

import torch
from torch import Tensor, nn

from mm_fibinet import distributed, fuxictr_adapter
from mm_fibinet.errors import UserError
from mm_fibinet.losses import MixedLoss
from mm_fibinet.table_optimizer import TouchedRows


class Objective:
    """The loss of one model.

    Args:
        model: FuxiCTR's BaseModel or a subclass, compiled.
        half: its forward pass is in bf16 or fp16; the loss is in fp32 all the same.

    Attributes:
        penalties: (power, weight, parameters) whose gradients are to be added; empty where a method of the model's own
            adds them to the loss.

    Raises:
        UserError: the model overrides steps of FuxiCTR's loop, or a loss that several processes cannot compute, or
            that would be in half too.
    """

    def __init__(self, model: nn.Module, half: bool = False):
        fuxictr_adapter.refuse_own_loop(model)
        self.model = model
        self.own = fuxictr_adapter.overridden(model, fuxictr_adapter.LOSS_METHODS)
        self.takes_batch = "get_total_loss" in self.own and len(inspect.signature(model.get_total_loss).parameters) == 1
        if self.takes_batch and distributed.current().size > 1:
            raise UserError(
                f"{type(model).__name__} overrides get_total_loss(inputs), which runs the model by itself, so that "
                "several processes cannot share its gradients; override compute_loss(return_dict, y_true), or use one"
            )
        if self.takes_batch and half:
            raise UserError(
                f"{type(model).__name__} overrides get_total_loss(inputs), which runs the model by itself, so that its "
                "loss would be in half precision; override compute_loss(return_dict, y_true), or set precision to fp32"
            )
        self.penalties = [] if self.own and self.own != ["add_loss"] else fuxictr_adapter.penalties(model)

    def __call__(self, forward: nn.Module, batch, labels: Tensor, autocast) -> Tensor:
        """The loss of a batch.

        Args:
            forward: the model, or what wraps it.
            batch: what the loader yields.
            labels: float [B, 1].
            autocast: a context that the model runs in.

        Returns:
            a scalar; NaN where scores are NaN, where torch's own loss would abort (on a GPU, beyond recovery).

        Raises:
            UserError: a mixture of losses is asked for, and the model's own loss does not read it.
        """
        if self.takes_batch:
            with autocast:
                loss = self.model.get_total_loss(batch).reshape(())
            self._require_mixture_read()
            return loss
        with autocast:
            outputs = forward(batch)
        if self.own:
            loss = self._own_loss(outputs, labels)
            self._require_mixture_read()
            return loss
        predicted = outputs["y_pred"].float()  # of a model that does not see to it itself
        nan_if_any = (predicted - predicted).detach().sum()  # its gradient, 1 - 1, would round the loss's
        return self.model.loss_fn(predicted.nan_to_num(0.5), labels, reduction="mean") + nan_if_any

    def _require_mixture_read(self) -> None:
        asked = self.model.loss_fn
        if isinstance(asked, MixedLoss) and not asked.calls:
            raise UserError(
                f"{type(self.model).__name__} overrides {', '.join(self.own)} and never calls its loss_fn there, so "
                f"that loss {dict(asked.weights)} with pos_weight {asked.pos_weight} would change nothing; leave loss, "
                "pos_weight and focal_gamma out, or let its own loss call self.loss_fn"
            )

    def add_penalty_gradients(self) -> None:
        """Add the gradient of every penalty to the parameters'."""
        for power, weight, parameters in self.penalties:
            _add_penalty_gradient(parameters, power, weight)

    def _own_loss(self, outputs: dict, labels: Tensor) -> Tensor:
        outputs, broken = _without_nan(outputs)
        if "get_total_loss" in self.own:
            loss = self.model.get_total_loss(outputs, labels)
        elif "compute_loss" in self.own:
            loss = self.model.compute_loss(outputs, labels)
        else:
            loss = self.model.add_loss(outputs, labels)
            if "regularization_loss" in self.own and isinstance(loss, Tensor):
                loss = loss + self.model.regularization_loss()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"{type(self.model).__name__}: {', '.join(self.own)} gave {found}, expected the loss of the batch, a "
                "tensor of one number"
            )
        return loss.reshape(()) + torch.where(broken, torch.nan, 0.0)


@torch.no_grad()
def _add_penalty_gradient(parameters: list[Tensor], power: int, weight: float) -> None:
    """Add the gradient of (weight / power) * sum |p|^power: weight * p for L2, weight * sign(p) for L1.

    A sparse gradient gets it in the rows that it touches.
    """
    whole = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if not parameter.grad.is_sparse:
            whole.append(parameter)
            continue
        found = TouchedRows.of(parameter)
        values = parameter.index_select(0, found.rows)
        values = values if power == 2 else values.sign()
        found.gradients.add_(torch.where(found.touched(), values, 0.0), alpha=weight)
    values = whole if power == 2 else [p.sign() for p in whole]
    if whole:
        torch._foreach_add_([p.grad for p in whole], values, alpha=weight)


def _without_nan(outputs: dict) -> tuple[dict, Tensor]:
    """The outputs in fp32 with 0.5 in place of NaN, and whether there was any: bool, a scalar."""
    broken, replaced = torch.zeros((), dtype=torch.bool, device=outputs["y_pred"].device), dict(outputs)
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            nan = value.isnan()
            broken = broken | nan.any()
            half = value.dtype in (torch.bfloat16, torch.float16)
            replaced[name] = (value.float() if half else value).masked_fill(nan, 0.5)
    return replaced, broken

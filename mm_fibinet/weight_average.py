"""An exponential moving average of a model's weights, evaluated and kept in their place.

The last steps of training pull the weights to and fro; their average lies between, and scores items that training has
hardly seen more steadily than any single step does. It costs one pass over the weights a step and a copy of them.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of all floating-point weights and buffers (batch norm's statistics too).

    After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights, so that the start of
    training is forgotten soon.

    Args:
        model: on its device; its weights must stay where they are from now on.
        decay: below 1; about 1 / (1 - decay) steps are averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._weights = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.averaged = [value.clone() for value in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        torch._foreach_lerp_(self.averaged, self._weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, averaged: list[Tensor]) -> None:
        """Continue from a saved `averaged`."""
        torch._foreach_copy_(self.averaged, averaged)

    @torch.no_grad()
    def _swap(self) -> None:
        own = [value.clone() for value in self._weights]
        torch._foreach_copy_(self._weights, self.averaged)
        torch._foreach_copy_(self.averaged, own)

"""The last steps of an image network's preprocessing, done where the network is, for a batch at a time.

Nearly every network of timm and open_clip ends its preprocessing with ToTensor and Normalize. For one picture torch
splits these over all cores, in each of the threads that prepare pictures; and what then goes to a GPU is four times the
picture's bytes. Here a picture stays bytes until its batch is where the network is. The arithmetic is torchvision's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

TO_TENSOR = ("ToTensor", "MaybeToTensor")  # torchvision's, and timm's for what may be a tensor already


def split(preprocess: Any, network: nn.Module) -> tuple[Callable[[Image.Image], Tensor], nn.Module]:
    """The part of a preprocessing that is for single pictures, and the network with the rest before it.

    Args:
        preprocess: RGB image -> float [3, H, W]; torchvision's Compose or another callable.
        network: float [B, 3, H, W] -> float [B, D].

    Returns:
        RGB image -> uint8 [3, H, W], and a network of such batches; both as they are given where the preprocessing does
        not end with ToTensor and Normalize.
    """
    steps = list(getattr(preprocess, "transforms", ()))
    names = [type(step).__name__ for step in steps[-2:]]
    if len(names) < 2 or names[0] not in TO_TENSOR or names[1] != "Normalize":
        return preprocess, network
    *before, _, normalize = steps

    def to_bytes(picture: Image.Image) -> Tensor:
        for step in before:
            picture = step(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    return to_bytes, Normalized(network, _floats(normalize.mean), _floats(normalize.std))


class Normalized(nn.Module):
    """A network that is given bytes: (x / 255 - mean) / std in fp32, then in the network's type.

    Args:
        network: float [B, 3, H, W] -> float [B, D].
        mean, std: of the three colours.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float [B, D]."""
        mean, std = (torch.tensor(values, device=pictures.device).view(-1, 1, 1) for values in (self.mean, self.std))
        pictures = pictures.float().div_(255).sub_(mean).div_(std)
        return self.network(pictures.to(next(self.network.parameters()).dtype))


def _floats(values: Any) -> list[float]:
    """A tensor's or a sequence's numbers; those of float32 as they are."""
    return [float(value) for value in values]

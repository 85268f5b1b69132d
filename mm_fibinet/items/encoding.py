"""What every encoder is and is loaded with, and the one for networks that take plain tensors.

An encoder works in two steps. `prepare` runs in background threads and turns one content into a sample (decodes an
image, cuts a text into tokens); `encode` runs the network over samples of one `shape`. Every forward pass has the full
batch size, short batches being filled up, and texts are padded in steps. So an item's vector is a function of its own
content: it does not change with its neighbours in the batch or with where an interrupted run was taken up again. That
costs a few per cent of wasted padding and makes the feature store exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent, Source
from mm_fibinet.precision import HALVES


class Encoder(Protocol):
    """What the feature store needs of an encoder.

    Attributes:
        id: names the network, its weights, its preprocessing and its precision; features of one id are interchangeable.
        dim: D, the width of its vectors.
        batch_size: the number of samples of every forward pass.
    """

    id: str
    dim: int
    batch_size: int

    def prepare(self, content: bytes) -> tuple[Any, int]:
        """One content -> (sample, shape); samples of equal shape may share a batch. Called from several threads.

        Raises:
            BadContent: it cannot be used.
        """
        raise NotImplementedError

    def prepare_all(self, contents: Sequence[bytes]) -> list[tuple[Any, int] | BadContent]:
        """The same of several contents; an encoder that is quicker with many at a time has its own."""
        prepared: list[tuple[Any, int] | BadContent] = []
        for content in contents:
            try:
                prepared.append(self.prepare(content))
            except BadContent as error:
                # Without the traceback, which holds the content.
                prepared.append(error.with_traceback(None))
        return prepared

    def encode(self, samples: list[Any]) -> np.ndarray:
        """At most batch_size samples of equal shape -> float32 [len(samples), D]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Loading:
    """How an encoder is loaded.

    Attributes:
        device: where the network runs.
        batch_size: samples in a forward pass.
        dtype: what the network computes in.
        prompt: what comes before each text, or the name of one of the model's own prompts; None for the model's
            default.
        dim: the first numbers of a vector to keep (Matryoshka); None for all.
        source: what it will encode.
        loaded: models by name: two modalities that name the same one share it.
        option: the option that asked for it, as the user wrote it.
    """

    device: torch.device
    batch_size: int
    dtype: torch.dtype = torch.float32
    prompt: str | None = None
    dim: int | None = None
    source: Source | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    option: str = "the encoder"

    def once(self, name: str, load: Callable[[], Any]) -> Any:
        """What `load` gives, called for a name's first time alone."""
        if name not in self.loaded:
            self.loaded[name] = load()
        return self.loaded[name]

    def identity(self, *parts: str) -> str:
        """An encoder's id: its parts and, where it is not fp32, its precision."""
        half = next((name for name, dtype in HALVES.items() if dtype == self.dtype), "")
        return " ".join(filter(None, (*parts, half)))

    def refuse(self, error: BaseException, expected: str) -> UserError:
        """The error for a model that cannot be loaded; one that explains itself stays as it is."""
        if isinstance(error, UserError):
            return error
        lines = str(error).strip().splitlines()
        found = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        return UserError(f"{self.option}: cannot be loaded ({found}); {expected}")


# {name, or prefix that ends in a colon: loader of (what follows the colon, how)}
Loaders = dict[str, Callable[[str, Loading], Encoder]]


class NetworkEncoder(Encoder):
    """A network over contents that become tensors of one size.

    Args:
        id: see `Encoder`.
        network: what `encode` runs: [B, ...] -> float [B, D]. Pictures, [B, 3, H, W], come in channels-last memory.
        to_tensor: one content -> tensor; raises `BadContent`.
        dim: D.
        how: device, batch size and precision.
    """

    def __init__(self, id: str, network: nn.Module, to_tensor: Callable[[bytes], Tensor], dim: int, how: Loading):
        self.id = id
        self.dim = dim
        self.batch_size = how.batch_size
        self.device = how.device
        self.dtype = how.dtype
        self.to_tensor = to_tensor
        self.network = network.eval().to(how.device, how.dtype, memory_format=torch.channels_last)

    def prepare(self, content: bytes) -> tuple[Tensor, int]:
        """See `Encoder`."""
        return self.to_tensor(content), 0

    @torch.inference_mode()
    def encode(self, samples: list[Tensor]) -> np.ndarray:
        """Tensors -> float32 [n, D]."""

        def forward(full: list[Tensor]) -> Tensor:
            batch = to_device(stack(full), self.device)
            return self.network(batch.to(self.dtype) if batch.is_floating_point() else batch)

        return run(forward, samples, self.batch_size).float().cpu().numpy()


def stack(samples: list[Tensor]) -> Tensor:
    """Tensors of one size as a batch: [B, ...], of pictures [B, C, H, W] in channels-last memory.

    Pictures that lie in memory a pixel after the other, as Pillow has them, are copied so, and not turned twice.
    """
    if samples[0].dim() != 3:
        return torch.stack(samples)
    return torch.stack([sample.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """A batch where the network is; a GPU gets it from pinned memory, while this process goes on."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def run(forward: Callable[[list[Any]], Any], samples: list[Any], batch_size: int) -> Any:
    """A forward pass over samples, which are filled up to the batch size: what it gives of them, [len(samples), ...].

    Raises:
        UserError: the GPU's memory is too small for it.
    """
    try:
        return forward(samples + samples[-1:] * (batch_size - len(samples)))[: len(samples)]
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory is too small for --batch_size {batch_size}; try half of it") from error

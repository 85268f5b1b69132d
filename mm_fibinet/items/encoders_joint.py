"""Models of sentence-transformers that take texts and pictures into one space, `joint:ID_OR_PATH`."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mm_fibinet.errors import UserError
from mm_fibinet.items.decoding import DECODING, decode_image
from mm_fibinet.items.encoders_text import SentenceModel, open_model, pad_in_steps, shortened
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.items.weights import quiet_transformers

PROBES = ((64, 64), (128, 320))  # width, height


class PictureEncoder(Encoder):
    """A sentence-transformers model over decoded pictures.

    Models that cut a picture into as many patches as it needs see pictures of one number of tokens together, so that
    none is padded; those that bring every picture to one size see them as they come.

    Args:
        id: see `Encoder`.
        model: sentence_transformers.SentenceTransformer that takes PIL images.
        batch_size: pictures in a forward pass.
        dim: the first numbers of a vector to keep; None for all.
    """

    def __init__(self, id: str, model: nn.Module, batch_size: int, dim: int | None = None):
        self.id = id
        self.batch_size = batch_size
        pad_in_steps(model)  # as for its texts: a vector must not depend on whether these are encoded, too
        self._model = SentenceModel(model, batch_size, dim=dim)
        self._preprocess = getattr(model, "preprocess", None) or model.tokenize  # the names since 5.4, and before
        probes = [Image.new("RGB", size) for size in PROBES]
        self._one_size = len({self._size(probe) for probe in probes}) == 1
        self.dim = self._model.vectors(probes[:1]).shape[1]

    def prepare(self, content: bytes) -> tuple[Image.Image, int]:
        """Decode an image file; raises `BadContent` when that cannot be."""
        picture = decode_image(content)
        return picture, 0 if self._one_size else self._size(picture)

    def encode(self, samples: list[Image.Image]) -> np.ndarray:
        """Pictures of one shape -> float32 [n, D]."""
        return self._model.vectors(samples)

    def _size(self, picture: Image.Image) -> int:
        """How many numbers a picture becomes: tokens and pixels."""
        made: dict[str, Any] = self._preprocess([picture])
        return sum(value.numel() for value in made.values() if torch.is_tensor(value))


def load_joint_images(name: str, how: Loading) -> PictureEncoder:
    """The model's vectors of pictures; those of texts are `load_sentence_transformers`."""
    model, identity = open_model(name, how)
    takes = getattr(model, "modalities", None)  # since 5.4
    if takes is not None and "image" not in takes:
        raise UserError(
            f"{how.option}: this model takes {', '.join(map(str, takes))} and no images; choose one that takes both"
        )
    parts = shortened(identity, model, how)
    model = model.to(device=how.device, dtype=how.dtype)
    try:
        with quiet_transformers():
            return PictureEncoder(how.identity(*parts, DECODING), model, how.batch_size, how.dim)
    except (TypeError, ValueError, AttributeError) as error:  # before 5.4 a text model reads pictures as texts
        raise how.refuse(error, "choose a model that takes texts and images") from error

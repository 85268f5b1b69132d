"""Encoders on made-up titles and covers: items a second, and what share of the machine's peak that is.

The reference encodes one item after the other, as a script without batches does. Decoding and tokenising are timed
apart from the network, in one thread: a build runs them in the background (mm_fibinet.items.feature_store).
"""

import io
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Task
from benchmarks.measure import now
from mm_fibinet.items.encoders import load_encoder
from mm_fibinet.items.encoding import Loading
from mm_fibinet.items.modalities import MODALITIES

BATCH_SIZES = {"cpu": 16, "cuda": 256}  # build_item_emb.py's
COVER_PIXELS = (320, 180)
WORDS = ("how", "to", "make", "a", "small", "house", "of", "paper", "in", "ten", "minutes", "for", "cats")


class Encoding:
    """A modality's default encoder and contents to encode.

    Args:
        modality: "text" or "image".
        task: what is measured.
        batch_size: items a forward pass; None for build_item_emb.py's.
    """

    def __init__(self, modality: str, task: Task, batch_size: int | None = None):
        if task.threads:
            torch.set_num_threads(task.threads)
        self.device = task.device
        chosen = next(each for each in MODALITIES if each.name == modality)
        batch_size = batch_size or BATCH_SIZES[self.device.type]
        self.encoder = load_encoder(modality, chosen.default, Loading(self.device, batch_size), chosen.encoders())
        rng = np.random.default_rng(0)
        contents = {"text": _title, "image": _cover}[modality]
        self.samples = [self.encoder.prepare(contents(rng))[0] for _ in range(batch_size)]
        started = time.perf_counter()
        self.encoder.prepare(contents(rng))
        self.prepare_seconds = time.perf_counter() - started

    def items_per_second(self, batches: int) -> float:
        """Of the network, copies to and from the device included; one batch before does not count."""
        self.encoder.encode(self.samples)
        started = now(self.device)
        for _ in range(batches):
            self.encoder.encode(self.samples)
        return batches * len(self.samples) / (now(self.device) - started)

    def seconds_to_prepare(self) -> float:
        """Of one content, in one thread."""
        return self.prepare_seconds

    def flops_per_item(self) -> float:
        """FLOPs of the network's matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.encoder.encode(self.samples)
        return counter.get_total_flops() / len(self.samples)


def _title(rng: np.random.Generator) -> bytes:
    """Words of a title, 6 to 12."""
    return " ".join(rng.choice(WORDS, rng.integers(6, 13))).encode()


def _cover(rng: np.random.Generator) -> bytes:
    """A JPEG file of blurred noise."""
    small = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(COVER_PIXELS, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()

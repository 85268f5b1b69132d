"""A modality's features over the items, in memory or on disk: what fusions read.

A million items with 1,280 numbers each are 5 GB: fusions ask for the rows that they need next, and never for all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BLOCK_ROWS = 16384


class Features(Protocol):
    """A modality's features over n items."""

    @property
    def present(self) -> np.ndarray:
        """bool [n], False where the item has no such content."""

    @property
    def width(self) -> int:
        """D, numbers an item."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The features of some items that are present: int64 [m] of 0 .. n - 1 -> float32 [m, D]."""


@dataclass(frozen=True)
class ArrayFeatures:
    """Features in memory.

    Attributes:
        features: float32 [n, D]; rows of missing items are not looked at.
        present: bool [n], False where the item has no such content.
    """

    features: np.ndarray
    present: np.ndarray

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Features`."""
        return self.features[rows]


def present_in_any(modalities: Iterable[Features]) -> np.ndarray:
    """bool [n], True where an item has some content."""
    return np.logical_or.reduce([features.present for features in modalities])


def blocks(features: Features, size: int = BLOCK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The features of all items that are present, some rows at a time.

    Args:
        features: D wide.
        size: rows a block.

    Yields:
        int64 [m], the items' rows in ascending order, and float32 [m, D].
    """
    rows = np.flatnonzero(features.present)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield part, features.read(part)


def sum_of_squares(vectors: np.ndarray) -> float:
    """Of all numbers of float32 [n, D], in float64 and some rows at a time, so that no copy is made of all."""
    starts = range(0, len(vectors), BLOCK_ROWS)
    return sum(float(np.square(vectors[start : start + BLOCK_ROWS], dtype=np.float64).sum()) for start in starts)

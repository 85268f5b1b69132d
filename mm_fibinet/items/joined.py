"""Modalities side by side at equal energy, a block of items at a time.

Encoders give vectors of different widths and scales (MiniLM 384 numbers of norm 1, EfficientNet-Lite0 1,280 numbers of
norm 20), so a PCA of their plain concatenation would see the images only. Each modality is therefore centred and scaled
to the same energy first; an item without the modality sits at its mean, which says nothing.

A million items with 1,664 numbers in float64 are 13 GB, so the whole is never made: means, energies and covariances are
sums over blocks, in float64 and always in the same order, and a projection is written block by block. What that costs
is reading the features four times.
"""

from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from mm_fibinet.errors import UserError
from mm_fibinet.items.features import BLOCK_ROWS, Features, blocks

# The order of a product's sums depends on the number of threads, and the bytes with it.
one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


class Joined:
    """Modalities over the same n items, each centred by its mean and scaled to total variance 1.

    Means and variances are those of the items that have the modality; the others are zeros, the mean.

    Args:
        modalities: by name.

    Attributes:
        rows: n.
        width: W, the sum of the modalities' widths.
        columns: {modality: its columns of W}.

    Raises:
        UserError: the features of a modality are the same for all items.
    """

    def __init__(self, modalities: dict[str, Features]):
        self.modalities = modalities
        self.rows = len(next(iter(modalities.values())).present)
        self.columns: dict[str, slice] = {}
        self.width = 0
        for name, features in modalities.items():
            self.columns[name] = slice(self.width, self.width + features.width)
            self.width += features.width
        self._scales = {name: _mean_and_scale(name, features) for name, features in modalities.items()}

    @property
    def title(self) -> str:
        """The modalities, for messages."""
        return " + ".join(self.modalities)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The items start .. stop - 1: float64 [stop - start, W]."""
        joined = np.zeros((stop - start, self.width))
        for name, features in self.modalities.items():
            mean, scale = self._scales[name]
            here = np.flatnonzero(features.present[start:stop])
            values = features.read(start + here).astype(np.float64)
            values -= mean
            values /= scale
            joined[here, self.columns[name]] = values
        return joined

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All items in order: (the items' rows, float64 [m, W])."""
        for start in range(0, self.rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.rows)
            yield slice(start, stop), self.read(start, stop)

    def covariance(self) -> np.ndarray:
        """The mean of x x' over all n items: float64 [W, W]."""
        return summed(block.T @ block for _, block in self.blocks()) / self.rows

    def project(self, matrix: np.ndarray) -> np.ndarray:
        """The items times float64 [W, k]: float32 [n, k]; an item without any content is zeros, bit for bit."""
        projected = np.empty((self.rows, matrix.shape[1]), dtype=np.float32)
        for rows, block in self.blocks():
            projected[rows] = block @ matrix + 0.0  # no negative zeros
        return projected


def summed(parts: Iterator[np.ndarray]) -> np.ndarray:
    """The sum of arrays of one shape, added in their order."""
    total = next(parts)
    for part in parts:
        total += part
    return total


def _mean_and_scale(name: str, features: Features) -> tuple[np.ndarray, float]:
    """A modality's mean, float64 [D], and the root of its total variance, over the items that have it."""
    present = int(features.present.sum())
    mean = summed(values.astype(np.float64).sum(axis=0) for _, values in blocks(features)) / present
    energy = sum(float(np.square(values.astype(np.float64) - mean).sum()) for _, values in blocks(features)) / present
    if energy < 1e-12:
        raise UserError(
            f"{name}: the features of all {present} items are the same, expected some variety; "
            f"check the input or leave it out with --{name.partition('/')[0]}_encoder none"
        )
    return mean, float(np.sqrt(energy))

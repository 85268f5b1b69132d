"""Modality features to one embedding an item.

Encoders give vectors of different widths and scales (MiniLM 384 numbers of norm 1, EfficientNet-Lite0 1,280 numbers of
norm 20), so a PCA of their plain concatenation would see the images only. Each modality is therefore centred and scaled
to the same energy first; an item without the modality sits at its mean, which says nothing. The sums run in float64 and
every eigenvector's sign is fixed, so the same features give the same bytes. The trade: PCA is linear and has not seen a
click; what it gives is a compact, model-free input that a CTR model's Linear can rotate as it likes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from mm_fibinet.errors import UserError
from mm_fibinet.items.features import Features


@dataclass(frozen=True)
class Fused:
    """A fusion's result.

    Attributes:
        embedding: float32 [n, emb_dim].
        explained: the share of each modality's variance that the embedding keeps, and of their sum as "total".
    """

    embedding: np.ndarray
    explained: dict[str, float]


def equal_energy(modalities: dict[str, Features]) -> np.ndarray:
    """Centre each modality by its mean, scale it to total variance 1, and concatenate.

    Means and variances are those of the items that have the modality; the others become zeros, the mean.

    Returns:
        float64 [n, sum of D].
    """
    rows = len(next(iter(modalities.values())).present)
    joined = np.zeros((rows, sum(modality.width for modality in modalities.values())))
    start = 0
    for name, modality in modalities.items():
        present = np.flatnonzero(modality.present)
        block = joined[:, start : start + modality.width]
        start += block.shape[1]
        values = modality.read(present).astype(np.float64)
        values -= values.mean(axis=0)
        energy = np.square(values).sum() / max(len(present), 1)
        if energy < 1e-12:
            raise UserError(
                f"{name}: the features of all {len(present)} items are the same, expected some variety; "
                f"check the input or leave it out with --{name}_encoder none"
            )
        values /= np.sqrt(energy)
        block[present] = values
    return joined


def pca(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """Principal components of the modalities at equal energy.

    The covariance's eigenvectors, each with its largest entry positive (Jolliffe 2002, ch. 3; the sign is a
    convention). Components keep their variances: no whitening, which would blow the noise of the last ones up to the
    size of the first. One common factor makes the mean squared norm of a row emb_dim (a column's mean variance 1),
    whatever the encoders are: a model's first product with it then has the size its initialisation counts on.

    Args:
        modalities: by name, over the same n items.
        emb_dim: components to keep.
        seed: not used, PCA has no randomness; part of every fusion's signature.

    Raises:
        UserError: the features have fewer than emb_dim independent directions.
    """
    with threadpool_limits(1, user_api="blas"):  # the bytes do not depend on the number of cores
        joined = equal_energy(modalities)
        rows, width = joined.shape
        covariance = joined.T @ joined / rows
        kept = min(emb_dim, width)
        variances, vectors = eigh(covariance, subset_by_index=[width - kept, width - 1])
        variances, vectors = variances[::-1], vectors[:, ::-1]  # the largest first
        noise = variances[0] * 1e-12 * width
        if emb_dim > width or variances[-1] <= noise:
            rank = int((eigh(covariance, eigvals_only=True) > noise).sum())
            raise UserError(
                f"emb_dim is {emb_dim}, but {rows} items with {width} {' + '.join(modalities)} features have {rank} "
                f"independent directions; choose --emb_dim {rank} or less"
            )
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.where(vectors[largest, np.arange(emb_dim)] < 0, -1.0, 1.0)
        embedding = joined @ (vectors * np.sqrt(emb_dim / variances.sum()))
    embedding += 0.0  # no negative zeros: an item without content is zeros, bit for bit
    return Fused(embedding.astype(np.float32), _explained(modalities, covariance, variances, vectors))


def _explained(
    modalities: dict[str, Features], covariance: np.ndarray, variances: np.ndarray, vectors: np.ndarray
) -> dict[str, float]:
    """The share of its variance that each block of columns keeps when it is rebuilt from the components."""
    rebuilt = np.square(vectors) @ variances
    original = np.diag(covariance)
    shares = {}
    start = 0
    for name, modality in modalities.items():
        block = slice(start, start + modality.width)
        start = block.stop
        shares[name] = float(rebuilt[block].sum() / original[block].sum())
    shares["total"] = float(rebuilt.sum() / original.sum())
    return shares


FUSIONS: dict[str, Callable[[dict[str, Features], int, int], Fused]] = {"pca": pca}

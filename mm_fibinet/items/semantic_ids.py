"""Semantic ids: an item's embedding as a few codes, so that a model learns a vector for what items have in common.

The embedding is quantised in levels: the first code says which of K groups an item is in, the second which group of
what the first one's centre leaves of it, and so on. Groups are those of k-means (QARM, arXiv 2411.11739; TIGER, arXiv
2305.05065) or the components of a Gaussian mixture, which knows that groups differ in size and width (RQ-GMM, arXiv
2602.12593). What is left is always taken from the chosen group's centre: the codes alone then rebuild the vector, and
how well they do is a figure of the codes.

RQ-GMM is what its summaries describe, the paper's own text not being at hand: at each level a mixture with diagonal
covariances, fitted by EM; an item's code is its likeliest component, whose mean is taken off.

K-means is SciPy's, with starts of its own (k-means++), since SciPy's releases do not agree on how to seed theirs.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.cluster.vq import kmeans2, vq
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from mm_fibinet.errors import UserError
from mm_fibinet.items.features import BLOCK_ROWS, sum_of_squares

SEQUENCE, LEVEL = "item_codes", "item_code"  # columns: all levels as a sequence, and each level LEVEL_1, LEVEL_2, ...
SAMPLE = 100_000  # items that groups are found on, where there are more
KMEANS_STEPS, EM_STEPS = 30, 50
LEAST_VARIANCE = 1e-6  # of a component's numbers, in units of the mean variance of the level's


@dataclass(frozen=True)
class SemanticIds:
    """Codes of n items.

    Attributes:
        codes: int64 [n, levels], 0 for an item without an embedding, else 1 .. size.
        size: codes a level.
        unexplained: the share of the embedding's variance that is left after each level.
        collisions: the share of items that have all codes in common with another one.
        used: how many of each level's codes some item has.
    """

    codes: np.ndarray
    size: int
    unexplained: list[float]
    collisions: float
    used: list[int]

    @property
    def sequence(self) -> np.ndarray:
        """The codes as one vocabulary, a range a level: int64 [n, levels] of 0 .. levels * size."""
        return np.where(self.codes > 0, self.codes + np.arange(self.codes.shape[1]) * self.size, 0)

    @property
    def columns(self) -> dict[str, pa.Array]:
        """For item_info, with the padding item: the codes as a sequence, and each level as an id."""
        levels = self.codes.shape[1]
        padding = np.zeros((1, levels), dtype=np.int64)
        sequence, ids = np.vstack([padding, self.sequence]), np.vstack([padding, self.codes])
        named = {SEQUENCE: pa.FixedSizeListArray.from_arrays(pa.array(sequence.reshape(-1)), levels)}
        return named | {f"{LEVEL}_{level + 1}": pa.array(ids[:, level]) for level in range(levels)}

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest and the summary."""
        return {
            "levels": self.codes.shape[1],
            "size": self.size,
            "used": self.used,
            "collisions": self.collisions,
            "unexplained": self.unexplained,
        }


@dataclass(frozen=True)
class Groups:
    """One level's groups.

    Attributes:
        centres: float64 [K, D].
        assign: float64 [m, D] to int64 [m], the groups of some vectors.
    """

    centres: np.ndarray
    assign: Callable[[np.ndarray], np.ndarray]


def quantise(embedding: np.ndarray, method: str, levels: int, size: int, seed: int = 0) -> SemanticIds:
    """Quantise item embeddings.

    Args:
        embedding: float32 [n, D]; a row of zeros is an item without one.
        method: a key of METHODS.
        levels: codes an item.
        size: groups a level, K.
        seed: of the starts.

    Raises:
        UserError: there are fewer than K different items with an embedding.
    """
    rows = np.flatnonzero(embedding.any(axis=1))
    different = len(np.unique(embedding[rows[: 4 * size]], axis=0))
    if different < size and (different := len(np.unique(embedding[rows], axis=0))) < size:
        raise UserError(
            f"--code_size is {size}, but {different} different items have an embedding; choose so many or less"
        )
    rng = np.random.default_rng(seed)
    left = embedding[rows].astype(np.float32)
    left -= left.mean(axis=0, dtype=np.float64).astype(np.float32)
    whole = sum_of_squares(left)
    codes = np.zeros((len(embedding), levels), dtype=np.int64)
    unexplained, used = [], []
    with threadpool_limits(1, user_api="blas"):  # the bytes do not depend on the number of cores
        for level in range(levels):
            sample = left if len(left) <= SAMPLE else left[np.sort(rng.choice(len(left), SAMPLE, replace=False))]
            groups = METHODS[method](sample.astype(np.float64), size, rng)
            for start in range(0, len(left), BLOCK_ROWS):
                block = left[start : start + BLOCK_ROWS]
                chosen = groups.assign(block.astype(np.float64))
                codes[rows[start : start + BLOCK_ROWS], level] = chosen + 1
                block -= groups.centres[chosen].astype(np.float32)
            unexplained.append(sum_of_squares(left) / whole)
            used.append(len(np.unique(codes[rows, level])))
    _, counts = np.unique(codes[rows], axis=0, return_counts=True)
    collisions = float(counts[counts > 1].sum() / max(len(rows), 1))
    return SemanticIds(codes, size, unexplained, collisions, used)


def require_possible(method: str | None, size: int, num_items: int) -> None:
    """Refuse a method that is none of METHODS, and more codes than items; None is no semantic ids."""
    if method is not None and method not in METHODS:
        raise UserError(f"--semantic_ids {method}: unknown, expected {' or '.join(METHODS)}")
    if method is not None and size > num_items:
        raise UserError(f"--code_size is {size}, but there are {num_items} items; choose so many or less")


def kmeans(vectors: np.ndarray, size: int, rng: np.random.Generator) -> Groups:
    """k-means from k-means++ starts (Arthur and Vassilvitskii 2007): float64 [m, D] to `size` groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group that loses all its members stays where it was
        centres, _ = kmeans2(vectors, spread_starts(vectors, size, rng), iter=KMEANS_STEPS, minit="matrix")
    return Groups(centres, lambda block: vq(block, centres, check_finite=False)[0].astype(np.int64))


def spread_starts(vectors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors [size, D] of [m, D], each drawn in proportion to its squared distance to those drawn before."""
    starts = [vectors[rng.integers(len(vectors))]]
    nearest = np.square(vectors - starts[0]).sum(axis=1)
    for _ in range(size - 1):
        cumulative = np.cumsum(nearest)
        place = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        starts.append(vectors[min(place, len(vectors) - 1)])
        nearest = np.minimum(nearest, np.square(vectors - starts[-1]).sum(axis=1))
    return np.stack(starts)


def gaussian_mixture(vectors: np.ndarray, size: int, rng: np.random.Generator) -> Groups:
    """A mixture of Gaussians with diagonal covariances, by EM from k-means (Bishop 2006, section 9.2.2).

    Args:
        vectors: float64 [m, D].
        size: components.
        rng: of the starts.
    """
    first = kmeans(vectors, size, rng)
    members = np.zeros((len(vectors), size))
    members[np.arange(len(vectors)), first.assign(vectors)] = 1
    floor = LEAST_VARIANCE * max(float(vectors.var(axis=0).mean()), 1e-12)
    mixture = fit_mixture(vectors, members, floor)
    for _ in range(EM_STEPS):
        scores = log_densities(vectors, *mixture)
        scores -= logsumexp(scores, axis=1, keepdims=True)
        mixture = fit_mixture(vectors, np.exp(scores), floor)
    weights, centres, variances = mixture
    return Groups(centres, lambda block: log_densities(block, weights, centres, variances).argmax(axis=1))


def fit_mixture(vectors: np.ndarray, members: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The M-step: weights [K], means [K, D] and variances [K, D] of memberships [m, K] in vectors [m, D]."""
    count = members.sum(axis=0) + 1e-12
    centres = members.T @ vectors / count[:, None]
    variances = members.T @ np.square(vectors) / count[:, None] - np.square(centres)
    return count / count.sum(), centres, np.maximum(variances, 0) + floor


def log_densities(vectors: np.ndarray, weights: np.ndarray, centres: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """log of weight times density, of vectors [m, D] under each of K components: float64 [m, K]."""
    precise = 1 / variances
    distance = np.square(vectors) @ precise.T - 2 * vectors @ (centres * precise).T + (centres**2 * precise).sum(axis=1)
    size = vectors.shape[1] * np.log(2 * np.pi) + np.log(variances).sum(axis=1)
    return np.log(weights) - (distance + size) / 2


METHODS: dict[str, Callable[[np.ndarray, int, np.random.Generator], Groups]] = {
    "kmeans": kmeans,
    "gmm": gaussian_mixture,
}

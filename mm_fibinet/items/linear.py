"""Fusions that are one linear map of the modalities at equal energy, found without a click.

They differ in what they keep: the directions of most variance over all modalities (`pca`), of each modality for its own
share of the numbers (`pca_per_modality`), all at one size (`whiten`), those that modalities agree on (`cca`), or, where
the modalities' encoders share one space, its directions (`mean`). Sums run in float64 and every direction's sign is
fixed, so the same features give the same bytes. One common factor makes the mean squared norm of a row emb_dim (a
column's mean variance 1), whatever the encoders are: a model's first product with it then has the size its
initialisation counts on.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import block_diag, eigh

from mm_fibinet.errors import UserError
from mm_fibinet.items.features import Features, blocks, present_in_any, sum_of_squares
from mm_fibinet.items.joined import Joined, one_thread


@dataclass(frozen=True)
class Fused:
    """A fusion's result.

    Attributes:
        embedding: float32 [n, emb_dim].
        explained: the share of each modality's variance that the embedding keeps, and of their sum as "total"; empty
            where the embedding is no map of the modalities.
        facts: what else the method found, by name.
    """

    embedding: np.ndarray
    explained: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


@one_thread
def pca(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """Principal components of the modalities at equal energy.

    The covariance's eigenvectors, each with its largest entry positive (Jolliffe 2002, ch. 3; the sign is a
    convention). Components keep their variances: no whitening, which would blow the noise of the last ones up to the
    size of the first.

    Args:
        modalities: by name, over the same n items.
        emb_dim: components to keep.
        seed: not used, there is no randomness; part of every fusion's signature.

    Raises:
        UserError: the features have fewer than emb_dim independent directions.
    """
    joined = Joined(modalities)
    covariance = joined.covariance()
    variances, vectors = _components(covariance, emb_dim, joined)
    return _projected(joined, covariance, vectors * np.sqrt(emb_dim / variances.sum()))


@one_thread
def whiten(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """Principal components, each scaled to variance 1.

    A few directions that all items share no longer decide every cosine (Su et al. 2021, arXiv 2103.15316, eq. 5 and 7).

    Args, Raises: as `pca`.
    """
    joined = Joined(modalities)
    covariance = joined.covariance()
    variances, vectors = _components(covariance, emb_dim, joined)
    return _projected(joined, covariance, vectors / np.sqrt(variances))


@one_thread
def pca_per_modality(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """Principal components of each modality, joined: emb_dim / M numbers each, the first ones get what is left over.

    No modality can crowd the other out. A modality with fewer directions than its share leaves the rest to the others.

    Args, Raises: as `pca`.
    """
    joined = Joined(modalities)
    covariance = joined.covariance()
    return _projected(joined, covariance, _map_per_modality(joined, covariance, emb_dim))


@one_thread
def cca(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """Canonical directions: what the modalities say of an item alike.

    Each modality is whitened on its emb_dim first principal components (Raghu et al. 2017, SVCCA: with more of them
    than items there are, everything correlates), and the components of these side by side are kept (MAXVAR, Kettenring
    1971, for any number of modalities; with an item's missing ones as zeros, Rastogi et al. 2015). For two modalities
    these are Hotelling's canonical variates, added up; the eigenvalues are 1 + the canonical correlations.

    Args: as `pca`.

    Raises:
        UserError: there is one modality, or they have fewer than emb_dim directions.
    """
    require_two(modalities)
    joined = Joined(modalities)
    covariance = joined.covariance()
    maps = []
    for columns in joined.columns.values():
        part = covariance[columns, columns]
        variances, vectors = _leading(part, min(emb_dim, _rank(part)))
        maps.append(vectors / np.sqrt(variances))
    whitening = block_diag(*maps)
    shared, directions = _components(whitening.T @ covariance @ whitening, emb_dim, joined)
    fused = _projected(joined, covariance, whitening @ directions * np.sqrt(emb_dim / shared.sum()))
    agreement = float((shared[0] - 1) / (len(modalities) - 1))
    return Fused(fused.embedding, fused.explained, {"largest_canonical_correlation": agreement})


def require_two(modalities: Collection[str]) -> None:
    """Refuse what `cca` cannot take: modalities, by name, of which there is one."""
    if len(modalities) < 2:
        raise UserError(f"cca: there is {', '.join(modalities)} alone, expected two modalities or more")


@one_thread
def components_per_modality(modalities: dict[str, Features], least: int, most: int) -> np.ndarray:
    """As many components as there are, at most `most`, divided as `pca_per_modality` does: float32 [n, k].

    Raises:
        UserError: there are fewer than `least`.
    """
    joined = Joined(modalities)
    covariance = joined.covariance()
    rank = sum(_rank(covariance[columns, columns]) for columns in joined.columns.values())
    return joined.project(_map_per_modality(joined, covariance, max(min(most, rank), least)))


def with_unit_variance(embedding: np.ndarray) -> np.ndarray:
    """The same times one factor, so that the mean squared norm of a row is its width: float32 [n, k]."""
    factor = np.sqrt(embedding.shape[1] * len(embedding) / max(sum_of_squares(embedding), 1e-12))
    return embedding * np.float32(factor) + np.float32(0)  # no negative zeros


def mean(modalities: dict[str, Features], emb_dim: int, seed: int = 0) -> Fused:
    """The mean of the modalities' unit vectors, of encoders with one space for all (CLIP, Radford et al. 2021).

    Where emb_dim is smaller than the space, `pca` of that. With all its numbers, the space is as the encoders made it:
    a text's vector can still be compared with an image's, and with those of other texts.

    Args: as `pca`.

    Raises:
        UserError: the modalities have different widths, or fewer than emb_dim numbers.
    """
    require_one_space({name: features.width for name, features in modalities.items()}, emb_dim)
    together = _Mean(modalities)
    if emb_dim < together.width:
        return pca({" + ".join(modalities): together}, emb_dim)
    embedding = np.zeros((len(together.present), emb_dim), dtype=np.float32)
    for rows, values in blocks(together):
        embedding[rows] = values
    return Fused(with_unit_variance(embedding), {"total": 1.0})


def require_one_space(widths: dict[str, int], emb_dim: int) -> None:
    """Refuse what `mean` cannot take: modalities, by name, of unlike widths, or narrower than emb_dim."""
    width = min(widths.values())
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name} has {width} numbers" for name, width in widths.items())
        raise UserError(
            f"mean: {found}, expected encoders of one space, as a CLIP model's for both; --opening_words 0 "
            "leaves the second text vector out"
        )
    if emb_dim > width:
        raise UserError(f"mean: emb_dim is {emb_dim}, but vectors have {width} numbers; choose so many or less")


class _Mean:
    """Features that are the mean of several modalities' unit vectors; a vector of zeros counts for nothing."""

    def __init__(self, modalities: dict[str, Features]):
        self.modalities = list(modalities.values())
        self.present = present_in_any(self.modalities)
        self.width = self.modalities[0].width

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Features`."""
        total = np.zeros((len(rows), self.width))
        for features in self.modalities:
            here = np.flatnonzero(features.present[rows])
            values = features.read(rows[here]).astype(np.float64)
            length = np.linalg.norm(values, axis=1, keepdims=True)
            total[here] += np.divide(values, length, out=np.zeros_like(values), where=length > 0)
        count = sum(features.present[rows].astype(np.int64) for features in self.modalities)
        return (total / np.maximum(count, 1)[:, None]).astype(np.float32)


def _components(covariance: np.ndarray, emb_dim: int, joined: Joined) -> tuple[np.ndarray, np.ndarray]:
    """The emb_dim leading variances [k] and directions [W, k]; a `UserError` where there are fewer."""
    kept = min(emb_dim, len(covariance))
    variances, vectors = _leading(covariance, kept)
    if emb_dim > len(covariance) or variances[-1] <= _noise(float(variances[0]), len(covariance)):
        raise _too_many(emb_dim, _rank(covariance), joined)
    return variances, vectors


def _leading(covariance: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenvalues, the largest first, and eigenvectors, each with its largest entry positive."""
    width = len(covariance)
    variances, vectors = eigh(covariance, subset_by_index=[width - kept, width - 1])
    variances, vectors = variances[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return variances, vectors * np.where(vectors[largest, np.arange(kept)] < 0, -1.0, 1.0)


def _rank(covariance: np.ndarray) -> int:
    """How many independent directions there are."""
    variances = eigh(covariance, eigvals_only=True)
    return int((variances > _noise(float(variances[-1]), len(covariance))).sum())


def _noise(largest: float, width: int) -> float:
    """What rounding leaves of a variance that is zero."""
    return largest * 1e-12 * width


def _too_many(emb_dim: int, rank: int, joined: Joined) -> UserError:
    return UserError(
        f"emb_dim is {emb_dim}, but {joined.rows} items with {joined.width} {joined.title} features have {rank} "
        f"independent directions; choose --emb_dim {rank} or less"
    )


def _map_per_modality(joined: Joined, covariance: np.ndarray, emb_dim: int) -> np.ndarray:
    """The map of `pca_per_modality`: float64 [W, emb_dim]."""
    parts = [covariance[columns, columns] for columns in joined.columns.values()]
    maps = []
    for part, share in zip(parts, _shares([_rank(part) for part in parts], emb_dim, joined), strict=True):
        variances, vectors = _leading(part, share)
        maps.append(vectors * np.sqrt(share / variances.sum()))
    return block_diag(*maps)


def _shares(ranks: list[int], emb_dim: int, joined: Joined) -> list[int]:
    """emb_dim divided evenly among modalities that have so many directions each."""
    if emb_dim > sum(ranks):
        raise _too_many(emb_dim, sum(ranks), joined)
    if emb_dim < len(ranks):
        raise UserError(
            f"pca_per_modality: emb_dim is {emb_dim} for {joined.title}, expected a number for each or more"
        )
    shares = [0] * len(ranks)
    for _ in range(emb_dim):
        open_ones = [place for place, rank in enumerate(ranks) if shares[place] < rank]
        shares[min(open_ones, key=lambda place: shares[place])] += 1
    return shares


def _projected(joined: Joined, covariance: np.ndarray, matrix: np.ndarray) -> Fused:
    """The items times a map [W, k], and what a linear regression rebuilds of each modality from the result."""
    seen = covariance @ matrix
    kept = np.einsum("wk,wk->w", seen, np.linalg.solve(matrix.T @ seen, seen.T).T)
    original = np.diag(covariance)
    explained = {name: float(kept[part].sum() / original[part].sum()) for name, part in joined.columns.items()}
    explained["total"] = float(kept.sum() / original.sum())
    return Fused(joined.project(matrix), explained)

"""How sure is an AUC, and is a difference more than luck? DeLong's test, and a bootstrap over users.

Two models scored the same rows, so their AUCs move together, and both methods keep the pairing. DeLong's test is exact
about that but takes every row as independent; the rows of one user are not, so the bootstrap draws users with all
their rows and is the one to trust where they disagree. With several seeds a model's AUC is the mean over its seeds,
and both methods test the difference of these means: of the numbers in the leaderboard, not of an ensemble that
averages scores, which would be better than either. What they measure is the luck of the validation rows; the luck of
training is the deviation over seeds, shown beside it.

E. DeLong, D. DeLong, D. Clarke-Pearson: Comparing the Areas under Two or More Correlated ROC Curves. Biometrics 44
(1988). X. Sun, W. Xu: Fast Implementation of DeLong's Algorithm for Comparing the Areas Under Correlated ROC Curves.
IEEE Signal Processing Letters 21 (2014).
"""

import math
from typing import NamedTuple

import numpy as np

from mm_fibinet.errors import UserError

RESAMPLES = 1000
P_FLOOR = 2 / (RESAMPLES + 1)  # the bootstrap's smallest p-value: all draws on one side
CONFIDENCE = 0.95
NORMAL_95 = 1.959964  # half the width of a 95 % interval, in standard deviations


class Comparison(NamedTuple):
    """One model against another on the same rows.

    Attributes:
        difference: AUC of the model minus AUC of the other, means over their seeds.
        p_delong: two-sided p-value of DeLong's test.
        low, high: the 95 % interval of the difference, percentiles of the bootstrap over users.
        p_bootstrap: two-sided p-value of the bootstrap; it cannot fall below P_FLOOR.
    """

    difference: float
    p_delong: float
    low: float
    high: float
    p_bootstrap: float


class Interval(NamedTuple):
    """An AUC with its 95 % interval."""

    auc: float
    low: float
    high: float


class Pairs:
    """Models on the same rows, each alone and any against any other; both methods' work for all is done once.

    Args:
        label: [N], 0 or 1.
        user: integer [N].
        scores: {model: float [S, N]}, a row for each of its S seeds; S may differ between models.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than two rows of one class.
    """

    def __init__(self, label: np.ndarray, user: np.ndarray, scores: dict[str, np.ndarray], seed: int = 2025):
        stacked = np.concatenate(list(scores.values()))
        self._owner = np.repeat(list(scores), [len(own) for own in scores.values()])
        self._auc, self._covariance = delong(label, stacked)
        self._resampled = bootstrap_auc(label, stacked, user, seed=seed)

    def compare(self, model: str, other: str) -> Comparison:
        """The model against the other."""
        contrast = self._mean_of(model) - self._mean_of(other)
        difference = float(_without_noise(contrast @ self._auc, len(contrast)))
        variance = float(contrast @ self._covariance @ contrast)
        low, high, p_bootstrap = _interval(_without_noise(self._resampled @ contrast, len(contrast)))
        return Comparison(difference, _normal_p(difference, variance), low, high, p_bootstrap)

    def interval(self, model: str) -> Interval:
        """The model's AUC, the mean over its seeds, with its 95 % interval by the bootstrap over users."""
        own = self._owner == model
        return Interval(float(self._auc[own].mean()), *_interval(self._resampled[:, own].mean(axis=1))[:2])

    def _mean_of(self, model: str) -> np.ndarray:
        return (self._owner == model) / np.sum(self._owner == model)


def mean_auc_intervals(
    label: np.ndarray, user: np.ndarray, scores: dict[str, np.ndarray], seed: int = 2025
) -> dict[str, Interval]:
    """Each model's AUC with its interval, see `Pairs`: {model: Interval}."""
    pairs = Pairs(label, user, scores, seed)
    return {model: pairs.interval(model) for model in scores}


def auc_intervals(
    label: np.ndarray, scores: np.ndarray, user: np.ndarray | None = None, seed: int = 2025
) -> list[Interval]:
    """AUCs, each with its 95 % interval.

    Args:
        label: [N], 0 or 1.
        scores: float [K, N], one row a score.
        user: integer [N]; the interval is then of percentiles of the bootstrap over users. None takes rows as
            independent: the interval is normal with DeLong's variance, which few rows can carry beyond 0 and 1.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than two rows of one class.
    """
    auc, covariance = delong(label, scores)
    if user is None:
        half = NORMAL_95 * np.sqrt(np.maximum(covariance.diagonal(), 0))
        return [Interval(float(a), float(a - h), float(a + h)) for a, h in zip(auc, half, strict=True)]
    resampled = bootstrap_auc(label, scores, user, seed=seed)
    return [Interval(float(a), *_interval(drawn)[:2]) for a, drawn in zip(auc, resampled.T, strict=True)]


def delong(label: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and their covariance by DeLong's method, in Sun & Xu's form (2014, algorithm 2): sorts, no pairs.

    Args:
        label: [N], 0 or 1.
        scores: float [K, N], one row a model.

    Returns:
        (float [K] AUCs, float [K, K] covariance of these).

    Raises:
        UserError: fewer than two rows of one class, which have no variance.
    """
    positive = np.asarray(label).astype(bool)
    scores = np.atleast_2d(scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise UserError(f"DeLong's test needs two rows of each label, found {m} of label 1 and {n} of label 0")
    over_negatives = np.empty((len(scores), m))  # V10: for each positive, the share of negatives it ranks above
    over_positives = np.empty((len(scores), n))  # V01: for each negative, the share of positives ranked above it
    for k, row in enumerate(scores):
        ranks = midranks(row)
        over_negatives[k] = (ranks[positive] - midranks(row[positive])) / n
        over_positives[k] = 1 - (ranks[~positive] - midranks(row[~positive])) / m
    auc = over_negatives.mean(axis=1)
    covariance = np.cov(over_negatives) / m + np.cov(over_positives) / n
    return auc, covariance.reshape(len(scores), len(scores))


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs (Sun & Xu 2014, algorithm 1).

    Args:
        values: float [N].

    Returns:
        float64 [N].
    """
    order = np.argsort(values, kind="stable")
    starts = _tie_starts(values[order])
    sizes = np.diff(np.append(starts, len(values)))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks


def bootstrap_auc(
    label: np.ndarray, scores: np.ndarray, user: np.ndarray, resamples: int = RESAMPLES, seed: int = 2025
) -> np.ndarray:
    """AUCs over users drawn with replacement, all models on the same draws.

    A user drawn twice counts twice: each resample is an AUC with weights, over scores that were sorted once.

    Args:
        label: [N], 0 or 1.
        scores: float [K, N].
        user: integer [N].
        resamples: R.
        seed: of the draws.

    Returns:
        float [R, K]; NaN where a draw has rows of one label only.
    """
    _, user = np.unique(user, return_inverse=True)
    num_users = int(user.max()) + 1
    sorted_models = []
    for row in np.atleast_2d(scores):
        order = np.argsort(row, kind="stable")
        sorted_models.append((user[order], np.asarray(label)[order].astype(float), _tie_starts(row[order])))
    generator = np.random.default_rng(seed)
    drawn_auc = np.empty((resamples, len(sorted_models)))
    for resample in range(resamples):
        times = np.bincount(generator.integers(0, num_users, num_users), minlength=num_users).astype(float)
        for model, (user_sorted, label_sorted, ties) in enumerate(sorted_models):
            drawn_auc[resample, model] = _weighted_auc(label_sorted, times[user_sorted], ties)
    return drawn_auc


def _weighted_auc(label: np.ndarray, weight: np.ndarray, ties: np.ndarray) -> float:
    """AUC of rows in ascending order of score, each counted `weight` times.

    Args:
        label: float [N].
        weight: float [N].
        ties: integer [T], the first row of each group of equal scores.
    """
    positive = weight * label
    negative = weight - positive
    if len(ties) < len(label):
        positive, negative = np.add.reduceat(positive, ties), np.add.reduceat(negative, ties)
    below = np.cumsum(negative)
    pairs = positive.sum() * below[-1]
    return float(positive @ (below - negative / 2) / pairs) if pairs else math.nan


def _tie_starts(ordered: np.ndarray) -> np.ndarray:
    """The first index of each run of equal values."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _without_noise(differences: np.ndarray, terms: int) -> np.ndarray:
    """Differences with 0 for what rounding alone can make of so many AUCs; a pair of rows in another order is more.

    Models that are equal at every seed differ by 1e-17 in sums of thirds, which no variance is small enough for.
    """
    return np.where(np.abs(differences) <= 4 * terms * np.finfo(np.float64).eps, 0.0, differences)


def _normal_p(difference: float, variance: float) -> float:
    """Two-sided p-value of a difference that is normal around 0; 1 when there is nothing to tell apart."""
    if variance <= 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def _interval(differences: np.ndarray) -> tuple[float, float, float]:
    """(low, high, two-sided p-value) of bootstrap differences [R]; the p-value counts the sample itself as a draw."""
    drawn = differences[~np.isnan(differences)]
    if not len(drawn):
        return math.nan, math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    opposite = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    return float(low), float(high), float(min(1.0, 2 * (opposite + 1) / (len(drawn) + 1)))

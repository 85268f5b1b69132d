"""AUC, logloss and gAUC of a whole split at once, as array operations.

FuxiCTR appends every score to a Python list and sends each group of gAUC to a process pool as a task; at 100,000
groups that takes minutes. Here every metric is a sort and a few cumulative sums, on numpy arrays. Values equal
scikit-learn's and FuxiCTR's.
"""

from collections.abc import Sequence

import numpy as np

from mm_fibinet.errors import UserError

METRICS = ("AUC", "logloss", "gAUC")
OTHER_NAMES = {"binary_crossentropy": "logloss"}  # FuxiCTR's


def evaluate_metrics(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    metrics: Sequence[str],
    group_id: np.ndarray | None = None,
    allow_undefined: bool = False,
) -> dict[str, float]:
    """The metrics by name.

    Args:
        y_true: [N], 0 or 1.
        y_pred: float [N], click probabilities.
        metrics: names out of METRICS or OTHER_NAMES.
        group_id: integer [N], needed by gAUC.
        allow_undefined: give NaN for a metric that the labels leave undefined, instead of refusing.

    Raises:
        UserError: an unknown metric, gAUC without groups, a metric that the labels leave undefined (all of one class),
            NaN, other labels than 0 and 1, arrays of unequal lengths or without rows.
    """
    values = {}
    for metric in metrics:
        if metric == "AUC":
            values[metric] = group_auc(y_true, y_pred, np.zeros(len(y_true), dtype=np.int8))
        elif OTHER_NAMES.get(metric, metric) == "logloss":
            values[metric] = logloss(y_true, y_pred)
        elif metric == "gAUC":
            if group_id is None:
                raise UserError("metric gAUC needs group_id in the config, for example group_id: user_id")
            values[metric] = group_auc(y_true, y_pred, group_id)
        else:
            raise UserError(f"metric {metric!r} is unknown, expected one of {', '.join(METRICS)}")
    if not allow_undefined and any(map(np.isnan, values.values())):
        raise UserError("; ".join(undefined_metrics(metrics, y_true, group_id).values()))
    return values


def undefined_metrics(metrics: Sequence[str], y_true: np.ndarray, group_id: np.ndarray | None = None) -> dict[str, str]:
    """{metric: why} of those that have no value with these labels, whatever the scores are.

    Args:
        metrics, y_true, group_id: of `evaluate_metrics`.
    """
    reasons = {}
    if "AUC" in metrics and np.min(y_true) == np.max(y_true):
        reasons["AUC"] = _one_class(y_true)
    if "gAUC" in metrics and group_id is not None:
        groups, index, rows = np.unique(np.asarray(group_id), return_inverse=True, return_counts=True)
        clicks = np.bincount(index.reshape(-1), weights=np.asarray(y_true, dtype=np.float64))
        if not np.any((clicks > 0) & (clicks < rows)):
            reasons["gAUC"] = (
                f"gAUC is not defined: none of the {len(groups)} groups of group_id has both labels, expected at least "
                "one; group by another column, or leave gAUC out"
            )
    return reasons


def auc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counted half.

    Args:
        y_true: [N], 0 or 1, both present.
        y_pred: float [N].
    """
    value = group_auc(y_true, y_pred, np.zeros(len(y_true), dtype=np.int8))
    if np.isnan(value):
        raise UserError(_one_class(y_true))
    return value


def group_auc(y_true: np.ndarray, y_pred: np.ndarray, group_id: np.ndarray) -> float:
    """gAUC (DIN, Zhou et al. 2018, eq. 7): the groups' AUCs, weighted by their rows.

    Groups whose labels are all the same have no AUC and are left out, as in FuxiCTR.

    Args:
        y_true: [N], 0 or 1.
        y_pred: float [N].
        group_id: [N], rows of equal id form a group.

    Returns:
        gAUC, NaN when no group has both labels.
    """
    y_true, y_pred = _checked(y_true, y_pred)
    group_id = np.asarray(group_id)
    if group_id.shape != y_true.shape:
        raise UserError(f"got {len(group_id)} group ids for {len(y_true)} labels, expected as many")
    order = np.argsort(y_pred, kind="stable")
    if (group_id.size and group_id[0] != group_id[-1]) or np.any(group_id != group_id[:1]):
        order = order[np.argsort(group_id[order], kind="stable")]
    group, score, label = group_id[order], y_pred[order], y_true[order]

    new_group = np.concatenate([[True], group[1:] != group[:-1]])
    new_tie = new_group | np.concatenate([[True], score[1:] != score[:-1]])
    ties = np.flatnonzero(new_tie)
    tie_sizes = np.diff(np.append(ties, len(order)))
    mid_rank = np.repeat(ties + (tie_sizes + 1) / 2, tie_sizes)  # average rank among equal scores, over all rows

    starts = np.flatnonzero(new_group)
    sizes = np.diff(np.append(starts, len(order)))
    positives = np.add.reduceat(label, starts)
    rank_sums = np.add.reduceat(label * (mid_rank - np.repeat(starts, sizes)), starts)
    negatives = sizes - positives
    valid = (positives > 0) & (negatives > 0)
    if not valid.any():
        return float("nan")
    positives, negatives, sizes = positives[valid], negatives[valid], sizes[valid]
    aucs = (rank_sums[valid] - positives * (positives + 1) / 2) / (positives * negatives)
    return float(np.sum(aucs * sizes) / np.sum(sizes))


def logloss(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean negative log-likelihood, scores clipped to the float64 resolution as scikit-learn does.

    Args:
        y_true: [N], 0 or 1.
        y_pred: float [N], in [0, 1].
    """
    y_true, y_pred = _checked(y_true, y_pred)
    eps = np.finfo(np.float64).eps
    clipped = np.clip(y_pred, eps, 1 - eps)
    return float(-np.mean(y_true * np.log(clipped) + (1 - y_true) * np.log1p(-clipped)))


def require_scores(y_pred: np.ndarray) -> None:
    """A `UserError` that names the first NaN among scores: float [N]."""
    broken = np.flatnonzero(np.isnan(y_pred))
    if broken.size:
        raise UserError(
            f"{broken.size} of {len(y_pred)} scores are NaN, the first in row {broken[0]}, expected probabilities; the "
            "weights are broken or the inputs too large: lower learning_rate, or check the embeddings' scale"
        )


def _checked(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as float64 [N]; refused when a metric of them would mean nothing."""
    y_true, y_pred = np.asarray(y_true, dtype=np.float64), np.asarray(y_pred, dtype=np.float64)
    if y_true.ndim != 1 or y_true.shape != y_pred.shape:
        raise UserError(f"got labels of shape {y_true.shape} and scores of shape {y_pred.shape}, expected [N] of both")
    if not len(y_true):
        raise UserError("got no labels and no scores, expected at least one row")
    wrong = np.flatnonzero((y_true != 0) & (y_true != 1))
    if wrong.size:
        raise UserError(f"label {y_true[wrong[0]]:g} in row {wrong[0]}, expected 0 or 1")
    require_scores(y_pred)
    return y_true, y_pred


def _one_class(y_true: np.ndarray) -> str:
    return f"AUC is not defined: all {len(y_true)} labels are the same, expected both 0 and 1"

"""Features of a row that tell its item: with negatives drawn beside a click, they tell the label.

A drawn negative has the row features of the click that it was drawn for: the same user, moment and device, another
item. A price or a category in that row is the clicked item's, and a model learns to see that it is not the other's.
"""

import numpy as np

LEAST_BY_CHANCE = 100  # pairs that would differ; of fewer, many may agree by luck


def of_features(
    features: dict[str, np.ndarray], user: np.ndarray, item: np.ndarray, clicked: np.ndarray
) -> dict[str, float]:
    """How far each feature tells the item: how much more often two users' clicks of it agree than others do.

    The others are any two clicks, or two of one user on different items, whichever agree more often: what is the user's
    own, a country say, tells of the item what the user tells.

    Args:
        features: {name: int32 [n], ids with 0 for none, or float32 [n] with NaN}.
        user, item: int32 [n].
        clicked: bool [n], the clicks of train.

    Returns:
        {name: 1 if two clicks of one item always have the same value, 0 if no more often than others}.
    """
    return {name: _agreement(values[clicked], user[clicked], item[clicked]) for name, values in features.items()}


def _agreement(values: np.ndarray, user: np.ndarray, item: np.ndarray) -> float:
    there = ~np.isnan(values) if values.dtype.kind == "f" else values > 0
    values, user, item = values[there], user[there], item[there]
    same_item, pairs = _agree(values, item, user)
    same_user, _ = _agree(values, user, item)
    shares = np.unique(values, return_counts=True)[1] / max(len(values), 1)
    others = max(float((shares**2).sum()), same_user)
    if pairs * (1 - others) < LEAST_BY_CHANCE:
        return 0.0
    return (same_item - others) / (1 - others)


def _agree(values: np.ndarray, within: np.ndarray, apart: np.ndarray) -> tuple[float, int]:
    """How often two rows that are alike in one thing and not in another have the same value; and how many such pairs.

    Each row is compared with one other at most, of those with its own `within` by chance: neighbours may be alike.
    """
    order = np.random.default_rng(0).permutation(len(values))
    order = order[np.argsort(within[order], kind="stable")]
    first, second = order[:-1], order[1:]
    pairs = (within[first] == within[second]) & (apart[first] != apart[second])
    agree = (values[first] == values[second])[pairs]
    return (float(agree.mean()) if len(agree) else 0.0), len(agree)

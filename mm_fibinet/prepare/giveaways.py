"""Features of a row that tell its item: with negatives drawn beside a click, they tell the label.

A drawn negative has the row features of the click that it was drawn for: the same user, moment and device, another
item. A price or a category in that row is the clicked item's, and a model learns to see that it is not the other's.
"""

import numpy as np

from mm_fibinet.errors import UserError

LEAST_BY_CHANCE = 20  # pairs that would differ; of fewer, all may agree by luck
TELLS = 0.9  # refused; a category that each item has one of has 1, an hour of the day about 0


def of_features(
    features: dict[str, np.ndarray], user: np.ndarray, item: np.ndarray, clicked: np.ndarray
) -> dict[str, float]:
    """How far each feature tells the item: by how much more often than by chance two users' clicks of it agree.

    Args:
        features: {name: int32 [n], ids with 0 for none, or float32 [n] with NaN}.
        user, item: int32 [n].
        clicked: bool [n], the clicks of train.

    Returns:
        {name: 1 if two clicks of one item always have the same value, 0 if no more often than any two}.

    Raises:
        UserError: a feature tells it in TELLS of the cases.
    """
    found = {name: _agreement(values[clicked], user[clicked], item[clicked]) for name, values in features.items()}
    for name, share in found.items():
        if share > TELLS:
            raise UserError(
                f"feature {name}: clicks of one item have the same {name}, so that a drawn negative, which has its "
                "click's, is seen to be one; name it in item_features, from the catalogue, leave it out, or set "
                "negatives: 0"
            )
    return found


def _agreement(values: np.ndarray, user: np.ndarray, item: np.ndarray) -> float:
    there = ~np.isnan(values) if values.dtype.kind == "f" else values > 0
    values, user, item = values[there], user[there], item[there]
    order = np.random.default_rng(0).permutation(len(item))  # neighbours among users may be alike
    order = order[np.argsort(item[order], kind="stable")]
    values, user, item = values[order], user[order], item[order]
    pairs = (item[1:] == item[:-1]) & (user[1:] != user[:-1])
    shares = np.unique(values, return_counts=True)[1] / max(len(values), 1)
    by_chance = float((shares**2).sum())
    if pairs.sum() * (1 - by_chance) < LEAST_BY_CHANCE:
        return 0.0
    return (float((values[1:] == values[:-1])[pairs].mean()) - by_chance) / (1 - by_chance)

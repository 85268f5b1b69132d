"""Popularity as levels from 1 to 10, by rank, from training rows alone; 0 is an item that train does not have.

Level 10 are the tenth of the items with the most, level 1 that with the least; equal values are of one level, the
lowest that any of them would have. A cold item has a level of its own, and not the lowest: nothing is known of it.
"""

import numpy as np

LEVELS = 10


def levels(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Levels by rank.

    Args:
        values: float or int [n].
        known: bool [n], the items that have a value.

    Returns:
        int64 [n]: 1 + floor(10 * the share of the known that are smaller), 0 for the unknown.
    """
    found = np.zeros(len(values), dtype=np.int64)
    ranked = np.sort(values[known])
    if len(ranked):
        found[known] = 1 + LEVELS * np.searchsorted(ranked, values[known], side="left") // len(ranked)
    return found


def counts_and_ratings(
    item: np.ndarray, rating: np.ndarray | None, num_items: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Of training rows: how often each item occurs, its mean rating, and whether it has one.

    Args:
        item: int32 [n], below num_items.
        rating: float [n], NaN where a row has none; None where there are no ratings.
    """
    counts = np.bincount(item, minlength=num_items)
    if rating is None:
        return counts, None, None
    rated = ~np.isnan(rating)
    ratings = np.bincount(item[rated], minlength=num_items)
    sums = np.bincount(item[rated], weights=rating[rated], minlength=num_items)
    return counts, sums / np.maximum(ratings, 1), ratings > 0

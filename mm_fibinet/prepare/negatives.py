"""Items that a user never clicked, drawn from train's items: exactly, and without trying again.

With integer weights (1 each, or an item's clicks in train) all items lie one behind the other on a line, each as long
as its weight. A user's own clicks are cut out of it, a point is drawn on what remains, and the point's item is found by
adding the stretches that were cut out before it: two binary searches a draw, whatever share of the items a user has.
"""

import numpy as np

DRAWS_AT_ONCE = 4_000_000


class NegativeSampler:
    """Draws items that are no positives of a user.

    Args:
        user: int32 [P], and
        item: int32 [P], the positives of any time, in any order, repeated ones too.
        weights: int64 [num_items], 0 for items that are never drawn (those that train lacks, the padding item).
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, weights: np.ndarray):
        num_items = len(weights)
        pairs = np.unique(user.astype(np.int64) * num_items + item)
        owner, item = np.divmod(pairs, num_items)
        self._ends = weights.cumsum()
        self._total = int(self._ends[-1])
        self._cut = np.concatenate([[0], np.cumsum(weights[item])])  # of all pairs before
        users = int(user.max(initial=-1)) + 1
        self._first = owner.searchsorted(np.arange(users + 1))
        self._free = self._total - np.diff(self._cut[self._first])
        cut_before = self._cut[:-1] - self._cut[self._first[owner]]
        reached = self._ends[item] - weights[item] - cut_before  # the point on a user's line at which a pair is cut out
        self._keys = owner * (self._total + 1) + reached

    def has_any(self, user: np.ndarray) -> np.ndarray:
        """Whether a user can have negatives at all, not having clicked all there is: bool [n]."""
        return self._free[user] > 0

    def draw(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One item for each: int32 [n], of users for whom there is any; with replacement."""
        drawn = np.empty(len(user), dtype=np.int32)
        for first in range(0, len(user), DRAWS_AT_ONCE):
            part = slice(first, first + DRAWS_AT_ONCE)
            drawn[part] = self._draw(user[part].astype(np.int64), rng)
        return drawn

    def _draw(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        point = rng.integers(self._free[user])
        passed = self._keys.searchsorted(user * (self._total + 1) + point, side="right")
        point += self._cut[passed] - self._cut[self._first[user]]
        return self._ends.searchsorted(point, side="right")

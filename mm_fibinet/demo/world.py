"""The world behind the demo data: items, users, and the model by which users click.

Real data never tells how well a model could do. Here every click is drawn from a stated probability:

    p(click) = sigmoid(b0 + W_TOPIC [user likes the item's topic] + W_STYLE [user likes the item's style]
                          + W_POPULARITY (likes_level + views_level - 10) / 10)

so the AUC of p itself is the best that any model can reach on average. Tastes show in the history only: it holds what
the user clicked when shown items in proportion to 1 + views_level. The items of the cold groups are shown in valid or
in test alone, never in train and in no history.
"""

import dataclasses
import zlib

import numpy as np

from mm_fibinet.demo.covers import STYLES
from mm_fibinet.demo.titles import TOPICS
from mm_fibinet.progress import track

CTR = 0.25
W_TOPIC = 3.8
W_STYLE = 3.8
W_POPULARITY = 1.2
FORMULA = (
    "p = sigmoid(b0 + w_topic * [user likes topic] + w_style * [user likes style]"
    " + w_popularity * (likes_level + views_level - 10) / 10)"
)
LIKED_TOPICS = 4
LIKED_STYLES = 3
LEVELS = 11
COLD_ITEMS = {"cold_valid": 0.05, "cold_test": 0.10}
COLD_ROWS = 0.20

# Chunks are sized for the cache; they order the random draws, so changing one changes the data.
_USER_CHUNK = 4_096
_EXPOSURES = 128

# The logit without b0, [topic liked, style liked, likes_level + views_level].
_LOGITS = (
    W_TOPIC * np.arange(2)[:, None, None]
    + W_STYLE * np.arange(2)[:, None]
    + W_POPULARITY * (np.arange(2 * LEVELS - 1) - 10) / 10
)


@dataclasses.dataclass(frozen=True)
class World:
    """Items and users as they really are. Row = id, from 1; row 0 is padding.

    Attributes:
        topic, style, likes_level, views_level: int64 [items + 1].
        pools: group -> its item ids, each 1 + views_level times; groups are warm, cold_valid and cold_test.
        likes_topic: bool [users + 1, topics].
        likes_style: bool [users + 1, styles].
        b0: the logit's constant.
    """

    topic: np.ndarray
    style: np.ndarray
    likes_level: np.ndarray
    views_level: np.ndarray
    pools: dict[str, np.ndarray]
    likes_topic: np.ndarray
    likes_style: np.ndarray
    b0: float = 0.0

    def expose(self, rng: np.random.Generator, size: int | tuple[int, int], group: str = "warm") -> np.ndarray:
        """Item ids of a group, drawn in proportion to 1 + views_level."""
        pool = self.pools[group]
        return pool[rng.integers(len(pool), size=size)]

    def click_probability(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """True click probability, float64, of users and items that broadcast together."""
        return _sigmoid(self.b0 + _LOGITS)[self.logit_index(users, items)]

    def logit_index(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where in `_LOGITS` users and items meet: topic liked, style liked, sum of the levels."""
        likes_topic = self.likes_topic[users, self.topic[items]].astype(np.int64)
        likes_style = self.likes_style[users, self.style[items]].astype(np.int64)
        return likes_topic, likes_style, (self.likes_level + self.views_level)[items]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a split: user and item int64 [n], true click probability float64 [n], label int64 [n]."""

    user: np.ndarray
    item: np.ndarray
    probability: np.ndarray
    label: np.ndarray


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A random stream for each purpose, so that one more draw here changes nothing elsewhere."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def expected_auc(score: np.ndarray, probability: np.ndarray) -> float | None:
    """AUC of `score` when every label is drawn with its `probability`; with labels for probabilities, the plain AUC.

    The expected number of rightly ordered (click, no click) pairs of rows over the expected number of such pairs; equal
    scores count one half.

    Args:
        score: float [n].
        probability: float [n], of label 1.

    Returns:
        The AUC, or None when there is no such pair.
    """
    values, index = np.unique(score, return_inverse=True)
    clicks = np.bincount(index, probability, len(values))
    others = np.bincount(index, 1.0 - probability, len(values))
    with_itself = np.sum(probability * (1.0 - probability))
    pairs = clicks.sum() * others.sum() - with_itself
    ordered = clicks @ (np.cumsum(others) - others / 2) - with_itself / 2
    return float(ordered / pairs) if pairs > 0 else None


def draw_world(items: int, users: int, seed: int) -> World:
    """Draw items, users and tastes, and set b0 so that a warm exposure is clicked with probability 0.25."""
    rng = stream(seed, "items")
    popularity = rng.normal(size=items)
    fans = 0.8 * popularity + 0.6 * rng.normal(size=items)
    views_level = _padded(np.clip(np.rint(5 + 2.2 * popularity), 0, LEVELS - 1))
    likes_level = _padded(np.clip(np.rint(5 + 2.2 * fans), 0, LEVELS - 1))
    topic = _padded(rng.permutation(items) % len(TOPICS))
    style = _padded(rng.permutation(items) % len(STYLES))

    ids = rng.permutation(items) + 1
    pools = {}
    for group, share in COLD_ITEMS.items():
        count = round(share * items)
        pools[group], ids = np.sort(ids[:count]), ids[count:]
    pools["warm"] = np.sort(ids)
    pools = {group: np.repeat(members, 1 + views_level[members]) for group, members in pools.items()}

    rng = stream(seed, "users")
    likes_topic = _draw_tastes(rng, users + 1, len(TOPICS), LIKED_TOPICS)
    likes_style = _draw_tastes(rng, users + 1, len(STYLES), LIKED_STYLES)
    world = World(topic, style, likes_level, views_level, pools, likes_topic, likes_style)
    return dataclasses.replace(world, b0=_calibrate(world, rng))


def _padded(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], values]).astype(np.int64)


def _draw_tastes(rng: np.random.Generator, users: int, kinds: int, liked: int) -> np.ndarray:
    """bool [users, kinds]: each user likes `liked` kinds, all choices being equally likely."""
    noise = rng.random((users, kinds))
    return noise <= np.sort(noise, axis=1)[:, liked - 1, None]


def _calibrate(world: World, rng: np.random.Generator, pairs: int = 1_000_000) -> float:
    """The b0 for which the mean click probability of warm exposures is CTR, by bisection."""
    users = rng.integers(1, len(world.likes_topic), pairs)
    cell = np.ravel_multi_index(world.logit_index(users, world.expose(rng, pairs)), _LOGITS.shape)
    share = np.bincount(cell, minlength=_LOGITS.size) / pairs
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        too_many = share @ _sigmoid(middle + _LOGITS).ravel() > CTR
        low, high = (low, middle) if too_many else (middle, high)
    return low


def draw_histories(world: World, max_len: int, rng: np.random.Generator) -> np.ndarray:
    """The last clicks of every user, by showing items until enough of them are clicked.

    Whole histories have max_len / 4 to 2 max_len clicks, all lengths being equally likely; the last max_len remain.

    Args:
        world: items, users and the click model.
        max_len: width of the result.
        rng: the stream to draw from.

    Returns:
        int32 [users + 1, max_len], zeros in front; row 0 is all zeros.
    """
    users = len(world.likes_topic) - 1
    histories = np.zeros((users + 1, max_len), np.int32)
    length = np.minimum(rng.integers(max(1, max_len // 4), 2 * max_len + 1, users + 1), max_len)
    with track(desc="histories", total=users, unit="user") as progress:
        for first in range(1, users + 1, _USER_CHUNK):
            chunk = np.arange(first, min(first + _USER_CHUNK, users + 1))
            _fill_histories(world, histories, length, chunk, rng)
            progress.update(len(chunk))
    return histories


def _fill_histories(
    world: World, histories: np.ndarray, length: np.ndarray, pending: np.ndarray, rng: np.random.Generator
) -> None:
    """Fill the rows `pending` of `histories`, from the left end of each user's last `length` positions."""
    gap = histories.shape[1] - length
    filled = np.zeros_like(length)
    while pending.size:
        items = world.expose(rng, (pending.size, _EXPOSURES))
        clicked = rng.random(items.shape) < world.click_probability(pending[:, None], items)
        count = filled[pending, None] + np.cumsum(clicked, axis=1)
        row, shown = np.nonzero(clicked & (count <= length[pending, None]))
        histories[pending[row], gap[pending[row]] + count[row, shown] - 1] = items[row, shown]
        filled[pending] = count[:, -1]
        pending = pending[filled[pending] < length[pending]]


def draw_rows(world: World, size: int, rng: np.random.Generator, cold: str | None = None) -> Rows:
    """Show items to random users: warm ones, and in a fifth of the rows those of the group `cold`, if one is given."""
    user = rng.integers(1, len(world.likes_topic), size)
    item = world.expose(rng, size)
    if cold:
        places = rng.permutation(size)[: round(COLD_ROWS * size)]
        item[places] = world.expose(rng, len(places), cold)
    probability = world.click_probability(user, item)
    return Rows(user, item, probability, (rng.random(size) < probability).astype(np.int64))


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))

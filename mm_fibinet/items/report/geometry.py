"""The shape of an embedding: how long its vectors are, how they point, who is near whom, and what is there twice.

What is a sum over all pairs of items has a form that is one pass over the items; what needs each item's neighbours is
exact for catalogues of up to EXACT_ITEMS, and beyond that told from a sample that the seed draws.
"""

from dataclasses import dataclass

import numpy as np

K = 10  # neighbours an item
EXACT_ITEMS = 20_000  # n^2 cosines take seconds
QUERIES = 2_000  # items whose neighbours among all are looked up in larger catalogues
NEARLY_SAME = 0.99  # cosine
BLOCK_NUMBERS = 1 << 24  # cosines at once, 64 MB
GROUP = 128  # cosines whose maximum is looked at first


@dataclass(frozen=True)
class Geometry:
    """An embedding column in figures.

    Attributes:
        items: without the padding item.
        missing: how many of them have a row of zeros.
        width: numbers an item.
        directions: how many directions carry the variance, (sum of eigenvalues)^2 / sum of their squares.
        norms: the 1 %, 50 % and 99 % quantiles of the vectors' lengths.
        anisotropy: mean cosine of two different items.
        hubness: skewness of the k-occurrences.
        hub: (item_id, in how many items' K nearest it is) of the largest hub.
        orphans: share of items that are near nobody.
        same: share of items whose vector another item has, too.
        nearly_same: share of items with another at a cosine of NEARLY_SAME or more.
        queries: item_ids [q] whose neighbours were looked up: all that have a vector, or a sample.
        neighbours: item_ids [q, k], nearest first.
        hubs_among: items that k-occurrences were counted among.
    """

    items: int
    missing: int
    width: int
    directions: float
    norms: tuple[float, float, float]
    anisotropy: float
    hubness: float
    hub: tuple[int, int]
    orphans: float
    same: float
    nearly_same: float
    queries: np.ndarray
    neighbours: np.ndarray
    hubs_among: int


def measure(vectors: np.ndarray, seed: int = 0) -> Geometry:
    """All figures of a column.

    Args:
        vectors: float32 [items + 1, D], row 0 the padding item; at least two other rows are not zero.
        seed: of the samples.
    """
    ids = with_vector(vectors)
    units = vectors[ids]
    directions, same = effective_directions(units), share_of_same(units)  # not of length one yet
    lengths = _normalize(units)
    rng = np.random.default_rng(seed)
    exact = len(ids) <= EXACT_ITEMS
    queries = np.arange(len(ids)) if exact else np.sort(rng.choice(len(ids), QUERIES, replace=False))
    found, cosines = nearest(units[queries], units, K, queries)
    if exact:
        counted, among = found, np.arange(len(ids))
    else:
        among = np.sort(rng.choice(len(ids), EXACT_ITEMS, replace=False))
        counted, _ = nearest(units[among], units[among], K, np.arange(len(among)))
    times = occurrences(counted, len(among))
    hub = int(times.argmax())
    low, middle, high = np.quantile(lengths, [0.01, 0.5, 0.99]).tolist()
    return Geometry(
        items=len(vectors) - 1,
        missing=len(vectors) - 1 - len(ids),
        width=vectors.shape[1],
        directions=directions,
        norms=(low, middle, high),
        anisotropy=mean_cosine(units),
        hubness=skewness(times),
        hub=(int(ids[among[hub]]), int(times[hub])),
        orphans=float(np.mean(times == 0)),
        same=same,
        nearly_same=float(np.mean(cosines[:, 0] >= NEARLY_SAME)),
        queries=ids[queries],
        neighbours=ids[found],
        hubs_among=len(among),
    )


def with_vector(vectors: np.ndarray) -> np.ndarray:
    """The items whose row is not zero, without the padding item: float [items + 1, D] -> int64 [n], ascending."""
    ids = np.flatnonzero(vectors.any(axis=1))
    return ids[ids > 0]


def unit_rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows as vectors of length one: float [n, D], int [m] of rows that are not zero -> float32 [m, D]."""
    chosen = vectors[rows].astype(np.float32, copy=False)
    _normalize(chosen)
    return chosen


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Bring vectors to length one, in place, for a million items are half a gigabyte.

    Args:
        vectors: float32 [n, D], no row zeros; squares of their numbers may be beyond float32.

    Returns:
        float64 [n], how long they were.
    """
    largest = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))
    vectors /= largest[:, None]
    lengths = np.linalg.norm(vectors, axis=1)
    vectors /= lengths[:, None]
    return largest.astype(np.float64) * lengths


def nearest(queries: np.ndarray, units: np.ndarray, k: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest by cosine, block by block.

    Args:
        queries: float32 [q, D] of length one.
        units: float32 [n, D] of length one.
        k: fewer are found where n - 1 is less.
        own: int [q], each query's own row in `units`, which is not its neighbour.

    Returns:
        rows of `units`, int64 [q, k], nearest first, and their cosines, float32 [q, k].
    """
    k = min(k, len(units) - 1)
    rows = np.empty((len(queries), k), dtype=np.int64)
    cosines = np.empty((len(queries), k), dtype=np.float32)
    size = max(1, BLOCK_NUMBERS // len(units))
    for first in range(0, len(queries), size):
        block = slice(first, first + size)
        similar = queries[block] @ units.T
        lines = np.arange(len(similar))
        similar[lines, own[block]] = -np.inf
        some = np.sort(_largest(similar, k), axis=1)
        values = np.take_along_axis(similar, some, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")  # of equal ones the first item
        rows[block] = np.take_along_axis(some, order, axis=1)
        cosines[block] = np.take_along_axis(values, order, axis=1)
    return rows, cosines


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The places of each row's k largest, in no order: float [q, n] -> int [q, k].

    They lie in the k groups with the largest maxima: most values are seen by a maximum alone, which is many times as
    fast as partitioning all.
    """
    whole = values.shape[1] // GROUP * GROUP
    if whole <= 2 * k * GROUP:
        return np.argpartition(values, -k, axis=1)[:, -k:]
    maxima = values[:, :whole].reshape(len(values), -1, GROUP).max(axis=2)
    groups = np.argpartition(maxima, -k, axis=1)[:, -k:]
    places = (groups[:, :, None] * GROUP + np.arange(GROUP)).reshape(len(values), -1)
    rest = np.broadcast_to(np.arange(whole, values.shape[1]), (len(values), values.shape[1] - whole))
    places = np.concatenate([places, rest], axis=1)
    chosen = np.argpartition(np.take_along_axis(values, places, axis=1), -k, axis=1)[:, -k:]
    return np.take_along_axis(places, chosen, axis=1)


def mean_cosine(units: np.ndarray) -> float:
    """The mean cosine of two different items: the anisotropy of Ethayarajh (2019), over all pairs.

    The sum over all pairs is the squared length of the sum, less the items' own.

    Args:
        units: float [n, D] of length one, n at least 2.
    """
    n = len(units)
    total = units.sum(axis=0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1)))


def effective_directions(vectors: np.ndarray) -> float:
    """How many directions carry the variance: 1 for a line, D where all carry as much (the participation ratio).

    Args:
        vectors: float [n, D].
    """
    covariance = second_moments(vectors)
    squares = float(np.sum(covariance * covariance))
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def second_moments(vectors: np.ndarray, rows: int = 1 << 16) -> np.ndarray:
    """The covariance, summed over blocks in float64: float [n, D] -> float64 [D, D]."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    total = np.zeros((vectors.shape[1],) * 2)
    for first in range(0, len(vectors), rows):
        block = vectors[first : first + rows] - mean
        total += block.T @ block
    return total / len(vectors)


def occurrences(neighbours: np.ndarray, n: int) -> np.ndarray:
    """N_k of Radovanovic et al. (JMLR 2010): how often each item is among the k nearest of another.

    Args:
        neighbours: int [n, k] of rows.
        n: items.

    Returns:
        int64 [n].
    """
    return np.bincount(neighbours.ravel(), minlength=n)


def skewness(values: np.ndarray) -> float:
    """The third standardised moment: hubness, of occurrences. 0 where all values are the same."""
    centred = values - values.mean()
    deviation = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / deviation**3 if deviation else 0.0


def share_of_same(vectors: np.ndarray) -> float:
    """The share of rows that another row equals, number by number: float32 [n, D].

    Rows are told apart by a sum of their bits with odd weights, and only those of equal sums are compared.
    """
    weights = np.random.default_rng(0).integers(0, 2**63, vectors.shape[1], dtype=np.uint64) * 2 + 1
    sums = np.zeros(len(vectors), dtype=np.uint64)
    for column, weight in zip(vectors.T, weights, strict=True):
        sums += (column + np.float32(0)).view(np.uint32).astype(np.uint64) * weight  # -0.0 becomes 0.0
    _, place, counts = np.unique(sums, return_inverse=True, return_counts=True)
    alike = vectors[counts[place] > 1] + np.float32(0)
    whole = alike.view(np.dtype((np.void, alike.itemsize * alike.shape[1])))[:, 0]
    _, counts = np.unique(whole, return_counts=True)
    return float(counts[counts > 1].sum() / len(vectors))


def neighbours_of(vectors: np.ndarray, item_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest items of some, among all that have a vector.

    Args:
        vectors: float32 [items + 1, D], row 0 the padding item.
        item_ids: int [q], of items with a vector.
        k: neighbours of each.

    Returns:
        item_ids int64 [q, k] and cosines float32 [q, k], nearest first.
    """
    ids = with_vector(vectors)
    units = unit_rows(vectors, ids)
    place = np.zeros(len(vectors), dtype=np.int64)
    place[ids] = np.arange(len(ids))
    own = place[item_ids]
    rows, cosines = nearest(units[own], units, k, own)
    return ids[rows], cosines

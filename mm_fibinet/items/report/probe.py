"""Does an embedding know the items' tags? A linear probe: what a linear map of the vectors says of each tag.

The map is a ridge regression for all tags at once, fitted to most items and judged on the others, its penalty chosen by
generalised cross-validation on the former (Golub, Heath & Wahba, Technometrics 1979). It has one solution, so a figure
is the embedding's, and not of an optimiser's luck. A tag's AUC is 0.5 by chance, however rare the tag is.
"""

from dataclasses import dataclass

import numpy as np

from mm_fibinet.metrics import auc

MOST_TAGS = 40  # the most frequent
LEAST = 5  # items with a tag, and without, that must be among those judged on
JUDGED = 0.25  # share of the items
MOST_ITEMS = 50_000  # more teach a linear map nothing
PENALTIES = 10.0 ** np.arange(-6, 3)  # times the mean eigenvalue


@dataclass(frozen=True)
class Probe:
    """What a linear map knows of the tags.

    Attributes:
        auc: {tag: AUC on the items judged on}, most frequent tag first.
        items: {tag: items that have it}.
        first: share of the judged items whose highest-scored tag is one of theirs.
        first_by_chance: the same when the tag that is most frequent is said of each.
        judged: items judged on.
    """

    auc: dict[str, float]
    items: dict[str, int]
    first: float
    first_by_chance: float
    judged: int

    @property
    def mean(self) -> float:
        """The mean AUC of the tags."""
        return float(np.mean(list(self.auc.values())))


def probe_tags(vectors: np.ndarray, tags: dict[str, np.ndarray], seed: int = 0) -> Probe | None:
    """Fit and judge.

    Args:
        vectors: float [items, D]; rows of zeros and row 0 are left out, as are items without any tag.
        tags: {tag: item_ids that have it}.
        seed: of the split.

    Returns:
        None where no tag has LEAST items with it and without it among those judged on.
    """
    has_tag = np.zeros(len(vectors), dtype=bool)
    for ids in tags.values():
        has_tag[ids] = True
    has_tag[0] = False
    usable = np.flatnonzero(has_tag & vectors.any(axis=1))
    usable = np.random.default_rng(seed).permutation(usable)[:MOST_ITEMS]
    judged, fitted = np.split(usable, [int(JUDGED * len(usable))])
    frequent = sorted(tags, key=lambda tag: (-len(tags[tag]), tag))[:MOST_TAGS]
    truth = np.zeros((len(vectors), len(frequent)), dtype=bool)
    for column, tag in enumerate(frequent):
        truth[tags[tag], column] = True
    with_tag = truth[judged].sum(axis=0)
    told = np.flatnonzero((with_tag >= LEAST) & (len(judged) - with_tag >= LEAST) & truth[fitted].any(axis=0))
    if not len(told):
        return None
    seen = truth[judged][:, told]
    scores = ridge(vectors[fitted], truth[fitted][:, told].astype(np.float64), vectors[judged])
    names = [frequent[column] for column in told]
    return Probe(
        auc={name: auc(seen[:, place], scores[:, place]) for place, name in enumerate(names)},
        items={name: len(tags[name]) for name in names},
        first=float(seen[np.arange(len(seen)), scores.argmax(axis=1)].mean()),
        first_by_chance=float(seen[:, truth[fitted][:, told].sum(axis=0).argmax()].mean()),
        judged=len(judged),
    )


def ridge(known: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ridge regression with an intercept, its penalty the one of least generalised cross-validation error.

    Args:
        known: float [n, D].
        values: float64 [n, T].
        asked: float [m, D].

    Returns:
        float64 [m, T], the predicted values.
    """
    mean, level = known.mean(axis=0, dtype=np.float64), values.mean(axis=0)
    centred, wanted = known - mean, values - level
    eigenvalues, directions = np.linalg.eigh(centred.T @ centred)
    eigenvalues = np.maximum(eigenvalues, 0)
    rotated = directions.T @ (centred.T @ wanted)
    least = None
    for penalty in PENALTIES * max(eigenvalues.mean(), np.finfo(float).tiny):
        shrunk = rotated / (eigenvalues + penalty)[:, None]
        # |wanted - fitted|^2 by the normal equations; the intercept is one more degree of freedom
        error = np.sum(wanted**2) - np.sum(shrunk * (2 * rotated - eigenvalues[:, None] * shrunk))
        freedom = len(known) - 1 - np.sum(eigenvalues / (eigenvalues + penalty))
        score = error / freedom**2 if freedom > 0 else np.inf
        if least is None or score < least[0]:
            least = score, directions @ shrunk
    assert least is not None
    return (asked - mean) @ least[1] + level

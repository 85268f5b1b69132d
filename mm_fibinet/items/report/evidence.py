"""Does an item embedding tell clicks? The figure that stands for its use to a model, without one.

For each row of a split, the cosine of the target's vector to the mean of its history's: how like what the user clicked
before the shown item is. Were the embedding noise, clicked and other rows would have the same distribution, and the
cosine as a score an AUC of 0.5. Warm and cold targets are told apart, since for a cold item, of which no click is
known, the embedding is nearly all that a model has.

Histories are in the rows, or in user_info; either way a row's history is a row of one padded matrix here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from mm_fibinet import schema, user_info
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import open_parquet, read_slices
from mm_fibinet.schema import LABEL
from mm_fibinet.significance import Interval, auc_intervals
from mm_fibinet.user_info import HISTORY_END, USER_ID, Users

MOST_ROWS = 100_000  # their AUC is sure to about 0.003
MOST_POSITIONS = 1_000  # of a history of user_info, its newest
BLOCK_ROWS = 8_192
LEAST_ROWS = 2  # of each label
SUBSETS = ("all", "warm", "cold")


@dataclass(frozen=True)
class Rows:
    """Rows of a split.

    Attributes:
        history: int [N, L], 0 = padding.
        target: int [N].
        clicked: bool [N].
        user: int64 [N]; None where the split does not say.
        of: rows that the split has.
    """

    history: np.ndarray
    target: np.ndarray
    clicked: np.ndarray
    user: np.ndarray | None
    of: int

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of the rows: bool or int [n]."""
        user = None if self.user is None else self.user[rows]
        return Rows(self.history[rows], self.target[rows], self.clicked[rows], user, self.of)


def read_rows(
    split: str | Path, num_items: int, users: str | Path | None = None, most: int | None = None, seed: int = 0
) -> Rows:
    """Read targets, labels and histories of a split, checked as training checks them.

    Args:
        split: parquet with item_id and label, and item_seq or, with `users`, user_id and maybe history_end.
        num_items: rows of item_info.
        users: user_info.parquet, where the histories are there.
        most: rows at most, drawn by the seed; None for all.
        seed: of the draw.

    Raises:
        UserError: names the column and the row of the first value that breaks the contract.
    """
    opened = open_parquet(split)
    kept = np.ones(opened.num_rows, dtype=bool)
    if most is not None and opened.num_rows > most:
        kept[:] = False
        kept[np.random.default_rng(seed).choice(opened.num_rows, most, replace=False)] = True
    group = USER_ID if USER_ID in opened.schema_arrow.names else None
    if users is None:
        slices = schema.checked_slices(split, schema.split_columns({}, [LABEL], num_items, group))
    else:
        lengths = user_info.user_lengths(users, num_items)
        known = Users(lengths, frozenset())
        slices = user_info.checked_rows(split, user_info.row_columns(split, {}, [LABEL], num_items, None, known), known)
    parts = [
        {name: block[kept[first : first + len(block)]] for name, block in blocks.items()} for first, blocks in slices
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if users is None:
        history = columns[schema.ITEM_SEQ]
    else:
        user = columns[USER_ID]
        history = _histories(users, num_items, user, columns.get(HISTORY_END, lengths[user]))
    return Rows(history, columns[schema.ITEM_ID], columns[LABEL] == 1, columns.get(USER_ID), opened.num_rows)


def history_cosine(vectors: np.ndarray, history: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosine of each target's vector to the mean of its history's unit vectors.

    Args:
        vectors: float [items, D], row 0 the padding item; a row of zeros has no direction, and counts for nothing.
        history: int [N, L], 0 = padding.
        target: int [N].

    Returns:
        float64 [N] in -1 .. 1; NaN where the target or the whole history has no direction.
    """
    used = np.unique(np.append(np.unique(history), target))
    small = vectors[used].astype(np.float64)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    units = np.divide(small, length, out=np.zeros(small.shape), where=length > 0)
    place = np.zeros(len(vectors), dtype=np.int64)
    place[used] = np.arange(len(used))
    targets = place[target]
    if used[0] == 0:
        units[0] = 0
    found = np.full(len(target), np.nan)
    for first in range(0, len(target), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        block = place[history[rows]]
        starts = np.arange(0, block.size + 1, block.shape[1])
        members = csr_matrix((np.ones(block.size), block.ravel(), starts), shape=(len(block), len(used)))
        mean = members @ units  # its length does not matter to a cosine
        product = np.einsum("nd,nd->n", mean, units[targets[rows]])
        size = np.linalg.norm(mean, axis=1) * length[targets[rows], 0].astype(bool)
        np.divide(product, size, out=found[rows], where=size > 1e-12)
    return found


def warm_items(train: str | Path, num_items: int) -> np.ndarray:
    """The items that are a target in train: bool [num_items]."""
    warm = np.zeros(num_items, dtype=bool)
    column = schema.Column(schema.ITEM_ID, "target", (num_items, "items in item_info"))
    for first, arrays in read_slices(train, [schema.ITEM_ID]):
        warm[column.read(arrays[schema.ITEM_ID], train, first)] = True
    return warm


@dataclass(frozen=True)
class Clicks:
    """What the cosines say of clicks.

    Attributes:
        auc: {column: {subset: Interval}} of the subsets of SUBSETS that have two rows of each label.
        rows: {subset: rows} of these.
        left_out: rows without a history or a vector in one of the columns.
        of: rows that the split has; fewer were drawn where `rows` and `left_out` do not add up to them.
        by_users: whether intervals are of the bootstrap over users; else DeLong's.
        cosines: {column: float64 [N]}.
        clicked: bool [N].
    """

    auc: dict[str, dict[str, Interval]]
    rows: dict[str, int]
    left_out: int
    of: int
    by_users: bool
    cosines: dict[str, np.ndarray]
    clicked: np.ndarray


def usable_rows(
    split: str | Path, cosines: dict[str, np.ndarray], rows: Rows
) -> tuple[dict[str, np.ndarray], Rows, int]:
    """The rows for which every column has a cosine.

    Args:
        split: where the rows are from, for messages.
        cosines: {column: float64 [N]}, of `history_cosine`.
        rows: of `read_rows`.

    Returns:
        {column: float64 [n]}, these n rows, and how many others there are.

    Raises:
        UserError: these rows are all clicked, or none is.
    """
    usable = np.logical_and.reduce([np.isfinite(cosine) for cosine in cosines.values()])
    left = rows.take(usable)
    if left.clicked.all() or not left.clicked.any():
        raise UserError(
            f"{split}: {len(left.target)} rows with a history, expected some with label 0 and some with label 1"
        )
    return {name: cosine[usable] for name, cosine in cosines.items()}, left, int((~usable).sum())


def judge_clicks(
    split: str | Path, cosines: dict[str, np.ndarray], rows: Rows, warm: np.ndarray | None = None, seed: int = 0
) -> Clicks:
    """AUC of each column's cosine, over all rows and over those of warm and of cold targets.

    Args:
        split, cosines, rows: of `usable_rows`.
        warm: bool [items], of `warm_items`; None where train is not known.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than two rows of one label.
    """
    cosines, used, left_out = usable_rows(split, cosines, rows)
    if min(used.clicked.sum(), (~used.clicked).sum()) < LEAST_ROWS:
        raise UserError(
            f"{split}: {used.clicked.sum()} of {len(used.target)} rows with a history have label 1, expected at least "
            f"{LEAST_ROWS} of each label: an interval needs them"
        )
    masks = {"all": np.ones(len(used.target), dtype=bool)}
    if warm is not None:
        masks |= {"warm": warm[used.target], "cold": ~warm[used.target]}
    found: dict[str, dict[str, Interval]] = {name: {} for name in cosines}
    counts = {}
    for subset, mask in masks.items():
        clicked = used.clicked[mask]
        if min(clicked.sum(), (~clicked).sum()) < LEAST_ROWS:
            continue
        counts[subset] = int(mask.sum())
        user = None if used.user is None else used.user[mask]
        scores = np.stack([cosine[mask] for cosine in cosines.values()])
        for name, interval in zip(cosines, auc_intervals(clicked, scores, user, seed), strict=True):
            found[name][subset] = interval
    return Clicks(found, counts, left_out, used.of, used.user is not None, cosines, used.clicked)


def _histories(users: str | Path, num_items: int, user: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The last items before each row's end, padded with 0 in front: int32 [N, the longest of them].

    Args:
        users: user_info.parquet.
        user: int64 [N].
        end: int64 [N], how many of the user's items come before the row.
    """
    history = np.zeros((len(user), max(1, min(MOST_POSITIONS, int(end.max(initial=0))))), dtype=np.int32)
    order = np.argsort(user, kind="stable")
    ordered = user[order]
    for part in user_info.user_slices(users, {}, num_items):
        starts = np.cumsum(part.lengths) - part.lengths
        low, high = (int(np.searchsorted(ordered, edge)) for edge in (part.first, part.first + len(part.lengths)))
        for row in order[low:high]:
            count = min(int(end[row]), history.shape[1])
            stop = starts[user[row] - part.first] + end[row]
            if count:
                history[row, -count:] = part.items[stop - count : stop]
    return history

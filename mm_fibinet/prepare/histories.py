"""What a user had clicked before a row, as pointers into one flat list of items.

All of a user's clicks stand together in the order of time, so a row's history is a stretch of them: from the user's
first click to the last one that is strictly before the row. Clicks of the row's own moment are not before it. Rows
then cost two numbers each, whatever the histories' lengths, until they are written.
"""

from dataclasses import dataclass

import numpy as np

from mm_fibinet.prepare.splits import TEST, TRAIN, VALID, group_starts


@dataclass(frozen=True)
class Histories:
    """The histories of rows.

    Attributes:
        items: int32 [P], the users' clicks, one user's after the other's, oldest first.
        start, end: int64 [n], a row's history is items[start:end].
    """

    items: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Of the rows' histories, uncut: int64 [n]."""
        return self.end - self.start

    def take(self, rows: np.ndarray) -> "Histories":
        """Those of some rows."""
        return Histories(self.items, self.start[rows], self.end[rows])

    def clicks(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who has which item in a history: users and items, [T] each; histories that rows share are taken once.

        Args:
            user: int32 [n], the rows'.
        """
        rows = np.flatnonzero(self.lengths)
        rows = rows[np.unique(self.start[rows], return_index=True)[1]]
        start, lengths = self.start[rows], self.lengths[rows]
        places = np.arange(lengths.sum()) + np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
        return np.repeat(user[rows], lengths), self.items[places]

    def padded(self, max_len: int) -> np.ndarray:
        """The last max_len items of each history, zeros in front: int32 [n, max_len]."""
        if not len(self.items):
            return np.zeros((len(self.start), max_len), dtype=np.int32)
        place = self.end[:, None] + np.arange(-max_len, 0)
        taken = self.items.take(place, mode="clip")
        taken[place < self.start[:, None]] = 0
        return taken


def before_rows(
    user: np.ndarray, time: np.ndarray, item: np.ndarray, clicked: np.ndarray, split: np.ndarray | None = None
) -> Histories:
    """Each row's history: the user's clicks at a time strictly before the row's.

    Args:
        user: int32 [n].
        time: int64 [n]; rows are sorted by user, then by time.
        item: int32 [n].
        clicked: bool [n].
        split: uint8 [n] to freeze histories: they then hold clicks up to the first one of the row's own split or of a
            later one, those of train up to the first one of valid or test, so that neither a row of a split nor an
            earlier split tells its labels.
    """
    before = np.cumsum(clicked) - clicked  # clicks in front of the row, of all users
    first_of_user = _spread(before, group_starts(user))
    end = _spread(before, group_starts(user, time))
    if split is not None:
        for limit in (TRAIN, VALID, TEST):
            barred = clicked & (split >= max(limit, VALID))
            first = np.full(int(user.max(initial=-1)) + 1, np.iinfo(np.int64).max)
            first[user[barred][::-1]] = before[barred][::-1]  # the earliest is written last
            end = np.where(split == limit, np.minimum(end, first[user]), end)
    return Histories(item[clicked].astype(np.int32, copy=False), first_of_user, end)


def _spread(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Each group's first value in all of its rows."""
    return values[starts][np.cumsum(starts) - 1]

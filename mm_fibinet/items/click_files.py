"""Clicks as a split's files have them: histories in its rows, or once a user in user_info.

A click is an item in a history, or a target of label 1. Both forms of the same data give the same clicks. Of user_info
no more is read than the split's own rows look back on: what follows a user's last row there is what later splits ask.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mm_fibinet import schema, user_info
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ, LABEL, Column
from mm_fibinet.user_info import HISTORY_END, USER_ID, Users


class RowClicks:
    """Of splits with a history in each row.

    Args:
        num_items: the ids of item_info are 0 .. num_items.
    """

    def __init__(self, num_items: int):
        self.num_items = num_items

    def read(self, split: str | Path) -> Iterator[np.ndarray]:
        """(user, item) of clicks, some more than once: int64 [2, T] each time.

        Without user_id a row's number is the user.

        Raises:
            UserError: names the column and the row of the first value that breaks the contract.
        """
        with_users = USER_ID in open_parquet(split).schema_arrow.names
        for first, blocks in schema.checked_slices(split, self._columns(with_users)):
            history, target = blocks[ITEM_SEQ], blocks[ITEM_ID]
            user = blocks[USER_ID] if with_users else np.arange(first, first + len(target))
            rows, places = np.nonzero(history)
            clicked = blocks[LABEL] == 1
            yield _pairs(np.r_[user[rows], user[clicked]], np.r_[history[rows, places], target[clicked]])

    def read_new(self, split: str | Path) -> np.ndarray:
        """(user, target) of the clicked rows whose user had not clicked the target before: int64 [2, T].

        Histories that are cut (no padding in front) may have lost the item, and prove nothing.
        """
        parts = []
        for _, blocks in schema.checked_slices(split, self._columns(with_users=True)):
            history, target = blocks[ITEM_SEQ], blocks[ITEM_ID]
            new = (blocks[LABEL] == 1) & (history[:, 0] == 0) & (history != target[:, None]).all(axis=1)
            parts.append(_pairs(blocks[USER_ID][new], target[new]))
        return np.concatenate(parts, axis=1)

    def read_again(self, split: str | Path, train: str | Path) -> tuple[np.ndarray, int]:
        """Which of the clicked rows with a cut history are rows of `train`, too.

        Such a history proves nothing of what came before it, but the same user, history and target are most likely one
        click; some may be clicks of an item that a user came back to.

        Returns:
            (user, target) of those, int64 [2, T], and of how many they are.
        """
        asked = set(self._cut_clicks(split))
        found = asked.intersection(self._cut_clicks(train)) if asked else asked
        pairs = np.array(sorted((user, target) for user, target, _ in found), dtype=np.int64)
        return pairs.reshape(-1, 2).T, len(asked)

    def _cut_clicks(self, split: str | Path) -> Iterator[tuple[int, int, bytes]]:
        """User, target and history (its digest) of the clicked rows with a cut history."""
        for _, blocks in schema.checked_slices(split, self._columns(with_users=True)):
            history, target = blocks[ITEM_SEQ], blocks[ITEM_ID]
            cut = (blocks[LABEL] == 1) & (history[:, 0] != 0) & (history != target[:, None]).all(axis=1)
            digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in history[cut].astype(np.int64))
            yield from zip(blocks[USER_ID][cut].tolist(), target[cut].tolist(), digests, strict=True)

    def _columns(self, with_users: bool) -> list[Column]:
        columns = schema.split_columns({}, [LABEL], self.num_items + 1)
        return [*columns, Column(USER_ID, "group")] if with_users else columns


class UserClicks:
    """Of splits whose rows point at user_info, where the histories are.

    Args:
        users: user_info.parquet.
        num_items: the ids of item_info are 0 .. num_items.
    """

    def __init__(self, users: str | Path, num_items: int):
        self.users = users
        self.num_items = num_items
        self._lengths = user_info.user_lengths(users, num_items + 1)

    def read(self, split: str | Path) -> Iterator[np.ndarray]:
        """As `RowClicks.read`, all of a user's history up to the last of the split's rows."""
        ends = np.zeros(len(self._lengths), dtype=np.int64)
        for user, end, target, clicked in self._rows(split):
            np.maximum.at(ends, user, end)
            yield _pairs(user[clicked], target[clicked])
        for part in self._slices():
            here = np.arange(part.first, part.first + len(part.lengths))
            owner = np.repeat(here, part.lengths)
            places = np.arange(len(part.items)) - np.repeat(np.cumsum(part.lengths) - part.lengths, part.lengths)
            before = places < ends[owner]
            yield _pairs(owner[before], part.items[before])

    def read_new(self, split: str | Path) -> np.ndarray:
        """As `RowClicks.read_new`; no history here is cut."""
        asked = [(user[clicked], end[clicked], target[clicked]) for user, end, target, clicked in self._rows(split)]
        user, end, target = (np.concatenate(column) for column in zip(*asked, strict=True))
        order = np.argsort(user, kind="stable")
        user, end, target = user[order], end[order], target[order]
        new = np.zeros(len(user), dtype=bool)
        for part in self._slices():
            starts = np.cumsum(part.lengths) - part.lengths
            first, after = (int(np.searchsorted(user, each)) for each in (part.first, part.first + len(part.lengths)))
            for row in range(first, after):
                start = starts[user[row] - part.first]
                new[row] = target[row] not in part.items[start : start + end[row]]
        return _pairs(user[new], target[new])

    def read_again(self, split: str | Path, train: str | Path) -> tuple[np.ndarray, int]:
        """As `RowClicks.read_again`: none, for no history here is cut."""
        return np.empty((2, 0), dtype=np.int64), 0

    def _rows(self, split: str | Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """User, end of the history, target, all int64 [n], and whether it was clicked, bool [n], some rows a time."""
        known = Users(self._lengths, frozenset())
        columns = user_info.row_columns(split, {}, [LABEL], self.num_items + 1, None, known)
        for _, blocks in user_info.checked_rows(split, columns, known):
            user = blocks[USER_ID]
            yield user, blocks.get(HISTORY_END, self._lengths[user]), blocks[ITEM_ID], blocks[LABEL] == 1

    def _slices(self) -> Iterator[user_info.UserSlice]:
        return user_info.user_slices(self.users, {}, self.num_items + 1)


def _pairs(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.stack([users, items], dtype=np.int64)

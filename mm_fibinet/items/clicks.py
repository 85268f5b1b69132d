"""Who clicked what, from the training split alone: what item2vec and contrastive learn from.

A click is a user's item in a history or a target with label 1. Histories repeat from row to row, so a user's clicks are
kept as a set, as item2vec takes them (Barkan and Koenigstein 2016: the order within a set says little).

An embedding that has seen the answers makes every later figure worthless, and nothing would tell. So a file without
labels is refused (it is the test split), so is the validation split under whatever name, and so are histories that hold
clicks of the validation rows' users that come after these rows, and the validation rows themselves.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.click_files import RowClicks, UserClicks
from mm_fibinet.parquet_reader import open_parquet, part_files
from mm_fibinet.schema import ITEM_SEQ, LABEL
from mm_fibinet.user_info import USER_ID

MERGE_PAIRS = 1 << 24  # clicks that are held before those of the same user and item are merged
VALID_NAMES = ("valid.parquet", "valid")  # of the split that is looked for beside the training split
KNOWN_ANSWERS = 0.05  # share of the validation rows' clicks that may be among the training clicks: then left out
REPEATED_CLICKS = 0.5  # share of clicked rows that two splits may have in common: a user can click an item twice


@dataclass(frozen=True)
class Clicks:
    """The distinct items of each user, one user's after the other's.

    Attributes:
        items: int64 [T], item ids 1 .. n, ascending within a user.
        starts: int64 [U + 1], where each user's begin, and T.
        num_items: n.
    """

    items: np.ndarray
    starts: np.ndarray
    num_items: int

    @property
    def counts(self) -> np.ndarray:
        """int64 [n], how many users clicked items 1 .. n."""
        return np.bincount(self.items, minlength=self.num_items + 1)[1:]

    def pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Each click once, in random order, beside another item of the same user: int64 [P] and [P].

        Over many draws that is every pair of a user's set, a user weighing as much as his clicks, not their square.
        Users of one click have no pair.
        """
        sizes = np.diff(self.starts)
        places = np.flatnonzero(np.repeat(sizes, sizes) > 1)
        places = rng.permutation(places)
        user = np.searchsorted(self.starts, places, side="right") - 1
        first, size = self.starts[user], sizes[user]
        others = first + (places - first + 1 + rng.integers(0, size - 1)) % size
        return self.items[places], self.items[others]


def read_clicks(
    train: str | Path, num_items: int, valid: str | Path | None = None, users: str | Path | None = None
) -> Clicks:
    """The clicks of a training split.

    Args:
        train: parquet with item_id, label, item_seq and user_id (without it, each row is a user of its own); with
            `users` there is no item_seq.
        num_items: the ids of item_info are 0 .. num_items.
        valid: the validation split, which the clicks must not know; None looks for one beside `train`.
        users: user_info.parquet, where the histories are there.

    Raises:
        UserError: the file is no training split, breaks the contract, knows the validation split's clicks, or no user
            has two items.
    """
    present = open_parquet(train).schema_arrow.names
    if LABEL not in present:
        raise UserError(
            f"--train {train}: has no column {LABEL}, expected the training split; a test split teaches nothing"
        )
    if users is None and ITEM_SEQ not in present:
        raise UserError(
            f"--train {train}: has no column {ITEM_SEQ}, found {', '.join(present)}; where histories are once a user, "
            "name their file with --user_info"
        )
    valid = valid if valid is not None else beside(train)
    _refuse_same_file(train, valid)
    files = RowClicks(num_items) if users is None else UserClicks(users, num_items)
    owners, items = _distinct(files.read(train))
    if not len(owners):
        raise UserError(f"--train {train}: has no clicks, expected histories or rows of label 1")
    if valid is not None and USER_ID in present:
        owners, items = _without_answers(train, owners, items, valid, files.read_new(valid))
        _refuse_rows(train, valid, *files.read_again(valid, train))
    first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    clicks = Clicks(items, np.r_[first, len(items)], num_items)
    if not (np.diff(clicks.starts) > 1).any():
        raise UserError(f"--train {train}: no user clicked two items, expected some; there is nothing to learn from")
    return clicks


def pair_batches(clicks: Clicks, size: int, total: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of co-clicked items for training.

    Args:
        clicks: of whom.
        size: pairs a batch; the last one of a pass over the clicks is smaller.
        total: pairs in all, about.
        seed: the same seed, the same pairs.

    Yields:
        two int64 [B], rows of the items: item id - 1.
    """
    rng = np.random.default_rng(seed)
    drawn = 0
    while drawn < total:
        first, second = clicks.pairs(rng)
        for start in range(0, min(len(first), total - drawn), size):
            yield first[start : start + size] - 1, second[start : start + size] - 1
        drawn += len(first)


@contextlib.contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """One thread and a seed inside, so that what is learned does not depend on the number of cores."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def beside(train: str | Path) -> Path | None:
    """The validation split in the folder of the training split, if there is one."""
    folder = Path(train).resolve().parent
    return next((folder / name for name in VALID_NAMES if (folder / name).exists()), None)


def _refuse_same_file(train: str | Path, valid: str | Path | None) -> None:
    name = Path(train).resolve().stem.lower()
    shared = set() if valid is None else _identities(train) & _identities(valid)
    if name in ("valid", "validation", "val", "test") or shared:
        raise UserError(
            f"--train {train}: this is the validation or the test split, or has a part of it, expected the training "
            "split; an embedding learned from it has seen the answers"
        )


def _identities(split: str | Path) -> set[tuple[int, int]]:
    """What tells the files of a split from others, under whatever names: device and inode of each."""
    return {(found.st_dev, found.st_ino) for found in (file.stat() for file in part_files(split))}


def _distinct(clicks: Iterator[np.ndarray]) -> np.ndarray:
    """(user, item) of each click once, sorted: int64 [2, T], of such parts."""
    parts: list[np.ndarray] = []
    held, most = 0, MERGE_PAIRS
    for pairs in clicks:
        parts.append(_unique(pairs))
        held += parts[-1].shape[1]
        if held > most:  # rows of one user are far apart, and most of their clicks are the same
            parts = [_unique(np.concatenate(parts, axis=1))]
            held = parts[0].shape[1]
            most = max(2 * held, MERGE_PAIRS)
    return _unique(np.concatenate(parts, axis=1))


def _unique(pairs: np.ndarray) -> np.ndarray:
    """The distinct columns of int64 [2, T], sorted by the first row, then the second."""
    pairs = pairs[:, np.lexsort(pairs[::-1])]
    if not pairs.shape[1]:
        return pairs
    return pairs[:, np.r_[True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)]]


def _without_answers(
    train: str | Path, users: np.ndarray, items: np.ndarray, valid: str | Path, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The clicks without those that are the validation rows' answers; more than a few of these are refused.

    A row's history is what its user clicked before, so an item that a user clicks in a validation row, that is not in
    that row's history, and that is among the user's training clicks all the same was clicked twice, or was learned
    from what came after.

    Args:
        train: where the clicks are from.
        users, items: int64 [T], the clicks.
        valid: the validation split.
        asked: int64 [2, A], (user, item) of those rows.

    Returns:
        users and items that are left.
    """
    theirs = np.flatnonzero(np.isin(users, asked[0]))
    answers = set(zip(*asked.tolist(), strict=True))
    pairs = zip(users[theirs].tolist(), items[theirs].tolist(), strict=True)
    known = theirs[[pair in answers for pair in pairs]] if len(theirs) else theirs
    if not len(known):
        return users, items
    found = (
        f"--train {train}: knows {len(known):,} of {len(answers):,} clicks of {valid} (user {users[known[0]]}, item "
        f"{items[known[0]]}, for one)"
    )
    if len(known) > len(answers) * KNOWN_ANSWERS:
        raise UserError(
            f"{found}, expected none: an embedding learned from it has seen the answers; give the training split whose "
            "histories end before the validation rows"
        )
    print(
        printable(f"warning: {found}, as of items that are clicked twice; it does not learn from these"),
        file=sys.stderr,
    )
    return np.delete(users, known), np.delete(items, known)


def _refuse_rows(train: str | Path, valid: str | Path, again: np.ndarray, asked: int) -> None:
    """Refuse a training split that has validation rows; again: int64 [2, A], (user, item) of those, of `asked` rows."""
    if again.shape[1] > asked * REPEATED_CLICKS:
        user, item = again[:, 0]
        raise UserError(
            f"--train {train}: has {again.shape[1]:,} clicked rows of {valid} (user {user}, item {item}, for one), of "
            f"{asked:,} whose histories are cut; expected few: an embedding learned from it has seen the "
            "answers; give the training split alone"
        )

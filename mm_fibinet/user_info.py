"""The file contract of user_info: what a user has is stored once, and rows point at it by user_id.

With histories of 1,000 positions and several rows a user, a split that repeats the history in every row is mostly
copies. user_info.parquet has a user a row, row = user_id: `item_seq`, all the user's items, oldest first and without
padding, and columns of features whose source is `user`. A split then has `user_id`, no item_seq, and `history_end`: how
many of the user's items came before the row. Training, prediction and the check read both through these functions.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import (
    SLICE_ROWS,
    RowError,
    list_values,
    lists_with,
    open_parquet,
    read_slices,
    require_columns,
    scalars,
)
from mm_fibinet.schema import INT32, ITEM_SEQ, Column, Noted

USER_ID = "user_id"
HISTORY_END = "history_end"
SLICE_VALUES = 1 << 22  # items of histories read at once
UNKNOWN_LENGTH = 2**31 - 1  # of a history that cannot be read, where faults are kept


@dataclass(frozen=True)
class Users:
    """What a split must know of the users that its rows point at.

    Attributes:
        lengths: int64 [U], each user's number of items; None when user_info cannot be read.
        columns: the features that are looked up by user_id, which rows need not have.
    """

    lengths: np.ndarray | None
    columns: frozenset[str]


@dataclass(frozen=True)
class UserSlice:
    """Some users, as read.

    Attributes:
        first: the first one's user_id.
        items: integers [T], the users' histories one after the other.
        lengths: int64 [n], how many items each has.
        columns: {feature: [n] or [n, W]}; one that is faulty is left out where faults are kept.
    """

    first: int
    items: np.ndarray
    lengths: np.ndarray
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pointer(Column):
    """A column of a split that says whose history is a row's (role user), or how much of it (role end)."""

    def read(self, array: pa.Array, path: str | Path, first_row: int = 0, noted: Noted = nullcontext) -> np.ndarray:
        """int64 [n]; where user_id is a feature too, it is below that vocab_size as well."""
        values = scalars(array, path, self.name, first_row)
        with noted():
            schema.require_range(values, path, self.name, *self.limit, first_row=first_row)
        if self.spec:
            with noted():
                schema.require_range(values, path, self.name, self.spec["vocab_size"], first_row=first_row)
        return values


def user_features(path: str | Path | None, features: dict[str, dict]) -> dict[str, dict]:
    """The features that are looked up by user_id: those of source `user` that user_info has a column for.

    Args:
        path: user_info.parquet; None for data without.
        features: FuxiCTR feature specs, or lines of feature_cols, by name.
    """
    if not path or not any(spec.get("source") == "user" for spec in features.values()):
        return {}
    present = open_parquet(path).schema_arrow.names
    return {
        name: spec
        for name, spec in features.items()
        if spec.get("source") == "user"
        and spec["type"] != "meta"
        and name in present
        and name not in (USER_ID, ITEM_SEQ)
    }


def user_slices(
    path: str | Path, features: dict[str, dict], num_items: int | None, noted: Noted = nullcontext
) -> Iterator[UserSlice]:
    """Read and check user_info.parquet, slice by slice.

    Args:
        path: a parquet file or folder: user_id = 0, 1, 2, ... in order, item_seq, and the features' columns.
        features: of `user_features`.
        num_items: rows of item_info; None when it is not known.
        noted: what a fault is handed to; by default it is raised.

    Raises:
        UserError: names the column and the row of the first value that breaks the contract.
    """
    opened = open_parquet(path)
    names = [USER_ID, ITEM_SEQ, *features]
    require_columns(path, opened, names)
    items_a_user = opened.num_values(ITEM_SEQ) // opened.num_rows
    for first, arrays in read_slices(path, names, min(SLICE_ROWS, SLICE_VALUES // (items_a_user + 1) + 1)):
        with noted():
            _require_user_order(scalars(arrays[USER_ID], path, USER_ID, first), path, first)
        items = np.empty(0, dtype=np.int32)
        lengths = np.full(len(arrays[ITEM_SEQ]), UNKNOWN_LENGTH, dtype=np.int64)
        with noted():
            items, lengths = list_values(arrays[ITEM_SEQ], path, ITEM_SEQ, first)
            _require_items(items, lengths, num_items, path, first)
        columns = {}
        for name, spec in features.items():
            with noted():
                columns[name] = schema.read_feature(arrays[name], path, name, spec, first)
        yield UserSlice(first, items, lengths, columns)


def user_lengths(path: str | Path, num_items: int | None) -> np.ndarray:
    """How many items each user of user_info has: int64 [U]; see `user_slices`."""
    return np.concatenate([part.lengths for part in user_slices(path, {}, num_items)])


def row_columns(
    path: str | Path,
    features: dict[str, dict],
    labels: list[str],
    num_items: int | None,
    group: str | None,
    users: Users,
) -> list[Column]:
    """What a split is read for whose rows point at their users: target, user, history_end where it is, then the others.

    Args:
        path: the split.
        features, labels, num_items, group: of `schema.split_columns`.
        users: the users of user_info.

    Raises:
        UserError: the split has histories of its own, or a column that points cannot be a feature of this kind.
    """
    present = open_parquet(path).schema_arrow.names
    if ITEM_SEQ in present:
        raise UserError(
            f"{path}: column {ITEM_SEQ} is there, and user_info has the histories, expected them in one place; drop "
            "the column, or leave user_info out of the dataset config"
        )
    for name, kinds in {USER_ID: ("meta", "categorical"), HISTORY_END: ("meta",)}.items():
        kind = features.get(name, {}).get("type", "meta")
        if kind not in kinds:
            raise UserError(
                f"feature {name}: type is {kind}, expected {' or '.join(kinds)}: with user_info this column says where "
                "a row's history is; give the feature a column of its own"
            )
    limit = INT32 if users.lengths is None else (len(users.lengths), "users in user_info")
    spec = features.get(USER_ID, {})
    pointers: list[Column] = [Pointer(USER_ID, "user", limit, spec=spec if spec.get("type") == "categorical" else {})]
    pointers += [Pointer(HISTORY_END, "end")] if HISTORY_END in present else []
    own = {name: spec for name, spec in features.items() if name not in users.columns and name != USER_ID}
    _, target, *others = schema.split_columns(own, labels, num_items, group if group != USER_ID else None)
    return [target, *pointers, *others]


def checked_rows(
    path: str | Path, columns: list[Column], users: Users, noted: Noted = nullcontext
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """`schema.checked_slices` of columns of `row_columns`; that histories end within the user's is checked, too."""
    for first, blocks in schema.checked_slices(path, columns, noted):
        if users.lengths is not None and {USER_ID, HISTORY_END} <= blocks.keys():
            with noted():
                _require_ends(blocks[HISTORY_END], blocks[USER_ID], users.lengths, path, first)
        yield first, blocks


def _require_user_order(ids: np.ndarray, path: str | Path, first: int) -> None:
    wrong = ids != np.arange(first, first + len(ids))
    if wrong.any():
        expected = f"the row number (number the users 0, 1, 2, ... and sort by {USER_ID})"
        raise RowError(path, USER_ID, f"is {ids[wrong.argmax()]}", expected, wrong, first)


def _require_items(items: np.ndarray, lengths: np.ndarray, num_items: int | None, path: str | Path, first: int) -> None:
    """Histories without padding have ids of items alone: integers [T] of lengths [n]."""
    size, what = (num_items, f"items in item_info {num_items}") if num_items else INT32
    if not items.size or (items.min() > 0 and items.max() < size):
        return
    outside = (items <= 0) | (items >= size)
    bad = lists_with(outside, lengths)
    expected = f"1 to {size - 1} ({what}; histories of user_info are not padded)"
    raise RowError(path, ITEM_SEQ, f"has {items[outside.argmax()]}", expected, bad, first)


def _require_ends(ends: np.ndarray, users: np.ndarray, lengths: np.ndarray, path: str | Path, first: int) -> None:
    """Histories end within their users'; a user that is out of range, or a negative end, has been refused before."""
    known = (users >= 0) & (users < len(lengths))
    beyond = known & (ends > lengths[np.where(known, users, 0)])
    if beyond.any():
        row = int(beyond.argmax())
        found = f"is {ends[row]} for user {users[row]} with {lengths[users[row]]} items"
        raise RowError(path, HISTORY_END, found, f"at most the number of the user's items in {ITEM_SEQ}", beyond, first)

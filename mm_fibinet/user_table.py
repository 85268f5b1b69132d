"""user_info.parquet as tensors: all users' items one after the other, so that a history is a part of one long row.

A row of a split that repeats 1,000 positions takes 4 KB; here it takes 12 bytes, and a batch cuts its histories out of
the users'. The zeros that pad them are between the users, so that a history is copied as it is
(`mm_fibinet.gather.take_tails`). Users are read once, and shared by the splits.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mm_fibinet.errors import UserError
from mm_fibinet.gather import take_rows, take_rows_for, take_tails
from mm_fibinet.parquet_reader import open_parquet, require_columns
from mm_fibinet.schema import ITEM_SEQ
from mm_fibinet.storage import Allocate, Stored, in_memory
from mm_fibinet.user_info import Users, user_features, user_slices

RUNS = (32, 64, 128)  # shorter ones are slow to copy, longer ones no faster


class UserTable(Stored):
    """The users' histories and columns, row = user_id.

    Attributes:
        sequences: int32 [T + run (U + 1)]: `run` zeros and a user's items, oldest first, for each user; `run` zeros.
        starts: int64 [U + 1], where each user's items begin; the last is where another's would.
        columns: {feature: int32 or float32 [U] or [U, W]}.
        longest: items of the longest history, at least 1.
        run: items that are copied at once.
    """

    def __init__(self, sequences: Tensor, starts: Tensor, columns: dict[str, Tensor], longest: int, run: int):
        self.sequences = sequences
        self.starts = starts
        self.columns = columns
        self.longest = longest
        self.run = run

    @property
    def device(self) -> torch.device:
        """Where the users are."""
        return self.sequences.device

    def users(self) -> Users:
        """What a split must know of them."""
        return Users(self.starts.cpu().diff().numpy() - self.run, frozenset(self.columns))

    def tensors(self) -> dict[str, Tensor]:
        """Histories and columns."""
        columns = {f"columns.{name}": values for name, values in self.columns.items()}
        return {"sequences": self.sequences, "starts": self.starts, **columns}

    def holding(self, tensors: dict[str, Tensor]) -> "UserTable":
        """The same users in other tensors."""
        columns = {name: tensors[f"columns.{name}"] for name in self.columns}
        return UserTable(tensors["sequences"], tensors["starts"], columns, self.longest, self.run)

    def rows(self, user: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The users' columns.

        Args:
            user: int32 [B], where the table is.
            device: where the columns shall be.

        Returns:
            {feature: [B] or [B, W]}.
        """
        taken = {name: take_rows_for(values, user, device) for name, values in self.columns.items()}
        return {name: values.to(device, non_blocking=True) for name, values in taken.items()}

    def item_index(
        self, target: Tensor, user: Tensor, end: Tensor | None, history_len: int, device: torch.device
    ) -> Tensor:
        """The histories of some rows, and their targets.

        Args:
            target, user: int32 [B], where the table is.
            end: int32 [B], how many of the user's items a history may have; None for all.
            history_len: L, the last L of these items are the history, padded with 0 in front.
            device: where the result shall be.

        Returns:
            int32 [B, L + 1], history first, target last.
        """
        starts = take_rows(self.starts, user)
        stops = take_rows(self.starts, user + 1) - self.run if end is None else starts + end
        items = take_tails(self.sequences, starts, stops + 1, history_len + 1, self.run, device)
        items[:, -1] = target
        return items.to(device, non_blocking=True)[:, -(history_len + 1) :]


def read_user_table(
    path: str | Path,
    features: dict[str, dict],
    num_items: int | None,
    allocate: Allocate = in_memory,
) -> UserTable:
    """Read and check user_info.parquet.

    Args:
        path: a parquet file or folder of the contract.
        features: FuxiCTR feature specs by name; those of source `user` that the file has are read.
        num_items: rows of the item table, None when it is not known; the items' ids must be below it.
        allocate: where the tensors are kept.

    Raises:
        UserError: names the column and the row of the first value that breaks the contract.
    """
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_SEQ])
    num_users, num_values = opened.num_rows, opened.num_values(ITEM_SEQ)
    run = _run(num_values, num_users)
    sequences = allocate((num_values + run * (num_users + 1),), np.int32)
    starts = allocate((num_users + 1,), np.int64)
    columns: dict[str, np.ndarray] = {}
    end, longest = 0, 1
    for users in user_slices(path, user_features(path, features), num_items):
        first, last = users.first, users.first + len(users.lengths)
        zeros = run * np.arange(1, len(users.lengths) + 1)  # before each user's items
        begin, end = end, end + len(users.items) + int(zeros[-1])
        if end + run > len(sequences):
            raise UserError(f"{path}: column {ITEM_SEQ} has more values than its footer says; copy or build it again")
        sequences[begin:end] = 0
        sequences[begin:end][np.arange(len(users.items)) + np.repeat(zeros, users.lengths)] = users.items
        starts[first:last] = begin + zeros + np.cumsum(users.lengths) - users.lengths
        longest = max(longest, int(users.lengths.max()))
        for name, values in users.columns.items():
            if name not in columns:
                kind = np.float32 if values.dtype.kind == "f" else np.int32
                columns[name] = allocate((num_users, *values.shape[1:]), kind)
            columns[name][first:last] = values
    sequences[end : end + run], starts[-1] = 0, end + run
    found = {name: torch.from_numpy(values) for name, values in columns.items()}
    return UserTable(torch.from_numpy(sequences)[: end + run], torch.from_numpy(starts), found, longest, run)


def user_table_bytes(path: str | Path, features: dict[str, dict]) -> int:
    """About as many bytes as the table will take."""
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_SEQ])
    num_users, num_values = opened.num_rows, opened.num_values(ITEM_SEQ)
    own = user_features(path, features).values()
    widths = [spec.get("max_len") or spec.get("pretrain_dim") or 1 for spec in own]
    return 4 * num_values + num_users * (8 + 4 * (_run(num_values, num_users) + sum(widths)))


def _run(num_values: int, num_users: int) -> int:
    """Items that are copied at once, which are as many zeros a user: a fourth of a history, within what is fast."""
    fourth = num_values // (4 * num_users)
    return max((run for run in RUNS if run <= fourth), default=RUNS[0])

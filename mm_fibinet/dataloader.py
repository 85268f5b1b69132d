"""Interactions as tensors, batches as one gather of rows.

The challenge's loader reads a row at a time in worker processes and joins the items in pandas; that, not the GPU, is
what its epochs wait for. Here a split is read once into a matrix of int32 (mm_fibinet.split), which lives on the
device when it fits there, else in pinned memory, else in a memory map. A batch gathers its rows from that matrix;
nothing runs per row, and there are no worker processes. The price is that a split must fit somewhere as int32: 3.6
million rows of 64 history items take 1 GB. On a CPU, batches come faster after
`mm_fibinet.memory.keep_freed_memory()`, which changes the whole process and so is for the script to call.

`MMCTRDataLoader` keeps the signature of the challenge's class of that name, so it drops into published solutions as
`params["data_loader"]`; what it yields is chosen by `batch_format`.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_fibinet import schema
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.gather import real_positions
from mm_fibinet.item_table import ItemTable, item_side_features, shared_item_table
from mm_fibinet.memory import give_back_read_buffers
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.split import PointingSplit, Split, read_split
from mm_fibinet.storage import STORAGES, choose_storage, read_stored
from mm_fibinet.user_info import HISTORY_END
from mm_fibinet.user_table import UserTable, read_user_table, user_table_bytes

BATCH_FORMATS = ("triple", "indices", "flat")


class IndexBatch(NamedTuple):
    """A batch as indices into the item table; the challenge's triple without the copying.

    Attributes:
        batch_dict: {feature or label: [B] or [B, W]} of everything that is not an item's.
        item_index: int32 [B, L + 1], history first (0 = padding), target last.
        item_table: the items' columns, on the device of the model.
    """

    batch_dict: dict[str, Tensor]
    item_index: Tensor
    item_table: ItemTable

    @property
    def mask(self) -> Tensor:
        """float32 [B, L], 1 = a real history item."""
        return real_positions(self.item_index[:, :-1])

    def triple(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The challenge's `(batch_dict, item_dict, mask)`, item rows gathered."""
        return self.batch_dict, self.item_table.rows(self.item_index), self.mask


class MMCTRDataLoader:
    """Batches of one split of the challenge data.

    Takes the arguments FuxiCTR passes to `params["data_loader"]`, so a published challenge repository runs on it
    after changing one import.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        data_path: a parquet file, with or without `.parquet`, or a folder of part files.
        split: "train", "valid" or "test"; a test split needs no label and no group id.
        batch_size: rows a batch; the last one may be smaller. In training, a last one of fewer than two rows a rank
            goes with the one before it: batch norm needs two.
        shuffle: a new seeded permutation every epoch.
        item_info: item_info.parquet, or an ItemTable made before (shared by the splits). None for data without a
            history, as FuxiCTR's own: all features are columns of the split, and a batch is a plain dictionary of them.
        user_info: user_info.parquet, where the users' histories are there and not in the rows; or another loader's
            `users` (shared by the splits).
        max_len: history positions used, the last ones.
        batch_format: "triple" yields the challenge's `(batch_dict, item_dict, mask)`, "indices" an `IndexBatch`, "flat"
            FuxiCTR's plain dictionary (see mm_fibinet.flat). The scripts take what the model's class reads.
        gpu: the device the batches are on, -1 = CPU, as FuxiCTR.
        seed: of the permutations.
        storage: "auto" (device if the split fits, else memory, else memmap), or one of these by name.
        history_levels: the items' rows carry likes_level and views_level too, so the history's items do.
        item_feature: item_feature.parquet, read for item-side features that item_info lacks (levels).
        similarity_fields, similarity_only: of the flat format.
        rank, world_size: this process reads every world_size-th share of each batch (see mm_fibinet.distributed).
            With more than one, all ranks make the loader at the same time, and a machine's share its memory.

    Raises:
        UserError: a setting is out of its range, or the data breaks the contract.
    """

    num_blocks = 1

    def __init__(
        self,
        feature_map,
        data_path: str,
        split: str = "train",
        batch_size: int = 32,
        shuffle: bool = False,
        item_info: str | ItemTable | None = None,
        max_len: int = 100,
        batch_format: str = "triple",
        gpu: int = -1,
        seed: int = 2025,
        storage: str = "auto",
        item_feature: str | None = None,
        history_levels: bool = False,
        similarity_fields: bool = False,
        similarity_only: tuple[str, ...] | list[str] | None = (),
        rank: int = 0,
        world_size: int = 1,
        user_info: str | UserTable | None = None,
        **kwargs,
    ):
        if batch_format not in BATCH_FORMATS:
            raise UserError(f"batch_format is {batch_format!r}, expected one of {', '.join(BATCH_FORMATS)}")
        if storage not in STORAGES:
            raise UserError(f"storage is {storage!r}, expected one of {', '.join(STORAGES)}")
        for name, size in {"batch_size": batch_size, "max_len": max_len}.items():
            if int(size) < 1:
                raise UserError(f"{name} is {size}, expected a whole number of at least 1")
        if item_info is None and (user_info is not None or schema.ITEM_SEQ in feature_map.features):
            raise UserError("item_info is not set; name item_info.parquet in the dataset config")
        self.path = str(data_path)
        self.feature_map = feature_map
        self.split = split
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.batch_format = batch_format
        self.flat = None
        if batch_format == "flat" and item_info is not None:
            from mm_fibinet.flat import FlatFormat  # which brings FuxiCTR and pydantic; the other forms need neither

            self.flat = FlatFormat(feature_map, history_levels, similarity_fields, similarity_only)
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda", gpu) if gpu >= 0 and torch.cuda.is_available() else torch.device("cpu")
        if item_info is not None and not isinstance(item_info, ItemTable):
            features = item_side_features(feature_map.features, history_levels)
            item_info = shared_item_table(item_info, features, item_feature, self.device)
        self.item_table = item_info.to(self.device) if item_info is not None else None
        self.num_items = self.item_table.num_items if self.item_table else None
        self.users = self._load_users(user_info, storage)
        self.data = self._load(storage, int(max_len))
        give_back_read_buffers()
        group = feature_map.group_id
        self._group_ids = self.data.column(group).cpu() if group and group in self.data.layout else None
        self.num_samples = len(self.data)
        self.num_batches = math.ceil(self.num_samples / self.batch_size)
        trains = shuffle or split == "train"
        if trains and self.num_batches > 1 and (self.num_samples - 1) % self.batch_size + 1 < 2 * world_size:
            self.num_batches -= 1
        if trains and min(self.batch_size, self.num_samples) < world_size:
            raise UserError(
                f"{self.path}: a batch has {min(self.batch_size, self.num_samples)} rows (batch_size is {batch_size}, "
                f"of all processes together), expected at least one for each of {world_size} processes; raise "
                "batch_size, or use fewer"
            )
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator:
        """The batches of the next epoch; `set_position` chooses another epoch or a later first batch."""
        epoch, first_batch = self.epoch, self.first_batch
        self.epoch, self.first_batch = epoch + 1, 0
        order = self._order(epoch) if self.shuffle else None
        for index in range(first_batch, self.num_batches):
            yield self._batch(order, *self._share(*self._bounds(index)))

    def shard_batches(self, rank: int, world_size: int) -> Iterator[tuple[int, object]]:
        """Every world_size-th batch, whole and in file order, for scoring: as one process would make them.

        Yields:
            (index of the batch, batch).
        """
        for index in range(rank, self.num_batches, world_size):
            yield index, self._batch(None, *self._bounds(index))

    def labels_and_groups(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels of all rows, [N], and their group ids, [N] or None, in file order."""
        groups = None if self._group_ids is None else self._group_ids.numpy()
        return self.data.column(self.feature_map.labels[0]).cpu().numpy(), groups

    def rows_in_batch(self, index: int) -> int:
        """Rows of a batch over all ranks."""
        start, stop = self._bounds(index)
        return stop - start

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Make the next iteration that of `epoch` (0-based), beginning with its batch `first_batch`."""
        self.epoch, self.first_batch = epoch, first_batch

    def _batch(self, order: "_Order | None", start: int, stop: int):
        """Rows start .. stop - 1 of an order, the file's when None, in the batch format."""
        if order is None:
            columns, item_index = self.data.slice(start, stop, self.device)
        else:
            columns, item_index = self.data.gather(order.by_data[start:stop], self.device)
        batch = columns if self.item_table is None else IndexBatch(columns, item_index, self.item_table)
        if self.batch_format == "indices":
            return batch
        if self.device.type == "cuda" and self._group_ids is not None:  # FuxiCTR calls .numpy() on it
            rows = slice(start, stop) if order is None else order.on_cpu[start:stop]
            columns[self.feature_map.group_id] = self._group_ids[rows]
        if not isinstance(batch, IndexBatch):
            return self._as_fuxictrs(columns)
        return batch.triple() if self.flat is None else self.flat.batch(*batch)

    def _as_fuxictrs(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns as FuxiCTR's own loader has them: in the feature map's order, integers as int64.

        A class may put what it embeds behind each other as it comes, and compute with ids, whose products are beyond
        int32.
        """
        order = [name for name in (*self.feature_map.features, *self.feature_map.labels) if name in columns]
        whole = {name: columns[name] for name in dict.fromkeys([*order, *columns])}
        return {name: values.long() if values.dtype == torch.int32 else values for name, values in whole.items()}

    def _bounds(self, index: int) -> tuple[int, int]:
        """First row of a batch and the row after its last."""
        start = index * self.batch_size
        return start, self.num_samples if index == self.num_batches - 1 else start + self.batch_size

    def _share(self, start: int, stop: int) -> tuple[int, int]:
        """This rank's rows of a batch: contiguous, sizes differing by at most one."""
        rows = stop - start
        return start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size

    def _order(self, epoch: int) -> "_Order":
        """The epoch's permutation: a function of seed and epoch alone, so that a resumed run repeats it."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        rows = torch.randperm(self.num_samples, generator=generator)
        return _Order(rows, rows.to(self.data.integers.device))

    def _load_users(self, user_info: str | UserTable | None, storage: str) -> UserTable | None:
        """The users, where there is a user_info, on the device if they fit there; None without."""
        if user_info is None or isinstance(user_info, UserTable):
            return user_info
        features = self.feature_map.features
        if storage == "auto":
            storage = choose_storage(user_table_bytes(user_info, features), self.device)
        read = partial(read_user_table, user_info, features, self.num_items)
        return read_stored(read, storage, self.device, self.world_size > 1)

    def _load(self, storage: str, max_len: int) -> Split:
        group = self.feature_map.group_id
        opened = open_parquet(self.path)
        labels = list(self.feature_map.labels)
        if self.split == "test":
            labels = [label for label in labels if schema.has_labels(self.path, opened, label)]
            group = group if group in opened.schema_arrow.names else None
        features, users = self.feature_map.features, self.users
        if storage == "auto":
            row_bytes = _row_bytes(features, max_len if users is None else 2, flat=self.item_table is None)
            storage = choose_storage(opened.num_rows * row_bytes, self.device)
        if storage == "device" and users is not None and users.device != self.device:
            storage = "memory"  # beside the users: the device would be waited for to ask them
        read = partial(read_split, self.path, features, labels, self.num_items, max_len, group)
        if users is not None:
            read = partial(read, users=users.users())
        split = read_stored(read, storage, self.device, self.world_size > 1)
        if users is None:
            return split
        has_ends = HISTORY_END in opened.schema_arrow.names
        return PointingSplit(split, users, min(max_len, users.longest), has_ends)


class _Order(NamedTuple):
    """A permutation of the rows, int64 [N], where group ids are and where the split is."""

    on_cpu: Tensor
    by_data: Tensor


def _row_bytes(features: dict[str, dict], max_len: int, flat: bool = False) -> int:
    """About as many bytes as a row takes, four a number."""
    own = [spec for spec in features.values() if flat or spec.get("source") != "item"]
    widths = [spec.get("max_len") or spec.get("pretrain_dim") or 1 for spec in own]
    return 4 * ((0 if flat else max_len + 1) + sum(widths) + 2)


if __name__ == "__main__":
    from mm_fibinet.repository_check import main  # which a loader does not need

    run_cli(main)

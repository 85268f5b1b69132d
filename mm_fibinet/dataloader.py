"""Interactions as tensors, batches as one index_select.

The challenge's loader reads a row at a time in worker processes and joins the items in pandas; that, not the GPU, is
what its epochs wait for. Here a split is read once into one int32 matrix [N, L + 1 + C] (history, target item, then
the other integer columns), which lives on the device when it fits there, else in pinned memory, else in a memory map.
A batch gathers its rows from that matrix; nothing runs per row, and there are no worker processes. The price is that
a split must fit somewhere as int32: 3.6 million rows of 64 history items take 1 GB.

`MMCTRDataLoader` keeps the signature of the challenge's class of that name, so it drops into published solutions as
`params["data_loader"]`; what it yields is chosen by `batch_format`.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.item_table import ItemTable, item_side_features, load_item_table
from mm_fibinet.memory import give_back_read_buffers

BATCH_FORMATS = ("triple", "indices")
STORAGES = ("auto", "device", "memory", "memmap")
MEMORY_SHARE = 0.5  # a split may take this share of the free memory of the place it is kept in


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
        return (self.item_index[:, :-1] > 0).float()

    def triple(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The challenge's `(batch_dict, item_dict, mask)`, item rows gathered."""
        return self.batch_dict, self.item_table.rows(self.item_index), self.mask


class Split:
    """One split as tensors.

    Attributes:
        integers: int32 [N, L + 1 + C]; columns as `layout` says.
        floats: float32 [N, F], or None when no column needs it.
        layout: {column: (first, width, is_list)} within `integers`.
        float_layout: the same for `floats`.
        history_len: L.
    """

    def __init__(self, integers: Tensor, floats: Tensor | None, layout: dict, float_layout: dict, history_len: int):
        self.integers = integers
        self.floats = floats
        self.layout = layout
        self.float_layout = float_layout
        self.history_len = history_len

    def __len__(self) -> int:
        return len(self.integers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.integers.nbytes + (self.floats.nbytes if self.floats is not None else 0)

    def column(self, name: str) -> Tensor:
        """One column over all rows, [N] or [N, W]."""
        return _columns(self.integers, self.layout)[name]

    def gather(self, rows: Tensor, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The rows' columns.

        Args:
            rows: int64 [B], on the device of `integers`.
            device: where the columns shall be.

        Returns:
            ({column: [B] or [B, W]}, item_index int32 [B, L + 1]).
        """
        floats = None if self.floats is None else _gather(self.floats, rows, device)
        return self._split_up(_gather(self.integers, rows, device), floats)

    def slice(self, start: int, stop: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """`gather` of rows start .. stop - 1, without a copy where they are there already."""
        floats = None if self.floats is None else self.floats[start:stop].to(device, non_blocking=True)
        return self._split_up(self.integers[start:stop].to(device, non_blocking=True), floats)

    def _split_up(self, integers: Tensor, floats: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        columns = _columns(integers, self.layout)
        if floats is not None:
            columns.update(_columns(floats, self.float_layout))
        return columns, integers[:, : self.history_len + 1]

    def to(self, device: torch.device) -> "Split":
        """The same split on another device."""
        floats = self.floats.to(device) if self.floats is not None else None
        return Split(self.integers.to(device), floats, self.layout, self.float_layout, self.history_len)

    def pin(self) -> "Split":
        """The same split in page-locked memory, from which a GPU copies while it computes."""
        floats = self.floats.pin_memory() if self.floats is not None else None
        return Split(self.integers.pin_memory(), floats, self.layout, self.float_layout, self.history_len)


def read_split(
    path: str | Path,
    features: dict[str, dict],
    labels: list[str],
    num_items: int,
    max_len: int,
    extra_columns: tuple[str, ...] = (),
    memmap_folder: Path | None = None,
) -> Split:
    """Read and check one split.

    Args:
        path: a parquet file of the contract.
        features: FuxiCTR feature specs by name; the item-side ones are not read here.
        labels: label columns, 0 or 1; empty for a test split.
        num_items: rows of the item table; history and target ids must be below it.
        max_len: the last max_len positions of the history are kept.
        extra_columns: further integer columns, for example the group id of gAUC.
        memmap_folder: keep the matrix in an unnamed file there instead of in memory.

    Raises:
        UserError: names the file, the column and the row of the first value that breaks the contract.
    """
    num_rows = schema.open_parquet(path).metadata.num_rows
    integer_columns, float_columns = _columns_to_read(features, labels, extra_columns)
    names = [schema.ITEM_SEQ, schema.ITEM_ID, *integer_columns, *float_columns]
    limits = {name: (spec["vocab_size"], "vocab_size") for name, spec in features.items() if "vocab_size" in spec}
    limits[schema.ITEM_SEQ] = limits[schema.ITEM_ID] = (num_items, "items in item_info")

    split, full_len = None, None
    for first, arrays in schema.read_slices(path, names):
        history = schema.matrix(arrays[schema.ITEM_SEQ], path, schema.ITEM_SEQ, first, full_len)
        full_len = history.shape[1]
        blocks = {schema.ITEM_SEQ: history}
        blocks[schema.ITEM_ID] = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first)
        for name in integer_columns:
            blocks[name] = _integer_block(arrays[name], path, name, first, features.get(name), name in labels)
        for name, block in blocks.items():
            size, what = limits.get(name, (2**31, "the int32 range"))
            schema.require_range(block, path, name, size, first, what)
        schema.require_targets(blocks[schema.ITEM_ID], path, first)
        blocks[schema.ITEM_SEQ] = history[:, max(full_len - max_len, 0) :]
        float_blocks = {name: _float_block(arrays[name], path, name, first) for name in float_columns}
        if split is None:
            split = _empty_split(num_rows, blocks, float_blocks, memmap_folder)
        _fill(split.integers, blocks, split.layout, first)
        _fill(split.floats, float_blocks, split.float_layout, first)
    return split


class MMCTRDataLoader:
    """Batches of one split of the challenge data.

    Takes the arguments FuxiCTR passes to `params["data_loader"]`, so a published challenge repository runs on it
    after changing one import.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        data_path: a parquet file; `.parquet` is added when missing, as FuxiCTR does.
        split: "train", "valid" or "test"; a test split needs no label.
        batch_size: rows a batch; the last one may be smaller. When shuffled, a last one of fewer than two rows a rank
            goes with the one before it: batch norm needs two.
        shuffle: a new seeded permutation every epoch.
        item_info: item_info.parquet, or an ItemTable made before (shared by the splits).
        max_len: history positions used, the last ones.
        batch_format: "triple" yields the challenge's `(batch_dict, item_dict, mask)`, "indices" an `IndexBatch`.
        gpu: the device the batches are on, -1 = CPU, as FuxiCTR.
        seed: of the permutations.
        storage: "auto" (device if the split fits, else memory, else memmap), or one of these by name.
        history_levels: the items' rows carry likes_level and views_level too, so the history's items do.
        item_feature: item_feature.parquet, read for item-side features that item_info lacks (levels).
        rank, world_size: this process reads every world_size-th share of each batch (see mm_fibinet.distributed).

    Raises:
        UserError: the data breaks the contract.
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
        rank: int = 0,
        world_size: int = 1,
        **kwargs,
    ):
        if batch_format not in BATCH_FORMATS:
            raise UserError(f"batch_format is {batch_format!r}, expected one of {', '.join(BATCH_FORMATS)}")
        if storage not in STORAGES:
            raise UserError(f"storage is {storage!r}, expected one of {', '.join(STORAGES)}")
        if item_info is None:
            raise UserError("item_info is not set; name item_info.parquet in the dataset config")
        if not str(data_path).endswith(".parquet"):
            data_path = f"{data_path}.parquet"
        self.path = str(data_path)
        self.feature_map = feature_map
        self.split = split
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.batch_format = batch_format
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda", gpu) if gpu >= 0 and torch.cuda.is_available() else torch.device("cpu")
        if not isinstance(item_info, ItemTable):
            features = item_side_features(feature_map.features, history_levels)
            item_info = load_item_table(item_info, features, item_feature)
        self.item_table = item_info.to(self.device)
        self.data = self._load(storage, int(max_len))
        give_back_read_buffers()
        group = feature_map.group_id
        self._group_ids = self.data.column(group).cpu() if group and group in self.data.layout else None
        self.num_samples = len(self.data)
        self.num_batches = math.ceil(self.num_samples / self.batch_size)
        if shuffle and self.num_batches > 1 and (self.num_samples - 1) % self.batch_size + 1 < 2 * world_size:
            self.num_batches -= 1
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator:
        """The batches of the next epoch; `set_position` chooses another epoch or a later first batch."""
        epoch, first_batch = self.epoch, self.first_batch
        self.epoch, self.first_batch = epoch + 1, 0
        order = self._order(epoch) if self.shuffle else None
        order_here = order.to(self.data.integers.device) if self.shuffle else None
        for index in range(first_batch, self.num_batches):
            yield self._batch(order, order_here, *self._share(*self._bounds(index)))

    def shard_batches(self, rank: int, world_size: int) -> Iterator[tuple[int, object]]:
        """Every world_size-th batch, whole and in file order, for scoring: as one process would make them.

        Yields:
            (index of the batch, batch).
        """
        for index in range(rank, self.num_batches, world_size):
            yield index, self._batch(None, None, *self._bounds(index))

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

    def _batch(self, order: Tensor | None, order_here: Tensor | None, start: int, stop: int):
        """Rows order[start:stop] (file order when None) in the batch format; `order_here` is by the data."""
        if order is None:
            columns, item_index = self.data.slice(start, stop, self.device)
        else:
            columns, item_index = self.data.gather(order_here[start:stop], self.device)
        batch = IndexBatch(columns, item_index, self.item_table)
        if self.batch_format == "indices":
            return batch
        if self.device.type == "cuda" and self._group_ids is not None:  # FuxiCTR calls .numpy() on it
            rows = slice(start, stop) if order is None else order[start:stop]
            columns[self.feature_map.group_id] = self._group_ids[rows]
        return batch.triple()

    def _bounds(self, index: int) -> tuple[int, int]:
        """First row of a batch and the row after its last."""
        start = index * self.batch_size
        return start, self.num_samples if index == self.num_batches - 1 else start + self.batch_size

    def _share(self, start: int, stop: int) -> tuple[int, int]:
        """This rank's rows of a batch: contiguous, sizes differing by at most one."""
        rows = stop - start
        return start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size

    def _order(self, epoch: int) -> Tensor:
        """The epoch's permutation: a function of seed and epoch alone, so that a resumed run repeats it."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_samples, generator=generator)

    def _load(self, storage: str, max_len: int) -> Split:
        features = {name: spec for name, spec in self.feature_map.features.items() if spec.get("source") != "item"}
        group = self.feature_map.group_id
        opened = schema.open_parquet(self.path)
        labels = list(self.feature_map.labels)
        if self.split == "test":
            labels = [label for label in labels if label in opened.schema_arrow.names]
        needed = opened.metadata.num_rows * 4 * (max_len + 1 + len(features) + 2)
        if storage == "auto":
            storage = _choose_storage(needed, self.device)
        folder = Path(tempfile.gettempdir()) if storage == "memmap" else None
        split = read_split(
            self.path,
            features,
            labels,
            self.item_table.num_items,
            max_len,
            extra_columns=(group,) if group else (),
            memmap_folder=folder,
        )
        if self.device.type != "cuda" or storage == "memmap":
            return split
        return split.to(self.device) if storage == "device" else split.pin()


def _columns_to_read(features: dict, labels: list[str], extra: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The integer and the float columns of a split, besides history and target."""
    integer, floating = [], []
    for name, spec in features.items():
        if name in (schema.ITEM_SEQ, schema.ITEM_ID) or spec["type"] == "meta" or spec.get("source") == "item":
            continue
        (floating if spec["type"] in ("numeric", "embedding") else integer).append(name)
    integer += [name for name in (*extra, *labels) if name not in integer]
    return integer, floating


def _integer_block(array, path, name: str, first: int, spec: dict | None, is_label: bool) -> np.ndarray:
    if is_label:
        values = schema.scalars(array, path, name, first, integer=False)
        schema.require_binary(values, path, name, first)
        return values
    if spec and spec["type"] == "sequence":
        return schema.matrix(array, path, name, first, width=spec["max_len"])
    return schema.scalars(array, path, name, first)


def _float_block(array, path, name: str, first: int) -> np.ndarray:
    if str(array.type).endswith("]") or "list" in str(array.type):
        values = schema.matrix(array, path, name, first, integer=False)
    else:
        values = schema.scalars(array, path, name, first, integer=False)
    schema.require_finite(values, path, name, first)
    return values


def _empty_split(rows: int, blocks: dict, float_blocks: dict, memmap_folder: Path | None) -> Split:
    """A split whose matrices fit these columns, not yet filled."""
    layout, width = _layout(blocks)
    float_layout, float_width = _layout(float_blocks)
    integers = _allocate(rows, width, np.int32, memmap_folder)
    floats = _allocate(rows, float_width, np.float32, memmap_folder) if float_width else None
    return Split(integers, floats, layout, float_layout, blocks[schema.ITEM_SEQ].shape[1])


def _layout(blocks: dict[str, np.ndarray]) -> tuple[dict[str, tuple[int, int, bool]], int]:
    """{column: (first, width, is_list)} in the matrix, and the matrix's width."""
    layout, first = {}, 0
    for name, block in blocks.items():
        width = block.shape[1] if block.ndim == 2 else 1
        layout[name] = (first, width, block.ndim == 2)
        first += width
    return layout, first


def _allocate(rows: int, width: int, dtype, memmap_folder: Path | None) -> Tensor:
    if memmap_folder is None:
        return torch.from_numpy(np.empty((rows, width), dtype=dtype))
    with tempfile.NamedTemporaryFile(
        dir=memmap_folder, prefix="mm-fibinet-"
    ) as opened:  # unlinked: freed with the process
        return torch.from_numpy(np.memmap(opened, dtype=dtype, mode="w+", shape=(rows, width)))


def _fill(target: Tensor | None, blocks: dict[str, np.ndarray], layout: dict, first: int) -> None:
    for name, (start, width, _) in layout.items():
        block = blocks[name]
        target.numpy()[first : first + len(block), start : start + width] = block.reshape(len(block), width)


def _gather(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of a matrix on a device; to another one through page-locked memory, so that the copy is not waited for."""
    if values.device == device:
        return values.index_select(0, rows)
    here = torch.empty(len(rows), values.shape[1], dtype=values.dtype, pin_memory=device.type == "cuda")
    return torch.index_select(values, 0, rows, out=here).to(device, non_blocking=True)


def _columns(values: Tensor, layout: dict[str, tuple[int, int, bool]]) -> dict[str, Tensor]:
    """Views of the matrix's columns, without the history and the target item."""
    return {
        name: values[:, first : first + width] if is_list else values[:, first]
        for name, (first, width, is_list) in layout.items()
        if name not in (schema.ITEM_SEQ, schema.ITEM_ID)
    }


def _choose_storage(needed: int, device: torch.device) -> str:
    if device.type == "cuda" and needed < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if needed < MEMORY_SHARE * _free_memory() else "memmap"


def _free_memory() -> int:
    """Bytes of main memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30

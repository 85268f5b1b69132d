"""The file contract of the challenge data: which columns there are and what their values may be.

Every reader goes through here, and `mm_fibinet.data_check` through the very same functions: what a check passes,
training, prediction and the embedding build take, and what it refuses, they refuse with the same words. A reader raises
at the first fault; a check passes `noted`, a context manager that keeps each fault and lets the reader go on.

The files: splits (train, valid, test) of one interaction a row; item_info, row = item_id, row 0 the padding item; and
item_feature, the items' texts and levels, in any order.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import normalizer
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import (
    ParquetData,
    RowError,
    identities,
    is_list,
    is_number_list,
    matrix,
    open_parquet,
    read_column,
    read_slices,
    require_columns,
    scalars,
    whole_column,
)

ITEM_ID = "item_id"
ITEM_SEQ = "item_seq"
TEST_ID = "ID"
LABEL = "label"  # where a dataset config names no other
LEVELS = ("likes_level", "views_level")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of ITEM_ID.jpg, an item's cover
ARCHIVE_SUFFIXES = (".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")  # of covers, beside .zip
INT32 = (2**31, "the int32 range")  # ids are kept as int32
NOT_IN_BATCHES = ("history", "target", "user", "end")  # roles of columns that say which items a row has

Noted = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Column:
    """One column of a split.

    Attributes:
        name: in the file.
        role: history, target, group or label, or feature for one that `spec` describes.
        limit: ids are below the first; the second is what the user knows it as.
        width: length of a list a row; None takes what the spec says, else that of the first row.
        spec: FuxiCTR's feature spec.
    """

    name: str
    role: str
    limit: tuple[int, str] = INT32
    width: int | None = None
    spec: dict = field(default_factory=dict)

    def read(self, array: pa.Array, path: str | Path, first_row: int = 0, noted: Noted = nullcontext) -> np.ndarray:
        """The column's values, checked: [n] or [n, width]; int64, or the file's own integers, or floats for numbers."""
        if self.role == "feature":
            return read_feature(array, path, self.name, self.spec, first_row, self.width)
        if self.role == "group":
            return identities(array, path, self.name, first_row)
        if self.role == "label":
            labels = scalars(array, path, self.name, first_row, integer=False)
            require_binary(labels, path, self.name, first_row)
            return labels
        if self.role == "target":
            values = scalars(array, path, self.name, first_row)
        else:
            values = matrix(array, path, self.name, first_row, self.width)
            if values.shape[1] == 0:
                raise UserError(f"{path}: column {self.name} has empty lists, expected positions (zeros: no history)")
        with noted():
            require_range(values, path, self.name, *self.limit, first_row=first_row)
        with noted():
            (require_targets if self.role == "target" else require_padding_in_front)(values, path, first_row)
        return values


def split_columns(
    features: dict[str, dict],
    labels: list[str],
    num_items: int | None,
    group: str | None = None,
    flat: bool = False,
) -> list[Column]:
    """What a split is read for: history, target, integers (features, group, labels), then numbers.

    Args:
        features: FuxiCTR feature specs by name; items' (source `item`) and meta features are not the split's.
        labels: label columns, 0 or 1.
        num_items: rows of item_info; None when it is not known.
        group: the column that gAUC groups by.
        flat: the data have no items of their own and no history: every feature is the split's.

    Raises:
        UserError: the group is a list a row, or a number, which is kept as a scaled float that many ids share.
    """
    kind = features.get(group or "", {}).get("type")
    if kind == "numeric":
        raise UserError(f"group_id is {group!r}, a feature of type numeric, expected ids: type meta or categorical")
    if group == ITEM_SEQ or kind in ("sequence", "embedding"):
        raise UserError(f"group_id is {group!r}, a list a row, expected a column of one id a row, as user_id")
    items = (num_items, "items in item_info") if num_items else INT32
    columns = [] if flat else [Column(ITEM_SEQ, "history", items), Column(ITEM_ID, "target", items)]
    elsewhere = {column.name for column in columns}
    own = {
        name: Column(name, "feature", spec=spec)
        for name, spec in features.items()
        if name not in elsewhere and spec["type"] != "meta" and (flat or spec.get("source") != "item")
    }
    columns += [column for column in own.values() if not is_number(column)]
    columns += [Column(group, "group")] if group and group not in own and group not in elsewhere else []
    columns += [Column(label, "label") for label in labels]
    return columns + [column for column in own.values() if is_number(column)]


def is_number(column: Column) -> bool:
    """Whether a column is kept as floats."""
    return column.spec.get("type") in ("numeric", "embedding")


def checked_slices(
    path: str | Path, columns: list[Column], noted: Noted = nullcontext
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Read and check columns of a split, slice by slice.

    Args:
        path: a parquet file or folder.
        columns: of `split_columns`.
        noted: what a fault is handed to; by default it is raised.

    Yields:
        (first row of the slice, {column: its values}); a faulty column is left out where faults are kept.

    Raises:
        UserError: names the file, the column and the row of the first value that breaks the contract.
    """
    opened = open_parquet(path)
    readable = []
    for column in columns:
        with noted():
            hint = "; or name the file of the users' histories as user_info" if column.role == "history" else ""
            require_columns(path, opened, [column.name], hint)
            readable.append(column)
    for first, arrays in read_slices(path, [column.name for column in readable]) if readable else ():
        blocks = {}
        for place, column in enumerate(readable):
            with noted():
                block = blocks[column.name] = column.read(arrays[column.name], path, first, noted)
                if block.ndim == 2 and column.width is None:  # the first slice says how long
                    readable[place] = replace(column, width=block.shape[1])
        yield first, blocks


def read_feature(
    array: pa.Array, path: str | Path, name: str, spec: dict, first_row: int = 0, width: int | None = None
) -> np.ndarray:
    """A feature's column, of a split or of the items, checked against its spec.

    A feature map of FuxiCTR 2.3.7 has no pretrain_dim, and max_len 0 where the config has none: the lists are then as
    long as `width` says, or as the first row is.

    Returns:
        categorical: integers [n]; sequence: integers [n, max_len]; numeric, scaled: float32 [n]; embedding: float32
        [n, pretrain_dim].
    """
    kind = spec["type"]
    if kind == "numeric":
        values = normalizer.scaled(read_numbers(array, path, name, spec, first_row), spec)
        return _float32(values, path, name, first_row)
    if kind == "embedding":
        values = _float32(embedding_matrix(array, path, name, spec, first_row, width), path, name, first_row)
        return values * np.float32(spec["scale"]) if "scale" in spec else values
    if kind == "sequence":
        values = matrix(array, path, name, first_row, spec.get("max_len") or width)
    else:
        values = scalars(array, path, name, first_row, fill_na=spec.get("fill_na"))
    require_range(values, path, name, spec["vocab_size"], first_row=first_row)
    return values


def embedding_matrix(
    array: pa.Array, path: str | Path, name: str, spec: dict, first_row: int = 0, width: int | None = None
) -> np.ndarray:
    """An embedding feature's column as it is stored, its `scale` aside: [n, pretrain_dim] in the file's number type."""
    return matrix(array, path, name, first_row, spec.get("pretrain_dim") or width, integer=False)


def read_numbers(array: pa.Array, path: str | Path, name: str, spec: dict, first_row: int = 0) -> np.ndarray:
    """A numeric feature as in the file, nulls and NaN replaced by its `fill_na`: float64 [n], finite."""
    fill_na = spec.get("fill_na")
    values = scalars(array, path, name, first_row, integer=False, fill_na=fill_na)
    if fill_na is not None:
        values = np.where(np.isnan(values), fill_na, values)
    require_finite(values, path, name, first_row)
    return values


def require_range(
    values: np.ndarray, path: str | Path, column: str, size: int, what: str = "vocab_size", first_row: int = 0
) -> None:
    """A `UserError` naming the first row whose ids are not in 0 .. size - 1.

    Args:
        values: integers [n] or [n, width].
        what: the name of the limit, as the user knows it.
    """
    if values.size == 0 or _all_below(values, size):
        return
    flat = values.reshape(len(values), -1)
    outside = (flat < 0) | (flat >= size)
    bad = outside.any(axis=1)
    row = int(bad.argmax())
    value = int(flat[row][outside[row]][0])
    raise RowError(path, column, f"has {value}", f"0 to {size - 1} ({what} {size})", bad, first_row)


def require_binary(values: np.ndarray, path: str | Path, column: str, first_row: int = 0) -> None:
    """A `UserError` naming the first row whose label is neither 0 nor 1 (NaN included)."""
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        raise RowError(path, column, f"is {values[wrong.argmax()]}", "0 or 1", wrong, first_row)


def require_finite(values: np.ndarray, path: str | Path, column: str, first_row: int = 0) -> None:
    """A `UserError` naming the first row with NaN or infinity."""
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    raise RowError(path, column, "has NaN or infinity", "finite numbers", bad, first_row)


def require_targets(ids: np.ndarray, path: str | Path, first_row: int = 0) -> None:
    """A `UserError` naming the first row whose target is the padding item 0."""
    if not ids.all():
        raise RowError(path, ITEM_ID, "is 0", "an item (0 is the padding item)", ids == 0, first_row)


def require_padding_in_front(history: np.ndarray, path: str | Path, first_row: int = 0) -> None:
    """A `UserError` naming the first row with a zero behind a history item: integers [n, L]."""
    real = history != 0
    behind = real[:, :-1] > real[:, 1:]
    if behind.any():
        raise RowError(path, ITEM_SEQ, "has a zero after an item", "zeros in front only", behind.any(axis=1), first_row)


def read_item_info(path: str | Path, noted: Noted = nullcontext) -> pa.Table:
    """Read item_info.parquet whole and check what every use of it relies on, as `item_slices` does.

    Other columns (text, lists of text, structs) are kept as they are.

    Returns:
        the table as it is in the file: columns, order and types untouched.
    """
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_ID])
    table = opened.read()
    with noted():
        _require_id_order(scalars(whole_column(table, ITEM_ID), path, ITEM_ID), path)
    for column in _number_lists(table.schema):
        with noted():
            _require_item_lists(whole_column(table, column), path, column)
    return table


def item_slices(
    path: str | Path, columns: list[str], noted: Noted = nullcontext
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Read columns of item_info.parquet slice by slice, and check what every use of the file relies on.

    item_id must be 0, 1, 2, ... in order (row = id), row 0 the padding item with zeros in every list of numbers, such
    lists of equal lengths, embeddings finite; those of all columns are checked, also where nobody reads them.

    Args:
        path: a parquet file or folder.
        columns: those that are read, of any type.
        noted: what a fault is handed to; by default it is raised.

    Yields:
        (first row of the slice, {column: arrow array}).
    """
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_ID, *columns])
    with noted():
        _require_id_order(read_column(path, ITEM_ID), path)
    lists: dict[str, int | None] = dict.fromkeys(_number_lists(opened.schema_arrow))  # {column: its width}
    read = [name for name in opened.schema_arrow.names if name in lists or name in columns]
    for first, arrays in read_slices(path, read) if read else ():
        for column, width in lists.items():
            with noted():
                lists[column] = _require_item_lists(arrays[column], path, column, first, width)
        yield first, {name: arrays[name] for name in columns}


def read_item_feature(
    path: str | Path, features: dict[str, dict], num_items: int, noted: Noted = nullcontext
) -> dict[str, np.ndarray]:
    """Features of item_feature.parquet, brought into the order of item_info.

    Args:
        path: item_id, each at most once, in any order, and further columns.
        features: FuxiCTR feature specs by name, the columns to read.
        num_items: rows of item_info.

    Returns:
        {feature: [num_items] or [num_items, W]}; zeros for the padding item and for items that are absent.
    """
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_ID, *features])
    table = opened.read([ITEM_ID, *features])
    ids = scalars(whole_column(table, ITEM_ID), path, ITEM_ID)
    with noted():
        require_range(ids, path, ITEM_ID, num_items, "items in item_info")
    with noted():
        _refuse_repeated(ids, path)
    known = (ids >= 0) & (ids < num_items)
    joined = {}
    for name, spec in features.items():
        with noted():
            values = read_feature(whole_column(table, name), path, name, spec)[known]
            joined[name] = np.zeros((num_items, *values.shape[1:]), dtype=values.dtype)
            joined[name][ids[known]] = values
            joined[name][0] = 0
    return joined


def read_test_ids(path: str | Path) -> np.ndarray:
    """The test split's ID column, which must be 0, 1, 2, ...: int64 [N]."""
    parts = [scalars(arrays[TEST_ID], path, TEST_ID, first) for first, arrays in read_slices(path, [TEST_ID])]
    ids = np.concatenate(parts)
    wrong = ids != np.arange(len(ids))
    if wrong.any():
        row = int(wrong.argmax())
        raise RowError(path, TEST_ID, f"is {ids[row]}", f"{row} (the row number)", wrong)
    return ids


def has_labels(path: str | Path, opened: ParquetData, label: str) -> bool:
    """Whether a split that needs no labels has them all: in test splits the column is often there and empty."""
    if label not in opened.schema_arrow.names:
        return False
    try:
        for first, arrays in read_slices(path, [label]):
            Column(label, "label").read(arrays[label], path, first)
    except UserError:
        return False
    return True


def _all_below(values: np.ndarray, size: int) -> bool:
    """Whether all integers are in 0 .. size - 1, in one pass: as unsigned numbers, negative ones are large."""
    if values.dtype.kind == "i":
        values, size = values.view(f"u{values.itemsize}"), min(size, 1 << (8 * values.itemsize - 1))
    return bool(values.max() < size)


def _float32(values: np.ndarray, path: str | Path, name: str, first_row: int) -> np.ndarray:
    """The numbers as float32; a `UserError` for what is not finite there."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    if np.isfinite(small).all():
        return small
    require_finite(values, path, name, first_row)
    bad = ~np.isfinite(small.reshape(len(small), -1)).all(axis=1)
    raise RowError(path, name, "has a number beyond float32", "up to 3.4e38", bad, first_row)


def _number_lists(columns: pa.Schema) -> list[str]:
    return [column.name for column in columns if is_number_list(column.type)]


def _require_item_lists(
    array: pa.Array, path: str | Path, column: str, first_row: int = 0, width: int | None = None
) -> int:
    """The width of lists of numbers of items, which must be that of the lists before, and finite."""
    integer = is_list(array.type) and pa.types.is_integer(array.type.value_type)
    values = matrix(array, path, column, first_row, width, integer)
    if not integer:
        require_finite(values, path, column, first_row)
    if not first_row and np.any(values[0] != 0):
        raise UserError(f"{path}: column {column} is not zero in row 0, expected zeros (the padding item)")
    return values.shape[1]


def _require_id_order(ids: np.ndarray, path: str | Path) -> None:
    wrong = ids != np.arange(len(ids))
    if not wrong.any():
        return
    _refuse_repeated(ids, path)
    row = int(wrong.argmax())
    raise UserError(
        f"{path}: item_id is {ids[row]} in row {row}, expected {row}; sort by item_id, with the padding item 0 first"
    )


def _refuse_repeated(ids: np.ndarray, path: str | Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        twice = int(values[counts.argmax()])
        raise UserError(f"{path}: item_id {twice} occurs {counts.max()} times, expected each id once")

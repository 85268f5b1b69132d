"""The file contract of the challenge data: columns, types, sizes; every check and its message.

Users bring parquet files written by pandas, polars or pyarrow, so a list column may be a list, a large list or a
fixed-size list, of any integer or float width. Everything here reads all of these and refuses the rest with a
sentence that names the file, the column, the row and what was expected. Files are read in slices, so that checking
3.6 million rows needs little memory.

`mm_fibinet.data_check` checks a whole data folder with these.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet.errors import UserError, explain_os_error

ITEM_ID = "item_id"
ITEM_SEQ = "item_seq"
TEST_ID = "ID"
SLICE_ROWS = 65_536


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a parquet file; a `UserError` when it is missing, truncated, not parquet or has no rows."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check data_root and the paths of the dataset config")
    try:
        opened = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        reason = _first_line(error)
        raise UserError(f"{path}: not a complete parquet file ({reason}); copy or build it again") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if opened.metadata.num_rows == 0:
        raise UserError(f"{path}: has no rows, expected at least one")
    return opened


def require_columns(path: str | Path, opened: pq.ParquetFile, columns: list[str]) -> None:
    """A `UserError` that names the first of `columns` that the file lacks."""
    present = opened.schema_arrow.names
    for column in columns:
        if column not in present:
            raise UserError(f"{path}: column {column} is missing, found {', '.join(present)}")


def read_slices(path: str | Path, columns: list[str]) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Read `columns` slice by slice.

    Yields:
        (first row of the slice, {column: arrow array}), SLICE_ROWS rows at a time.
    """
    opened = open_parquet(path)
    require_columns(path, opened, columns)
    first_row = 0
    try:
        for batch in opened.iter_batches(batch_size=SLICE_ROWS, columns=columns):
            yield first_row, {name: batch.column(name) for name in columns}
            first_row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        message = f"{path}: cannot be read past row {first_row} ({_first_line(error)}); copy or build it again"
        raise UserError(message) from error


def scalars(array: pa.Array, path: str | Path, column: str, first_row: int = 0, integer: bool = True) -> np.ndarray:
    """One number a row.

    Args:
        array: arrow array [n].
        integer: expect an integer type (booleans count as one); otherwise any number.

    Returns:
        int64 [n] when `integer`, else float64 [n].
    """
    kind = array.type
    fits = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    fits = fits or (pa.types.is_floating(kind) and not integer)
    if not fits:
        expected = "an integer" if integer else "a number"
        raise UserError(f"{path}: column {column} has type {kind}, expected {expected} a row")
    _refuse_nulls(array, path, column, first_row)
    return array.cast(pa.int64() if integer else pa.float64()).to_numpy(zero_copy_only=False)


def matrix(
    array: pa.Array, path: str | Path, column: str, first_row: int = 0, width: int | None = None, integer: bool = True
) -> np.ndarray:
    """One list a row, all of the same length.

    Args:
        array: arrow list, large list or fixed-size list array [n].
        width: the length expected; None takes that of the first row.
        integer: expect integer values, otherwise any number.

    Returns:
        [n, width] in the file's own number type.
    """
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{path}: column {column} has type {kind}, expected a list of numbers a row")
    value_fits = pa.types.is_integer(kind.value_type) or (not integer and pa.types.is_floating(kind.value_type))
    if not value_fits:
        expected = "integers" if integer else "numbers"
        raise UserError(f"{path}: column {column} holds lists of {kind.value_type}, expected lists of {expected}")
    _refuse_nulls(array, path, column, first_row)
    if pa.types.is_fixed_size_list(kind):
        lengths = np.full(len(array), kind.list_size)
        values = array.flatten()
    else:
        lengths = np.diff(array.offsets.to_numpy(zero_copy_only=False))
        values = array.flatten()
    if len(array) == 0:
        return np.zeros((0, width or 0), dtype=np.int64 if integer else np.float32)
    width = int(lengths[0]) if width is None else width
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{path}: column {column} has {int(lengths[row])} values in row {first_row + row}, expected {width}; "
            "all rows need the same length (pad histories with zeros in front)"
        )
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // width
        raise UserError(f"{path}: column {column} has a null in row {first_row + row}, expected {width} numbers")
    return values.to_numpy(zero_copy_only=False).reshape(len(array), width)


def require_range(
    values: np.ndarray, path: str | Path, column: str, size: int, first_row: int = 0, what: str = "vocab_size"
) -> None:
    """A `UserError` naming the first row whose ids are not in 0 .. size - 1.

    Args:
        values: integers [n] or [n, width].
        what: the name of the limit, as the user knows it.
    """
    if values.size == 0 or (values.min() >= 0 and values.max() < size):
        return
    flat = values.reshape(len(values), -1)
    outside = (flat < 0) | (flat >= size)
    row = int(np.flatnonzero(outside.any(axis=1))[0])
    value = int(flat[row][outside[row]][0])
    raise UserError(
        f"{path}: column {column} has {value} in row {first_row + row}, expected 0 to {size - 1} ({what} {size})"
    )


def require_binary(values: np.ndarray, path: str | Path, column: str, first_row: int = 0) -> None:
    """A `UserError` naming the first row whose label is neither 0 nor 1 (NaN included)."""
    wrong = np.flatnonzero(~((values == 0) | (values == 1)))
    if wrong.size:
        row = int(wrong[0])
        raise UserError(f"{path}: column {column} is {values[row]} in row {first_row + row}, expected 0 or 1")


def require_finite(values: np.ndarray, path: str | Path, column: str, first_row: int = 0) -> None:
    """A `UserError` naming the first row with NaN or infinity."""
    if np.isfinite(values).all():
        return
    flat = values.reshape(len(values), -1)
    row = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
    raise UserError(f"{path}: column {column} has NaN or infinity in row {first_row + row}, expected finite numbers")


def require_targets(ids: np.ndarray, path: str | Path, first_row: int = 0) -> None:
    """A `UserError` naming the first row whose target is the padding item 0."""
    missing = np.flatnonzero(ids == 0)
    if missing.size:
        row = first_row + int(missing[0])
        raise UserError(f"{path}: column {ITEM_ID} is 0 in row {row}, expected an item (0 is the padding item)")


def require_padding_in_front(history: np.ndarray, path: str | Path, first_row: int = 0) -> None:
    """A `UserError` naming the first row with a zero behind a history item: integers [n, L]."""
    wrong = np.flatnonzero(((history[:, :-1] != 0) & (history[:, 1:] == 0)).any(axis=1))
    if wrong.size:
        row = first_row + int(wrong[0])
        raise UserError(
            f"{path}: column {ITEM_SEQ} has a zero after an item in row {row}, expected zeros in front only"
        )


def read_item_info(path: str | Path) -> pa.Table:
    """Read item_info.parquet whole and check what every use of it relies on.

    item_id must be 0, 1, 2, ... in order (row = id), row 0 the padding item with zeros in every list, list columns of
    equal lengths, embeddings finite.

    Returns:
        the table as it is in the file: columns, order and types untouched.
    """
    opened = open_parquet(path)
    require_columns(path, opened, [ITEM_ID])
    try:
        table = opened.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); copy or build it again") from error
    _require_id_order(scalars(whole_column(table, ITEM_ID), path, ITEM_ID), path)
    for column in table.column_names:
        kind = table.schema.field(column).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            integer = pa.types.is_integer(kind.value_type)
            values = matrix(whole_column(table, column), path, column, integer=integer)
            if not integer:
                require_finite(values, path, column)
            if np.any(values[0] != 0):
                raise UserError(f"{path}: column {column} is not zero in row 0, expected zeros (the padding item)")
    return table


def read_test_ids(path: str | Path) -> np.ndarray:
    """The test split's ID column, which must be 0, 1, 2, ...: int64 [N]."""
    parts = [scalars(arrays[TEST_ID], path, TEST_ID, first) for first, arrays in read_slices(path, [TEST_ID])]
    ids = np.concatenate(parts)
    wrong = np.flatnonzero(ids != np.arange(len(ids)))
    if wrong.size:
        row = int(wrong[0])
        raise UserError(f"{path}: column ID is {ids[row]} in row {row}, expected {row} (the row number)")
    return ids


def whole_column(table: pa.Table, column: str) -> pa.Array:
    """A table's column as one arrow array."""
    chunks = table.column(column).combine_chunks()
    if isinstance(chunks, pa.ChunkedArray):
        return pa.concat_arrays(chunks.chunks)
    return chunks


def _require_id_order(ids: np.ndarray, path: str | Path) -> None:
    wrong = np.flatnonzero(ids != np.arange(len(ids)))
    if not wrong.size:
        return
    row = int(wrong[0])
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        twice = int(values[counts.argmax()])
        raise UserError(f"{path}: item_id {twice} occurs {counts.max()} times, expected each id once, in order")
    raise UserError(
        f"{path}: item_id is {ids[row]} in row {row}, expected {row}; sort by item_id, with the padding item 0 first"
    )


def _refuse_nulls(array: pa.Array, path: str | Path, column: str, first_row: int) -> None:
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{path}: column {column} is empty (null) in row {first_row + row}, expected a value")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__

"""Parquet as users bring it: a file or a folder of part files, read in slices, columns as numpy; FuxiCTR's npz, too.

Files come from pandas, polars, pyarrow, Spark and Ray, so numbers may be of any width, signed or not,
dictionary-encoded, and a list may be a list, a large list or a fixed-size list. Everything here reads all of these and
refuses the rest with a sentence that names the file, the column, the row and what was expected. A path is taken
literally, whatever characters it has: nothing is a pattern, and file names need not be text. Reading in slices keeps
the memory for millions of rows small. What the columns mean, and what values they may have, is mm_fibinet.schema's.
"""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet.errors import UserError, explain_os_error, first_line

SLICE_ROWS = 65_536
BYTES_AT_ONCE = 1 << 20  # of a column's chunk
SUFFIX = ".parquet"
NPZ = ".npz"  # of FuxiCTR: an array a column
IDS_OF_TEXT = "build_dataset.py makes ids of text: python build_dataset.py --recipe RECIPE.yaml --out data/NAME"
DAMAGED = (pa.ArrowException, OSError, ValueError)  # what a broken file makes Arrow raise


class RowError(UserError):
    """Rows of a column that break the contract; the message names the first of them.

    Args:
        path: the file.
        column: the column.
        found: what is wrong there, as "has 11".
        expected: what would be right.
        bad: bool [n], the rows of a slice that are wrong; at least one is.
        first_row: the slice's first row.

    Attributes:
        kind: equal for errors that say the same of different rows.
        first_row: the slice's first row.
        rows: how many rows of the slice are wrong.
    """

    def __init__(self, path: str | Path, column: str, found: str, expected: str, bad: np.ndarray, first_row: int = 0):
        row = first_row + int(bad.argmax())
        super().__init__(f"{path}: column {column} {found} in row {row}, expected {expected}")
        self.kind = (str(path), column, expected)
        self.first_row = first_row
        self.rows = int(bad.sum())


class ParquetData:
    """A parquet file, or the part files of a folder as one.

    Attributes:
        path: as the user named it.
        parts: the files, in order.
        num_rows: of all parts.
        schema_arrow: of the first part.
    """

    def __init__(self, path: str | Path, parts: list[Path], num_rows: int, schema_arrow: pa.Schema):
        self.path = path
        self.parts = parts
        self.num_rows = num_rows
        self.schema_arrow = schema_arrow

    def iter_batches(self, columns: list[str] | None = None, batch_size: int = SLICE_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows in order, batch_size at a time; a `UserError` where the file is damaged."""
        done = 0
        try:
            for part in self.parts:
                with _open_file(part) as opened:
                    for batch in opened.iter_batches(batch_size=batch_size, columns=columns):
                        if done + batch.num_rows > self.num_rows:
                            raise ValueError(f"more rows than the {self.num_rows} its footer says")
                        yield batch
                        done += batch.num_rows
        except DAMAGED as error:
            message = f"{self.path}: cannot be read past row {done} ({first_line(error)}); copy or build it again"
            raise UserError(message) from error
        if done != self.num_rows:
            raise UserError(f"{self.path}: has {done} rows, its footer says {self.num_rows}; copy or build it again")

    def num_values(self, column: str) -> int:
        """The numbers in a column of lists, by the footers; a list without any counts as one."""
        count = 0
        try:
            for part in self.parts:
                with _open_file(part) as opened:
                    groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
                for group in groups:
                    leaves = [group.column(i) for i in range(group.num_columns)]
                    count += sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)
        except DAMAGED as error:
            raise UserError(f"{self.path}: cannot be read ({first_line(error)}); copy or build it again") from error
        return count

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows as one table, the columns' order and types as in the file."""
        tables = []
        try:
            for part in self.parts:
                with _open_file(part) as opened:
                    tables.append(opened.read(columns))
            return pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
        except DAMAGED as error:
            raise UserError(f"{self.path}: cannot be read ({first_line(error)}); copy or build it again") from error


class NpzData(ParquetData):
    """FuxiCTR's npz file as if it were parquet; small enough for memory, as FuxiCTR reads it too."""

    def __init__(self, path: str | Path, table: pa.Table):
        super().__init__(path, [Path(path)], table.num_rows, table.schema)
        self.table = table

    def iter_batches(self, columns: list[str] | None = None, batch_size: int = SLICE_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows in order, batch_size at a time."""
        yield from self.read(columns).to_batches(max_chunksize=batch_size)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows as one table."""
        return self.table if columns is None else self.table.select(columns)


def part_files(path: str | Path) -> list[Path]:
    """The files that a path stands for.

    Args:
        path: a parquet file, with or without `.parquet`, or a folder of part files as pandas, pyarrow, Spark and Ray
            write them. Numbers in part names count as numbers: part-2 comes before part-10.

    Returns:
        the file alone, or the folder's `*.parquet` without those that begin with `_` or `.`.

    Raises:
        UserError: there is nothing, or something else.
    """
    try:
        mode = _mode(path) or _mode(f"{path}{SUFFIX}")
        if mode is None:
            raise UserError(f"{path}: no such file; check the path, or data_root where a dataset config has it")
        found = Path(path) if _mode(path) else Path(f"{path}{SUFFIX}")
        if stat.S_ISREG(mode):
            return [found]
        if not stat.S_ISDIR(mode):
            raise UserError(f"{path}: this is a device or a pipe, expected a parquet file or a folder of them")
        names = [name for name in os.listdir(found) if name.endswith(SUFFIX) and name[0] not in "_."]
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if not names:
        raise UserError(
            f"{path}: a folder without {SUFFIX} files in it, expected a parquet file or a folder of part files "
            "(columns that became folder names must be written into the files)"
        )
    return sorted((found / name for name in names), key=_natural_order)


def exists(path: str | Path) -> bool:
    """Whether there is anything at a path, with or without `.parquet`."""
    try:
        return _mode(path) is not None or _mode(f"{path}{SUFFIX}") is not None
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def open_parquet(path: str | Path) -> ParquetData:
    """Open a parquet file or folder; a `UserError` when it is missing, truncated, not parquet or has no rows."""
    if str(path).lower().endswith(NPZ) and not os.path.isdir(path):
        return NpzData(path, _read_npz(path))
    parts, num_rows, first_schema = [], 0, None
    for part in part_files(path):
        where = part if part != Path(path) else path
        try:
            with _open_file(part) as opened:
                rows, names = opened.metadata.num_rows, opened.schema_arrow
        except OSError as error:
            if error.errno:
                raise explain_os_error(error, where, "read") from error
            raise _not_complete(where, error) from error
        except DAMAGED as error:
            raise _not_complete(where, error) from error
        _refuse_duplicates(where, names.names)
        if rows == 0:  # Spark leaves such parts
            continue
        if first_schema is not None:
            _require_alike(where, names, first_schema, parts[0].name)
        parts.append(part)
        num_rows += rows
        first_schema = first_schema or names
    if first_schema is None:
        raise UserError(f"{path}: has no rows, expected at least one")
    return ParquetData(path, parts, num_rows, first_schema)


def _read_npz(path: str | Path) -> pa.Table:
    """The arrays of an npz file, [N] or [N, W] each, as columns; pickled ones are refused, for they run code."""
    file = part_files(path)[0]
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
        sizes = {len(values) if values.ndim in (1, 2) else 0 for values in columns.values()}
        if len(sizes) == 1 and 0 not in sizes:
            return pa.table({name: _arrow(values) for name, values in columns.items()})
    except (*DAMAGED, zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not an npz file of plain arrays ({first_line(error)}); copy or build it again"
        ) from error
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in columns.items())
    raise UserError(f"{path}: has {shapes or 'no arrays'}, expected columns [N] or [N, W], all of N rows and N above 0")


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def require_columns(path: str | Path, opened: ParquetData, columns: list[str], hint: str = "") -> None:
    """A `UserError` that names the first of `columns` that the file lacks, and ends with the hint."""
    present = opened.schema_arrow.names
    for column in columns:
        if column not in present:
            raise UserError(f"{path}: column {column} is missing, found {', '.join(present)}{hint}")


def read_slices(
    path: str | Path, columns: list[str], rows: int = SLICE_ROWS
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Read `columns` slice by slice.

    Yields:
        (first row of the slice, {column: arrow array}), at most `rows` rows at a time.
    """
    opened = open_parquet(path)
    require_columns(path, opened, columns)
    first_row = 0
    for batch in opened.iter_batches(columns, rows):
        yield first_row, {name: batch.column(name) for name in columns}
        first_row += batch.num_rows


def read_column(path: str | Path, column: str, integer: bool = True, fill_na: float | None = None) -> np.ndarray:
    """A whole column of one number a row: int64 [N], or float64 [N] when not `integer`; nulls as `scalars` has them."""
    slices = read_slices(path, [column])
    return np.concatenate([scalars(arrays[column], path, column, first, integer, fill_na) for first, arrays in slices])


def list_width(path: str | Path, column: str) -> int:
    """The length of the lists of a column of numbers, from its first row."""
    opened = open_parquet(path)
    require_columns(path, opened, [column])
    first = next(opened.iter_batches([column], batch_size=1)).column(0)
    return matrix(first, path, column, integer=False).shape[1]


def scalars(
    array: pa.Array,
    path: str | Path,
    column: str,
    first_row: int = 0,
    integer: bool = True,
    fill_na: float | None = None,
) -> np.ndarray:
    """One number a row.

    Args:
        array: arrow array [n].
        integer: expect an integer type (booleans count as one); otherwise any number.
        fill_na: what nulls become; None refuses them.

    Returns:
        int64 [n] when `integer`, else float64 [n].
    """
    array = _plain(array)
    kind = array.type
    if pa.types.is_null(kind) and fill_na is not None:
        return np.full(len(array), fill_na, dtype=np.int64 if integer else np.float64)
    fits = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    fits = fits or (pa.types.is_floating(kind) and not integer)
    if not fits:
        expected = "an integer" if integer else "a number"
        hint = f"; {IDS_OF_TEXT}" if integer and kind in (pa.string(), pa.large_string(), pa.string_view()) else ""
        raise UserError(f"{path}: column {column} has type {kind}, expected {expected} a row{hint}")
    if array.null_count and fill_na is None:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        raise RowError(path, column, "is empty (null)", "a value", nulls, first_row)
    if integer and kind == pa.uint64():
        bad = array.fill_null(0).to_numpy(zero_copy_only=False) >= 2**63
        if bad.any():
            raise RowError(path, column, f"has {array[int(bad.argmax())]}", "an int64", bad, first_row)
    array = array.cast(pa.int64()) if integer else array.cast(pa.float64(), safe=False)
    if array.null_count:
        array = array.fill_null(fill_na)
    return array.to_numpy(zero_copy_only=False)


def identities(array: pa.Array, path: str | Path, column: str, first_row: int = 0) -> np.ndarray:
    """Integers that only tell rows apart, of any range: int64 [n], equal exactly where the column's values are."""
    array = _plain(array)
    if array.type == pa.uint64():
        array = array.cast(pa.int64(), safe=False)
    return scalars(array, path, column, first_row)


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
    values, lengths = _flat_lists(array, path, column, first_row, integer)
    if len(lengths) == 0:
        return np.zeros((0, width or 0), dtype=np.int64 if integer else np.float32)
    width = int(lengths[0]) if width is None else width
    wrong = lengths != width
    if wrong.any():
        expected = f"{width}; all rows need the same length (pad histories with zeros in front)"
        raise RowError(path, column, f"has {int(lengths[wrong.argmax()])} values", expected, wrong, first_row)
    if values.null_count:
        nulls = values.is_null().to_numpy(zero_copy_only=False).reshape(len(lengths), width).any(axis=1)
        raise RowError(path, column, "has a null", f"{width} numbers", nulls, first_row)
    return values.to_numpy(zero_copy_only=False).reshape(len(lengths), width)


def list_values(array: pa.Array, path: str | Path, column: str, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One list of integers a row, of any lengths.

    Returns:
        all values, one list's after the other's, [T] in the file's own number type; the lengths, int64 [n].
    """
    values, lengths = _flat_lists(array, path, column, first_row, integer=True)
    if values.null_count:
        nulls = values.is_null().to_numpy(zero_copy_only=False)
        raise RowError(path, column, "has a null", "integers", lists_with(nulls, lengths), first_row)
    return values.to_numpy(zero_copy_only=False), lengths


def lists_with(marked: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which of n lists have a marked value: bool [T], lengths int [n], to bool [n]."""
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths)[marked], minlength=len(lengths)) > 0


def _flat_lists(
    array: pa.Array, path: str | Path, column: str, first_row: int, integer: bool
) -> tuple[pa.Array, np.ndarray]:
    """The values of lists without nulls among the lists, and the lists' lengths, int64 [n]."""
    array = _plain(array)
    kind = array.type
    if not is_list(kind):
        raise UserError(f"{path}: column {column} has type {kind}, expected a list of numbers a row")
    inner = kind.value_type.value_type if pa.types.is_dictionary(kind.value_type) else kind.value_type
    if not (pa.types.is_integer(inner) or (not integer and pa.types.is_floating(inner))):
        expected = "integers" if integer else "numbers"
        raise UserError(f"{path}: column {column} holds lists of {inner}, expected lists of {expected}")
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        raise RowError(path, column, "is empty (null)", "a list", nulls, first_row)
    if pa.types.is_fixed_size_list(kind):
        lengths = np.full(len(array), kind.list_size)
    else:
        lengths = np.diff(array.offsets.to_numpy(zero_copy_only=False)).astype(np.int64)
    return _plain(array.flatten()), lengths


def is_list(kind: pa.DataType) -> bool:
    """Whether an arrow type is a list of any sort."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number_list(kind: pa.DataType) -> bool:
    """Whether an arrow type is a list of integers or floats."""
    return is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def whole_column(table: pa.Table, column: str) -> pa.Array:
    """A table's column as one arrow array."""
    chunks = table.column(column).combine_chunks()
    if isinstance(chunks, pa.ChunkedArray):
        return pa.concat_arrays(chunks.chunks)
    return chunks


def _plain(array: pa.Array) -> pa.Array:
    """The array without dictionary or extension around its values."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _mode(path: str | Path) -> int | None:
    """What kind of file there is; None where there is none."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # a NUL character
        raise UserError(f"{path}: not a file name ({error})") from error


def _open_file(path: Path) -> pq.ParquetFile:
    """Open a file to be read piece by piece; told nothing, Arrow reads all of it before the first rows, and keeps it.

    Arrow takes str for UTF-8 text and bytes as they are, which is what file names are.
    """
    return pq.ParquetFile(pa.OSFile(os.fsencode(path)), pre_buffer=False, buffer_size=BYTES_AT_ONCE)


def _not_complete(path: str | Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a complete parquet file ({first_line(error)}); copy or build it again")


def _refuse_duplicates(path: str | Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(
            f"{path}: column {twice[0]} is there {names.count(twice[0])} times, expected each name once; drop or "
            "rename the others"
        )


def _require_alike(where: str | Path, part: pa.Schema, first: pa.Schema, named: str) -> None:
    """A part file has the columns of the first one, and lists of integers where that has such.

    Integers beside floats are an embedding in two forms: a `scale` of the one would be multiplied into both.
    """
    if set(part.names) != set(first.names):
        raise UserError(
            f"{where}: has columns {', '.join(part.names)}, expected those of {named}: {', '.join(first.names)}"
        )
    for name in part.names:
        kind, other = part.field(name).type, first.field(name).type
        both = is_number_list(kind) and is_number_list(other)
        if both and pa.types.is_integer(kind.value_type) != pa.types.is_integer(other.value_type):
            raise UserError(
                f"{where}: column {name} has lists of {kind.value_type}, expected {other.value_type} as in {named}; "
                "write it alike in all part files"
            )


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """A key by which part-2 comes before part-10."""
    pieces = re.split(r"([0-9]+)", path.name)
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]

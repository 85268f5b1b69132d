"""What a case is: a list of changes to valid input, drawn by hypothesis and applied without chance.

Random bytes are refused at the first check and find nothing. These changes keep nearly all of a file valid: one column
of another type, one value out of range, one byte of a footer. A case is plain data, so that its repr repeats it.
"""

import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

CANARY = "{canary}"  # stands for a path that no command may make
CODE = (
    f"__import__('os').mkdir('{CANARY}')",
    f"exec(\"import os; os.mkdir('{CANARY}')\")",
    f"!!python/object/apply:os.mkdir ['{CANARY}']",
    f"layers.MaskedAveragePooling(), __import__('os').mkdir('{CANARY}')",
    f"$(mkdir {CANARY})",
)
TEXTS = (
    *("", " ", "nan", "1", "a\x00b", "\x1b[31mred", "a\nerror: b", "\u202egpj", "\ufeff", "../../x", "/dev/null", "~"),
    *("\u6f22\u5b57", "e\u0301", "x" * 5000, "CON", "-1", "1e3", "{}", "%s%n", "=1+1", "\ud7ff"),
)
NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.0, 1e-300, 1e308, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 10**30)
SPECIAL = (float("nan"), float("inf"), float("-inf"), None, True, False)

one_value = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(SPECIAL), st.sampled_from(TEXTS))
place = st.one_of(st.floats(0, 1), st.floats(0.97, 1), st.floats(0, 0.03))  # of a file: its head and foot say most
byte_change = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("write"), place, st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])),
    st.tuples(st.just("write"), place, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("delete"), place, st.integers(1, 64)),
    st.tuples(st.just("cut"), place, st.just(0)),
    st.tuples(st.just("repeat"), place, st.integers(1, 64)),
    st.tuples(st.just("whole"), st.just(0.0), st.sampled_from(["empty", "zeros", "html", "lfs", "text", "parquet"])),
)
byte_changes = st.lists(byte_change, min_size=1, max_size=3)
WHOLE = {
    "empty": b"",
    "zeros": bytes(4096),
    "html": b"<!DOCTYPE html><html><title>Sign in</title></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "text": b"user_id,item_id,label\n1,2,0\n",
    "parquet": b"PAR1" + bytes(64) + struct.pack("<I", 64) + b"PAR1",
}


def change_bytes(content: bytes, changes: list[tuple]) -> bytes:
    """The content after byte changes."""
    changed = bytearray(content)
    for kind, where, what in changes:
        at = min(int(where * len(changed)), max(len(changed) - 1, 0))
        if kind == "flip" and changed:
            changed[at] ^= 1 << what
        elif kind == "write":
            changed[at : at + len(what)] = what
        elif kind == "insert":
            changed[at:at] = what
        elif kind == "delete":
            del changed[at : at + what]
        elif kind == "cut":
            del changed[at:]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + what] * 3
        elif kind == "whole":
            changed = bytearray(WHOLE[what])
    return bytes(changed)


TYPES = {
    **{str(kind): kind for kind in (pa.int8(), pa.int32(), pa.uint8(), pa.uint64(), pa.float16(), pa.float64())},
    **{str(kind): kind for kind in (pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.date32(), pa.null())},
    **{str(kind): kind for kind in (pa.timestamp("ns"), pa.decimal128(38, 2), pa.duration("s"), pa.time64("us"))},
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of numbers": pa.dictionary(pa.int32(), pa.int64()),
    "struct": pa.struct([("a", pa.int64())]),
    "list of text": pa.list_(pa.string()),
    "list of lists": pa.list_(pa.list_(pa.int64())),
    "large list": pa.large_list(pa.int64()),
    "list of floats": pa.list_(pa.float64()),
    "list of uint8": pa.list_(pa.uint8()),
    "list of nulls": pa.list_(pa.null()),
    "list view": pa.list_view(pa.int64()),
}
row = st.integers(0, 1000)
column_change = st.one_of(
    st.tuples(st.just("type"), st.sampled_from(sorted(TYPES)), st.just(0)),
    st.tuples(st.just("value"), one_value, row),
    st.tuples(st.just("all"), one_value, row),
    st.tuples(st.just("drop"), st.none(), st.just(0)),
    st.tuples(st.just("twice"), st.none(), st.just(0)),
    st.tuples(st.just("name"), st.sampled_from(["ITEM_ID", " item_id", "label ", "title", *TEXTS]), st.just(0)),
    st.tuples(st.just("extra"), st.sampled_from(["label", "item_id", "item_seq", *TEXTS]), st.just(0)),
    st.tuples(st.just("length"), st.sampled_from([-1000, -1, 1, 5, 1000]), row),
    st.tuples(st.just("lengths"), st.sampled_from([-1000, -1, 1, 5]), row),
    st.tuples(st.just("reverse"), st.none(), row),
)
table_change = st.one_of(
    st.tuples(
        st.just("rows"), st.sampled_from(["none", "one", "twice", "reversed", "last twice", "nulls"]), st.just(0)
    ),
    st.tuples(st.just("metadata"), st.sampled_from(["{", "null", '{"index_columns": 7}', *CODE]), st.just(0)),
    st.tuples(
        st.just("write"), st.sampled_from(["gzip", "row groups of 1", "version 1", "pages 2", "parts"]), st.just(0)
    ),
)
table_changes = st.lists(
    st.tuples(st.integers(0, 20), st.one_of(column_change, column_change, column_change, table_change)),
    min_size=1,
    max_size=3,
)


def change_table(path: Path, changes: list[tuple]) -> None:
    """Write a parquet file again after changes, each to the column of a number; one that cannot be made is left out."""
    table, options = pq.read_table(path), {}
    for number, (kind, what, at) in changes:
        try:
            if kind == "write":
                options = {"kind": what}
            elif kind in ("rows", "metadata"):
                table = _change_rows(table, kind, what)
            elif table.num_columns:
                table = _change_column(table, number % table.num_columns, kind, what, at)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError):
            continue
    path.unlink()
    _write(table, path, options.get("kind"))


def _write(table: pa.Table, path: Path, kind: str | None) -> None:
    if kind == "parts":  # a folder of part files, as Spark writes them
        path.mkdir()
        half = table.num_rows // 2
        pq.write_table(table.slice(0, half), path / "part-0.parquet")
        pq.write_table(table.slice(half), path / "part-1.parquet")
        return
    options = {
        "gzip": {"compression": "gzip"},
        "row groups of 1": {"row_group_size": 1},
        "version 1": {"version": "1.0"},
        "pages 2": {"data_page_version": "2.0", "use_dictionary": False},
    }
    try:
        pq.write_table(table, path, **options.get(kind or "", {}))
    except (pa.ArrowException, NotImplementedError):  # a type that parquet has not
        pq.write_table(table.select([]), path)


def _change_rows(table: pa.Table, kind: str, what: str) -> pa.Table:
    if kind == "metadata":
        return table.replace_schema_metadata({b"pandas": what.encode("utf-8", "replace")})
    if what == "nulls":
        return pa.table([pa.nulls(table.num_rows, field.type) for field in table.schema], schema=table.schema)
    count = table.num_rows
    rows = {
        "none": [],
        "one": [0],
        "twice": [*range(count), *range(count)],
        "reversed": list(range(count))[::-1],
        "last twice": [*range(count), count - 1],
    }[what]
    return table.take(pa.array(rows, pa.int64()))


def _change_column(table: pa.Table, at: int, kind: str, what: object, row: int) -> pa.Table:
    field, values = table.schema.field(at), table.column(at).to_pylist()
    if kind == "drop":
        return table.remove_column(at)
    if kind == "twice":
        return table.append_column(field.name, table.column(at))
    if kind == "name":
        names = list(table.column_names)
        names[at] = str(what)
        return table.rename_columns(names)
    if kind == "extra":
        return table.append_column(str(what), pa.array(["=1+1\x1b[2J"] * table.num_rows))
    if kind == "type":
        return table.set_column(at, field.name, _retyped(values, TYPES[str(what)]))
    row %= max(len(values), 1)
    changed = [
        _changed(value, kind, what, row) if kind in _ALL_ROWS or i == row else value for i, value in enumerate(values)
    ]
    kind_of_list = pa.types.is_fixed_size_list(field.type) and kind not in ("length", "lengths")
    try:
        return table.set_column(at, field.name, pa.array(changed, field.type if kind_of_list else None))
    except (pa.ArrowException, OverflowError):
        as_floats = [_floats(value) for value in changed]
        return table.set_column(at, field.name, pa.array(as_floats))


_ALL_ROWS = ("all", "lengths")


def _changed(value: object, kind: str, what: object, row: int) -> object:
    if not isinstance(value, list):
        return what if kind in ("value", "all") else value
    if kind in ("value", "all"):
        place = row % max(len(value), 1)
        return None if what is None and row % 2 else [*value[:place], what, *value[place + 1 :]]
    if kind == "reverse":
        return value[::-1]
    length = max(len(value) + int(what), 0)  # type: ignore[call-overload]
    return (value + value[-1:] * length)[:length]


def _floats(value: object) -> object:
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _retyped(values: list, kind: pa.DataType) -> pa.Array:
    """The values as another type, as a tool might have written them."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([None if value is None else str(value) for value in values], kind)
    if pa.types.is_binary(kind):
        return pa.array([json.dumps(value).encode() for value in values], kind)
    if pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type):
        return pa.array([str(value) for value in values]).dictionary_encode()
    if pa.types.is_struct(kind):
        return pa.array([{"a": 1}] * len(values), kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if (
        pa.types.is_date32(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_duration(kind)
        or pa.types.is_time64(kind)
    ):
        return pa.array([1] * len(values), pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(kind)
    is_list = isinstance(values[0], list) if values else False
    wants_list = isinstance(kind, pa.ListType | pa.LargeListType | pa.ListViewType)
    if wants_list and not is_list:
        values = [[value] for value in values]
    if is_list and not wants_list:
        values = [value[0] if value else 0 for value in values]
    if wants_list and pa.types.is_string(kind.value_type):
        return pa.array([[str(inner) for inner in value] for value in values], kind)
    if wants_list and pa.types.is_list(kind.value_type):
        return pa.array([[value] for value in values], kind)
    if wants_list and pa.types.is_null(kind.value_type):
        return pa.array([[None] * len(value) for value in values], kind)
    if pa.types.is_boolean(kind):
        return pa.array([bool(value) for value in values])
    return pa.array(values).cast(kind)


def set_canary(value: object, canary: Path) -> object:
    """The value with the canary's path in place of CANARY, in all the texts in it."""
    if isinstance(value, str):
        return value.replace(CANARY, str(canary))
    if isinstance(value, list | tuple):
        return type(value)(set_canary(inner, canary) for inner in value)
    if isinstance(value, dict):
        return {set_canary(key, canary): set_canary(inner, canary) for key, inner in value.items()}
    return value

"""Ways to spoil a data set of `conftest.make_dataset`, and ways to write it that are as good.

Each function changes the files of one folder. A `spoil_` returns the fault's message, from the file's name on; `data`
is the folder TEST_DATA, item_feature.parquet is above it. A `vary_` leaves a data set that means the same.
"""

import datetime
import decimal
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import list_column


def change(path, column, values):
    """Replace a column of a parquet file; values of None drop it."""
    table = pq.read_table(path)
    at = table.column_names.index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, values)
    pq.write_table(table, path)


def column(path, name):
    """A column as a numpy array that may be changed."""
    return np.array(pq.read_table(path)[name].to_pylist())


def spoil_missing_file(data):
    (data / "train.parquet").unlink()
    return "train.parquet: no such file"


def spoil_missing_column(data):
    change(data / "train.parquet", "views_level", None)
    return "train.parquet: column views_level is missing, found user_id, item_seq"


def spoil_type(data):
    change(data / "train.parquet", "likes_level", pa.array(["3"] * 600))
    return "train.parquet: column likes_level has type string, expected an integer a row"


def spoil_fractional_ids(data):
    change(data / "train.parquet", "item_id", pa.array(np.full(600, 1.5)))
    return "train.parquet: column item_id has type double, expected an integer a row"


def spoil_list_length(data):
    change(data / "item_info.parquet", "item_tags", list_column(np.zeros((40, 4), dtype=np.int64)))
    return "item_info.parquet: column item_tags has 4 values in row 0, expected 5"


def spoil_embedding_length(data):
    change(data / "item_info.parquet", "item_emb_d16", list_column(np.zeros((40, 8), dtype=np.float32)))
    return "item_info.parquet: column item_emb_d16 has 8 values in row 0, expected 16"


def spoil_unequal_histories(data):
    rows = [list(row) for row in column(data / "train.parquet", "item_seq")]
    rows[9] = rows[9][:-1]
    change(data / "train.parquet", "item_seq", pa.array(rows))
    return "train.parquet: column item_seq has 11 values in row 9, expected 12"


def spoil_item_out_of_table(data):
    items = column(data / "valid.parquet", "item_id")
    items[3] = 99
    change(data / "valid.parquet", "item_id", pa.array(items))
    return "valid.parquet: column item_id has 99 in row 3, expected 0 to 39 (items in item_info 40)"


def spoil_history_out_of_table(data):
    history = column(data / "train.parquet", "item_seq")
    history[4, 11] = -1
    change(data / "train.parquet", "item_seq", list_column(history))
    return "train.parquet: column item_seq has -1 in row 4, expected 0 to 39"


def spoil_vocabulary(data):
    tags = column(data / "item_info.parquet", "item_tags")
    tags[7, 4] = 9
    change(data / "item_info.parquet", "item_tags", list_column(tags))
    return "item_info.parquet: column item_tags has 9 in row 7, expected 0 to 8 (vocab_size 9)"


def spoil_levels(data):
    levels = column(data / "train.parquet", "likes_level")
    levels[599] = 11
    change(data / "train.parquet", "likes_level", pa.array(levels))
    return "train.parquet: column likes_level has 11 in row 599, expected 0 to 10 (vocab_size 11)"


def spoil_target(data):
    items = column(data / "train.parquet", "item_id")
    items[5] = 0
    change(data / "train.parquet", "item_id", pa.array(items))
    return "train.parquet: column item_id is 0 in row 5, expected an item"


def spoil_nan(data):
    embedding = column(data / "item_info.parquet", "item_emb_d16").astype(np.float32)
    embedding[6, 2] = np.nan
    change(data / "item_info.parquet", "item_emb_d16", list_column(embedding))
    return "item_info.parquet: column item_emb_d16 has NaN or infinity in row 6"


def spoil_infinity(data):
    embedding = column(data / "item_info.parquet", "item_emb_d16").astype(np.float32)
    embedding[6, 2] = np.inf
    change(data / "item_info.parquet", "item_emb_d16", list_column(embedding))
    return "item_info.parquet: column item_emb_d16 has NaN or infinity in row 6"


def spoil_order(data):
    table = pq.read_table(data / "item_info.parquet")
    pq.write_table(table.take([1, 0, *range(2, 40)]), data / "item_info.parquet")
    return "item_info.parquet: item_id is 1 in row 0, expected 0"


def spoil_duplicates(data):
    table = pq.read_table(data / "item_info.parquet")
    pq.write_table(table.take([*range(39), 38]), data / "item_info.parquet")
    return "item_info.parquet: item_id 38 occurs 2 times"


def spoil_row_zero(data):
    tags = column(data / "item_info.parquet", "item_tags")
    tags[0, 4] = 1
    change(data / "item_info.parquet", "item_tags", list_column(tags))
    return "item_info.parquet: column item_tags is not zero in row 0"


def spoil_label(data):
    labels = column(data / "train.parquet", "label")
    labels[2] = 2
    change(data / "train.parquet", "label", pa.array(labels))
    return "train.parquet: column label is 2.0 in row 2, expected 0 or 1"


def spoil_one_class(data):
    change(data / "valid.parquet", "label", pa.array(np.zeros(200, dtype=np.int64)))
    return "AUC is not defined: all 200 labels are the same"


def spoil_empty_split(data):
    pq.write_table(pq.read_table(data / "valid.parquet").slice(0, 0), data / "valid.parquet")
    return "valid.parquet: has no rows"


def spoil_truncated(data):
    path = data / "train.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    return "train.parquet: not a complete parquet file"


def spoil_null(data):
    items = pa.array([None, *column(data / "train.parquet", "item_id")[1:].tolist()])
    change(data / "train.parquet", "item_id", items)
    return "train.parquet: column item_id is empty (null) in row 0"


def spoil_zeros_behind_items(data):
    history = column(data / "valid.parquet", "item_seq")
    history[[5, 6]] = np.arange(12)[::-1]
    change(data / "valid.parquet", "item_seq", list_column(history))
    return "valid.parquet: column item_seq has a zero after an item in row 5, expected zeros in front only"


def spoil_empty_histories(data):
    change(data / "train.parquet", "item_seq", pa.array([[]] * 600, type=pa.list_(pa.int64())))
    return "train.parquet: column item_seq has empty lists, expected positions (zeros: no history)"


def spoil_null_history(data):
    rows = [None, *column(data / "train.parquet", "item_seq").tolist()[1:]]
    change(data / "train.parquet", "item_seq", pa.array(rows))
    return "train.parquet: column item_seq is empty (null) in row 0, expected a list"


def spoil_null_in_history(data):
    rows = column(data / "train.parquet", "item_seq").tolist()
    rows[7][11] = None
    change(data / "train.parquet", "item_seq", pa.array(rows))
    return "train.parquet: column item_seq has a null in row 7, expected 12 numbers"


def spoil_nested_history(data):
    rows = [[row] for row in column(data / "train.parquet", "item_seq").tolist()]
    change(data / "train.parquet", "item_seq", pa.array(rows))
    return "train.parquet: column item_seq holds lists of list<element: int64>, expected lists of integers"


def spoil_huge_unsigned(data):
    items = column(data / "train.parquet", "item_id").astype(np.uint64)
    items[4] = 2**64 - 1
    change(data / "train.parquet", "item_id", pa.array(items))
    return "train.parquet: column item_id has 18446744073709551615 in row 4, expected an int64"


def spoil_huge_signed(data):
    items = column(data / "train.parquet", "item_id")
    items[4] = 2**32 + 1
    change(data / "train.parquet", "item_id", pa.array(items))
    return "train.parquet: column item_id has 4294967297 in row 4, expected 0 to 39 (items in item_info 40)"


def spoil_text_user(data):
    change(data / "train.parquet", "user_id", pa.array([f"user {i}" for i in range(600)]))
    return "train.parquet: column user_id has type string, expected an integer a row"


def spoil_decimal_ids(data):
    change(data / "train.parquet", "item_id", pa.array([decimal.Decimal(1)] * 600))
    return "train.parquet: column item_id has type decimal128(1, 0), expected an integer a row"


def spoil_timestamp_levels(data):
    change(data / "train.parquet", "views_level", pa.array([datetime.datetime(2026, 1, 1)] * 600))
    return "train.parquet: column views_level has type timestamp[us], expected an integer a row"


def spoil_null_type(data):
    change(data / "train.parquet", "views_level", pa.nulls(600))
    return "train.parquet: column views_level has type null, expected an integer a row"


def spoil_nan_label(data):
    labels = column(data / "train.parquet", "label").astype(float)
    labels[8] = np.nan
    change(data / "train.parquet", "label", pa.array(labels))
    return "train.parquet: column label is nan in row 8, expected 0 or 1"


def spoil_null_label(data):
    change(data / "valid.parquet", "label", pa.array([0, None] * 100))
    return "valid.parquet: column label is empty (null) in row 1, expected a value"


def spoil_missing_label(data):
    change(data / "valid.parquet", "label", None)
    return "valid.parquet: column label is missing, found user_id, item_seq, item_id, likes_level, views_level"


def spoil_duplicate_column(data):
    table = pq.read_table(data / "train.parquet")
    pq.write_table(table.append_column("label", table["label"]), data / "train.parquet")
    return "train.parquet: column label is there 2 times, expected each name once"


def spoil_item_feature_ids(data):
    table = pq.read_table(data.parent / "item_feature.parquet")
    pq.write_table(table.take([*range(38), 3]), data.parent / "item_feature.parquet")
    return "item_feature.parquet: item_id 4 occurs 2 times, expected each id once"


def spoil_item_feature_foreign(data):
    change(data.parent / "item_feature.parquet", "item_id", pa.array(range(2, 41)))
    return "item_feature.parquet: column item_id has 40 in row 38, expected 0 to 39 (items in item_info 40)"


def spoil_item_feature_level(data):
    levels = column(data.parent / "item_feature.parquet", "views_level")
    levels[2] = 21
    change(data.parent / "item_feature.parquet", "views_level", pa.array(levels))
    return "item_feature.parquet: column views_level has 21 in row 2, expected 0 to 10 (vocab_size 11)"


def spoil_item_feature_null(data):
    levels = [*column(data.parent / "item_feature.parquet", "likes_level").tolist()[:-1], None]
    change(data.parent / "item_feature.parquet", "likes_level", pa.array(levels))
    return "item_feature.parquet: column likes_level is empty (null) in row 38, expected a value"


def spoil_one_item(data):
    pq.write_table(pq.read_table(data / "item_info.parquet").slice(0, 1), data / "item_info.parquet")
    return "item_feature.parquet: column item_id has 1 in row 0, expected 0 to 0 (items in item_info 1)"


def spoil_beyond_float32(data):
    embedding = column(data / "item_info.parquet", "item_emb_d16").astype(np.float64)
    embedding[6, 2] = 1e39
    change(data / "item_info.parquet", "item_emb_d16", list_column(embedding))
    return "item_info.parquet: column item_emb_d16 has a number beyond float32 in row 6, expected up to 3.4e38"


def spoil_embedding_of_text(data):
    change(data / "item_info.parquet", "item_emb_d16", pa.array([["0.5"] * 16] * 40))
    return "item_info.parquet: column item_emb_d16 holds lists of string, expected lists of numbers"


def spoil_missing_embedding(data):
    change(data / "item_info.parquet", "item_emb_d16", None)
    return "item_info.parquet: column item_emb_d16 is missing; build it with build_item_emb.py"


def spoil_empty_folder(data):
    (data / "train.parquet").unlink()
    (data / "train.parquet" / "label=0").mkdir(parents=True)
    return "train.parquet: a folder without .parquet files in it"


def spoil_unequal_parts(data):
    table = pq.read_table(data / "train.parquet")
    write_parts(data / "train.parquet", table, 3)
    pq.write_table(table.drop_columns("likes_level"), data / "train.parquet" / "part-1.parquet")
    return (
        "part-1.parquet: has columns user_id, item_seq, item_id, views_level, label, expected those of part-0.parquet"
    )


def spoil_parts_of_integers_and_floats(data):
    path, values = data / "item_info.parquet", np.ones((40, 16), dtype=np.int8)
    values[0] = 0
    change(path, "item_emb_d16", list_column(values))
    write_parts(path, pq.read_table(path), 3)
    part = path / "part-1.parquet"
    change(part, "item_emb_d16", list_column(column(part, "item_emb_d16").astype(np.float32)))
    return "part-1.parquet: column item_emb_d16 has lists of float, expected int8 as in part-0.parquet; write it alike"


def spoil_damaged_part(data):
    write_parts(data / "train.parquet", pq.read_table(data / "train.parquet"), 3)
    (data / "train.parquet" / "part-1.parquet").write_bytes(b"PAR1")
    return "part-1.parquet: not a complete parquet file"


def spoil_damaged_pages(data):
    path = data / "train.parquet"
    content = bytearray(path.read_bytes())
    content[2000:4000] = b"x" * 2000
    path.write_bytes(content)
    return "train.parquet: cannot be read past row 0"


def write_parts(path, table, count):
    """Replace a file by a folder of part files, named as pyarrow names them, with what Spark leaves beside them."""
    if path.is_file():
        path.unlink()
    path.mkdir(exist_ok=True)
    bounds = np.linspace(0, table.num_rows, count + 1).astype(int)
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), path / f"part-{part}.parquet")
    pq.write_table(table.slice(0, 0), path / "part-99.parquet")
    (path / "_SUCCESS").touch()
    (path / "._SUCCESS.crc").touch()


def vary_unsigned(data):
    for name in ("user_id", "item_id"):
        change(data / "train.parquet", name, pa.array(column(data / "train.parquet", name).astype(np.uint64)))
    history = column(data / "train.parquet", "item_seq").astype(np.uint64)
    change(data / "train.parquet", "item_seq", list_column(history))
    change(data / "item_info.parquet", "item_id", pa.array(np.arange(40, dtype=np.uint64)))


def vary_narrow(data):
    change(data / "train.parquet", "label", pa.array(column(data / "train.parquet", "label").astype(bool)))
    change(data / "valid.parquet", "label", pa.array(column(data / "valid.parquet", "label").astype(np.uint8)))
    change(
        data / "train.parquet", "likes_level", pa.array(column(data / "train.parquet", "likes_level").astype(np.int8))
    )
    change(data / "valid.parquet", "item_id", pa.array(column(data / "valid.parquet", "item_id").astype(np.uint32)))
    tags = column(data / "item_info.parquet", "item_tags").astype(np.uint8)
    change(data / "item_info.parquet", "item_tags", list_column(tags))


def vary_float_label(data):
    change(data / "train.parquet", "label", pa.array(column(data / "train.parquet", "label").astype(np.float32)))


def vary_dictionaries(data):
    for name in ("user_id", "item_id", "likes_level", "label"):
        encoded = pa.array(column(data / "train.parquet", name)).dictionary_encode()
        change(data / "train.parquet", name, encoded)


def vary_parts(data):
    for name in ("train", "valid", "test", "item_info"):
        write_parts(data / f"{name}.parquet", pq.read_table(data / f"{name}.parquet"), 12)


def vary_unread_columns(data):
    table = pq.read_table(data / "item_info.parquet")
    table = table.append_column("words", pa.array([["a", "b"], [], None] + [["c"]] * 37))
    table = table.append_column("author", pa.array([{"name": "x", "age": 3}] * 40))
    table = table.append_column("boxes", pa.array([[[1, 2]], []] * 20))
    pq.write_table(table, data / "item_info.parquet")


def vary_test_labels(data):
    """A column of nothing, which some writers leave where the labels are withheld."""
    table = pq.read_table(data / "test.parquet")
    pq.write_table(table.append_column("label", pa.nulls(table.num_rows, pa.int64())), data / "test.parquet")


def vary_row_groups(data):
    pq.write_table(pq.read_table(data / "train.parquet"), data / "train.parquet", row_group_size=7)


def vary_no_item_feature(data):
    (data.parent / "item_feature.parquet").unlink()


def functions(prefix):
    """The functions of this module by what follows the prefix."""
    return {name.removeprefix(prefix): value for name, value in sorted(globals().items()) if name.startswith(prefix)}

"""Readers take every arrow type the challenge's files come in, and name what breaks the contract."""

import data_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import list_column, make_dataset, run_script

from mm_fibinet import schema
from mm_fibinet.data_check import SPLITS, check_folder
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import read_slices


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 3)])
def test_matrix_reads_all_list_types(kind):
    values = [[0, 0, 7], [1, 2, 3]]
    read = schema.matrix(pa.array(values, type=kind), "f", "c")
    assert read.tolist() == values


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16())])
def test_matrix_reads_all_float_widths(kind):
    values = np.array([[0.5, -2.0], [1.5, 4.0]])
    array = pa.array([row.astype(kind.value_type.to_pandas_dtype()) for row in values], type=kind)
    assert np.array_equal(schema.matrix(array, "f", "c", integer=False).astype(float), values)


def test_matrix_reads_a_slice_of_an_array():
    for kind in (pa.list_(pa.int64()), pa.list_(pa.int64(), 2)):
        array = pa.array([[1, 2], [3, 4], [5, 6]], type=kind).slice(1, 2)
        assert schema.matrix(array, "f", "c").tolist() == [[3, 4], [5, 6]]


def test_dictionaries_are_read_through():
    numbers = pa.array([7, 3, 7, 0]).dictionary_encode()
    assert schema.scalars(numbers, "f", "c").tolist() == [7, 3, 7, 0]
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4]), numbers)
    assert schema.matrix(lists, "f", "c").tolist() == [[7, 3], [7, 0]]
    with pytest.raises(UserError, match="column c has type string, expected an integer a row"):
        schema.scalars(pa.array(["a", "b"]).dictionary_encode(), "f", "c")


def test_large_integers_are_numbers():
    assert schema.scalars(pa.array([2**60, 3]), "f", "c", integer=False).tolist() == [float(2**60), 3.0]


def test_unequal_lists_are_named_by_row():
    with pytest.raises(UserError, match=r"f: column c has 1 values in row 11, expected 2"):
        schema.matrix(pa.array([[1, 2], [3]]), "f", "c", first_row=10)


def test_nulls_inside_lists_are_named():
    with pytest.raises(UserError, match="null in row 1"):
        schema.matrix(pa.array([[1, 2], [3, None]], type=pa.list_(pa.int64())), "f", "c")


def test_item_info_order(tmp_path):
    def write(ids, embedding=None):
        path = tmp_path / "item_info.parquet"
        columns = {"item_id": ids}
        if embedding is not None:
            columns["item_emb_d2"] = list_column(np.asarray(embedding))
        pq.write_table(pa.table(columns), path)
        return path

    assert schema.read_item_info(write([0, 1, 2])).num_rows == 3
    with pytest.raises(UserError, match="item_id is 2 in row 1, expected 1"):
        schema.read_item_info(write([0, 2, 3]))
    with pytest.raises(UserError, match="item_id 1 occurs 2 times"):
        schema.read_item_info(write([0, 1, 1]))
    with pytest.raises(UserError, match="not zero in row 0"):
        schema.read_item_info(write([0, 1], [[1.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(UserError, match="NaN or infinity in row 1"):
        schema.read_item_info(write([0, 1], [[0.0, 0.0], [np.nan, 1.0]]))
    with pytest.raises(UserError, match="NaN or infinity in row 1"):
        schema.read_item_info(write([0, 1], [[0.0, 0.0], [np.inf, 1.0]]))


def test_columns_of_items_that_nobody_reads_are_kept(tmp_path):
    make_dataset(tmp_path)
    data_faults.functions("vary_")["unread_columns"](tmp_path / "TEST_DATA")
    path = tmp_path / "TEST_DATA" / "item_info.parquet"
    assert schema.read_item_info(path).equals(pq.read_table(path))
    assert pq.read_schema(path).names[-3:] == ["words", "author", "boxes"]


def test_check_folder_passes_good_data_and_names_bad(tmp_path, capsys):
    make_dataset(tmp_path)
    rows = {row.name: row.verdict for row in check_folder(tmp_path)}
    assert rows.pop("item_images/") == ["absent"]
    assert list(rows) == ["item_info.parquet", *SPLITS.values(), "item_feature.parquet", "feature_cols"]
    assert set(map(tuple, rows.values())) == {("ok",)}

    table = pq.read_table(tmp_path / "TEST_DATA" / "train.parquet")
    label = np.array(table["label"]).copy()
    label[17] = 3
    pq.write_table(table.set_column(table.column_names.index("label"), "label", pa.array(label)), tmp_path / "bad")
    (tmp_path / "bad").replace(tmp_path / "TEST_DATA" / "train.parquet")
    code, out, _ = run_script("mm_fibinet.data_check", "check", tmp_path, capsys=capsys)
    assert code == 2
    line = next(line for line in out.splitlines() if line.startswith("train.parquet"))
    assert "column label is 3.0 in row 17, expected 0 or 1" in line
    assert sum(line.endswith(" ok") for line in out.splitlines()) == 5


def test_check_folder_finds_zeros_behind_items(tmp_path):
    make_dataset(tmp_path)
    path = tmp_path / "TEST_DATA" / "valid.parquet"
    table = pq.read_table(path)
    history = np.array(table["item_seq"].to_pylist())
    history[5] = np.arange(12)[::-1]
    pq.write_table(table.set_column(1, "item_seq", list_column(history)), path)
    verdicts = {row.name: row.verdict for row in check_folder(tmp_path / "TEST_DATA")}
    assert "zero after an item in row 5" in verdicts["valid.parquet"][0]


def test_a_file_is_read_piece_by_piece_and_not_kept(tmp_path):
    rows, width, parts = 2_000, 200, 10
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * width)), width)
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"a": lists.type}), compression="none") as writer:
        for _ in range(parts):
            writer.write_table(pa.table({"a": lists}))
    pool, held, seen = pa.default_memory_pool(), [], 0
    before = pool.bytes_allocated()
    for first, arrays in read_slices(tmp_path / "a.parquet", ["a"], 500):
        held.append(pool.bytes_allocated() - before)
        seen += len(arrays["a"])
        assert first == 500 * (len(held) - 1)
    assert seen == parts * rows
    assert max(held) < parts * lists.nbytes / 3

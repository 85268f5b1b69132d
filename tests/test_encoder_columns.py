"""Columns of vectors as encoders: what is in them is taken, null or zeros is missing, and nothing bad is passed on."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mm_fibinet.errors import UserError
from mm_fibinet.items.columns import Vectors
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoders import TEXT_ENCODERS, load_encoder
from mm_fibinet.items.encoding import Encoder, Loading


def load(name: str, **how) -> Encoder:
    return load_encoder("text", name, Loading(torch.device("cpu"), 4, **how), TEXT_ENCODERS)


def table(folder, **columns):
    pq.write_table(pa.table(columns), folder / "item_feature.parquet")
    return folder / "item_feature.parquet"


def read(source: Vectors) -> dict[int, np.ndarray | str]:
    encoder = load(f"column:{source.name}", source=source)
    found: dict[int, np.ndarray | str] = {}
    for entry in source:
        try:
            found[entry.item_id] = encoder.encode([encoder.prepare(entry.load())[0]])[0]
        except BadContent as error:
            found[entry.item_id] = f"{error.kind}: {error}"
    return found


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float64()), pa.list_(pa.int8())],
    ids=str,
)
def test_a_column_of_vectors_is_taken_as_it_is(tmp_path, kind):
    values = pa.array([[5, 6], None, [1, 2], [0, 0], [0, 0], [0, 7]], kind)
    path = table(tmp_path, item_id=[3, 2, 1, 0, 4, 5], vector=values)
    source = Vectors("vector", [path], 5)
    assert source.dim == 2 and source.facts() == {"column": "vector"}
    found = read(source)
    assert {item: vector.tolist() for item, vector in found.items()} == {3: [5, 6], 1: [1, 2], 5: [0, 7]}
    assert read(source).keys() == found.keys(), "it can be read again"
    assert source.notes() == ["read vector of item_feature.parquet, 2 numbers an item"]


def test_vectors_that_are_not_finite_are_bad_contents(tmp_path):
    values = pa.array([[1, 2], [float("nan"), 1], [float("inf"), 0], [None, 3], [1e300, 0]], pa.list_(pa.float64()))
    found = read(Vectors("v", [table(tmp_path, item_id=[1, 2, 3, 4, 5], v=values)], 5))
    assert found.pop(1).tolist() == [1, 2]
    assert found == dict.fromkeys((2, 3, 4, 5), "corrupt: holds NaN, infinity or a null")


def test_a_column_that_cannot_be_read_is_one_clear_error(tmp_path):
    path = table(
        tmp_path, item_id=[1, 2, 3], v=[[1.0, 2.0], [1.0, 2.0], [1.0]], title=["a", "b", "c"], e=[[], None, []]
    )
    with pytest.raises(UserError, match=r"column v has 1 values in row 2, expected 2, as in the rows before"):
        list(Vectors("v", [path], 3))
    with pytest.raises(UserError, match=r"column:w: there is no such column: .*has item_id, v, title, e"):
        Vectors("w", [path], 3)
    with pytest.raises(UserError, match="column title has type string, expected lists of numbers"):
        Vectors("title", [path], 3)
    with pytest.raises(UserError, match=r"column e has .*expected lists of numbers"):
        Vectors("e", [path], 3)
    with pytest.raises(UserError, match=r"item_id 3 in row 2 is not in item_info \(1 to 2\)"):
        list(Vectors("t", [table(tmp_path, item_id=[1, 2, 3], t=[[1.0]] * 3)], 2))
    with pytest.raises(UserError, match="item_id 1 occurs again in row 1"):
        list(Vectors("t", [table(tmp_path, item_id=[1, 1, 2], t=[[0.0], [1.0], [1.0]])], 2))
    with pytest.raises(UserError, match="item_id 1 occurs again in row 1"):
        list(Vectors("t", [table(tmp_path, item_id=[1, 1], t=[[1.0]] * 2)], 2))
    with pytest.raises(UserError, match=re.escape("no prompt comes before them; drop --text_prompt")):
        load("column:t", prompt="a ", source=Vectors("t", [tmp_path / "item_feature.parquet"], 2))

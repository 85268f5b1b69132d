"""Lists that somebody printed: what their elements are, and that a build reads them as the lists that they were."""

import json
import os

import numpy as np
import polars as pl
import pytest
from test_prepare_options import given_histories

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import report
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.columns import Source, text_list
from mm_fibinet.prepare.recipe import Table, load_recipe
from mm_fibinet.printed_lists import split_printed_list

FILES = ("train", "valid", "test", "item_info", "ids")
PAST = [[1, 2, 3], [0, 8], [3], [9, 7, 1, 1], [4]]
PRINTERS = {
    "python": str,
    "json": json.dumps,
    "numpy": lambda row: str(np.array(row)),
    "texts": lambda row: str([*map(str, row)]),
}


@pytest.mark.parametrize(
    ("printed", "elements"),
    [
        ("['Action', 'Comedy']", ["Action", "Comedy"]),
        ('["Sci Fi", "Caf\\u00e9"]', ["Sci Fi", "Café"]),
        ("[1 2 3]", ["1", "2", "3"]),
        ("[0, 0, 12]", ["0", "0", "12"]),
        ("[0 0 12]", ["0", "0", "12"]),
        ('["a", null]', ["a", ""]),
        ("['Action' \"Children's\"\n 'War']", ["Action", "Children's", "War"]),
        ("['it\\'s', 'a\\xa0b']", ["it's", "a\xa0b"]),
        ("[u'Action', u'War']", ["Action", "War"]),
        ("[Action, Sci Fi]", ["Action", "Sci Fi"]),
        ("[Children's, Men's]", ["Children's", "Men's"]),
        ("['a', None, nan, 3]", ["a", "None", "nan", "3"]),
        ("[]", []),
        ("[" * 5000 + "]" * 5000, ["[" * 4999 + "]" * 4999]),
        ('[\'__import__("os").mkdir("executed")\']', ['__import__("os").mkdir("executed")']),
    ],
)
def test_a_printed_list_is_parsed_and_never_evaluated(printed, elements, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_printed_list(printed) == elements
    split_printed_list("[__import__('os').mkdir('executed')]")
    assert os.listdir() == []


PRINTED = [
    "['Action', 'Sci Fi']", '["a", "b"]', "[1 2 3]", "[1, -2, 3]", "[Action, Sci Fi]", "[]", " [ 7 ] ", "['a' 'b']",
    "[12-34, 5]", "['it\\'s', 'a]b']", "[\"it's\", 'x']", "[1.5, 2]", "[L'Oréal, Nike]", "[01, 2]", "['a''b']",
    "['1', null]", "[1, 2,]",
]  # fmt: skip


def test_a_column_of_printed_lists_is_what_each_prints():
    """Read in one go as one by one; what is no printed list is cut by the separator."""
    others = {"a|b": ["a", "b"], "[new]|[sale]": ["[new]", "[sale]"], "[a]b": ["[a]b"], None: [], "x": ["x"]}
    texts = [*PRINTED, *others]
    frame = pl.DataFrame({"tags": texts}, schema={"tags": pl.String}).lazy()
    read = frame.select(text_list(Source(Table(files=["items.csv"]), frame), "tags", "|")).collect()["tags"].to_list()
    alone = [[element.strip() for element in split_printed_list(text)] for text in PRINTED]
    assert read == [[element for element in row if element] for row in alone] + list(others.values())
    assert read[0] == ["Action", "Sci Fi"] and read[8] == ["12-34", "5"]


@pytest.mark.parametrize("printer", PRINTERS)
def test_histories_as_pandas_writes_them_are_the_lists(printer, tmp_path):
    for name, past in {"lists": PAST, "printed": [PRINTERS[printer](row) for row in PAST]}.items():
        (tmp_path / name).mkdir()
        given_histories(tmp_path / name, past)
    for file in FILES:
        lists, printed = (tmp_path / name / "out" / f"{file}.parquet" for name in ("lists", "printed"))
        assert lists.read_bytes() == printed.read_bytes(), file


def test_printed_tags_and_impressions_are_the_lists(tmp_path):
    log = pl.DataFrame({
        "who": ["u1", "u2", "u3"] * 4, "past": ["['N1', 'N2']", "[]", "['N3']"] * 4,
        "shown": ["['N3-1', 'N4-0']", "['N1-0' 'N3-1']", '["N5-1"]'] * 4,
    })  # fmt: skip
    log.write_csv(tmp_path / "log.csv")
    items = {"item_id": ["N1", "N3", "N4"], "tags": ["['Sci Fi', 'War']", "[]", "War|Tea"]}
    pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    recipe = {
        "data_root": str(tmp_path), "interactions": dict.fromkeys(("train", "valid", "test"), "log.csv"), "user": "who",
        "impressions": "shown", "history": "past", "items": "items.csv", "tags": "tags",
    }  # fmt: skip
    build(load_recipe(None, recipe), tmp_path / "out")
    ids = pl.read_parquet(tmp_path / "out" / "ids.parquet")
    names = {
        column: dict(ids.filter(column=column).select("id", "original").iter_rows())
        for column in ids["column"].unique()
    }
    info = pl.read_parquet(tmp_path / "out" / "item_info.parquet")
    tags = {
        names["item_id"][item]: [names["item_tags"][tag] for tag in row if tag]
        for item, row in info.select("item_id", "item_tags").iter_rows()
        if item
    }
    assert tags == {"N1": ["Sci Fi", "War"], "N2": [], "N3": [], "N4": ["War", "Tea"], "N5": []}
    train = pl.read_parquet(tmp_path / "out" / "train.parquet").select("item_id", "label", "item_seq").unique()
    rows = {
        (names["item_id"][item], label, *(names["item_id"][past] for past in seq if past))
        for item, label, seq in train.iter_rows()
    }
    assert rows == {("N3", 1, "N1", "N2"), ("N4", 0, "N1", "N2"), ("N1", 0), ("N3", 1), ("N5", 1, "N3")}


def test_a_list_that_was_cut_when_printed_is_refused(tmp_path):
    past = ["[1 2]", "[3]", str(np.arange(2000)), "[4]", "[5]"]
    with pytest.raises(
        UserError, match=r"users.parquet: column past has '\[   0 .* in row 2, expected a whole list; the middle"
    ):
        given_histories(tmp_path, past)
    assert not (tmp_path / "out").exists()


def test_positions_of_items_that_nothing_knows_are_told(tmp_path):
    """As PostgreSQL prints arrays: the ends of each are no item's id, and would be lost in silence."""
    built = given_histories(tmp_path, ["{1,2,3}", "{4,5}", "6", "7,8", ""], list_separator=",")
    assert built.report["history_positions_unknown"] == {"positions": 4, "of": 8, "example": "{1"}
    told = (
        "histories   4 of their 8 positions have an item that is in neither the log nor the catalogue, '{1' for example"
    )
    assert told in report.lines(built.report)

"""Lists that somebody printed: what their elements are, and that a build reads them as the lists that they were."""

import json
import os
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import make, raw_items, write_raw
from test_prepare_options import given_histories

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import dataset, report
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.columns import Source, text_list
from mm_fibinet.prepare.recipe import Table, load_recipe

FILES = ("train", "valid", "test", "item_info", "ids")
PAST = [[1, 2, 3], [0, 8], [3], [9, 7, 1, 1], [4]]
PRINTERS = {
    "python": str,
    "json": json.dumps,
    "numpy": lambda row: str(np.array(row)),
    "texts": lambda row: str([*map(str, row)]),
}


PRINTED = {
    "['Action', 'Sci Fi']": ["Action", "Sci Fi"],
    '["a b", "Caf\\u00e9"]': ["a b", "Café"],
    "[1 2 3]": ["1", "2", "3"],
    "[1, -2, 3,]": ["1", "-2", "3"],
    " [ 7 ] ": ["7"],
    "[]": [],
    "[01, 2]": ["01", "2"],
    "['Action' \"Children's\"\n 'War']": ["Action", "Children's", "War"],
    "['it\\'s', 'a\\xa0]b']": ["it's", "a\xa0]b"],
    "['12-34', 5]": ["12-34", "5"],
    "[u'Action', u'War']": ["Action", "War"],
    "['a', None, nan]": ["a"],
    '["a", null]': ["a"],
    "[np.int64(3), np.str_('a, b')]": ["3", "a, b"],
    "['Loading ... please', '...']": ["Loading ... please", "..."],
    '["\\ud83d\\ude00", 1]': ["😀", "1"],
    '["party \\ud83d"]': ["party �"],
    "['party \\ud83d', '\\q']": ["party �", "\\q"],
    '[\'__import__("os").mkdir("executed")\']': ['__import__("os").mkdir("executed")'],
}
NOT_PRINTED = {
    "a|b": ["a", "b"],
    "[new]|[sale]": ["[new]", "[sale]"],
    "[Men's]|[Women's]": ["[Men's]", "[Women's]"],
    '[5" pipe]|[7" pipe]': ['[5" pipe]', '[7" pipe]'],
    "[Free shipping]": ["[Free shipping]"],
    "[a|b]": ["[a", "b]"],
    "[Rock 'n' Roll, Jazz]": ["[Rock 'n' Roll, Jazz]"],
    "['Children's', 'x']": ["['Children's', 'x']"],
    "[12 34, 56]": ["[12 34, 56]"],
    "[12-34, 56]": ["[12-34, 56]"],
    "[{'id': 16, 'name': 'Animation'}]": ["[{'id': 16, 'name': 'Animation'}]"],
    "[['a'], ['b']]": ["[['a'], ['b']]"],
    "['a', 'b": ["['a', 'b"],
    "[new]|wait ... more": ["[new]", "wait ... more"],
    "[" * 5000 + "]" * 5000: ["[" * 5000 + "]" * 5000],
    None: [],
}


def test_a_printed_list_is_its_elements_and_anything_else_is_cut_by_the_separator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = PRINTED | NOT_PRINTED
    frame = pl.DataFrame({"tags": list(expected)}, schema={"tags": pl.String}).lazy()
    read = frame.select(text_list(Source(Table(files=["items.csv"]), frame), "tags", "|")).collect()["tags"].to_list()
    assert dict(zip(expected, read, strict=True)) == expected
    assert os.listdir() == [], "nothing is evaluated"


@given(st.lists(st.one_of(st.text(), st.integers())), st.sampled_from([str, json.dumps]))
def test_what_python_and_json_print_is_read_back(elements, printer):
    frame = pl.DataFrame({"tags": [printer(elements)]}).lazy()
    [read] = frame.select(text_list(Source(Table(files=["items.csv"]), frame), "tags", "|")).collect()["tags"].to_list()
    assert read == [stripped for element in elements if (stripped := pl.Series([str(element)]).str.strip_chars()[0])]


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


def test_a_cut_list_is_found_in_any_row(tmp_path):
    log = pl.DataFrame({"who": [f"u{at}" for at in range(1500)], "what": ["1", "2", "3"] * 500, "past": ["1 2"] * 1500})
    log = log.with_columns(past=pl.when(pl.int_range(1500) == 1234).then(pl.lit("[1 2 ... 3]")).otherwise("past"))
    log.write_csv(tmp_path / "log.csv")
    recipe = {"data_root": str(tmp_path), "interactions": "log.csv", "user": "who", "item": "what", "history": "past"}
    with pytest.raises(UserError, match=r"log.csv: column past has '\[1 2 ... 3\]' in row 1234, expected a whole list"):
        build(load_recipe(None, {**recipe, "split": "random"}), tmp_path / "out")


def test_a_column_that_holds_no_texts_is_refused(tmp_path):
    write_raw(tmp_path)
    for values in ([b"\xff"], [timedelta(1)]):
        pl.DataFrame({"sku": ["01"], "tags": values}).write_parquet(tmp_path / "items.parquet")
        with pytest.raises(UserError, match=r"column tags has type .*, expected a text or a whole number a row"):
            make(tmp_path, tmp_path / "out", items="items.parquet", title=None, description=None, item_features=[])


def test_tags_in_brackets_are_told(tmp_path):
    items = raw_items().with_columns(tags=pl.lit("[{'id': 16, 'name': 'Animation'}]"))
    built = make(write_raw(tmp_path / "raw", items=items), tmp_path / "out")
    told = "are they lists that were printed in a form that is not read?"
    found = f"item_tags: 1 of 1 begin with a bracket, as \"[{{'id': 16, 'name': 'Animation'}}]\"; {told}"
    assert found in built.report["doubts"] and f"look at     {found}" in report.lines(built.report)


@pytest.mark.parametrize("at_once", [3, 1 << 24])
def test_positions_of_items_that_nothing_knows_are_told(at_once, tmp_path, monkeypatch):
    """As PostgreSQL prints arrays: the ends of each are no item's id, and would be lost in silence."""
    monkeypatch.setattr(dataset, "IDS_AT_ONCE", at_once)
    built = given_histories(tmp_path, ["{1,2,3}", "{4,5}", "6", "7,8", ""], list_separator=",")
    told = "4 of their 8 positions have an item that nothing else has, but for the signs in it, '3}' for example"
    assert f"histories: {told}; are the lists cut as they were written?" in built.report["doubts"]
    (tmp_path / "other").mkdir()
    assert given_histories(tmp_path / "other", [[1, 2, 77], [4, 78], [6], [7, 8], []]).report["doubts"] == []

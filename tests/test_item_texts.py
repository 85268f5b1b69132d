"""item_feature's columns as texts: every way that titles and tags are stored, and what is said of missing ones."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm_fibinet.errors import UserError
from mm_fibinet.items import texts
from mm_fibinet.items.texts import read_texts, split_printed_list


def write(folder, columns: dict):
    pq.write_table(pa.table(columns), folder / "f.parquet")
    return folder / "f.parquet"


def read(folder, columns: dict, text_columns: list[str] | None = None) -> dict[int, str]:
    """The texts by item of a file with these columns; item_id 1, 2, ... when it is left out."""
    columns = {"item_id": list(range(1, len(next(iter(columns.values()))) + 1))} | columns
    source = read_texts(write(folder, columns), 9, text_columns)
    return {entry.item_id: entry.load().decode() for entry in source.entries}


def test_texts_join_title_tags_and_description(tmp_path):
    table = {
        "item_id": [2, 1, 4, 3],
        "item_title": ["Two. ", "One", None, " "],
        "item_tags": [[0, 0, 7], [3, 4], [], [0]],
        "description": ["about two", None, "only this", ""],
    }
    assert read(tmp_path, table) == {1: "One. 3, 4", 2: "Two. 7. about two", 4: "only this"}


@pytest.mark.parametrize("name", [*texts.TITLE_COLUMNS, "Title"])
def test_a_title_column_of_a_usual_name_is_found(tmp_path, name):
    assert read(tmp_path, {"item_tags": [["x"]], name: ["A film"], "year": [1999]}) == {1: "A film. x"}


def test_the_source_says_what_it_read_and_that_there_is_no_title(tmp_path):
    path = write(tmp_path, {"item_id": [1, 2], "film": ["A", "B"], "item_tags": [["x"], ["y"]]})
    source = read_texts(path, 2)
    [note] = source.notes()
    assert note.startswith("read item_tags: no title, expected one of item_title, title,") and "--text_columns" in note
    assert source.facts()["columns"] == ["item_tags"] and source.title is None
    asked = read_texts(path, 2, ["film", "item_tags"])
    assert asked.title == "film" and asked.notes() == ["read film, item_tags"]


def test_asked_columns_are_read_in_their_order(tmp_path):
    columns = {"title": ["A film"], "plot": ["It ends."], "cast": ["['Ann', 'Bob']"], "item_tags": [["x"]]}
    assert read(tmp_path, columns, text_columns=["plot", "title", "cast"]) == {1: "It ends. A film. Ann, Bob"}
    with pytest.raises(UserError, match="column plott is missing, found item_id, title"):
        read(tmp_path, columns, text_columns=["plott"])


@pytest.mark.parametrize(
    ("printed", "elements"),
    [
        ("['Action', 'Comedy']", ["Action", "Comedy"]),
        ('["Sci Fi", "Caf\\u00e9"]', ["Sci Fi", "Café"]),
        ("[1 2 3]", ["1", "2", "3"]),
        ("[0, 0, 12]", ["", "", "12"]),
        ("[0 0 12]", ["", "", "12"]),
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


def test_printed_tags_are_the_words_and_other_strings_stay_text(tmp_path):
    tags = ["['Action', 'Sci Fi']", "[0 7]", "Action|Comedy", "a, b", "[nan, 'x']", "nan"]
    found = read(tmp_path, {"title": [f"T{row}" for row in range(6)], "item_tags": tags})
    expected = ["T0. Action, Sci Fi", "T1. 7", "T2. Action|Comedy", "T3. a, b", "T4. x", "T5"]
    assert list(found.values()) == expected
    assert read(tmp_path, {"title": ["[REC]", "['a']"]}) == {1: "[REC]", 2: "['a']"}, "titles are as they are"


@pytest.mark.parametrize("nothing", ["nan", "NaN", "NULL", "None", "N/A", "<NA>", "-", " null ", "", None])
def test_the_word_for_nothing_is_no_title_and_is_counted(tmp_path, nothing):
    path = write(tmp_path, {"item_id": [1, 2, 3], "title": [nothing, nothing, "Nan of the North"],
                            "item_tags": [["war"], ["nan"], []]})  # fmt: skip
    source = read_texts(path, 3)
    assert [(entry.item_id, entry.load()) for entry in source.entries] == [(1, b"war"), (3, b"Nan of the North")]
    assert source.untitled == 1 and source.notes()[1] == "1 of the found have no title"


STRINGS = ["Äpfel", None, "two words"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)  # fmt: skip
def test_titles_of_every_text_type(tmp_path, kind):
    plain = pa.array(STRINGS)
    array = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    assert read(tmp_path, {"title": array}) == {1: "Äpfel", 3: "two words"}


@pytest.mark.parametrize(
    "array",
    [
        pa.array([["a", "b"], None], pa.list_(pa.string())),
        pa.array([["a", "b"], None], pa.large_list(pa.large_string())),
        pa.array([["a", "b"], None], pa.list_(pa.binary())),
        pa.array([["a", "b"], [None, None]], pa.list_(pa.string(), 2)),
        pa.ListArray.from_arrays([0, 2, 2], pa.array(["a", "b"]).dictionary_encode()),
        pa.array(["a, b", None]).dictionary_encode(),
        pa.array(["['a', 'b']", "nan"]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_tags_of_every_list_type(tmp_path, array):
    assert read(tmp_path, {"title": ["T", "U"], "item_tags": array}) == {1: "T. a, b", 2: "U"}


def test_bytes_that_are_no_utf8_are_left_out_and_counted(tmp_path):
    wrong = "Grüße".encode("latin-1")
    for kind in (pa.binary(), pa.string()):  # a writer may store such bytes as a string column
        title = pa.array([wrong, b"fine"], pa.binary()).view(kind)
        tags = pa.ListArray.from_arrays([0, 1, 2], pa.array([b"ok", wrong], pa.binary()).view(kind))
        path = write(tmp_path, {"item_id": [1, 2], "title": title, "item_tags": tags})
        source = read_texts(path, 2)
        assert [entry.load().decode() for entry in source.entries] == ["Gre. ok", "fine. Gre"]
        assert source.notes()[-1] == "2 fields hold bytes that are not UTF-8, which were left out"


def test_control_characters_and_marks_of_direction_are_left_out(tmp_path):
    joined = "\u0645\u06cc\u200c\u062e\u0648"  # Persian, with the joiner that its spelling needs
    titles = ["\x1b[31mred\x07\x00", "\u202eright\u200f to left\u2069", "tab\tand\nline", "\ufeffstart", joined]
    found = read(tmp_path, {"title": titles})
    assert found[1] == "[31mred" and found[2] == "right to left" and found[3] == "tab and line" and found[4] == "start"
    assert found[5] == joined


def test_an_endless_title_is_cut(tmp_path):
    found = read(tmp_path, {"title": ["word " * 2_000_000], "item_tags": [["x" * 100_000] * 20]})
    assert len(found[1]) <= texts.MAX_TEXT_CHARS and found[1].startswith("word word")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 1], r"item_id 1 occurs again in row 1, expected each item once"),
        ([0, -1], r"item_id -1 in row 1 is not in item_info \(1 to"),
        ([1, -2], r"item_id -2 in row 1 is not in item_info \(1 to 9\)"),
        ([1, 10], r"item_id 10 in row 1 is not in item_info \(1 to 9\)"),
        ([1, None], r"column item_id is empty \(null\) in row 1"),
        ([1.0, 2.0], r"column item_id has type double, expected an integer"),
    ],
)
def test_a_wrong_item_id_is_named_with_its_row(tmp_path, ids, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"item_id": ids, "title": ["a", "b"]})


def test_a_row_of_the_padding_item_is_passed_over(tmp_path):
    assert read(tmp_path, {"item_id": [0, 1], "title": ["nothing", "b"]}) == {1: "b"}


def test_unsigned_ids_are_read(tmp_path):
    assert read(tmp_path, {"item_id": pa.array([2, 1], pa.uint64()), "title": ["b", "a"]}) == {1: "a", 2: "b"}


def test_the_opening_is_the_second_view(tmp_path):
    path = write(tmp_path, {"item_id": [1], "title": ["one two three"], "item_tags": [["x", "y"]]})
    views = read_texts(path, 1, opening_words=4).views
    assert {name: [entry.load() for entry in view] for name, view in views.items()} == {
        "text": [b"one two three. x, y"],
        "opening": [b"one two three. x,"],
    }
    assert list(read_texts(path, 1).views) == ["text"]

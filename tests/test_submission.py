"""A submission is accepted exactly when every reader gets the scores from it; whatever else is named for what it is."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_script

from mm_fibinet.errors import UserError
from mm_fibinet.submission import MEMBER, TASKS, check_submission, write_submission

ROWS = 5
SCORES = ["0.25", "1", "0", "1e-3", "0.5"]


@pytest.fixture
def test_split(tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"ID": np.arange(ROWS)}), path)
    return path


def csv(header="ID,Task1&2", ids=range(ROWS), scores=SCORES, line_end="\n") -> str:
    return line_end.join([header, *(f"{i},{score}" for i, score in zip(ids, scores, strict=True))]) + line_end


def packed(content: str | bytes, name=MEMBER, method=zipfile.ZIP_DEFLATED, more=()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
        for other in more:
            archive.writestr(other, "")
    return buffer.getvalue()


def verdict(content: bytes, test_split) -> str:
    """What the check says of a file of these bytes."""
    path = test_split.with_name("submission.zip")
    path.write_bytes(content)
    try:
        said = check_submission(path, test_split)
    except UserError as error:
        said = str(error)
    assert path.read_bytes() == content
    return said.removeprefix(f"{path}: ")


def patched(content: bytes, method=None, flags=None, size=None) -> bytes:
    """A zip of one entry whose two headers state something else."""
    changed = bytearray(content)
    central = content.rindex(b"PK\x01\x02")
    for at, value, form in ((8, flags, "<H"), (10, method, "<H"), (24, size, "<I")):
        if value is not None:
            struct.pack_into(form, changed, central + at, value)
            struct.pack_into(form, changed, at - 2, value)
    return bytes(changed)


ACCEPTED = {
    "plain": packed(csv()),
    "stored": packed(csv(), method=zipfile.ZIP_STORED),
    "windows line ends": packed(csv(line_end="\r\n")),
    "no last line end": packed(csv().rstrip()),
    "quoted": packed('"ID","Task1&2"\n' + "".join(f'"{i}","{score}"\n' for i, score in enumerate(SCORES))),
    "three columns, two unused": packed("ID,Task1,Task2,Task1&2\n" + "".join(f"{i},0,0.0,0.{i}\n" for i in range(5))),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case, test_split):
    assert verdict(ACCEPTED[case], test_split).startswith("accepted: 5 rows, Task1")


REFUSED = {
    "encrypted": (patched(packed(csv()), flags=1), "prediction.csv is encrypted; pack it again without"),
    "deflate64": (patched(packed(csv()), method=9), "compressed by deflate64, expected stored or deflate"),
    "bzip2": (packed(csv(), method=zipfile.ZIP_BZIP2), "compressed by bzip2, expected stored or deflate"),
    "lzma": (packed(csv(), method=zipfile.ZIP_LZMA), "compressed by lzma, expected stored or deflate"),
    "unknown method": (patched(packed(csv()), method=77), "compressed by method 77"),
    "gigabytes stated": (patched(packed(csv()), size=3 << 30), "has 3,221,225,472 bytes unpacked, at most 66,176"),
    "size understated": (patched(packed(csv()), size=10), "not a complete zip file"),
    "a folder entry": (packed("", name="prediction.csv/"), "holds prediction.csv/, expected exactly prediction.csv"),
    "in a folder": (packed(csv(), name="x/prediction.csv"), "holds x/prediction.csv, expected exactly"),
    "two members": (packed(csv(), more=["notes.txt"]), "holds prediction.csv, notes.txt, expected exactly"),
    "of a Mac": (packed(csv(), more=["__MACOSX/._prediction.csv"]), "__MACOSX/._prediction.csv, expected exactly"),
    "many members": (packed(csv(), more=[f"{i}.txt" for i in range(99)]), "3.txt and 95 more, expected exactly"),
    "no member": (packed(csv())[-22:].replace(b"\x01\x00\x01\x00", bytes(4)), "complete zip file"),
    "trailing junk": (packed(csv()) + b"junk", "not a complete zip file (4 bytes too many)"),
    "leading junk": (b"junk" + packed(csv()), "not a zip file"),
    "cut": (packed(csv())[:-30], "not a complete zip file (its end is missing)"),
    "a bare CSV": (csv().encode(), "this is the CSV itself: pack it as prediction.csv"),
    "a quoted bare CSV": (b'\xef\xbb\xbf"ID","Task1"\n', "this is the CSV itself"),
    "empty file": (b"", "not a zip file"),
    "empty CSV": (packed(""), "prediction.csv is empty"),
    "header only": (packed("ID,Task1\n"), "0 rows, expected 5"),
    "byte order mark": (packed(b"\xef\xbb\xbf" + csv().encode()), "begins with a byte order mark"),
    "UTF-16": (packed(csv().encode("utf-16")), "begins with a byte order mark"),
    "NUL": (packed(csv().replace("0.25", "0.2\0")), "has a NUL byte at 16"),
    "Latin-1": (packed(csv().replace("ID", "ID\xe9").encode("latin-1")), "has a byte at 2 that is no ASCII"),
    "ID 1.0": (packed(csv(ids=["0", "1.0", "2", "3", "4"])), "ID is '1.0' in row 1, expected 1"),
    "ID 1e0": (packed(csv(ids=["0", "1e0", "2", "3", "4"])), "ID is '1e0' in row 1, expected 1"),
    "ID with a space": (packed(csv(ids=["0", " 1", "2", "3", "4"])), "ID is ' 1' in row 1, expected 1"),
    "ID 01": (packed(csv(ids=["0", "01", "2", "3", "4"])), "ID is '01' in row 1, expected 1"),
    "ID of 400 digits": (packed(csv(ids=["0", "9" * 400, "2", "3", "4"])), "in row 1, expected 1"),
    "no ID": (packed(csv(ids=["0", "", "2", "3", "4"])), "ID is '' in row 1, expected 1"),
    "other order": (packed(csv(ids=[0, 2, 1, 3, 4])), "ID is '2' in row 1, expected 1"),
    "other name": (packed(csv(header="ID,ctr")), "score columns are ['ctr'], expected one of Task1, Task2, Task1&2"),
    "space in name": (packed(csv(header="ID, Task1")), "score columns are [' Task1']"),
    "no header": (packed(csv().split("\n", 1)[1]), "first column is '0', expected ID"),
    "a column twice": (packed("ID,Task1,Task1\n0,1,1\n"), "score columns are ['Task1', 'Task1'], expected each name"),
    "two of three": (packed("ID,Task1,Task2\n0,1,1\n"), "2 score columns, expected one, or all of"),
    "a field too many": (packed(csv().replace("0.25", "0.25,9")), "line 2 is '0,0.25,9', expected 2 plain fields"),
    "trailing comma": (packed(csv().replace("\n", ",\n")), "score columns are ['Task1&2', '']"),
    "a row too few": (packed(csv().rsplit("4,", 1)[0]), "4 rows, expected 5"),
    "NaN": (packed(csv().replace("0.25", "nan")), "the score of ID 0 is nan, expected a number from 0 to 1"),
    "infinity": (packed(csv().replace("0.25", "inf")), "the score of ID 0 is inf"),
    "above 1": (packed(csv().replace("0.25", "1.01")), "the score of ID 0 is 1.01"),
    "below 0": (packed(csv().replace("0.25", "-1e-9")), "the score of ID 0 is -1e-09"),
    "text": (packed(csv().replace("0.25", "high")), "the score of ID 0 is 'high', expected a number"),
    "an open quote": (packed(csv().replace("0.25", '"0.25')), "is not a CSV table: unexpected end of data"),
    "a blank line": (packed(csv().replace("\n1,", "\n\n1,")), "line 3 is '', expected 2 plain fields"),
    "digits of Python": (packed(csv().replace("0.25", "0.2_5")), "line 2 is '0,0.2_5', expected 2 plain fields"),
    "other digits": (packed(csv().replace("0.25", "\u0660.\u0665")), "that is no ASCII"),
    "missing score": (packed(csv().replace("0.25", "")), "the score of ID 0 is '', expected a number"),
    "all zeros": (packed(csv(scores=["0"] * 5)), "every score is 0, expected the click probabilities"),
    "three columns of zeros": (packed("ID,Task1,Task2,Task1&2\n" + "".join(f"{i},0,0,0\n" for i in range(5))), "is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, test_split):
    content, reason = REFUSED[case]
    said = verdict(content, test_split)
    assert reason in said and "accepted" not in said


def test_equal_scores_are_accepted_with_a_warning(test_split):
    said = verdict(packed(csv(scores=["0.5"] * ROWS)), test_split)
    assert said == "accepted: 5 rows, Task1&2; warning: every score of Task1&2 is 0.5, an AUC of 0.5"


def test_a_bomb_is_not_unpacked(test_split):
    bomb = packed(b"0" * (64 << 20))
    assert len(bomb) < 66_000
    tracemalloc.start()
    said = verdict(bomb, test_split), verdict(patched(bomb, size=1000), test_split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "67,108,864 bytes unpacked, at most 66,176" in said[0] and "not a complete zip" in said[1]
    assert peak < 4 << 20


def test_a_file_larger_than_any_submission_is_not_read(test_split, tmp_path):
    path = tmp_path / "large.zip"
    with open(path, "wb") as opened:
        opened.truncate(8 << 30)
    with pytest.raises(UserError, match="has 8,589,934,592 bytes, at most 66,176 are a submission of 5 rows"):
        check_submission(path, test_split)


def test_links_folders_and_devices(test_split, tmp_path):
    path = tmp_path / "real.zip"
    path.write_bytes(packed(csv()))
    (tmp_path / "link.zip").symlink_to(path)
    assert "accepted" in check_submission(tmp_path / "link.zip", test_split)
    for other in (tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="this is no file"):
            check_submission(other, test_split)
    with pytest.raises(UserError, match="no such file"):
        check_submission(tmp_path / "none.zip", test_split)


def test_names_in_a_zip_reach_the_terminal_as_text(test_split, tmp_path, capsys):
    path = tmp_path / "evil.zip"
    path.write_bytes(packed(csv(), name="\x1b]0;owned\x07\n.csv"))
    code, _, err = run_script("mm_fibinet.submission", "check", path, "--test", test_split, capsys=capsys)
    assert code == 2 and err.count("\n") == 1
    assert r"holds \x1b]0;owned\x07\n.csv, expected exactly prediction.csv" in err


@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_is_accepted_and_holds_the_scores(task, test_split, tmp_path):
    scores = np.array([0.1, 1e-17, 1 / 3, 1.0, 0.7])
    path = tmp_path / "new" / "out.zip"
    write_submission(scores, path, ROWS, task)
    assert check_submission(path, test_split) == f"{path}: accepted: 5 rows, {task}"
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(MEMBER).decode().splitlines()
    assert lines[0] == f"ID,{task}"
    assert [tuple(map(float, line.split(","))) for line in lines[1:]] == list(enumerate(scores))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5, np.nan, 0.5, 0.5, 0.5], "the model's scores: the score of ID 1 is nan"),
        ([0.5, 0.5, np.inf, 0.5, 0.5], "the score of ID 2 is inf"),
        ([0.5, 0.5, 0.5, 0.5, 1.5], "the score of ID 4 is 1.5"),
        ([0.0] * 5, "the model's scores are all 0"),
        ([0.5] * 4, "the model's scores: 4 rows, expected 5"),
        ([[0.5]] * 5, r"the model's scores: shape \[5, 1\]: rows, expected 5"),
    ],
)
def test_scores_that_would_not_be_accepted_are_not_written(scores, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_submission(np.array(scores), tmp_path / "out.zip", ROWS)
    assert not os.listdir(tmp_path)


def test_a_csv_is_what_the_zip_holds(test_split, tmp_path):
    scores = np.array([0.1, 1e-17, 1 / 3, 1.0, 0.7])
    table, packed_table = tmp_path / "submission.csv", tmp_path / "submission.zip"
    write_submission(scores, [table, packed_table], ROWS, "Task2")
    assert check_submission(table, test_split) == f"{table}: accepted: 5 rows, Task2"
    assert check_submission(packed_table, test_split) == f"{packed_table}: accepted: 5 rows, Task2"
    with zipfile.ZipFile(packed_table) as archive:
        assert archive.read(MEMBER) == table.read_bytes()
    assert table.read_text().splitlines()[3] == f"2,{1 / 3!r}"
    before = packed_table.read_bytes()
    write_submission(scores, [packed_table], ROWS, "Task2")
    assert packed_table.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (csv(header="ID,ctr").encode(), "score columns are ['ctr'], expected one of Task1, Task2, Task1&2"),
        (csv(ids=[0, 2, 1, 3, 4]).encode(), "ID is '2' in row 1, expected 1 (the order of the test split)"),
        (b"\xef\xbb\xbf" + csv().encode(), "begins with a byte order mark; save it as plain UTF-8"),
        (packed(csv()), "has a NUL byte at"),
        (b"ID,Task1\n" + b"0" * 70_000, "has 70,009 bytes, at most 66,176 are a submission of 5 rows"),
    ],
)
def test_a_bad_csv_is_refused_as_in_a_zip(content, reason, test_split, tmp_path):
    path = tmp_path / "submission.CSV"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        check_submission(path, test_split)
    assert reason in str(refused.value) and str(refused.value).startswith(f"{path}")


def test_the_check_takes_a_csv_on_the_command_line(test_split, tmp_path, capsys):
    path = tmp_path / "submission.csv"
    path.write_text(csv())
    code, out, _ = run_script("mm_fibinet.submission", "check", path, "--test", test_split, capsys=capsys)
    assert (code, out) == (0, f"{path}: accepted: 5 rows, Task1&2\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["out.txt"], "--out .*out.txt: expected a name that ends in .zip or .csv"),
        (["out"], "--out .*out: expected a name that ends in .zip or .csv"),
        (["a.csv", "b/../a.csv"], "a file is named twice, expected each once"),
        (["a.zip", "theirs.csv"], "theirs.csv: there is a file that is no submission csv"),
        (["a.csv", "theirs.zip"], "theirs.zip: there is a file that is no zip"),
    ],
)
def test_all_places_are_right_or_nothing_is_written(names, message, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("theirs.csv", "theirs.zip"):
        (tmp_path / name).write_text("user,click\n")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=message):
        write_submission(np.full(ROWS, 0.5), [tmp_path / name for name in names], ROWS)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "theirs.csv").read_text() == (tmp_path / "theirs.zip").read_text() == "user,click\n"


def test_a_submission_that_cannot_be_packed_leaves_no_csv(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_submission(np.full(ROWS, 0.5), [tmp_path / "a.csv", tmp_path / "a.zip"], ROWS)
    assert not os.listdir(tmp_path)


def test_an_input_or_another_file_is_not_written_over(test_split, tmp_path):
    scores, before = np.full(ROWS, 0.5), test_split.read_bytes()
    with pytest.raises(UserError, match=r"--out .* is an input"):
        write_submission(scores, test_split, ROWS, inputs=[test_split])
    with pytest.raises(UserError, match="expected a name that ends in"):
        write_submission(scores, test_split, ROWS)
    with pytest.raises(UserError, match="a device"):
        write_submission(scores, "/dev/null", ROWS)
    assert test_split.read_bytes() == before

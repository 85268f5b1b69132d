"""prediction.csv and its zip: written whole or not at all, and only when the challenge would accept it.

`python -m mm_fibinet.submission check FILE --test FILE` says whether a zip, or the CSV that goes into one, would be
accepted. Which reader the graders use is not published, so the check takes only what every zip and CSV reader takes:
stored or deflated, plain text, IDs written as whole numbers. It unpacks no more than a submission of this many rows can
hold, whatever the zip says.
"""

import argparse
import contextlib
import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.errors import UserError, explain_os_error, printable, run_cli
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.options import TASKS

MEMBER = "prediction.csv"
KINDS = {".zip": "zip", ".csv": "submission csv"}  # of an output, by its suffix
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}  # the two that every reader has
FOREIGN_METHODS = {6: "implode", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd", 99: "AES"}
ENCRYPTED = 1  # bit of ZipInfo.flag_bits
NAMES_SHOWN = 5
MOST_BYTES_A_ROW = 128  # an ID and three scores of 17 digits have 90
MOST_BYTES_BESIDE = 64 << 10  # the header of the CSV, the directory of the zip
END_OF_ZIP, END_BYTES = b"PK\x05\x06", 22


def write_submission(
    scores: np.ndarray,
    paths: str | Path | Sequence[str | Path],
    num_rows: int,
    task: str = "Task1&2",
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Write a submission as a zip, as the CSV in it, or as both: all of them or none.

    Args:
        scores: float [num_rows], click probabilities in the test split's order.
        paths: the file to write, or several, see `require_outputs`.
        num_rows: rows of the test split.
        task: the score column's name, one of TASKS.
        inputs: files and folders that were read, which no path may be.

    Raises:
        UserError: the scores would not be accepted, or a file cannot be written.
    """
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown, expected one of {', '.join(TASKS)}")
    scores = np.asarray(scores, dtype=np.float64)
    require_scores(scores, num_rows, "the model's scores")
    if not scores.any():
        raise UserError("the model's scores are all 0, which the challenge would not rank; train it again")
    import polars as pl  # checking a submission needs none of it

    outputs = require_outputs(paths, inputs)
    buffer = io.BytesIO()
    pl.DataFrame({"ID": np.arange(num_rows), task: scores}).write_csv(buffer)
    with contextlib.ExitStack() as until_all_are_there:
        for path in outputs:
            temporary = until_all_are_there.enter_context(atomic_path(path))
            if path.suffix.lower() == ".csv":
                temporary.write_bytes(buffer.getvalue())
            else:
                _write_zip(temporary, buffer.getvalue())


def require_outputs(paths: str | Path | Sequence[str | Path], inputs: Iterable[str | Path | None] = ()) -> list[Path]:
    """Refuse, before the work, places where a submission cannot be written.

    Args:
        paths: a name that ends in .zip or .csv, or several, each once.
        inputs: files and folders that are read.

    Returns:
        the paths.
    """
    inputs, outputs = list(inputs), [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    for path in outputs:
        kind = KINDS.get(path.suffix.lower())
        require_output(path, inputs, kind=kind, option="--out")
        if kind is None:
            raise UserError(f"--out {path}: expected a name that ends in {' or '.join(KINDS)}")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"--out {' '.join(map(str, outputs))}: a file is named twice, expected each once")
    return outputs


def _write_zip(path: Path, content: bytes) -> None:
    """A zip that holds MEMBER alone; its entry has a fixed time, so that the same scores are the same bytes."""
    entry = zipfile.ZipInfo(MEMBER, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, content)


def require_scores(scores: np.ndarray, num_rows: int, where: str) -> None:
    """A `UserError` unless there is one finite score in [0, 1] for every row.

    Args:
        scores: float [num_rows].
        num_rows: rows of the test split.
        where: begins the message.
    """
    if scores.shape != (num_rows,):
        found = len(scores) if scores.ndim == 1 else f"shape {list(scores.shape)}:"
        raise UserError(f"{where}: {found} rows, expected {num_rows} (the rows of the test split)")
    bad = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0) & (scores <= 1)))
    if bad.size:
        row = int(bad[0])
        raise UserError(f"{where}: the score of ID {row} is {scores[row]}, expected a number from 0 to 1")


def check_submission(path: str | Path, test: str | Path) -> str:
    """Check a zip, or the CSV of one, against the test split it is for.

    Args:
        path: a zip, or a file whose name ends in .csv.
        test: the test split.

    Returns:
        a sentence that says what it holds, and warns of scores that are all equal.

    Raises:
        UserError: says why the challenge would refuse it.
    """
    num_rows = len(schema.read_test_ids(test))
    where, content = _read_csv(path, num_rows)
    header, *rows = _parse(content, where)
    if header[0] != "ID":
        raise UserError(f"{where}: first column is {header[0]!r}, expected ID")
    tasks = header[1:]
    if not tasks or any(task not in TASKS for task in tasks):
        raise UserError(f"{where}: score columns are {tasks}, expected one of {', '.join(TASKS)}, or all three")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"{where}: score columns are {tasks}, expected each name once")
    if len(tasks) not in (1, len(TASKS)):
        raise UserError(f"{where}: {len(tasks)} score columns, expected one, or all of {', '.join(TASKS)}")
    if len(rows) != num_rows:
        raise UserError(f"{where}: {len(rows)} rows, expected {num_rows} (the rows of {test})")
    ids, *scores_as_text = zip(*rows, strict=True)
    _require_ids(ids, where)
    columns = {
        task: _scores(texts, f"{where}, column {task}") for task, texts in zip(tasks, scores_as_text, strict=True)
    }
    used = [task for task, scores in columns.items() if scores.any()]
    if not used:
        raise UserError(f"{where}: every score is 0, expected the click probabilities of at least one task")
    accepted = f"{path}: accepted: {num_rows} rows, {', '.join(tasks)}"
    constant = [task for task in used if num_rows > 1 and np.ptp(columns[task]) == 0]
    if constant:
        accepted += f"; warning: every score of {', '.join(constant)} is {columns[constant[0]][0]}, an AUC of 0.5"
    return accepted


def _require_ids(found: Sequence[str], where: str) -> None:
    """IDs are compared as written: `1.0`, `1e0`, ` 1` and `01` are no row numbers to every reader."""
    for row, text in enumerate(found):
        if text != str(row):
            raise UserError(f"{where}: ID is {text!r} in row {row}, expected {row} (the order of the test split)")


def _scores(texts: Sequence[str], where: str) -> np.ndarray:
    """A column of text as scores in [0, 1]: float64 [N]."""
    scores = np.empty(len(texts))
    for row, text in enumerate(texts):
        try:
            scores[row] = float(text)
        except ValueError:
            raise UserError(f"{where}: the score of ID {row} is {text!r}, expected a number from 0 to 1") from None
    require_scores(scores, len(scores), where)
    return scores


def _read_csv(path: str | Path, num_rows: int) -> tuple[str, bytes]:
    """How errors name the CSV, and its bytes, refused before they are read when too many for this many rows."""
    most = num_rows * MOST_BYTES_A_ROW + MOST_BYTES_BESIDE
    try:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file; prediction.py writes one")
        if not Path(path).is_file():
            raise UserError(f"{path}: this is no file, expected a zip that holds {MEMBER}, or such a CSV")
        size = Path(path).stat().st_size
        if size > most:
            raise UserError(f"{path}: has {size:,} bytes, at most {most:,} are a submission of {num_rows} rows")
        content = Path(path).read_bytes()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if Path(path).suffix.lower() == ".csv":
        return str(path), content
    return f"{path}: {MEMBER}", _unpack(content, path, most)


def _unpack(content: bytes, path: str | Path, most: int) -> bytes:
    """The bytes of prediction.csv in a zip's, at most `most`."""
    _require_plain_zip(content, path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            member = _only_member(archive.infolist(), path, most)
            with archive.open(member) as opened:
                return opened.read(most)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a complete zip file ({error}); pack or copy it again") from error
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: {error}; pack it again with deflate, without a password") from error


def _require_plain_zip(content: bytes, path: str | Path) -> None:
    """Refuse what is no zip, a CSV that was not packed, and bytes in front of or behind the zip."""
    if not content.startswith((b"PK\x03\x04", END_OF_ZIP)):
        bare = content.lstrip(b'\xef\xbb\xbf"').startswith(b"ID")
        advice = f"this is the CSV itself: pack it as {MEMBER} in a zip, or name it .csv" if bare else "not a zip file"
        raise UserError(f"{path}: {advice}")
    end = content.rfind(END_OF_ZIP)
    if end < 0 or len(content) < end + END_BYTES:
        raise UserError(f"{path}: not a complete zip file (its end is missing); pack or copy it again")
    behind = len(content) - end - END_BYTES - int.from_bytes(content[end + 20 : end + END_BYTES], "little")
    if behind:
        raise UserError(f"{path}: not a complete zip file ({abs(behind)} bytes too {'many' if behind > 0 else 'few'})")


def _only_member(members: list[zipfile.ZipInfo], path: str | Path, most: int) -> zipfile.ZipInfo:
    """The one entry of a submission that every reader can unpack and whose size is sane."""
    names = [member.filename for member in members]
    if names != [MEMBER]:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        raise UserError(
            f"{path}: holds {', '.join(names[:NAMES_SHOWN]) or 'nothing'}{more}, expected exactly {MEMBER}: "
            "no folder and no other file"
        )
    [member] = members
    if member.flag_bits & ENCRYPTED:
        raise UserError(f"{path}: {MEMBER} is encrypted; pack it again without a password")
    if member.compress_type not in METHODS:
        method = FOREIGN_METHODS.get(member.compress_type, f"method {member.compress_type}")
        raise UserError(f"{path}: {MEMBER} is compressed by {method}, expected {' or '.join(METHODS.values())}")
    if member.file_size > most:
        raise UserError(f"{path}: {MEMBER} has {member.file_size:,} bytes unpacked, at most {most:,} are a submission")
    return member


def _parse(content: bytes, where: str) -> list[list[str]]:
    """The lines' fields as text, the header first, all with as many fields."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{where} begins with a byte order mark; save it as plain UTF-8")
    if b"\0" in content:
        raise UserError(f"{where} has a NUL byte at {content.index(0):,}, expected text")
    if not content.isascii():
        at = next(at for at, byte in enumerate(content) if byte > 127)
        raise UserError(f"{where} has a byte at {at:,} that is no ASCII; a header and numbers need none")
    try:
        lines = list(csv.reader(io.StringIO(content.decode("ascii"), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{where} is not a CSV table: {error}") from error
    if not lines or not lines[0]:
        raise UserError(f"{where} is empty, expected a header and one line for each row of the test split")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]) or any("_" in field for field in line):  # float() would read 0.1_2
            raise UserError(f"{where}: line {number} is {','.join(line)[:80]!r}, expected {len(lines[0])} plain fields")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.submission", description="Check a submission.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="would this submission be accepted?")
    check.add_argument("path", metavar="FILE", help="the zip, or the CSV that goes into one")
    check.add_argument("--test", required=True, metavar="FILE", help="test.parquet")
    args = parser.parse_args()
    print(printable(check_submission(args.path, args.test)))


if __name__ == "__main__":
    run_cli(main)

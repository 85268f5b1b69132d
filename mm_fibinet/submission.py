"""prediction.csv and its zip: written whole or not at all, and only when the challenge would accept it.

`python -m mm_fibinet.submission check ZIP --test FILE` says whether a zip would be accepted.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet import schema
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import atomic_path

TASKS = ("Task1", "Task2", "Task1&2")
MEMBER = "prediction.csv"


def write_submission(scores: np.ndarray, path: str | Path, num_rows: int, task: str = "Task1&2") -> Path:
    """Write a submission zip.

    Args:
        scores: float [num_rows], click probabilities in the test split's order.
        path: the zip.
        num_rows: rows of the test split.
        task: the score column's name, one of TASKS.

    Returns:
        the zip's path.

    Raises:
        UserError: the scores would not be accepted, or the zip cannot be written.
    """
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown, expected one of {', '.join(TASKS)}")
    require_scores(scores, num_rows, "the model's scores")
    buffer = io.BytesIO()
    pl.DataFrame({"ID": np.arange(num_rows), task: np.asarray(scores, dtype=np.float64)}).write_csv(buffer)
    entry = zipfile.ZipInfo(MEMBER, date_time=(1980, 1, 1, 0, 0, 0))  # a fixed time: same scores, same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(entry, buffer.getvalue())
    return Path(path)


def require_scores(scores: np.ndarray, num_rows: int, where: str) -> None:
    """A `UserError` unless there is one finite score in [0, 1] for every row."""
    if len(scores) != num_rows:
        raise UserError(f"{where}: {len(scores)} rows, expected {num_rows} (the rows of the test split)")
    bad = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0) & (scores <= 1)))
    if bad.size:
        row = int(bad[0])
        raise UserError(f"{where}: the score of ID {row} is {scores[row]}, expected a number from 0 to 1")


def check_submission(path: str | Path, test: str | Path) -> str:
    """Check a zip against the test split it is for.

    Returns:
        a sentence that says what it holds.

    Raises:
        UserError: says why the challenge would refuse it.
    """
    num_rows = len(schema.read_test_ids(test))
    frame = _read_prediction(path)
    where = f"{path}: {MEMBER}"
    if not frame.columns or frame.columns[0] != "ID":
        raise UserError(f"{where}: first column is {frame.columns[:1]}, expected ID")
    tasks = frame.columns[1:]
    if not tasks or any(task not in TASKS for task in tasks):
        raise UserError(f"{where}: score columns are {tasks}, expected one of {', '.join(TASKS)}, or all three")
    if len(tasks) not in (1, len(TASKS)):
        raise UserError(f"{where}: {len(tasks)} score columns, expected one, or all of {', '.join(TASKS)}")
    if frame.height != num_rows:
        raise UserError(f"{where}: {frame.height} rows, expected {num_rows} (the rows of {test})")
    ids = frame["ID"].cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
    wrong = np.flatnonzero(ids != np.arange(num_rows))
    if wrong.size:
        row = int(wrong[0])
        raise UserError(f"{where}: ID is {frame['ID'][row]} in row {row}, expected {row} (the order of the test split)")
    for task in tasks:
        scores = frame[task].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        require_scores(scores, num_rows, f"{where}, column {task}")
    return f"{path}: accepted: {num_rows} rows, {', '.join(tasks)}"


def _read_prediction(path: str | Path) -> pl.DataFrame:
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; prediction.py writes one")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [MEMBER]:
                raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}, expected exactly {MEMBER}")
            content = archive.read(MEMBER)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a complete zip file") from error
    try:
        return pl.read_csv(io.BytesIO(content), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: {MEMBER} is not a CSV table: {str(error).splitlines()[0]}") from error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.submission", description="Check a submission zip.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="would this zip be accepted?")
    check.add_argument("zip", metavar="ZIP")
    check.add_argument("--test", required=True, metavar="FILE", help="test.parquet")
    args = parser.parse_args()
    print(check_submission(args.zip, args.test))


if __name__ == "__main__":
    run_cli(main)

"""Scores with the ids that the log had, by the ids.parquet that build_dataset.py has written beside the test split."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.parquet_reader import exists, open_parquet, part_files, read_column, require_columns
from mm_fibinet.prepare.writing import IDS
from mm_fibinet.schema import ITEM_ID
from mm_fibinet.user_info import USER_ID


def require_originals(
    path: str | os.PathLike, test: str | Path, inputs: Iterable, outputs: Iterable[str | Path] = ()
) -> Path:
    """Refuse, before the work, a place that cannot be written and a test split whose ids are not in ids.parquet.

    Args:
        path: the CSV to write.
        test: the test split.
        inputs: files that are read.
        outputs: files that are written, too.

    Returns:
        ids.parquet.
    """
    require_output(path, inputs, "submission csv", "--original_ids")
    if Path(path).resolve() in [Path(output).resolve() for output in outputs]:
        raise UserError(f"--original_ids {path}: is written by --out already, expected another file")
    ids = part_files(test)[0].parent / IDS
    if not exists(ids):
        raise UserError(
            f"{ids}: no such file; --original_ids is for the data sets of build_dataset.py, which writes it"
        )
    require_columns(ids, open_parquet(ids), ["column", "id", "original"])
    _originals(ids, test)
    return ids


def write_originals(path: str | os.PathLike, ids: str | Path, test: str | Path, scores: np.ndarray) -> None:
    """Write a CSV with the columns ID, user_id, item_id (the originals) and score.

    Args:
        path: the CSV.
        ids: ids.parquet.
        test: the test split.
        scores: float [rows of test].
    """
    found = {"ID": pl.Series(np.arange(len(scores))), **_originals(ids, test), "score": pl.Series(scores)}
    with atomic_path(path) as temporary:
        pl.DataFrame(found).write_csv(temporary)


def _originals(ids: str | Path, test: str | Path) -> dict[str, pl.Series]:
    """The original user_id and item_id of each row; a `UserError` where ids.parquet lacks one, or has it twice."""
    found = {}
    known = pl.read_parquet(ids, glob=False)
    for name in (USER_ID, ITEM_ID):
        originals = known.filter(pl.col("column") == name).select("id", "original")
        numbers = pl.DataFrame({"id": read_column(test, name)})
        joined = numbers.join(originals, on="id", how="left", maintain_order="left")["original"]
        if joined.null_count() or len(joined) != len(numbers):
            row = int(joined.is_null().arg_max() or 0)
            raise UserError(f"{ids}: has no {name} {numbers['id'][row]}, which is in row {row} of {test}")
        found[name] = joined
    return found

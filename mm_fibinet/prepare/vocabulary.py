"""Ids of texts: 1, 2, 3, ... in the texts' order, so that the same texts get the same ids however they were read.

Columns arrive as polars' categories, whose codes depend on which thread came first; only their few unique values are
ever compared as texts, and a row costs one look-up in an array.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.yaml_reader import shown

FLOAT, FRACTION = r"\A-?[0-9]+\.0+\z", r"\A-?[0-9]+\.[0-9]*[1-9]"
BY_TEST = "\x1ftest"  # behind a user's name: as test_users knows them, who are others than the same ones in train


class Vocabulary:
    """The ids of a set of texts; 0 is no id.

    Attributes:
        names: String [n], sorted, each once; names[i] has the id i + 1.
    """

    def __init__(self, texts: Iterable[pl.Series]):
        """Args: texts: categorical or text series, null for nothing."""
        parts = [pl.Series("name", part.drop_nulls().unique(), dtype=None).cast(pl.String) for part in texts]
        self.names = pl.concat(parts).unique().sort() if parts else pl.Series("name", [], dtype=pl.String)

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, texts: pl.Series) -> np.ndarray:
        """The id of each text, 0 for null and for one that is not in the vocabulary: int32 [n]."""
        coded = texts.cast(pl.Categorical)
        present = coded.drop_nulls().unique()
        known = pl.DataFrame({"name": self.names, "id": np.arange(1, len(self) + 1, dtype=np.int32)})
        found = pl.DataFrame({"code": present.to_physical(), "name": present.cast(pl.String)}).join(known, on="name")
        codes = coded.to_physical()
        table = np.zeros(int(codes.max() or 0) + 1, dtype=np.int32)
        table[found["code"].to_numpy()] = found["id"].to_numpy()
        ids = table[codes.fill_null(0).to_numpy()]
        if texts.null_count():
            ids[texts.is_null().to_numpy()] = 0
        return ids

    def require_one_form(self, what: str) -> None:
        """Refuse whole numbers that are there as integers and as floats: one file's 3 is another's 3.0.

        Args:
            what: the texts are of, for the message.
        """
        if self.names.str.contains(FRACTION).any():  # versions, say: 1, 1.0, 1.1
            return
        floats = self.names.filter(self.names.str.contains(FLOAT))
        both = floats.filter(floats.str.replace(r"\.0+$", "").is_in(self.names.implode()))
        if len(both):
            integer = both[0].split(".")[0]
            raise UserError(
                f"{what} are {shown(integer)} here and {shown(both[0])} there, expected one of them for both: where a "
                "column of whole numbers has gaps, programs write floats; write whole numbers, or nothing, in all files"
            )

    def frame(self, column: str, first: int = 1) -> pl.DataFrame:
        """Rows of ids.parquet: column, id, original; ids from `first` on."""
        ids = pl.Series("id", np.arange(first, first + len(self), dtype=np.int64))
        return pl.DataFrame(
            [
                pl.repeat(column, len(self), eager=True).alias("column"),
                ids,
                self.names.str.strip_suffix(BY_TEST).alias("original"),
            ]
        )

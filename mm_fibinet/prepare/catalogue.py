"""The catalogue: what is known of items, row = item_id, whatever of it the log needs.

A tag and a category get ids, numbers stay numbers, texts stay texts. None of it depends on what was clicked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import columns
from mm_fibinet.prepare.columns import Source
from mm_fibinet.prepare.reading import collect, scan
from mm_fibinet.prepare.recipe import Recipe, Table
from mm_fibinet.prepare.vocabulary import BY_TEST, Vocabulary
from mm_fibinet.yaml_reader import shown

WRONG = "wrong:"  # in front of the names of columns
LISTS_AT_ONCE = 2_000  # histories, which are texts until they are read
KEY, TITLE, TAGS, DESCRIPTION = "key", "item_title", "item_tags", "item_description"


@dataclass
class Catalogue:
    """What a table says of the keys in it; of the items, or of the users.

    Attributes:
        frame: KEY (text, each once), and as asked for TITLE, DESCRIPTION (text), TAGS (list of text), the features by
            name (text, or float64 for a number).
        categorical: the features that are categories.
        numeric: those that are numbers.
        repeated: rows left out because their key has occurred before.
        unnamed: rows left out because they have no key.
        shown, key: how an error names the table, and its column of keys.
    """

    frame: pl.DataFrame
    categorical: list[str] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)
    repeated: int = 0
    unnamed: int = 0
    shown: str = ""
    key: str = ""

    def require_any(self, ids: pl.Series) -> None:
        """Refuse a table that has none of the log's ids, text [n]."""
        known = self.frame[KEY]
        if not ids.is_in(known.implode()).any():
            raise UserError(
                f"{self.shown}: column {self.key} has none of the log's ids, {shown(ids[0])} for example, "
                f"but {shown(known[0])} for example; is it the same kind of id?"
            )

    def of(self, vocabulary: Vocabulary) -> pl.DataFrame:
        """Rows in the order of a vocabulary's ids, null where the table lacks the key."""
        names = vocabulary.names.alias(KEY).to_frame()
        return names.join(self.frame, on=KEY, how="left", maintain_order="left")

    def lists_of(self, vocabulary: Vocabulary) -> pl.Series:
        """TAGS of the rows of `of`."""
        return Catalogue(self.frame.select(KEY, TAGS)).of(vocabulary)[TAGS]


def read_items(recipe: Recipe, scratch: Path) -> Catalogue | None:
    """The catalogue of a recipe; None where it names none."""
    if recipe.items is None:
        return None
    source = Source(recipe.items, scan(recipe.items, recipe.data_root, scratch))
    selected = []
    for name, column in ((TITLE, recipe.title), (DESCRIPTION, recipe.description)):
        if column is not None:
            selected.append(_joined_text(source, column).alias(name))
    if recipe.tags or recipe.tag_flags:
        parts = [columns.text_list(source, column, recipe.tag_separator) for column in recipe.tags]
        flags = [pl.when(columns.flag(source, name) == 1).then(pl.lit(name)) for name in recipe.tag_flags]
        if flags:
            parts.append(pl.concat_list(flags).list.drop_nulls())
        selected.append(pl.concat_list(parts).list.unique(maintain_order=True).alias(TAGS))
    key = recipe.item_key or recipe.item
    return _read(source, key, selected, recipe.item_features, recipe.item_categorical, recipe.tag_flags)


def read_users(recipe: Recipe, scratch: Path) -> Catalogue | None:
    """The users' features and histories (TAGS is then theirs); None where the recipe names no such table."""
    if recipe.users is None:
        return None
    people = _read_users(recipe, recipe.users, scratch)
    if recipe.test_users is None:
        return people
    later = _read_users(recipe, recipe.test_users, scratch)
    if later.numeric != people.numeric:
        raise UserError(f"{recipe.test_users.files[0]}: has other numbers among user_features than users' files have")
    frame = pl.concat([people.frame, later.frame.with_columns(pl.col(KEY) + BY_TEST)])
    repeated, unnamed = people.repeated + later.repeated, people.unnamed + later.unnamed
    return Catalogue(frame, people.categorical, people.numeric, repeated, unnamed, people.shown, people.key)


def _read_users(recipe: Recipe, table: Table, scratch: Path) -> Catalogue:
    source = Source(table, scan(table, recipe.data_root, scratch))
    selected = []
    if recipe.user_history:
        listed = columns.text_list(source, recipe.user_history, recipe.list_separator)
        selected.append(listed.cast(pl.List(pl.Categorical)).alias(TAGS))  # four bytes an item, however long its id is
    key = recipe.user_key or recipe.user
    at_once = LISTS_AT_ONCE if recipe.user_history else None
    return _read(source, key, selected, recipe.user_features, recipe.user_categorical, rows_at_once=at_once)


def _read(
    source: Source, key: str, selected: list[pl.Expr], features: list[str], categorical: list[str],
    flags: Sequence[str] = (), rows_at_once: int | None = None,
) -> Catalogue:  # fmt: skip
    """A table by its key, the first row of each; `flags` are columns that `selected` reads as 0 and 1."""
    numeric = [name for name in features if name not in categorical and columns.is_number(source, name)]
    categorical = [*categorical, *(name for name in features if name not in numeric and name not in categorical)]
    selected = [columns.text(source, key).alias(KEY), *selected]
    selected += [columns.text(source, name).alias(name) for name in categorical]
    number = "a number, as in the first rows; or name it as item_categorical or user_categorical instead"
    checks = {name: (columns.number(source, name), number) for name in numeric}
    selected += [value.alias(name) for name, (value, _) in checks.items()]
    checks |= {name: (columns.flag(source, name), "0 or 1, as tag_flags have") for name in flags}
    selected += [columns.wrong(source, name, value).alias(f"{WRONG}{name}") for name, (value, _) in checks.items()]
    rows = collect(source.frame.select(selected), source.table, rows_at_once)
    for name, (_, expected) in checks.items():
        if (found := rows[f"{WRONG}{name}"]).any():
            raise columns.wrong_field(source, name, int(found.arg_max() or 0), expected)
    rows = rows.select(pl.exclude(f"^{WRONG}.*$"))
    named = rows.filter(pl.col(KEY).is_not_null())
    frame = named.unique(KEY, keep="first", maintain_order=True)
    if not len(frame):
        raise UserError(f"{source.shown}: column {key} is empty in all rows, expected ids")
    return Catalogue(frame, categorical, numeric, len(named) - len(frame), len(rows) - len(named), source.shown, key)


def _joined_text(source: Source, column: str) -> pl.Expr:
    """A text; a list of texts is joined."""
    if isinstance(source.type_of(column), pl.List | pl.Array):
        joined = columns.text_list(source, column, " ").list.join(" ")
        return pl.when(joined != "").then(joined)
    return columns.text(source, column)


def tag_ids(tags: pl.Series, vocabulary: Vocabulary, width: int) -> np.ndarray:
    """The first `width` tags of each list as ids, zeros in front.

    Args:
        tags: list of text [n]; null for none.

    Returns:
        int32 [n, width].
    """
    lists = tags.list.head(width)
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    ids = vocabulary.ids(lists.explode().drop_nulls())
    out = np.zeros((len(tags), width), dtype=np.int32)
    out[np.arange(width) >= width - lengths[:, None]] = ids
    return out

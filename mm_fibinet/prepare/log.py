"""The interactions of a recipe as one table: who, what, when, clicked or not, and what else is known of the moment.

Texts become categories while they are read, so a row takes about thirty bytes however long its ids are. A row without a
user, an item, a time or a label is left out and counted; a field that holds something else than it should is an error.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import columns
from mm_fibinet.prepare.columns import Source
from mm_fibinet.prepare.reading import collect, scan
from mm_fibinet.prepare.recipe import SPLITS, WHOLE, Recipe, parse_label
from mm_fibinet.prepare.splits import group_starts
from mm_fibinet.prepare.vocabulary import BY_TEST

UNIX_TIMES = ((10**8, 10**10), (10**11, 10**13), (10**14, 10**16), (10**17, 2**63 - 1))  # from 1973 on, s to ns
CLICKED, USER, ITEM, TIME, RATING, SPLIT = "label", "user", "item", "time", "rating", "split"
ROW, EVENT = "row:", "event:"  # beside the files' own columns
FEATURE, WRONG = "feature:", "wrong:"  # in front of the names of columns
COMPARISONS = {
    ">=": pl.Expr.ge, "<=": pl.Expr.le, "==": pl.Expr.eq, "!=": pl.Expr.ne, ">": pl.Expr.gt, "<": pl.Expr.lt,
}  # fmt: skip
ORDERED = (">=", "<=", ">", "<")


@dataclass
class Log:
    """What was read.

    Attributes:
        frame: columns USER, ITEM (categories), TIME (int64; without one, all 0), CLICKED (int8, null where a test row's
            is withheld), FEATURE + name (categories or float32), and where there are such RATING (float32) and SPLIT
            (uint8); rows in the files' order.
        dropped: {reason: rows}.
        rows: how many were read.
        lists: of a recipe with history, what `_given_histories` makes of it, and frame has EVENT; else None.
    """

    frame: pl.DataFrame
    dropped: dict[str, int]
    rows: int
    lists: pl.DataFrame | None = None


def read_log(recipe: Recipe, scratch: Path) -> Log:
    """Read all interactions.

    Raises:
        UserError: a file or a column is missing, or a field holds what it should not.
    """
    frames, lists, units, events = [], [], {}, 0
    numeric = _numeric_features(recipe, scratch)
    for part, table in recipe.interactions.items():
        lazy = scan(table, recipe.data_root, scratch).with_row_index(EVENT)
        source = Source(table, lazy, (EVENT,))
        if recipe.history:
            lists.append(_given_histories(source, recipe, events))
        source = _reshaped(source, recipe)
        selected, units[part] = _selected(source, recipe, numeric)
        frame = collect(source.frame.with_row_index(ROW).select(selected), table)
        _refuse_wrong(frame, source, recipe)
        if recipe.history:
            frame = frame.with_columns(pl.col(EVENT).cast(pl.Int64) + events)
            events = int(frame[EVENT].max() or 0) + 1
        if part != WHOLE:
            frame = frame.with_columns(pl.lit(SPLITS.index(part), dtype=pl.UInt8).alias(SPLIT))
        frames.append(frame.select(pl.exclude(f"^{WRONG}.*$", ROW)))
    if len(set(units.values())) > 1:
        found = ", ".join(f"{unit} in {part}" for part, unit in units.items())
        raise UserError(f"{recipe.timestamp}: times are {found}, expected one kind in all files")
    frame = pl.concat(frames, rechunk=False)
    rows = len(frame)
    frame, dropped = _without_gaps(frame, recipe)
    if not len(frame):
        why = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items() if count)
        raise UserError(f"no interaction is left of {rows:,} rows ({why or 'the files have none'})")
    if "dates" not in units.values() and recipe.timestamp:
        _require_one_unit(frame[TIME] // (10**6 if "fractions" in units.values() else 1), recipe.timestamp)
    return Log(frame, dropped, rows, pl.concat(lists) if lists else None)


def _require_one_unit(time: pl.Series, column: str) -> None:
    """Refuse Unix times of several units, seconds and milliseconds for example: the later unit would be the test.

    Between what two units stand for is a gap; a counter, which may come to any number, has values there.
    """
    large = time >= UNIX_TIMES[0][0]
    counts = [int(time.is_between(first, end, closed="left").sum()) for first, end in UNIX_TIMES]
    if sum(count > 0 for count in counts) > 1 and sum(counts) == large.sum():
        raise UserError(
            f"{column}: times go from {time.filter(large).min()} to {time.max()}, as where one part is in seconds and "
            "another in milliseconds; bring them to one unit"
        )


def without_repeats(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One row of those with the same user, item and time, a click if there is one; and how many others there were.

    What was shown and then clicked is two rows in many logs, of one moment where times are days.

    Args:
        frame: sorted by user and time; only rows of one moment are compared.
    """
    starts = group_starts(frame[USER].to_numpy(), frame[TIME].to_numpy())
    shared = ~starts
    shared[:-1] |= ~starts[1:]  # the first row of a moment that has others
    if not shared.any():
        return frame, 0
    places = np.flatnonzero(shared)
    unclicked = frame[CLICKED].gather(places).fill_null(0).to_numpy() == 0
    places = places[np.argsort(unclicked, kind="stable")]
    moments = pl.DataFrame({"moment": np.cumsum(starts)[places], "item": frame[ITEM].to_numpy()[places]})
    keep = np.ones(len(frame), dtype=bool)
    keep[places] = moments.select(pl.struct("moment", "item").is_first_distinct()).to_series().to_numpy()
    return frame.filter(pl.Series(keep)), int((~keep).sum())


def _selected(source: Source, recipe: Recipe, numeric: dict[str, bool]) -> tuple[list[pl.Expr], str]:
    """The expressions of the log's columns, and the kind of its times."""
    user = columns.text(source, recipe.user)
    if recipe.test_users is not None and source.table is recipe.interactions.get("test"):
        user += pl.lit(BY_TEST)
    selected = [pl.col(ROW), user.cast(pl.Categorical).alias(USER)]
    selected += [columns.text(source, recipe.item).cast(pl.Categorical).alias(ITEM)]
    unit = ""
    if recipe.timestamp:
        time, unit = columns.moment(source, recipe.timestamp)
        selected += [time.alias(TIME), _wrong(source, recipe.timestamp, time, TIME)]
    else:
        selected.append(pl.lit(0, dtype=pl.Int64).alias(TIME))
    label, given = _label(source, recipe)
    selected += [label.alias(CLICKED), *([_wrong(source, given, label, CLICKED)] if given else [])]
    rating = rating_column(recipe)
    if rating and rating in source.frame.collect_schema():
        value = columns.number(source, rating)
        selected += [value.cast(pl.Float32).alias(RATING), _wrong(source, rating, value, RATING)]
    elif rating:
        selected.append(pl.lit(None, dtype=pl.Float32).alias(RATING))
    if WHOLE in recipe.interactions and recipe.split not in ("time", "leave_last_out", "random"):
        names = columns.text(source, recipe.split).str.to_lowercase()
        split = names.replace_strict({name: at for at, name in enumerate(SPLITS)}, default=None, return_dtype=pl.UInt8)
        selected += [split.alias(SPLIT), split.is_null().alias(f"{WRONG}{SPLIT}")]
    if recipe.history:
        selected.append(pl.col(EVENT))
    for name, is_number in numeric.items():
        if is_number:
            value = columns.number(source, name)
            selected += [
                value.cast(pl.Float32).alias(f"{FEATURE}{name}"),
                _wrong(source, name, value, f"{FEATURE}{name}"),
            ]
        else:
            selected.append(columns.text(source, name).cast(pl.Categorical).alias(f"{FEATURE}{name}"))
    return selected, unit


def rating_column(recipe: Recipe) -> str | None:
    """The column of ratings: the one named, else the one that the label compares with a number, as more or less."""
    if recipe.rating or recipe.label is None:
        return recipe.rating
    label = parse_label(recipe.label)
    return label.column if label.operator in ORDERED and label.index is None else None


def _label(source: Source, recipe: Recipe) -> tuple[pl.Expr, str | None]:
    """The label, int8, null where there is none, and the column that it is read from."""
    if recipe.impressions:
        return pl.col(CLICKED), None
    if recipe.label is None:
        return pl.lit(1, dtype=pl.Int8), None
    label = parse_label(recipe.label)
    if source.table is recipe.interactions.get("test") and label.column not in source.frame.collect_schema():
        return pl.lit(None, dtype=pl.Int8), None
    if label.operator is None:
        return columns.flag(source, label.column), label.column
    read = columns.number if isinstance(label.value, float) else columns.text
    return COMPARISONS[label.operator](read(source, label.column), pl.lit(label.value)).cast(pl.Int8), label.column


def _reshaped(source: Source, recipe: Recipe) -> Source:
    """The table with one interaction a row, and an element of a list in the list's place."""
    frame = source.frame
    label = parse_label(recipe.label) if recipe.label is not None else None
    if label is not None and label.index is not None and label.column in frame.collect_schema():
        if not isinstance(source.type_of(label.column), pl.List | pl.Array):
            raise source.refuse(label.column, f"a list a row, for {recipe.label}")
        element = pl.col(label.column).cast(pl.List(pl.Float64)).list.get(label.index, null_on_oob=True)
        frame = frame.with_columns(element.alias(label.column))
    if recipe.impressions:
        shown = columns.text_list(source, recipe.impressions, recipe.list_separator)
        frame = frame.with_columns(shown.alias(recipe.impressions)).explode(recipe.impressions)
        pair = pl.col(recipe.impressions)
        label_of = pair.str.extract("-([01])$").cast(pl.Int8, strict=False).alias(CLICKED)
        frame = frame.with_columns(pair.str.replace("-[01]$", "").alias(recipe.item), label_of)
    return Source(source.table, frame, (EVENT, CLICKED))


def _given_histories(source: Source, recipe: Recipe, first_event: int) -> pl.DataFrame:
    """The items of each event's history: EVENT (int64) and ITEM (categories), an event without any left out."""
    listed = columns.text_list(source, recipe.history or "", recipe.list_separator).alias(ITEM)
    lists = source.frame.select((pl.col(EVENT).cast(pl.Int64) + first_event), listed).explode(ITEM).drop_nulls()
    return collect(lists.with_columns(pl.col(ITEM).cast(pl.Categorical)), source.table)


def _numeric_features(recipe: Recipe, scratch: Path) -> dict[str, bool]:
    """{feature: whether it stays a number}, as train's table tells, or that of all."""
    table = recipe.interactions.get("train") or next(iter(recipe.interactions.values()))
    source = Source(table, scan(table, recipe.data_root, scratch))
    found = {name: columns.is_number(source, name) for name in recipe.features}
    return found | dict.fromkeys(recipe.categorical, False)


def _wrong(source: Source, column: str, value: pl.Expr, name: str) -> pl.Expr:
    return columns.wrong(source, column, value).alias(f"{WRONG}{name}")


def _refuse_wrong(frame: pl.DataFrame, source: Source, recipe: Recipe) -> None:
    """A `UserError` for the first row with a field that could not be read."""
    label = parse_label(recipe.label).column if recipe.label else ""
    expected = {
        TIME: (recipe.timestamp, "a number, or a date and time as 2026-01-31 13:45:00, in one form in all rows"),
        CLICKED: (
            label,
            f"0 or 1, or a comparison as label: {label} == VALUE" if label == recipe.label else "a number",
        ),
        RATING: (rating_column(recipe), "a number"),
        SPLIT: (recipe.split, f"one of {', '.join(SPLITS)}"),
    }
    for name in frame.columns:
        if not name.startswith(WRONG) or not frame[name].any():
            continue
        wrong = name.removeprefix(WRONG)
        column, kind = expected.get(
            wrong, (wrong.removeprefix(FEATURE), "a number, as in the first rows; or name it as categorical")
        )
        raise columns.wrong_field(source, column or "", frame[ROW][int(frame[name].arg_max() or 0)], kind)


def _without_gaps(frame: pl.DataFrame, recipe: Recipe) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows that have a user, an item, a time and, but in a test table, a label; and how many have not."""
    reasons = {
        f"no {recipe.user}": pl.col(USER).is_null(),
        f"no {recipe.item}": pl.col(ITEM).is_null(),
        f"no {recipe.timestamp}": pl.col(TIME).is_null(),
        "no label": pl.col(CLICKED).is_null(),
    }
    if SPLIT in frame.columns:
        reasons["no label"] &= pl.col(SPLIT) != SPLITS.index("test")
    dropped, gone = {}, pl.lit(False)
    for reason, missing in reasons.items():
        dropped[reason] = int(frame.select((missing & ~gone).sum()).item())
        gone = gone | missing
    return (frame.filter(~gone) if sum(dropped.values()) else frame), dropped

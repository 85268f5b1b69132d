"""Columns of any table as what the recipe takes them for: an id, a number, a moment, a list.

Each function gives an expression that is null where the field holds something else, so that a reader can tell what is
missing, and is counted, from what is wrong, and is an error that names the row.
"""

from dataclasses import dataclass

import polars as pl

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import printed_lists
from mm_fibinet.prepare.reading import FIRST_LINES, collect, is_json, schema_of
from mm_fibinet.prepare.recipe import Table
from mm_fibinet.yaml_reader import shown

SAMPLE = 1_000  # values that tell what a column of text holds
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
LARGEST_FRACTION = 9e12  # whose millionths int64 holds
EXACT_BELOW = (2**53, 2**24)  # whole numbers as float64, as float32
MONEY = "[€$£¥₹₽]"
LIKE_A_NUMBER = (  # 12,50; 1,299.50; $5; 12 EUR; 30 %
    rf"\A{MONEY}?\s*-?(?:[0-9]+|[0-9]{{1,3}}(?:[.,' ][0-9]{{3}})+)(?:[.,][0-9]+)?\s*(?:{MONEY}|%|[A-Z]{{3}})?\z"
)
FEW = 32  # different values, which are a category's: sizes 36 to 45 and M
FIRST_YEAR = 1000  # of four digits
NO_NUMBER = ("", "nan", "na", "n/a", "null", "none")  # what stands for a missing number, in small letters
DAY_FIRST = {
    "%m/%d/%Y": "%d/%m/%Y", "%m/%d/%Y %H:%M": "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S": "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p": "%d/%m/%Y %I:%M:%S %p",
}  # fmt: skip
MOMENTS = (
    "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d %H:%M:%S%.f UTC", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%Y%m%d",
    *DAY_FIRST, *DAY_FIRST.values(),
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A table that columns are taken from; `added` are columns of the frame that the files do not have."""

    table: Table
    frame: pl.LazyFrame
    added: tuple[str, ...] = ()

    def type_of(self, column: str) -> pl.DataType:
        """A column's type; a `UserError` where the table lacks it."""
        schema = schema_of(self.frame, self.table)
        if column not in schema:
            found = ", ".join(name for name in schema.names() if name not in self.added)
            where = hint = ""
            if is_json(self.table):
                where, hint = (
                    f" in the first {FIRST_LINES:,} lines",
                    "; if later ones have it, give the first one a null",
                )
            raise UserError(f"{self.shown}: column {column} is missing{where}, found {found}{hint}")
        if f"{column}_duplicated_0" in schema:  # polars' name for the second one of a header
            raise UserError(f"{self.shown}: the header has column {column} more than once; rename all but one")
        return schema[column]

    @property
    def shown(self) -> str:
        """How an error names it."""
        return self.table.files[0]

    def sample(self, column: str) -> pl.Series:
        """The first values that there are."""
        return collect(self.frame.select(pl.col(column)).drop_nulls().head(SAMPLE), self.table)[column]

    def refuse(self, column: str, expected: str) -> UserError:
        """The error for a column of the wrong type."""
        return UserError(f"{self.shown}: column {column} has type {self.type_of(column)}, expected {expected}")


def text(source: Source, column: str) -> pl.Expr:
    """An id, or another text: what it is in the file, without a type and blanks at its ends; empty texts are null."""
    kind, field = source.type_of(column), pl.col(column)
    if kind.is_float():
        _require_exact(source, column, EXACT_BELOW[kind == pl.Float32])
        whole = pl.when(field == field.floor()).then(field.cast(pl.Int64, strict=False))
        field = pl.coalesce(whole.cast(pl.String), field.fill_nan(None).cast(pl.String))
    elif not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Null)):
        raise source.refuse(column, "a text or a whole number a row")
    field = field.cast(pl.String).str.strip_chars()
    return pl.when(~field.is_in(["", *source.table.missing])).then(field)


def _require_exact(source: Source, column: str, limit: int) -> None:
    """Refuse a float that several whole numbers become: where a column of integers has gaps, pandas makes floats."""
    value = pl.col(column).abs()
    inexact = (value.is_finite() & (value >= limit)).fill_null(False)
    found = collect(source.frame.select(inexact), source.table).to_series()
    if found.any():
        expected = f"less than {limit}, beyond which floats are not exact; write ids as integers or texts"
        raise wrong_field(source, column, int(found.arg_max() or 0), expected)


def number(source: Source, column: str) -> pl.Expr:
    """A number: float64; NaN, infinity and the texts of NO_NUMBER are null."""
    kind, field = source.type_of(column), pl.col(column)
    if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null, pl.Categorical, pl.Enum)):
        raise source.refuse(column, "a number a row")
    if kind in (pl.String, pl.Categorical, pl.Enum):
        field = field.cast(pl.String).str.strip_chars()
    field = field.cast(pl.Float64, strict=False)
    return pl.when(field.is_finite()).then(field)


def wrong(source: Source, column: str, value: pl.Expr) -> pl.Expr:
    """Where a field has something that `value`, read from it, could not take; NaN and NO_NUMBER are nothing."""
    kind, field = source.type_of(column), pl.col(column)
    there = field.is_not_null()
    if kind.is_float():
        there &= field.is_not_nan()
    elif kind == pl.String:
        there &= ~field.str.strip_chars().str.to_lowercase().is_in(NO_NUMBER)
    return there & value.is_null()


def wrong_field(source: Source, column: str, row: int, expected: str) -> UserError:
    """The error for a field that is `wrong`."""
    value = collect(source.frame.select(pl.col(column)).slice(row, 1), source.table).item()
    return UserError(f"{source.shown}: column {column} has {shown(value)} in row {row}, expected {expected}")


def is_number(source: Source, column: str) -> bool:
    """Whether a column holds numbers, as far as its first values tell.

    Raises:
        UserError: half of many values or more do, or would without a decimal comma, a currency's sign or the like.
    """
    kind = source.type_of(column)
    if kind.is_nested():
        raise source.refuse(column, "one value a row")
    if kind.is_numeric():
        return True
    if kind != pl.String:
        return False
    sample = source.sample(column).str.strip_chars()
    sample = sample.filter(~sample.str.to_lowercase().is_in(NO_NUMBER))
    others = sample.filter(sample.cast(pl.Float64, strict=False).is_null())
    numbers = len(sample) - len(others)
    like_numbers = numbers + int(others.str.contains(LIKE_A_NUMBER).sum())
    if len(others) and sample.n_unique() > FEW and like_numbers >= len(sample) / 2:
        raise UserError(
            f"{source.shown}: column {column} has {shown(others[0])} among its first values, mostly numbers; "
            "write numbers as 1299.50, set missing for a text that stands for none, or name the column as categorical "
            "(item_categorical, user_categorical) instead"
        )
    return numbers > 0 and not len(others)


def moment(source: Source, column: str) -> tuple[pl.Expr, str]:
    """A time: int64 that grows with it, and the unit's name.

    Numbers are seconds or anything else that counts on; texts are dates and times as in MOMENTS.
    """
    kind, field = source.type_of(column), pl.col(column)
    if kind.is_integer():
        return field.cast(pl.Int64), "numbers"
    if kind.is_float():
        return _fractions(source, column)
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        return field.cast(pl.Datetime("us")).cast(pl.Int64), "dates"
    if kind != pl.String:
        raise source.refuse(column, "a time a row: a number, or a date and time")
    sample = source.sample(column)
    if len(sample) and sample.cast(pl.Int64, strict=False).is_not_null().all():
        return field.cast(pl.Int64, strict=False), "numbers"
    if len(sample) and sample.cast(pl.Float64, strict=False).is_not_null().all():
        return _fractions(source, column)
    found = max(MOMENTS, key=lambda form: sample.to_frame().select(_parsed(column, form).count()).item())
    for pair in DAY_FIRST.items():
        if found in pair:
            found = _day_or_month_first(source, column, pair)
    return _parsed(column, found), "dates"


def _fractions(source: Source, column: str) -> tuple[pl.Expr, str]:
    """Numbers with a fraction as their millionths; those too large for that, micro- and nanoseconds, as they are."""
    field = pl.col(column).cast(pl.Float64, strict=False)
    field = pl.when(field.is_finite()).then(field)
    largest = collect(source.frame.select(field.abs().max()), source.table).item()
    if largest is not None and largest >= LARGEST_FRACTION:
        return field.round().cast(pl.Int64, strict=False), "numbers"
    return (field * 1e6).round().cast(pl.Int64, strict=False), "fractions"


def _day_or_month_first(source: Source, column: str, forms: tuple[str, str]) -> str:
    """Of two forms, the one that all rows have; a `UserError` where no row tells."""
    counts = [_parsed(column, form).count().alias(form) for form in forms]
    read = collect(source.frame.select(counts), source.table).row(0)
    if read[0] == read[1]:
        raise UserError(
            f"{source.shown}: column {column} has dates as {shown(source.sample(column)[0])}, and no row tells whether "
            "day or month is first, expected dates as 2026-01-31"
        )
    return forms[read[1] > read[0]]


def _parsed(column: str, form: str) -> pl.Expr:
    """Microseconds of a text in a form; null for a year of less than four digits.

    polars' %Y takes the 31 of 31/12/21 for a year, by which days of the month would be the order of time.
    """
    field = pl.col(column).str
    parsed = field.to_datetime(form, strict=False, time_unit="us") if "%H" in form or "%I" in form else None
    if parsed is None:
        parsed = field.to_date(form, strict=False).cast(pl.Datetime("us"))
    return pl.when(parsed.dt.year() >= FIRST_YEAR).then(parsed.cast(pl.Int64))


def flag(source: Source, column: str) -> pl.Expr:
    """A label that is 0 or 1, true or false: int8."""
    kind, field = source.type_of(column), pl.col(column)
    if kind in (pl.String, pl.Categorical, pl.Enum):
        lower = field.cast(pl.String).str.strip_chars().str.to_lowercase()
        numbers = lower.cast(pl.Float64, strict=False)
        yes, no = lower.is_in(TRUE) | (numbers == 1), lower.is_in(FALSE) | (numbers == 0)
    else:
        numbers = number(source, column)
        yes, no = numbers == 1, numbers == 0
    return pl.when(yes).then(1).when(no).then(0).cast(pl.Int8)


def text_list(source: Source, column: str, separator: str) -> pl.Expr:
    """A list of texts, of a list column, a printed list, or a text that a separator cuts: list[str], empty for null."""
    kind, field = source.type_of(column), pl.col(column)
    if isinstance(kind, pl.List | pl.Array):
        if not (kind.inner.is_integer() or kind.inner in (pl.String, pl.Null, pl.Categorical)):  # type: ignore[union-attr]
            raise source.refuse(column, "a list of texts or whole numbers, or a text")
        parts = field.cast(pl.List(pl.String))
    else:
        field = text(source, column)
        cut = collect(source.frame.select(printed_lists.is_cut(field)), source.table).to_series()
        if cut.any():
            expected = "a whole list; the middle of this one was left out when it was printed"
            raise wrong_field(source, column, int(cut.arg_max() or 0), expected)
        parts = printed_lists.lists_of(field, separator)
    parts = parts.list.eval(pl.element().str.strip_chars())
    parts = parts.list.eval(pl.element().filter(~pl.element().is_in(["", *source.table.missing])))
    return parts.fill_null(pl.lit([], dtype=pl.List(pl.String)))

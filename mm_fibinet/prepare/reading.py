"""Tables as people have them, as polars' lazy frames: CSV, TSV, JSON lines and parquet, one file or many, compressed.

A field of a CSV stays text until the recipe says what it is: an inferred type would turn the id 0108775015 into another
one, and end the reading where row 2,000,000 has a letter; so do whole numbers of JSON. A path is taken literally; where
there is no file of that name, `*`, `?` and `[A-Z]` in it stand for what may vary. What polars says of a damaged file
becomes one sentence with the file's name.
"""

import contextlib
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import polars as pl
import pyarrow as pa

from mm_fibinet.errors import UserError, explain_os_error, first_line
from mm_fibinet.prepare.recipe import NUMBER, Table

SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")
SEPARATORS = {"csv": ",", "tsv": "\t"}
OF_CSV = ("separator", "columns", "encoding", "quoted", "rest")  # settings that say how a line is cut
UNUSED = "\x1f"  # separates nothing: a line stays whole
BLOCK = 1 << 22  # characters, or bytes
FIRST_LINES = 10_000  # of JSON lines, which tell what columns there are
OTHER_KIND = ("cannot parse ", "conversion from ")  # polars' words for a field of JSON that is not of its column's kind
MARK = b"\xef\xbb\xbf"  # what some programs put in front of UTF-8


def scan(table: Table, root: str | Path, scratch: Path) -> pl.LazyFrame:
    """A table's rows, in the order of its files.

    Args:
        table: of the recipe.
        root: what its paths are relative to.
        scratch: a folder for files in UTF-8 of those that are not.

    Raises:
        UserError: there is no such file, or it is not what the table says.
    """
    files = table_files(table, root)
    kind = table.format or _format_of(files)
    if kind not in SEPARATORS:
        _refuse_settings_of_csv(table, kind)
    if kind == "parquet":
        return _without_missing(_without_decimals(pl.scan_parquet(files, glob=False), table), table)
    if kind == "jsonl":
        files = [_unmarked(path, table, scratch / f"{at}-{path.name}") for at, path in enumerate(files)]
        return _without_missing(_scan_json(files, table), table)
    if table.encoding != "utf-8":
        files = [_as_utf8(path, table.encoding, scratch / f"{at}-{path.name}") for at, path in enumerate(files)]
    separator = table.separator or SEPARATORS[kind]
    if len(separator.encode()) > 1 or table.rest:
        return _split_lines(files, separator, table)
    names = table.columns
    frame = pl.scan_csv(
        files,
        separator=separator,
        has_header=names is None,
        quote_char='"' if table.quoted else None,
        null_values=table.missing or None,
        infer_schema_length=0,  # all text
        glob=False,
    )
    if names is not None:
        found = schema_of(frame, table).names()
        if len(found) != len(names):
            raise UserError(f"{_shown(table)}: has {len(found)} columns, columns names {len(names)}")
        frame = frame.rename(dict(zip(found, names, strict=True)))
    return _columns_of(frame, table)


def _refuse_settings_of_csv(table: Table, kind: str) -> None:
    """Nothing reads them of files of another kind."""
    for name in OF_CSV:
        if getattr(table, name) != Table.model_fields[name].default:
            raise UserError(f"{_shown(table)}: {name} is set, which is of csv and tsv alone, and this is {kind}")


def is_json(table: Table) -> bool:
    """Whether a table's columns are those of FIRST_LINES, as far as its settings tell."""
    return (table.format or SUFFIXES.get(_suffix(Path(table.files[0])))) == "jsonl"


def table_files(table: Table, root: str | Path) -> list[Path]:
    """The files of a table; of a folder, those of the known kinds, in the names' order."""
    found: list[Path] = []
    for path in (path for name in table.files for path in _matches(Path(root), name)):
        try:
            if path.is_dir():
                inside = [each for each in sorted(path.iterdir()) if _suffix(each) in SUFFIXES and each.is_file()]
                inside = [each for each in inside if each.name[0] not in "._"]
                if not inside:
                    raise UserError(f"{path}: a folder without {', '.join(SUFFIXES)} files, expected some")
                found += inside
            elif not path.exists():
                raise UserError(f"{path}: no such file or folder; paths are relative to data_root ({root})")
            elif not path.is_file():
                raise UserError(f"{path}: this is a device or a pipe, expected a file or a folder")
            elif not path.stat().st_size:
                raise UserError(f"{path}: is empty, expected rows")
            else:
                found.append(path)
        except OSError as error:
            raise explain_os_error(error, path, "read") from error
        except ValueError as error:  # a NUL character
            raise UserError(f"{path}: not a file name ({error})") from error
    return found


def _matches(root: Path, name: str) -> list[Path]:
    """The path of this name, or else those that it is a pattern of, in the names' order."""
    path = root / name
    if not any(character in name for character in "*?["):
        return [path]
    try:
        if os.path.lexists(path):
            return [path]
        found = [Path(path.anchor) if Path(name).is_absolute() else root]
        for part in Path(name).relative_to(Path(name).anchor).parts:
            found = [inside for each in found for inside in _named(each, part)]
    except OSError as error:
        raise explain_os_error(error, error.filename or path, "read") from error
    except ValueError:  # a NUL character; whoever opens the path says so
        return [path]
    if not found:
        raise UserError(f"{path}: no file has such a name; paths are relative to data_root ({root})")
    return found


def _named(folder: Path, pattern: str) -> list[Path]:
    """What a folder has of this name, or of this pattern; hidden files only by their name."""
    if not any(character in pattern for character in "*?["):
        return [folder / pattern] if (folder / pattern).exists() else []
    if not folder.is_dir():
        return []
    return [each for each in sorted(folder.iterdir()) if each.name[0] != "." and fnmatchcase(each.name, pattern)]


def schema_of(frame: pl.LazyFrame, table: Table) -> pl.Schema:
    """The names and types of a table's columns."""
    with explained(table):
        return frame.collect_schema()


def collect(frame: pl.LazyFrame, table: Table, rows_at_once: int | None = None) -> pl.DataFrame:
    """The rows in memory, read as a stream.

    Args:
        frame: of `scan`, with what is wanted of it.
        table: that it is of.
        rows_at_once: pieces of the stream, where rows are long; None for as many as polars takes, some 100,000.
    """
    pieces = pl.Config(streaming_chunk_size=rows_at_once) if rows_at_once else contextlib.nullcontext()
    with explained(table), pieces:
        return frame.collect(engine="streaming")


@contextlib.contextmanager
def explained(table: Table) -> Iterator[None]:
    """What polars finds wrong with a file as a `UserError`."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        first = first_line(error)
        advice = "check format, separator, columns, encoding and quoted"
        if is_json(table) and first.startswith(OTHER_KIND):
            advice = f"the first {FIRST_LINES:,} lines tell a column's kind: write it the same way in all"
        raise UserError(f"{_shown(table)}: cannot be read ({first}); {advice}") from error
    except OSError as error:
        if error.errno:
            raise explain_os_error(error, error.filename or _shown(table), "read") from error
        raise UserError(f"{_shown(table)}: cannot be read ({first_line(error)})") from error


def _shown(table: Table) -> str:
    """How an error names a table."""
    return table.files[0] + (f" and {len(table.files) - 1} more" if len(table.files) > 1 else "")


def _suffix(path: Path) -> str:
    """The suffix that tells the kind, in front of that of the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(files: list[Path]) -> str:
    for path in files:
        if _suffix(path) not in SUFFIXES:
            raise UserError(f"{path}: its name does not tell what it is; set format to one of csv, tsv, jsonl, parquet")
    kinds = {SUFFIXES[_suffix(path)] for path in files}
    if len(kinds) > 1:
        raise UserError(f"{files[0]} and {files[-1]}: files of several kinds ({', '.join(sorted(kinds))}) in one table")
    return kinds.pop()


def _columns_of(frame: pl.LazyFrame, table: Table) -> pl.LazyFrame:
    """The frame, once its header could be read."""
    schema_of(frame, table)
    return frame


def _without_decimals(frame: pl.LazyFrame, table: Table) -> pl.LazyFrame:
    """Decimals as the numbers that they are: whole ones stay so, others become float64."""
    scales = {name: kind.scale for name, kind in schema_of(frame, table).items() if isinstance(kind, pl.Decimal)}
    return frame.with_columns(pl.col(name).cast(pl.Float64 if scale else pl.Int128) for name, scale in scales.items())


def _without_missing(frame: pl.LazyFrame, table: Table) -> pl.LazyFrame:
    """Fields that stand for no value as null whatever is read of them, as they are in a csv."""
    numbers = [float(text) for text in table.missing if NUMBER.fullmatch(text)]
    changed = []
    for name, kind in schema_of(frame, table).items() if table.missing else ():
        field = pl.col(name)
        if kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date):
            changed.append(pl.when(~field.cast(pl.String).is_in(table.missing)).then(field))
        elif kind.is_float() and numbers:
            changed.append(pl.when(~field.is_in(numbers)).then(field))
    return frame.with_columns(changed)


def _scan_json(files: list[Path], table: Table) -> pl.LazyFrame:
    """JSON lines, whole numbers and what the first lines leave open as texts: a later line may have a letter there.

    Numbers with a fraction are read from texts, too, since polars then names the column of one that is none.
    """
    kinds = schema_of(pl.scan_ndjson(files, infer_schema_length=FIRST_LINES), table)
    texts: dict[str, pl.DataType] = {}
    for name, kind in kinds.items():
        of_list = isinstance(kind, pl.List)
        inner = kind.inner if of_list else kind  # type: ignore[attr-defined]
        if inner.is_integer() or inner == pl.Null:
            texts[name] = pl.List(pl.String) if of_list else pl.String()
    fractions = [name for name, kind in kinds.items() if kind.is_float()]
    texts.update(dict.fromkeys(fractions, pl.String()))
    frame = pl.scan_ndjson(files, infer_schema_length=FIRST_LINES, schema_overrides=texts)
    return frame.with_columns(pl.col(name).cast(kinds[name]) for name in fractions)


def _unmarked(path: Path, table: Table, target: Path) -> Path:
    """The file, or a copy of one with a byte order mark, without it and unpacked."""
    with explained(table), pa.input_stream(path) as source:
        if source.read(len(MARK)) != MARK:
            return path
        with open(target.with_suffix(".jsonl"), "wb") as out:
            while block := source.read(BLOCK):
                out.write(block)
    return target.with_suffix(".jsonl")


def _split_lines(files: list[Path], separator: str, table: Table) -> pl.LazyFrame:
    """What polars' reader does not take: a separator of several characters, as `::`, or a last column that has any."""
    if table.columns is None:
        raise UserError(f"{_shown(table)}: a separator of several characters, and rest, need columns, the names of all")
    lines = pl.scan_csv(files, separator=UNUSED, has_header=False, quote_char=None, infer_schema_length=0, glob=False)
    [line] = schema_of(lines, table).names()
    missing = ["", *table.missing]
    if table.rest:
        fields = pl.col(line).str.splitn(separator, len(table.columns)).struct
        columns = [fields.field(f"field_{at}").alias(name) for at, name in enumerate(table.columns)]
    else:
        _refuse_more_fields(lines, separator, table)
        parts = pl.col(line).str.split(separator).list
        columns = [parts.get(at, null_on_oob=True).alias(name) for at, name in enumerate(table.columns)]
    split = lines.select(columns)
    return split.with_columns(pl.when(~pl.all().is_in(missing)).then(pl.all()))


def _refuse_more_fields(lines: pl.LazyFrame, separator: str, table: Table) -> None:
    """Refuse lines of more fields than columns are named, as polars' reader does; an empty one at the end is none."""
    [line] = schema_of(lines, table).names()
    fields = pl.col(line).str.strip_suffix(separator).str.count_matches(separator, literal=True) + 1
    found = collect(lines.select(fields), table).to_series()
    columns = table.columns or []
    more = found > len(columns)
    if more.any():
        row = int(more.arg_max() or 0)
        raise UserError(
            f"{_shown(table)}: has {found[row]} fields in row {row}, columns names {len(columns)}: "
            f"{', '.join(columns)}; name all of them, or set rest where the last one may have the separator in it"
        )


def _as_utf8(path: Path, encoding: str, target: Path) -> Path:
    """A copy of a file in UTF-8."""
    if path.suffix in COMPRESSED:
        raise UserError(f"{path}: is compressed and not in UTF-8; unpack it first")
    try:
        with (
            open(path, encoding=encoding, newline="") as source,
            open(target, "w", encoding="utf-8", newline="") as out,
        ):
            while block := source.read(BLOCK):
                out.write(block)
    except UnicodeError as error:
        raise UserError(f"{path}: is not {encoding} text ({error}); set encoding to another one") from error
    except OSError as error:
        raise explain_os_error(error, os.fspath(path), "read") from error
    return target

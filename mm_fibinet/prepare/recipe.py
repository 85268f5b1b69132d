"""What is to be made of a log: the recipe, from a YAML file, from options of the command line, or from both.

A recipe is one flat mapping, and an option `--title` is its setting `title`. It names files and columns and says what a
label is; nothing in it is evaluated. `label: rating >= 4` is read as a column, an operator and a value.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from mm_fibinet import setting_types as types
from mm_fibinet.errors import UserError
from mm_fibinet.names import expected_one_of
from mm_fibinet.settings_fields import Strict
from mm_fibinet.settings_schema import field_names
from mm_fibinet.yaml_reader import read_yaml, shown

FORMATS = ("csv", "tsv", "jsonl", "parquet")
ENCODINGS = ("utf-8", "latin-1", "cp1252", "utf-16", "gb18030", "big5", "shift_jis", "euc-kr")
SPLITS = ("train", "valid", "test")
NONE = "none"  # what an option says for null
WHOLE = "log"  # the key of interactions that are yet to be split
COLUMN = r"(?P<column>[^<>=!\[\]]+?)(?:\[(?P<index>[0-9]{1,6})\])?"
COLUMNS_OF = {  # what an option that leaves a table out of a recipe leaves out with it
    "items": (
        "title", "tags", "tag_separator", "tag_flags", "max_tags", "description", "item_features", "item_categorical",
        "all_items",
    ),
    "users": ("test_users", "user_key", "user_history", "user_features", "user_categorical"),
    "embeddings": ("embedding", "embedding_scale"),
    "images": ("copy_images",),
}  # fmt: skip
LABEL = re.compile(rf"\s*{COLUMN}\s*(?:(?P<operator>>=|<=|==|!=|>|<)\s*(?P<value>\S.*?))?\s*")
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def _as_files(value: Any) -> Any:
    """A path, or several, as the mapping that they are short for."""
    return {"files": value} if isinstance(value, str | list) else value


def _as_optional_files(value: Any) -> Any:
    """The same of a table that an option may leave out of a recipe by the word NONE."""
    return None if _is_none(value) else _as_files(value)


def _is_none(value: Any) -> bool:
    return value in (NONE, [NONE])


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_splits(value: Any) -> Any:
    """One table, as that of the key WHOLE; the tables of splits, each as a mapping."""
    value = _as_files(value)
    if not isinstance(value, dict):
        return value
    return {WHOLE: value} if "files" in value else {split: _as_files(table) for split, table in value.items()}


Columns = Annotated[
    list[types.Column], BeforeValidator(_as_list), Field(max_length=10_000, description="a list of names of columns")
]
Separator = Annotated[str, Field(min_length=1, max_length=20, description="a text of one or more characters")]
Amount = Annotated[float, Field(gt=0, lt=1, description="a share, a number between 0 and 1")]


class Table(Strict):
    """Where rows come from; a path, or a list of paths, stands for a table whose `files` they are.

    Attributes:
        files: files, or folders of such; .gz and .zst are read as they are.
        format: one of FORMATS; left out, the files' names tell it.
        separator: of a csv; may have several characters, and then nothing is quoted.
        columns: names, for files without a header line.
        encoding: of a csv.
        quoted: whether a field of a csv may stand in quotation marks.
        missing: texts, or numbers as texts, that stand for no value, beside the empty text.
        rest: whether the last column is all the rest of the line, as it is, separators and quotation marks included.
    """

    files: Annotated[
        list[types.Path],
        BeforeValidator(_as_list),
        Field(min_length=1, max_length=100_000, description="a path, or a list of paths"),
    ]
    format: Annotated[Literal[FORMATS] | None, Field(description=types.one_of_text(FORMATS))] = None  # type: ignore[valid-type]
    separator: Annotated[Separator | None, Field(description="a text of one or more characters")] = None
    columns: Annotated[Columns | None, Field(description="a list of names, one for each column")] = None
    encoding: Annotated[str, types.one_of(ENCODINGS)] = "utf-8"
    quoted: types.Flag = True
    missing: Annotated[list[str], Field(max_length=100, description="a list of texts")] = Field(default_factory=list)
    rest: types.Flag = False


OptionalTable = Annotated[
    Table | None,
    BeforeValidator(_as_optional_files),
    Field(description="files, or a mapping with files, or null"),
]


class Recipe(Strict):
    """The settings of build_dataset.py; docs/own-data.md describes them."""

    name: Annotated[types.Text | None, Field(description="the data set's name, or null: that of the folder")] = None
    data_root: types.Path = "."

    interactions: Annotated[
        dict[Literal["log", "train", "valid", "test"], Table],
        BeforeValidator(_as_splits),
        Field(min_length=1, description="files, or a mapping with files, or one of train, valid and test to files"),
    ]
    user: types.Column = "user_id"
    item: types.Column = "item_id"
    timestamp: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    label: Annotated[types.Text | None, Field(description="a column, or as `rating >= 4`, or null: all clicked")] = None
    rating: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    features: Columns = Field(default_factory=list)
    categorical: Columns = Field(default_factory=list)
    impressions: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    history: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    list_separator: Separator = " "

    items: OptionalTable = None
    item_key: Annotated[types.Column | None, Field(description="the name of a column, or null: that of item")] = None
    title: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    tags: Columns = Field(default_factory=list)
    tag_separator: Separator = "|"
    tag_flags: Columns = Field(default_factory=list)
    max_tags: types.Width = 5
    description: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    item_features: Columns = Field(default_factory=list)
    item_categorical: Columns = Field(default_factory=list)
    all_items: types.Flag = False
    images: Annotated[
        types.Path | None,
        BeforeValidator(lambda value: None if _is_none(value) else value),
        Field(description="a folder, a .zip, .tar or .rar, or null"),
    ] = None
    copy_images: types.Flag = False
    embeddings: OptionalTable = None
    embedding: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    embedding_scale: Annotated[float, Field(gt=0, lt=1e9, description="a number above 0")] = 1.0

    users: OptionalTable = None
    test_users: OptionalTable = None
    user_key: Annotated[types.Column | None, Field(description="the name of a column, or null: that of user")] = None
    user_history: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    user_features: Columns = Field(default_factory=list)
    user_categorical: Columns = Field(default_factory=list)

    split: Annotated[
        types.Text, Field(min_length=1, description="time, leave_last_out, random, or the name of a column")
    ] = "time"
    valid: Amount = 0.1
    test: Amount = 0.1
    negatives: Annotated[int | None, Field(ge=0, le=1_000, description="a whole number from 0 to 1000, or null")] = None
    sampling: Annotated[str, types.one_of(("uniform", "popularity"))] = "uniform"
    max_len: types.Width = 64
    frozen_histories: types.Flag = False
    user_info: types.Flag = False
    seed: types.Seed = 2025


@dataclass(frozen=True)
class Label:
    """A label as a recipe states it.

    Attributes:
        column: its column.
        index: the element of a list, where the column holds lists; else None.
        operator: a comparison; None where the column holds the label itself.
        value: what is compared with, a number or a text.
    """

    column: str
    index: int | None = None
    operator: str | None = None
    value: float | str | None = None


def parse_label(text: str) -> Label:
    """Read `clicked`, `clicks[1]`, `rating >= 4` or `event == purchase`; nothing is evaluated.

    Raises:
        UserError: it is none of these.
    """
    found = LABEL.fullmatch(text)
    if not found:
        raise UserError(f"label is {shown(text)}, expected a column, or a comparison like rating >= 4")
    index, operator, given = found["index"], found["operator"], found["value"]
    value: float | str | None = given
    if given is not None and NUMBER.fullmatch(given):
        value = float(given)
    elif operator not in (None, "==", "!="):
        raise UserError(f"label is {shown(text)}: {operator} takes a number, found {shown(given)}")
    elif given is not None and given[0] == given[-1] and given[0] in "'\"" and len(given) > 1:
        value = given[1:-1]
    return Label(found["column"], None if index is None else int(index), operator, value)


def load_recipe(path: str | FilePath | None, options: dict[str, Any]) -> Recipe:
    """A recipe from its file with the options that are given in place of the file's settings.

    Args:
        path: a YAML file, or None for options alone.
        options: {setting: value}; None is not given, NONE for a table or images leaves it out, with its columns.

    Raises:
        UserError: a setting that there is none of, a value that does not fit, or two that contradict each other.
    """
    content = read_yaml(path) if path is not None else {}
    given = {name: value for name, value in options.items() if value is not None}

    def where(name: str) -> str:
        return "" if name in given or path is None else f"{path}: "

    def option(name: str) -> str:
        return f"--{name}" if name in given or path is None else name

    left_out = [column for table, columns in COLUMNS_OF.items() if _is_none(given.get(table)) for column in columns]
    content = {name: value for name, value in content.items() if name not in left_out} | given
    names = field_names(Recipe)
    for name in content:
        if name not in names:
            raise UserError(f"{where(name)}{name[:80]}: unknown setting, {expected_one_of(name, names)}")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name, *inside = map(str, problem["loc"])
        if problem["type"] == "missing" and not inside:
            raise UserError(f"{where(name)}{option(name)} is not set, expected {names[name]}") from error
        part = " ".join(part for part in inside if part in (*SPLITS, *Table.model_fields))
        expected = field_names(Table).get(inside[-1] if inside else "", names[name])
        if problem["type"] == "extra_forbidden":
            expected = f"no {inside[-1]}, only {', '.join(Table.model_fields)}"
        found = shown(problem["input"] if part else content[name])
        raise UserError(
            f"{where(name)}{option(name)}{' ' * bool(part)}{part} is {found}, expected {expected}"
        ) from error
    _check_together(recipe, where)
    changed = given.keys() - {"name", "data_root", "seed"}
    for name, read in _needs(recipe).items():
        idle = read is not None and getattr(recipe, name) != Recipe.model_fields[name].default
        if idle and (name in given or path is None or not changed):  # a file's may be idle by an option
            raise UserError(f"{where(name)}{option(name)} is set, which is read {read}; leave it out")
    return recipe


def _check_together(recipe: Recipe, where: Any) -> None:
    """Refuse settings that contradict each other."""

    def refuse(name: str, message: str) -> None:
        raise UserError(f"{where(name)}{message}")

    parts = recipe.interactions.keys()
    if parts != {WHOLE} and not {"train", "test"} <= parts:
        refuse("interactions", f"interactions has {', '.join(parts)}, expected files, or train, test and perhaps valid")
    if recipe.label is not None:
        parse_label(recipe.label)
    if not (recipe.timestamp or recipe.history or recipe.user_history):
        refuse("timestamp", "timestamp is not set: name the column, or one that has histories (history, user_history)")
    if recipe.history and recipe.user_history:
        refuse("history", "history and user_history are both set, expected one of them")
    if recipe.history and recipe.user_info:
        refuse("user_info", "user_info and history are both set: rows have their own; name users with a user_history")
    if parts == {WHOLE} and recipe.split in ("time", "leave_last_out") and not recipe.timestamp:
        refuse("split", f"split: {recipe.split} needs a timestamp; name its column, or split: random")
    if recipe.valid + recipe.test >= 1:
        refuse("test", f"valid and test are {recipe.valid:g} and {recipe.test:g}, expected less than 1 together")
    if recipe.user_history and recipe.users is None:
        refuse("user_history", "user_history is set, expected users, the files that have this column")
    if (recipe.user_features or recipe.user_categorical) and recipe.users is None:
        refuse("user_features", "user_features are set, expected users, the files that have these columns")
    if recipe.test_users is not None and not (recipe.user_history and "test" in parts and not recipe.negatives):
        refuse("test_users", "test_users are set, expected user_history, interactions of train and test, no negatives")
    if (recipe.embeddings is None) != (recipe.embedding is None):
        refuse("embedding", "embeddings, the files, and embedding, their column, go together; set both or neither")
    for name in ("title", "tags", "tag_flags", "description", "item_features", "item_categorical"):
        if getattr(recipe, name) and recipe.items is None:
            refuse(name, f"{name} is set, expected items, the files that have this column")
    _check_leaks(recipe, refuse)
    if recipe.impressions and recipe.label is not None:
        refuse("label", "label and impressions are both set: impressions hold the labels (ID-1 ID-0)")


def _check_leaks(recipe: Recipe, refuse: Callable[[str, str], None]) -> None:
    """Refuse features of a row that are what its label is made of."""
    label = parse_label(recipe.label).column if recipe.label is not None else None
    for kind in ("features", "categorical"):
        for name in getattr(recipe, kind):
            if name == label:
                refuse(kind, f"{kind} has {name}, which the label is made of: the model would read it; leave it out")
            if name == recipe.rating:
                refuse(kind, f"{kind} has {name}, the row's rating, which comes after the click; leave it out")


def _needs(recipe: Recipe) -> dict[str, str | None]:
    """{setting: when it is read}, None where it is."""
    whole = recipe.interactions.keys() == {WHOLE}
    drawn = recipe.negatives if recipe.negatives is not None else recipe.label is None and not recipe.impressions
    shares = whole and recipe.split in ("time", "random")
    given = recipe.history or recipe.user_history
    return {
        "split": None if whole else "of one log: the splits are given",
        "valid": None if shares or (not whole and "valid" not in recipe.interactions) else "where a share is split off",
        "test": None if shares else "where a share is split off, by time or at random",
        "sampling": None if drawn else "where negatives are drawn",
        "frozen_histories": "where histories are those of the log" if given else None,
        "list_separator": None if given or recipe.impressions else "with history, user_history or impressions",
        "tag_separator": None if recipe.tags else "with tags",
        "max_tags": None if recipe.tags or recipe.tag_flags else "with tags or tag_flags",
        "all_items": None if recipe.items is not None else "with items",
        "user_key": None if recipe.users is not None else "with users",
        "embedding_scale": None if recipe.embeddings is not None else "with embeddings",
        "copy_images": None if recipe.images is not None else "with images",
    }

"""Is the data as every command needs it? File by file, as a table: what it has, and all that is wrong.

    python -m mm_fibinet.data_check check FOLDER
    python -m mm_fibinet.data_check check --config config/ --expid FiBiNET_demo

The checks are those of training and prediction: the same functions read the files, so what passes here loads there, and
what is refused here is refused there in the same words. A folder is checked as a data set of the contract, with the
features that its columns suggest; with --dataset_id or --expid the entry of the config says which files and features.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet import schema, user_info
from mm_fibinet.errors import EXIT_USER_ERROR, UserError, explain_os_error, printable, run_cli
from mm_fibinet.feature_map import build_feature_map, label_names
from mm_fibinet.files import walk
from mm_fibinet.options import add_check_arguments, require_one_subject
from mm_fibinet.parquet_reader import RowError, exists, is_list, is_number_list, list_width, open_parquet
from mm_fibinet.settings_rules import refuse_module_names
from mm_fibinet.user_info import USER_ID, Users

LEVEL_SIZE = 11  # likes_level and views_level are 0..10
SPLITS = {"train_data": "train.parquet", "valid_data": "valid.parquet", "test_data": "test.parquet"}
ITEM_INFO = "item_info.parquet"
ITEM_FEATURE = "item_feature.parquet"
USER_INFO = "user_info.parquet"
IMAGES = "item_images"
SHOWN = 20  # problems of a file


@dataclass
class Row:
    """What was found about one file.

    Attributes:
        name: of the file.
        path: None for what is no single file.
        content: what it has.
        problems: all that is wrong, each once.
        absent: there is no such file, and none is needed.
    """

    name: str
    path: str | Path | None = None
    content: str = ""
    problems: list[str] = field(default_factory=list)
    absent: bool = False

    @property
    def verdict(self) -> list[str]:
        """The lines of the table's last column."""
        hidden = len(self.problems) - SHOWN
        lines = self.problems[:SHOWN] + ([f"and {hidden} more"] if hidden > 0 else [])
        return lines or ["absent" if self.absent else "ok"]


class Problems:
    """Faults as readers come upon them, each kind once, with the number of its rows."""

    def __init__(self):
        self._found: dict[object, tuple[str, dict[int, int]]] = {}  # {kind: (text, {slice: rows})}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a `UserError` instead of letting it end the check."""
        try:
            yield
        except UserError as error:
            kind = error.kind if isinstance(error, RowError) else str(error)
            _, slices = self._found.setdefault(kind, (str(error), {}))
            if isinstance(error, RowError):
                slices[error.first_row] = error.rows  # a slice that is read twice counts once

    def of(self, path: str | Path) -> list[str]:
        """Take out the problems of a file, its name left out."""
        start, unreadable = f"{path}: ", f"cannot read {path}: "
        found = self.take(lambda text: text.startswith((start, unreadable)))
        return [text.removeprefix(start).replace(unreadable, "cannot be read: ", 1) for text in found]

    def take(self, wanted: Callable[[str], bool] = lambda text: True) -> list[str]:
        """Take out the problems whose text is wanted."""
        kinds = [kind for kind, (text, _) in self._found.items() if wanted(text)]
        taken = [self._found.pop(kind) for kind in kinds]
        counted = [(text, sum(slices.values())) for text, slices in taken]
        return [text if rows < 2 else f"{text} (and {rows - 1:,} more like it)" for text, rows in counted]


def check_folder(folder: str | Path) -> list[Row]:
    """Check the files of the contract that a folder has; those that it lacks are said to be absent.

    Args:
        folder: holds train.parquet and its kin, or a folder with them; item_feature.parquet and item_images may be
            here or one level up.

    Raises:
        UserError: there is no data here at all.
    """
    folder = _splits_folder(Path(folder))
    params: dict = {key: folder / name for key, name in {**SPLITS, "item_info": ITEM_INFO}.items()}
    params["item_feature"] = _beside(folder, ITEM_FEATURE)
    has_users = exists(folder / USER_INFO) and schema.ITEM_SEQ not in _column_names(params)
    params["user_info"] = folder / USER_INFO if has_users else None
    params.update(dataset_id=folder.name, folder=folder)
    params["feature_cols"] = _usual_columns(params)
    params["group_id"] = _usual_group(params)
    return [*check_dataset(params), _images(_beside(folder, IMAGES))]


def check_dataset(params: dict) -> list[Row]:
    """Check the files that a data set's entry names, against its features.

    Args:
        params: of a data set's config, and of an experiment's where one is given. The splits and item_info that it
            names must be there, unless it came about from a `folder`.
    """
    problems = Problems()
    flat = not params.get("item_info")  # FuxiCTR's own data: columns of the row, no history
    named = (*SPLITS, "item_info", "user_info")
    required = [] if "folder" in params else [key for key in named if params.get(key)]
    rows = {}
    of_users = {"user_info": USER_INFO} if params.get("user_info") else {}
    for key, name in {"item_info": ITEM_INFO, **of_users, **SPLITS, "item_feature": ITEM_FEATURE}.items():
        path = params.get(key)
        rows[key] = Row(name if path is None or "folder" in params else str(path), path)
        rows[key].absent = path is None or (key not in required and not _is_there(path, problems))
    columns = Row("feature_cols")
    feature_map = None
    with problems.noted():
        feature_map = build_feature_map({**params, **_without_absent(rows)}, problems.noted)
        if flat and schema.ITEM_SEQ in feature_map.features:
            raise UserError("item_info is not set, expected the path of item_info.parquet")
        fields = [name for name, spec in feature_map.features.items() if spec["type"] != "meta"]
        columns.content = f"{len(fields)} features: {', '.join(fields)}"
        if "folder" not in params:  # whose features are a guess
            refuse_module_names(dict.fromkeys(fields, "field"), "feature_cols")
    features = feature_map.features if feature_map else {}
    num_items = None
    if not rows["item_info"].absent and params.get("item_info"):
        with problems.noted():
            num_items = open_parquet(params["item_info"]).num_rows
            rows["item_info"].content = _check_items(params, features, rows, problems)
    users = None
    if "user_info" in rows and not rows["user_info"].absent:
        rows["user_info"].content, users = _check_users(params["user_info"], features, num_items, problems)
    for key in SPLITS:
        if not rows[key].absent:
            with problems.noted():
                rows[key].content = _check_split(key, params, features, num_items, users, problems, flat)
    if not rows["item_feature"].absent:
        with problems.noted():
            rows["item_feature"].content = _describe_item_feature(params["item_feature"])
    for row in rows.values():
        row.problems = problems.of(row.path) if row.path is not None and not row.absent else []
    columns.problems = problems.take()
    return [*rows.values(), columns]


def _check_items(params: dict, features: dict[str, dict], rows: dict[str, Row], problems: Problems) -> str:
    """The item table as training loads it; returns what item_info has."""
    from mm_fibinet.item_table import item_side_features, load_item_table  # which loads torch

    path = params["item_info"]
    level_file = None if rows["item_feature"].absent else params.get("item_feature")
    with problems.noted():
        of_items = item_side_features(features, bool(params.get("history_levels", False)))
        load_item_table(path, of_items, level_file, problems.noted)
    opened = open_parquet(path)
    shown = []
    for column in opened.schema_arrow:
        width = ""
        if is_number_list(column.type):
            with problems.noted():
                width = f"[{list_width(path, column.name)}]"
        shown += [f"{column.name}{width}"] if column.name != schema.ITEM_ID else []
    return f"{opened.num_rows:,} items: {', '.join(shown)}"


def _check_users(
    path: str | Path, features: dict[str, dict], num_items: int | None, problems: Problems
) -> tuple[str, Users]:
    """The users as training reads them; returns what user_info has, and what the splits are checked against."""
    lengths, own = None, {name: spec for name, spec in features.items() if spec.get("source") == "user"}
    with problems.noted():
        own = user_info.user_features(path, features)
        slices = [users.lengths for users in user_info.user_slices(path, own, num_items, problems.noted)]
        lengths = np.concatenate(slices)
    content = ""
    if lengths is not None and lengths.max() < user_info.UNKNOWN_LENGTH:
        content = (
            f"{len(lengths):,} users: histories of {lengths.min()} to {lengths.max()}, {lengths.mean():.1f} on average"
        )
        content += "".join(f", {name}" for name in own)
    return content, Users(lengths, frozenset(own))


def _check_split(
    key: str,
    params: dict,
    features: dict[str, dict],
    num_items: int | None,
    users: Users | None,
    problems: Problems,
    flat: bool = False,
) -> str:
    """One split as training or prediction reads it; returns what it has."""
    path, is_test = params[key], key == "test_data"
    opened = open_parquet(path)
    present = opened.schema_arrow.names
    labels, group = label_names(params), params.get("group_id")
    if is_test:
        with problems.noted():
            schema.read_test_ids(path)
        labels = []
        group = group if group in present else None
    if users:
        columns = user_info.row_columns(path, features, labels, num_items, group, users)
        slices = user_info.checked_rows(path, columns, users, problems.noted)
    else:
        columns = schema.split_columns(features, labels, num_items, group, flat)
        slices = schema.checked_slices(path, columns, problems.noted)
    width, positives, complete = None, 0.0, bool(labels)
    for _, blocks in slices:
        width = blocks[schema.ITEM_SEQ].shape[1] if schema.ITEM_SEQ in blocks else width
        complete = complete and labels[0] in blocks
        positives += blocks[labels[0]].sum() if complete else 0
    if key == "valid_data" and complete and positives in (0, opened.num_rows) and "AUC" in params.get("monitor", "AUC"):
        with problems.noted():
            raise UserError(
                f"{path}: AUC is not defined: all {opened.num_rows} labels are the same, expected both 0 and 1"
            )
    said = [f"{opened.num_rows:,} rows"]
    said += [f"histories of {width}"] if width is not None else []
    said += [f"mean label {positives / opened.num_rows:.3f}"] if complete else []
    said += ["no levels"] if not flat and not any(level in present for level in schema.LEVELS) else []
    return ", ".join(said)


def _describe_item_feature(path: str | Path) -> str:
    """What item_feature has; its ids and levels were checked with the features."""
    opened = open_parquet(path)
    names = [name for name in opened.schema_arrow.names if name != schema.ITEM_ID]
    levels = "" if any(level in names for level in schema.LEVELS) else "; no levels"
    return f"{opened.num_rows:,} items: {', '.join(names)}{levels}"


def _usual_columns(params: dict) -> list[dict]:
    """feature_cols for a folder without a config: the contract's columns, where they are there."""
    names = _column_names(params)
    columns: list[dict] = [{"name": USER_ID, "type": "meta"}, {"name": schema.ITEM_SEQ, "type": "meta"}]
    columns += [
        {"name": level, "type": "categorical", "vocab_size": LEVEL_SIZE} for level in schema.LEVELS if level in names
    ]
    with contextlib.suppress(UserError):  # it is reported when the file is checked
        found = open_parquet(params["item_info"]).schema_arrow
        columns.append({"name": schema.ITEM_ID, "type": "categorical", "source": "item"})
        for column in found:
            if is_list(column.type) and pa.types.is_floating(column.type.value_type):
                columns.append({"name": column.name, "type": "embedding", "source": "item"})
            elif column.name == "item_tags":
                columns.append({"name": column.name, "type": "sequence", "source": "item"})
    return columns


def _usual_group(params: dict) -> str | None:
    """The column that experiments group by for gAUC, where it is there."""
    return USER_ID if USER_ID in _column_names(params) else None


def _column_names(params: dict) -> list[str]:
    """The columns of the first split that can be opened."""
    for key in [key for key in SPLITS if params.get(key)]:
        with contextlib.suppress(UserError):
            return open_parquet(params[key]).schema_arrow.names
    return []


def _without_absent(rows: dict[str, Row]) -> dict[str, None]:
    return {key: None for key, row in rows.items() if row.absent}


def _is_there(path: str | Path, problems: Problems) -> bool:
    with problems.noted():
        return exists(path)
    return True  # what cannot even be looked at is reported


def _splits_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one that holds train.parquet")
    known = (*SPLITS.values(), ITEM_INFO)
    for candidate in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if any((candidate / name).exists() for name in known):
            return candidate
    raise UserError(f"{folder}: holds none of {', '.join(known)}, nor does a folder in it")


def _beside(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).exists() else folder.parent / name


def _images(folder: Path) -> Row:
    row = Row(f"{IMAGES}/", folder)
    if not folder.is_dir():
        row.absent = True
        return row
    failed: list[OSError] = []
    names = [name for _, _, names in walk(folder, failed.append) for name in names]  # as build_item_emb.py reads them
    count = sum(1 for name in names if Path(name).suffix.lower() in schema.IMAGE_SUFFIXES)
    row.content = f"{count:,} images"
    row.problems = [str(explain_os_error(error, error.filename, "read")) for error in failed]
    row.problems += [] if count or failed else ["no images in it"]
    return row


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.data_check", description="Check challenge data.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check every file of a data set and print a table")
    add_check_arguments(check)
    args = parser.parse_args()
    require_one_subject(check, args)
    return args


def load_entry(config: str | Path, dataset_id: str | None, expid: str | None) -> dict:
    """A data set's entry, under an experiment's settings where one is named."""
    from mm_fibinet import settings  # a folder is checked, and help given, without
    from mm_fibinet.settings_fields import DatasetEntry
    from mm_fibinet.settings_schema import validate

    experiment = settings.load_model_config(Path(config), expid) if expid else {}
    entry = settings.load_dataset_config(Path(config), dataset_id or experiment["dataset_id"])
    where = f"dataset {entry['dataset_id']}"
    validate({key: value for key, value in entry.items() if key != "dataset_id"}, DatasetEntry, lambda _: where)
    return {**({} if expid else {"group_id": _usual_group(entry)}), **experiment, **entry}


def main() -> int:
    """The command line."""
    return report(parse_arguments())


def report(args: argparse.Namespace, defaults: dict[str, object] | None = None) -> int:
    """Print what is there and what is wrong with it; the exit code, 2 when something is.

    Args:
        args: of `options.add_check_arguments`.
        defaults: settings that count where neither the experiment nor the data set's entry has them.
    """
    if args.folder:
        rows = check_folder(args.folder)
    else:
        rows = check_dataset({**(defaults or {}), **load_entry(args.config, args.dataset_id, args.expid)})
    table = [(printable(row.name), printable(row.content), row.verdict) for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(2)]
    for name, content, verdict in [("file", "has", ["check"]), *table]:
        for number, problem in enumerate(verdict):
            cells = (name, content) if number == 0 else ("", "")
            print(f"{cells[0]:<{widths[0]}}  {cells[1]:<{widths[1]}}  {printable(problem)}")
    return EXIT_USER_ERROR if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    run_cli(main)

"""`python -m mm_fibinet.data_check check FOLDER`: a data folder, file by file, as a table: what it has, what is wrong.

The checks are those of training: the same functions read the files, so what passes here loads there.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import EXIT_USER_ERROR, UserError, run_cli

LEVEL_SIZE = 11  # likes_level and views_level are 0..10
SPLITS = ("train.parquet", "valid.parquet", "test.parquet")
ITEM_INFO = "item_info.parquet"
ITEM_FEATURE = "item_feature.parquet"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def main() -> int:
    """The command line; returns 2 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.data_check", description="Check challenge data.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check every file of a data folder and print a table")
    check.add_argument("folder", metavar="FOLDER", help="the folder with train.parquet, or the one above it")
    rows = check_folder(parser.parse_args().folder)
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, content, verdict in [("file", "has", "check"), *rows]:
        print(f"{name:<{widths[0]}}  {content:<{widths[1]}}  {verdict}")
    return EXIT_USER_ERROR if any(verdict != "ok" and verdict != "absent" for *_, verdict in rows) else 0


def check_folder(folder: str | Path) -> list[tuple[str, str, str]]:
    """Check the files of the contract that a folder has.

    Args:
        folder: holds train.parquet and its kin, or a folder with them; item_feature.parquet and item_images may be
            here or one level up.

    Returns:
        one (file, what it has, "ok", "absent" or what is wrong) a file.

    Raises:
        UserError: there is no data here at all.
    """
    folder = _splits_folder(Path(folder))
    rows, num_items = [], None
    path = folder / ITEM_INFO
    content, verdict = _examine(path, lambda: _check_item_info(path))
    if verdict == "ok":
        num_items = schema.open_parquet(path).metadata.num_rows
    rows.append((ITEM_INFO, content, verdict))
    for name in SPLITS:
        rows.append((name, *_examine(folder / name, lambda name=name: _check_split(folder / name, num_items))))
    feature = _beside(folder, ITEM_FEATURE)
    rows.append((ITEM_FEATURE, *_examine(feature, lambda: _check_item_feature(feature, num_items))))
    images = _beside(folder, "item_images")
    if images.is_dir():
        count = sum(1 for entry in images.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        rows.append(("item_images/", f"{count} images", "ok" if count else "no images in it"))
    else:
        rows.append(("item_images/", "", "absent"))
    return rows


def _splits_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one that holds train.parquet")
    known = (*SPLITS, ITEM_INFO)
    for candidate in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if any((candidate / name).exists() for name in known):
            return candidate
    raise UserError(f"{folder}: holds none of {', '.join(known)}, nor does a folder in it")


def _beside(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).exists() else folder.parent / name


def _examine(path: Path, check: Callable[[], str]) -> tuple[str, str]:
    if not path.exists():
        return "", "absent"
    try:
        return check(), "ok"
    except UserError as error:
        return "", str(error).removeprefix(f"{path}: ")


def _check_item_info(path: Path) -> str:
    table = schema.read_item_info(path)
    shown = []
    for field in table.schema:
        if field.name == schema.ITEM_ID:
            continue
        values = schema.whole_column(table, field.name)
        width = ""
        if "list" in str(field.type):
            integer = pa.types.is_integer(field.type.value_type)
            width = f"[{schema.matrix(values, path, field.name, integer=integer).shape[1]}]"
        shown.append(f"{field.name}{width}")
    return f"{table.num_rows:,} items: {', '.join(shown)}"


def _check_split(path: Path, num_items: int | None) -> str:
    """Check one split slice by slice; returns what it has."""
    is_test = path.name == "test.parquet"
    columns = ["user_id", schema.ITEM_SEQ, schema.ITEM_ID, "likes_level", "views_level"]
    columns += [schema.TEST_ID] if is_test else ["label"]
    rows, positives, width = 0, 0.0, None
    for first, arrays in schema.read_slices(path, columns):
        history = schema.matrix(arrays[schema.ITEM_SEQ], path, schema.ITEM_SEQ, first, width)
        width = history.shape[1]
        target = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first)
        limit = (num_items, "items in item_info") if num_items else (2**31, "the int32 range")
        schema.require_range(history, path, schema.ITEM_SEQ, limit[0], first, limit[1])
        schema.require_range(target, path, schema.ITEM_ID, limit[0], first, limit[1])
        schema.require_targets(target, path, first)
        schema.require_padding_in_front(history, path, first)
        for level in ("likes_level", "views_level"):
            values = schema.scalars(arrays[level], path, level, first)
            schema.require_range(values, path, level, LEVEL_SIZE, first)
        schema.scalars(arrays["user_id"], path, "user_id", first)
        if not is_test:
            labels = schema.scalars(arrays["label"], path, "label", first, integer=False)
            schema.require_binary(labels, path, "label", first)
            positives += labels.sum()
        rows += len(target)
    if is_test:
        schema.read_test_ids(path)
        return f"{rows:,} rows, histories of {width}"
    return f"{rows:,} rows, histories of {width}, mean label {positives / rows:.3f}"


def _check_item_feature(path: Path, num_items: int | None) -> str:
    rows, last = 0, num_items or 2**31
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID, "item_title", "item_tags"])
    for first, arrays in schema.read_slices(path, [schema.ITEM_ID]):
        ids = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first)
        schema.require_range(ids, path, schema.ITEM_ID, last, first, "items in item_info")
        rows += len(ids)
    return f"{rows:,} items: {', '.join(name for name in opened.schema_arrow.names if name != schema.ITEM_ID)}"


if __name__ == "__main__":
    run_cli(main)

"""Items that come after the export: encoded and put behind those of an exported model, without torch or a new export.

Ids go on where the table ends, as a data set's do when its catalogue grows. New items have no learned id; what the
model makes of their content it makes with the same weights, which asks for the same columns: an embedding that was
fitted anew puts the old items elsewhere too, and is refused for that.

`python -m mm_fibinet.new_items DIR --item_info GROWN --out NEW_DIR`
"""

import argparse
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.errors import UserError, first_line, printable, run_cli
from mm_fibinet.files import atomic_folder, require_output_folder
from mm_fibinet.parquet_reader import whole_column
from mm_fibinet.scorer import open_graph
from mm_fibinet.served_files import CARD, ENCODER, FILES, Card, ItemRows

ITEMS_AT_ONCE = 1 << 16
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-3, "int8": 1 / 127}  # of the largest number of a part: twice what a table rounds


def append_items(
    folder: str | Path, item_info: str | Path, out: str | Path, item_feature: str | Path | None = None
) -> range:
    """Write a folder with the items of another and those that came since.

    Args:
        folder: of export_onnx.py, or of this.
        item_info: item_info.parquet of the grown catalogue: the old items, unchanged, then the new ones.
        out: the folder to write; that of an earlier export is replaced.
        item_feature: item_feature.parquet, read for levels that item_info lacks.

    Returns:
        the new items' ids.

    Raises:
        UserError: there are none, the old ones have changed, or a file is not what it should be.
    """
    card = Card.read(folder)
    items = ItemRows.read(folder, card)
    require_output_folder(out, [folder, item_info, item_feature], FILES)
    if not card.item_features:
        raise UserError(
            f"{folder}: its model reads nothing of an item but its id; new items need one that reads content"
        )
    if ENCODER not in card.files:
        raise UserError(f"{folder}: has no {ENCODER}, which encodes items; export it again")
    columns, total = read_items(item_info, item_feature, card)
    if total <= card.num_items:
        raise UserError(f"{item_info}: has {total} items, {folder} has {card.num_items}, expected more of them")
    session = open_graph(Path(folder) / ENCODER, threads=1)
    require_same_items(items, card, session, columns, item_info)
    new = np.arange(card.num_items, total)
    beside = (columns[name][new].reshape(len(new), -1) for name in card.ids)
    ids = np.concatenate([np.zeros((len(new), 0), np.int32), *beside], axis=1)
    added = ItemRows.pack(encode(session, columns, new), ids, card.parts, card.item_table, card.num_items)
    with atomic_folder(out) as written:
        for name in (card.graph, ENCODER):
            shutil.copyfile(Path(folder) / name, written / name)
        items.followed_by(added).write(written)
        dataclasses.replace(card, num_items=total).write(written)
    return range(card.num_items, total)


def read_items(item_info: str | Path, item_feature: str | Path | None, card: Card) -> tuple[dict[str, np.ndarray], int]:
    """The columns that items are encoded from, {feature: [M] or [M, width]}, and M."""
    table = schema.read_item_info(item_info)
    columns = {}
    for name, spec in card.item_features.items():
        if name in table.column_names:
            columns[name] = schema.read_feature(whole_column(table, name), item_info, name, spec)
        elif item_feature is not None:
            columns[name] = schema.read_item_feature(item_feature, {name: spec}, table.num_rows)[name]
        else:
            raise UserError(
                f"{item_info}: column {name} is missing, found {', '.join(table.column_names)}; name the file that has "
                "it with --item_feature"
            )
    types = {"f": np.float32, "i": np.int32}
    return {
        name: values.astype(types.get(values.dtype.kind, np.int32)) for name, values in columns.items()
    }, table.num_rows


def encode(session, columns: dict[str, np.ndarray], items: np.ndarray) -> np.ndarray:
    """float32 [M, width], the rows of items [M].

    Raises:
        UserError: the graph reads something else, or a number of them is not finite.
    """
    names = [each.name for each in session.get_inputs()]
    strange = set(names).difference(columns)
    if strange:
        raise UserError(f"{ENCODER} reads {min(strange)}, which {CARD} does not have; export the model again")
    starts = range(0, len(items), ITEMS_AT_ONCE)
    parts = [items[start : start + ITEMS_AT_ONCE] for start in starts]
    try:
        rows = np.concatenate([session.run(None, {name: columns[name][part] for name in names})[0] for part in parts])
    except MemoryError:
        raise
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(
            f"{ENCODER} cannot encode what {CARD} has it read ({first_line(error)}); export the model again"
        ) from error
    strange = items[~np.isfinite(rows).all(axis=1)]
    if len(strange):
        raise UserError(f"{ENCODER} makes no finite numbers of item {strange[0]}; export the model again")
    return rows


def require_same_items(
    items: ItemRows, card: Card, session, columns: dict[str, np.ndarray], item_info: str | Path
) -> None:
    """A `UserError` when old items have another content than what was exported."""
    changed = {name: np.zeros(0, int) for name in (*card.parts, *card.ids)}
    for start in range(1, card.num_items, ITEMS_AT_ONCE):
        old = np.arange(start, min(start + ITEMS_AT_ONCE, card.num_items))
        for name, differ in differences(items, card, encode(session, columns, old), columns, old):
            changed[name] = np.union1d(changed[name], old[differ])  # a level is content and compared
    for name, which in changed.items():
        if len(which):
            raise UserError(
                f"{item_info}: item {which[0]} has another {name.removeprefix('unit ')} than at export, {len(which)} "
                f"of {card.num_items - 1} items have; new items need the columns that the old ones have, unchanged; "
                "or train anew"
            )


def differences(
    items: ItemRows, card: Card, now: np.ndarray, columns: dict[str, np.ndarray], old: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Each part of content, and each feature that is compared as integers, with where it differs: bool [M].

    What a modality gate has scaled depends on the item's id, too, which `now` is made without; but it scales by what is
    above zero, so that the signs are those of the content.
    """
    before, first, tolerance = items.take(old), 0, TOLERANCES[card.item_table]
    for name, width in card.parts.items():
        place, first = slice(first, first + width), first + width
        was, now_is = before[:, place], now[:, place]
        if name in card.of_content:
            yield name, ~(np.abs(was - now_is) <= _step(now_is, tolerance)).all(axis=1)
        elif name in card.item_features:
            signs = [np.sign(each) * (np.abs(each) > _step(each, tolerance)) for each in (was, now_is)]
            one_is_zero = signs[0].any(axis=1) != signs[1].any(axis=1)
            yield name, one_is_zero | (signs[0] * signs[1] < 0).any(axis=1)
    first = 0
    for name, width in card.ids.items():
        place, first = slice(first, first + width), first + width
        yield name, (items.ids[old, place] != columns[name][old].reshape(len(old), -1)).any(axis=1)


def _step(values: np.ndarray, tolerance: float) -> np.ndarray:
    """What rounding may change of each row's numbers: float [M, W] -> float [M, 1]."""
    return tolerance * np.abs(values).max(axis=1, initial=0, keepdims=True) + 1e-6


def main() -> None:
    """The command line."""
    prog = "python -m mm_fibinet.new_items"
    parser = argparse.ArgumentParser(prog=prog, description="Add items to an exported model.")
    parser.add_argument("folder", metavar="DIR", help="of export_onnx.py")
    parser.add_argument(
        "--item_info", required=True, metavar="FILE", help="of the grown catalogue: old items, then new"
    )
    parser.add_argument("--item_feature", metavar="FILE", help="read for levels that item_info lacks")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    args = parser.parse_args()
    new = append_items(args.folder, args.item_info, args.out, args.item_feature)
    print(printable(f"{args.out}: {len(new)} items more, {new.start} to {new.stop - 1}"))


if __name__ == "__main__":
    run_cli(main)

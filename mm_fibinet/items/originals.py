"""Covers by the ids that a log had, where item_info is by those that build_dataset.py gave: other items' covers."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from mm_fibinet.errors import UserError
from mm_fibinet.schema import ITEM_ID

REPORT, IMAGES, IDS = "report.json", "item_images", "ids.parquet"  # what build_dataset.py writes beside item_info


def refuse_original_images(item_info: str | Path, images: str | Path | None) -> None:
    """Refuse the images that item_info's data set was built from, in place of those under its items' new ids.

    Args:
        item_info: the item table.
        images: the folder or archive that is to be encoded.
    """
    folder = Path(item_info).parent
    try:
        recipe = json.loads((folder / REPORT).read_text(encoding="utf-8"))["recipe"]
        source = Path(recipe["data_root"]) / recipe["images"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no data set of build_dataset.py, or no images
        return
    if images is not None and source.resolve() == Path(images).resolve() and not _same(folder / IDS):
        raise UserError(
            f"--images {images}: is named by the log's own ids, and {item_info} has other ones; build_dataset.py has "
            f"put the same images under these in {folder / IMAGES}: name that"
        )


def _same(ids: Path) -> bool:
    """Whether the items' new ids are those that the log had; not where that cannot be read."""
    try:
        rows = pq.read_table(ids, filters=[("column", "=", ITEM_ID)])
        return rows["original"].to_pylist() == [str(item_id) for item_id in rows["id"].to_pylist()]
    except (OSError, ValueError, KeyError):
        return False

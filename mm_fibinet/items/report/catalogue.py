"""What items are called and which tags they have, for people: titles and tags of item_feature, or ids of item_info."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_fibinet.items.texts import TAG_COLUMNS, TITLE_COLUMNS, read_texts
from mm_fibinet.parquet_reader import matrix, open_parquet, whole_column

TAGS = "item_tags"  # of item_info, numbers

Tags = dict[str, np.ndarray]  # {tag: item_ids that have it}


def read_titles(item_feature: str | Path, num_items: int) -> dict[int, str]:
    """{item_id: title}; empty where item_feature has no column of titles."""
    return _texts(item_feature, num_items, TITLE_COLUMNS)


def read_tags(
    item_feature: str | Path | None, num_items: int, table: pa.Table | None = None, item_info: str | Path = ""
) -> Tags:
    """The tags in words of item_feature; where it has none, the numbers of item_info.

    Args:
        item_feature: parquet; None where there is none.
        num_items: the ids are 1 .. num_items.
        table: of item_info.
        item_info: its file, for messages.

    Returns:
        {tag: item_ids, ascending}; empty where there are no tags.
    """
    texts = _texts(item_feature, num_items, TAG_COLUMNS) if item_feature else {}
    if texts:
        members: dict[str, list[int]] = {}
        for item_id, text in texts.items():
            for tag in dict.fromkeys(text.split(", ")):
                members.setdefault(tag, []).append(item_id)
        return {tag: np.array(ids) for tag, ids in members.items()}
    if table is None or TAGS not in table.column_names:
        return {}
    numbers = matrix(whole_column(table, TAGS), item_info, TAGS)
    ids, tags = np.repeat(np.arange(len(numbers)), numbers.shape[1]), numbers.ravel()
    pairs = np.unique(np.stack([tags, ids], axis=1)[tags != 0], axis=0)
    found, starts = np.unique(pairs[:, 0], return_index=True)
    return {f"tag {tag}": part for tag, part in zip(found, np.split(pairs[:, 1], starts[1:]), strict=True)}


def _texts(item_feature: str | Path, num_items: int, names: tuple[str, ...]) -> dict[int, str]:
    """{item_id: text} of the first of the columns that there is, in any case of letters, as the encoders read it."""
    present = open_parquet(item_feature).schema_arrow.names
    found = [column for name in names for column in present if column.lower() == name]
    if not found:
        return {}
    entries = read_texts(item_feature, num_items, found[:1]).entries
    return {entry.item_id: entry.load().decode("utf-8") for entry in entries}

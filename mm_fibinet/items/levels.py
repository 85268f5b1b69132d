"""likes_level and views_level of the catalogue, joined into item_info: what models with history_levels read there."""

from pathlib import Path

import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.items.info_columns import put_column
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.schema import LEVELS

ANY_LEVEL = {"type": "categorical", "vocab_size": 2**31}


def join_levels(
    table: pa.Table, levels_from: str | Path | None, item_feature: str | Path | None
) -> tuple[pa.Table, list[str]]:
    """The table with the items' levels, and the names of those that were put into it.

    Args:
        table: item_info's.
        levels_from: the file to take them from, in place of those in the table; None takes those that the table lacks
            from item_feature, where it has them.
        item_feature: the catalogue, or None.

    Raises:
        UserError: levels_from has no level, or a file breaks the contract.
    """
    source = levels_from if levels_from is not None else item_feature
    if source is None:
        return table, []
    present = open_parquet(source).schema_arrow.names
    wanted = [
        name for name in LEVELS if name in present and (levels_from is not None or name not in table.column_names)
    ]
    if not wanted:
        if levels_from is not None:
            raise UserError(f"--levels_from {source}: has neither {' nor '.join(LEVELS)}, found {', '.join(present)}")
        return table, []
    joined = schema.read_item_feature(source, dict.fromkeys(wanted, ANY_LEVEL), table.num_rows)
    for name, values in joined.items():
        table = put_column(table, name, pa.array(values, pa.int64()))
    return table, wanted

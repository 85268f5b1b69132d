"""Challenge task 1 as it is judged: the organisers' DIN on each of several item embeddings.

Participants bring item_info.parquet; the model is the organisers', and the rules in their baseline's README leave five
of its settings open. So those five may be set here, for all files at once, and nothing else but the data set: what
differs between two lines of the leaderboard is the embedding alone. https://github.com/reczoo/WWW2025_MMCTR_Challenge
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mm_fibinet import settings
from mm_fibinet.errors import UserError

EXPID = "DIN_MicroLens_1M_x1"
OPEN = ("learning_rate", "batch_size", "embedding_regularizer", "net_regularizer", "net_dropout")
DATA = "dataset_id"


def require_open(overrides: list[str]) -> None:
    """Refuse to set what the challenge has fixed.

    Args:
        overrides: of --set.

    Raises:
        UserError: a setting that is neither one of OPEN nor the data set.
    """
    for key in settings.parse_overrides(overrides):
        if key not in (*OPEN, DATA):
            raise UserError(
                f"--set {key}: with --task1 only {', '.join(OPEN)} may be set, the five that the challenge leaves "
                f"open, and {DATA}, which names the data"
            )


def name_files(paths: Sequence[str | Path]) -> dict[str, Path]:
    """A name for each file, short and its own: as many of the last parts of the paths as tell them apart.

    Args:
        paths: parquet files.

    Returns:
        {name: path}, "text/item_info" and "image/item_info" say.

    Raises:
        UserError: a path is given twice, or there is nothing.
    """
    parts = [Path(os.path.abspath(path)).with_suffix("").parts for path in paths]
    for place, own in enumerate(parts):
        if own in parts[:place]:
            raise UserError(f"--task1 {paths[place]}: this file is given twice, expected each once")
        if not Path(paths[place]).exists():
            raise UserError(f"--task1 {paths[place]}: no such file, expected an item_info with item embeddings")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, map(Path, paths), strict=True))


def variants(files: dict[str, Path]) -> dict[str, list[str]]:
    """What --set says for the runs of each file, of `name_files`: the path, quoted as YAML reads it."""
    return {name: [f"item_info={json.dumps(str(path), ensure_ascii=False)}"] for name, path in files.items()}

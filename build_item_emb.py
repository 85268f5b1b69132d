r"""Challenge task 1: titles, tags and cover images in, item_info.parquet with an item embedding out.

python build_item_emb.py --item_info item_info.parquet --item_feature item_feature.parquet \
        --images item_images --output out/item_info.parquet
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Build, and say what was built."""
    return commands.main("embed", HOME)


if __name__ == "__main__":
    run_cli(main)

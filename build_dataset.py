r"""Your own data: a raw log and a catalogue in, the files of the contract out, ready for the other scripts.

python build_dataset.py --interactions clicks.csv --user customer --item product --timestamp time --label clicked \
        --items products.csv --item_key id --title name --out data/shop
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Build, and say what was built."""
    return commands.main("prepare", HOME)


if __name__ == "__main__":
    run_cli(main)

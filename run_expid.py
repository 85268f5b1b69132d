"""Train and evaluate one experiment ID (challenge task 2), with FuxiCTR's command line.

python run_expid.py --config config/ --expid FiBiNET_demo --gpu -1
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Train, evaluate, and say where the files are."""
    return commands.main("train", HOME)


if __name__ == "__main__":
    run_cli(main)

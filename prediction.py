"""Score the test split with a trained experiment and write the challenge's submission.

python prediction.py --expid FiBiNET_demo --gpu -1
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Score, validate, write."""
    return commands.main("predict", HOME)


if __name__ == "__main__":
    run_cli(main)

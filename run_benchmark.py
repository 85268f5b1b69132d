"""Run several experiment IDs with several seeds and write one leaderboard: CSV, Markdown and a single HTML page.

python run_benchmark.py --suite demo
python run_benchmark.py --expids DIN_demo FiBiNET_demo --seeds 2025 2026 2027 --workers 2
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Run, then report."""
    return commands.main("benchmark", HOME)


if __name__ == "__main__":
    run_cli(main)

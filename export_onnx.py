"""Write a trained experiment as a folder that scores without torch: see docs/serving.md.

python export_onnx.py --expid FiBiNET_demo --out served/FiBiNET_demo
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Read the run, write the folder."""
    return commands.main("export", HOME)


if __name__ == "__main__":
    run_cli(main)

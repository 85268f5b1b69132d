"""Run the experiments of a FuxiCTR tuner YAML and name the best one on the validation split.

python run_param_tuner.py --config config/tuner/FiBiNET_demo.yaml --gpu -1
python run_param_tuner.py --config config/tuner/FiBiNET_demo.yaml --optuna 20
"""

from pathlib import Path

from mm_fibinet import commands
from mm_fibinet.errors import run_cli

HOME = commands.Home.repository(Path(__file__).resolve().parent)


def main() -> int | None:
    """Search, then show the table and the best."""
    return commands.main("tune", HOME)


if __name__ == "__main__":
    run_cli(main)

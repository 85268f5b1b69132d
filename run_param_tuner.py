"""Run the experiments of a FuxiCTR tuner YAML and name the best one on the validation split.

python run_param_tuner.py --config config/tuner/FiBiNET_demo.yaml --gpu -1
python run_param_tuner.py --config config/tuner/FiBiNET_demo.yaml --optuna 20
"""

import argparse
import sys
from pathlib import Path

import model_zoo
from mm_fibinet import settings
from mm_fibinet.compare.tuner import RESULTS, Search, read_tuner
from mm_fibinet.compare.tuner_optuna import run_trials
from mm_fibinet.errors import UserError, printable, run_cli


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the experiments of a tuner YAML and name the best one.")
    parser.add_argument("--config", required=True, metavar="TUNER.yaml", help="base_expid, tuner_space, ...")
    parser.add_argument("--gpu", nargs="+", type=int, default=[-1], help="GPU indices, -1 for CPU (default)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="runs at a time on each of them (default: 1)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--tag", help="run only the experiment IDs that contain it, for example 001")
    how.add_argument("--optuna", type=int, metavar="N", help="N trials of Optuna instead of the grid")
    parser.add_argument("--out", help="folder of the results and the runs (default: tuner/NAME or tuner/NAME_optuna)")
    parser.add_argument("--data_root", help="replaces data_root of the dataset config, also in its files' paths")
    parser.add_argument("--seed", type=int, help="of all experiments and of Optuna (default: the config's)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change settings of all experiments"
    )
    return parser.parse_args()


def main() -> int:
    """Search, then show the table and the best; exit code 1 when a run of the grid, or every trial, failed."""
    args = parse_arguments()
    for name in ("workers", "optuna"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    for gpu in args.gpu:
        settings.require_device(gpu)
    tuner = read_tuner(args.config, model_zoo)
    out = Path(args.out or Path("tuner") / (Path(args.config).stem + "_optuna" * bool(args.optuna)))
    script = [sys.executable, str(Path(__file__).resolve().parent / "run_expid.py")]
    search = Search(tuner, model_zoo, out, script, args.gpu * args.workers, args.set, args.data_root, args.seed)
    if any("test_data" in dataset for dataset in search.tuner.datasets.values()):
        print("test_data is left out: a tuner looks at train and valid only")
    try:
        if args.optuna:
            run_trials(search, args.optuna)
        else:
            search.run_grid(args.tag)
    finally:
        if search.rows:
            show(search)
    failed = any(row["state"] == "failed" for row in search.rows) and not args.optuna
    return 1 if failed or not search.best() else 0


def show(search: Search) -> None:
    """Print the table, and the best experiment with the command that repeats it."""
    print(search.as_text())
    for row in search.rows:
        if row["error"]:
            print(printable(f"failed    {row['expid']}: {row['error']}"))
    best = search.best()
    if best:
        print(f"best      {printable(best['expid'])}\nrepeat    {printable(search.repeat_command(best['expid']))}")
    print(f"results   {printable(search.out / RESULTS)}")


if __name__ == "__main__":
    run_cli(main)

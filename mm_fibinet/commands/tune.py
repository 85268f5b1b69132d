"""The experiments of a FuxiCTR tuner YAML, and the best one on the validation split."""

import argparse
from pathlib import Path

from mm_fibinet import settings
from mm_fibinet.commands import Home
from mm_fibinet.compare.search import RESULTS, Search
from mm_fibinet.compare.tuner import read_tuner
from mm_fibinet.compare.tuner_optuna import run_trials
from mm_fibinet.errors import UserError, printable


def run(args: argparse.Namespace, home: Home) -> int:
    """Search, then show the table and the best; exit code 1 when a run of the grid, or every trial, failed."""
    for name in ("workers", "optuna"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    for gpu in args.gpu:
        settings.require_device(gpu)
    models = home.import_models(args.models_from)
    tuner = read_tuner(args.config, models)
    out = Path(args.out or Path("tuner") / (Path(args.config).stem + "_optuna" * bool(args.optuna)))
    command = [*home.train, *(["--models_from", args.models_from] if args.models_from else [])]
    search = Search(tuner, models, out, command, args.gpu * args.workers, args.set, args.data_root, args.seed)
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

"""The command line of `predict`."""

import argparse
from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser, add_experiment, check_gpus
from mm_fibinet.options import AVERAGES, TASKS


def add(parser: Parser, config: Path) -> None:
    """Its arguments; `config` stays None unless it is named, so that a run's own settings are told from it."""
    add_experiment(parser, config, f"the run's settings, else {config}")
    parser.add_argument(
        "--average",
        nargs="+",
        metavar="RUN",
        help="in place of --expid: what several runs say together; experiment IDs in model_root, or runs' .model files",
    )
    parser.add_argument("--average_by", choices=AVERAGES, help=f"(default: {AVERAGES[0]})")
    parser.add_argument("--checkpoint", help="weights to load (default: the experiment's best)")
    parser.add_argument("--test", help="test split (default: test_data of the run)")
    parser.add_argument(
        "--out", nargs="+", metavar="FILE", help="the zip, the .csv in it, or both (default: submission/EXPID.zip)"
    )
    parser.add_argument(
        "--original_ids", metavar="FILE", help="also a CSV of the scores with the log's own ids, after build_dataset.py"
    )
    parser.add_argument("--labels", metavar="FILE", help="the test split's labels, by ID: print the scores' metrics")
    parser.add_argument("--task", default="Task1&2", choices=TASKS, help="name of the score column")
    parser.add_argument(
        "--allow_other_data",
        action="store_true",
        help="score with the settings and items given here even where the run was trained with others",
    )
    parser.set_defaults(config=None)


def check(parser: Parser, args: argparse.Namespace) -> None:
    """One experiment, or several runs."""
    check_gpus(parser, args)
    if args.average is None:
        if args.expid is None:
            parser.error("expected --expid EXPID, or --average RUN RUN ...")
        if args.average_by is not None:
            parser.error(f"--average_by {args.average_by}: there is no --average RUN RUN ...")
        return
    args.average_by = args.average_by or AVERAGES[0]
    for option in ("expid", "checkpoint"):
        if getattr(args, option) is not None:
            parser.error(f"--average names all runs, expected no --{option} beside it")
    if len(args.average) < 2:
        parser.error(f"--average {args.average[0]}: expected two runs or more")

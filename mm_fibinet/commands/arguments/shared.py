"""Arguments that several commands take."""

import argparse
from pathlib import Path

Parser = argparse.ArgumentParser


def add_config(parser: Parser, config: Path, default: str = "%(default)s") -> None:
    """--config, the folder of experiment IDs; `default` as its help tells it."""
    parser.add_argument("--config", default=str(config), help=f"config folder (default: {default})")


def add_set(parser: Parser, which: str) -> None:
    """--set, changes to settings; `which` experiments' they are."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=f"change settings of {which}"
    )


def add_data_root(parser: Parser) -> None:
    """--data_root."""
    parser.add_argument("--data_root", help="replaces data_root of the dataset config, also in its files' paths")


def add_models_from(parser: Parser) -> None:
    """--models_from."""
    parser.add_argument(
        "--models_from", metavar="FOLDER", help="a checkout of FuxiCTR, whose models are then known by their names too"
    )


def add_experiment(parser: Parser, config: Path, default: str = "%(default)s") -> None:
    """What every command on one experiment takes; whether --expid is needed is for its check."""
    add_config(parser, config, default)
    parser.add_argument("--expid", help="experiment ID of the config")
    gpus = "GPU index, -1 for CPU (default); several: a process on each"
    parser.add_argument("--gpu", dest="rank_gpus", nargs="+", type=int, default=[-1], metavar="GPU", help=gpus)
    add_data_root(parser)
    add_models_from(parser)
    parser.add_argument("--model_root", help="where runs are kept (default: model_root of the config)")
    add_set(parser, "the experiment")


def check_gpus(parser: Parser, args: argparse.Namespace) -> None:
    """Of what has `add_experiment`: a GPU takes one process, the CPU any number."""
    if len(set(args.rank_gpus)) < len(args.rank_gpus) and set(args.rank_gpus) != {-1}:
        parser.error(f"--gpu {' '.join(map(str, args.rank_gpus))}: expected each GPU once, or nothing but -1")
    if -1 in args.rank_gpus and set(args.rank_gpus) != {-1}:
        parser.error(f"--gpu {' '.join(map(str, args.rank_gpus))}: expected GPUs or -1, not both")

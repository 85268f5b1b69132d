"""The command line of `benchmark`."""

import argparse
from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser, add_config, add_data_root, add_models_from, add_set
from mm_fibinet.options import STUDIES, SUITES


def add(parser: Parser, config: Path) -> None:
    """Its arguments."""
    add_config(parser, config)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--expids", nargs="+", metavar="EXPID", help="experiment IDs of the config")
    what.add_argument("--suite", help=f"a list of experiment IDs by its name in {SUITES}")
    what.add_argument(
        "--task1",
        nargs="+",
        metavar="ITEM_INFO",
        help="item embeddings to compare as challenge task 1 does, by the organisers' DIN on each file (--set "
        "dataset_id=NAME for other data than MicroLens)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[2025], help="each experiment runs once with each seed")
    parser.add_argument("--gpus", nargs="+", type=int, help="GPU indices (default: the CPU)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="runs at a time on the CPU, or on each GPU (default: 1)"
    )
    parser.add_argument("--out", default="leaderboard", help="folder of the leaderboard and the runs")
    parser.add_argument("--baseline", metavar="NAME", help="what the others are compared to (default: the first)")
    parser.add_argument(
        "--study", nargs="+", default=[], choices=STUDIES, metavar="NAME", help=f"sections to add: {', '.join(STUDIES)}"
    )
    fair = parser.add_argument_group("tuned alike")
    fair.add_argument(
        "--tune",
        metavar="BUDGET",
        help="first tune every experiment on valid: 20m, 2h or 90s of one core each (of the clock on a GPU), or a "
        "number of trials each",
    )
    fair.add_argument(
        "--tune_space", metavar="FILE", help="what may be changed (default: tuner/benchmark.yaml of the config folder)"
    )
    fair.add_argument(
        "--similarity", choices=("on", "off", "both"), help="similarity fields of every model that can have them"
    )
    add_data_root(parser)
    add_models_from(parser)
    add_set(parser, "all experiments")


def check(parser: Parser, args: argparse.Namespace) -> None:
    """With task 1 nothing but the embedding differs; a space is for what varies."""
    for option in ("tune", "similarity"):
        if args.task1 and getattr(args, option) is not None:
            parser.error(f"--{option} {getattr(args, option)}: with --task1 the embedding alone differs between runs")
    if args.tune_space and not (args.tune or args.similarity):
        parser.error(f"--tune_space {args.tune_space}: there is no --tune BUDGET and no --similarity")

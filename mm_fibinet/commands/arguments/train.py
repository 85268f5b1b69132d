"""The command line of `train`."""

import argparse
from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser, add_experiment, check_gpus


def add(parser: Parser, config: Path) -> None:
    """Its arguments."""
    add_experiment(parser, config)
    parser.add_argument("--list", action="store_true", help="name all experiment IDs and models, a line each, and end")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # of a worker, see compare.workers
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--checkpoint_every", type=int, metavar="N", help="save the run's state every N steps as well")


def check(parser: Parser, args: argparse.Namespace) -> None:
    """An experiment, unless it serves or lists them; each GPU once."""
    if args.expid is None and not (args.serve or args.list):
        parser.error("the following arguments are required: --expid")
    check_gpus(parser, args)

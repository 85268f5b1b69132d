"""The command lines of all commands, a module each: nothing here loads torch, parquet or models."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mm_fibinet.commands.arguments import benchmark, embed, export, predict, prepare, train, tune
from mm_fibinet.commands.arguments.shared import Parser, add_config, add_models_from
from mm_fibinet.options import add_check_arguments, add_report_arguments, require_one_subject


@dataclass(frozen=True)
class Command:
    """A command's line.

    Attributes:
        description: what it does, one sentence.
        add_arguments: adds its arguments to a parser; also given the config folder of the place.
        check: ends with the parser's error for arguments that contradict each other.
        epilog: the last line of its help.
    """

    description: str
    add_arguments: Callable[[Parser, Path], None]
    check: Callable[[Parser, argparse.Namespace], None] | None = None
    epilog: str | None = None


def check(parser: Parser, config: Path) -> None:
    """Of `check`."""
    add_check_arguments(parser, config)
    add_models_from(parser)


def list_(parser: Parser, config: Path) -> None:
    """Of `list`."""
    add_config(parser, config)
    add_models_from(parser)
    parser.add_argument("--settings", metavar="MODEL", help="list the settings of runs, data and this model instead")


COMMANDS = {
    "prepare": Command("Make a data set of the file contract from a raw log and a catalogue.", prepare.add),
    "embed": Command(
        "Make an item embedding from titles, tags and cover images (challenge task 1).",
        embed.add,
        embed.check,
        epilog="Interrupted? Run the same command again: features made so far are kept in --store.",
    ),
    "report": Command("Say how good item embeddings are, on one HTML page.", add_report_arguments),
    "train": Command("Train and evaluate one experiment ID.", train.add, train.check),
    "predict": Command("Score the test split and write a submission.", predict.add, predict.check),
    "export": Command("Write a trained experiment as a folder that scores without torch.", export.add),
    "benchmark": Command("Run several experiments and write one leaderboard.", benchmark.add, benchmark.check),
    "tune": Command("Run the experiments of a tuner YAML and name the best one.", tune.add),
    "check": Command("Check challenge data.", check, require_one_subject),
    "list": Command("List the experiment IDs and the models, or the settings of a model.", list_),
}

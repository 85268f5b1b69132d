"""What options take, told without loading what carries them out: help and mistakes need no torch."""

import argparse

TASKS = ("Task1", "Task2", "Task1&2")  # of a submission
NONE = "none"  # an encoder's name: leave the modality out
DEFAULT_TEXT = "minilm"
DEFAULT_IMAGE = "efficientnet_lite0"
COLUMN = "column:"  # an encoder's prefix: the vectors are there already
ENCODER_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
STORE_NAME = ".mm_fibinet_features"
SUITES = "benchmark_config.yaml"


def add_check_arguments(parser: argparse.ArgumentParser, config: object = "config") -> None:
    """What the data check takes.

    Args:
        parser: of the command.
        config: the config folder that is taken when none is named.
    """
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="with train.parquet in it, or the one above it")
    parser.add_argument("--dataset_id", metavar="NAME", help="check the files and features of this entry of the config")
    parser.add_argument("--expid", help="the features of this experiment, on its data set or that of --dataset_id")
    parser.add_argument("--config", default=str(config), help="config folder (default: %(default)s)")


def require_one_subject(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the parser's error unless a folder or an entry, and not both, is to be checked."""
    if bool(args.folder) == bool(args.dataset_id or args.expid):
        parser.error("name either a FOLDER, or --dataset_id, --expid or both")

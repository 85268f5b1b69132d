"""What options take, told without loading what carries them out: help and mistakes need no torch."""

import argparse

AVERAGES = ("probability", "rank")  # of several runs' scores
TASKS = ("Task1", "Task2", "Task1&2")  # of a submission
NONE = "none"  # an encoder's name: leave the modality out
DEFAULT_TEXT = "minilm"
DEFAULT_IMAGE = "efficientnet_lite0"
FUSIONS = ("pca", "pca_per_modality", "whiten", "cca", "mean", "item2vec", "contrastive", "mix", "auto")
COLUMN = "column:"  # an encoder's prefix: the vectors are there already
OWN = "module:"  # the same: a class of the user's own
ENCODER_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ENGINES = ("local", "ray")  # where items are encoded
CODE_LEVELS, CODE_SIZE = 3, 256  # of semantic ids
STORE_NAME = ".mm_fibinet_features"
SUITES = "benchmark_config.yaml"
STUDIES = ("cold", "history", "calibration", "modality", "protocol", "scale", "modality_retrained")  # of a benchmark
ITEM_TABLES = ("fp32", "fp16", "int8")  # how an exported model stores its items
FORMATS = ("onnx", "pt2")  # of the graph that scores


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


def add_report_arguments(parser: argparse.ArgumentParser, config: object = "config") -> None:
    """What the report on an item embedding takes.

    Args:
        parser: of the command.
        config: the config folder that is taken when none is named.
    """
    parser.add_argument("item_info", metavar="ITEM_INFO", help="parquet with item embeddings, as of build_item_emb.py")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="embeddings to look at (default: all there are)")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="page to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    files = parser.add_argument_group("files")
    files.add_argument("--data", metavar="DATASET_ID", help="the data set of the config whose files are read")
    files.add_argument("--config", default=str(config), help="config folder (default: %(default)s)")
    files.add_argument("--data_root", metavar="FOLDER", help="replaces data_root of the dataset config")
    files.add_argument("--valid", metavar="FILE", help="split whose clicks are told (default: that of --data)")
    files.add_argument("--train", metavar="FILE", help="split whose targets are the warm items (default: of --data)")
    files.add_argument("--user_info", metavar="FILE", help="histories once a user (default: that of --data)")
    files.add_argument("--titles", metavar="FILE", help="item_feature with titles and tags (default: that of --data)")
    files.add_argument("--images", metavar="PATH", help="folder or archive of covers (default: item_images there)")

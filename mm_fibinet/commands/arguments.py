"""The command lines of all commands, in one light module: nothing here loads torch, parquet or models."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mm_fibinet.items import modalities
from mm_fibinet.options import (
    AVERAGES,
    CODE_LEVELS,
    CODE_SIZE,
    ENCODER_PRECISIONS,
    ENGINES,
    FUSIONS,
    ITEM_TABLES,
    STORE_NAME,
    STUDIES,
    SUITES,
    TASKS,
    add_check_arguments,
    add_report_arguments,
    require_one_subject,
)

Parser = argparse.ArgumentParser


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


def add_experiment(parser: Parser, config: Path, default: str = "%(default)s", required: bool = True) -> None:
    """What every command on one experiment takes."""
    add_config(parser, config, default)
    parser.add_argument("--expid", required=required, help="experiment ID of the config")
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


def train(parser: Parser, config: Path) -> None:
    """Of `train`."""
    add_experiment(parser, config, required=False)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # of a worker, see compare.workers
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--checkpoint_every", type=int, metavar="N", help="save the run's state every N steps as well")


def check_train(parser: Parser, args: argparse.Namespace) -> None:
    """Of `train`."""
    if args.expid is None and not args.serve:
        parser.error("the following arguments are required: --expid")
    check_gpus(parser, args)


def predict(parser: Parser, config: Path) -> None:
    """Of `predict`; `config` stays None unless it is named, so that a run's own settings are told from the config's."""
    add_experiment(parser, config, f"the run's settings, else {config}", required=False)
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


def check_predict(parser: Parser, args: argparse.Namespace) -> None:
    """Of `predict`: one experiment, or several runs."""
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


def export(parser: Parser, config: Path) -> None:
    """Of `export`; `config` as of `predict`."""
    add_config(parser, config, f"the run's settings, else {config}")
    parser.add_argument("--expid", required=True, help="experiment ID of the run")
    parser.add_argument("--checkpoint", help="weights to export (default: the experiment's best)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument(
        "--item_table", choices=ITEM_TABLES, default=ITEM_TABLES[0], help="how items are stored (default: %(default)s)"
    )
    add_data_root(parser)
    add_models_from(parser)
    parser.add_argument("--model_root", help="where runs are kept (default: model_root of the config)")
    add_set(parser, "the experiment")
    parser.add_argument(
        "--allow_other_data", action="store_true", help="export with other settings and items than those trained on"
    )
    parser.set_defaults(config=None)


# The settings of a recipe, which are options too: {name: (group, kind of KINDS, what its help says)}.
RECIPE_OPTIONS: dict[str, tuple[str, str, str]] = {
    "name": ("data set", "text", "its dataset_id (default: the name of OUT)"),
    "data_root": ("data set", "text", "folder that all paths are relative to (default: .)"),
    "interactions": ("the log", "list", "files, or folders of files: .csv, .tsv, .jsonl, .parquet, also .gz and .zst"),
    "user": ("the log", "text", "column of the user (default: user_id)"),
    "item": ("the log", "text", "column of the item (default: item_id)"),
    "timestamp": ("the log", "text", "column of the time: a number, or a date and time"),
    "label": (
        "the log",
        "text",
        "column of 0 and 1, or a comparison, 'rating >= 4' (default: all rows are clicks)",
    ),
    "rating": ("the log", "text", "column that likes_level is made of (default: the one that the label compares)"),
    "features": ("the log", "list", "further columns of the row: texts become ids, numbers stay numbers"),
    "categorical": ("the log", "list", "further columns that become ids even where they are numbers"),
    "impressions": ("the log", "text", "column of items with labels in place of --item and --label: ID-1 ID-0"),
    "history": ("the log", "text", "column of the clicks before the row, where the log has it"),
    "list_separator": ("the log", "text", "between the elements of impressions and histories (default: a space)"),
    "items": ("the catalogue", "list", "files"),
    "item_key": ("the catalogue", "text", "column of the item (default: that of --item)"),
    "title": ("the catalogue", "text", "column"),
    "tags": ("the catalogue", "list", "columns of lists, or of texts that a separator cuts"),
    "tag_separator": ("the catalogue", "text", "(default: |)"),
    "tag_flags": ("the catalogue", "list", "columns of 0 and 1 whose names are the tags"),
    "max_tags": ("the catalogue", "int", "tags an item (default: 5)"),
    "description": ("the catalogue", "text", "column"),
    "item_features": ("the catalogue", "list", "further columns: texts become ids, numbers stay numbers"),
    "item_categorical": ("the catalogue", "list", "further columns that become ids even where they are numbers"),
    "all_items": ("the catalogue", "flag", "keep items that do not occur in the log"),
    "images": ("the catalogue", "text", "folder, .zip, .tar or .rar of images named by the items' original ids"),
    "copy_images": ("the catalogue", "flag", "copy a folder's images instead of linking them"),
    "embeddings": ("the catalogue", "list", "files with an item embedding that there is already"),
    "embedding": ("the catalogue", "text", "their column of lists"),
    "embedding_scale": ("the catalogue", "number", "what its numbers are multiplied by (default: 1)"),
    "users": ("the users", "list", "files"),
    "test_users": ("the users", "list", "files with what is known of users by the time of a given test"),
    "user_key": ("the users", "text", "column of the user (default: that of --user)"),
    "user_history": ("the users", "text", "column of a user's clicks, oldest first"),
    "user_features": ("the users", "list", "further columns: texts become ids, numbers stay numbers"),
    "user_categorical": ("the users", "list", "further columns that become ids even where they are numbers"),
    "split": ("method", "text", "time (default), leave_last_out, random, or a column of train, valid, test"),
    "valid": ("method", "float", "share of the rows (default: 0.1)"),
    "test": ("method", "float", "share of the rows (default: 0.1)"),
    "negatives": ("method", "int", "drawn for each click (default: 4 where all rows are clicks, else 0)"),
    "sampling": ("method", "text", "of negatives: uniform (default), or popularity"),
    "max_len": ("method", "int", "history positions in a row (default: 64)"),
    "frozen_histories": ("method", "flag", "histories end where the row's own split begins"),
    "user_info": ("method", "flag", "write histories once a user, whole, in place of item_seq in each row"),
    "seed": ("method", "int", "same seed, same rows (default: 2025)"),
}
KINDS: dict[str, dict] = {
    "text": {"metavar": "NAME"},
    "list": {"nargs": "+", "metavar": "NAME"},
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "SHARE"},
    "number": {"type": float, "metavar": "NUMBER"},
    "flag": {"action": "store_true", "default": None},
}


def prepare(parser: Parser, config: Path) -> None:
    """Of `prepare`; the options but for four are the settings of a recipe."""
    parser.add_argument("--out", required=True, metavar="OUT", help="folder of the data set, data/NAME say")
    parser.add_argument(
        "--recipe", metavar="FILE", help=f"YAML with settings named as the options below, or one of {config}/recipes"
    )
    parser.add_argument("--force", action="store_true", help="replace the data set that is there")
    groups = {group: parser.add_argument_group(group) for group in dict.fromkeys(o[0] for o in RECIPE_OPTIONS.values())}
    for name, (group, kind, text) in RECIPE_OPTIONS.items():
        groups[group].add_argument(f"--{name}", help=text, **KINDS[kind])


def check_devices(parser: Parser, args: argparse.Namespace) -> None:
    """Of `embed`: a GPU takes one process."""
    gpus = [device for device in args.rank_devices if device != "cpu"]
    if len(args.rank_devices) > 1 and (len(set(gpus)) < len(gpus) or not all(gpu.startswith("cuda:") for gpu in gpus)):
        parser.error(f"--device {' '.join(args.rank_devices)}: expected each GPU once as cuda:N, or cpu several times")


def embed(parser: Parser, _: Path) -> None:
    """Of `embed`; the names are the arguments of `mm_fibinet.items.build.build`."""
    _add_embed_files(parser.add_argument_group("files"))
    method = parser.add_argument_group("method")
    method.add_argument("--emb_dim", type=int, default=128, help="numbers an item (default: %(default)s)")
    _add_encoders(method)
    _add_fusion(method)
    method.add_argument(
        "--levels_from",
        metavar="FILE",
        help="parquet with likes_level and views_level to write (default: those of --item_feature that IN lacks)",
    )
    method.add_argument("--strict", action="store_true", help="a corrupt or oversized image is an error")
    _add_machine(parser.add_argument_group("machine"))


def _add_embed_files(files: argparse._ArgumentGroup) -> None:
    """What is read and written."""
    files.add_argument("--item_info", required=True, metavar="IN", help="parquet with item_id 0..N, row 0 the padding")
    for modality in modalities.MODALITIES:
        files.add_argument(f"--{modality.source}", metavar="PATH", help=modality.source_help)
    files.add_argument("--output", required=True, metavar="OUT", help="parquet to write; must not be an input")
    files.add_argument(
        "--store",
        nargs="+",
        metavar="FOLDER",
        help=f"raw features (default: {STORE_NAME} beside OUT); of several, the others are only read",
    )


def _add_encoders(method: argparse._ArgumentGroup) -> None:
    """What is encoded, and by which networks."""
    for modality in modalities.MODALITIES:
        text = f"{modality.encoder_help}; several are fused (default: {modality.default})"
        method.add_argument(
            f"--{modality.encoder_option}", nargs="+", default=[modality.default], metavar="ID", help=text
        )
    for modality in modalities.MODALITIES:
        text = f"keep the first N numbers of each {modality.name} vector, of models trained for that (Matryoshka)"
        method.add_argument(f"--{modality.dim_option}", type=int, metavar="N", help=text)
        if modality.has_prompt:
            text = "words before each text, or the name of one of the model's prompts (default: as the model defines)"
            method.add_argument(f"--{modality.prompt_option}", metavar="WORDS", help=text)
    method.add_argument(
        "--text_columns",
        nargs="+",
        metavar="COLUMN",
        help="columns of the text, in this order (default: those with usual names, such as item_title and item_tags)",
    )
    method.add_argument(
        "--opening_words",
        type=int,
        default=10,
        metavar="N",
        help="encode a text's first N words on their own too, so that a long description does not drown the title; "
        "0: not (default: %(default)s)",
    )


def _add_fusion(method: argparse._ArgumentGroup) -> None:
    """How features become columns."""
    method.add_argument(
        "--fusion", metavar="NAME", help=f"of the modalities: {', '.join(FUSIONS)} (default: pca, or mix with --mix)"
    )
    method.add_argument("--train", metavar="FILE", help="training split, for fusions that learn from clicks")
    method.add_argument(
        "--valid", metavar="FILE", help="validation split, for --fusion auto (default: valid.parquet beside --train)"
    )
    method.add_argument(
        "--user_info", metavar="FILE", help="histories of --train and --valid, where they are once a user"
    )
    method.add_argument(
        "--also",
        nargs="+",
        metavar="NAME",
        help="further fusions, each a column of its own beside item_emb_dN: item2vec writes item2vec_emb_dN",
    )
    method.add_argument(
        "--mix", nargs="+", metavar="COLUMN=WEIGHT", help="add up embedding columns of --item_info or --item_feature"
    )
    columns = method.add_mutually_exclusive_group()
    prefixes = " and ".join(f"{modality.prefix}_dN" for modality in modalities.MODALITIES)
    columns.add_argument(
        "--per_modality",
        action="store_true",
        default=True,
        help=f"write {prefixes}, the PCA of each modality alone, beside item_emb_dN (the default)",
    )
    columns.add_argument(
        "--fused_only", dest="per_modality", action="store_false", help="write item_emb_dN and no such columns"
    )
    method.add_argument("--semantic_ids", metavar="METHOD", help="write codes of item_emb_dN, too: kmeans or gmm")
    method.add_argument(
        "--code_levels", type=int, default=CODE_LEVELS, metavar="N", help="codes an item (default: %(default)s)"
    )
    method.add_argument(
        "--code_size", type=int, default=CODE_SIZE, metavar="N", help="different codes a level (default: %(default)s)"
    )


def _add_machine(machine: argparse._ArgumentGroup) -> None:
    """Where the work is done."""
    machine.add_argument(
        "--device",
        dest="rank_devices",
        nargs="+",
        default=["auto"],
        metavar="DEVICE",
        help="auto (default), cpu, cuda or cuda:N; several: a process on each",
    )
    how = machine.add_mutually_exclusive_group()
    how.add_argument(
        "--shard",
        metavar="I/N",
        help="encode the I-th of N shares of the items into the store and write no output, for a scheduler's N jobs; "
        "then run the command without it",
    )
    how.add_argument(
        "--engine", default="local", metavar="NAME", help=f"where to encode: {' or '.join(ENGINES)} (default: local)"
    )
    machine.add_argument("--batch_size", type=int, help="items a forward pass (default: 16 on CPU, 256 on GPU)")
    machine.add_argument(
        "--precision",
        default="auto",
        metavar="NAME",
        help=f"of encoders on a GPU: {', '.join(ENCODER_PRECISIONS)}; a CPU computes in fp32 (default: %(default)s)",
    )
    machine.add_argument("--seed", type=int, default=0, help="for fusions with randomness (default: %(default)s)")


def benchmark(parser: Parser, config: Path) -> None:
    """Of `benchmark`."""
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


def check_benchmark(parser: Parser, args: argparse.Namespace) -> None:
    """Of `benchmark`."""
    for option in ("tune", "similarity"):
        if args.task1 and getattr(args, option) is not None:
            parser.error(f"--{option} {getattr(args, option)}: with --task1 the embedding alone differs between runs")
    if args.tune_space and not (args.tune or args.similarity):
        parser.error(f"--tune_space {args.tune_space}: there is no --tune BUDGET and no --similarity")


def tune(parser: Parser, _: Path) -> None:
    """Of `tune`."""
    parser.add_argument("--config", required=True, metavar="TUNER.yaml", help="base_expid, tuner_space, ...")
    parser.add_argument("--gpu", nargs="+", type=int, default=[-1], help="GPU indices, -1 for CPU (default)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="runs at a time on each of them (default: 1)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--tag", help="run only the experiment IDs that contain it, for example 001")
    how.add_argument("--optuna", type=int, metavar="N", help="N trials of Optuna instead of the grid")
    parser.add_argument("--out", help="folder of the results and the runs (default: tuner/NAME or tuner/NAME_optuna)")
    add_data_root(parser)
    add_models_from(parser)
    parser.add_argument("--seed", type=int, help="of all experiments and of Optuna (default: the config's)")
    add_set(parser, "all experiments")


def check(parser: Parser, config: Path) -> None:
    """Of `check`."""
    add_check_arguments(parser, config)
    add_models_from(parser)


def list_(parser: Parser, config: Path) -> None:
    """Of `list`."""
    add_config(parser, config)
    add_models_from(parser)


COMMANDS = {
    "prepare": Command("Make a data set of the file contract from a raw log and a catalogue.", prepare),
    "embed": Command(
        "Make an item embedding from titles, tags and cover images (challenge task 1).",
        embed,
        check_devices,
        epilog="Interrupted? Run the same command again: features made so far are kept in --store.",
    ),
    "report": Command("Say how good item embeddings are, on one HTML page.", add_report_arguments),
    "train": Command("Train and evaluate one experiment ID.", train, check_train),
    "predict": Command("Score the test split and write a submission.", predict, check_predict),
    "export": Command("Write a trained experiment as a folder that scores without torch.", export),
    "benchmark": Command("Run several experiments and write one leaderboard.", benchmark, check_benchmark),
    "tune": Command("Run the experiments of a tuner YAML and name the best one.", tune),
    "check": Command("Check challenge data.", check, require_one_subject),
    "list": Command("List the experiment IDs, with their models and data sets.", list_),
}

"""The command line of `embed`."""

import argparse
from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser
from mm_fibinet.items import modalities
from mm_fibinet.options import CODE_LEVELS, CODE_SIZE, ENCODER_PRECISIONS, ENGINES, FUSIONS, STORE_NAME


def add(parser: Parser, _: Path) -> None:
    """Its arguments; the names are the arguments of `mm_fibinet.items.build.build`."""
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


def check(parser: Parser, args: argparse.Namespace) -> None:
    """A GPU takes one process."""
    gpus = [device for device in args.rank_devices if device != "cpu"]
    if len(args.rank_devices) > 1 and (len(set(gpus)) < len(gpus) or not all(gpu.startswith("cuda:") for gpu in gpus)):
        parser.error(f"--device {' '.join(args.rank_devices)}: expected each GPU once as cuda:N, or cpu several times")


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

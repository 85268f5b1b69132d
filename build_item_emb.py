r"""Challenge task 1: titles, tags and cover images in, item_info.parquet with an item embedding out.

    python build_item_emb.py --item_info item_info.parquet --item_feature item_feature.parquet \
        --images item_images --output out/item_info.parquet

The command line of `mm_fibinet.items.build`, which says what is done.
"""

import argparse
import os

# Threads that wait must not spin: on cores shared with other work, spinning makes the networks 15 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is first imported

from mm_fibinet.errors import printable, run_cli
from mm_fibinet.items import modalities
from mm_fibinet.items.build import STORE_NAME, Built, build, first_names
from mm_fibinet.items.fusion import FUSIONS


def parse_arguments() -> argparse.Namespace:
    """The command line; its names are the arguments of `build`."""
    parser = argparse.ArgumentParser(
        description="Make an item embedding from titles, tags and cover images (challenge task 1).",
        epilog="Interrupted? Run the same command again: features made so far are kept in --store.",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--item_info", required=True, metavar="IN", help="parquet with item_id 0..N, row 0 the padding")
    for modality in modalities.MODALITIES:
        files.add_argument(f"--{modality.source}", metavar="PATH", help=modality.source_help)
    files.add_argument("--output", required=True, metavar="OUT", help="parquet to write; must not be an input")
    files.add_argument("--store", metavar="FOLDER", help=f"raw features (default: {STORE_NAME} beside OUT)")
    method = parser.add_argument_group("method")
    method.add_argument("--emb_dim", type=int, default=128, help="numbers an item (default: %(default)s)")
    for modality in modalities.MODALITIES:
        text = f"{modality.encoder_help} (default: %(default)s)"
        method.add_argument(f"--{modality.encoder_option}", default=modality.default, metavar="ID", help=text)
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
    method.add_argument("--fusion", choices=sorted(FUSIONS), default="pca", help="default: %(default)s")
    columns = method.add_mutually_exclusive_group()
    prefixes = " and ".join(f"{modality.prefix}_dN" for modality in modalities.MODALITIES)
    columns.add_argument(
        "--per_modality",
        action="store_true",
        default=True,
        help=f"write {prefixes}, the fusion of each modality alone, beside item_emb_dN (the default)",
    )
    columns.add_argument(
        "--fused_only", dest="per_modality", action="store_false", help="write item_emb_dN and no such columns"
    )
    method.add_argument("--strict", action="store_true", help="a corrupt or oversized image is an error")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    machine.add_argument("--batch_size", type=int, help="items a forward pass (default: 16 on CPU, 256 on GPU)")
    machine.add_argument("--seed", type=int, default=0, help="for fusions with randomness (default: %(default)s)")
    return parser.parse_args()


def print_summary(built: Built) -> None:
    """Print what the embedding was made of: items, what was missing or bad, speed, explained variance."""

    def line(label: str, text: str) -> None:
        print(f"{label:<12}{printable(text)}")

    line("items", f"{built.items:,}")
    for name, encoded in built.modalities.items():
        line(name, ", ".join(f"{kind} {number:,}" for kind, number in encoded.counts.items()))
        for note in encoded.notes:
            line("", note)
        speed = f", {encoded.computed / encoded.seconds:,.1f} items/s" if encoded.computed else ""
        done = f"encoded {encoded.computed:,}, reused {encoded.reused:,} from the store"
        line("", f"{done}, {encoded.seconds:,.1f} s{speed}")
        if encoded.bad:
            line("", f"bad: {first_names(encoded.bad)}")
    line("explained", ", ".join(f"{name} {share:.1%}" for name, share in built.explained.items()))
    line("output", f"{built.output}, column{'s' * (len(built.columns) > 1)} {', '.join(built.columns)}")


def main() -> None:
    """Build, and say what was built."""
    print_summary(build(**vars(parse_arguments())))


if __name__ == "__main__":
    run_cli(main)

"""Challenge task 1: titles, tags and cover images in, item_info.parquet with an item embedding out.

    python build_item_emb.py --item_info item_info.parquet --item_feature item_feature.parquet \\
        --images item_images --output out/item_info.parquet

Each modality runs through a pretrained encoder, the two are fused to --emb_dim numbers an item, and the input's
columns are written again with `item_emb_d{emb_dim}` added or replaced. Raw features are kept in --store: an
interrupted run goes on where it was, and a repeated one encodes only what is new. The same input gives the same bytes.
"""

import argparse
import os
from pathlib import Path

# Threads that wait must not spin: on cores shared with other work, spinning makes the networks 15 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is first imported

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import atomic_path, write_json
from mm_fibinet.items import encoders
from mm_fibinet.items.encoders import Encoder
from mm_fibinet.items.feature_store import FeatureStore, Filled, fill
from mm_fibinet.items.fusion import FUSIONS, Fused, Modality
from mm_fibinet.items.sources import ImageSource, openings, read_texts
from mm_fibinet.schema import read_item_info

STORE_NAME = ".mm_fibinet_features"
NAMES_SHOWN = 5
PREFIXES = {"text": "txt_emb", "image": "img_emb"}  # as item_feature names the organisers' features


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make an item embedding from titles, tags and cover images (challenge task 1).",
        epilog="Interrupted? Run the same command again: features made so far are kept in --store.",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--item_info", required=True, metavar="IN", help="parquet with item_id 0..N, row 0 the padding")
    files.add_argument("--item_feature", metavar="FEATURES", help="parquet with item_id, item_title, item_tags")
    files.add_argument(
        "--images", metavar="DIR_OR_ZIP", help="folder, .zip, .rar or .tar of ITEM_ID.jpg (.jpeg, .png, .webp)"
    )
    files.add_argument("--output", required=True, metavar="OUT", help="parquet to write; must not be an input")
    files.add_argument("--store", metavar="FOLDER", help=f"raw features (default: {STORE_NAME} beside OUT)")
    method = parser.add_argument_group("method")
    method.add_argument("--emb_dim", type=_positive, default=128, help="numbers an item (default: %(default)s)")
    method.add_argument(
        "--text_encoder",
        default=encoders.DEFAULT_TEXT,
        metavar="ID",
        help="minilm (in the package), a sentence-transformers model or folder, or none (default: %(default)s)",
    )
    method.add_argument(
        "--opening_words",
        type=int,
        default=10,
        metavar="N",
        help="encode a text's first N words on their own too, so that a long description does not drown the title; "
        "0: not (default: %(default)s)",
    )
    method.add_argument(
        "--image_encoder",
        default=encoders.DEFAULT_IMAGE,
        metavar="ID",
        help="efficientnet_lite0 (in the package), open_clip:NAME:TAG_OR_FILE, or none (default: %(default)s)",
    )
    method.add_argument("--fusion", choices=sorted(FUSIONS), default="pca", help="default: %(default)s")
    method.add_argument(
        "--per_modality", action="store_true", help="add txt_emb_dN and img_emb_dN, the fusion of each modality alone"
    )
    method.add_argument("--strict", action="store_true", help="a corrupt or oversized image is an error")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    machine.add_argument("--batch_size", type=_positive, help="items a forward pass (default: 16 on CPU, 256 on GPU)")
    machine.add_argument("--seed", type=int, default=0, help="for fusions with randomness (default: %(default)s)")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def check_paths(args: argparse.Namespace) -> None:
    """Refuse missing options and an output that is an input, before anything is read."""
    if args.opening_words < 0:
        raise UserError(f"--opening_words {args.opening_words}: expected 0 or more")
    if args.text_encoder == encoders.NONE and args.image_encoder == encoders.NONE:
        raise UserError("both encoders are none, expected at least one; drop --text_encoder none or the other")
    for option, source, encoder in (
        ("item_feature", args.item_feature, args.text_encoder),
        ("images", args.images, args.image_encoder),
    ):
        if encoder != encoders.NONE and source is None:
            name = "text" if option == "item_feature" else "image"
            raise UserError(f"--{option} is missing; give it, or leave the modality out with --{name}_encoder none")
    output = Path(args.output).resolve()
    for option in ("item_info", "item_feature", "images"):
        source = getattr(args, option)
        if source is not None and Path(source).resolve() == output:
            raise UserError(f"--output {args.output} is the --{option}; inputs are never modified, choose another file")
    if output.is_dir():
        raise UserError(f"--output {args.output}: this is a folder, expected the name of a parquet file to write")


def load_encoders(args: argparse.Namespace, names: list[str], num_items: int) -> dict[str, Encoder]:
    """The encoder of each modality, checked to give enough dimensions for --emb_dim."""
    device = encoders.resolve_device(args.device)
    encoders.make_deterministic(args.seed)
    batch_size = args.batch_size or (256 if device.type == "cuda" else 16)
    loaders = {"text": encoders.load_text_encoder, "image": encoders.load_image_encoder}
    loaded = {name: loaders[name](getattr(args, f"{name}_encoder"), device, batch_size) for name in names}
    views = {"text": 2 if args.opening_words else 1}
    dims = [encoder.dim * views.get(name, 1) for name, encoder in loaded.items()]
    most = min(num_items - 1, min(dims) if args.per_modality else sum(dims))
    if args.emb_dim > most:
        joined = " or ".join(names) if args.per_modality else " + ".join(names)
        raise UserError(
            f"--emb_dim is {args.emb_dim}, but {num_items} items and {joined} features have at most {most} "
            f"independent directions; choose --emb_dim {most} or less"
        )
    return loaded


def check_found(filled: Filled, name: str, source: str, strict: bool) -> None:
    """Refuse a modality with no content at all and, when strict, one with bad files."""
    if strict and filled.bad:
        raise UserError(
            f"{source}: found {len(filled.bad)} bad images, expected none with --strict: {_first_names(filled.bad)}; "
            "replace or remove them"
        )
    if not filled.keys:
        wanted = "titles or tags" if name == "text" else "usable images named ITEM_ID.jpg with ids of item_info"
        raise UserError(f"{source}: found no {wanted}; leave the modality out with --{name}_encoder none")


def to_modality(views: list[Filled], store: FeatureStore, num_items: int) -> Modality:
    """Features in the order of item_info, without its row 0; several views of the same items side by side."""
    ids = sorted(views[0].keys)
    rows = np.array(ids) - 1
    present = np.zeros(num_items, dtype=bool)
    present[rows] = True
    features = np.zeros((num_items, len(views) * store.dim), dtype=np.float32)
    features[rows] = np.hstack([store.rows([view.keys[item_id] for item_id in ids]) for view in views])
    return Modality(features, present)


def add_embedding(table: pa.Table, embedding: np.ndarray, prefix: str = "item_emb") -> pa.Table:
    """The table with its item_emb_d* of this width replaced in place, or appended.

    Args:
        table: item_info, rows 0 .. num_items.
        embedding: float32 [num_items, emb_dim]; row 0 of the column becomes zeros.
        prefix: of the column's name, before _d*.
    """
    emb_dim = embedding.shape[1]
    values = np.vstack([np.zeros((1, emb_dim), dtype=np.float32), embedding])
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), emb_dim)
    name = f"{prefix}_d{emb_dim}"
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    return table.replace_schema_metadata(None)  # pandas' notes would describe the column that was replaced


def write_output(args: argparse.Namespace, table: pa.Table, embeddings: dict[str, Fused], manifest: dict) -> None:
    """OUT, and OUT's name with .build.json: how it was made; embeddings by their columns' prefix."""
    for prefix, fused in embeddings.items():
        table = add_embedding(table, fused.embedding, prefix)
    with atomic_path(args.output) as path:
        pq.write_table(table, path)
    write_json(Path(args.output).with_suffix(".build.json"), manifest)


def count(filled: Filled, name: str, num_items: int) -> dict[str, int]:
    """How many items of a modality were found, missing and bad, which add up to num_items."""
    kinds = [kind for _, kind, _ in filled.bad]
    counts = {"found": len(filled.keys), "missing": num_items - len(filled.keys) - len(kinds)}
    if name == "image":
        counts |= {"corrupt": kinds.count("corrupt"), "oversized": kinds.count("oversized")}
    return counts


def print_summary(args: argparse.Namespace, filled: dict[str, list[Filled]], manifest: dict, unknown: int) -> None:
    """Print what the embedding was made of: items, what was missing or bad, speed, explained variance."""
    print(f"{'items':<12}{manifest['items']:,}")
    for name, views in filled.items():
        counts = ", ".join(f"{kind} {number:,}" for kind, number in manifest[name]["counts"].items())
        print(f"{name:<12}{counts}")
        computed, seconds = sum(view.computed for view in views), sum(view.seconds for view in views)
        speed = f", {computed / seconds:,.1f} items/s" if computed else ""
        reused = len({key for view in views for key in view.keys.values()}) - computed
        print(f"{'':<12}encoded {computed:,}, reused {reused:,} from the store, {seconds:,.1f} s{speed}")
        if views[0].bad:
            print(f"{'':<12}bad: {_first_names(views[0].bad)}")
    if unknown:
        print(f"{'':<12}{unknown:,} images of ids that are not in item_info were passed over")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in manifest["explained_variance"].items())
    print(f"{'explained':<12}{shares}")
    print(f"{'output':<12}{args.output}, column {', '.join(manifest['columns'])}")


def _first_names(bad: list[tuple[str, str, str]]) -> str:
    named = "; ".join(f"{name} {kind} ({reason})" for name, kind, reason in bad[:NAMES_SHOWN])
    return named + (f"; and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else "")


def main() -> None:
    """Read, encode, fuse, write."""
    args = parse_arguments()
    check_paths(args)
    table = read_item_info(args.item_info)
    num_items = table.num_rows - 1
    if num_items < 2:
        raise UserError(f"{args.item_info}: has {num_items} items beside the padding row 0, expected at least 2")
    sources = {}
    if args.text_encoder != encoders.NONE:
        sources["text"] = read_texts(args.item_feature, num_items)
    if args.image_encoder != encoders.NONE:
        sources["image"] = ImageSource(args.images, num_items)
    folder = args.store or Path(args.output).parent / STORE_NAME

    manifest = {"items": num_items, "emb_dim": args.emb_dim, "fusion": args.fusion, "seed": args.seed}
    filled, modalities = {}, {}
    for name, encoder in load_encoders(args, list(sources), num_items).items():
        store = FeatureStore(folder, encoder.id, encoder.dim)
        whole = fill(store, encoder, sources[name], title=name)
        check_found(whole, name, args.item_feature if name == "text" else args.images, args.strict)
        filled[name] = [whole]
        manifest[name] = {"encoder": encoder.id, "counts": count(whole, name, num_items)}
        if name == "text" and args.opening_words:
            filled[name].append(fill(store, encoder, openings(sources[name], args.opening_words), title="opening"))
            manifest[name]["opening_words"] = args.opening_words
        modalities[name] = to_modality(filled[name], store, num_items)
    fused = FUSIONS[args.fusion](modalities, args.emb_dim, args.seed)
    embeddings = {"item_emb": fused}
    if args.per_modality:
        for name, modality in modalities.items():
            embeddings[PREFIXES[name]] = FUSIONS[args.fusion]({name: modality}, args.emb_dim, args.seed)
    manifest["explained_variance"] = fused.explained
    manifest["columns"] = [f"{prefix}_d{args.emb_dim}" for prefix in embeddings]
    write_output(args, table, embeddings, manifest)
    print_summary(args, filled, manifest, sources["image"].unknown if "image" in sources else 0)


if __name__ == "__main__":
    run_cli(main)

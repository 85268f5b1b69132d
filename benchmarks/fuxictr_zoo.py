"""Which of FuxiCTR's models run here: every class of a checkout, trained for one small epoch on generated data.

python benchmarks/fuxictr_zoo.py ../FuxiCTR                          prints the table of docs/fuxictr-models.md
python benchmarks/fuxictr_zoo.py ../FuxiCTR --out docs/fuxictr-models.md      and replaces it there

The classes are the checkout's own files, unchanged, with their own defaults but for SETTINGS; nothing is downloaded.
The epoch is too short for an AUC to say which model is better: it says that the model learns. What does not run is in
the table with the reason, as an error of run_expid.py would give it.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

import numpy as np
import polars as pl
import torch
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from mm_fibinet import any_model, settings
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.demo.data import generate
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.item_table import load_item_table
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.model_source import with_checkout
from mm_fibinet.training import Trainer

SIZES = {"items": 800, "users": 2_000, "train_rows": 60_000, "valid_rows": 6_000, "test_rows": 500, "max_len": 16}
COMMON = {
    "embedding_dim": 16, "batch_size": 256, "learning_rate": 2e-3, "max_len": 16, "verbose": 0, "seed": 2025,
    "epochs": 1, "similarity_fields": True,
}  # fmt: skip
TARGET, SEQUENCE = ["item_id"], ["history_item_id"]
# What a class cannot do without, on the columns of the flat format.
SETTINGS = {
    "APG_DCNv2": {"condition_mode": "self-wise", "parallel_dnn_hidden_units": [64, 32]},
    "BST": {"bst_target_field": TARGET, "bst_sequence_field": SEQUENCE},
    "DCNv2": {"parallel_dnn_hidden_units": [64, 32]},
    "DIEN": {"dien_target_field": TARGET, "dien_sequence_field": SEQUENCE, "dien_neg_seq_field": []},
    "DIN": {"din_target_field": TARGET, "din_sequence_field": SEQUENCE},
    "DMIN": {"target_field": TARGET, "sequence_field": SEQUENCE, "neg_seq_field": [], "num_heads": 2},
    "DMR": {"target_field": TARGET, "sequence_field": SEQUENCE, "neg_seq_field": [], "context_field": ["likes_level"]},
    "LongCTR DCNv2": {"parallel_dnn_hidden_units": [64, 32]},
    "FGCNN": {"dnn_hidden_units": [64, 32]},
    "PPNet": {"gate_priors": ["item_id"]},
    "TransAct": {"target_item_field": TARGET, "sequence_item_field": SEQUENCE},
}
START, END = "<!-- table: benchmarks/fuxictr_zoo.py -->", "<!-- end of the table -->"


@dataclass
class Row:
    """A line of the table.

    Attributes:
        name: the class.
        model: what `model:` is set to.
        batches: the form that it reads.
        auc: on the validation rows after the epoch; None where it did not run.
        seconds: of the epoch and its evaluation.
        note: why it did not run, or which settings it needed.
    """

    name: str
    model: str
    batches: str = ""
    auc: float | None = None
    seconds: float = 0.0
    note: str = ""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Which of FuxiCTR's models run here.")
    parser.add_argument("checkout", metavar="FOLDER", help="a checkout of github.com/reczoo/FuxiCTR")
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="these classes alone")
    parser.add_argument("--out", metavar="FILE.md", help=f"a file with the lines {START} and {END} to write between")
    return parser.parse_args()


def train(row: Row, models: ModuleType, dataset: dict, folder: Path) -> None:
    """Train a class for an epoch, and note how it went."""
    try:
        model_class = settings.find_model(models, row.model)
        known = settings.known_settings(model_class)
        common = {name: value for name, value in COMMON.items() if name in known}
        experiment = {**common, **SETTINGS.get(row.name, {}), "model": row.model}
        params = settings.resolve(row.name, experiment, dataset, models)
        params.update(gpu=-1, model_id=row.name, model_root=str(folder), group_id=None)
        params["batch_format"] = row.batches = any_model.batch_format(model_class, params)
        seed_everything(params["seed"])
        feature_map = build_feature_map(params)
        model = any_model.make_model(model_class, feature_map, params)
        items = any_model.item_features(model, feature_map, params)
        table = load_item_table(params["item_info"], items, params.get("item_feature"))
        loaders = [
            MMCTRDataLoader(feature_map, params[f"{split}_data"], **{**params, "item_info": table, "shuffle": shuffle})
            for split, shuffle in {"train": True, "valid": False}.items()
        ]
        any_model.try_out(model, loaders[1])
        start = time.perf_counter()
        trainer = Trainer(model, **{**params, "checkpoint": folder / f"{row.name}.model"})
        row.auc = trainer.fit(*loaders, epochs=1)[-1]["AUC"]
        row.seconds = time.perf_counter() - start
    except Exception as error:  # one model's failure is a line of the table
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        row.note = text.replace(f"{models.checkout.folder}/", "").splitlines()[0]
        return
    needed = list(SETTINGS.get(row.name, {}))
    row.note = f"with {', '.join(f'`{name}`' for name in needed)}" if needed else ""


def markdown(rows: list[Row]) -> str:
    """The table: what runs, by name, then what does not."""
    ran = [row for row in rows if row.auc is not None]
    failed = [row for row in rows if row.auc is None]
    lines = [f"{len(ran)} of {len(rows)} classes run.", "", "| class | `model:` | batches | AUC | note |"]
    lines.append("|---|---|---|---:|---|")
    for row in [*ran, *failed]:
        auc = "-" if row.auc is None else f"{row.auc:.3f}"
        note = row.note.replace("|", "\\|")
        lines.append(f"| {row.name} | `{row.model}` | {row.batches or '-'} | {auc} | {note} |")
    return "\n".join(lines)


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a file.

    Raises:
        UserError: the marks are not there.
    """
    content = path.read_text(encoding="utf-8")
    if content.count(START) != 1 or content.count(END) != 1 or content.index(START) > content.index(END):
        raise UserError(f"--out {path}: expected one line {START} and one {END} after it")
    before, after = content.split(START)[0], content.split(END)[1]
    with atomic_path(path) as part:
        part.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def tell_contents(data: Path) -> None:
    """Give the items an embedding that tells topic and style, as titles and covers would, with some noise."""
    truth = pl.read_parquet(data / "item_truth.parquet").sort("item_id")
    info = pl.read_parquet(data / "MMCTR_demo" / "item_info.parquet")
    rng = np.random.default_rng(0)
    vectors = rng.normal(scale=0.3, size=(len(info), 128))
    for name in ("topic", "style"):
        kinds = truth[name].rank("dense").to_numpy().astype(int)
        vectors[1:] += rng.normal(size=(kinds.max() + 1, 128))[kinds]
    vectors[0] = 0
    column = pl.Series("item_emb_d128", vectors.astype(np.float32), dtype=pl.Array(pl.Float32, 128))
    info.with_columns(column).write_parquet(data / "MMCTR_demo" / "item_info.parquet")


def longctr(models: ModuleType) -> ModuleType:
    """FuxiCTR's LongCTR, whose classes are not in folders `src`."""
    settings.find_model(models, "model_zoo.LongCTR:SIM")
    return sys.modules["model_zoo.LongCTR"]


def main() -> None:
    """Try every class, then print or write the table."""
    args = parse_arguments()
    warnings.simplefilter("ignore")
    logging.disable()
    keep_freed_memory()
    torch.set_num_threads(1)
    models = with_checkout(model_zoo, args.checkout)
    if args.out:
        require_output(args.out, [args.checkout], option="--out")
    known = {(name, f"{module}:{name}") for name, modules in models.checkout.classes.items() for module in modules}
    for name, model_class in vars(longctr(models)).items():
        if isinstance(model_class, type):
            known.add((f"LongCTR {name}", f"model_zoo.LongCTR:{name}"))
    wanted = sorted(pair for pair in known if not args.only or pair[0] in args.only)
    rows = [Row(*pair) for pair in wanted]
    with tempfile.TemporaryDirectory(prefix="fuxictr_zoo_") as folder:
        data = Path(folder) / "data"
        generate(data, images=False, **SIZES)
        tell_contents(data)
        entry = settings.load_dataset_config(ROOT / "config", "MMCTR_demo")
        files = {f"{split}_data": str(data / "MMCTR_demo" / f"{split}.parquet") for split in ("train", "valid", "test")}
        files["item_info"] = str(data / "MMCTR_demo" / "item_info.parquet")
        dataset = {**entry, **files, "item_feature": str(data / "item_feature.parquet"), "data_root": str(data)}
        for row in rows:
            train(row, models, dataset, Path(folder))
            shown = row.note if row.auc is None else f"AUC {row.auc:.4f} in {row.seconds:.1f} s"
            print(f"{row.name:<14} {row.batches:<8} {shown}", flush=True)
    if args.out:
        write_between(Path(args.out), markdown(rows))
    else:
        print(markdown(rows))


if __name__ == "__main__":
    run_cli(main)

"""Which item embedding is worth most to a model? Every way to make one, several models, the same budget for all.

python benchmarks/item_embeddings.py --dataset_id MY_DATA --images data/mine/item_images --out embeddings
python benchmarks/item_embeddings.py ... --variants pca contrastive --expids FiBiNET_recommended --seeds 2025

Each variant is an item_info.parquet of its own, built from one store of features: what differs is item_emb_d128 (and,
for the semantic ids, codes beside it), while txt_emb_d128 and img_emb_d128 are in all of them. Runs that are finished
are not repeated: the same command goes on after an interruption. OUT/table.md has valid AUC of all, warm and cold rows;
OUT/EXPID/leaderboard.html the intervals.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import yaml

from mm_fibinet import commands, settings
from mm_fibinet.compare import jobs, leaderboard, task1
from mm_fibinet.compare.workers import Workers
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import write_text
from mm_fibinet.items.build import build
from mm_fibinet.items.fusion import CLICK_FUSIONS, FUSIONS
from mm_fibinet.items.semantic_ids import LEVEL, METHODS, SEQUENCE

EXPIDS = (task1.EXPID, "FiBiNET_recommended", "DeepFM_small_similarity")
BASELINE = "pca"
CODES = {
    "sequence": [{"name": SEQUENCE, "type": "sequence", "source": "item"}],
    "ids": [{"name": [f"{LEVEL}_{level}" for level in (1, 2, 3)], "type": "categorical", "source": "item"}],
}  # how models read codes: further lines of feature_cols

# What each variant's build is given beside the files; a mix of one column is that column as item_emb.
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "text": {"mix": {"txt_emb_d128": 1}},
    "image": {"mix": {"img_emb_d128": 1}},
    **{
        name: {"fusion": name} for name in FUSIONS if name not in (BASELINE, "mean")
    },  # mean needs encoders of one space
    **{name: {"fusion": name} for name in CLICK_FUSIONS},
    **{f"{method}_{form}": {"semantic_ids": method} for method in METHODS for form in CODES},
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare item embeddings by what models make of them.")
    parser.add_argument("--config", default=str(ROOT / "config"), help="config folder (default: %(default)s)")
    parser.add_argument("--dataset_id", required=True, help="its entry names item_info, item_feature, train and valid")
    parser.add_argument("--images", required=True, help="of build_item_emb.py")
    parser.add_argument("--out", default="embeddings", help="folder of everything (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--expids", nargs="+", default=list(EXPIDS), metavar="EXPID", help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2025, 2026, 2027])
    parser.add_argument("--code_size", type=int, default=64, help="semantic ids' codes a level (default: %(default)s)")
    parser.add_argument("--gpu", type=int, default=jobs.CPU, help="of all runs (default: the CPU)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    return parser.parse_args()


def build_variants(
    names: list[str], entry: dict, images: str, out: Path, code_size: int, make: Callable[..., Any]
) -> dict[str, Path]:
    """An item_info for each variant.

    Args:
        names: keys of VARIANTS.
        entry: of the data set.
        images: of the items.
        out: each file is out/VARIANT/item_info.parquet, the store out/store.
        code_size: of the semantic ids.
        make: builds one.

    Returns:
        {variant: its file}.
    """
    files = {}
    base = out / BASELINE / "item_info.parquet"
    for name in dict.fromkeys([BASELINE, *names]):  # the others may be made of it
        given = VARIANTS[name]
        files[name] = out / name / "item_info.parquet"
        if files[name].exists():
            continue
        print(f"building    {name}", flush=True)
        if "mix" in given:
            make(base, files[name], text_encoder="none", image_encoder="none", **given)
            continue
        if "semantic_ids" in given:
            given = {**given, "code_size": code_size}
        if given.get("fusion") in CLICK_FUSIONS:
            clicks = {"train": "train_data", "valid": "valid_data", "user_info": "user_info"}
            given = {**given, **{option: entry.get(key) for option, key in clicks.items()}}
        make(
            entry["item_info"],
            files[name],
            item_feature=entry["item_feature"],
            images=images,
            store=out / "store",
            **given,
        )
    return {name: files[name] for name in names}


def write_config(config: Path, dataset_id: str, out: Path) -> dict[str, str]:
    """The config folder with further entries, in which the data set has codes, too.

    Returns:
        {form of codes: the data set's ID}, and "" for the data set as it is.
    """
    folder = out / "config"
    shutil.copytree(config, folder, dirs_exist_ok=True)
    entry = settings.load_dataset_config(config, dataset_id)
    entry = {key: value for key, value in entry.items() if key != "dataset_id"}
    ids = {form: f"{dataset_id}_codes_{form}" for form in CODES}
    entries = {ids[form]: {**entry, "feature_cols": [*entry["feature_cols"], *lines]} for form, lines in CODES.items()}
    place, single = folder / "dataset_config", folder / "dataset_config.yaml"
    if single.is_file():  # which would hide the folder
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        single.rename(place / single.name)
    write_text(place / "item_embeddings.yaml", yaml.safe_dump(entries, sort_keys=False))
    return {"": dataset_id, **ids}


def changes(name: str, path: Path, ids: dict[str, str]) -> list[str]:
    """What --set says for the runs of one variant."""
    form = name.rpartition("_")[2] if "semantic_ids" in VARIANTS[name] else ""
    return [f"dataset_id={ids[form]}", *task1.variants({name: path})[name]]


def table(runs: list[jobs.Job]) -> str:
    """Valid AUC of all, warm and cold rows, mean over the seeds, a line a variant and experiment; Markdown."""
    lines = ["| experiment | embedding | runs | AUC | ± seeds | warm | cold |", "|---|---|---:|---:|---:|---:|---:|"]
    groups: dict[tuple[str, str], list[dict]] = {}
    for job in runs:
        results = groups.setdefault((job.expid, job.shown), [])
        if found := job.outcome().result:
            results.append(found)
    for (expid, name), results in groups.items():
        if not results:
            lines.append(f"| {expid} | {name} | 0 | | | | |")
            continue
        areas = [result["metrics"]["AUC"] for result in results]
        spread = f"{statistics.stdev(areas):.4f}" if len(areas) > 1 else ""
        warm, cold = (statistics.fmean(result[part]["AUC"] for result in results) for part in ("warm", "cold"))
        cells = [expid, name, len(areas), f"{statistics.fmean(areas):.4f}", spread, f"{warm:.4f}", f"{cold:.4f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Build, run, tell."""
    args = parse_arguments()
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: expected at least 1")
    settings.require_device(args.gpu)
    home, out = commands.Home.repository(ROOT), Path(args.out)
    entry = settings.load_dataset_config(Path(args.config), args.dataset_id)
    missing = [name for name in ("item_info", "item_feature", "train_data", "valid_data") if not entry.get(name)]
    if missing:
        raise UserError(f"--dataset_id {args.dataset_id}: its entry has no {missing[0]}, expected that file's path")
    files = build_variants(args.variants, entry, args.images, out, args.code_size, build)
    ids = write_config(Path(args.config), args.dataset_id, out)
    variants = {name: changes(name, path, ids) for name, path in files.items()}
    models = home.import_models()
    runs = jobs.plan(str(out / "config"), args.expids, args.seeds, models, out, [], None, variants)
    command = [*home.train, "--config", str(out / "config")]
    with jobs.locked(out) as lock, Workers(home.train, lock) as workers:
        jobs.run_all(runs, command, [args.gpu] * args.workers, lock, workers)
    for expid in args.expids:
        board = leaderboard.build([job.outcome() for job in runs if job.expid == expid], args.variants[0])
        (out / expid).mkdir(exist_ok=True)
        leaderboard.write(board, out / expid)
    text = table(runs)
    write_text(out / "table.md", text)
    print(text, end="")
    return 1 if any(job.error for job in runs) else 0


if __name__ == "__main__":
    run_cli(main)

"""The end of the demo: how good is the submission, and how good could it be?

The demo's clicks follow a stated model, so the best possible AUC is known; a submission is scored against the demo's
own test labels, over all rows and over warm and cold items apart.

python -m mm_fibinet.demo.score --data data/demo --expid FiBiNET_demo
"""

import argparse
import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.metrics import auc
from mm_fibinet.submission import MEMBER, check_submission

GROUPS = ("all", "warm", "cold")


def score(submission: str | Path, data: str | Path) -> dict[str, float]:
    """AUC of a submission on the demo's test labels.

    Args:
        submission: the zip.
        data: the demo's folder, with test_labels.parquet.

    Returns:
        {"all": AUC, "warm": AUC over items seen in train, "cold": AUC over the others}.
    """
    labels = pl.read_parquet(Path(data) / "test_labels.parquet").sort("ID")
    with zipfile.ZipFile(submission) as archive:
        scores = pl.read_csv(archive.read(MEMBER)).to_numpy()[:, 1]
    label, cold = labels["label"].to_numpy(), labels["cold"].to_numpy()
    rows = {"all": np.ones(len(label), bool), "warm": ~cold, "cold": cold}
    return {group: auc(label[rows[group]], scores[rows[group]]) for group in GROUPS}


def best_valid_auc(run_folder: Path) -> float | None:
    """The best valid AUC of a run's metrics.csv, None where there is none."""
    path = run_folder / "metrics.csv"
    if not path.exists():
        return None
    with open(path, newline="") as opened:
        return max(float(line["AUC"]) for line in csv.DictReader(opened))


def main() -> None:
    """Print the table and where the files are."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.demo.score", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", help="the demo's folder")
    parser.add_argument("--expid", default="FiBiNET_demo", help="experiment ID of the run")
    parser.add_argument("--model_root", default="checkpoints", help="where runs are kept")
    parser.add_argument("--submission", help="the zip (default: submission/EXPID.zip)")
    args = parser.parse_args()
    data = Path(args.data)
    if not (data / "demo.json").exists():
        raise UserError(f"{data}: no demo data there; make it with python -m mm_fibinet.demo.data --output {data}")
    submission = Path(args.submission or Path("submission") / f"{args.expid}.zip")
    facts = json.loads((data / "demo.json").read_text())
    check_submission(submission, data / facts["name"] / "test.parquet")
    run = Path(args.model_root) / facts["name"] / args.expid
    reached, best = score(submission, data), facts["bayes_auc"]
    valid = best_valid_auc(run)

    print(f"\n{'AUC':<24}{'valid':>8}{'test':>8}{'warm':>8}{'cold':>8}")
    shown = "-" if valid is None else f"{valid:.4f}"
    print(f"{args.expid:<24}{shown:>8}" + "".join(f"{reached[group]:>8.4f}" for group in GROUPS))
    print(
        f"{'best possible':<24}{best['valid']['all']:>8.4f}"
        + "".join(f"{best['test'][group]:>8.4f}" for group in GROUPS)
    )
    print(f"\ndata        {data}\nrun         {run}\nsubmission  {submission}")


if __name__ == "__main__":
    run_cli(main)

"""The end of the demo: how good is the submission, and how good could it be?

The demo's clicks follow a stated model, so the best possible AUC is known; a submission is scored against the demo's
own test labels, over all rows and over warm and cold items apart.

python -m mm_fibinet.demo.score --data data/demo --expid FiBiNET_demo
"""

import argparse
import csv
import zipfile
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.demo.data import read_demo_json
from mm_fibinet.errors import UserError, explain_os_error, printable, run_cli
from mm_fibinet.metrics import auc
from mm_fibinet.parquet_reader import read_column
from mm_fibinet.submission import MEMBER, check_submission

GROUPS = ("all", "warm", "cold")
LABELS = "test_labels.parquet"


def score(submission: str | Path, data: str | Path) -> dict[str, float | None]:
    """AUC of a submission on the demo's test labels.

    Args:
        submission: the zip, as `check_submission` accepts it.
        data: the demo's folder, with test_labels.parquet.

    Returns:
        {"all": AUC, "warm": AUC over items seen in train, "cold": AUC over the others}; None where a group's labels are
        all the same.
    """
    path = Path(data) / LABELS
    schema.read_test_ids(path)
    label, cold = read_column(path, "label"), read_column(path, "cold")
    schema.require_binary(label, path, "label")
    schema.require_binary(cold, path, "cold")
    with zipfile.ZipFile(submission) as archive:
        scores = np.loadtxt(archive.read(MEMBER).decode().splitlines(), delimiter=",", skiprows=1, ndmin=2)[:, -1]
    if len(scores) != len(label):
        raise UserError(f"{path}: {len(label)} rows, expected {len(scores)} (those of {submission})")
    rows = {"all": np.ones(len(label), bool), "warm": cold == 0, "cold": cold == 1}
    return {group: auc(label[at], scores[at]) if len(set(label[at])) == 2 else None for group, at in rows.items()}


def best_valid_auc(run_folder: Path) -> float | None:
    """The best valid AUC of a run's metrics.csv, None where there is none."""
    path = run_folder / "metrics.csv"
    if not path.exists():
        return None
    try:
        with open(path, newline="") as opened:
            return max(float(line["AUC"]) for line in csv.DictReader(opened))
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the metrics of a run, expected a column AUC of numbers; train again") from error


def main() -> None:
    """Print the table and where the files are."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.demo.score", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", help="the demo's folder")
    parser.add_argument("--expid", default="FiBiNET_demo", help="experiment ID of the run")
    parser.add_argument("--model_root", default="checkpoints", help="where runs are kept")
    parser.add_argument("--submission", help="the zip (default: submission/EXPID.zip)")
    args = parser.parse_args()
    data = Path(args.data)
    try:
        facts = read_demo_json(data)
    except FileNotFoundError:
        make = f"python -m mm_fibinet.demo.data --output {data}"
        raise UserError(f"{data}: no demo data there; make it with {make}") from None
    except OSError as error:
        raise explain_os_error(error, data / "demo.json", "read") from error
    name = facts["parameters"]["name"]
    submission = Path(args.submission or Path("submission") / f"{args.expid}.zip")
    check_submission(submission, data / name / "test.parquet")
    run = Path(args.model_root) / name / args.expid
    reached, best = score(submission, data), facts["bayes_auc"]

    expid = printable(args.expid)
    width = max(24, len(expid) + 2)
    print(f"\n{'AUC':<{width}}{'valid':>8}{'test':>8}{'warm':>8}{'cold':>8}")
    print(f"{expid:<{width}}{_shown(best_valid_auc(run))}" + "".join(_shown(reached[group]) for group in GROUPS))
    print(
        f"{'best possible':<{width}}{_shown(best['valid']['all'])}"
        + "".join(_shown(best["test"][group]) for group in GROUPS)
    )
    print()
    for what, path in (("data", data), ("run", run), ("submission", submission)):
        print(f"{what:<12}{printable(path)}")


def _shown(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>8}"


if __name__ == "__main__":
    run_cli(main)

"""Rows to judge a recipe by that no choice has seen: a tenth of the users, and items that training never met.

python benchmarks/kept_out.py --train train.parquet --valid valid.parquet --out kept_out

Valid judges every trial, so its figures hold some luck of the choice. Rows of train never judged anything. OUT gets
kept.parquet, the train rows of a tenth of the users; train.parquet, the other users' without some of the items, which
thereby are cold in kept.parquet; and valid.parquet, the other users', for early stopping. Train on the two, then score
kept.parquet once: prediction.py --test kept.parquet --labels kept.parquet.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
import polars as pl

from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import atomic_path, require_output_folder
from mm_fibinet.parquet_reader import open_parquet

USERS, ITEMS = 0.1, 0.3
FILES = ("kept.parquet", "train.parquet", "valid.parquet")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Keep users and items out of train and valid.")
    parser.add_argument("--train", required=True, help="train.parquet of the challenge's layout")
    parser.add_argument("--valid", required=True, help="valid.parquet")
    parser.add_argument("--out", required=True, type=Path, help="folder of the three files")
    parser.add_argument("--users", type=float, default=USERS, help="share of the users (default: %(default)s)")
    parser.add_argument("--items", type=float, default=ITEMS, help="share of train's items (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both draws (default: %(default)s)")
    return parser.parse_args()


def kept_out(
    train: pl.DataFrame, valid: pl.DataFrame, users: float, items: float, seed: int
) -> dict[str, pl.DataFrame]:
    """{file: rows}, with user_id and item_id of both splits."""
    rng = np.random.default_rng(seed)
    users_kept = _share(train["user_id"], users, rng)
    items_kept = _share(train["item_id"], items, rng)
    of_kept = pl.col("user_id").is_in(users_kept)
    return {
        "train": train.filter(~of_kept & ~pl.col("item_id").is_in(items_kept)),
        "valid": valid.filter(~of_kept),
        "kept": train.filter(of_kept).with_row_index("ID"),
    }


def _share(column: pl.Series, share: float, rng: np.random.Generator) -> list:
    distinct = column.unique().sort().to_numpy()
    return rng.choice(distinct, round(share * len(distinct)), replace=False).tolist()


def _read(path: str) -> pl.DataFrame:
    opened = open_parquet(path)
    for column in ("user_id", "item_id"):
        if column not in opened.schema_arrow.names:
            raise UserError(f"{path}: column {column} is missing, found {', '.join(opened.schema_arrow.names)}")
    return pl.from_arrow(opened.read()).drop("ID", strict=False)


def main() -> None:
    """Write the three files."""
    args = parse_arguments()
    for option, share in {"--users": args.users, "--items": args.items}.items():
        if not 0 < share < 1:
            raise UserError(f"{option} is {share:g}, expected a share above 0 and below 1")
    require_output_folder(args.out, [args.train, args.valid], FILES)
    train, valid = (_read(path) for path in (args.train, args.valid))
    parts = kept_out(train, valid, args.users, args.items, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        with atomic_path(args.out / f"{name}.parquet") as path:
            rows.write_parquet(path, use_pyarrow=True)
    met = parts["kept"]["item_id"].is_in(parts["train"]["item_id"].unique().to_list())
    print(f"{args.out}: {', '.join(f'{len(rows):,} rows of {name}' for name, rows in parts.items())}")
    print(f"cold        {1 - met.mean():.0%} of the rows of kept")


if __name__ == "__main__":
    run_cli(main)

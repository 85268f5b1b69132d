"""What histories once a user cost and save against histories in the rows: reading, memory, files, batches.

python benchmarks/user_info.py                  200,000 rows of 50,000 users, 1,000 positions: three minutes, 6 GB

Both forms are written from the same sequences and measured in turns, each in a process of its own; batches are
shuffled, and those of the two forms are compared before the clock starts. Rates are medians, by a clock of the
process's own work, which a busy neighbour stretches less.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import copy
import hashlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

from mm_fibinet.commands import wait_without_spinning

wait_without_spinning()  # as every command does; both sides inherit it

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure import in_turns, machine, median, spread
from benchmarks.remote import Remote
from benchmarks.synthetic import Sizes, feature_map, write_data
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import run_cli
from mm_fibinet.memory import keep_freed_memory, peak_memory

FORMS = {"rows": ["rows.parquet"], "user_info": ["pointing.parquet", "user_info.parquet"]}  # {form: split, users}
ROWS_A_WRITE = 16_384
SHORTEST = 5
CPU = torch.device("cpu")


class Side:
    """The training split in one of the forms.

    Args:
        form: of FORMS.
        folder: of `write_forms`.
        sizes: of the data.
        batch_sizes: {batch format: rows a batch}.
    """

    def __init__(self, form: str, folder: Path, sizes: Sizes, batch_sizes: dict[str, int]):
        keep_freed_memory()  # as run_expid.py does
        self.files, self.batch_sizes = [folder / name for name in FORMS[form]], batch_sizes
        before, started = peak_memory(), time.perf_counter()
        self.loader = MMCTRDataLoader(
            feature_map(sizes),
            str(self.files[0]),
            shuffle=True,
            max_len=sizes.max_len,
            item_info=str(folder / "item_info.parquet"),
            user_info=str(self.files[1]) if self.files[1:] else None,
        )
        self.facts = {"seconds to read": time.perf_counter() - started, "peak": peak_memory() - before}

    def measured(self) -> dict[str, float]:
        """Seconds to read, peak bytes of reading, bytes of the split and of its files."""
        users = self.loader.users
        tensors = self.loader.data.nbytes + (users.nbytes if users else 0)
        return {**self.facts, "tensors": tensors, "files": sum(path.stat().st_size for path in self.files)}

    def digest(self, batches: int) -> str:
        """Of the items of the first batches."""
        found = hashlib.sha256()
        for batch in itertools.islice(self._epoch("indices"), batches):
            found.update(batch.item_index.contiguous().numpy().tobytes())
        return found.hexdigest()

    def pass_over(self, batch_format: str, batches: int) -> float:
        """Rows per second of the process's own work of going through batches without using them."""
        count, started = 0, time.process_time()
        while count < batches:
            count += sum(1 for _ in itertools.islice(self._epoch(batch_format), batches - count))
        return batches * self.batch_sizes[batch_format] / (time.process_time() - started)

    def _epoch(self, batch_format: str) -> Iterator:
        """The full batches of the first epoch; the split has been read for all formats."""
        loader = copy.copy(self.loader)
        loader.batch_format, loader.batch_size = batch_format, self.batch_sizes[batch_format]
        loader.num_batches = loader.num_samples // loader.batch_size
        loader.set_position(0)
        return iter(loader)


def write_forms(folder: Path, sizes: Sizes, users: int, seed: int = 2025) -> None:
    """Write item_info, and rows of users with SHORTEST to max_len items, in both forms."""
    rng = np.random.default_rng(seed)
    write_data(folder, Sizes(rows=1, test_rows=0, items=sizes.items, emb_dim=sizes.emb_dim), seed)
    lengths = rng.integers(SHORTEST, sizes.max_len + 1, users)
    stops = np.cumsum(lengths)
    items = (1 + (sizes.items - 1) * rng.random(stops[-1]) ** 3).astype(np.int32)  # popular ones and many rare ones
    sequences = pa.ListArray.from_arrays(np.concatenate([[0], stops]).astype(np.int32), items)
    pq.write_table(pa.table({"user_id": np.arange(users), "item_seq": sequences}), folder / "user_info.parquet")
    user = rng.integers(0, users, sizes.rows)
    end = np.maximum(lengths[user] - rng.integers(0, 4, sizes.rows), 0)  # a user's rows are his last items
    columns = {
        "user_id": user,
        "item_id": rng.integers(1, sizes.items, sizes.rows),
        "likes_level": rng.integers(0, 11, sizes.rows),
        "views_level": rng.integers(0, 11, sizes.rows),
        "label": rng.integers(0, 2, sizes.rows),
    }
    pq.write_table(pa.table({**columns, "history_end": end}), folder / "pointing.parquet")
    writer = None
    for first in range(0, sizes.rows, ROWS_A_WRITE):
        part = slice(first, min(first + ROWS_A_WRITE, sizes.rows))
        history = np.zeros((part.stop - first, sizes.max_len), dtype=np.int32)
        for row, (one, before) in enumerate(zip(user[part], end[part], strict=True)):
            start = stops[one] - lengths[one]
            history[row, sizes.max_len - before :] = items[start : start + before]
        table = {name: values[part] for name, values in columns.items()}
        table["item_seq"] = pa.FixedSizeListArray.from_arrays(pa.array(history.ravel()), sizes.max_len)
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", pa.table(table).schema)
        writer.write_table(pa.table(table))
    writer.close()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Histories once a user against histories in the rows.")
    parser.add_argument("--rows", type=int, default=200_000, help="of the split (default: %(default)s)")
    parser.add_argument("--users", type=int, default=50_000, help="of user_info (default: %(default)s)")
    parser.add_argument("--max_len", type=int, default=1_000, help="history positions (default: %(default)s)")
    parser.add_argument("--items", type=int, default=91_718, help="of item_info (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=2_048, help="rows a batch of indices (default: %(default)s)")
    parser.add_argument("--triple_rows", type=int, default=256, help="rows a batch of triples (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the data there (default: a temporary folder)")
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    batch_sizes = {"indices": args.batch_size, "triple": args.triple_rows}
    sizes = Sizes(rows=args.rows, items=args.items, max_len=args.max_len)
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_forms(folder, sizes, args.users)
        sides = [stack.enter_context(Remote(Side, form, folder, sizes, batch_sizes)) for form in FORMS]
        facts = [side.measured() for side in sides]
        if len({side.digest(3) for side in sides}) > 1:
            raise RuntimeError("the two forms have different batches")
        batches = {"indices": max(2 * args.rows // args.batch_size, 1), "triple": max(args.rows // 5_000, 1)}
        works = [lambda side=side, form=form: side.pass_over(form, batches[form]) for form in batches for side in sides]
        for work in works:
            work()
        rates = in_turns(args.repeats, *works)
    found = machine(CPU)
    print(f"{args.rows:,} rows, {args.users:,} users, {args.max_len:,} positions, batches of {batch_sizes}")
    print(f"{found['cpu']}, {found['threads']} threads")
    print("| what | rows | user_info | ratio |\n|---|---:|---:|---:|")
    for name, unit in {"files": 1e6, "tensors": 1e6, "peak": 1e6, "seconds to read": 1}.items():
        rows, users = (fact[name] / unit for fact in facts)
        print(f"| {name}{', MB' if unit > 1 else ''} | {rows:,.1f} | {users:,.1f} | {rows / users:.1f} |")
    for place, name in enumerate(batches):
        rows, users = rates[2 * place : 2 * place + 2]
        spreads = f"{spread(rows):.0%}, {spread(users):.0%}"
        print(f"| {name}, rows/s of a core (spread {spreads}) | {median(rows):,.0f} | {median(users):,.0f} |", end=" ")
        print(f"{median(users) / median(rows):.2f} |")


if __name__ == "__main__":
    from benchmarks import user_info  # where the other processes find Side; they have a __main__ of their own

    run_cli(user_info.main)

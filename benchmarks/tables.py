"""What a large embedding table costs a training step: each `table_optimizer`, and a small table beside them.

python benchmarks/tables.py                     a CPU: a minute
python benchmarks/tables.py --gpu 0

DeepFM on four fields and batches in memory, so that the table is what is measured. The sides are measured in
turns, each in a process of its own; the numbers are medians, and the peak of memory is what training adds to a process.
On a CPU the clock is that of the process's own work, which a busy neighbour does not stretch.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

import torch
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from benchmarks.measure import in_turns, machine, median, now, spread
from benchmarks.remote import Remote
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.memory import keep_freed_memory, peak_memory
from mm_fibinet.table_optimizer import TABLE_OPTIMIZERS
from mm_fibinet.training import Trainer

SIDES = (*TABLE_OPTIMIZERS, "small table")
SMALL = 1_000  # rows
ITEMS, LEVELS = 91_718, 11  # MicroLens-1M's


class Side:
    """A model that trains one way.

    Args:
        name: of SIDES.
        users: rows of user_id's table.
        embedding_dim: its width.
        batch_size: rows a batch, each of another user, mostly.
        gpu: GPU index, -1 = CPU.
    """

    def __init__(self, name: str, users: int, embedding_dim: int, batch_size: int, gpu: int):
        if gpu < 0:
            keep_freed_memory()  # as run_expid.py does
        self.device = torch.device("cuda", gpu) if gpu >= 0 else torch.device("cpu")
        self.before = self._peak()
        seed_everything(2025)
        users = SMALL if name == "small table" else users
        sizes = {"user_id": users, "item_id": ITEMS, "likes_level": LEVELS, "views_level": LEVELS}
        columns = [{"name": key, "type": "categorical", "vocab_size": size} for key, size in sizes.items()]
        columns[1]["source"] = "item"
        model = model_zoo.DeepFM(
            build_feature_map({"dataset_id": "tables", "feature_cols": columns}),
            embedding_dim=embedding_dim,
            hidden_units=[256, 128],
            embedding_regularizer=1e-6,
            learning_rate=1e-3,
            gpu=gpu,
        )
        self.batches = [
            {
                **{key: torch.randint(1, size, (batch_size,), device=self.device) for key, size in sizes.items()},
                "label": (torch.rand(batch_size, device=self.device) < 0.25).float(),
            }
            for _ in range(8)
        ]
        self.trainer = Trainer(model.train(), table_optimizer=name if name in TABLE_OPTIMIZERS else "dense")

    def step(self, steps: int) -> float:
        """Seconds a step."""
        started = self._now()
        for index in range(steps):
            self.trainer.step += 1
            self.trainer._train_step(self.batches[index % len(self.batches)], None, last=True)
        return (self._now() - started) / steps

    def memory(self) -> int:
        """Bytes at the peak, beyond what the imports take."""
        return max(self._peak() - self.before, 0)  # the system counts pages some at a time

    def _now(self) -> float:
        return now(self.device) if self.device.type == "cuda" else time.process_time()

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_memory()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a large embedding table costs a training step.")
    parser.add_argument("--users", type=int, default=1_000_001, help="rows of the table (default: %(default)s)")
    parser.add_argument("--embedding_dim", type=int, default=64, help="its width (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8192, help="rows a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="steps a repeat (default: 3, on a GPU 100)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--gpu", type=int, default=-1, help="GPU index, -1 for CPU (default)")
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    if args.gpu >= 0 and not torch.cuda.is_available():
        raise UserError(f"--gpu {args.gpu}: found no CUDA device; use --gpu -1 for the CPU")
    steps = args.steps or (100 if args.gpu >= 0 else 3)
    with ExitStack() as stack:
        arguments = (args.users, args.embedding_dim, args.batch_size, args.gpu)
        sides = [stack.enter_context(Remote(Side, name, *arguments)) for name in SIDES]
        for side in sides:
            side.step(2)  # the first makes the moments
        times = in_turns(args.repeats, *(lambda side=side: side.step(steps) for side in sides))
        peaks = [side.memory() for side in sides]
    found = machine(torch.device("cuda", args.gpu) if args.gpu >= 0 else torch.device("cpu"))
    print(f"{args.users:,} rows of {args.embedding_dim}, batch {args.batch_size:,}; {found['device']}, {found['cpu']}")
    print("| table_optimizer | ms a step | spread | peak memory, MB |\n|---|---:|---:|---:|")
    for name, seconds, peak in zip(SIDES, times, peaks, strict=True):
        print(f"| {name} | {median(seconds) * 1e3:,.2f} | {spread(seconds):.0%} | {peak / 1e6:,.0f} |")
    dense, *of_rows, small = map(median, times)
    for name, own in zip(SIDES[1:-1], of_rows, strict=True):
        added = (dense - small) / (own - small)
        print(f"dense / {name}: {dense / own:.1f}; of what the table adds to a small one's step: {added:.1f}")


if __name__ == "__main__":
    from benchmarks import tables  # where the other processes find Side; they have a __main__ of their own

    run_cli(tables.main)

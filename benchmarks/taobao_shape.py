"""What training costs at Taobao-MM's shape: a million users of 1,000 positions, five million items, int8 embeddings.

python benchmarks/taobao_shape.py                         a tenth of it, some steps on a CPU: two minutes, 2 GB
python benchmarks/taobao_shape.py --scale 1 --gpu 0       all of it on a GPU
python benchmarks/taobao_shape.py --scale 1 --epoch       whole epochs, of --rows rows each

The data are generated in the file contract, as `build_dataset.py --recipe taobao_mm` writes them, and the experiment
IDs of config/model_config/taobao_mm.yaml train on them as they stand. Ids and labels are drawn, so speed and memory
mean something here, and metrics nothing. Each experiment and number of rows has a process of its own: its peak is its
own. Rates are by the wall clock; beside them stands the process's own CPU time, which busy neighbours stretch less.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

from mm_fibinet.commands import wait_without_spinning

wait_without_spinning()  # as every command does; the measured processes inherit it

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from benchmarks.measure import machine, now
from benchmarks.remote import Remote
from mm_fibinet import any_model, settings
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.item_table import shared_item_table
from mm_fibinet.memory import keep_freed_memory, peak_memory
from mm_fibinet.training import Trainer

DATASET = "taobao_mm"
CONFIG = ROOT / "config"
EXPIDS = ("MUSE_Taobao_MM", "DIN_Taobao_MM", "FiBiNET_Taobao_MM")
USERS, ITEMS, POSITIONS, EMB_DIM = 1_000_000, 5_000_000, 1_000, 128
SHORT_SHARE, SHORTEST = 0.2, 5  # of the users, and their fewest items; the others have all positions
ITEM_COLUMNS = {"206": 15_000, "213": 400, "214": 40}  # category, city, province: how many each
USER_COLUMNS = {"130_1": 3, "130_2": 10, "130_3": 8, "130_4": 400, "130_5": 40}
VALUES_AT_ONCE = 1 << 24
SPLITS = {"valid": 20_000, "test": 20_000}
WARM_UP = 3  # steps


@dataclass(frozen=True)
class Shape:
    """How much of it there is.

    Attributes:
        users, items: of user_info and item_info; the padding item is counted.
        positions: of the longest history.
        rows: of each training file, train_ROWS.parquet.
    """

    users: int
    items: int
    positions: int
    rows: tuple[int, ...]


def write_data(folder: Path, shape: Shape, threads: int, seed: int = 2026) -> None:
    """Write the data set's files and its entry; the same numbers for any number of threads."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lengths = np.full(shape.users, shape.positions)
    short = rng.random(shape.users) < SHORT_SHARE
    lengths[short] = rng.integers(min(SHORTEST, shape.positions), shape.positions + 1, short.sum())
    profile = {name: rng.integers(1, size, shape.users, dtype=np.int32) for name, size in USER_COLUMNS.items()}
    with ThreadPoolExecutor(threads) as pool:
        users = partial(_users, shape, lengths, profile, seed)
        _write_parts(folder / "user_info.parquet", users, shape.users, VALUES_AT_ONCE // shape.positions, pool)
        _write_parts(folder / "item_info.parquet", partial(_items, seed), shape.items, VALUES_AT_ONCE // EMB_DIM, pool)
    for rows in shape.rows:
        _write(folder / f"train_{rows}.parquet", _rows(shape, lengths, rows, rng))
    for split, rows in SPLITS.items():
        table = _rows(shape, lengths, rows, rng)
        if split == "test":
            table = table.drop_columns("label").append_column("ID", pa.array(np.arange(rows)))
        _write(folder / f"{split}.parquet", table)
    entry = {f"{split}_data": str(folder / f"{split}.parquet") for split in SPLITS}
    entry["train_data"] = str(folder / f"train_{shape.rows[0]}.parquet")
    entry |= {name: str(folder / f"{name}.parquet") for name in ("item_info", "user_info")}
    columns = [{"name": name, "type": "meta"} for name in ("user_id", "item_seq")]
    columns += [{"name": "item_id", "type": "categorical", "source": "item"}]
    columns += [_categorical(name, size, "item") for name, size in ITEM_COLUMNS.items()]
    columns += [{"name": f"item_emb_d{EMB_DIM}", "type": "embedding", "source": "item", "scale": 1 / 127}]
    columns += [_categorical(name, size, "user") for name, size in USER_COLUMNS.items()]
    label = {"name": "label", "dtype": "float"}
    entries = {DATASET: {"data_root": str(folder), **entry, "feature_cols": columns, "label_col": label}}
    (folder / "dataset_config.yaml").write_text(yaml.safe_dump(entries))


def _users(
    shape: Shape, lengths: np.ndarray, profile: dict[str, np.ndarray], seed: int, first: int, stop: int
) -> pa.Table:
    """Some rows of user_info."""
    ends = np.concatenate([[0], np.cumsum(lengths[first:stop])])
    items = _draw(np.random.default_rng([seed, 1, first]), shape.items, ends[-1])
    lists = pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(items))
    columns = {name: values[first:stop] for name, values in profile.items()}
    return pa.table({"user_id": np.arange(first, stop), "item_seq": lists, **columns})


def _items(seed: int, first: int, stop: int) -> pa.Table:
    """Some rows of item_info, with an embedding of int8; row 0 is the padding item."""
    rng, count = np.random.default_rng([seed, 2, first]), stop - first
    columns = {name: rng.integers(1, size, count, dtype=np.int32) for name, size in ITEM_COLUMNS.items()}
    vectors = rng.integers(-127, 128, (count, EMB_DIM), dtype=np.int8)
    if not first:
        for values in (*columns.values(), vectors):
            values[0] = 0
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), EMB_DIM)
    return pa.table({"item_id": np.arange(first, stop), **columns, f"item_emb_d{EMB_DIM}": lists})


def _rows(shape: Shape, lengths: np.ndarray, rows: int, rng: np.random.Generator) -> pa.Table:
    """Rows that have all of their users' items as history, as Taobao-MM's have."""
    user = rng.integers(0, shape.users, rows)
    item, label = _draw(rng, shape.items, rows), rng.integers(0, 2, rows)
    return pa.table({"user_id": user, "history_end": lengths[user], "item_id": item, "label": label})


def _draw(rng: np.random.Generator, items: int, count: int) -> np.ndarray:
    """Item ids, some popular and most rare: int32 [count]."""
    return 1 + ((items - 1) * rng.random(count, dtype=np.float32) ** 3).astype(np.int32)


def _categorical(name: str, size: int, source: str) -> dict:
    return {"name": name, "type": "categorical", "vocab_size": size, "source": source}


def _write_parts(
    folder: Path, make: Callable[[int, int], pa.Table], rows: int, at_once: int, pool: ThreadPoolExecutor
) -> None:
    """A folder of part files, of `at_once` rows each, made and written side by side."""
    folder.mkdir()

    def part(first: int) -> None:
        _write(folder / f"part-{first}.parquet", make(first, min(first + at_once, rows)))

    list(pool.map(part, range(0, rows, at_once)))


def _write(path: Path, table: pa.Table) -> None:
    """One file; ids drawn at random neither compress nor make a dictionary."""
    pq.write_table(table, path, compression="none", use_dictionary=False)


class Side:
    """One experiment on one number of rows, made as run_expid.py makes it.

    Args:
        expid: of config/model_config/taobao_mm.yaml.
        folder: of `write_data`.
        rows: of the training split.
        gpu: GPU index, -1 = CPU.
        changes: as of `--set`.
    """

    def __init__(self, expid: str, folder: Path, rows: int, gpu: int, changes: list[str]):
        if gpu < 0:
            keep_freed_memory()
        self.device = torch.device("cuda", gpu) if gpu >= 0 else torch.device("cpu")
        self.started = peak_memory()
        train = f"train_data={folder / f'train_{rows}.parquet'}"
        params = settings.load_params(CONFIG, expid, model_zoo, [train, *changes], folder, gpu=gpu)
        began = time.perf_counter()
        features = build_feature_map(params)
        seed_everything(params["seed"])
        model = any_model.make_model(getattr(model_zoo, params["model"]), features, params)
        made = time.perf_counter()
        items = any_model.item_features(model, features, params)
        table = shared_item_table(params["item_info"], items, None, self.device)
        read_items = time.perf_counter()
        options = {**params, "item_info": table, "batch_format": any_model.batch_format(type(model), params)}
        self.loader = MMCTRDataLoader(features, params["train_data"], **options)
        self.facts = {
            "features and model, s": made - began,
            "items, s": read_items - made,
            "users and rows, s": time.perf_counter() - read_items,
            "items, MB": sum(values.nbytes for values in table.columns.values()) / 1e6,
            "users, MB": self.loader.users.nbytes / 1e6,
            "rows, MB": self.loader.data.nbytes / 1e6,
            "weights, MB": sum(value.nbytes for value in model.parameters()) / 1e6,
            "peak of reading, MB": (peak_memory() - self.started) / 1e6,
        }
        self.trainer = Trainer(model.train(), **params)

    def measured(self) -> dict[str, float]:
        """What reading took, by name."""
        return self.facts

    def train(self, steps: int | None, profile: bool = False) -> dict[str, float]:
        """Train, loading included; what it took, by name.

        Args:
            steps: after WARM_UP others; None for a whole epoch.
            profile: print where the time goes, by torch's profiler.
        """
        count = len(self.loader) - WARM_UP if steps is None else min(steps, len(self.loader) - WARM_UP)
        batches = iter(self.loader)
        for _ in range(WARM_UP):
            self._step(next(batches))
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with torch.profiler.profile(activities=activities) if profile else ExitStack() as profiler:
            began, worked, rows = now(self.device), time.process_time(), 0
            for _ in range(count):
                rows += self._step(next(batches))
            seconds, worked = now(self.device) - began, time.process_time() - worked
        if profile:
            order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
            print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60), flush=True)
        on_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return {
            "rows": rows,
            "rows/s": rows / seconds,
            "ms a step": 1e3 * seconds / count,
            "CPU ms a step": 1e3 * worked / count,
            "peak, MB": (peak_memory() - self.started) / 1e6,
            "peak of the GPU, MB": on_gpu / 1e6,
        }

    def _step(self, batch) -> int:
        self.trainer.step += 1
        self.trainer.total_steps += 1
        return self.trainer._train_step(batch, self.loader, last=False)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What training costs at Taobao-MM's shape.")
    parser.add_argument("--scale", type=float, default=0.1, help="of 1 M users, 5 M items (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", help="training rows (default: 1 M and 4 M, times --scale)")
    parser.add_argument("--positions", type=int, default=POSITIONS, help="of a history (default: %(default)s)")
    parser.add_argument("--expids", nargs="+", default=EXPIDS, help="experiments (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as of run_expid.py")
    parser.add_argument("--steps", type=int, help="on the clock (default: 20, on a GPU 300)")
    parser.add_argument("--epoch", action="store_true", help="whole epochs in place of --steps")
    parser.add_argument("--profile", action="store_true", help="print where the steps' time goes")
    parser.add_argument("--gpu", type=int, default=-1, help="GPU index, -1 for CPU (default)")
    parser.add_argument("--threads", type=int, default=4, help="that draw the data (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the data there, or take them (default: a temporary folder)")
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    if args.gpu >= 0 and not torch.cuda.is_available():
        raise UserError(f"--gpu {args.gpu}: found no CUDA device; use --gpu -1 for the CPU")
    rows = args.rows or [int(1e6 * args.scale), int(4e6 * args.scale)]
    shape = Shape(int(USERS * args.scale), int(ITEMS * args.scale), args.positions, tuple(rows))
    steps = None if args.epoch else args.steps or (300 if args.gpu >= 0 else 20)
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        began = time.perf_counter()
        if not (folder / "dataset_config.yaml").exists():
            write_data(folder.resolve(), shape, args.threads)
        print(
            f"data: {time.perf_counter() - began:.0f} s, {sum(p.stat().st_size for p in folder.iterdir()) / 1e9:.1f} GB"
        )
        found = machine(torch.device("cuda", args.gpu) if args.gpu >= 0 else torch.device("cpu"))
        print(f"{shape}; {found['device']}, {found['cpu']}", flush=True)
        for expid in args.expids:
            for count in rows:
                with Remote(Side, expid, folder.resolve(), count, args.gpu, args.set) as side:
                    facts = {**side.measured(), **side.train(steps, args.profile)}
                facts["an epoch, s"] = count / facts["rows/s"]
                print(f"{expid}, {count:,} rows: ", end="")
                print(", ".join(f"{name} {value:,.1f}" for name, value in facts.items()), flush=True)


if __name__ == "__main__":
    from benchmarks import taobao_shape  # where the other processes find Side; they have a __main__ of their own

    run_cli(taobao_shape.main)

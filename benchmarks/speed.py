"""How fast, against the challenge's way and FuxiCTR's: one run, one table of ratios, one figure.

python benchmarks/speed.py                          2 CPU cores: about 10 minutes
python benchmarks/speed.py --gpu 0 --full           the challenge's size on a GPU
python benchmarks/speed.py --only loader gauc       parts of it
python benchmarks/speed.py --busy                   quiet, and beside one busy process: about 5 minutes

The data is generated (benchmarks/synthetic.py), the other side is written plainly (benchmarks/reference.py) and
computes the same values (tests/test_benchmarks.py). Whatever is compared is measured in turns, each side in a process
of its own; slow references are timed on fewer rows, and every rate is per row. Results: speed.md, speed.json and
speed.png in --out.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's: nothing but its table

from mm_fibinet.commands import wait_without_spinning

wait_without_spinning()  # as every command does; both sides inherit it

import numpy as np
import torch
from fuxictr.metrics import evaluate_metrics

from benchmarks import figure, measure
from benchmarks.busy import busy
from benchmarks.contenders import FuxiCTRLoader, Ours, Reference, Task
from benchmarks.encoding import LOOPS, Encoding, Notebook, require_comparable
from benchmarks.figure import Result
from benchmarks.measure import in_turns, median
from benchmarks.remote import Remote, RemoteError
from benchmarks.synthetic import Sizes, write_data
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.items.encoders import resolve_precision
from mm_fibinet.metrics import group_auc
from mm_fibinet.options import DEFAULT_IMAGE, DEFAULT_TEXT

SECTIONS = ("loader", "training", "encoding", "gauc", "scoring", "scaling", "memory")
MODELS = ("FiBiNET", "DIN")
TRAINING_TARGETS = {"FiBiNET": 6.0, "DIN": 2.5}
GPU_TARGET, GPU_EPOCH_SECONDS = 50.0, 5.0  # of an epoch of FULL_ROWS on an H100 or H200, in 16 bits
# How a model may be trained in 16 bits: settings of the loop, and what the table says of them.
CPU_WAYS = {"usual": {}}
GPU_WAYS = {"usual": {}, "plain": {"cuda_graphs": False}, "compiled": {"compile": True}}
HOW = {"usual": "", "plain": ", plain steps", "compiled": ", compiled"}
ROWS_PER_GROUP = 10
FULL_ROWS = 3_600_000
RAY_SECONDS = 30
PREFETCHED = 7  # batches that 3 workers may have ready: 2 each, and the one in hand


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed against the challenge's way and FuxiCTR's.")
    sizes = Sizes()
    parser.add_argument("--rows", type=int, default=sizes.rows, help="training rows (default: %(default)s)")
    parser.add_argument("--test_rows", type=int, default=sizes.test_rows, help="rows to score (default: %(default)s)")
    parser.add_argument("--items", type=int, default=sizes.items, help="items (default: %(default)s)")
    parser.add_argument("--max_len", type=int, default=sizes.max_len, help="history positions (default: %(default)s)")
    parser.add_argument("--emb_dim", type=int, default=sizes.emb_dim, help="embedding width (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, help="rows a batch (default: 4096, with --full 8192)")
    parser.add_argument("--groups", type=int, default=100_000, help="groups of gAUC (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="of the row-wise loader (default: 0, on a GPU 3)")
    for modality, default in (("text", DEFAULT_TEXT), ("image", DEFAULT_IMAGE)):
        known = f"build_item_emb.py's, one of {', '.join(LOOPS[modality])} (default: %(default)s)"
        parser.add_argument(f"--{modality}_encoder", default=default, help=known)
    parser.add_argument("--threads", type=int, default=0, help="of torch on CPU (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default: %(default)s)")
    parser.add_argument("--gpu", type=int, default=-1, help="GPU index, -1 for CPU (default)")
    parser.add_argument("--full", action="store_true", help="3.6 million rows, batch 8192, whole epochs of ours")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs; the ratios mean nothing")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="parts to measure")
    parts.add_argument("--busy", action="store_true", help="only ours, quiet and beside one busy process")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "out"), help="folder of the results")
    return parser.parse_args()


class Bench:
    """One run's settings and results.

    Attributes:
        task: what is measured.
        results: rows of the table.
        curves: cost against rows, items and history length.
        peaks: of the machine.
        half: the precision of 16 bits that it has: bf16, or a T4's fp16.
        notes: lines under the table.
    """

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.quick, self.full, self.groups = args.quick, args.full, args.groups
        self.repeats = args.repeats
        sizes = Sizes(args.rows, args.test_rows, args.items, args.max_len, args.emb_dim)
        batch_size = args.batch_size or 4096
        if args.full:
            sizes, batch_size = dataclasses.replace(sizes, rows=FULL_ROWS), args.batch_size or 8192
        if args.quick:
            sizes, batch_size = Sizes(500, 300, 60, 8, 16), 64
            self.groups, self.repeats = 20, 2
        workers = args.workers if args.workers is not None else (3 if args.gpu >= 0 else 0)
        threads = 1 if args.quick else args.threads  # tiny tensors: threads would only wait for each other
        encoders = args.text_encoder, args.image_encoder
        self.task = Task(folder, sizes, batch_size, args.gpu, workers, args.quick, threads, *encoders)
        if threads:
            torch.set_num_threads(threads)
        self.half = measure.half_precision(self.task.device)
        self.out = Path(args.out).resolve()
        self.results: list[Result] = []
        self.curves: list[dict] = []
        self.peaks: dict[str, float] = {}
        self.notes: list[str] = []

    def add(self, what: str, unit: str, reference: list[float], ours: list[float], **more) -> None:
        """One line of the table from the repeats' values; shown at once."""
        spreads = [measure.spread(values) for values in (reference, ours)]
        self.results.append(Result(what, unit, median(reference), median(ours), spread=max(spreads), **more))
        print(figure.line(self.results[-1]), flush=True)

    def note(self, text: str) -> None:
        """A line under the table."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def loader(self) -> None:
        """(a) Rows/s of loading alone, shuffled."""
        batches = 12 if self.quick else 100
        without_workers = dataclasses.replace(self.task, workers=0)
        with Remote(Ours, "DIN", self.task) as ours, Remote(Reference, "DIN", without_workers) as reference:
            slow, indices, triples = in_turns(
                self.repeats,
                lambda: reference.pass_over(3),
                lambda: ours.pass_over("indices", batches * 4),
                lambda: ours.pass_over("triple", max(batches // 4, 2)),
            )
        self.add("loader, indices / row-wise", "rows/s", slow, indices, target=300.0)
        self.add("loader, triple / row-wise", "rows/s", slow, triples, target=15.0)
        with Remote(Reference, "DIN", dataclasses.replace(self.task, workers=3)) as reference:
            rate = reference.pass_over(9, PREFETCHED)
        self.add("loader, triple / row-wise, 3 workers", "rows/s", [rate], triples)
        if self.quick:
            return
        try:
            with Remote(FuxiCTRLoader, "DIN", self.task, seconds=RAY_SECONDS * 3) as stock:
                rate = stock.pass_over(RAY_SECONDS)
            self.add("loader, indices / FuxiCTR's parquet", "rows/s", [rate], indices)
        except RemoteError as error:
            self.note(f"FuxiCTR's parquet loader did not run: {str(error).strip().splitlines()[-1]}")

    def training(self) -> None:
        """(b) Rows/s of training, loading included, and the share of the machine's peak."""
        self._measure_peaks()
        for name in MODELS:
            self._train(name)

    def encoding(self) -> None:
        """(c) Items/s of the encoders, against a notebook's loop, and the shares of possible speeds."""
        self._measure_peaks()
        for modality in ("text", "image"):
            self._encode(modality)

    def _encode(self, modality: str) -> None:
        batches = 1 if self.quick else (30 if self.task.gpu >= 0 else 6)
        size = 2 if self.quick else None
        with Remote(Notebook, modality, self.task) as loop, Remote(Encoding, modality, self.task, size) as ours:
            items = batches * ours.full_batch()
            few = max(items // (16 if self.task.gpu >= 0 else 4), 1)
            loop.built_per_second(few)
            ours.items_per_second(1)
            alone, built, network = in_turns(
                self.repeats,
                lambda: loop.built_per_second(few),
                lambda: ours.built_per_second(items),
                lambda: ours.items_per_second(batches),
            )
            self.note(f"{modality}: {ours.name()}")
            self.add(f"encoding, {modality}, a build / a notebook's loop", "items/s", alone, built, target=1.5)
            share = median(built) / median(network)
            self.note(f"{modality}: a build reaches {share:.0%} of the network's own speed on prepared batches")
            self._share_of_peak(modality, self.encoder_precision(), ours.flops_per_item(), median(network), "an item")
            self.note(f"{modality}: {ours.seconds_to_prepare() * 1e3:.2f} ms an item to prepare, in one thread")

    def encoder_precision(self) -> str:
        """What a build computes in here."""
        return "fp32" if resolve_precision("auto", self.task.device) == torch.float32 else self.half

    def _measure_peaks(self) -> None:
        if self.peaks:
            return
        device = self.task.device
        self.peaks = {
            "fp32": measure.peak_flops(device, torch.float32),
            self.half: measure.peak_flops(device, measure.HALF[self.half]),
            "bytes": measure.peak_bandwidth(device),
        }
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what is measured next runs in processes of its own
        self.note(
            f"peak of the machine: {self.peaks['fp32'] / 1e9:,.0f} GFLOP/s fp32, {self.peaks[self.half] / 1e9:,.0f} "
            f"GFLOP/s {self.half} (matrix product), {self.peaks['bytes'] / 1e9:,.1f} GB/s (copy, read + written)"
        )

    def gauc(self) -> None:
        """(d) gAUC of many groups; FuxiCTR's once, it takes minutes."""
        rng = np.random.default_rng(0)
        rows = self.groups * ROWS_PER_GROUP
        group = rng.permutation(np.repeat(np.arange(self.groups), ROWS_PER_GROUP))
        label = (rng.random(rows) < 0.25).astype(np.float64)
        score = np.round(rng.random(rows), 4)  # with ties
        times = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            value = group_auc(label, score, group)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = evaluate_metrics(label, score, ["gAUC"], group)["gAUC"]
        stock = time.perf_counter() - started
        self.add(f"gAUC, {self.groups:,} groups", "s", [stock], times, target=50.0)
        self.note(f"gAUC: FuxiCTR's {expected:.12f}, ours {value:.12f}")

    def scoring(self) -> None:
        """(e) Seconds to score the test split, from the rate over some of its batches; with a GPU ours scores all."""
        rows = self.task.sizes.test_rows
        slow, warm_up = (12, PREFETCHED) if self.task.workers else (2, 1)
        fast = None if self.task.gpu >= 0 else 8
        for name in MODELS:
            with Remote(Ours, name, self.task) as ours, Remote(Reference, name, self.task) as reference:
                seconds = in_turns(
                    min(self.repeats, 2),
                    lambda: rows / reference.score(slow, warm_up),
                    lambda: rows / ours.score(fast),
                )
            self.add(f"scoring {rows:,} rows, {name}", "s", *seconds)

    def scaling(self) -> None:
        """(f) Cost of reading and training one epoch, against rows, items and history length, with a small model."""
        base = Sizes(rows=30_000, test_rows=0, items=20_000, max_len=32, emb_dim=64)
        values = {
            "rows": [20_000, 40_000, 60_000, 80_000, 100_000],
            "items": [100_000, 300_000, 500_000, 700_000, 900_000],
            "max_len": [32, 64, 96, 128, 160],
        }
        if self.quick:
            base = Sizes(rows=200, test_rows=0, items=50, max_len=4, emb_dim=8)
            values = {"rows": [200, 300, 400], "items": [50, 80, 110], "max_len": [4, 6, 8]}
        for what, points in values.items():
            tasks = []
            for value in points:
                folder = self.task.folder / f"{what}_{value}"
                sizes = dataclasses.replace(base, **{what: value})
                write_data(folder, sizes)
                batch_size = 64 if self.quick else 2048
                task = dataclasses.replace(self.task, folder=folder, sizes=sizes, batch_size=batch_size, small=True)
                tasks.append(task)
            self._read_and_train(tasks[0])
            works = [lambda task=task: self._read_and_train(task) for task in tasks]
            seconds = [median(times) for times in in_turns(self.repeats + 2, *works)]
            curve = {"what": what, "values": points, "seconds": seconds, **measure.line_fit(points, seconds)}
            self.curves.append(curve)
            self.note(
                f"cost against {what}: {curve['slope'] * 1e6:,.2f} µs each + {curve['intercept']:.2f} s, "
                f"R² {curve['r2']:.4f}"
            )

    def memory(self) -> None:
        """(g) Peak memory of training FiBiNET, beyond that of the imports."""
        peaks = []
        for kind in (Reference, Ours):
            with Remote(kind, "FiBiNET", self.task) as contender:
                contender.train(2, 0)
                peaks.append(contender.memory())
        for kind in ("cpu", "gpu"):
            if peaks[0][kind]:
                values = [[peak[kind] / 1e6] for peak in peaks]
                self.add(f"peak {kind.upper()} memory, training FiBiNET", "MB", *values)

    def steps(self, steps: int) -> int:
        """Steps of ours on the clock."""
        if self.quick:
            return 2
        return 100 if self.task.gpu >= 0 else steps

    def _train(self, name: str) -> None:
        """One model in fp32 and in 16 bits; on a GPU, in 16 bits by plain steps and compiled too."""
        task = self.task
        on_gpu, half = task.gpu >= 0, self.half
        few = self.steps(8 if name == "FiBiNET" else 4)
        many = None if self.full else few
        slow, warm_up = (16, PREFETCHED) if task.workers else (1, 0)
        with Remote(Ours, name, task) as ours, Remote(Reference, name, task) as reference:
            ours.train(2)
            reference.train(1, 0)
            stock, exact = in_turns(self.repeats, lambda: reference.train(slow, warm_up), lambda: ours.train(few))
            flops = ours.flops_per_row()
            ours.profile(self.out / f"profile_{name}_fp32.txt", self.steps(2))
            rates, graphs = {}, {}
            for way, settings in (GPU_WAYS if on_gpu else CPU_WAYS).items():
                ours.use(precision=half, **settings)
                ours.train(2 if many else few)
                rates[way] = [ours.train(many) for _ in range(self.repeats)]
                graphs[way] = ours.graphs_used()
                if way == "usual":
                    ours.profile(self.out / f"profile_{name}_{half}.txt", self.steps(2))
        seconds = [task.sizes.rows / median(values) for values in (stock, exact)]
        note = f"{seconds[0]:,.1f} s -> {seconds[1]:,.1f} s an epoch of {task.sizes.rows:,} rows"
        self.add(
            f"training {name}, fp32",
            "rows/s",
            stock,
            exact,
            target=None if on_gpu else TRAINING_TARGETS[name],
            note=note,
        )
        self._share_of_peak(name, "fp32", flops, median(exact))
        for way, own in rates.items():
            what = f"training {name}, ours in {half}{HOW[way]}"
            self.add(what, "rows/s", stock, own, target=GPU_TARGET if on_gpu and way != "plain" else None)
            if on_gpu:
                self.note(f"{name}, {half}{HOW[way]}: {graphs[way]}")
        best = max(rates.values(), key=median)
        self._share_of_peak(name, half, flops, median(best))
        if self.full:
            epochs = ([task.sizes.rows / rate for rate in values] for values in (stock, best))
            limit = GPU_EPOCH_SECONDS if on_gpu else None
            self.add(f"an epoch of {task.sizes.rows:,} rows, {name}, ours in {half}", "s", *epochs, limit=limit)
        if not on_gpu and not self.quick:
            with Remote(Reference, name, task, True) as reference:
                reference.train(1, 0)
                rate = reference.train(slow, warm_up)
            self.note(f"{name}: the reference with a malloc that keeps freed memory trains at {rate:,.0f} rows/s")

    def _share_of_peak(self, name: str, precision: str, flops: float, rate: float, unit: str = "a row") -> None:
        reached = flops * rate
        self.note(
            f"{name} {precision}: {flops / 1e6:,.1f} MFLOP {unit} done, {reached / 1e9:,.0f} GFLOP/s reached, "
            f"{reached / self.peaks[precision]:.0%} of peak"
        )

    def _read_and_train(self, task: Task) -> float:
        """Seconds to read a split and train an epoch on it."""
        started = measure.now(task.device)
        Ours("FiBiNET", task).train(warm_up=0)
        return measure.now(task.device) - started


def main() -> None:
    """Measure, print, write."""
    args = parse_arguments()
    if args.gpu >= 0 and not torch.cuda.is_available():
        raise UserError(f"--gpu {args.gpu}: found no CUDA device; use --gpu -1 for the CPU")
    for modality in ("text", "image"):
        require_comparable(modality, getattr(args, f"{modality}_encoder"))
    logging.disable(logging.INFO)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mm-fibinet-speed-") as folder:
        bench = Bench(args, Path(folder))
        write_data(bench.task.folder, bench.task.sizes)
        for section in SECTIONS:
            if section in args.only and not args.busy:
                getattr(bench, section)()
        if args.busy:
            busy(bench)
    written = figure.write(bench.out, measure.machine(bench.task.device), bench)
    print(written.read_text())


if __name__ == "__main__":
    run_cli(main)

"""Time and memory of build_dataset.py on logs of several sizes: `python benchmarks/prepare.py --rows 5 10 20`.

Each log is made beside the other, a CSV of text ids with a time, a rating and a country; a tenth as many users as rows,
and items drawn by a power of their rank. The build runs in a process of its own, whose peak is what the system says of
it (maxrss), and the slope is what each further million rows takes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parent.parent
ITEMS = 100_000
CHUNK = 1_000_000
OPTIONS = (
    "--user", "user", "--item", "item", "--timestamp", "time", "--label", "rating >= 4", "--features", "country",
)  # fmt: skip
FORMS = {"item_seq": ("--max_len", "64"), "user_info": ("--user_info",)}  # how histories are written


def make_log(path: Path, rows: int) -> None:
    """Write a log, a chunk at a time."""
    with open(path, "wb") as opened:
        for first in range(0, rows, CHUNK):
            rng = np.random.default_rng(first)
            number = min(CHUNK, rows - first)
            columns = {
                "user": pl.Series(rng.integers(0, rows // 10, number)).cast(pl.String),
                "item": pl.Series((ITEMS * rng.random(number) ** 3).astype(np.int64)).cast(pl.String),
                "time": rng.integers(1_500_000_000, 1_700_000_000, number),
                "rating": rng.integers(1, 6, number),
                "country": rng.choice(["FR", "CN", "CA", "BR"], number),
            }
            names = {"user": "user-" + pl.col("user"), "item": "product-" + pl.col("item")}
            frame = pl.DataFrame(columns).with_columns(**names)
            frame.write_csv(opened, include_header=first == 0)


def measure(log: Path, out: Path, options: tuple[str, ...]) -> tuple[float, float, float]:
    """Seconds, peak GB and bytes written (in GB) of one build."""
    command = [sys.executable, str(ROOT / "build_dataset.py"), "--interactions", str(log), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *OPTIONS, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"the build failed with status {status}")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return seconds, usage.ru_maxrss * 1024 / 1e9, written / 1e9


def main() -> None:
    """Measure and print a table, and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=float, default=[5, 10, 20], help="millions (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of histories (default: both)")
    parser.add_argument("--folder", help="for the logs and the data sets (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, found = Path(name), {form: [] for form in args.forms}
        for millions in args.rows:
            log = folder / "log.csv"
            make_log(log, round(millions * 1e6))
            print(f"\n{millions:g} M rows, {log.stat().st_size / 1e9:.2f} GB of CSV", flush=True)
            for form in args.forms:
                seconds, peak, written = measure(log, folder / "out", FORMS[form])
                shutil.rmtree(folder / "out")
                found[form].append((millions, seconds, peak))
                print(f"  {form:<10} {seconds:6.1f} s  peak {peak:5.2f} GB  written {written:5.2f} GB", flush=True)
        print("\nslope, a million rows")
        for form, points in found.items():
            if len(points) > 1:
                millions, seconds, peaks = np.array(points).T
                slopes = np.polyfit(millions, seconds, 1)[0], np.polyfit(millions, peaks, 1)[0]
                print(f"  {form:<10} {slopes[0]:6.2f} s  {slopes[1]:.3f} GB")


if __name__ == "__main__":
    main()

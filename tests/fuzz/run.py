"""`make fuzz`: thousands of new cases of every target, and a table of what came of them.

Faults do not stop it. They are told apart by what went wrong and where, the smallest case of each kind is written to a
file, and `--repeat NUMBER` runs one of that file again.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np  # noqa: F401  (a case's repr may name nan)
from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.pool import MEMORY_MB, SECONDS, Result, Worker
from fuzz.targets import TARGETS

nan, inf = float("nan"), float("inf")  # as the repr of a case names them


@dataclass
class Tally:
    """What came of a target's cases."""

    cases: int = 0
    passed: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak_mb: int = 0
    faults: Counter = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        """Count one case; a case has passed when all of its commands ended with 0."""
        self.cases += 1
        self.slowest = max(self.slowest, result.seconds)
        self.peak_mb = max(self.peak_mb, result.peak_mb)
        if result.fault:
            self.faults[kind_of(result.fault)] += 1
        elif any(result.codes):
            self.refused += 1
        else:
            self.passed += 1


def kind_of(fault: str) -> str:
    """The fault without what differs from case to case: numbers, quoted values, paths."""
    where = re.match(r".*?traceback: \w+ at [\w./]+:\d+ in \w+", fault)
    return where[0] if where else re.sub(r"'[^']*'|\"[^\"]*\"|/[\w./-]+|\d[\d,.]*", "#", fault)[:160]


def fuzz(name: str, count: int, first_seed: int, worker: Worker, smallest: dict) -> Tally:
    """Run `count` new cases of a target."""
    tally = Tally()

    @seed(first_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].cases)
    def run(case):
        result = worker.run(name, case)
        tally.add(result)
        if result.fault:
            kind = (name, kind_of(result.fault))
            if kind not in smallest or len(repr(case)) < len(smallest[kind]["case"]):
                smallest[kind] = {"target": name, "fault": result.fault, "case": repr(case)}
        if sys.stderr.isatty():
            print(f"\r{name}: {tally.cases:,} of {count:,}", end="", file=sys.stderr)

    run()
    return tally


def report(tallies: dict[str, Tally], seconds: float) -> str:
    """The table."""
    lines = [f"{'target':<12}{'cases':>8}{'exit 0':>8}{'exit 2':>8}{'faults':>8}{'slowest':>9}{'peak MB':>9}"]
    total = Tally()
    for name, tally in tallies.items():
        lines.append(_line(name, tally))
        for key in ("cases", "passed", "refused"):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
        total.slowest, total.peak_mb = max(total.slowest, tally.slowest), max(total.peak_mb, tally.peak_mb)
        total.faults += tally.faults
    lines += [_line("all", total), f"{seconds:,.0f} s; limits: {SECONDS:.0f} s and {MEMORY_MB:,} MB a case"]
    return "\n".join(lines)


def _line(name: str, tally: Tally) -> str:
    numbers = f"{tally.cases:>8,}{tally.passed:>8,}{tally.refused:>8,}{tally.faults.total():>8,}"
    return f"{name:<12}{numbers}{tally.slowest:>8.1f}s{tally.peak_mb:>9,}"


def main() -> int:
    """Run, print the table and the faults; exit code 1 when there are any."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000, help="in total (default: %(default)s)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--out", type=Path, default=Path("fuzz_faults.json"), help="the faults (default: %(default)s)")
    parser.add_argument("--repeat", type=int, metavar="NUMBER", help="run one case of --out again")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mm_fibinet_fuzz_"))
    worker = Worker(folder / "base")
    try:
        if args.repeat is not None:
            entry = json.loads(args.out.read_text())[args.repeat]
            print(entry["target"], entry["case"], worker.run(entry["target"], eval(entry["case"])), sep="\n")
            return 0
        started, tallies, smallest = time.monotonic(), {}, {}
        shares = sum(TARGETS[name].share for name in args.targets)
        for name in args.targets:
            count = max(args.cases * TARGETS[name].share // shares, 1)
            tallies[name] = fuzz(name, count, args.seed, worker, smallest)
            args.out.write_text(json.dumps(list(smallest.values()), indent=1))
        print(report(tallies, time.monotonic() - started), f"seed {args.seed}", sep="\n")
        for number, entry in enumerate(smallest.values()):
            times = tallies[entry["target"]].faults[kind_of(entry["fault"])]
            print(f"{number:>3}  {entry['target']}, {times} times: {entry['fault']}")
        return 1 if smallest else 0
    finally:
        worker.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

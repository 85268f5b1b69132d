"""A bounded load on examples/serve.py: `python benchmarks/serve_load.py DIR` (of export_onnx.py).

Every fifth request is malformed, in one of several ways. What must hold, or the script says so and ends with 1: answers
are 200 for the others and 4xx for these, never 5xx; every answer is JSON; the service's memory does not grow after the
first tenth. Printed besides: requests a second, p50 and p99 of the answers, memory.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)
import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.served_files import Card

GROWTH_MB = 20  # of allocators that settle, not of a leak: 10,000 requests of 10 kB would be 100
MALFORMED = (
    b"{",
    b"[]",
    b'{"history_ids": [], "candidate_ids": []}',
    b'{"history_ids": [1], "candidate_ids": ["a"]}',
    b'{"history_ids": [1], "candidate_ids": [1], "user": {"nobody_reads_this": 1}}',
    b'{"history_ids": [1], "candidate_ids": [' + b"1," * 600_000 + b"1]}",
    b"\xff" * 100,
)


class Load:
    """Requests from some threads; answers are counted.

    Args:
        port: of the service.
        num_items: ids are drawn below it, and some beyond.
        count: requests in all.
        length, candidates: of a request.
    """

    def __init__(self, port: int, num_items: int, count: int, length: int, candidates: int):
        self.port, self.num_items, self.length, self.candidates = port, num_items, length, candidates
        self.numbers = iter(range(count))
        self.times: list[float] = []
        self.faults: Counter = Counter()
        self.statuses: Counter = Counter()

    def run(self, threads: int) -> float:
        """Send all; seconds."""
        started = time.perf_counter()
        workers = [threading.Thread(target=self._work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - started

    def _work(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for number in self.numbers:
            bad = number % 5 == 4
            ids = rng.integers(0, self.num_items + 10, self.length + self.candidates).tolist()
            query = {"history_ids": ids[: self.length], "candidate_ids": ids[self.length :]}
            body = MALFORMED[number // 5 % len(MALFORMED)] if bad else json.dumps(query).encode()
            before = time.perf_counter()
            try:
                connection.request("POST", "/score", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                content = json.loads(answer.read())
                status = answer.status
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.faults[f"no answer: {error!r}"] += 1
                connection.close()
                continue
            self.times.append(time.perf_counter() - before)
            self.statuses[status] += 1
            if (bad and not (400 <= status < 500 and content.keys() == {"error"})) or (not bad and status != 200):
                self.faults[f"{status} for a {'malformed' if bad else 'good'} request: {content}"] += 1


def memory_mb(process: int) -> float:
    """Memory of a process now."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1000


def wait_for(port: int, service: subprocess.Popen) -> None:
    """Until the service answers, and no other that has its port."""
    for _ in range(300):
        if service.poll() is not None:
            raise UserError(f"the service ended with {service.returncode}, and says why above")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200 and service.poll() is None:
                return
        except OSError:
            time.sleep(0.1)
    raise UserError("the service does not answer")


def main() -> None:
    """Start the service, load it, say how it went."""
    parser = argparse.ArgumentParser(description="A bounded load on examples/serve.py.")
    parser.add_argument("folder", metavar="DIR", help="of export_onnx.py")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="of a history")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    if min(args.requests // 10, args.connections, args.candidates) < 1 or args.length < 0:
        parser.error("expected at least 10 requests, one connection and one candidate, and no negative length")
    folder = Path(args.folder).resolve()  # the service runs in another folder
    items = Card.read(folder).num_items
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(folder), "--port", str(args.port)]
    service = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    try:
        wait_for(args.port, service)
        first = Load(args.port, items, args.requests // 10, args.length, args.candidates)
        first.run(args.connections)
        before = memory_mb(service.pid)
        rest = Load(args.port, items, args.requests - args.requests // 10, args.length, args.candidates)
        seconds = rest.run(args.connections)
        after = memory_mb(service.pid)
    finally:
        service.terminate()
        service.wait()
    p50, p99 = np.percentile(rest.times, [50, 99]) * 1000
    print(f"answers     {dict(sorted((first.statuses + rest.statuses).items()))}")
    print(f"speed       {len(rest.times) / seconds:,.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"memory      {before:.1f} MB after a tenth, {after:.1f} MB at the end")
    faults = first.faults + rest.faults
    if after - before > GROWTH_MB:
        faults[f"memory grew by {after - before:.1f} MB"] += 1
    for fault, count in faults.items():
        print(f"fault       {count} x {fault}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    run_cli(main)

"""Encoding on Ray: one machine or a cluster of them fills the store.

Ray Data hands shares of the items to actors, which hold the encoders and write into the store, a part a share; every
machine needs this package, and the inputs and the store at the same paths. What was written before an interruption is
there for the next run, whichever engine that has. An actor computes with as many threads as this process would, and
thus the same bits.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mm_fibinet.errors import UserError
from mm_fibinet.items.filling import Encoded, Filling, Work
from mm_fibinet.items.shares import Share
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.progress import track


class Worker:
    """An actor: encodes shares, one after the other.

    Args:
        work: what is encoded.
        threads: of the networks on a CPU.
    """

    def __init__(self, work: Work, threads: int):
        torch.set_num_threads(threads)
        if work.device == "cpu":
            keep_freed_memory()
        self.work = work
        self.filling: Filling | None = None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"number" and "of": int [n]} -> {"done": what `_report` says of each}."""
        done = [
            self._report(Share(int(number), int(of))) for number, of in zip(rows["number"], rows["of"], strict=True)
        ]
        return {"done": np.array(done, dtype=object)}

    def _report(self, share: Share) -> str:
        """JSON: the blocks encoded, or the user's mistake, which Ray would tell with four tracebacks."""
        try:
            self.filling = self.filling or Filling(self.work)
            encoded, _ = self.filling.run(share)
        except UserError as error:
            return json.dumps({"error": str(error)})
        return json.dumps({"blocks": {block: dataclasses.asdict(each) for block, each in encoded.items()}})


def fill_on_ray(work: Work, device: torch.device) -> list[dict[str, Encoded]]:
    """Encode all items on Ray, one share for each worker that it has room for.

    Args:
        work: what is encoded.
        device: that of this process; the workers' are of the same kind, a GPU each or some cores.

    Returns:
        what each share did, by block.

    Raises:
        UserError: Ray is not installed, or what a worker found wrong.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            f"--engine ray: Ray is not installed ({error}); pip install 'ray[data]<2.56', which needs Python 3.12 or "
            "earlier, or divide the items with --shard"
        ) from error
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        with _quiet(ray):
            return _fill(ray, work, device)
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs what Ray Data does as errors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do, which it says in a warning
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if address else {"include_dashboard": False}))
    except Exception as error:  # of every kind, by what is in its way
        where = f"the cluster of RAY_ADDRESS={address} cannot be joined" if address else "Ray cannot start here"
        raise UserError(f"--engine ray: {where} ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without Ray Data's bars, and its warnings of its own settings, such as a bar that is off."""
    context, messages = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, messages.level
    context.enable_progress_bars = False
    messages.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        messages.setLevel(before[1])


def _fill(ray: Any, work: Work, device: torch.device) -> list[dict[str, Encoded]]:
    threads = torch.get_num_threads()
    resource, needed = ("GPU", 1) if device.type == "cuda" else ("CPU", threads)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(machine.get(resource, 0)) // needed for machine in machines)
    if not room:
        raise UserError(
            f"--engine ray: no machine of the cluster has {needed} {resource}{'s' * (needed > 1)} for a worker; "
            + ("choose --device cpu" if resource == "GPU" else "set OMP_NUM_THREADS to fewer threads a worker")
        )
    workers = min(room, work.reading.num_items)
    rows = [{"number": number, "of": workers} for number in range(1, workers + 1)]
    # In blocks from the start: a task that cuts them would wait for ever for cores that the actors hold.
    done = ray.data.from_items(rows, override_num_blocks=workers).map_batches(
        Worker,
        fn_constructor_args=(dataclasses.replace(work.anywhere(), device=device.type), threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **{f"num_{resource.lower()}s": needed},
    )
    # All of them, before a mistake is raised: were Ray shut down at work, it would end this process without a word.
    reports = [json.loads(row["done"]) for row in track(done.iter_rows(), desc="ray", total=workers, unit="share")]
    for report in reports:
        if "error" in report:
            raise UserError(report["error"])
    return [{block: Encoded(**each) for block, each in report["blocks"].items()} for report in reports]

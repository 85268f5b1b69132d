"""Encoding on Ray: one machine or a cluster of them fills the store.

Each share of the items is a task of Ray, which writes into a part of the store; every machine needs this package, and
the inputs and the store at the same paths. What was written before an interruption is there for the next run, whichever
engine that has, and for the next try of a task whose process was killed. A task computes with as many threads as this
process would, and thus the same bits.

Tasks and not Ray Data: no rows travel here, and of Ray 2.55 its reading ahead in threads of its own ends this process
without a word where Ctrl-C shuts Ray down under them. Its internal iterator over blocks does not, but then Ray's core
prints a warning of actors that may be restarted, or where that is turned off the setting that did it.
"""

import dataclasses
import logging
import os
from typing import Any

import torch

from mm_fibinet import signals
from mm_fibinet.errors import UserError
from mm_fibinet.items.filling import Encoded, Filling, Work
from mm_fibinet.items.shares import Share
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.progress import track

SECONDS_UNHEARD = 0.2  # at most, of a signal
RETRIES = 3  # of a share whose process was killed; each goes on where the last one was


def encode_share(work: Work, threads: int, share: Share) -> dict[str, Encoded] | UserError:
    """What a task does.

    Args:
        work: what is encoded.
        threads: of the networks on a CPU.
        share: of the items.

    Returns:
        what it did, by block, or the user's mistake, which Ray would tell with a traceback.
    """
    torch.set_num_threads(threads)
    if work.device == "cpu":
        keep_freed_memory()
    try:
        return Filling(work).run(share)[0]
    except UserError as error:
        return error


def fill_on_ray(work: Work, device: torch.device) -> list[dict[str, Encoded]]:
    """Encode all items on Ray, one share for each worker that it has room for.

    Args:
        work: what is encoded.
        device: that of this process; the workers' are of the same kind, a GPU each or some cores.

    Returns:
        what each share did, by block.

    Raises:
        UserError: Ray is not installed, what a worker found wrong, or workers that were killed again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--engine ray: Ray is not installed ({error}); pip install 'ray[data]<2.56', which needs Python 3.12 or "
            "earlier, or divide the items with --shard"
        ) from error
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        return _fill(ray, work, device)
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do, which it says in a warning
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if address else {"include_dashboard": False}))
    except Exception as error:  # of every kind, by what is in its way
        where = f"the cluster of RAY_ADDRESS={address} cannot be joined" if address else "Ray cannot start here"
        raise UserError(f"--engine ray: {where} ({type(error).__name__}: {error})") from error


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
    shares = min(room, work.reading.num_items)
    there = dataclasses.replace(work.anywhere(), device=device.type)
    needs = {"num_cpus": 0} | {f"num_{resource.lower()}s": needed}
    task = ray.remote(**needs, max_retries=RETRIES, max_calls=1)(encode_share)
    tasks = [task.remote(there, threads, Share(number, shares)) for number in range(1, shares + 1)]
    waiting = tasks
    try:
        # All of them, before a mistake is raised: what the other shares encode is kept. Ctrl-C is noted, since raised
        # inside of Ray it may go unheard.
        with signals.noted() as came, track(desc="ray", total=shares, unit="share") as bar:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=SECONDS_UNHEARD)
                bar.update(len(done))
                if came:
                    raise KeyboardInterrupt
        reports = ray.get(tasks)
    except ray.exceptions.OutOfMemoryError as error:  # says it in twenty lines
        raise UserError(
            "--engine ray: Ray ended a worker because a machine's memory was nearly full; let there be fewer of them, "
            "each with more threads (OMP_NUM_THREADS), and run the same command again to go on"
        ) from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        raise UserError(
            f"--engine ray: a worker was ended from outside {RETRIES + 1} times (out of memory?); run the same command "
            "again to go on"
        ) from error
    finally:
        # Of an interrupted run. To cancel one that is just done would end this process without a word.
        for each in ray.wait(waiting, num_returns=len(waiting), timeout=0)[1] if waiting else ():
            ray.cancel(each, force=True)
    for report in reports:
        if isinstance(report, UserError):
            raise report
    return reports

"""A benchmark of tiny runs that are trained in this process, for tests that need many of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from conftest import run_script

from mm_fibinet import files
from mm_fibinet.compare import jobs


class Ended:
    """A run that is over, with what `jobs.run_all` asks of a process."""

    def __init__(self, code: int | None):
        self.poll = lambda: code or 0


@contextlib.contextmanager
def trained_here() -> Iterator[list[jobs.Job]]:
    """Runs, but no trials, are trained in this process, one after the other; yields the list of those that were."""
    trained, started = [], jobs.start

    def start(job, command, device, places, lock, workers=None, meter=None):
        if meter:
            return started(job, command, device, places, lock, workers, meter)
        jobs._clear_other_run(job)
        files.make_folder(job.model_root)
        options = ["--expid", job.expid, "--gpu", device, "--model_root", job.model_root, "--resume"]
        changes = ["--set", "verbose=0", *job.changes, f"seed={job.seed}"]
        with open(job.output, "w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code, _, _ = run_script("run_expid", *command[2:], *options, *changes)
        trained.append(job)
        return Ended(code)

    with mock.patch.object(jobs, "start", start), mock.patch.object(jobs, "POLL_SECONDS", 0):
        yield trained


def benchmark(config: Path, out: Path, *arguments: object, seeds=(1, 2), capsys=None) -> tuple[int, str, str]:
    """Run run_benchmark.py on the two experiments of `make_dataset`: (exit code, stdout, stderr)."""
    expids = ["--expids", "FiBiNET_test_no_emb", "FiBiNET_test", "--seeds", *seeds]
    return run_script("run_benchmark", "--config", config, *expids, "--out", out, *arguments, capsys=capsys)

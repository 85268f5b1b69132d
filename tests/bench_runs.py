"""A benchmark of tiny runs that are trained in this process, for tests that need many of them."""

import contextlib
from pathlib import Path
from unittest import mock

from conftest import run_script

from mm_fibinet.compare import jobs


@contextlib.contextmanager
def trained_here():
    """Runs of `jobs.run_all` are trained in this process, one after the other; yields the list of those that were."""
    trained = []

    def run_all(planned, command, *_):
        for job in planned:
            if job.params and not job.result():
                jobs._clear_other_run(job)
                options = [
                    *command[2:],
                    "--expid",
                    job.expid,
                    "--gpu",
                    "-1",
                    "--model_root",
                    job.model_root,
                    "--resume",
                ]
                code, _, _ = run_script("run_expid", *options, "--set", "verbose=0", *job.changes, f"seed={job.seed}")
                job.error = None if code == 0 else "failed"
                trained.append(job)

    with mock.patch.object(jobs, "run_all", run_all):
        yield trained


def benchmark(config: Path, out: Path, *arguments: object, seeds=(1, 2), capsys=None) -> tuple[int, str, str]:
    """Run run_benchmark.py on the two experiments of `make_dataset`: (exit code, stdout, stderr)."""
    expids = ["--expids", "FiBiNET_test_no_emb", "FiBiNET_test", "--seeds", *seeds]
    return run_script("run_benchmark", "--config", config, *expids, "--out", out, *arguments, capsys=capsys)

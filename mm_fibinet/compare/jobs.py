"""Runs experiments side by side, each in a folder of its own, in a process of its own or in a worker's turn.

A process a run keeps them apart: one that fails, or is killed for memory, is an error beside the others' results, and
peak memory is the run's own. Workers (`compare.workers`) save each run the start of a process. What is finished is told
by the run's result.json and its fingerprint of settings and data, so the same command after a kill does only what is
missing, and a changed setting does only what it touches. Each child inherits a lock on the output folder: when this
process was killed without a chance to stop them, its successor waits for them instead of training the same run twice.
"""

import contextlib
import itertools
import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mm_fibinet import files, model_source, run_manifest, run_result, settings, signals
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.compare.leaderboard import Outcome, Tuned
from mm_fibinet.compare.workers import Meter, Run, Workers
from mm_fibinet.errors import UserError, explain_os_error, printable
from mm_fibinet.names import LISTED_BY, expected_one_of
from mm_fibinet.options import SUITES
from mm_fibinet.progress import track
from mm_fibinet.run_folder import RunFolder

FOLDER = "runs"  # of the runs, in the output folder
POLL_SECONDS = 0.2
SECONDS_TO_STOP = 120  # after SIGTERM a run saves its state; then it is killed
CPU = -1
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # a process's, when it loads torch


@dataclass
class Job:
    """One run.

    Attributes:
        expid, seed: what is run.
        model_root: the folder of this run alone.
        label: what the leaderboard calls it, where that is not the experiment's ID.
        changes: what --set says for this run, beside what it says for all.
        params: of `load_params`; empty when the experiment cannot be loaded.
        inputs: the data files that it names, in params or where these cannot be loaded.
        data: of `run_manifest.data_fingerprint`.
        fingerprint: of the result that the run should have.
        error: why there is no result.
        tuned: what its settings have cost, where they were tuned.
    """

    expid: str
    seed: int
    model_root: Path
    label: str | None = None
    changes: list[str] = field(default_factory=list)
    params: dict = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    data: dict[str, dict] = field(default_factory=dict)
    fingerprint: str = ""
    error: str | None = None
    tuned: Tuned | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.shown} seed {self.seed}"

    @property
    def shown(self) -> str:
        """As the leaderboard calls it, all seeds together."""
        return self.label or self.expid

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return RunFolder.of(self.params).folder

    def evaluations(self) -> list[dict[str, float]]:
        """The run's evaluations so far, {column of its metrics.csv: value} each.

        Raises:
            UserError: that file is damaged.
        """
        lines = RunFolder.of(self.params).read_history()
        return [{name: float(value) for name, value in line.items() if value} for line in lines]

    @property
    def output(self) -> Path:
        """What the process prints."""
        return self.model_root / "output.log"

    def result(self) -> dict | None:
        """The run's result, None while there is none for these settings and this data."""
        found = run_result.read_result(self.folder) if self.params else None
        return found if found and found.get("fingerprint") == self.fingerprint else None

    def outcome(self) -> Outcome:
        """What the leaderboard needs of it."""
        result = self.result()
        if not result:
            return Outcome(self.shown, self.seed, None, None, self.error or "not run yet")
        return finished(self.shown, self.seed, result, self.folder)._replace(tuned=self.tuned)

    def state(self) -> str:
        """How far the run is."""
        try:
            found = self.evaluations()
        except UserError:  # no run ends because it cannot be shown
            found = []
        if not found:
            return f"{self.name}: starting"
        return f"{self.name}: epoch {found[-1].get('epoch', math.nan):.0f}, AUC {found[-1].get('AUC', math.nan):.4f}"


def finished(expid: str, seed: int, result: dict, folder: Path) -> Outcome:
    """What the leaderboard needs of a run that has a result.

    Args:
        expid, seed: what was run.
        result: of `run_result.read_result`.
        folder: the run's.
    """
    if result["metrics"]["AUC"] is None:
        error = "finished, but the AUC that runs are compared by is undefined: all validation labels are the same"
        return Outcome(expid, seed, None, None, error)
    run = RunFolder(folder.parent, folder.name)
    manifest = run_manifest.read_manifest(run) if run.manifest.is_file() else None
    return Outcome(expid, seed, result, run_result.read_scores(folder), None, manifest=manifest)


def find_suite(config_dir: str, name: str) -> list[str]:
    """The experiment IDs of a suite of benchmark_config.yaml."""
    path = Path(config_dir) / SUITES
    suites = settings.read_yaml(path)
    if name not in suites:
        raise UserError(f"--suite {name}: not in {path}, {expected_one_of(name, map(str, suites))}")
    if not isinstance(suites[name], list) or not suites[name]:
        raise UserError(f"{path}: suite {name} is {suites[name]!r}, expected a list of experiment IDs")
    return [str(expid) for expid in suites[name]]


def plan(
    config_dir: str,
    expids: list[str],
    seeds: list[int],
    models,
    out: Path,
    overrides: list[str] | None = None,
    data_root: str | None = None,
    variants: dict[str, list[str]] | None = None,
    fingerprints: dict[tuple, dict] | None = None,
) -> list[Job]:
    """The runs, all experiments with the first seed before those with the second.

    Args:
        config_dir, overrides, data_root, models: of `load_params`.
        out: each run's folder is out/runs/EXPID/SEED, or out/runs/EXPID/LABEL/SEED.
        variants: {label: further changes}; the one experiment runs once with each. "" is the experiment's own ID.
        fingerprints: of data files that were read before; those that are read are added.

    Raises:
        UserError: an experiment ID that the config does not have. Another mistake in an experiment is its own error.
    """
    known = settings.experiment_ids(config_dir)
    for expid in expids:
        if expid not in known:
            expected = expected_one_of(expid, known, LISTED_BY)
            raise UserError(f"experiment {expid} is not in {config_dir}, {expected}")
    fingerprints = {} if fingerprints is None else fingerprints
    jobs = []
    for seed in dict.fromkeys(seeds):
        for expid, label in itertools.product(dict.fromkeys(expids), variants or [None]):
            own = variants[label] if variants else []
            job = Job(expid, seed, out / FOLDER / expid / (label or "") / str(seed), label, own)
            jobs.append(job)
            changes = [*(overrides or []), *own, f"seed={seed}"]
            given = settings.parse_overrides(changes)
            job.inputs = settings.named_files(Path(config_dir), expid, given, data_root)
            try:
                job.params = settings.load_params(config_dir, expid, models, changes, data_root, str(job.model_root))
                code = model_source.code_entry(models, settings.find_model(models, job.params["model"]))
            except UserError as error:
                job.error = str(error)
                continue
            paths = tuple(job.params.get(key) for key in settings.DATA_FILES)
            if paths not in fingerprints:
                fingerprints[paths] = run_manifest.data_fingerprint(job.params)
            job.data = {**fingerprints[paths], **code}
            job.fingerprint = run_result.fingerprint(job.params, job.data)
    return jobs


def run_all(jobs: list[Job], command: list[str], devices: list[int], lock: int, workers: Workers | None = None) -> None:
    """Run what has no result yet; each job that fails keeps its error.

    Args:
        jobs: of `plan`.
        command: starts one run when --expid, --gpu, --model_root, --set seed=S and --resume are added.
        devices: a place for one run at a time each: a GPU's index, or CPU.
        lock: of `locked`, which the caller holds: each run inherits it.
        workers: run them one after another, instead of a process a run.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the runs saved their state and stopped.
    """
    with signals.noted() as asked:
        waiting = [job for job in jobs if job.params and not job.result()]
        finished = sum(1 for job in jobs if job.params) - len(waiting)
        free, running = list(devices), {}
        with track(desc="runs", total=len(waiting) + finished, initial=finished, unit="run") as progress:
            for job in jobs:
                if job.error:
                    progress.write(printable(f"failed  {job.name}: {job.error}"))
            try:
                while (waiting or running) and not asked:
                    while waiting and free:
                        device, job = free.pop(0), waiting.pop(0)
                        running[start(job, command, device, len(devices), lock, workers)] = job, device
                    states = printable("; ".join(job.state() for job, _ in running.values()))
                    if states != progress.postfix:
                        progress.set_postfix_str(states)
                    time.sleep(POLL_SECONDS)
                    for process in list(running):
                        code = process.poll()
                        if code is not None and not asked:
                            job, device = running.pop(process)
                            free.append(device)
                            progress.write(printable(_close(job, code)))
                            progress.update()
            finally:
                stop(list(running))
        if asked:
            raise KeyboardInterrupt


def start(
    job: Job,
    command: list[str],
    device: int,
    places: int,
    lock: int,
    workers: Workers | None = None,
    meter: Meter | None = None,
) -> subprocess.Popen | Run:
    """The run, in a process or a worker; places share the cores, unless the user has said how many threads each takes.

    It goes on with what an earlier one left, unless that is of other settings or data: then it starts anew.
    """
    arguments = ["--expid", job.expid, "--gpu", device, "--model_root", job.model_root, "--resume"]
    quiet = [] if any(str(part).startswith("verbose=") for part in [*command, *job.changes]) else ["verbose=0"]
    arguments += ["--set", *quiet, *job.changes, f"seed={job.seed}"]
    environment = dict(os.environ)
    if places > 1 and not any(environment.get(name) for name in THREADS):
        environment.update(dict.fromkeys(THREADS, str(max(torch.get_num_threads() // places, 1))))
    files.make_folder(job.model_root)
    _clear_other_run(job)
    line = [*command, *map(str, arguments)]
    if workers:
        return workers.start(line, job.output, device, environment, meter)
    try:
        with open(job.output, "wb") as output:
            return subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock,),
            )
    except OSError as error:
        raise explain_os_error(error, job.output) from error


def _clear_other_run(job: Job) -> None:
    """Remove a run of other settings or data from the job's folder; the run itself would refuse to resume it."""
    run = RunFolder.of(job.params)
    try:
        run_manifest.may_resume(run, job.params, job.data, has_state=RunCheckpoints(run.folder, "").exist())
    except UserError:
        with run.held():
            run.clear()


def _close(job: Job, code: int) -> str:
    """Note how a run ended; returns the line that is shown."""
    result = job.result()
    if result:
        auc = result["metrics"]["AUC"]  # None where all labels are the same
        shown = "undefined" if auc is None else f"{auc:.4f}"
        return f"done    {job.name}: AUC {shown}, {result['train_seconds']:.0f} s of training"
    job.error = error_of(job.output, code)
    return f"failed  {job.name}: {job.error}"


def error_of(output: Path, code: int) -> str:
    """One sentence of what a process said before it ended without a result."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; see {output}"
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    stated = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if stated:
        return stated[-1]
    return f"{lines[-1] if lines else 'no output'} (exit code {code}, see {output})"


def stop(processes: Sequence[subprocess.Popen | Run]) -> None:
    """Ask the runs to save and stop, and wait until they have."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def locked(out: Path) -> contextlib.AbstractContextManager[int]:
    """Hold the output folder's lock, after the runs of an earlier benchmark are done; yields its file descriptor."""
    return files.locked(out, waiting=f"{out}: runs of another benchmark are still at work there; waiting for them")

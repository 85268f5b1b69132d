"""A tuner's space searched by Optuna: TPE proposes, a median rule stops what falls behind.

A trial is a process of `compare.jobs` like every other run; its metrics.csv is watched, its evaluations are told to
Optuna, and a trial that Optuna gives up gets SIGTERM. The study is one file that is only appended to. The sampler's
seed is a function of the trial's number, so that a search that was killed and started again proposes what it would
have proposed (with one run at a time; several end in any order).
"""

import hashlib
import json
import time
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

from mm_fibinet import signals
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.compare import jobs
from mm_fibinet.compare.search import Search, monitored
from mm_fibinet.compare.tuner import is_range
from mm_fibinet.compare.workers import Run
from mm_fibinet.errors import UserError, printable
from mm_fibinet.progress import track

STUDY = "study.journal"
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped"}
STARTUP_TRIALS = 5  # before the median rule, and the TPE of `tuning`, have something to go by
WARMUP_EVALUATIONS = 3  # of a trial, which nothing is concluded from: models learn at different paces


def median_rule(optuna):
    """What stops a trial: its best evaluation so far is worse than the median of the finished trials' at this place."""
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EVALUATIONS + 1)


def run_trials(search: Search, number: int) -> None:
    """Run trials until there are `number`, counting the done and the pruned of earlier calls.

    A combination that was tried is not run again; its trial gets the earlier one's value.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        UserError: the folder's study is of other settings or data.
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the trials saved their state and stopped.
    """
    import optuna  # the extra [tuner]

    with jobs.locked(search.out) as lock, signals.noted() as asked:
        trials = _Trials(search, optuna)
        waiting = trials.missing(number)
        free, running = list(search.devices), []
        try:
            with track(desc="trials", total=number, initial=number - len(waiting), unit="trial") as progress:
                while (waiting or running) and not asked:
                    while waiting and free and not asked:
                        started = trials.start(waiting.pop(0), free[0], lock)
                        if isinstance(started, _Running):
                            running.append(started)
                            free.pop(0)
                        else:
                            progress.write(printable(started))
                            progress.update()
                    states = printable("; ".join(trial.job.state() for trial in running))
                    if states != progress.postfix:
                        progress.set_postfix_str(states)
                    time.sleep(jobs.POLL_SECONDS)
                    for trial in list(running):
                        ended = trial.process.poll() is not None
                        trial.watch()
                        if ended and not asked:
                            running.remove(trial)
                            free.append(trial.device)
                            progress.write(printable(trials.close(trial)))
                            progress.update()
        finally:
            jobs.stop([trial.process for trial in running])
            search.keep(trials.rows())
        if asked:
            raise KeyboardInterrupt


@dataclass
class _Running:
    """A trial's process.

    Attributes:
        trial: Optuna's, a package that may be absent.
        job, process, device: what runs where.
        reported: how many evaluations Optuna knows.
        pruned: it was told to stop.
    """

    trial: Any
    job: jobs.Job
    process: Popen | Run
    device: int
    reported: int
    pruned: bool = False

    def watch(self) -> None:
        """Report new evaluations, and stop a trial that falls behind; one in its last epoch may finish."""
        fresh = self.job.evaluations()[self.reported :]
        for metrics in fresh:
            self.reported += 1
            self.trial.report(monitored(self.job, metrics), self.reported)
        if not fresh or self.pruned or self.process.returncode is not None:
            return
        if fresh[-1]["epoch"] < self.job.params["epochs"] and self.trial.should_prune():
            self.pruned = True
            self.process.terminate()


class _Trials:
    """The study, and its trials as experiments."""

    def __init__(self, search: Search, optuna):
        self.search, self.optuna = search, optuna
        self.space = search.tuner.space
        self.states = optuna.trial.TrialState
        first = {key: [values["low"]] if is_range(values) else values[:1] for key, values in self.space.items()}
        datasets, experiments = search.tuner.combine(first)
        self.base = search.tuner.name
        search.add(datasets, {self.base: next(iter(experiments.values()))})
        (job,) = search.plan([self.base])
        if job.error:
            raise UserError(job.error)
        self.study = self._open_study(job.fingerprint)
        for trial in self._with_experiment():
            search.add(*self._experiment(trial))

    def missing(self, number: int) -> list:
        """What there is to do: trials that were stopped, then None for each new one."""
        stopped = self.study.get_trials(states=[self.states.RUNNING])
        count = max(number - len(self.study.get_trials(states=[self.states.COMPLETE, self.states.PRUNED])), 0)
        return [*stopped, *[None] * count][:count]

    def start(self, stopped, device: int, lock: int) -> _Running | str:
        """Start a trial, or go on with one that was stopped; a line to show when there is nothing to run."""
        trial = self._propose(stopped)
        known = self.study.get_trials(states=[self.states.COMPLETE, self.states.PRUNED])
        same = next((earlier for earlier in known if earlier.params == trial.params), None)
        if same:
            return self._repeat(trial, same)
        datasets, experiments = self._experiment(trial)
        (expid,) = experiments
        trial.set_user_attr("expid", expid)
        self.search.add(datasets, experiments)
        (job,) = self.search.plan([expid])
        if job.error:
            return self._fail(trial, job)
        process = jobs.start(job, self.search.command, device, len(self.search.devices), lock)
        return _Running(trial, job, process, device, len(stopped.intermediate_values) if stopped else 0)

    def close(self, running: _Running) -> str:
        """Tell Optuna how a trial ended; returns the line that is shown."""
        trial, job, result = running.trial, running.job, running.job.result()
        if result or running.pruned:
            RunCheckpoints(job.folder, "").clear()  # nobody goes on with it, and the states of many fill a disk
        if result:
            value = monitored(job, result["metrics"])
            trial.set_user_attr("result", {key: result[key] for key in ("metrics", "train_seconds")})
            self.study.tell(trial, value)
            return f"done    {job.expid}: {value:.4f}, {result['train_seconds']:.0f} s of training"
        if running.pruned:
            self.study.tell(trial, state=self.states.PRUNED)
            return f"pruned  {job.expid}: behind after evaluation {running.reported}"
        job.error = jobs.error_of(job.output, running.process.wait())
        return self._fail(trial, job)

    def rows(self) -> list[dict]:
        """The trials that ran, for the table."""
        rows = []
        for trial in self._with_experiment():
            state, known = STATES[trial.state.name], trial.user_attrs
            value = trial.value if state in ("done", "pruned") else None
            rows.append(self.search.row(known["expid"], state, value, known.get("result", {}), known.get("error")))
        return rows

    def _open_study(self, fingerprint: str):
        path = self.search.out / STUDY
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        storage = self.optuna.storages.JournalStorage(self.optuna.storages.journal.JournalFileBackend(str(path)))
        study = self.optuna.create_study(
            storage=storage,
            study_name=self.base,
            direction="maximize" if self.search.mode == "max" else "minimize",
            pruner=median_rule(self.optuna),
            load_if_exists=True,
        )
        searched = hashlib.sha256(json.dumps([fingerprint, self.space], default=str).encode()).hexdigest()
        if study.user_attrs.get("searched", searched) != searched:
            raise UserError(f"{path}: a search over other settings or data; choose another --out, or remove it")
        study.set_user_attr("searched", searched)
        return study

    def _with_experiment(self) -> list:
        return [trial for trial in self.study.trials if "expid" in trial.user_attrs]

    def _propose(self, stopped):
        """Optuna's trial with a value of every varied setting."""
        number = stopped.number if stopped else len(self.study.trials)
        seed = self.search.seed_of(self.base) + number
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=len(self.search.devices) > 1)
        trial = self.optuna.trial.Trial(self.study, stopped._trial_id) if stopped else self.study.ask()
        for key in self.search.tuner.varied:
            suggest(trial, key, self.space[key])
        return trial

    def _experiment(self, trial) -> tuple[dict[str, dict], dict[str, dict]]:
        """The trial's point of the space as a config; its number is the trial's, from 1."""
        point = {key: [chosen(self.space[key], value)] for key, value in trial.params.items()}
        return self.search.tuner.combine({**self.space, **point}, trial.number + 1)

    def _repeat(self, trial, same) -> str:
        for step, value in same.intermediate_values.items():
            trial.report(value, step)
        self.study.tell(trial, same.value if same.state == self.states.COMPLETE else None, state=same.state)
        return f"again   trial {trial.number + 1}: as trial {same.number + 1}, not run again"

    def _fail(self, trial, job: jobs.Job) -> str:
        trial.set_user_attr("error", job.error)
        self.study.tell(trial, state=self.states.FAIL)
        return f"failed  {job.expid}: {job.error}"


def suggest(trial, key: str, values: Any) -> None:
    """Have Optuna's trial choose a setting's value.

    Args:
        trial: Optuna's.
        key: the setting.
        values: a list, from which it chooses by the `text_of` of a value, or a range (see `tuner.is_range`).
    """
    if not is_range(values):
        trial.suggest_categorical(key, list(map(text_of, values)))
        return
    low, high, step, log = (values.get(name) for name in ("low", "high", "step", "log"))
    kinds = {type(value) for value in (low, high, step) if value is not None}
    if values.get("type", "int" if kinds == {int} else "float") == "int":
        trial.suggest_int(key, low, high, step=step or 1, log=bool(log))
    else:
        trial.suggest_float(key, low, high, step=step, log=bool(log))


def chosen(values: Any, stored: Any) -> Any:
    """The value of a setting that Optuna has stored for `suggest`."""
    return stored if is_range(values) else {text_of(value): value for value in values}[stored]


def text_of(value: object) -> str:
    """A listed value as Optuna stores it: it takes no lists, and holds 1 and True for the same."""
    return json.dumps(value, default=str)

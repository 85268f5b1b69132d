"""The same tuning for every experiment of a leaderboard, so that nobody's lead is its tuning.

Each experiment gets the same number of trials, or the same seconds of one core, of TPE (Optuna) over one space, judged
on valid and pruned by one rule. Its own settings are its first trial: tuning never ends below them. A trial that is
under way when the seconds are spent is stopped and does not count. Trials run in workers, so that no seconds go into
loading torch; what a run does itself, reading the data included, is counted.

An experiment's trials come one after another, those of several experiments side by side: so what is proposed does not
depend on how many run at a time, and the trials are the same each time. Nothing is kept beside the runs' own files. A
trial's folder is named by the fingerprint of its settings and data, and a command that was stopped tells its sampler
the trials again that it finds there, in their order, and goes on with the first that has not ended.
"""

import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_fibinet import signals
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.compare import jobs
from mm_fibinet.compare.csv_files import as_csv, csv_cell, write_csv
from mm_fibinet.compare.search import monitored
from mm_fibinet.compare.tuner import is_range
from mm_fibinet.compare.tuner_optuna import STARTUP_TRIALS, chosen, median_rule, suggest, text_of
from mm_fibinet.compare.tuning_space import Budget, Line, as_changes
from mm_fibinet.compare.workers import Meter, Workers
from mm_fibinet.errors import printable
from mm_fibinet.progress import track
from mm_fibinet.run_folder import RunFolder

FOLDER = "tuning"  # of the trials, in the leaderboard's
RESULTS = "tuning.csv"
SECONDS = "seconds.txt"  # what a trial has cost, beside its run
MOST_IN_VAIN = 10  # trials in a row that failed, or were there before: then there is nothing more to find
DIGITS = 3  # of a number that is drawn from a range, where these are enough to tell a hundredth of it
ENDED = ("done", "pruned", "failed")


@dataclass
class Trial:
    """One trial of an experiment.

    Attributes:
        number: its place, from 0, the experiment's own settings.
        told: Optuna's trial, a package that may be absent.
        settings: what was chosen.
        job: its run.
        meter: of what it costs.
        state: one of ENDED; "again" for one whose settings were tried before; "running"; "stopped".
        value: of the monitored metric; NaN while it has none.
        error: why it failed.
        reported: how many evaluations Optuna knows.
    """

    number: int
    told: Any
    settings: dict[str, object]
    job: jobs.Job
    meter: Meter
    state: str = "running"
    value: float = math.nan
    error: str | None = None
    reported: int = 0


@dataclass
class Tuning:
    """The trials of one line of the leaderboard.

    Attributes:
        line: the experiment.
        base: its run as it is, of `jobs.plan`.
        space: of `Space.of`.
        budget: what it gets.
        plan: makes the run of a trial, given what --set says for it.
        trials: those so far.
        over: whether there is nothing more to do.
    """

    line: Line
    base: jobs.Job
    space: dict[str, Any]
    budget: Budget
    plan: Callable[[list[str]], jobs.Job]
    trials: list[Trial] = field(default_factory=list)
    over: bool = False

    def __post_init__(self):
        import optuna  # the extra [tuner]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna
        mode = self.base.params.get("monitor_mode") or "max"
        self.sign = 1 if mode == "max" else -1
        self.study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            pruner=median_rule(optuna),
        )

    @property
    def seconds(self) -> float:
        """What all trials have cost."""
        return sum({trial.meter.file: trial.meter.seconds() for trial in self.trials}.values())

    @property
    def count(self) -> int:
        """How many trials have ended."""
        return sum(trial.state in ENDED for trial in self.trials)

    def best(self) -> Trial | None:
        """The best trial, the first of equal ones; None while none is done."""
        done = [trial for trial in self.trials if trial.state == "done"]
        return max(done, key=lambda trial: self.sign * trial.value, default=None)

    def next(self) -> Trial | None:
        """The next trial that has to be run; None when there is none. Those that ended before are only told of."""
        while not self.over:
            if self._is_spent():
                self.over = True
                break
            trial = self._propose()
            self.trials.append(trial)
            if self._known(trial):
                continue
            _forget_lost_cost(trial)
            if not self._is_spent():
                return trial
            self._tell(trial, "stopped")
        return None

    def limit(self) -> float | None:
        """Seconds that are left."""
        return None if math.isinf(self.budget.seconds) else self.budget.seconds - self.seconds

    def watch(self, trial: Trial) -> bool:
        """Tell Optuna of new evaluations; returns whether one of them is behind, which ends the trial."""
        for metrics in trial.job.evaluations()[trial.reported :]:
            trial.reported += 1
            trial.told.report(monitored(trial.job, metrics), trial.reported)
            if metrics["epoch"] < trial.job.params["epochs"] and trial.told.should_prune():
                self._tell(trial, "pruned")
                return True
        return False

    def close(self, trial: Trial, code: int) -> str:
        """Note how a trial's run ended; returns the line that is shown.

        Args:
            trial: of `next`.
            code: the run's exit code.
        """
        if trial.state == "running" and not self.watch(trial):
            if trial.job.result() and not self._is_over():
                self._finish(trial)
            elif self._is_spent():
                self._tell(trial, "stopped")
            else:
                trial.error = jobs.error_of(trial.job.output, code)
                self._tell(trial, "failed")
        if trial.state != "stopped":
            _forget(trial.job)
        said = {
            "done": f"{trial.value:.4f}, {trial.meter.seconds():.1f} s",
            "pruned": f"behind after evaluation {trial.reported}",
            "failed": trial.error,
            "stopped": "its budget is spent",
        }[trial.state]
        changes = shlex.join(as_changes(trial.settings)) or "its own settings"
        return f"{trial.state:<8}{self.line.name} trial {trial.number}: {said}: {changes}"

    def rows(self) -> list[dict]:
        """The trials for tuning.csv."""
        return [
            {
                "expid": self.line.name,
                "trial": trial.number,
                "state": trial.state,
                "value": None if math.isnan(trial.value) else trial.value,
                "seconds": round(trial.meter.seconds(), 1),
                "set": shlex.join(as_changes({**self.line.changes, **trial.settings})),
                "error": trial.error,
            }
            for trial in self.trials
        ]

    def _is_spent(self) -> bool:
        if self.count >= self.budget.trials or self.seconds >= self.budget.seconds:
            return True
        last = self.trials[-MOST_IN_VAIN:]
        return len(last) == MOST_IN_VAIN and all(trial.state in ("again", "failed") for trial in last)

    def _is_over(self) -> bool:
        """Whether more has been spent than there was: the last trial, of a larger budget before, took too long."""
        return self.seconds > self.budget.seconds

    def _propose(self) -> Trial:
        """A trial with a value of every setting; the first one's are the experiment's own."""
        number = len(self.trials)
        self.study.sampler = self.optuna.samplers.TPESampler(
            seed=self.base.seed + number, n_startup_trials=STARTUP_TRIALS
        )
        keys = list(self.space)
        if number == 0:
            own = {key: _stored(values, self.base.params.get(key)) for key, values in self.space.items()}
            keys = [key for key in keys if own[key] is not None]
            self.study.enqueue_trial({key: own[key] for key in keys})
        told = self.study.ask()
        for key in keys:
            suggest(told, key, self.space[key])
        found = {} if number == 0 else {key: _value(self.space[key], told.params[key]) for key in keys}
        job = self.plan(as_changes({**self.line.changes, **found}))
        meter = Meter(str(job.model_root / SECONDS))
        return Trial(number, told, found, job, meter)

    def _known(self, trial: Trial) -> bool:
        """Tell Optuna of a trial that has ended before; returns whether it has."""
        job = trial.job
        same = next((earlier for earlier in self.trials[:-1] if earlier.job.model_root == job.model_root), None)
        if same:
            trial.value = same.value
            for step, value in self.study.trials[same.number].intermediate_values.items():
                trial.told.report(value, step)
            self._tell(trial, same.state, "again")
        elif job.error:
            trial.error = job.error
            self._tell(trial, "failed")
        elif not self.watch(trial):
            if not job.result() or self._is_over():
                return False
            self._finish(trial)
        return True

    def _finish(self, trial: Trial) -> None:
        metrics = (trial.job.result() or {})["metrics"]
        undefined = [name for name, value in metrics.items() if value is None]
        trial.value = monitored(trial.job, {**metrics, **dict.fromkeys(undefined, math.nan)})
        if math.isnan(trial.value):
            trial.error = "finished, but the metric that trials are compared by is undefined"
            self._tell(trial, "failed")
        else:
            self._tell(trial, "done")

    def _tell(self, trial: Trial, state: str, shown: str | None = None) -> None:
        """Tell Optuna how a trial ended; it is noted as `shown`, where that is something else."""
        states = self.optuna.trial.TrialState
        ended = {"done": states.COMPLETE, "pruned": states.PRUNED}.get(state, states.FAIL)
        self.study.tell(trial.told, trial.value if state == "done" else None, state=ended)
        trial.state = shown or state


def run_all(
    tunings: list[Tuning], command: list[str], devices: list[int], lock: int, workers: Workers, out: Path
) -> None:
    """Run all trials of all experiments, one of each experiment at a time, and keep tuning.csv.

    Args:
        tunings: one a line of the leaderboard.
        command, devices, lock, workers: as for `jobs.run_all`.
        out: the leaderboard's folder.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the trials saved their state and stopped.
    """
    if not tunings:
        return
    waiting, free, running = deque(tunings), list(devices), {}
    with signals.noted() as asked, track(desc="tuning", total=len(tunings), unit="experiment") as progress:
        try:
            while (waiting or running) and not asked:
                while waiting and free and not asked:
                    tuning = waiting.popleft()
                    trial = tuning.next()
                    if trial is None:
                        progress.update()
                        continue
                    device = free.pop(0)
                    trial.meter = trial.meter._replace(limit=tuning.limit(), wall=device != jobs.CPU)
                    run = jobs.start(trial.job, command, device, len(devices), lock, workers, trial.meter)
                    running[run] = tuning, trial, device
                states = printable("; ".join(trial.job.state() for _, trial, _ in running.values()))
                if states != progress.postfix:
                    progress.set_postfix_str(states)
                time.sleep(jobs.POLL_SECONDS)
                for run, (tuning, trial, device) in list(running.items()):
                    code = run.poll()
                    if code is None and trial.state == "running" and tuning.watch(trial):
                        run.terminate()
                    if code is not None and not asked:
                        del running[run]
                        free.append(device)
                        waiting.append(tuning)
                        progress.write(printable(tuning.close(trial, code)))
                        write_results(tunings, out)
        finally:
            jobs.stop(list(running))
            for _, trial, _ in running.values():
                trial.state = "stopped" if trial.state == "running" else trial.state
            write_results(tunings, out)
    if asked:
        raise KeyboardInterrupt


def write_results(tunings: list[Tuning], out: Path) -> None:
    """tuning.csv: a line a trial, with what --set repeats it."""
    rows = [row for tuning in tunings for row in tuning.rows()]
    if rows:
        write_csv(out / RESULTS, as_csv(list(rows[0]), rows, csv_cell))


def _forget(job: jobs.Job) -> None:
    """Remove what nobody asks a trial for, its weights and its state: those of many fill a disk."""
    RunCheckpoints(job.folder, "").clear()
    RunFolder.of(job.params).weights.unlink(missing_ok=True)


def _forget_lost_cost(trial: Trial) -> None:
    """A trial that has to begin anew, as it failed, costs what it will cost then, as in a tuning without a stop."""
    if not trial.job.result() and not RunCheckpoints(trial.job.folder, "").exist():
        Path(trial.meter.file).unlink(missing_ok=True)


def _stored(values: Any, own: Any) -> Any:
    """An experiment's own value as Optuna stores it; None where it is outside of the values."""
    if is_range(values):
        inside = type(own) in (int, float) and values["low"] <= own <= values["high"]
        return own if inside else None
    same = (text_of(value) for value in values if value == own and isinstance(value, bool) == isinstance(own, bool))
    return next(same, None)


def _value(values: Any, stored: Any) -> Any:
    """A chosen value; of a range's numbers, those digits that a reader wants to see, and never one beyond its ends."""
    value = chosen(values, stored)
    if not (is_range(values) and isinstance(value, float)):
        return value
    low, high = values["low"], values["high"]
    rounded = (float(f"{value:.{digits}g}") for digits in range(DIGITS, sys.float_info.dig))
    return next((one for one in rounded if low <= one <= high and abs(one - value) <= (high - low) / 100), value)

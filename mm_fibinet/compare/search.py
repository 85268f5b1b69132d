"""A tuner's experiments -> the best of them on the validation split.

Unlike FuxiCTR's, the generated config goes to the output folder and never names the test split: the best of many by
their test scores looks better than it is. Runs are those of `mm_fibinet.compare.jobs`, so what is finished is not
repeated, and one that fails is a line of the table.
"""

import math
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from fuxictr.utils import Monitor

from mm_fibinet import files
from mm_fibinet.compare import jobs
from mm_fibinet.compare.csv_files import as_csv, csv_cell, write_csv
from mm_fibinet.compare.tuner import Tuner, is_range, read_tuner, refuse_test
from mm_fibinet.errors import UserError, printable
from mm_fibinet.metrics import METRICS, OTHER_NAMES
from mm_fibinet.settings import DEFAULTS, parse_overrides, require_name

RESULTS = "results.csv"
WRITTEN_HERE = "# Written by run_param_tuner.py, which replaces it.\n"
# How the files of an output folder begin; one of these names that begins otherwise is somebody's.
OUTPUTS = {"dataset_config.yaml": WRITTEN_HERE, "model_config.yaml": WRITTEN_HERE, RESULTS: "expid,state,"}
STATES = ("done", "pruned", "stopped", "failed")  # in the table's order
MAX_CELL = 40  # characters of a value in the printed table


@dataclass
class Search:
    """Runs a tuner's experiments.

    Attributes:
        tuner: of `read_tuner`.
        models: the namespace of the models (model_zoo).
        out: the output folder: the generated config, results.csv, and a folder a run.
        script: the command that starts a training, its interpreter first; the arguments are added.
        devices: a place for one run at a time each, see `jobs.run_all`.
        overrides: "key=value" changes to all experiments.
        data_root: replaces that of the dataset config.
        seed: of all experiments and of Optuna's sampler; None for the config's.
        rows: what is known so far, one dictionary an experiment, the best first.
        datasets, experiments: the generated config.
    """

    tuner: Tuner
    models: object
    out: Path
    script: list[str]
    devices: list[int]
    overrides: list[str] = field(default_factory=list)
    data_root: str | None = None
    seed: int | None = None
    rows: list[dict] = field(default_factory=list)
    datasets: dict[str, dict] = field(default_factory=dict)
    experiments: dict[str, dict] = field(default_factory=dict)
    mode: str = "max"

    def __post_init__(self):
        changes = parse_overrides(self.overrides)
        for key, value in changes.items():
            if key == "test_data":
                raise UserError("--set test_data: a tuner does not look at the test split; prediction.py does")
            if key == "seed":
                raise UserError("--set seed: expected --seed instead")
            if key in self.tuner.varied:
                raise UserError(f"--set {key}: tuner_space varies it, change it there")
            if key in ("train_data", "valid_data"):
                refuse_test(self.tuner, key, [value])
        if "dataset_id" in changes:
            dataset_id = require_name(changes.pop("dataset_id"), "--set dataset_id: dataset_id")
            self.tuner = read_tuner(self.tuner.path, self.models, dataset_id)
            self.overrides = [change for change in self.overrides if next(iter(parse_overrides([change]))) in changes]
        if self.seed is not None and "seed" in self.tuner.varied:
            raise UserError("--seed: tuner_space varies the seed, leave one of them out")
        self.tuner.require_read(self.models, changes if self.seed is None else {**changes, "seed": self.seed})
        self._require_place()

    @property
    def command(self) -> list[str]:
        """Starts a run when what differs between runs is added."""
        return [*self.script, "--config", str(self.out), *self._changes(self.overrides)]

    def run_grid(self, tag: str | None = None) -> None:
        """Run all combinations, or those whose experiment ID contains `tag`."""
        for key, values in self.tuner.space.items():
            if is_range(values):
                raise UserError(f"{self.tuner.path}: {key} is a range, which needs --optuna N; a grid needs a list")
        datasets, experiments = self.tuner.combine(self.tuner.space)
        expids = [expid for expid in experiments if tag is None or tag in expid]
        if not expids:
            raise UserError(f"--tag {tag}: in no experiment ID, they are like {next(iter(experiments))}")
        with jobs.locked(self.out) as lock:  # before the config is written, which another search's runs may be reading
            self.add(datasets, experiments)
            planned = self.plan(expids)
            try:
                jobs.run_all(planned, self.command, self.devices, lock)
            finally:
                self.keep([self._job_row(job) for job in planned])

    def add(self, datasets: dict[str, dict], experiments: dict[str, dict]) -> None:
        """Write the config of these experiments and those before, without the test split."""
        for name, settings in datasets.items():
            self.datasets[name] = {key: value for key, value in settings.items() if key != "test_data"}
        self.experiments.update(experiments)
        for name, content in (("dataset_config", self.datasets), ("model_config", self.experiments)):
            text = yaml.dump(content, Dumper=_Dumper, default_flow_style=None, indent=4, allow_unicode=True)
            files.write_text(self.out / f"{name}.yaml", WRITTEN_HERE + text)

    def seed_of(self, expid: str) -> int:
        """The seed that an experiment runs with."""
        seeds = (self.seed, self.experiments[expid].get("seed"), DEFAULTS["seed"])
        return next(seed for seed in seeds if seed is not None)

    def plan(self, expids: list[str]) -> list[jobs.Job]:
        """The runs of experiments whose config is written, each with its own seed."""
        planned = []
        for seed in dict.fromkeys(map(self.seed_of, expids)):
            some = [expid for expid in expids if self.seed_of(expid) == seed]
            planned += jobs.plan(str(self.out), some, [seed], self.models, self.out, self.overrides, self.data_root)
        self.mode = next((job.params.get("monitor_mode", "max") for job in planned if job.params), self.mode)
        return planned

    def row(self, expid: str, state: str, value: float | None, result: dict, error: str | None) -> dict:
        """One experiment in the table.

        Args:
            state: one of STATES.
            value: the monitor on the validation split.
            result: has metrics and train_seconds when the run is done.
            error: why it failed.
        """
        settings = {**self.datasets[self.experiments[expid]["dataset_id"]], **self.experiments[expid]}
        return {
            "expid": expid,
            "state": state,
            "valid_monitor": value,
            **{f"valid_{name}": result.get("metrics", {}).get(name) for name in METRICS},
            "train_seconds": result.get("train_seconds"),
            **{key: settings[key] for key in self.tuner.varied},
            "error": error if state == "failed" else None,
        }

    def keep(self, rows: list[dict]) -> None:
        """Sort the rows, the best first, and write results.csv."""
        sign = -1 if self.mode == "max" else 1

        def order(row: dict) -> tuple[int, float]:
            value = row["valid_monitor"]
            return STATES.index(row["state"]), math.inf if value is None or math.isnan(value) else sign * value

        self.rows = sorted(rows, key=order)
        if rows:
            write_csv(self.out / RESULTS, as_csv(list(rows[0]), self.rows, csv_cell))

    def best(self) -> dict | None:
        """The best experiment's row; None while none is done."""
        return self.rows[0] if self.rows and self.rows[0]["state"] == "done" else None

    def repeat_command(self, expid: str) -> str:
        """The command that runs an experiment again, in the config's own model_root."""
        changes = [*self.overrides, *([] if self.seed is None else [f"seed={self.seed}"])]
        _, program, *arguments = self.script  # the interpreter; a script, or -m and the module's command
        program = os.path.relpath(program) if os.path.isabs(program) else program
        command = ["python", program, *arguments, "--config", self.out, "--expid", expid, "--gpu", self.devices[0]]
        return shlex.join(map(str, [*command, *self._changes(changes)]))

    def as_text(self) -> str:
        """The rows as a table."""
        shown = ["expid", "state", "valid_monitor", "train_seconds", *self.tuner.varied]
        cells = [shown, *([_cell(row[key]) for key in shown] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)

    def _require_place(self) -> None:
        """Refuse an `out` whose files are not of a search: the base config's own folder, say."""
        for name, beginning in OUTPUTS.items():
            path = files.require_output(self.out / name, [self.tuner.path], option="--out")
            if path.exists() and path.open("rb").read(len(beginning)) != beginning.encode():
                raise UserError(f"--out {self.out}: its {name} is not of a tuner; choose another folder")

    def _changes(self, overrides: list[str]) -> list[str]:
        root = ["--data_root", self.data_root] if self.data_root else []
        return [*root, *(["--set", *overrides] if overrides else [])]

    def _job_row(self, job: jobs.Job) -> dict:
        result = job.result()
        if result:
            return self.row(job.expid, "done", monitored(job, result["metrics"]), result, None)
        return self.row(job.expid, "failed" if job.error else "stopped", None, {}, job.error)


def monitored(job: jobs.Job, metrics: dict[str, float]) -> float:
    """The experiment's monitor, a weighted sum of metrics, as in training.

    Args:
        metrics: of an evaluation, under the names of the config, or of a run's result, under those of METRICS.
    """
    known = {**{other: metrics[name] for other, name in OTHER_NAMES.items() if name in metrics}, **metrics}
    weights = Monitor(job.params.get("monitor") or "AUC").kv_pairs
    return sum(weight * known[name] for name, weight in weights.items())  # Monitor itself takes what is missing for 0


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, as FuxiCTR writes it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _cell(value: object) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else printable(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."

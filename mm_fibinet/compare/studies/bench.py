"""What a study is given: the runs of the leaderboard.

All experiments of a study must have been judged on the same rows, those of the same files: what a study says of a model
by groups of rows means nothing beside a model that has other rows.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_fibinet import run_result
from mm_fibinet.compare.jobs import Job
from mm_fibinet.errors import UserError, printable

DATA = ("train_data", "valid_data", "user_info")  # what the rows of a study are


@dataclass(frozen=True)
class Scored:
    """The scores of the finished runs on the validation rows, in file order.

    Attributes:
        label: int8 [N], 0 or 1.
        user: integer [N].
        scores: {experiment: float64 [S, N]}, a row for each of its finished seeds.
    """

    label: np.ndarray
    user: np.ndarray
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class Bench:
    """The runs that are studied.

    Attributes:
        runs: of the leaderboard, done: each has a result or an error.
        baseline: the experiment the others are compared to, as it is shown.
        out: the leaderboard's folder; what a study needs on disk goes to out/studies/NAME.
    """

    runs: list[Job]
    baseline: str
    out: Path

    @property
    def params(self) -> dict:
        """Settings of an experiment: of their data all have the same."""
        return next(job.params for job in self.runs if job.params)

    def folder(self, study: str) -> Path:
        """Where a study keeps what it makes."""
        return self.out / "studies" / study

    def finished(self) -> dict[str, list[Job]]:
        """{experiment as shown: its runs that have a result}, by falling AUC; without experiments that have none."""
        found: dict[str, list[Job]] = {}
        for job in self.runs:
            if has_auc(job):
                found.setdefault(printable(job.shown), []).append(job)
        return dict(sorted(found.items(), key=lambda item: -mean_auc(item[1])))

    def scored(self) -> Scored:
        """The scores that the runs have kept.

        Raises:
            UserError: no run has finished.
        """
        finished = self.finished()
        if not finished:
            raise UserError("there is nothing to study: no run has finished; the leaderboard says why")
        tables = {shown: [run_result.read_scores(job.folder) for job in own] for shown, own in finished.items()}
        first = next(iter(tables.values()))[0]
        scores = {shown: np.stack([table["score"].to_numpy() for table in own]) for shown, own in tables.items()}
        return Scored(first["label"].to_numpy(), first["user_id"].to_numpy(), scores)


def has_auc(job: Job) -> bool:
    """Whether a run has finished with a figure to compare."""
    result = job.result()
    return result is not None and result["metrics"]["AUC"] is not None


def mean_auc(jobs: list[Job]) -> float:
    """Of runs that have one."""
    return statistics.fmean(result["metrics"]["AUC"] for job in jobs if (result := job.result()))


def require_one_data_set(runs: list[Job], study: str) -> None:
    """Refuse to study experiments that were judged on different rows.

    Args:
        runs: planned, whether done or not.
        study: its name.

    Raises:
        UserError: two experiments have different files of DATA.
    """
    loaded = [job for job in runs if job.params]
    for job in loaded:
        for key in DATA:
            own, first = job.params.get(key), loaded[0].params.get(key)
            if own != first:
                raise UserError(
                    f"--study {study}: {loaded[0].shown} has {key} {first}, {job.shown} has {own}; expected one data "
                    "set for all experiments, which --set dataset_id=NAME chooses"
                )

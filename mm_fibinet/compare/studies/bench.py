"""What a study is given: the runs of the leaderboard, and the means to train variants of them.

All experiments of a study must have been judged on the same rows, those of the same files: what a study says of a model
by groups of rows means nothing beside a model that has other rows.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from mm_fibinet import run_result
from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.studies.retraining import FOLDER, Retraining, Variant, Variants
from mm_fibinet.errors import UserError, printable

ROWS = ("train_data", "valid_data", "user_info")  # the settings that say which rows there are


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
        out: the leaderboard's folder; what a study needs on disk goes to out/studies.
        gpu: where scores are computed, -1 for the CPU.
        modalities: {name: how the columns of item_info that are of that modality alone begin}.
        retraining: how variants of the runs are trained.
    """

    runs: list[Job]
    baseline: str
    out: Path
    gpu: int
    modalities: dict[str, str]
    retraining: Retraining

    @property
    def params(self) -> dict:
        """Settings of an experiment: of their data all have the same."""
        return next(job.params for job in self.runs if job.params)

    @property
    def models(self) -> ModuleType:
        """The namespace of the models' classes."""
        return self.retraining.models

    def folder(self, name: str) -> Path:
        """Where studies keep what they make."""
        return self.out / FOLDER / name

    def retrained(self, study: str, variants: Callable[[Job], Variants]) -> list[Variant]:
        """The finished runs with each of their variants, see `Retraining.run`."""
        return self.retraining.run(study, [job for own in self.finished().values() for job in own], variants)

    def finished(self) -> dict[str, list[Job]]:
        """{experiment as shown: its runs that have a result}, by falling AUC; without experiments that have none."""
        found: dict[str, list[Job]] = {}
        for job in self.runs:
            if has_auc(job):
                found.setdefault(printable(job.shown), []).append(job)
        return dict(sorted(found.items(), key=lambda item: -statistics.fmean(map(auc_of, item[1]))))

    def scored(self) -> Scored:
        """The scores that the runs have kept.

        Raises:
            UserError: no run has finished.
        """
        finished = self.finished()
        if not finished:
            raise UserError("there is nothing to study: no run has finished; the leaderboard says why")
        return scored(finished)


def scored(finished: dict[str, list[Job]]) -> Scored:
    """The scores of finished runs on the same validation rows: {experiment: its runs}, at least one."""
    tables = {shown: [run_result.read_scores(job.folder) for job in own] for shown, own in finished.items()}
    first = next(iter(tables.values()))[0]
    scores = {shown: np.stack([table["score"].to_numpy() for table in own]) for shown, own in tables.items()}
    return Scored(first["label"].to_numpy(), first["user_id"].to_numpy(), scores)


def has_auc(job: Job) -> bool:
    """Whether a run has finished with a figure to compare."""
    result = job.result()
    return result is not None and result["metrics"]["AUC"] is not None


def auc_of(job: Job) -> float:
    """The AUC over all validation rows of a run that has one."""
    result = job.result()
    if result is None:
        raise ValueError(f"{job.name} has not finished")
    return result["metrics"]["AUC"]


def failures(variants: list[Variant]) -> list[str]:
    """What went wrong, a sentence a run."""
    lost = [one for one in variants if not has_auc(one.job)]
    return [printable(f"{one.job.name}: {one.job.outcome().error}") for one in lost]


def set_path(key: str, path: Path) -> str:
    """A --set of a file, quoted as YAML reads it."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def require_same_files(runs: list[Job], study: str, keys: tuple[str, ...]) -> None:
    """Refuse to study experiments that were judged on different rows, or with different items where that matters.

    Args:
        runs: with settings, whether done or not.
        study: its name.
        keys: settings that name files.

    Raises:
        UserError: two experiments have different files.
    """
    for job in runs:
        for key in keys:
            own, first = job.params.get(key), runs[0].params.get(key)
            if own != first:
                raise UserError(
                    f"--study {study}: {runs[0].shown} has {key} {first}, {job.shown} has {own}; expected the same "
                    "for all experiments (--set dataset_id=NAME chooses a data set for all)"
                )

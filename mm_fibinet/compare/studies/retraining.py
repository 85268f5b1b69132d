"""The leaderboard's runs once more with something changed: as resumable as they are, by the same means."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mm_fibinet import settings
from mm_fibinet.compare import jobs
from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.workers import Workers

Variants = dict[str, list[str]]  # {name, which a folder can have: changes to settings}
FOLDER = "studies"  # of what studies make, in the leaderboard's


class Variant(NamedTuple):
    """A run with something changed.

    Attributes:
        base: the leaderboard's run.
        name: of the change.
        job: the run, done: it has a result or an error.
    """

    base: Job
    name: str
    job: Job


@dataclass(frozen=True)
class Retraining:
    """How runs are started.

    Attributes:
        config_dir, data_root, models: of `jobs.plan`.
        overrides: what --set says for all runs.
        out: the leaderboard's folder.
        command, devices, lock, workers: of `jobs.run_all`; the command without --set.
    """

    config_dir: str
    overrides: list[str]
    data_root: str | None
    models: ModuleType
    out: Path
    command: list[str]
    devices: list[int]
    lock: int
    workers: Workers | None = None

    def run(self, study: str, bases: list[Job], variants: Callable[[Job], Variants]) -> list[Variant]:
        """Run each of some runs with each of its variants, but for what is finished.

        Args:
            study: whose runs they are; they are kept in out/studies/STUDY/runs/EXPID/VARIANT/SEED, with the label of
                the leaderboard's run, where it has one, before runs.
            bases: the leaderboard's runs.
            variants: what is changed of one of them; a setting that is named there is the variant's alone.
        """
        found, known = [], {}
        for base in bases:
            changed = {
                name: [*_without(settings.parse_overrides(own).keys(), [*self.overrides, *base.changes]), *own]
                for name, own in variants(base).items()
            }
            out = self.out / FOLDER / study / (base.label or "")
            planned = jobs.plan(
                self.config_dir, [base.expid], [base.seed], self.models, out, [], self.data_root, changed, known
            )
            for name, job in zip(changed, planned, strict=True):
                job.label = f"{base.shown}, {name}"  # as it is shown; its folder is made
                found.append(Variant(base, name, job))
        jobs.run_all([variant.job for variant in found], self.command, self.devices, self.lock, self.workers)
        return found


def _without(keys, changes: list[str]) -> list[str]:
    """The changes to other settings than these."""
    return [change for change in changes if not keys & settings.parse_overrides([change]).keys()]

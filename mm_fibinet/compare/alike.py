"""From experiment IDs to the lines of a leaderboard: their similarity fields switched, each tuned alike."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mm_fibinet import settings
from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.leaderboard import Tuned
from mm_fibinet.compare.tuner import values_of
from mm_fibinet.compare.tuning import FOLDER, Tuning
from mm_fibinet.compare.tuning_space import Budget, Line, Space, as_changes
from mm_fibinet.errors import UserError
from mm_fibinet.settings_unread import refusal, unread
from mm_fibinet.yaml_reader import shown

Plan = Callable[..., list[Job]]  # jobs.plan, given all but expids, seeds, out and variants


def find_lines(space: Space, runs: list[Job], models, similarity: str | None) -> list[Line]:
    """The lines of the experiments that are run, in their order.

    Args:
        space: of `read_space`.
        runs: of `jobs.plan`, the experiments as they are.
        models: the namespace of the models.
        similarity: of `Space.lines`.
    """
    lines = []
    for job in {job.expid: job for job in runs}.values():
        lines += [Line(job.expid)] if job.error else space.lines(job.expid, job.params, models, similarity)
    return lines


def require_read(runs: list[Job], models, changes: dict[str, object], space: Space | None) -> list[str]:
    """What --set changes in vain: in every experiment, which is refused, or in some, which is said.

    Args:
        runs: of `jobs.plan`.
        models: the namespace of the models.
        changes: of --set.
        space: of the tuning, which may choose what a change is read beside; None without one.

    Returns:
        a line each for the experiments that do not read a change.

    Raises:
        UserError: none of them reads it.
    """
    loaded = {job.expid: job.params for job in runs if not job.error}
    possible = {key: [value] for key, value in changes.items()}
    found = {}
    for expid, params in loaded.items():
        varied = space.of(params, models, changes.keys()) if space else {}
        values = {key: values_of(values) for key, values in varied.items()}
        found[expid] = unread(params, {**values, **possible}, settings.find_model(models, params["model"]))
    for key in changes:
        whys = {expid: found[expid][key] for expid in found if key in found[expid]}
        if whys and len(whys) == len(found):
            raise refusal("--set", key, changes[key], next(iter(whys.values())))
    return [
        f"{expid}: --set {key}={shown(changes[key])} changes nothing here: {why.partition(';')[0]}"
        for expid, whys in found.items()
        for key, why in whys.items()
        if key in changes
    ]


def plan_tuning(
    lines: list[Line], space: Space, budget: Budget, models, fixed: set[str], seeds: list[int], plan: Plan, out: Path
) -> list[Tuning]:
    """The tuning of each line whose experiment can be loaded; the mistake of another is its run's error.

    Args:
        lines: of `find_lines`.
        space: of `read_space`.
        budget: of each line.
        models: the namespace of the models.
        fixed: settings that are not varied, those of --set.
        seeds: of the leaderboard; trials have another, so that no line stands on a run that was chosen for its luck.
        plan: see `Plan`.
        out: the leaderboard's folder.

    Raises:
        UserError: a setting that the space has for a model, and no line of that model reads.
    """
    seed = next(number for number in itertools.count(1) if number not in seeds)
    tunings, left_out = [], {}
    for line in lines:
        trial = _planner(line, seed, plan, out)
        base = trial(as_changes(line.changes))
        if not base.error:
            values, unread_here = space.split(base.params, models, {*fixed, *line.changes})
            tunings.append(Tuning(line, base, values, budget, trial))
            left_out.update(unread_here)
    for key, why in left_out.items():
        if key not in space.common and not any(key in tuning.space for tuning in tunings):
            raise UserError(f"{space.path}: {key}: no experiment here reads it: {why}")
    return tunings


def plan_lines(lines: list[Line], tunings: list[Tuning], seeds: list[int], plan: Plan, out: Path) -> list[Job]:
    """The runs of the leaderboard, all lines with the first seed before those with the second.

    Args:
        lines, seeds, plan, out: as for `plan_tuning`.
        tunings: of `plan_tuning`, when all is tuned; a line runs with the best that was found for it.
    """
    found = {tuning.line.name: tuning for tuning in tunings}
    runs = []
    for line in lines:
        tuning = found.get(line.name)
        best = tuning.best() if tuning else None
        for job in plan([line.expid], seeds, out=out, variants=line.variant(best.settings if best else {})):
            runs.append(replace(job, tuned=Tuned(tuning.count, tuning.seconds) if tuning else None))
    return sorted(runs, key=lambda job: seeds.index(job.seed))


def _planner(line: Line, seed: int, plan: Plan, out: Path) -> Callable[[list[str]], Job]:
    """A function that makes the run of a trial, in a folder that its settings and data name."""
    folder = out / FOLDER

    def trial(changes: list[str]) -> Job:
        (job,) = plan([line.expid], [seed], out=folder, variants={"": changes})
        place = folder / line.expid / (job.fingerprint[:16] or "refused")
        return replace(job, model_root=place, params=job.params and {**job.params, "model_root": str(place)})

    return trial

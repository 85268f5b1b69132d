"""What `run_benchmark.py --tune` and `--similarity` may change: a YAML of settings, the same for every experiment.

The space is data (config/tuner/benchmark.yaml), so that whoever doubts a comparison reads it in a minute, and changes
it without reading code.
"""

import dataclasses
import json
import math
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_fibinet import settings
from mm_fibinet.compare.tuner import COMPARED_BY, is_range, is_sound_range, values_of
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.settings_fields import DatasetEntry
from mm_fibinet.settings_schema import schema_of, unknown
from mm_fibinet.settings_unread import unread
from mm_fibinet.yaml_reader import shown

FILE = Path("tuner") / "benchmark.yaml"
PARTS = ("common", "models", "similarity")
UNITS = {"s": 1, "m": 60, "h": 3600}
FIELDS, COMPARED = "similarity_fields", "similarity_only"
SIMILARITIES = {"on": "with", "off": "without"}  # of --similarity: as the YAML calls it, where `on` would be true
MOST_TRIALS = 10_000
# What says which rows are judged, and by what: were it chosen as well, figures would be of different things.
JUDGED_BY = {*DatasetEntry.model_fields, *COMPARED_BY, "dataset_id", "group_id", "metrics", "model", "seed"}
PLACES = {"model_root", "gpu"}


@dataclass(frozen=True)
class Budget:
    """How much tuning each experiment gets; one of the two is without end.

    Attributes:
        trials: how many.
        seconds: of one core, or of the clock where runs are on a GPU.
    """

    trials: float = math.inf
    seconds: float = math.inf

    def shown(self, on_gpu: bool) -> str:
        """As the leaderboard's page tells it."""
        if math.isinf(self.seconds):
            return f"{self.trials:g} trial{'s' * (self.trials > 1)} each"
        return f"{self.seconds / 60:g} min {'on a GPU' if on_gpu else 'of one core'} each"

    @classmethod
    def read(cls, text: str) -> "Budget":
        """Of --tune: "20m", "2h", "90s", or a number of trials.

        Raises:
            UserError: it is none of these, or nothing at all.
        """
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh]?)", text, re.ASCII)
        number, unit = (float(found[1]), found[2]) if found else (0.0, "")
        if number > 0 and unit:
            return cls(seconds=number * UNITS[unit])
        if number > 0 and number.is_integer() and number <= MOST_TRIALS:
            return cls(trials=int(number))
        raise UserError(
            f"--tune {text}: expected minutes, hours or seconds of one core for each experiment (20m, 2h, 90s), or a "
            f"number of trials from 1 to {MOST_TRIALS}"
        )


@dataclass(frozen=True)
class Line:
    """A line of the leaderboard: an experiment, or one with its similarity fields switched.

    Attributes:
        expid: the experiment.
        label: what its name has in addition; "" for the experiment as it is.
        changes: what --set says for it, {setting: value}.
    """

    expid: str
    label: str = ""
    changes: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the leaderboard calls it."""
        return self.expid + self.label

    def variant(self, further: dict[str, object]) -> dict[str, list[str]]:
        """As `jobs.plan` takes it, with further changes."""
        return {self.name if self.label else "": as_changes({**self.changes, **further})}


@dataclass(frozen=True)
class Space:
    """A space that was read.

    Attributes:
        path: the YAML.
        common: {setting: values} for every model that reads it.
        models: {model: {setting: values}} beside these.
        similarity: {"with": settings, "without": settings}; empty where the file says nothing of it.
    """

    path: Path
    common: dict[str, Any]
    models: dict[str, dict[str, Any]]
    similarity: dict[str, dict[str, Any]]

    @property
    def switched(self) -> set[str]:
        """The settings that --similarity sets."""
        return {key for part in self.similarity.values() for key in part}

    def of(self, params: dict, models, fixed: Set[str] = frozenset()) -> dict[str, Any]:
        """The values that an experiment's settings may have, each held to the schema.

        Args:
            params: of `load_params`.
            models: the namespace of the models.
            fixed: settings that are not varied, those of --set.

        Returns:
            {setting: list or range}, without `times`, and without what nothing reads as the experiment is.

        Raises:
            UserError: a setting that no model reads, or a value that this one cannot have.
        """
        return self.split(params, models, fixed)[0]

    def split(self, params: dict, models, fixed: Set[str] = frozenset()) -> tuple[dict[str, Any], dict[str, str]]:
        """As `of`; and {setting: why} of those that the model has and does not read, whatever of the space is chosen.

        Args:
            params, models, fixed: as for `of`.
        """
        model = params["model"]
        model_class = settings.find_model(models, model)
        known, defaults = settings.known_settings(model_class), schema_of(model_class).arguments
        own = self.models.get(model) or {}
        for key in own:
            if key not in known:
                raise UserError(f"{self.path}: models: {model}: {key}: {unknown(key, known)}")
        space = {}
        for key, values in {**self.common, **own}.items():
            if key in known and key not in fixed:
                space[key] = _times(values, params.get(key, defaults.get(key)), f"{self.path}: {key}")
                for value in values_of(space[key]):
                    settings.change_params(params, models, as_changes({key: value}), where=str(self.path))
        left_out = unread(params, {key: values_of(values) for key, values in space.items()}, model_class)
        return {key: values for key, values in space.items() if key not in left_out}, left_out

    def lines(self, expid: str, params: dict, models, which: str | None) -> list[Line]:
        """The lines of an experiment.

        Args:
            expid: its ID.
            params: of `load_params`.
            models: the namespace of the models.
            which: "on", "off" or "both", where the model has similarity fields and the data have items; None for the
                experiment as it is.

        Raises:
            UserError: a value that one of the settings cannot have, or nothing said of similarity.
        """
        if which and not self.similarity:
            raise UserError(f"{self.path}: has no similarity, expected it, with and without, for --similarity {which}")
        known = settings.known_settings(settings.find_model(models, params["model"]))
        if which is None or FIELDS not in known or not params.get("item_info"):
            return [Line(expid)]
        own = "on" if params.get(FIELDS) else "off"
        wanted = [own, *({"on", "off"} - {own})] if which == "both" else [which]
        return [Line(expid) if one == own else self._switched(expid, params, one, models) for one in wanted]

    def _switched(self, expid: str, params: dict, to: str, models) -> Line:
        """The line with its similarity fields switched, its settings held to the schema."""
        name, known = SIMILARITIES[to], settings.known_settings(settings.find_model(models, params["model"]))
        changes = {key: value for key, value in self.similarity[name].items() if key in known}
        if changes.get(COMPARED):
            columns = set(open_parquet(params["item_info"]).schema_arrow.names)
            if "modality_features" in known:  # they stay features of the items, and are compared as such
                columns -= set(params.get("modality_features") or columns)
            changes[COMPARED] = [name for name in changes[COMPARED] if name in columns]
        settings.change_params(params, models, as_changes(changes), where=f"{self.path}: similarity: {name}")
        return Line(expid, f" {name} similarity", changes)


def read_space(path: Path, models) -> Space:
    """Read the YAML.

    Args:
        path: of it.
        models: the namespace of the models.

    Raises:
        UserError: it is not of this form, or names a setting that no model reads.
    """
    content = settings.read_yaml(path)
    for key, part in content.items():
        if key not in PARTS:
            raise UserError(f"{path}: {key}: {unknown(key, PARTS)}")
        if not isinstance(part, dict):
            raise UserError(f"{path}: {key} is {shown(part)}, expected a mapping of names to values")
    space = Space(path, *(content.get(part, {}) for part in PARTS))
    for name, part in {**space.models, **space.similarity}.items():
        if not isinstance(part, dict):
            raise UserError(f"{path}: {name} is {shown(part)}, expected a mapping of settings to values")
    if space.similarity and set(space.similarity) != set(SIMILARITIES.values()):
        raise UserError(f"{path}: similarity has {shown(list(space.similarity))}, expected with and without")
    for part in (space.common, *space.models.values()):
        for key, values in part.items():
            _require_values(values, f"{path}: {key}")
    for part in (space.common, *space.models.values(), *space.similarity.values()):
        for key in part:
            if key in JUDGED_BY | PLACES:
                raise UserError(f"{path}: {key} is the same for all runs of a comparison, leave it out")
    for name in space.models:
        settings.find_model(models, name, f"{path}: models")
    _require_read(space, models)
    _require_switches(space)
    return space


def as_changes(chosen: dict[str, object]) -> list[str]:
    """Settings as --set takes them: JSON is YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items()]


def _require_values(values: Any, where: str) -> None:
    if isinstance(values, list) and values:
        return
    if is_range(values) and is_sound_range(values):
        return
    times = values.get("times") if isinstance(values, dict) and len(values) == 1 else None
    if isinstance(times, list) and times and all(type(factor) in (int, float) and factor > 0 for factor in times):
        return
    raise UserError(
        f"{where} is {shown(values)}, expected a list of values, low < high with type (int or float) and either step "
        "or log (low above 0), or times with a list of factors"
    )


def _require_read(space: Space, models) -> None:
    """Refuse a setting for all models that none of them reads: a slip would mean that nothing is changed."""
    left = {*space.common, *space.switched}
    for name in models.__all__ if left else ():
        found = getattr(models, name)
        left -= settings.known_settings(found) if isinstance(found, type) else set()
    if left:
        raise UserError(f"{space.path}: {min(left)} is a setting of no model")


def _require_switches(space: Space) -> None:
    """Refuse a similarity part that does not do what the lines are called by."""
    for which, name in SIMILARITIES.items() if space.similarity else ():
        part, expected = space.similarity[name], which == "on"
        if part.get(FIELDS) is not expected:
            found = shown(part[FIELDS]) if FIELDS in part else "missing"
            raise UserError(f"{space.path}: similarity: {name}: {FIELDS} is {found}, expected {expected}")
        compared = part.get(COMPARED, [])
        if not (isinstance(compared, list) and all(isinstance(column, str) for column in compared)):
            raise UserError(
                f"{space.path}: similarity: {name}: {COMPARED} is {shown(compared)}, expected a list of columns"
            )


def _times(values: Any, base: Any, where: str) -> Any:
    """The values that `times` stands for."""
    if not (isinstance(values, dict) and "times" in values):
        return values
    if type(base) not in (int, float) or base <= 0:
        raise UserError(
            f"{where} is times {values['times']}, but the experiment has {shown(base)}; list values instead"
        )
    found = [base * factor for factor in values["times"]]
    return list(dict.fromkeys(max(round(value), 1) for value in found) if type(base) is int else dict.fromkeys(found))

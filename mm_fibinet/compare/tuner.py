"""A tuner YAML and what it combines to. The format, the grid and its experiment IDs are FuxiCTR's."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr.utils import print_to_json

from mm_fibinet.errors import UserError
from mm_fibinet.names import LISTED_BY, expected_one_of
from mm_fibinet.settings import (
    experiment_ids,
    find_model,
    known_settings,
    load_dataset_config,
    load_model_config,
    read_yaml,
    require_name,
    resolve,
)
from mm_fibinet.settings_rules import require_group_column
from mm_fibinet.settings_schema import unknown
from mm_fibinet.settings_unread import refusal, unread
from mm_fibinet.yaml_reader import shown

KEYS = ("base_config", "base_expid", "dataset_id", "dataset_config", "model_config", "tuner_space")
COMPARED_BY = ("monitor", "monitor_mode")  # by which runs are told apart: the same for all of a search
RANGE_KEYS = {"low", "high", "log", "step", "type"}


@dataclass
class Tuner:
    """A tuner YAML and its base experiment.

    Attributes:
        path: the YAML.
        name: what the experiment IDs begin with.
        datasets: {dataset_id: settings} of the data sets to train on, each in FuxiCTR's order.
        model: the base experiment's settings, in FuxiCTR's order.
        space: {setting: list of values, or a range {low, high, log, step, type}}.
    """

    path: Path
    name: str
    datasets: dict[str, dict]
    model: dict
    space: dict

    @property
    def varied(self) -> list[str]:
        """The settings that differ between experiments."""
        return [key for key, values in self.space.items() if len(values) > 1]

    def combine(self, space: dict[str, list], first: int = 1) -> tuple[dict[str, dict], dict[str, dict]]:
        """FuxiCTR's combinations of a space of lists, with its IDs (but never the random suffix of debug_mode).

        Data sets get a hash of their settings wherever these vary; FuxiCTR would keep only the last of them when
        rebuild_dataset is False. A dataset_id of the space is a data set to train on; FuxiCTR would ignore it.

        Args:
            space: lists of values.
            first: number of the first experiment.

        Returns:
            {dataset_id: settings} and {experiment ID: settings}.
        """
        inner = {key: values for key, values in space.items() if key != "dataset_id"}
        datasets = {}
        for dataset_id in space.get("dataset_id", self.datasets):
            base = self.datasets[dataset_id]
            form = base.get("data_format")
            built = form == "npz" or (form == "parquet" and base.get("rebuild_dataset") is False)
            plain = built and not set(self.varied) & (set(base) - {"dataset_id"})
            for settings in _product(base, inner):
                datasets[dataset_id if plain else f"{dataset_id}_{_hash(settings)}"] = settings
        experiments = {}
        for number, (model, dataset_id) in enumerate(itertools.product(_product(self.model, inner), datasets), first):
            settings = {**model, "dataset_id": dataset_id}
            experiments[f"{self.name}_{number:03d}_{_hash(settings)}"] = settings
        return datasets, experiments

    def check(self, models, overrides: dict[str, object]) -> list[dict]:
        """Hold every value of the space, and changes to all experiments, to the schema, before anything runs.

        Args:
            models: the namespace of the models.
            overrides: of --set.

        Returns:
            the settings of as many runs as it takes to have each value in one.

        Raises:
            UserError: a run with one of the values would be refused.
        """
        ends = {key: values_of(values) for key, values in self.space.items()}
        first = {key: values[0] for key, values in ends.items()}
        checked = []
        chosen = [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]
        for settings in chosen:
            for dataset_id in [settings["dataset_id"]] if "dataset_id" in settings else self.datasets:
                dataset = {**self.datasets[dataset_id], "dataset_id": dataset_id}
                where = f"{self.path}: tuner_space"
                params = resolve(self.name, self.model, dataset, models, (where, settings), ("--set", overrides))
                require_group_column(params)
                checked.append(params)
        return checked

    def require_read(self, models, overrides: dict[str, object]) -> None:
        """As `check`, and each setting that is varied or changed is read in some run, or its trials would be one.

        Raises:
            UserError: there is one that is not.
        """
        possible = {key: values_of(values) for key, values in self.space.items()}
        possible.update({key: [value] for key, value in overrides.items()})
        runs = self.check(models, overrides)
        found = [unread(params, possible, find_model(models, params["model"])) for params in runs]
        for key, why in found[0].items():
            if all(key in others for others in found):
                if key in overrides:
                    raise refusal("--set", key, overrides[key], why)
                raise refusal(f"{self.path}: tuner_space", key, possible[key], why)


def read_tuner(path: str | Path, models, dataset_id: str | None = None) -> Tuner:
    """Read FuxiCTR's tuner YAML, the challenge organisers' included.

    Args:
        path: a YAML with base_expid and tuner_space; base_config (relative to the current folder or else to the
            YAML's), dataset_id, dataset_config and model_config as in FuxiCTR.
        models: the namespace of the models (model_zoo).
        dataset_id: the data set to train on, whatever the YAML says.

    Raises:
        UserError: something is missing or unknown, or the test split would be looked at.
    """
    path = Path(path)
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: {key}: {unknown(key, KEYS)}")
    space = content.get("tuner_space")
    if not isinstance(space, dict) or not content.get("base_expid"):
        raise UserError(f"{path}: expected base_expid, and tuner_space with settings and their values")
    name = require_name(content["base_expid"], f"{path}: base_expid")
    space = {key: value if isinstance(value, list) or is_range(value) else [value] for key, value in space.items()}
    if dataset_id is not None:
        space.pop("dataset_id", None)
    model = _base_model(path, content, name)
    ids = [dataset_id] if dataset_id is not None else space.get("dataset_id")
    ids = ids if isinstance(ids, list) and ids else [content.get("dataset_id", model.get("dataset_id"))]
    if ids[0] in (None, "TBD"):
        raise UserError(f"{path}: dataset_id is not set, and {name} leaves it open")
    if model.get("dataset_id") == "TBD":
        name = "_".join([str(model.get("model")), *(ids if len(ids) == 1 else [])])
    datasets = {one: _base_dataset(path, content, one) for one in ids}
    tuner = Tuner(path, name, datasets, {**model, "dataset_id": ids[0]}, space)
    _check_names(tuner, models)
    _check_values(tuner)
    for key in ("train_data", "valid_data"):
        refuse_test(tuner, key, space.get(key) or [dataset.get(key) for dataset in datasets.values()])
    in_datasets = {key for dataset in datasets.values() for key in dataset}
    tuner.model.update({key: None for key in space if key not in tuner.model and key not in in_datasets})
    tuner.check(models, {})
    return tuner


def is_range(values: object) -> bool:
    """Whether this is {low, high, ...} instead of a list of values."""
    return isinstance(values, dict) and {"low", "high"} <= set(values)


def is_sound_range(values: dict) -> bool:
    """Whether a range has limits, and no other keys, that something can be drawn from."""
    low, high, step = values["low"], values["high"], values.get("step")
    kinds = (int,) if values.get("type") == "int" else (int, float)
    fits = set(values) <= RANGE_KEYS and values.get("type", "float") in ("int", "float")
    fits = fits and all(type(value) in kinds for value in (low, high, 1 if step is None else step))
    fits = fits and low < high and (step is None or step > 0)
    return fits and not (values.get("log") and (low <= 0 or step is not None))


def values_of(values: Any) -> list:
    """The values of a list, or the ends of a range."""
    return [values["low"], values["high"]] if is_range(values) else values


def _base_model(path: Path, content: dict, expid: str) -> dict:
    """The base experiment's settings."""
    folder = None if "model_config" in content else _base_folder(path, content)
    known = _mapping(path, content, "model_config") if folder is None else experiment_ids(folder)
    if expid not in known:
        where = folder or "model_config"
        raise UserError(f"{path}: base_expid {expid} is not in {where}, {expected_one_of(expid, known, LISTED_BY)}")
    settings = content["model_config"][expid] if folder is None else load_model_config(folder, expid)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {expid} is {shown(settings)}, expected a mapping of settings")
    return {key: value for key, value in settings.items() if key != "model_id"}


def _base_dataset(path: Path, content: dict, dataset_id: str) -> dict:
    """A data set's settings."""
    require_name(dataset_id, f"{path}: dataset_id")
    if "dataset_config" not in content:
        return load_dataset_config(_base_folder(path, content), dataset_id)
    known = _mapping(path, content, "dataset_config")
    if dataset_id not in known:
        raise UserError(f"{path}: dataset_config has no {dataset_id}, {expected_one_of(dataset_id, known)}")
    if not isinstance(known[dataset_id], dict):
        raise UserError(f"{path}: {dataset_id} is {shown(known[dataset_id])}, expected a mapping of settings")
    return dict(known[dataset_id])


def _mapping(path: Path, content: dict, key: str) -> dict:
    if not isinstance(content[key], dict):
        raise UserError(f"{path}: {key} is {shown(content[key])}, expected a mapping of names to settings")
    return content[key]


def _base_folder(path: Path, content: dict) -> Path:
    given = content.get("base_config") or str(path.parent)
    if not isinstance(given, str):
        raise UserError(f"{path}: base_config is {shown(given)}, expected a folder")
    for folder in (Path(given), path.parent / given):
        if folder.is_dir():
            return folder
    raise UserError(f"{path}: base_config {Path(given)}: no such folder, neither from here nor from the YAML's")


def _product(base: dict, space: dict[str, list]) -> Iterator[dict]:
    """All combinations of a config's settings, in FuxiCTR's order."""
    values = [space.get(key, [value]) for key, value in base.items()]
    return (dict(zip(base, combination, strict=True)) for combination in itertools.product(*values))


def _hash(settings: dict) -> str:
    """FuxiCTR's hash of an experiment's or a data set's settings."""
    return hashlib.md5("".join(sorted(print_to_json(settings))).encode("utf-8")).hexdigest()[:8]


def _check_names(tuner: Tuner, models) -> None:
    """Only settings that something reads."""
    known = {key for dataset in tuner.datasets.values() for key in dataset} | set(tuner.model)
    for name in values_of(tuner.space.get("model", [tuner.model.get("model")])):
        known |= known_settings(find_model(models, name, f"{tuner.path}: tuner_space"))
    for key in tuner.space:
        if key not in known:
            raise UserError(f"{tuner.path}: tuner_space: {key}: {unknown(key, known)}")
    if "test_data" in tuner.space:
        raise UserError(f"{tuner.path}: tuner_space has test_data; a tuner does not look at the test split")
    for key in COMPARED_BY:
        if key in tuner.varied:
            raise UserError(f"{tuner.path}: tuner_space varies {key}, expected one by which all are compared")


def _check_values(tuner: Tuner) -> None:
    """Lists with values, ranges with sound limits."""
    for key, values in tuner.space.items():
        if not (is_sound_range(values) if is_range(values) else len(values)):
            raise UserError(
                f"{tuner.path}: tuner_space has {key}: {shown(values)}, expected a list of values, or low < high with "
                "type (int or float) and either step or log (low above 0)"
            )


def refuse_test(tuner: Tuner, key: str, paths: Iterable[object]) -> None:
    """A `UserError` when train_data or valid_data is the test split's file."""
    tests = [dataset["test_data"] for dataset in tuner.datasets.values() if isinstance(dataset.get("test_data"), str)]
    for path in paths:
        if isinstance(path, str) and os.path.realpath(path) in map(os.path.realpath, tests):
            raise UserError(f"{key} is the test split, {path}; a tuner does not look at it")

"""FuxiCTR's configuration: the YAML format and its merging (`Base`, then the experiment ID, then its dataset).

What is merged goes through one schema (`settings_schema`, and `settings_rules` for what settings say of each other),
whether it comes from YAML, from --set, from the tuner or from Python. Unlike in FuxiCTR, nothing in it is ever
evaluated as code, and a wrong name is answered with the names that exist.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from mm_fibinet.errors import UserError
from mm_fibinet.fuxictr_data import complete_entry
from mm_fibinet.model_source import find_model
from mm_fibinet.names import LISTED_BY, expected_one_of
from mm_fibinet.setting_types import MAX_NAME
from mm_fibinet.settings_fields import DatasetEntry, RunSettings
from mm_fibinet.settings_rules import check_reachable, check_together, require_group_column
from mm_fibinet.settings_schema import (
    ACCEPTED,
    ALIASES,
    field_names,
    require_accepted,
    schema_of,
    validate,
)
from mm_fibinet.yaml_reader import read_value, read_yaml, shown

__all__ = [
    "DATA_FILES", "DEFAULTS", "DEFAULT_MODEL_ROOT", "change_params", "changed_from_defaults", "check_reachable",
    "comparable", "dataset_files",
    "experiment_ids", "find_model", "known_settings", "load_dataset_config", "load_model_config",
    "load_model_configs", "load_params",
    "named_files", "parse_overrides", "read_yaml", "require_device", "require_name", "resolve",
]  # fmt: skip

DATA_FILES = ("train_data", "valid_data", "test_data", "item_info", "item_feature", "user_info")
OF_DATA = (*DATA_FILES, "feature_cols", "label_col")
DEFAULTS = {
    name: RunSettings.model_fields[name].default
    for name in ("seed", "batch_size", "epochs", "max_len", "shuffle", "group_id")
}
DEFAULT_MODEL_ROOT = RunSettings.model_fields["model_root"].default
CHALLENGE_FOLDER = "MicroLens_1M_MMCTR"  # what the challenge's download is in, so that --data_root may name it or not
NOT_CHANGES = {"model", "dataset_id", "model_root", "monitor_mode", *DatasetEntry.model_fields}
BY_OPTION = {"gpu": "--gpu", "data_root": "--data_root, which moves the files' paths too", "model_id": "--expid"}


def load_params(
    config_dir: str,
    expid: str,
    models,
    overrides: list[str] | None = None,
    data_root: str | None = None,
    model_root: str | None = None,
    gpu: int = -1,
) -> dict:
    """The merged parameters of one experiment ID.

    Args:
        config_dir: a folder with model_config.yaml and dataset_config.yaml, or folders of these names.
        expid: the experiment ID.
        models: the namespace the model's class is looked up in (model_zoo).
        overrides: "key=value", the value read as YAML; keys must be known.
        data_root: replaces the configured data_root, also at the front of the data files' paths.
        model_root: replaces the configured model_root.
        gpu: GPU index, -1 = CPU.

    Raises:
        UserError: an unknown experiment, dataset, model, key or value.
    """
    changes = parse_overrides(overrides or [])
    experiment = load_model_config(Path(config_dir), expid)
    dataset_id = changes.get("dataset_id", experiment["dataset_id"])
    dataset = load_dataset_config(Path(config_dir), dataset_id, data_root)
    params = resolve(expid, experiment, dataset, models, ("--set", changes))
    return _placed(params, changes, data_root, model_root, gpu, expid)


def change_params(
    params: dict,
    models,
    overrides: list[str] | None = None,
    data_root: str | None = None,
    model_root: str | None = None,
    gpu: int = -1,
    where: str = "--set",
) -> dict:
    """Parameters that were merged before, those of a run's manifest for example, with changes to them.

    Args:
        params: of `load_params`, or read back from a manifest.
        models, overrides, data_root, model_root, gpu: of `load_params`; dataset_id cannot be changed here.
        where: as errors name the place that the changes come from.

    Raises:
        UserError: an unknown model, key or value.
    """
    changes = parse_overrides(overrides or [])
    expid = params["model_id"]
    dataset = {name: params[name] for name in (*DatasetEntry.model_fields, "dataset_id") if name in params}
    experiment = {name: value for name, value in params.items() if name not in (*dataset, "gpu", "model_id")}
    changed = resolve(expid, experiment, dataset, models, (where, changes))
    return _placed(changed, changes, data_root, model_root, gpu, expid)


def _placed(params: dict, changes: dict, data_root: str | None, model_root: str | None, gpu: int, expid: str) -> dict:
    """Checked parameters with what the command line says of folders and the device."""
    _move_data_root({key: value for key, value in params.items() if key not in changes}, data_root, params)
    params["model_root"] = model_root or params.get("model_root") or DEFAULT_MODEL_ROOT
    params["gpu"] = gpu
    params["model_id"] = expid
    require_group_column(params)
    return params


def resolve(expid: str, experiment: dict, dataset: dict, models, *changes: tuple[str, dict]) -> dict:
    """An experiment, its data set's entry and changes to them as one mapping that passed the schema.

    Args:
        expid: as errors name the experiment.
        experiment: its settings, `Base` included.
        dataset: the data set's entry, with its dataset_id.
        models: the namespace of the models.
        changes: (where they come from, settings) each; the last that has a setting counts.

    Raises:
        UserError: a key that nobody reads, a value that does not fit, or two that contradict each other.
    """

    def origin(key: str) -> str:
        in_dataset = key in dataset or (key in DatasetEntry.model_fields and key not in experiment)
        where = f"dataset {dataset['dataset_id']}" if in_dataset else f"experiment {expid}"
        return next((source for source, settings in reversed(changes) if key in settings), where)

    params = {**DEFAULTS, **experiment, **dataset}
    _refuse_overruled(expid, experiment, dataset, {key for _, settings in changes for key in settings})
    for _, settings in changes:
        params.update(settings)
    params["dataset_id"] = dataset["dataset_id"]
    named = next((key for key, name in ALIASES.items() if name == "model" and params.get(key) is not None), "model")
    model_class = find_model(models, params.get(named), origin(named))
    params["model"] = params[named]
    return check_together(validate(params, schema_of(model_class), origin), origin)


def _refuse_overruled(expid: str, experiment: dict, dataset: dict, changed: set[str]) -> None:
    """The data set's entry counts, as in FuxiCTR; what an experiment then says of its data in vain is refused."""
    for key in sorted(experiment.keys() & dataset.keys() - changed):
        value = experiment[key]
        if key in ACCEPTED:
            require_accepted(key, value, f"experiment {expid}")
        elif key in OF_DATA and value not in (None, dataset[key]):
            raise UserError(
                f"experiment {expid}: {key} is {shown(value)}, but dataset {dataset['dataset_id']} has "
                f"{shown(dataset[key])}, which would be taken; leave {key} out, or choose it with --set {key}=..."
            )


def known_settings(model_class: type) -> set[str]:
    """The names that a model, the loader, the trainer and the scripts read, whether a config sets them or not."""
    return set(field_names(schema_of(model_class)))


def changed_from_defaults(params: dict, model_class: type) -> dict[str, object]:
    """The settings of a run that are not what its model, the loader and the trainer do by themselves.

    Args:
        params: of `load_params`.
        model_class: the model's.

    Returns:
        {setting: value}, in the order of `params`; what names the run or its data is left out.
    """
    run = {name: field.default for name, field in RunSettings.model_fields.items()}
    defaults = {**run, **schema_of(model_class).arguments, **DEFAULTS}
    return {
        name: value
        for name, value in params.items()
        if name in defaults and name not in NOT_CHANGES and comparable(name, value) != comparable(name, defaults[name])
    }


def require_device(gpu: int) -> None:
    """A `UserError` for a GPU that is not there, where FuxiCTR would silently take the CPU, or not for this torch.

    Args:
        gpu: its index, -1 = CPU.
    """
    from mm_fibinet import devices  # which loads torch

    if gpu != -1:
        devices.require_gpu(gpu, f"--gpu {gpu}", "--gpu -1 for the CPU")


def experiment_ids(config_dir: str | Path) -> list[str]:
    """All experiment IDs of a config folder, sorted."""
    return sorted(set(_read_configs(Path(config_dir), "model_config")) - {"Base"})


def load_model_config(config_dir: Path, expid: str) -> dict:
    """An experiment's settings over those of `Base`, without its data set's."""
    found = _read_configs(config_dir, "model_config")
    require_name(expid, "--expid")
    if expid not in found or expid == "Base":
        known = set(found) - {"Base"}
        raise UserError(f"--expid {expid}: not in {config_dir}, {expected_one_of(expid, known, LISTED_BY)}")
    return _experiment(found, expid, config_dir)


def load_model_configs(config_dir: str | Path) -> dict[str, dict]:
    """{expid: as `load_model_config` has it} of all experiments of a config folder, sorted; the files are read once."""
    found = _read_configs(Path(config_dir), "model_config")
    return {expid: _experiment(found, expid, Path(config_dir)) for expid in sorted(set(found) - {"Base"})}


def _experiment(found: dict, expid: str, config_dir: Path) -> dict:
    """The settings of one of the experiments that were read."""
    params = {**_settings(found, "Base"), **_settings(found, expid)}
    if "dataset_id" not in params:
        raise UserError(f"{config_dir}: experiment {expid} has no dataset_id")
    return params


def load_dataset_config(config_dir: Path, dataset_id: object, data_root: str | None = None) -> dict:
    """A data set's settings, with its name as dataset_id; its features from FuxiCTR's feature map where it has none.

    Args:
        config_dir: the config folder.
        dataset_id: the name, of the config or of an entry that build_dataset.py has written.
        data_root: the folder that it has written to; None for data/DATASET_ID.
    """
    entry = _dataset_entry(config_dir, dataset_id, data_root)
    return complete_entry(entry, f"dataset {entry['dataset_id']}", data_root)


def named_files(config_dir: Path, expid: str, changes: dict[str, object], data_root: str | None = None) -> list[str]:
    """The data files that an experiment names, whatever is wrong with its settings: inputs, never to be written to.

    Args:
        config_dir, expid, data_root: as for `load_params`.
        changes: of `parse_overrides`.
    """
    try:
        experiment = load_model_config(config_dir, expid)
        entry = _dataset_entry(config_dir, changes.get("dataset_id", experiment["dataset_id"]), data_root)
    except UserError:
        return []
    named = {**experiment, **entry, **changes}
    return list(_placed_files(named, data_root, changes).values())


def dataset_files(config_dir: Path, dataset_id: object, data_root: str | None = None) -> dict[str, str]:
    """The files of a data set, which need not be there: {key of DATA_FILES: path}.

    Args:
        config_dir, dataset_id, data_root: as for `load_dataset_config`.
    """
    entry = _dataset_entry(config_dir, dataset_id, data_root)
    return _placed_files(entry, data_root, {})


def _placed_files(named: dict, data_root: str | None, changes: dict) -> dict[str, str]:
    """The data files among settings, with data_root in place of the configured one where --set does not name them."""
    placed = {key: named[key] for key in (*DATA_FILES, "data_root") if isinstance(named.get(key), str)}
    _move_data_root({key: path for key, path in placed.items() if key not in changes}, data_root, placed)
    return {key: placed[key] for key in DATA_FILES if key in placed}


def _dataset_entry(config_dir: Path, dataset_id: object, data_root: str | None) -> dict:
    """A data set's entry as it is written, with its name."""
    found = _read_configs(config_dir, "dataset_config")
    dataset_id = require_name(dataset_id, "dataset_id")
    built = Path(data_root or Path("data") / dataset_id) / "dataset_config.yaml"
    if dataset_id not in found and built.is_file():
        found = {name: (built, content) for name, content in read_yaml(built).items()}
    if dataset_id not in found:
        expected = expected_one_of(dataset_id, found)
        raise UserError(
            f"dataset_id {dataset_id}: not in {config_dir}, nor is there {built}, as build_dataset.py makes; {expected}"
        )
    return {**_settings(found, dataset_id), "dataset_id": dataset_id}


def parse_overrides(overrides: list[str]) -> dict[str, object]:
    """What --set says, its values read as YAML; a key given twice is refused, as in a file."""
    changes: dict[str, object] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise UserError(f"--set {text}: expected key=value")
        if key in BY_OPTION:
            raise UserError(f"--set {key}: expected {BY_OPTION[key]}")
        if key in changes:
            raise UserError(f"--set {key} is given twice, {shown(changes[key])} and {value[:80]}; expected it once")
        changes[key] = read_value(value, f"--set {key}")
    return changes


def require_name(name: object, what: str) -> str:
    """The name of an experiment or a data set; a UserError unless files can be named for it, in their own folder."""
    if not isinstance(name, str):
        raise UserError(f'{what} is {shown(name)}, expected a name; write it in quotes: "{shown(name)}"')
    wrong = re.search(r"[/\\\x00-\x1f\x7f]", name) or name != name.strip() or name in ("", ".", "..")
    if wrong or len(name.encode(errors="replace")) > MAX_NAME:
        raise UserError(
            f"{what} is {shown(name)}, expected a name that files can have: without / and \\, without control "
            f"characters or spaces around it, not . or .., at most {MAX_NAME} bytes"
        )
    return name


def _read_configs(config_dir: Path, name: str) -> dict[str, tuple[Path, object]]:
    """{ID: (file, content)} of all files of a kind.

    Raises:
        UserError: there is none, or an ID is in two of them.
    """
    found: dict[str, tuple[Path, object]] = {}
    for path in _config_files(config_dir, name):
        for key, content in read_yaml(path).items():
            if key in found:
                raise UserError(f"{path}: {key} is in {found[key][0]} too, expected it once")
            found[key] = path, content
    return found


def _config_files(config_dir: Path, name: str) -> list[Path]:
    found = [config_dir / f"{name}.yaml"] if (config_dir / f"{name}.yaml").is_file() else []
    found = found or sorted(path for path in (config_dir / name).glob("*.yaml") if not path.name.startswith("."))
    if not found:
        raise UserError(f"{config_dir}: no {name}.yaml and no {name}/*.yaml there; --config takes a config folder")
    return found


def _settings(found: dict[str, tuple[Path, object]], name: str) -> dict:
    """The mapping of an ID; `Base` may be missing or empty."""
    path, content = found.get(name, (None, None))
    if content is None and name == "Base":
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: {name} is {shown(content)}, expected a mapping of settings")
    return content


def _move_data_root(before: dict, data_root: str | None, params: dict) -> None:
    """Put data_root in place of the configured one, at the front of every data file's path that is in `before`."""
    if data_root is None:
        return
    old = Path(before.get("data_root") or ".")
    named = {key: Path(before[key]) for key in DATA_FILES if before.get(key)}
    moved = {key: path.relative_to(old) for key, path in named.items() if path.is_relative_to(old)}
    root = _root_of(data_root, moved.values())
    for key, path in moved.items():
        params[key] = str(Path(root) / path)
    params["data_root"] = root


def _root_of(data_root: str, names: Iterable[Path]) -> str:
    """The folder itself; that of the challenge in it where the files are there alone."""
    folders = (data_root, str(Path(data_root) / CHALLENGE_FOLDER))
    holds = [any(os.path.exists(Path(folder) / name) for name in names) for folder in folders]
    return folders[1] if holds == [False, True] else data_root


def comparable(name: str, value: object) -> object:
    """A setting's value such that equal ones mean the same."""
    if isinstance(value, tuple | list):
        return [comparable(name, inner) for inner in value]
    if name.endswith("regularizer"):
        return value or 0
    if name == "monitor" and isinstance(value, str):
        return {value: 1}
    in_any_case = name == "optimizer" or name.endswith(("activation", "activations"))
    return value.lower() if in_any_case and isinstance(value, str) else value

"""FuxiCTR's configuration: the YAML format and its merging (`Base`, then the experiment ID, then its dataset).

Unlike in FuxiCTR, nothing in it is ever evaluated as code, and a wrong name is answered with the names that exist.
"""

import inspect
import re
from pathlib import Path

import torch
import yaml

from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.metrics import METRICS
from mm_fibinet.training import Trainer

DATA_FILES = ("train_data", "valid_data", "test_data", "item_info", "item_feature")
LOSSES = ("binary_crossentropy", "binary_cross_entropy", "bce")
OPTIMIZERS = ("adam", "Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta")
DEFAULTS = {"seed": 2025, "batch_size": 4096, "epochs": 10, "max_len": 64, "shuffle": True, "group_id": None}
NOT_SETTINGS = {"self", "args", "kwargs", "feature_map", "data_path", "split", "rank", "world_size", "model"}
NOT_SETTINGS |= {"checkpoint", "checkpoints", "on_evaluation"}
REAL_NUMBERS = {
    "net_dropout",
    "attention_dropout",
    "embedding_regularizer",
    "net_regularizer",
}  # 0 by default in places
OTHER_KEYS = {
    "gpu",
    "model_root",
    "item_feature",
    "test_data",
    "tensorboard",
    "use_features",
    "feature_specs",
    "user_id_field",
}


class _Loader(yaml.SafeLoader):
    """YAML without code, and with 1e-3 read as a number (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


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
    changes = dict(_parse_override(text) for text in overrides or [])
    params = load_model_config(Path(config_dir), expid)
    params.update({key: value for key, value in changes.items() if key in ("dataset_id", "model")})
    dataset = load_dataset_config(Path(config_dir), params["dataset_id"])
    params = {**DEFAULTS, **params, **dataset, "model_id": expid}
    return change_params(params, models, overrides, data_root, model_root, gpu)


def change_params(
    params: dict,
    models,
    overrides: list[str] | None = None,
    data_root: str | None = None,
    model_root: str | None = None,
    gpu: int = -1,
) -> dict:
    """Merged parameters, those of a run's manifest for example, with changes made and everything checked.

    Args:
        params: of `load_params`, or read back from a manifest.
        models, overrides, data_root, model_root, gpu: of `load_params`.

    Raises:
        UserError: an unknown model, key or value.
    """
    params = dict(params)
    changes = dict(_parse_override(text) for text in overrides or [])
    model_class = find_model(models, params.get("model"))
    known = set(params) | known_settings(model_class)
    for key in changes:
        if key not in known:
            raise UserError(f"--set {key}: unknown key, expected one of {', '.join(sorted(known))}")
    _move_data_root(params, data_root)
    params.update(changes)
    params["model_root"] = model_root or params.get("model_root") or "./checkpoints/"
    params["gpu"] = gpu
    _check_params(params)
    _check_types(params, model_class, MMCTRDataLoader, Trainer)
    return params


def changed_from_defaults(params: dict, model_class: type) -> dict[str, object]:
    """The settings of an experiment that differ from what they are when left out."""
    defaults = {name: p.default for name, p in _arguments(model_class, MMCTRDataLoader, Trainer).items()}
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    defaults.update(DEFAULTS)
    return {key: value for key, value in params.items() if key in defaults and value != defaults[key]}


def check_reachable(params: dict, num_batches: int) -> None:
    """A `UserError` when eval_steps is more than the run has: nothing would ever be evaluated or kept.

    Args:
        params: of `load_params`.
        num_batches: batches of one epoch.
    """
    eval_steps, steps = params.get("eval_steps"), params["epochs"] * num_batches
    if eval_steps and eval_steps > steps:
        raise UserError(f"eval_steps is {eval_steps}, but the run has {steps} steps; expected at most {steps}")


def find_model(models, name: str | None) -> type:
    """The model's class by name, as FuxiCTR looks it up.

    Args:
        models: a module with the names of its models in __all__.
    """
    if name not in models.__all__:
        raise UserError(f"model {name!r} is unknown, expected one of {', '.join(sorted(models.__all__))}")
    return getattr(models, name)


def known_settings(model_class: type) -> set[str]:
    """The names that a model, the loader and the trainer know, whether a config sets them or not."""
    return OTHER_KEYS | set(DEFAULTS) | set(_arguments(model_class, MMCTRDataLoader, Trainer))


def require_device(gpu: int) -> None:
    """A `UserError` when a GPU is asked for that is not there (FuxiCTR would train on the CPU and not say so)."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= count:
        raise UserError(f"--gpu {gpu}: found {count} CUDA devices; use --gpu -1 for the CPU")


def experiment_ids(config_dir: str | Path) -> list[str]:
    """All experiment IDs of a config folder, sorted."""
    found = {key for config in _config_files(Path(config_dir), "model_config") for key in read_yaml(config)}
    return sorted(found - {"Base"})


def load_model_config(config_dir: Path, expid: str) -> dict:
    """An experiment's settings over those of `Base`, without its data set's."""
    base, own = {}, None
    for path in _config_files(config_dir, "model_config"):
        content = read_yaml(path)
        base.update(content.get("Base") or {})
        own = content.get(expid, own)
    if own is None or expid == "Base":
        raise UserError(
            f"--expid {expid}: not in {config_dir}, expected one of {', '.join(experiment_ids(config_dir))}"
        )
    params = {**base, **own}
    if "dataset_id" not in params:
        raise UserError(f"{config_dir}: experiment {expid} has no dataset_id")
    return params


def load_dataset_config(config_dir: Path, dataset_id: str) -> dict:
    """A data set's settings."""
    known = []
    for path in _config_files(config_dir, "dataset_config"):
        content = read_yaml(path)
        if dataset_id in content:
            return {**content[dataset_id], "dataset_id": dataset_id}
        known += content
    raise UserError(f"dataset_id {dataset_id}: not in {config_dir}, expected one of {', '.join(sorted(known))}")


def _config_files(config_dir: Path, name: str) -> list[Path]:
    found = [config_dir / f"{name}.yaml"] if (config_dir / f"{name}.yaml").is_file() else []
    found = found or sorted((config_dir / name).glob("*.yaml"))
    if not found:
        raise UserError(f"{config_dir}: no {name}.yaml and no {name}/*.yaml there; --config takes a config folder")
    return found


def read_yaml(path: Path) -> dict:
    """A YAML file's mapping, as data: nothing in it is code.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of names to settings")
    return content


def _parse_override(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {text}: expected key=value")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML") from error


def _arguments(*classes: type) -> dict[str, inspect.Parameter]:
    """The settings that the constructors of these classes and their parents take."""
    found = {}
    for cls in classes:
        for parent in reversed(cls.__mro__):
            if "__init__" in vars(parent) and parent is not object:
                found.update(inspect.signature(parent.__init__).parameters)
    return {name: parameter for name, parameter in found.items() if name not in NOT_SETTINGS}


def _move_data_root(params: dict, data_root: str | None) -> None:
    """Put data_root in place of the configured one, at the front of every data file's path."""
    if data_root is None:
        return
    before = Path(params.get("data_root") or ".")
    for key in DATA_FILES:
        path = params.get(key)
        if path and Path(path).is_relative_to(before):
            params[key] = str(Path(data_root) / Path(path).relative_to(before))
    params["data_root"] = data_root


def _check_params(params: dict) -> None:
    """Refuse what FuxiCTR would hand to eval or getattr unless it is a name that is known here."""
    _require_one_of(params, "loss", LOSSES)
    _require_one_of(params, "optimizer", OPTIMIZERS)
    _require_one_of(params, "task", ("binary_classification",))
    for metric in params.get("metrics") or []:
        if metric not in METRICS and metric != "binary_crossentropy":
            raise UserError(f"metrics has {metric!r}, expected names out of {', '.join(METRICS)}")
    for key in ("batch_size", "epochs", "max_len"):
        if not isinstance(params[key], int) or params[key] < 1:
            raise UserError(f"{key} is {params[key]!r}, expected a whole number above 0")
    if not isinstance(params["seed"], int):
        raise UserError(f"seed is {params['seed']!r}, expected a whole number")
    if not isinstance(params.get("user_id_field", False), bool):
        raise UserError(f"user_id_field is {params['user_id_field']!r}, expected True or False")
    if not params.get("item_info"):
        raise UserError(f"dataset {params['dataset_id']}: item_info is not set, expected the path of item_info.parquet")
    if not params.get("feature_cols"):
        raise UserError(f"dataset {params['dataset_id']}: feature_cols is not set, expected a list of features")


def _check_types(params: dict, *classes: type) -> None:
    """Hold each setting against the type of the constructor's default; None is left to the constructor."""
    for name, parameter in _arguments(*classes).items():
        value, default = params.get(name), parameter.default
        if value is None or default is inspect.Parameter.empty:
            continue
        if isinstance(default, bool):
            fits, expected = isinstance(value, bool), "True or False"
        elif isinstance(default, int) and name not in REAL_NUMBERS:
            fits, expected = type(value) is int, "a whole number"
        elif isinstance(default, int | float):
            fits, expected = type(value) in (int, float), "a number"
        elif isinstance(default, tuple | list):
            fits = isinstance(value, list | tuple) and all(type(v) is type(default[0]) for v in value if default)
            expected = f"a list like {list(default)}" if default else "a list"
        else:
            continue
        if not fits:
            raise UserError(f"{name} is {value!r}, expected {expected}")


def _require_one_of(params: dict, key: str, allowed: tuple[str, ...]) -> None:
    if key in params and params[key] not in allowed:
        raise UserError(f"{key} is {params[key]!r}, expected one of {', '.join(allowed)}")

"""An experiment's run: a feature map, a folder, a log and a manifest.

Nothing is written beside the data. All that a run writes is under model_root/DATASET: EXPID.model and EXPID.log as
FuxiCTR names them, the rest in the folder EXPID.
"""

import csv
import hashlib
import json
import logging
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from fuxictr.features import FeatureMap

import mmctr
from mmctr import files, schema
from mmctr.config import DATA_FILES
from mmctr.errors import UserError, explain_os_error
from mmctr.item_table import embedding_width

USER_ID = "user_id"
SEQUENCE_ENCODERS = ("layers.MaskedAveragePooling()", "layers.MaskedSumPooling()")
FEATURE_TYPES = ("meta", "numeric", "categorical", "sequence", "embedding")
# Settings that change where or how long a run goes, not what it computes up to a given step.
NOT_IN_FINGERPRINT = {*DATA_FILES, "gpu", "model_root", "data_root", "epochs", "verbose", "num_workers", "tensorboard"}


def build_feature_map(params: dict) -> FeatureMap:
    """FuxiCTR's FeatureMap from the dataset config, as FeatureMap.load would leave it.

    FuxiCTR's FeatureProcessor writes to the data folder, which may be read-only; ids are contiguous already, so all
    that it would find out is in the config. A vocab_size, pretrain_dim or max_len that is not given is read from the
    data.

    Args:
        params: of `load_params`; with user_id_field, user_id becomes a field even where the data set has it as meta;
            what similarity_only names need not be in the data set's entry, being no field of other models.
    """
    used = params.get("use_features")
    features = {}
    for column in _expanded_columns(params):
        if column.get("active", True) is not False and (not used or column["name"] in used):
            features[column["name"]] = _feature_spec(column, params)
    for name in params.get("similarity_only") or []:
        if name not in features:
            features[name] = _compared_spec(name, params)
    if params.get("user_id_field"):
        features[USER_ID] = _user_id_spec(features.get(USER_ID), params)
    for name in used or []:
        if name not in features:
            raise UserError(f"use_features has {name!r}, expected active features of {params['dataset_id']}")
    label = params.get("label_col") or {"name": "label"}
    feature_map = FeatureMap(params["dataset_id"], str(params.get("data_root", "")))
    feature_map.features = features
    feature_map.labels = [column["name"] for column in (label if isinstance(label, list) else [label])]
    feature_map.group_id = params.get("group_id")
    feature_map.default_emb_dim = params.get("embedding_dim")
    if params.get("feature_specs"):
        feature_map.update_feature_specs(params["feature_specs"])
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = sum(spec.get("vocab_size", 1) for spec in features.values() if spec["type"] != "meta")
    feature_map.set_column_index()
    return feature_map


def save_feature_map(feature_map: FeatureMap, path: Path) -> None:
    """Write feature_map.json in FuxiCTR's format, whole or not at all."""
    content = {
        "dataset_id": feature_map.dataset_id,
        "num_fields": feature_map.num_fields,
        "total_features": feature_map.total_features,
        "input_length": feature_map.input_length,
        "labels": feature_map.labels,
        "features": [{name: spec} for name, spec in feature_map.features.items()],
    }
    files.write_json(path, content)


class RunFolder:
    """Where a run's files are.

    Attributes:
        weights: EXPID.model, FuxiCTR's name for the best weights.
        log: EXPID.log.
        folder: everything else.
    """

    def __init__(self, params: dict):
        base = Path(params["model_root"]) / params["dataset_id"]
        self.folder = base / params["model_id"]
        self.weights = base / f"{params['model_id']}.model"
        self.log = base / f"{params['model_id']}.log"

    def make(self) -> "RunFolder":
        """Make the folder."""
        files.make_folder(self.folder)
        return self

    def write_history(self, history: list[dict]) -> None:
        """metrics.csv: one line an evaluation so far."""
        with files.atomic_path(self.folder / "metrics.csv") as path, open(path, "w", newline="") as opened:
            writer = csv.DictWriter(opened, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)


def start_log(path: Path, append: bool, quiet: bool = False) -> None:
    """Send log lines to the run's log file and the terminal, in FuxiCTR's format.

    Args:
        append: go on in the file that is there (a resumed run).
        quiet: write nothing at all (a rank other than 0).
    """
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if not quiet:
        try:
            handlers = [logging.FileHandler(path, mode="a" if append else "w"), logging.StreamHandler(sys.stdout)]
        except OSError as error:
            raise explain_os_error(error, path) from error
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s P%(process)d %(levelname)s %(message)s", handlers=handlers, force=True
    )


def data_fingerprint(params: dict) -> dict[str, dict]:
    """{config key: path, bytes, sha256} of the data files the experiment names and that exist."""
    found = {}
    for key in DATA_FILES:
        path = params.get(key)
        if path and Path(path).is_file():
            found[key] = {"path": str(path), "bytes": Path(path).stat().st_size, "sha256": files.sha256(path)}
    return found


def run_fingerprint(params: dict, data: dict[str, dict]) -> str:
    """Text that is equal for two runs exactly when one may continue the other's checkpoint."""
    settings = {key: value for key, value in params.items() if key not in NOT_IN_FINGERPRINT}
    if params.get("lr_schedule") == "linear":  # each step's learning rate depends on how many there will be
        settings["epochs"] = params["epochs"]
    training_data = {key: entry["sha256"] for key, entry in data.items() if key != "test_data"}
    text = json.dumps([settings, training_data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(run: RunFolder, params: dict, feature_map: FeatureMap, data: dict, parameters: int) -> None:
    """manifest.json: what a reader needs to repeat the run."""
    content = {
        "expid": params["model_id"],
        "model": params["model"],
        "started": datetime.now().isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": _versions(),
        "machine": _machine(params["gpu"]),
        "seed": params["seed"],
        "embedding_dim": params.get("embedding_dim"),
        "features": {name: dict(spec) for name, spec in feature_map.features.items()},
        "parameters": parameters,
        "data": data,
        "config": {key: params[key] for key in sorted(params)},
    }
    files.write_json(run.folder / "manifest.json", content)


def append_result(path: Path, params: dict, valid_result: dict[str, float]) -> None:
    """Add FuxiCTR's line of one run to its results CSV."""
    metrics = " - ".join(f"{name}: {value:.6f}" for name, value in valid_result.items())
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    line = (
        f" {stamp},[command] python {' '.join(sys.argv)},[exp_id] {params['model_id']},"
        f"[dataset_id] {params['dataset_id']},[train] N.A.,[val] {metrics}\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as opened:
            opened.write(line)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _expanded_columns(params: dict) -> list[dict]:
    """feature_cols with lists of names expanded, as FuxiCTR does."""
    columns = []
    for column in params["feature_cols"]:
        if not isinstance(column, dict) or "name" not in column or column.get("type") not in FEATURE_TYPES:
            raise UserError(
                f"dataset {params['dataset_id']}: feature_cols has {column!r}, expected a name and a type out of "
                f"{', '.join(FEATURE_TYPES)}"
            )
        names = column["name"] if isinstance(column["name"], list) else [column["name"]]
        columns += [{**column, "name": name} for name in names]
    return columns


def _compared_spec(name: str, params: dict) -> dict:
    """An embedding column of item_info that the data set's entry does not name."""
    found = schema.open_parquet(params["item_info"]).schema_arrow.names
    if name not in found:
        raise UserError(
            f"similarity_only has {name!r}, {params['item_info']} has {', '.join(found)}; build that column with "
            "build_item_emb.py --per_modality, or do without it: --set similarity_only=[]"
        )
    return _feature_spec({"name": name, "type": "embedding", "source": "item"}, params)


def _user_id_spec(spec: dict | None, params: dict) -> dict:
    """user_id as a categorical feature, whatever the data set says it is."""
    if spec is None:
        raise UserError(f"user_id_field: dataset {params['dataset_id']} has no active feature {USER_ID}")
    return spec if spec["type"] != "meta" else _feature_spec({"name": USER_ID, "type": "categorical"}, params)


def _feature_spec(column: dict, params: dict) -> dict:
    """One feature's spec, as FuxiCTR's FeatureProcessor writes it."""
    name, kind = column["name"], column["type"]
    if kind == "meta":
        return {"type": "meta"}
    spec = {"source": column.get("source", ""), "type": kind}
    for key in ("embedding_dim", "emb_output_dim", "share_embedding"):
        if key in column:
            spec[key] = column[key]
    if kind in ("categorical", "sequence"):
        spec["padding_idx"] = 0
        spec["vocab_size"] = column.get("vocab_size") or _vocab_size(name, spec["source"], params)
    if kind == "sequence":
        encoder = column.get("feature_encoder", SEQUENCE_ENCODERS[0])
        if encoder not in SEQUENCE_ENCODERS:
            expected = " or ".join(SEQUENCE_ENCODERS)
            raise UserError(f"feature {name}: feature_encoder is {encoder!r}, expected {expected}")
        spec["feature_encoder"] = encoder
        spec["max_len"] = column.get("max_len") or embedding_width(_file_of(spec["source"], params), name)
    if kind == "embedding":
        spec["pretrain_dim"] = column.get("pretrain_dim") or embedding_width(_file_of(spec["source"], params), name)
    return spec


def _file_of(source: str, params: dict) -> str:
    return params["item_info"] if source == "item" else params["train_data"]


def _vocab_size(name: str, source: str, params: dict) -> int:
    """One more than the largest id of a column, over the files that have it."""
    if name == schema.ITEM_ID:
        return schema.open_parquet(params["item_info"]).metadata.num_rows
    keys = ("item_info",) if source == "item" else ("train_data", "valid_data", "test_data")
    largest = 0
    for path in [params[key] for key in keys if params.get(key) and Path(params[key]).exists()]:
        for first, arrays in schema.read_slices(path, [name]):
            read = schema.matrix if "list" in str(arrays[name].type) else schema.scalars
            largest = max(largest, int(read(arrays[name], path, name, first).max()))
    return largest + 1


def _versions() -> dict[str, str]:
    packages = ("torch", "fuxictr", "numpy", "pandas", "polars", "pyarrow", "scikit-learn")
    found = {"python": platform.python_version(), "mm-fibinet": mmctr.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine(gpu: int) -> dict:
    machine = {"system": platform.platform(), "threads": torch.get_num_threads(), "device": "cpu"}
    if gpu >= 0:
        machine["device"] = torch.cuda.get_device_name(gpu)
        machine["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            machine["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            machine["driver"] = "unknown"
    return machine

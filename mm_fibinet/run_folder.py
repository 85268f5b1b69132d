"""An experiment's run: a folder, a log and a manifest.

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

import mm_fibinet
from mm_fibinet import files
from mm_fibinet.errors import explain_os_error
from mm_fibinet.settings import DATA_FILES

# Settings that change where or how long a run goes, not what it computes up to a given step.
NOT_IN_FINGERPRINT = {*DATA_FILES, "gpu", "model_root", "data_root", "epochs", "verbose", "num_workers", "tensorboard"}


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
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(line)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _versions() -> dict[str, str]:
    packages = ("torch", "fuxictr", "numpy", "pandas", "polars", "pyarrow", "scikit-learn")
    found = {"python": platform.python_version(), "mm-fibinet": mm_fibinet.__version__}
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

"""A run is a fact: its manifest says of which settings and which bytes its weights are.

Whatever goes on from a run compares itself with the manifest: resuming it, prediction, a benchmark that asks whether a
finished run is the one it wants. Data are compared by their bytes, so a file may move.
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Collection
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from fuxictr.features import FeatureMap

import mm_fibinet
from mm_fibinet import distributed, files
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.parquet_reader import exists, part_files
from mm_fibinet.precision import PRECISIONS, Precision
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.settings import DATA_FILES

# Settings that change where or how long a run goes, not what it computes up to a given step.
NOT_IN_FINGERPRINT = {
    *DATA_FILES, "gpu", "model_root", "data_root", "epochs", "verbose", "num_workers", "tensorboard", "storage",
    "checkpoint_every", "cuda_graphs",
}  # fmt: skip
NOT_IN_SCORES = NOT_IN_FINGERPRINT | {"batch_size"}  # of a trained model
MODEL_CODE = "model_code"  # beside the data files: the code of a class that is not ours (see mm_fibinet.model_source)


def data_fingerprint(params: dict) -> dict[str, dict]:
    """{config key: path, bytes, sha256} of the data files the experiment names and that exist."""
    found = {}
    for key in DATA_FILES:
        path = params.get(key)
        if path and exists(path):
            parts = part_files(path)
            try:
                size, digest = sum(part.stat().st_size for part in parts), _digest(parts)
            except OSError as error:
                raise explain_os_error(error, path, "read") from error
            found[key] = {"path": str(path), "bytes": size, "sha256": digest}
    return found


def run_fingerprint(params: dict, data: dict[str, dict]) -> str:
    """Text that is equal for two runs exactly when one may continue the other's checkpoint."""
    text = json.dumps([_fixed(params), _training_data(data)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def find_run(model_root: str | Path, expid: str, dataset_id: str | None = None) -> RunFolder | None:
    """The run of an experiment ID that has a manifest, whatever its data set; None when there is none.

    Args:
        dataset_id: of that data set alone.

    Raises:
        UserError: several data sets have such a run.
    """
    root = Path(model_root)
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    runs = {folder.name: RunFolder(folder, expid) for folder in folders if dataset_id in (None, folder.name)}
    found = {name: run for name, run in runs.items() if run.manifest.is_file()}
    if len(found) > 1:
        raise UserError(
            f"--expid {expid}: {root} has such a run for each of {', '.join(found)}; choose one of them with "
            f"--set dataset_id={next(iter(found))}"
        )
    return next(iter(found.values()), None)


def write_manifest(
    run: RunFolder,
    params: dict,
    overrides: list[str],
    feature_map: FeatureMap,
    data: dict[str, dict],
    parameters: int,
    precision: Precision,
    data_root: str | None = None,
) -> None:
    """manifest.json: what a reader needs to repeat the run.

    Args:
        params: of `load_params`.
        overrides: of `--set`.
        data: of `data_fingerprint`.
        parameters: how many the model has.
        precision: what it computes in.
        data_root: of `--data_root`.
    """
    content = {
        "expid": params["model_id"],
        "model": params["model"],
        "started": datetime.now().isoformat(timespec="seconds"),
        "command": sys.argv,
        "set": overrides,
        "data_root": data_root,
        "versions": _versions(),
        "machine": _machine(params["gpu"]),
        "precision": precision.record(),
        "seed": params["seed"],
        "embedding_dim": params.get("embedding_dim"),
        "features": {name: dict(spec) for name, spec in feature_map.features.items()},
        "parameters": parameters,
        "data": data,
        "config": {key: params[key] for key in sorted(params)},
    }
    files.write_json(run.manifest, content)


def finish_manifest(run: RunFolder) -> None:
    """Note in the manifest which bytes the weights of the finished run are."""
    content = read_manifest(run)
    content["finished"] = datetime.now().isoformat(timespec="seconds")
    content["weights"] = {"bytes": run.weights.stat().st_size, "sha256": files.sha256(run.weights)}
    files.write_json(run.manifest, content)


def read_manifest(run: RunFolder) -> dict:
    """The manifest's content.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        content = json.loads(run.manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, run.manifest, "read") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{run.manifest}: not a run's manifest (damaged JSON); train the run again") from error
    fault = _fault(content)
    if fault:
        raise UserError(f"{run.manifest}: not a run's manifest: {fault}; train the run again")
    return content


def _fault(content: object) -> str | None:
    """What keeps a manifest's content from being read as one; None where nothing does."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("config", "data")):
        return "config or data is missing"
    for key in ("model_id", "model", "dataset_id"):
        if not isinstance(content["config"].get(key), str):
            return f"its config has no {key}"
    for key, entry in content["data"].items():
        texts = ("path", "sha256", *(("class",) if key == MODEL_CODE else ()))
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in texts):
            return f"its data have no {' and '.join(texts)} of {key}"
        if key == MODEL_CODE and not isinstance(entry.get("files"), dict):
            return f"its data have no files of {key}"
    weights, precision = content.get("weights"), content.get("precision")
    if weights is not None and not isinstance(weights, dict):
        return f"its weights are {weights!r}"
    if precision is not None and not (isinstance(precision, dict) and precision.get("used") in PRECISIONS):
        return f"its precision is {precision!r}"
    return None


def may_resume(
    run: RunFolder, params: dict, data: dict[str, dict], has_state: bool, features: Collection[str] | None = None
) -> bool:
    """Whether `--resume` goes on with what a run's folder holds.

    Without a state there is nothing to go on with: a run that was stopped before its first one starts anew.

    Args:
        params: of `load_params`.
        data: of `data_fingerprint`.
        has_state: whether the run has saved a state.
        features: those of the feature map, in its order, where that is known: the fields' order is what weights behind
            them mean.

    Raises:
        UserError: what is there is of other settings, data or fields, or of more epochs.
    """
    manifest = read_manifest(run) if run.manifest.exists() else None
    if not has_state and not run.weights.exists():
        return False
    if manifest is None:
        raise UserError(
            f"--resume: {run.weights if run.weights.exists() else run.folder} is there without a manifest of how it "
            "was trained; start anew without --resume, or choose another --model_root"
        )
    changes = _changes(_fixed(manifest["config"]), _fixed(params))
    before, now = _training_data(manifest["data"]), _training_data(data)
    changes += [f"{key} is another file" for key in (*DATA_FILES, MODEL_CODE) if before.get(key) != now.get(key)]
    trained = manifest.get("features")
    if features is not None and isinstance(trained, dict) and list(trained) != list(features):
        changes.append(f"its features are {', '.join(trained)}, in this order, here {', '.join(features)}")
    if changes:
        raise UserError(
            f"--resume: the run in {run.folder} is of other settings or data: {'; '.join(changes)}. Resume with those, "
            "start anew without --resume, or choose another --model_root"
        )
    if has_state:
        _refuse_fewer_epochs(run, manifest["config"].get("epochs", 0), params["epochs"])
    return has_state


def _refuse_fewer_epochs(run: RunFolder, before: int, now: int) -> None:
    """Refuse to end a run where it has been already: its best weights may be of a later epoch.

    Args:
        before: the epochs that its last start was given.
        now: those of this one.
    """
    judged = max((float(line["epoch"]) for line in run.read_history()), default=0) if now < before else 0
    if judged > now:
        raise UserError(
            f"--resume: the run in {run.folder} has been evaluated in epoch {judged:.0f}, but epochs is {now}, and its "
            f"best weights may be of a later epoch than that; set epochs={judged:.0f} or more, start anew without "
            "--resume, or choose another --model_root"
        )


def refuse_other_settings(trained: dict, given: dict, where: str) -> None:
    """A `UserError` that names each setting that scores depend on and that is not the trained one's, with both values.

    Args:
        trained: the manifest's config.
        given: settings for scoring.
        where: the run, as the user knows it.
    """
    changes = _changes(_comparable(trained, NOT_IN_SCORES), _comparable(given, NOT_IN_SCORES))
    if changes:
        raise UserError(
            f"{where} was trained with other settings: {'; '.join(changes)}. Leave them out, for the run knows its "
            "settings; or, when these are meant, add --allow_other_data"
        )


def refuse_other_items(manifest: dict, params: dict, where: str) -> None:
    """A `UserError` when items or users are not byte for byte those that the run was trained on."""
    keys = ("item_info", "item_feature", "user_info")
    found = distributed.once_a_machine(lambda: data_fingerprint({key: params.get(key) for key in keys}))
    for key in keys:
        before, now = manifest["data"].get(key), found.get(key)
        if before and now and before["sha256"] != now["sha256"]:
            raise UserError(
                f"{where} was trained on another {key}: {before['path']} (sha256 {before['sha256'][:12]}), now "
                f"{now['path']} (sha256 {now['sha256'][:12]}); name that file with --set {key}=..., or, when this one "
                "is meant, add --allow_other_data"
            )


def refuse_other_log(manifest: dict, train: Path, where: str) -> None:
    """A `UserError` when ids stand for other users and items than in training: of another log, or of a rebuilt one.

    Args:
        manifest: of the run.
        train: the training split of the data set whose ids are meant.
        where: the run, as the user knows it.
    """
    before = manifest["data"].get("train_data")
    now = distributed.once_a_machine(lambda: data_fingerprint({"train_data": train})).get("train_data")
    if before and now and before["sha256"] != now["sha256"]:
        raise UserError(
            f"{where} was trained on {before['path']} (sha256 {before['sha256'][:12]}), but the ids are those of "
            f"{train} (sha256 {now['sha256'][:12]}), where they may stand for others; train on that data, or, when "
            "this is meant, add --allow_other_data"
        )


def refuse_other_code(manifest: dict, code: dict[str, dict], where: str) -> None:
    """A `UserError` when the class of the model is no longer written as it was: its weights may mean something else.

    Args:
        manifest: of the run.
        code: of `model_source.code_entry`.
        where: the run, as the user knows it.
    """
    before, now = manifest["data"].get(MODEL_CODE), code.get(MODEL_CODE)
    if before and now and before["sha256"] != now["sha256"]:
        changed = [path for path, digest in now["files"].items() if digest not in before["files"].values()]
        raise UserError(
            f"{where} was trained with other code of {before['class']}: {', '.join(changed) or 'one of its files'} has "
            "changed since; put back what it was, train the run again, or, when this code is meant, add "
            "--allow_other_data"
        )


def refuse_other_weights(manifest: dict, run: RunFolder) -> None:
    """A `UserError` when the weights of a finished run are no longer those that it wrote."""
    expected = (manifest.get("weights") or {}).get("sha256")
    if expected and run.weights.exists() and distributed.once_a_machine(lambda: files.sha256(run.weights)) != expected:
        raise UserError(
            f"{run.weights}: not the weights of the run in {run.folder}: the file was replaced; train the run again, "
            "or copy these weights elsewhere and name them with --checkpoint"
        )


def _fixed(params: dict) -> dict:
    """The settings that two starts of one run must share."""
    fixed = _comparable(params, NOT_IN_FINGERPRINT)
    if params.get("lr_schedule") == "linear":  # each step's learning rate depends on how many there will be
        fixed["epochs"] = params["epochs"]
    return fixed


def _comparable(params: dict, without: set[str]) -> dict:
    """Settings as they are when they come back from a manifest."""
    return json.loads(json.dumps({k: v for k, v in params.items() if k not in without}, default=str))


def _training_data(data: dict[str, dict]) -> dict[str, str]:
    return {key: entry["sha256"] for key, entry in data.items() if key != "test_data"}


def _changes(before: dict, now: dict) -> list[str]:
    return [
        f"{key} is {_shown(now, key)}, was {_shown(before, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _shown(settings: dict, key: str) -> str:
    text = json.dumps(settings[key]) if key in settings else "not set"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _digest(parts: list[Path]) -> str:
    """SHA-256 of a file, or of several one after the other."""
    digests = [files.sha256(part) for part in parts]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


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
    processes = distributed.current().size  # one a GPU
    machine = {"system": platform.platform(), "threads": torch.get_num_threads(), "processes": processes}
    machine["device"] = "cpu"
    if gpu >= 0:
        machine["device"] = torch.cuda.get_device_name(gpu)
        machine["cuda"] = torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            machine["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            machine["driver"] = "unknown"
    return machine

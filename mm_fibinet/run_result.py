"""What a finished run leaves for comparisons: valid_scores.parquet and result.json.

Metrics alone do not say whether one run is better than another; the scores of the validation rows do, and they are
small. result.json is written last, whole or not at all, so a run that has one is finished; its fingerprint says of
which settings and data. Costs are training's own: seconds are rows over rows/s, so neither a slow disk at the start
nor a run that was stopped and resumed changes them.
"""

import json
import logging
import math
from pathlib import Path

import numpy as np
import polars as pl
import torch

from mm_fibinet import files, run_manifest, schema
from mm_fibinet.errors import UserError, first_line
from mm_fibinet.fuxictr_adapter import training_rules
from mm_fibinet.metrics import METRICS, auc, evaluate_metrics, undefined_metrics
from mm_fibinet.parquet_reader import ParquetData, open_parquet, read_column
from mm_fibinet.run_folder import RunFolder

SCORES = ("label", "score", "user_id", "cold")  # columns of valid_scores.parquet
MIN_ROWS = 10  # of each label; a group with fewer has no AUC worth showing


def fingerprint(params: dict, data: dict[str, dict]) -> str:
    """Text that is equal for two runs exactly when one's result stands for the other's.

    Args:
        params: of `load_params`.
        data: of `run_manifest.data_fingerprint`.
    """
    return f"{run_manifest.run_fingerprint(params, data)}-{params['epochs']}"


def write_result(
    run: RunFolder,
    params: dict,
    data: dict[str, dict],
    model,
    history: list[dict],
    train_data,
    valid_data,
    scores: np.ndarray,
) -> dict[str, float]:
    """Write valid_scores.parquet, then result.json.

    Args:
        run: the run's folder.
        params: of `load_params`.
        data: of `run_manifest.data_fingerprint`.
        model: as trained, a MultimodalModel.
        history: of `Trainer.fit`.
        train_data, valid_data: the loaders.
        scores: float [N], of the validation rows in file order.

    Returns:
        {metric: value} over all validation rows, the metrics of the config; NaN where the labels leave one undefined,
        which is null in result.json.
    """
    rows = _valid_rows(params, train_data.path, valid_data, scores)
    with files.atomic_path(run.scores) as path, open(path, "wb") as opened:  # its name need not be UTF-8
        rows.write_parquet(opened, use_pyarrow=True)  # a full disk is an OSError there
    label, user, cold = (rows[name].to_numpy() for name in ("label", "user_id", "cold"))
    rules = training_rules(model)
    values = [rules.monitor.get_value(entry) for entry in history]
    best = int(np.argmax(values) if rules.monitor_mode == "max" else np.argmin(values))
    for reason in undefined_metrics(METRICS, label, user).values():
        logging.warning("%s; null in %s", reason, run.result.name)
    metrics = evaluate_metrics(label, scores, METRICS, user, allow_undefined=True)
    seconds = _seconds(history, train_data)
    content = {
        "expid": params["model_id"],
        "model": params["model"],
        "dataset_id": params["dataset_id"],
        "seed": params["seed"],
        "fingerprint": fingerprint(params, data),
        "device": torch.cuda.get_device_name(params["gpu"]) if params["gpu"] >= 0 else "CPU",
        "threads": torch.get_num_threads(),
        "metrics": {name: _defined(value) for name, value in metrics.items()},
        "warm": _group(label, scores, ~cold),
        "cold": _group(label, scores, cold),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rows_per_second": round(_rows(history[-1]["step"], train_data) / seconds[-1], 1),
        "peak_memory_mb": max(entry["peak_memory_mb"] for entry in history),
        "peak_gpu_memory_mb": max(entry["peak_gpu_memory_mb"] for entry in history),
        "seconds_to_best": round(seconds[best], 2),
        "train_seconds": round(seconds[-1], 2),
        "curve": [
            {
                "epoch": round(entry["step"] / len(train_data), 3),
                "seconds": round(elapsed, 2),
                "AUC": _defined(entry.get("AUC")),
            }
            for entry, elapsed in zip(history, seconds, strict=True)
        ],
    }
    files.write_json(run.result, content)
    return evaluate_metrics(label, scores, model.validation_metrics, user, allow_undefined=True)


def read_result(folder: Path) -> dict | None:
    """The content of a run folder's result.json; None when the run has not finished, or that file is damaged."""
    run = RunFolder(folder.parent, folder.name)
    if not run.scores.exists():
        return None
    try:
        found = json.loads(run.result.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # no JSON, or no text
        return None
    return found if isinstance(found, dict) else None


def read_scores(folder: Path) -> pl.DataFrame:
    """A finished run's validation rows: label, score, user_id, cold.

    Raises:
        UserError: the file is damaged.
    """
    path = RunFolder(folder.parent, folder.name).scores
    try:
        with open(path, "rb") as opened:  # its name need not be UTF-8
            return pl.read_parquet(opened).select(SCORES)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as a run's validation scores ({first_line(error)}); remove it and "
            "train the run again"
        ) from error


def _valid_rows(params: dict, train_path: str, valid_data, scores: np.ndarray) -> pl.DataFrame:
    """label, score, user_id (the row number where the file has no users) and cold (item not a target in train).

    A column that no feature is made of may hold anything. Without item ids in both files, as in FuxiCTR's own data, no
    row is known to be cold.
    """
    label, user = valid_data.feature_map.labels[0], params.get("group_id") or "user_id"
    valid = open_parquet(valid_data.path)
    cold = np.zeros(valid.num_rows, dtype=bool)
    items, shown = _item_ids(train_path), _item_ids(valid_data.path)
    if items is not None and shown is not None:
        cold = ~np.isin(shown, np.unique(items))
    return pl.DataFrame(
        {
            "label": read_column(valid_data.path, label, integer=False).astype(np.int8),
            "score": scores,
            "user_id": _users(valid, user),
            "cold": cold,
        }
    )


def _item_ids(path: str) -> np.ndarray | None:
    """The rows' items, a null as 0; None where the file has no such column, or not one of integers."""
    try:
        return read_column(path, schema.ITEM_ID, fill_na=0)
    except UserError:
        return None


def _users(valid: ParquetData, column: str) -> pl.Series | np.ndarray:
    """Whose row each is; the row number where the file does not say it of every row."""
    if column in valid.schema_arrow.names:
        users = pl.from_arrow(valid.read([column]))[column]
        if not users.dtype.is_nested() and not users.null_count():
            return users
    return np.arange(valid.num_rows)


def _defined(value: float | None) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if value is None or math.isnan(value) else value


def _group(label: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> dict:
    """Number of rows of a group and its AUC, None where it has too few rows of a label."""
    positives = int(label[rows].sum())
    enough = min(positives, int(rows.sum()) - positives) >= MIN_ROWS
    return {"rows": int(rows.sum()), "AUC": auc(label[rows], scores[rows]) if enough else None}


def _seconds(history: list[dict], train_data) -> list[float]:
    """Seconds of training until each evaluation: rows over the rate that was measured before it."""
    rows = [0, *(_rows(entry["step"], train_data) for entry in history)]
    rates = np.maximum([entry["rows_per_second"] for entry in history], 0.1)
    return np.cumsum(np.diff(rows) / rates).tolist()


def _rows(step: int, train_data) -> int:
    """Rows trained on after a number of steps."""
    epochs, batches = divmod(step, len(train_data))
    return epochs * train_data.num_samples + batches * train_data.batch_size

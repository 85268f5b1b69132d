"""Scores of a whole split: batch by batch, sharded over the processes, put together in the loader's order."""

import math
import sys

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mm_fibinet import distributed
from mm_fibinet.metrics import evaluate_metrics


def autocast(model: nn.Module):
    """bf16 autocast on the model's device when its precision is bf16."""
    enabled = getattr(model, "precision", "fp32") == "bf16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


def predict(model: nn.Module, data) -> np.ndarray:
    """Scores of all rows, in the loader's order; with several processes each scores its share of the batches.

    Args:
        model: returns {"y_pred": [B, 1]}.
        data: a loader.

    Returns:
        float64 [N].
    """
    return _score(model, data, with_labels=False)[0]


def evaluate(model: nn.Module, data, metrics: list[str]) -> dict[str, float]:
    """Metrics over all rows of a loader.

    Args:
        model: returns {"y_pred": [B, 1]}.
        data: a loader whose batches have labels.
        metrics: names, see mm_fibinet.metrics.

    Returns:
        {metric: value}, the same on every rank.
    """
    scores, labels, groups = _score(model, data, with_labels=True)
    return evaluate_metrics(labels, scores, metrics, groups)


@torch.inference_mode()
def _score(model: nn.Module, data, with_labels: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Scores [N], and labels [N] and group ids [N] when asked for."""
    model.eval()
    world = distributed.current()
    sharded = world.size > 1 and hasattr(data, "shard_batches")
    batches = data.shard_batches(world.rank, world.size) if sharded else enumerate(data)
    total = len(data)
    shown = tqdm(
        batches,
        desc="scoring",
        total=math.ceil(total / world.size) if sharded else total,
        unit="batch",
        file=sys.stdout,
        leave=False,
        mininterval=1.0,
        disable=not getattr(model, "_verbose", 0) or not world.is_main,
    )
    has_groups = with_labels and model.feature_map.group_id is not None
    parts: list[tuple[int, list[Tensor]]] = []
    for index, batch in shown:
        with autocast(model):
            columns = [model.forward(batch)["y_pred"].reshape(-1).double()]
        if with_labels:
            columns.append(model.get_labels(batch).reshape(-1))
        if has_groups:
            columns.append(model.get_group_id(batch).reshape(-1))
        parts.append((index, columns))
    if sharded:
        # a view would be sent with all of the memory behind it
        parts = [(i, [c.cpu().clone() for c in columns]) for i, columns in parts]
        parts = sorted((part for rank in distributed.gather_objects(parts) for part in rank), key=lambda part: part[0])
    joined = [torch.cat(values).cpu().numpy() for values in zip(*(columns for _, columns in parts), strict=True)]
    joined += [None] * (3 - len(joined))
    return joined[0], joined[1], joined[2]

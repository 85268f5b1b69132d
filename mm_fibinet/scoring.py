"""Scores of a whole split: batch by batch, sharded over the processes, put together in the loader's order."""

import math
import sys

import numpy as np
import torch
from torch import Tensor, nn

from mm_fibinet import distributed
from mm_fibinet.fuxictr_adapter import shows_progress
from mm_fibinet.metrics import evaluate_metrics, require_scores
from mm_fibinet.precision import Precision
from mm_fibinet.progress import track


def predict(model: nn.Module, data, precision: str = "fp32") -> np.ndarray:
    """Scores of all rows, in the loader's order; with several processes each scores its share of the batches.

    Args:
        model: returns {"y_pred": [B, 1]}.
        data: a loader.
        precision: one of PRECISIONS, see mm_fibinet.precision.

    Returns:
        float64 [N].

    Raises:
        UserError: a score is NaN, or the device does not have the precision.
    """
    scores = _score(model, data, False, Precision.on(precision, model.device))[0]
    require_scores(scores)
    return scores


def evaluate(
    model: nn.Module, data, metrics: list[str], precision: str = "fp32", allow_undefined: bool = False
) -> dict[str, float]:
    """Metrics over all rows of a loader.

    Args:
        model: returns {"y_pred": [B, 1]}.
        data: a loader whose batches have labels.
        metrics, allow_undefined: see `evaluate_metrics`.
        precision: one of PRECISIONS, see mm_fibinet.precision.

    Returns:
        {metric: value}, the same on every rank.

    Raises:
        UserError: a score is NaN, the device does not have the precision, or see `evaluate_metrics`.
    """
    scores, labels, groups = _score(model, data, True, Precision.on(precision, model.device))
    return evaluate_metrics(labels, scores, metrics, groups, allow_undefined)


@torch.inference_mode()
def _score(
    model: nn.Module, data, with_labels: bool, precision: Precision
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Scores [N], and labels [N] and group ids [N] when asked for."""
    model.eval()
    world = distributed.current()
    sharded = world.size > 1 and hasattr(data, "shard_batches")
    batches = data.shard_batches(world.rank, world.size) if sharded else enumerate(data)
    total = len(data)
    shown = track(
        batches,
        "scoring",
        total=math.ceil(total / world.size) if sharded else total,
        unit="batch",
        file=sys.stdout,
        leave=False,
        shown=shows_progress(model) and world.is_main,
    )
    has_groups = with_labels and model.feature_map.group_id is not None
    parts: list[tuple[int, list[Tensor]]] = []
    with precision.products():
        for index, batch in shown:
            with precision.autocast():
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

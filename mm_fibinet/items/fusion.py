"""The fusions by name, and the choice among them: modality features to one embedding an item.

Those of FUSIONS need the features alone; those of CLICK_FUSIONS learn from training clicks besides. A further one is a
function and one more entry here. `choose` tries all that can be had and keeps the one whose vectors tell clicks of the
validation split best.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mm_fibinet import options
from mm_fibinet.items.clicks import Clicks
from mm_fibinet.items.contrastive import contrastive
from mm_fibinet.items.features import Features
from mm_fibinet.items.item2vec import item2vec
from mm_fibinet.items.linear import Fused, cca, mean, pca, pca_per_modality, whiten
from mm_fibinet.metrics import auc

FUSIONS: dict[str, Callable[[dict[str, Features], int, int], Fused]] = {
    "pca": pca,
    "pca_per_modality": pca_per_modality,
    "whiten": whiten,
    "cca": cca,
    "mean": mean,
}
CLICK_FUSIONS: dict[str, Callable[[dict[str, Features], int, int, Clicks, torch.device], Fused]] = {
    "item2vec": item2vec,
    "contrastive": contrastive,
}
AUTO, MIX = "auto", "mix"
NAMES = options.FUSIONS


def candidates(widths: dict[str, int], with_clicks: bool) -> list[str]:
    """The fusions that modalities of these widths can have."""
    names = [name for name in FUSIONS if len(widths) > 1 or name in ("pca", "whiten")]
    if len(set(widths.values())) > 1 and "mean" in names:
        names.remove("mean")
    return names + (list(CLICK_FUSIONS) if with_clicks else [])


def choose(
    names: list[str],
    fuse: Callable[[str], Fused],
    valid: str | Path,
    num_items: int,
    users: str | Path | None = None,
) -> tuple[str, Fused, dict[str, float]]:
    """The fusion that tells clicks best: by the AUC of a target's cosine to its history.

    Args:
        names: what to try.
        fuse: gives a fusion over items 1 .. n by its name.
        valid: the validation split.
        num_items: n.
        users: user_info, where the histories are there.

    Returns:
        the best one's name, what it gives, and every one's AUC over the rows with a direction to compare.

    Raises:
        UserError: the rows that can be scored lack clicks, or others.
    """
    # No other build needs what these need.
    from mm_fibinet.items.report.evidence import history_cosine, read_rows, usable_rows

    rows = read_rows(valid, num_items + 1, users)
    best, tried = ("", Fused(np.zeros((0, 0)))), {}
    for name in names:
        fused = fuse(name)
        vectors = np.vstack([np.zeros((1, fused.embedding.shape[1]), dtype=np.float32), fused.embedding])
        cosines = {name: history_cosine(vectors, rows.history, rows.target)}
        cosines, used, _ = usable_rows(f"--valid {valid}", cosines, rows)
        tried[name] = auc(used.clicked, cosines[name])
        if tried[name] == max(tried.values()):  # the others are not kept
            best = name, fused
    return *best, tried

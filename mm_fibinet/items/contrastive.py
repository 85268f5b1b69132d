"""Fusion learned from clicks, the direct way: items that the same users click come to lie close together.

A linear projector over the modalities' principal components is trained by InfoNCE on pairs of items that one user
clicked, as MUSE's SCL does for images (arXiv 2512.07216), and the leading components of what it gives are kept. What an
item's own clicks say reaches its vector through the projector alone, which is small: cold items are placed by the same
map as warm ones. It is linear because an MLP learns the warm items by heart; it begins as the identity, so that
directions which clicks say nothing about stay as the content has them; and it is trained briefly, since with every step
the vectors tell more of the training rows than of new ones.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_fibinet.items.clicks import Clicks, pair_batches, reproducible
from mm_fibinet.items.features import BLOCK_ROWS, ArrayFeatures, Features, present_in_any
from mm_fibinet.items.linear import Fused, components_per_modality, pca

INPUTS = 256  # principal components that the projector reads, the modalities' together, or emb_dim if that is more
BATCH, PAIRS = 1024, 125_000  # pairs a step, and in all
TEMPERATURE, DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.2, 3e-4, 1e-4


def contrastive(
    modalities: dict[str, Features], emb_dim: int, seed: int, clicks: Clicks, device: torch.device
) -> Fused:
    """A projection of the content in which co-clicked items are near.

    Args:
        modalities: by name, over the same n items.
        emb_dim: numbers an item.
        seed: of the pairs, their order and the dropout.
        clicks: of the training split.
        device: where the projector is trained; on a CPU, in one thread, the same input gives the same bytes.

    Raises:
        UserError: the features have fewer than emb_dim independent directions.
    """
    inputs = torch.from_numpy(components_per_modality(modalities, emb_dim, max(INPUTS, emb_dim)))
    width = inputs.shape[1]
    # A popular item is many anchors' negative, which says nothing against it: the bias is taken off the logits.
    often = torch.from_numpy(np.log(np.maximum(clicks.counts, 1) / clicks.counts.sum())).float()
    with reproducible(seed, device):
        project = nn.Linear(width, width, bias=False)
        nn.init.eye_(project.weight)
        project.to(device)
        optimizer = torch.optim.AdamW(project.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for pair in pair_batches(clicks, BATCH, PAIRS, seed):
            rows = [torch.from_numpy(side) for side in pair]
            anchors, others = (
                F.normalize(project(F.dropout(inputs[side].to(device), DROPOUT)), dim=1) for side in rows
            )
            loss = info_nce(anchors, others, rows[1].to(device), often[rows[1]].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            projected = torch.cat([project(part.to(device)).cpu() for part in inputs.split(BLOCK_ROWS)])
    present = present_in_any(modalities.values())
    return Fused(pca({"contrastive": ArrayFeatures(projected.numpy(), present)}, emb_dim).embedding)


def info_nce(anchors: Tensor, others: Tensor, rows: Tensor, log_frequency: Tensor) -> Tensor:
    """The mean of -log of the share that its own other item has in an anchor's batch.

    van den Oord et al. 2018 (arXiv 1807.03748, eq. 4), the logits corrected for how often an item is drawn (Yi et al.
    2019, Sampling-bias-corrected neural modeling, eq. 3).

    Args:
        anchors, others: float [B, D] of length 1; row i of both are a pair.
        rows: integer [B], which items the others are: the same item again is no negative.
        log_frequency: float [B], log of how often each of them is drawn.
    """
    logits = anchors @ others.T / TEMPERATURE - log_frequency
    again = (rows == rows[:, None]).fill_diagonal_(False)
    return F.cross_entropy(logits.masked_fill(again, -torch.inf), torch.arange(len(rows), device=rows.device))

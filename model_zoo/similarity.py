"""How like the history the target is, as fields of their own: per embedding, by tags and by levels.

A bilinear interaction of pooled fields sees the history's mean; whether any single item of it is close to the target
is lost in that mean. These fields say it: for a cold item, whose id says nothing, it is the strongest evidence there
is. The comparisons are of the items' raw columns, so they have nothing to learn but how much each counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs

TOP = 4  # history items nearest to the target
RECENCY = 0.85  # the weight of a history item, to the power of the positions after it
ITEMS_PER_POSITION = 16  # up to this many items a position, all cosines at once are cheaper than gathered vectors


class SimilarityFields(nn.Module):
    """Fields made of the target's similarity to the history.

    Args:
        embeddings: names of embedding features; each makes a field of its cosines' mean, top-4 mean, maximum and
            recent mean.
        tags: name of the tag list feature, or None; its field holds the share of history items with a tag in common,
            and the mean and recent mean of the Jaccard index.
        levels: names of the levels that history items carry; their field holds the mean and recent mean of the
            differences to the target's, with and without sign.
        embedding_dim: D.

    Attributes:
        num_fields: fields made.
        num_features: numbers behind them.
    """

    def __init__(self, embeddings: list[str], tags: str | None, levels: list[str], embedding_dim: int):
        super().__init__()
        self.embeddings, self.tags, self.levels = embeddings, tags, levels
        sizes = [4] * len(embeddings) + ([3] if tags else []) + ([4 * len(levels)] if levels else [])
        self.num_fields, self.num_features = len(sizes), sum(sizes)
        self.projections = nn.ModuleList(nn.Linear(size, embedding_dim) for size in sizes)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The similarity features of each field, as `features` has them, to one float [B, D] a field."""
        return [project(values) for project, values in zip(self.projections, features, strict=True)]

    @torch.no_grad()
    def features(self, batch: Inputs) -> list[Tensor]:
        """The similarity features of each field: float [B, size]; zeros where there is no history."""
        real = batch.mask > 0
        weights = history_weights(real)
        features = [
            cosine_features(batch.items[name].float(), batch.target, batch.history, real, weights)
            for name in self.embeddings
        ]
        if self.tags:
            features.append(tag_features(batch.items[self.tags], batch.target, batch.history, weights))
        if self.levels:
            features.append(level_features([batch.items[name] for name in self.levels], batch, weights))
        return features


def history_weights(real: Tensor) -> Tensor:
    """Weights of the history's positions for a mean and for a recent mean, whose weights fall with age.

    Args:
        real: bool [B, L].

    Returns:
        float [B, 2, L]; each sums to 1 over the real positions, or is zero where there are none.
    """
    age = torch.arange(real.shape[1] - 1, -1, -1, device=real.device)
    weights = torch.stack([torch.ones_like(age, dtype=torch.float32), RECENCY**age]) * real.unsqueeze(1)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """float [B, L] and [B, 2, L] to [B, 2]."""
    return torch.bmm(weights, values.unsqueeze(-1)).squeeze(-1)


def cosine_features(items: Tensor, target: Tensor, history: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Mean, top-4 mean, maximum and recent mean of the cosines between the target and the real history items.

    Args:
        items: float [M, E].
        target: integer [B], history: integer [B, L]; rows of `items`.
        real: bool [B, L].
        weights: of `history_weights`.

    Returns:
        float [B, 4].
    """
    unit = F.normalize(items, dim=-1)
    chosen = unit.index_select(0, target)
    if len(items) <= ITEMS_PER_POSITION * history.shape[1]:
        cosines = (chosen @ unit.T).gather(1, history.long())
    else:
        cosines = torch.bmm(F.embedding(history, unit), chosen.unsqueeze(-1)).squeeze(-1)
    mean, recent = weighted_means(cosines, weights).split(1, dim=1)
    if not history.shape[1]:
        return cosines.new_zeros(len(target), 4)
    nearest = cosines.masked_fill(~real, -2).topk(min(TOP, history.shape[1]), dim=1).values
    there = nearest > -2
    top = (nearest * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.cat([mean, top, (nearest * there)[:, :1], recent], dim=1)


def tag_features(tags: Tensor, target: Tensor, history: Tensor, weights: Tensor) -> Tensor:
    """The share of history items with a tag of the target's, the mean and recent mean Jaccard index of the tag sets.

    Args:
        tags: integer [M, W], 0 = padding, no tag twice in a row.
        target, history, weights: as in `cosine_features`.

    Returns:
        float [B, 3].
    """
    own = tags.index_select(0, target)
    theirs = F.embedding(history, tags.float()).to(tags.dtype)
    same = (theirs.unsqueeze(-1) == own[:, None, None, :]) & (own != 0)[:, None, None, :]
    common = same.any(dim=-1).sum(dim=-1).float()
    either = (theirs != 0).sum(dim=-1) + (own != 0).sum(dim=-1, keepdim=True) - common
    shared = weighted_means((common > 0).float(), weights)[:, :1]
    return torch.cat([shared, weighted_means(common / either.clamp(min=1), weights)], dim=1)


def level_features(levels: list[Tensor], batch: Inputs, weights: Tensor) -> Tensor:
    """For each level, mean and recent mean over the history of (target - item) and of its absolute value, in tenths.

    Args:
        levels: integer [M] each.
        batch: the batch.
        weights: as in `cosine_features`.

    Returns:
        float [B, 4 * len(levels)].
    """
    features = []
    for level in levels:
        own = level.index_select(0, batch.target).unsqueeze(1)
        difference = (own - level[batch.history.long()]).float() / 10
        features += [weighted_means(difference, weights), weighted_means(difference.abs(), weights)]
    return torch.cat(features, dim=1)

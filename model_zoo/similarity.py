"""How like the history the target is, as fields of their own: per embedding, by tags and by levels.

A bilinear interaction of pooled fields sees the history's mean; whether any single item of it is close to the target
is lost in that mean. These fields say it: for a cold item, whose id says nothing, it is the strongest evidence there
is. The comparisons are of the items' raw columns, so they have nothing to learn but how much each counts.
"""

import torch
from torch import Tensor, nn

from mm_fibinet.similarity import cosine_features, distinct_tags, history_weights, level_features, tag_features

from .base import Inputs


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
            cosine_features(batch.items[name], batch.target, batch.history, real, weights) for name in self.embeddings
        ]
        if self.tags:
            tags = distinct_tags(batch.items[self.tags])
            features.append(tag_features(tags, batch.target, batch.history, weights))
        if self.levels:
            levels = [batch.items[name] for name in self.levels]
            features.append(level_features(levels, batch.target, batch.history, weights))
        return features

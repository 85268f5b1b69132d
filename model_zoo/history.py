"""What the challenge's models share: an item is one vector, its fields' embeddings side by side.

Target and history items have the same vector, so that a model can compare them; with `history_levels` the two levels
are part of it. The target's levels are then in its vector and among the row's own features too, as DIN_att6, which
brought them to the history, has it.
"""

import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor

from mm_fibinet.errors import UserError

from .base import Inputs, MultimodalModel


class HistoryModel(MultimodalModel):
    """Embeds the row's own features, and each item once.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field without an `embedding_dim` of its own.
        kwargs: what MultimodalModel takes.

    Attributes:
        item_dim: W, the width of that vector.
        user_dim: U, the width of the row's own features.

    Raises:
        UserError: no feature describes an item.
    """

    def __init__(self, feature_map, embedding_dim=10, **kwargs):
        super().__init__(feature_map, **kwargs)
        if not self.vector_features:
            raise UserError(
                f"{type(self).__name__} reads a history of items, but the feature map has no feature of source item, "
                f"it has {', '.join(self.user_features)}; mark the items' features in feature_cols with source: item, "
                "or choose a model of fields, for example FiBiNET"
            )
        widths = {name: spec.get("embedding_dim", embedding_dim) for name, spec in feature_map.features.items()}
        self.item_dim = sum(widths[name] for name in self.vector_features)
        self.user_dim = sum(widths[name] for name in self.user_features)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)

    def item_vectors(self, batch: Inputs) -> Tensor:
        """float [M, W], a vector for each item of the batch."""
        embedded = self.embed(self.embedding_layer, batch.items)
        return torch.cat([embedded[name] for name in self.vector_features], dim=-1)

    def user_vectors(self, batch: Inputs) -> Tensor:
        """float [B, U], the row's own features."""
        if not self.user_features:
            return torch.empty(len(batch.target), 0, device=self.device)
        embedded = self.embed(self.embedding_layer, batch.user)
        return torch.cat([embedded[name] for name in self.user_features], dim=-1)

"""What the challenge's models share: an item is one vector, its fields' embeddings side by side.

Target and history items have the same vector, so that a model can compare them; with `history_levels` the two levels
are part of it. The target's levels are then in its vector and among the row's own features too, as DIN_att6, which
brought them to the history, has it.
"""

import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor

from mm_fibinet.errors import UserError
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ

from .base import Inputs
from .interest import InterestModel


class HistoryModel(InterestModel):
    """Embeds the row's own features, and each item once.

    A subclass makes a logit of them: `compute_logit(batch, items, target)`, see `logit_inputs`.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field without an `embedding_dim` of its own.
        kwargs: what InterestModel takes; the outputs of its layers are beside the row's own features.

    Attributes:
        feature_widths: of an item's features, in the order of its vector.
        item_dim: W, the width of that vector.
        row_dim: R, the width of what `row_vectors` makes.

    Raises:
        UserError: no feature describes an item, or there is no history.
    """

    def __init__(self, feature_map, embedding_dim=10, **kwargs):
        super().__init__(feature_map, **kwargs)
        kept_out = [name for name in self.compared_features if name in feature_map.features]
        if not self.vector_features and kept_out:
            raise UserError(
                f"{type(self).__name__} reads a history of items, but {', '.join(kept_out)}, kept out of their vectors "
                "(similarity_only), is all that describes them; add another feature, for example item_id, to "
                "feature_cols and use_features"
            )
        if not self.vector_features:
            raise UserError(
                f"{type(self).__name__} reads a history of items, but the feature map has no feature of source item, "
                f"it has {', '.join(self.user_features)}; mark the items' features in feature_cols with source: item, "
                "or choose a model of fields, for example FiBiNET"
            )
        if ITEM_SEQ not in feature_map.features:
            raise UserError(
                f"{type(self).__name__} reads a history of items, but the feature map has no {ITEM_SEQ}, it has "
                f"{', '.join(feature_map.features)}; add {ITEM_SEQ} to feature_cols and use_features, or choose a "
                "model of fields, for example FiBiNET"
            )
        widths = {name: spec.get("embedding_dim", embedding_dim) for name, spec in feature_map.features.items()}
        self.feature_widths = [widths[name] for name in self.vector_features]
        self.item_dim = sum(self.feature_widths)
        self.row_dim = sum(widths[name] for name in self.user_features)
        self.embedding_layer = FeatureEmbedding(
            feature_map, embedding_dim, not_required_feature_columns=self.compared_features or None
        )
        kept = [torch.full((widths[name],), float(name != ITEM_ID)) for name in self.vector_features]
        self.register_buffer("kept_without_id", torch.cat(kept), persistent=False)  # by id_dropout
        self.interest = self.make_interest(self.item_dim, embedding_dim)
        if self.interest is not None:
            self.row_dim += sum(self.interest.widths)

    def logit_inputs(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        """The items' and the targets' vectors: float [M, W] and [B, W], of `item_vectors` and `target_vectors`."""
        items = self.item_vectors(batch)
        return items, self.target_vectors(batch, items)

    def item_vectors(self, batch: Inputs) -> Tensor:
        """float [M, W], a vector for each item of the batch."""
        embedded = self.embed(self.embedding_layer, {name: batch.items[name] for name in self.vector_features})
        return torch.cat([embedded[name] for name in self.vector_features], dim=-1)

    def target_vectors(self, batch: Inputs, items: Tensor) -> Tensor:
        """float [B, W], the targets' vectors out of `items`; in training some have no id (id_dropout)."""
        vectors = items.index_select(0, batch.target)
        if not (self.training and self.id_dropout):
            return vectors
        dropped = torch.rand(len(vectors), 1, device=vectors.device) < self.id_dropout
        return torch.where(dropped, vectors * self.kept_without_id, vectors)

    def row_vectors(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """float [B, R]: the row's own features, then what the interest layers make of target and history.

        Args:
            batch: the batch.
            items: float [M, W], of `item_vectors`.
            target: float [B, W], of `target_vectors`.
        """
        vectors = [torch.empty(batch.target.shape[0], 0, device=self.device)]
        if self.user_features:
            embedded = self.embed(self.embedding_layer, batch.user)
            vectors = [embedded[name] for name in self.user_features]
        if self.interest is not None:
            vectors += self.interest(batch, items, target)
        return torch.cat(vectors, dim=-1)

"""What the classic models share: the batch as fields of one width, the history as fields like the others.

The fields are the row's own features, the target item's and, pooled over it, the history's, all [B, F, D]. Pairs of a
target field with the same field of the history are what carries a multimodal embedding: they compare what the item
shows with what the user liked. With `history_levels` the history has its two level fields too; the target's are among
the row's own features already.
"""

import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor

from mmctr.errors import UserError
from mmctr.schema import ITEM_ID
from model_zoo.base import Inputs, MultimodalModel, with_equal_dims
from model_zoo.layers import DINAttention, mean_pooling
from model_zoo.similarity import SimilarityFields

HISTORY_POOLINGS = ("mean", "target_attention", "none")


class FieldModel(MultimodalModel):
    """Embeds user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field; an embedding field is projected to it.
        history_pooling: "mean", "target_attention" (DIN's) or "none".
        attention_hidden_units, attention_dropout: of the target attention.
        id_dropout: share of the training rows whose target's item_id field is zeroed, so that the model learns to
            score an item it has no id embedding for (a cold one) by its content.
        similarity_fields: add fields that say how like the history the target is (see model_zoo.similarity).
        kwargs: what MultimodalModel takes.

    Attributes:
        num_fields: F.

    Raises:
        UserError: history_pooling is none of the three.
    """

    def __init__(
        self,
        feature_map,
        embedding_dim=10,
        history_pooling="mean",
        attention_hidden_units=(64,),
        attention_dropout=0.0,
        id_dropout=0.0,
        similarity_fields=False,
        **kwargs,
    ):
        if history_pooling not in HISTORY_POOLINGS:
            raise UserError(f"history_pooling is {history_pooling!r}, expected one of {', '.join(HISTORY_POOLINGS)}")
        feature_map = with_equal_dims(feature_map)
        super().__init__(feature_map, **kwargs)
        self.history_pooling = history_pooling
        self.id_dropout = id_dropout
        self.embedding_dim = embedding_dim
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        num_history_fields = len(self.item_features) + len(self.level_features)
        self.num_fields = len(self.user_features) + len(self.item_features)
        if history_pooling != "none":
            self.num_fields += num_history_fields
        if history_pooling == "target_attention":
            self.attention_layer = DINAttention(
                num_history_fields * embedding_dim, attention_hidden_units, dropout_rate=attention_dropout
            )

        self.similarity = None
        if similarity_fields:
            features = feature_map.features
            embeddings = [name for name in self.item_features if features[name]["type"] == "embedding"]
            tags = [name for name in self.item_features if features[name]["type"] == "sequence"]
            self.similarity = SimilarityFields(embeddings, (tags or [None])[0], self.level_features, embedding_dim)
            self.num_fields += self.similarity.num_fields

    def fields(self, batch: Inputs) -> Tensor:
        """User and target fields in the feature map's order, then the pooled history's: float [B, F, D]."""
        embedded = self.embed(self.embedding_layer, batch.items)
        names = [*self.item_features, *self.level_features]
        items = torch.cat([embedded[name] for name in names], dim=-1)
        target = items.index_select(0, batch.target)
        per_field = dict(zip(names, target.split(self.embedding_dim, dim=-1), strict=True))
        if self.training and self.id_dropout and ITEM_ID in per_field:
            kept = torch.rand(len(target), 1, device=target.device) >= self.id_dropout
            per_field[ITEM_ID] = per_field[ITEM_ID] * kept
        per_field.update(self.embed(self.embedding_layer, batch.user))
        fields = [per_field[name] for name in self.feature_map.features if name in per_field]
        if self.history_pooling == "mean":
            fields.append(mean_pooling(items, batch.history, batch.mask, batch.padding_row))
        elif self.history_pooling == "target_attention":
            fields.append(self.attention_layer(target, items, batch.history, batch.mask))
        if self.similarity is not None:
            fields += self.similarity(batch)
        return torch.cat(fields, dim=-1).view(len(target), -1, self.embedding_dim)

"""What the classic models share: the batch as fields of one width, the history as fields like the others.

The fields are the row's own features, the target item's and, pooled over it, the history's, all [B, F, D]. Pairs of a
target field with the same field of the history are what carries a multimodal embedding: they compare what the item
shows with what the user liked. With `history_levels` the history has its two level fields too; the target's are among
the row's own features already. Without a history or without features of items there are the row's fields alone, as
in FuxiCTR's models.
"""

import logging
from typing import Literal, get_args

import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ

from .base import Inputs, with_equal_dims
from .interest import InterestModel
from .layers import DINAttention, mean_pooling
from .modalities import require_modalities
from .modality_fusion import ModalityFusion
from .similarity import SimilarityFields

HistoryPooling = Literal["mean", "target_attention", "none"]
HISTORY_POOLINGS = get_args(HistoryPooling)


class FieldModel(InterestModel):
    """Embeds user, target and history fields.

    A subclass makes a logit of them: `compute_logit(batch, fields)`, with fields float [B, F, D].

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field; an embedding field is projected to it.
        history_pooling: "mean", "target_attention" (DIN's) or "none"; None is "mean" where the feature map has a
            history (item_seq) and features of items, and "none" where it has not.
        attention_hidden_units, attention_dropout: of the target attention.
        modality_dropout: as id_dropout, for the target's embedding fields, which tell one item from another as ids do,
            so that a model of few items does not learn them by heart.
        similarity_fields: add fields that say how like the history the target is (see model_zoo.similarity).
        similarity_only: item features that are compared, there or by InterestModel's layers, and are no fields
            themselves, for example the embeddings of each modality beside the fused one.
        modality_gating: each element of an embedding field is scaled by a gate between 0 and 2 that reads all of the
            item's fields, so that an item can lean on its id or on its content.
        low_rank_fusion: embedding columns of the items whose fusion with all fields is added to the logit (see
            model_zoo.modality_fusion). They are no fields, and similarity_fields compare those that similarity_only
            names. A column that the data set's entry does not name is read from item_info.
        low_rank_fusion_heads: how many times it is there; each has a loss of its own, and the score is their mean.
        low_rank_fusion_dim, low_rank_fusion_ranks, low_rank_fusion_dropout: of each.
        kwargs: what InterestModel takes; each output of its layers is a field.

    Attributes:
        num_fields: F.
        field_features: the features that are fields.
        pooled_features: the features whose pooled history makes fields, in the order of these.
        numeric_fields: F flags, which fields come from numbers.

    Raises:
        UserError: history_pooling is none of the three or has nothing to pool, similarity_fields have nothing to
            compare, similarity_only names what cannot be compared or leaves no field, or low_rank_fusion names what is
            no embedding of the items or cannot be added to what the model's own `forward` makes.
    """

    def __init__(
        self,
        feature_map,
        embedding_dim=10,
        history_pooling: HistoryPooling | None = None,
        attention_hidden_units=(64,),
        attention_dropout=0.0,
        modality_dropout=0.0,
        similarity_fields=False,
        similarity_only=(),
        modality_gating=False,
        low_rank_fusion=(),
        low_rank_fusion_dim=64,
        low_rank_fusion_ranks=4,
        low_rank_fusion_heads=1,
        low_rank_fusion_dropout=0.0,
        **kwargs,
    ):
        if history_pooling not in (None, *HISTORY_POOLINGS):
            raise UserError(f"history_pooling is {history_pooling!r}, expected one of {', '.join(HISTORY_POOLINGS)}")
        feature_map = with_equal_dims(feature_map, embedding_dim)
        self.similarity_fields = similarity_fields
        compared, self.fused_columns = list(similarity_only or ()), self._fused(feature_map, low_rank_fusion)
        self.fused_alone = [name for name in self.fused_columns if name not in compared]
        super().__init__(feature_map, similarity_only=[*compared, *self.fused_alone], **kwargs)
        features = feature_map.features
        fields = [name for name in features if features[name]["type"] != "meta"]
        self.field_features = [name for name in fields if name not in self.compared_features]
        self.pooled_features = [*self.item_features, *self.level_features]  # the order that weights were trained in
        self.history_pooling = self._history_pooling(history_pooling)
        embeddings = [name for name in self.item_features if features[name]["type"] == "embedding"]
        self.modality_dropout = modality_dropout
        self.dropped_fields = {ITEM_ID: self.id_dropout} if ITEM_ID in self.item_features else {}
        self.dropped_fields.update(dict.fromkeys(embeddings, modality_dropout))
        self.embedding_dim = embedding_dim
        self.embedding_layer = FeatureEmbedding(
            feature_map, embedding_dim, not_required_feature_columns=self.compared_features or None
        )
        pooled = self.pooled_features if self.history_pooling != "none" else []
        self.numeric_fields = [features[name]["type"] == "numeric" for name in [*self.field_features, *pooled]]
        vector_dim = len(self.vector_features) * embedding_dim
        if self.history_pooling == "target_attention":
            self.history_attention = DINAttention(vector_dim, attention_hidden_units, dropout_rate=attention_dropout)
        if modality_gating and not embeddings:
            raise UserError("modality_gating is True, but no embedding is a field; see similarity_only, use_features")
        self.modality_gate = ModalityGate(self.vector_features, embeddings, embedding_dim) if modality_gating else None
        self.similarity = self._make_similarity() if similarity_fields else None
        if self.similarity is not None:
            self.numeric_fields += [True] * self.similarity.num_fields
        self.interest = self.make_interest(vector_dim, embedding_dim)
        if self.interest is not None:
            self.interest_projections = nn.ModuleList(nn.Linear(width, embedding_dim) for width in self.interest.widths)
            self.numeric_fields += self.interest.counts
        self.num_fields = len(self.numeric_fields)
        if not self.num_fields:
            raise UserError(
                f"{type(self).__name__} has no fields: similarity_only takes {', '.join(self.compared_features)} out "
                "of them, and nothing else is there; leave one in, or set similarity_fields: True"
            )
        self.modality_fusion = None
        if self.fused_columns:
            self.modality_fusion = ModalityFusion(
                {name: features[name]["pretrain_dim"] for name in self.fused_columns},
                embedding_dim,
                self.num_fields * embedding_dim,
                reads_history=self.history_pooling != "none",
                fusion_dim=low_rank_fusion_dim,
                num_ranks=low_rank_fusion_ranks,
                num_heads=low_rank_fusion_heads,
                dropout=low_rank_fusion_dropout,
            )
            if low_rank_fusion_heads > 1:  # else a step takes FuxiCTR's loss in its cheaper form
                self.add_loss = self.loss_of_heads

    def read_batch(self, inputs) -> Inputs:
        """As InterestModel's; with what the fields of similarity are made of, and what low_rank_fusion reads."""
        batch = super().read_batch(inputs)
        if self.similarity is not None:
            batch.similarities = self.similarity.features(batch)
        if self.modality_fusion is not None:
            items = self.modality_fusion.item_vectors(batch.items)
            target = [vectors.index_select(0, batch.target) for vectors in items]
            batch.modalities = self.modality_fusion.modalities(batch, items, target)
        return batch

    def item_side_features(self) -> dict[str, dict]:
        """As MultimodalModel's; a column that is fused is more than compared, and needs its scale."""
        specs = super().item_side_features()
        fused = {"compared_only": False, "keep_int8": True}
        return {name: {**spec, **fused} if name in self.fused_columns else spec for name, spec in specs.items()}

    def idle_settings(self) -> list[str]:
        """As InterestModel's; `modality_dropout` without an embedding field, what is of a history that is not read."""
        idle = super().idle_settings()
        if self.history_pooling == "none" and self.similarity is None and self.interest is None:
            settings = {"history_levels": bool(self.level_features), "content_search": self.content_search}
            idle += [
                f"{key} is {value}, but nothing reads the history here" for key, value in settings.items() if value
            ]
        if self.modality_dropout and not self.dropped_fields.keys() - {ITEM_ID}:
            idle.append(f"modality_dropout is {self.modality_dropout}, but no embedding of the items is a field")
        return idle

    def logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """The model's own, plus those of the fusion's heads: float [B, 1], or [B, H] of H heads."""
        logit = self.compute_logit(batch, fields)
        return logit if self.modality_fusion is None else logit + self.modality_fusion(batch.modalities, fields)

    def loss_of_heads(self, return_dict: dict[str, Tensor], y_true: Tensor) -> Tensor:
        """The mean of the heads' losses, FuxiCTR's `add_loss`: that of their mean would let them share the work."""
        heads = return_dict["heads"].split(1, dim=1)
        return sum(super(FieldModel, self).add_loss({"y_pred": scores}, y_true) for scores in heads) / len(heads)

    def logit_inputs(self, batch: Inputs) -> tuple[Tensor]:
        """The fields, float [B, F, D]."""
        return (self.fields(batch),)

    def fields(self, batch: Inputs) -> Tensor:
        """User and target fields in the feature map's order, then the pooled history's, of similarity, of interest.

        The history's fields are those of items first, then the levels.

        Args:
            batch: of `read_batch`.

        Returns:
            float [B, F, D].
        """
        row, history, interest = self.embed(self.embedding_layer, batch.user), [], []
        if self.vector_features:
            target, history, interest = self._item_fields(batch)
            row = {**target, **row}
        else:
            interest = self._interest_fields(batch, torch.empty(0), torch.empty(0))
        return self.stack_fields(row, history, batch.similarities, interest)

    def stack_fields(
        self, row: dict[str, Tensor], history: list[Tensor], similarities: list[Tensor], interest: list[Tensor]
    ) -> Tensor:
        """The fields in the order that weights were trained in: float [B, F, D].

        Args:
            row: {feature: float [B, D]} of the row's own and the target's fields.
            history, interest: float [B, D] each.
            similarities: as Inputs has them.
        """
        fields = [row[name] for name in self.feature_map.features if name in row] + history
        if self.similarity is not None:
            fields += self.similarity(similarities)
        return torch.stack(fields + interest, dim=1)

    def _item_fields(self, batch: Inputs) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """The target's fields by name, the pooled history's and the interest layers', each float [B, D]."""
        items = self.item_vectors(batch)
        vectors = items.index_select(0, batch.target)
        target = self.by_feature(vectors)
        dropped = {name: share for name, share in self.dropped_fields.items() if self.training and share}
        for name, share in dropped.items():
            target[name] = target[name] * (torch.rand(len(vectors), 1, device=vectors.device) >= share)
        if dropped and (self.interest is not None or self.history_pooling == "target_attention"):
            vectors = torch.cat([target[name] for name in self.vector_features], dim=-1)
        interest = self._interest_fields(batch, items, vectors)
        return target, self.history_fields(batch, items, vectors), interest

    def item_vectors(self, batch: Inputs) -> Tensor:
        """float [M, W], a vector for each item of the batch: its fields side by side, gated."""
        embedded = self.embed(self.embedding_layer, {name: batch.items[name] for name in self.vector_features})
        items = torch.cat([embedded[name] for name in self.vector_features], dim=-1)
        return items if self.modality_gate is None else self.modality_gate(items)

    def history_fields(self, batch: Inputs, items: Tensor, target: Tensor) -> list[Tensor]:
        """The pooled history's fields, float [B, D] each; [1, D] of a mean where all rows have one history.

        Args:
            batch: the batch.
            items: float [M, W], the items' vectors.
            target: float [B, W], the targets'.
        """
        if self.history_pooling == "none":
            return []
        if self.history_pooling == "mean":
            pooled = mean_pooling(items, batch.history, batch.mask, batch.padding_row)
        else:
            pooled = self.history_attention(target, items, batch.history, batch.mask)
        fields = self.by_feature(pooled)
        return [fields[name] for name in self.pooled_features]

    def _interest_fields(self, batch: Inputs, items: Tensor, target: Tensor) -> list[Tensor]:
        """The interest layers' outputs as fields: float [B, D] each."""
        if self.interest is None:
            return []
        outputs = self.interest(batch, items, target)
        return [project(output) for project, output in zip(self.interest_projections, outputs, strict=True)]

    def by_feature(self, vectors: Tensor) -> dict[str, Tensor]:
        """float [B, W] to {feature: float [B, D]}."""
        return dict(zip(self.vector_features, vectors.split(self.embedding_dim, dim=-1), strict=True))

    def _history_pooling(self, asked: str | None) -> str:
        """The pooling: as asked for, or what the feature map has the features for."""
        if asked is None:
            has_history = ITEM_SEQ in self.feature_map.features
            if has_history and not self.pooled_features:
                logging.warning("%s is not read: no feature of source item describes the items of a history", ITEM_SEQ)
            return "mean" if has_history and self.pooled_features else "none"
        if asked != "none" and not self.pooled_features:
            raise UserError(
                f"history_pooling is {asked!r}, but the feature map has no feature of source item to pool, it has "
                f"{', '.join(self.field_features)}; set history_pooling: none, or mark the items' features in "
                "feature_cols with source: item"
            )
        if asked != "none" and ITEM_SEQ not in self.feature_map.features:
            raise UserError(
                f"history_pooling is {asked!r}, but the feature map has no {ITEM_SEQ} to pool; set history_pooling: "
                f"none, or add {ITEM_SEQ} to feature_cols and use_features"
            )
        return asked

    def _fused(self, feature_map, names: list[str] | tuple[str, ...] | None) -> list[str]:
        """`low_rank_fusion`, checked."""
        if not names:
            return []
        name = type(self).__name__
        if type(self).forward is not InterestModel.forward:
            raise UserError(
                f"low_rank_fusion is {list(names)}, which MultimodalModel.forward adds to the logit, but {name} has a "
                "forward of its own; leave one of the two out"
            )
        return require_modalities(name, feature_map, list(names), setting="low_rank_fusion")

    def _make_similarity(self) -> SimilarityFields:
        """Fields of all that can be compared: embeddings, the first list of tags, levels."""
        features, of_items = self.feature_map.features, self._comparable()
        embeddings = [name for name in of_items if features[name]["type"] == "embedding"]
        tags = [name for name in of_items if features[name]["type"] == "sequence"]
        if not embeddings and not tags and not self.level_features:
            raise UserError(
                "similarity_fields is True, but there is nothing to compare: expected a feature of source item and of "
                "type embedding or sequence, or history_levels: True"
            )
        self._require_history("similarity_fields", True)
        return SimilarityFields(embeddings, next(iter(tags), None), self.level_features, self.embedding_dim)

    def _comparable(self) -> list[str]:
        """The item features out of which similarity_fields take what they compare."""
        return [name for name in (*self.item_features, *self.compared_features) if name not in self.fused_alone]

    def _is_compared(self, name: str) -> bool:
        """Whether similarity_fields compare a feature, or low_rank_fusion reads it."""
        if name in self.fused_columns:
            return True
        spec = self.feature_map.features.get(name, {})
        return self.similarity_fields and spec.get("source") == "item" and spec["type"] in ("embedding", "sequence")


class ModalityGate(nn.Module):
    """Scales the embedding fields of an item, element by element, by what all its fields say.

    Args:
        names: the fields of an item's vector, in their order.
        gated: those of them that are scaled.
        embedding_dim: D.
    """

    def __init__(self, names: list[str], gated: list[str], embedding_dim: int):
        super().__init__()
        self.is_gated = [name in gated for name in names]
        self.embedding_dim = embedding_dim
        self.linear = nn.Linear(len(names) * embedding_dim, len(gated) * embedding_dim)

    def forward(self, items: Tensor) -> Tensor:
        """float [M, W] to the same shape; a gate of 1 changes nothing."""
        gates = iter((2 * self.linear(items).sigmoid()).split(self.embedding_dim, dim=-1))
        fields = items.split(self.embedding_dim, dim=-1)
        scaled = [field * next(gates) if flag else field for field, flag in zip(fields, self.is_gated, strict=True)]
        return torch.cat(scaled, dim=-1)

"""FiBiNET: feature importance and bilinear feature interactions (Huang et al., RecSys 2019).

The fields are the row's own features, the target item's and, pooled over it, the history's, all [B, F, D]. SENET
re-weights them; both the fields and the re-weighted fields interact bilinearly in all pairs; an MLP reads the
interactions, and a linear part is added. Pairs of a target field with the same field of the history are what carries
a multimodal embedding: they compare what the item shows with what the user liked.

With `history_pooling: none` and no embedding field this is FuxiCTR's FiBiNET: same weight names, same outputs.
"""

import copy

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block, SqueezeExcitation
from torch import Tensor

from mmctr.errors import UserError
from model_zoo.base import Inputs, MultimodalModel
from model_zoo.layers import BilinearInteraction, DINAttention, LinearPart, mean_pooling

HISTORY_POOLINGS = ("mean", "target_attention", "none")


class FiBiNET(MultimodalModel):
    """FiBiNET over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field; an embedding field is projected to it.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the MLP.
        excitation_activation: of SENET, "ReLU" or "Sigmoid".
        reduction_ratio: of SENET.
        bilinear_type: "field_all", "field_each" or "field_interaction".
        history_pooling: "mean", "target_attention" (DIN's) or "none".
        attention_hidden_units, attention_dropout: of the target attention.
        embedding_regularizer, net_regularizer: as FuxiCTR's.
    """

    def __init__(
        self,
        feature_map,
        model_id="FiBiNET",
        gpu=-1,
        learning_rate=1e-3,
        embedding_dim=10,
        hidden_units=(),
        hidden_activations="ReLU",
        excitation_activation="ReLU",
        reduction_ratio=3,
        bilinear_type="field_interaction",
        history_pooling="mean",
        attention_hidden_units=(64,),
        attention_dropout=0.0,
        net_dropout=0.0,
        batch_norm=False,
        embedding_regularizer=None,
        net_regularizer=None,
        **kwargs,
    ):
        if history_pooling not in HISTORY_POOLINGS:
            raise UserError(f"history_pooling is {history_pooling!r}, expected one of {', '.join(HISTORY_POOLINGS)}")
        feature_map = _with_equal_dims(feature_map)
        super().__init__(
            feature_map,
            model_id=model_id,
            gpu=gpu,
            embedding_regularizer=embedding_regularizer,
            net_regularizer=net_regularizer,
            **kwargs,
        )
        self.history_pooling = history_pooling
        self.embedding_dim = embedding_dim
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        num_item_fields = len(self.item_features)
        num_fields = len(self.user_features) + num_item_fields * (1 if history_pooling == "none" else 2)
        if history_pooling == "target_attention":
            self.attention_layer = DINAttention(
                num_item_fields * embedding_dim, attention_hidden_units, dropout_rate=attention_dropout
            )
        self.senet_layer = SqueezeExcitation(num_fields, reduction_ratio, excitation_activation)
        self.bilinear_interaction1 = BilinearInteraction(num_fields, embedding_dim, bilinear_type)
        self.bilinear_interaction2 = BilinearInteraction(num_fields, embedding_dim, bilinear_type)
        self.lr_layer = LinearPart(feature_map)
        self.dnn = MLP_Block(
            input_dim=num_fields * (num_fields - 1) * embedding_dim,
            output_dim=1,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            output_activation=None,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.compile(kwargs.get("optimizer", "adam"), kwargs.get("loss", "binary_crossentropy"), learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features.

        Returns:
            {"y_pred": float [B, 1]}.
        """
        batch = self.read_batch(inputs)
        fields = self.fields(batch)
        interactions = torch.cat(
            [self.bilinear_interaction1(fields), self.bilinear_interaction2(self.senet_layer(fields))], dim=1
        )
        logit = self.lr_layer(batch.target_columns()) + self.dnn(interactions)
        return {"y_pred": self.output_activation(logit.float())}

    def fields(self, batch: Inputs) -> Tensor:
        """User and target fields in the feature map's order, then the pooled history's: float [B, F, D]."""
        embedded = self.embed(self.embedding_layer, batch.items)
        items = torch.cat([embedded[name] for name in self.item_features], dim=-1)
        target = items.index_select(0, batch.target)
        per_field = dict(zip(self.item_features, target.split(self.embedding_dim, dim=-1), strict=True))
        per_field.update(self.embed(self.embedding_layer, batch.user))
        fields = [per_field[name] for name in self.feature_map.features if name in per_field]
        if self.history_pooling == "mean":
            fields.append(mean_pooling(items, batch.history, batch.mask, batch.padding_row))
        elif self.history_pooling == "target_attention":
            fields.append(self.attention_layer(target, items, batch.history, batch.mask))
        return torch.cat(fields, dim=-1).view(len(target), -1, self.embedding_dim)


def _with_equal_dims(feature_map):
    """A copy whose fields all take the model's embedding_dim: bilinear interactions need equal widths."""
    feature_map = copy.deepcopy(feature_map)
    for spec in feature_map.features.values():
        spec.pop("embedding_dim", None)
    return feature_map

"""FiBiNET: feature importance and bilinear feature interactions (Huang et al., RecSys 2019).

SENET re-weights the fields; both the fields and the re-weighted fields interact bilinearly in all pairs; an MLP reads
the interactions, and a linear part is added.

With `history_pooling: none` and no embedding field this is FuxiCTR's FiBiNET: same weight names, same outputs.
"""

import torch
from fuxictr.pytorch.layers import MLP_Block, SqueezeExcitation
from torch import Tensor

from model_zoo.fields import FieldModel
from model_zoo.layers import BilinearInteraction, LinearPart


class FiBiNET(FieldModel):
    """FiBiNET over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the MLP.
        excitation_activation: of SENET, "ReLU" or "Sigmoid".
        reduction_ratio: of SENET.
        bilinear_type: "field_all", "field_each" or "field_interaction".
        kwargs: what FieldModel takes.
    """

    def __init__(
        self,
        feature_map,
        model_id="FiBiNET",
        learning_rate=1e-3,
        hidden_units=(),
        hidden_activations="ReLU",
        excitation_activation="ReLU",
        reduction_ratio=3,
        bilinear_type="field_interaction",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, model_id=model_id, **kwargs)
        num_fields, dim = self.num_fields, self.embedding_dim
        self.senet_layer = SqueezeExcitation(num_fields, reduction_ratio, excitation_activation)
        self.bilinear_interaction1 = BilinearInteraction(num_fields, dim, bilinear_type)
        self.bilinear_interaction2 = BilinearInteraction(num_fields, dim, bilinear_type)
        self.lr_layer = LinearPart(feature_map)
        self.dnn = MLP_Block(
            input_dim=num_fields * (num_fields - 1) * dim,
            output_dim=1,
            hidden_units=list(hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.finish(learning_rate, **kwargs)

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

"""DCNv2: a cross network with full matrices beside an MLP (Wang et al., WWW 2021), the paper's parallel structure."""

import torch
from fuxictr.pytorch.layers import CrossNetV2, MLP_Block
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from model_zoo.fields import FieldModel


class DCNv2(FieldModel):
    """Cross network and MLP side by side over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_cross_layers: of the cross network.
        parallel_dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        model_structure: FuxiCTR's; only "parallel" is there.
        kwargs: what FieldModel takes.

    Raises:
        UserError: another model_structure.
    """

    def __init__(
        self,
        feature_map,
        model_id="DCNv2",
        learning_rate=1e-3,
        num_cross_layers=3,
        parallel_dnn_hidden_units=(64, 64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        model_structure="parallel",
        **kwargs,
    ):
        if model_structure != "parallel":
            raise UserError(f"DCNv2: model_structure is {model_structure!r}, expected parallel")
        super().__init__(feature_map, model_id=model_id, **kwargs)
        input_dim = self.num_fields * self.embedding_dim
        self.crossnet = CrossNetV2(input_dim, num_cross_layers)
        self.parallel_dnn = MLP_Block(
            input_dim=input_dim,
            hidden_units=list(parallel_dnn_hidden_units),
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.fc = nn.Linear(input_dim + parallel_dnn_hidden_units[-1], 1)
        self.finish(learning_rate, **kwargs)

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features.

        Returns:
            {"y_pred": float [B, 1]}.
        """
        features = self.fields(self.read_batch(inputs)).flatten(1)
        logit = self.fc(torch.cat([self.crossnet(features), self.parallel_dnn(features)], dim=-1))
        return {"y_pred": self.output_activation(logit.float())}

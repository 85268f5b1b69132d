"""GDCN: a cross network whose layers are gated, then an MLP (Wang et al., CIKM 2023), the paper's stacked structure.

The gate lets a layer pass on only the crosses that help, so that more layers do not add noise.
"""

import torch
from torch import Tensor, nn

from .base import Inputs
from .fields import FieldModel
from .layers import logit_mlp


class GDCN(FieldModel):
    """Gated cross network, then an MLP, over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_cross_layers: of the cross network.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what FieldModel takes.
    """

    def __init__(
        self,
        feature_map,
        num_cross_layers=3,
        dnn_hidden_units=(),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        input_dim = self.num_fields * self.embedding_dim
        self.cross_net = nn.ModuleList(GatedCrossLayer(input_dim) for _ in range(num_cross_layers))
        self.dnn = logit_mlp(input_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """An MLP reads what the cross network makes of the fields."""
        crossed = features = fields.flatten(1)
        for layer in self.cross_net:
            crossed = layer(features, crossed)
        return self.dnn(crossed)


class GatedCrossLayer(nn.Module):
    """x0 * (W_c x + b) * sigmoid(W_g x) + x.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.cross = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim, bias=False)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """float [B, D] twice, the network's input and the last layer's output, to float [B, D]."""
        return first * self.cross(x) * torch.sigmoid(self.gate(x)) + x

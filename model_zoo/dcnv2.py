"""DCNv2: a cross network with full matrices and MLPs (Wang et al., WWW 2021), in FuxiCTR's four structures."""

from typing import Literal, get_args

import torch
from fuxictr.pytorch.layers import CrossNetMix, CrossNetV2, MLP_Block
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .base import Inputs
from .fields import FieldModel
from .layers import last_width

ModelStructure = Literal["crossnet_only", "stacked", "parallel", "stacked_parallel"]
MODEL_STRUCTURES = get_args(ModelStructure)


class DCNv2(FieldModel):
    """A cross network over user, target and history fields, with an MLP beside it, behind it, or both.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        model_structure: "crossnet_only", "stacked" (an MLP reads the cross network), "parallel" (an MLP beside it) or
            "stacked_parallel".
        use_low_rank_mixture: the cross network of DCN-Mix, whose matrices are a mixture of low-rank ones.
        low_rank, num_experts: of that mixture.
        num_cross_layers: of the cross network.
        stacked_dnn_hidden_units, parallel_dnn_hidden_units: of the MLPs.
        dnn_activations, net_dropout, batch_norm: of both.
        kwargs: what FieldModel takes.

    Raises:
        UserError: model_structure is none of these, or its MLP has no units.
    """

    def __init__(
        self,
        feature_map,
        model_structure: ModelStructure = "parallel",
        use_low_rank_mixture=False,
        low_rank=32,
        num_experts=4,
        stacked_dnn_hidden_units=(),
        parallel_dnn_hidden_units=(),
        dnn_activations="ReLU",
        num_cross_layers=3,
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        if model_structure not in MODEL_STRUCTURES:
            raise UserError(f"model_structure is {model_structure!r}, expected one of {', '.join(MODEL_STRUCTURES)}")
        super().__init__(feature_map, **kwargs)
        input_dim = self.num_fields * self.embedding_dim
        if use_low_rank_mixture:
            self.crossnet = CrossNetMix(input_dim, num_cross_layers, low_rank=low_rank, num_experts=num_experts)
        else:
            self.crossnet = CrossNetV2(input_dim, num_cross_layers)
        mlp = {"hidden_activations": dnn_activations, "dropout_rates": net_dropout, "batch_norm": batch_norm}
        self.stacked_dnn = self.parallel_dnn = None
        output_dim = input_dim
        if model_structure in ("stacked", "stacked_parallel"):
            output_dim = last_width("stacked_dnn_hidden_units", stacked_dnn_hidden_units)
            self.stacked_dnn = MLP_Block(input_dim, list(stacked_dnn_hidden_units), **mlp)
        if model_structure in ("parallel", "stacked_parallel"):
            output_dim += last_width("parallel_dnn_hidden_units", parallel_dnn_hidden_units)
            self.parallel_dnn = MLP_Block(input_dim, list(parallel_dnn_hidden_units), **mlp)
        self.fc = nn.Linear(output_dim, 1)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """A linear layer reads what cross network and MLPs make of the fields."""
        features = fields.flatten(1)
        output = self.crossnet(features).view_as(features)  # FuxiCTR's mixture gives [D] of one row
        if self.stacked_dnn is not None:
            output = self.stacked_dnn(output)
        if self.parallel_dnn is not None:
            output = torch.cat([output, self.parallel_dnn(features)], dim=-1)
        return self.fc(output)

"""DeepFM: a factorization machine and an MLP on the same fields (Guo et al., IJCAI 2017)."""

from fuxictr.pytorch.layers import InnerProductInteraction
from torch import Tensor

from .base import Inputs
from .fields import FieldModel
from .layers import LinearPart, logit_mlp


class DeepFM(FieldModel):
    """FM plus MLP over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what FieldModel takes.
    """

    def __init__(
        self,
        feature_map,
        hidden_units=(64, 64, 64),
        hidden_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.lr_layer = LinearPart(feature_map, self.field_features)
        self.fm_layer = InnerProductInteraction(self.num_fields, output="product_sum")
        self.mlp = logit_mlp(
            self.num_fields * self.embedding_dim, hidden_units, hidden_activations, net_dropout, batch_norm
        )

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """Linear part, FM and MLP, added up."""
        return self.lr_layer(batch.target_columns()) + self.fm_layer(fields) + self.mlp(fields.flatten(1))

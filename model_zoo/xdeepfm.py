"""xDeepFM: a compressed interaction network beside an MLP (Lian et al., KDD 2018)."""

from fuxictr.pytorch.layers import CompressedInteractionNet
from torch import Tensor

from .base import Inputs
from .fields import FieldModel
from .layers import LinearPart, logit_mlp


class xDeepFM(FieldModel):
    """CIN, MLP and linear part over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        cin_hidden_units: feature maps of each CIN layer.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP; no units, no MLP.
        kwargs: what FieldModel takes.
    """

    def __init__(
        self,
        feature_map,
        cin_hidden_units=(16, 16, 16),
        dnn_hidden_units=(64, 64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.lr_layer = LinearPart(feature_map, self.field_features)
        self.cin = CompressedInteractionNet(self.num_fields, list(cin_hidden_units), output_dim=1)
        self.dnn = None
        if dnn_hidden_units:
            self.dnn = logit_mlp(
                self.num_fields * self.embedding_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
            )

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """Linear part, CIN and, where there is one, MLP, added up."""
        logit = self.lr_layer(batch.target_columns()) + self.cin(fields)
        if self.dnn is not None:
            logit = logit + self.dnn(fields.flatten(1))
        return logit

"""FM: factorization machine (Rendle, ICDM 2010).

The inner products of all pairs of fields, history fields included, and a linear part.
"""

import torch
from fuxictr.pytorch.layers import InnerProductInteraction
from torch import Tensor, nn

from .base import Inputs, with_regularizer
from .fields import FieldModel
from .layers import LinearPart


class FM(FieldModel):
    """A factorization machine over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        regularizer: of all weights, in place of embedding_regularizer and net_regularizer.
        kwargs: what FieldModel takes.
    """

    def __init__(self, feature_map, regularizer=None, **kwargs):
        super().__init__(feature_map, **with_regularizer(regularizer, kwargs))
        self.bias = nn.Parameter(torch.zeros(1))
        self.lr_layer = LinearPart(feature_map, self.field_features)
        self.fm_layer = InnerProductInteraction(self.num_fields, output="product_sum")

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """The bias, the linear part and the products of all pairs, added up."""
        return self.bias + self.lr_layer(batch.target_columns()) + self.fm_layer(fields)

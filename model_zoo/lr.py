"""LR: logistic regression, the floor under every other model.

One weight per feature value of the row and its target, and one per feature value of a history item, averaged over
the history. An embedding field has one weight per dimension. Nothing interacts.
"""

import torch
from torch import Tensor, nn

from .base import Inputs, MultimodalModel, with_regularizer
from .layers import LinearPart, mean_pooling


class LR(MultimodalModel):
    """A linear part for the target and one for the history.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        regularizer: of all weights, in place of embedding_regularizer and net_regularizer.
        kwargs: what MultimodalModel takes.
    """

    def __init__(self, feature_map, regularizer=None, **kwargs):
        super().__init__(feature_map, **with_regularizer(regularizer, kwargs))
        self.bias = nn.Parameter(torch.zeros(1))
        self.lr_layer = LinearPart(feature_map)
        self.history_layer = LinearPart(feature_map, self.vector_features) if self.vector_features else None

    def compute_logit(self, batch: Inputs) -> Tensor:
        """The bias, the target's weights and the mean of the history's, added up."""
        logit = self.bias + self.lr_layer(batch.target_columns())
        if self.history_layer is not None:
            of_items = self.history_layer(batch.items)
            logit = logit + mean_pooling(of_items, batch.history, batch.mask, batch.padding_row)
        return logit

"""LR: logistic regression, the floor under every other model.

One weight per feature value of the row and its target, and one per feature value of a history item, averaged over
the history. An embedding field has one weight per dimension. Nothing interacts.
"""

import torch
from torch import Tensor, nn

from model_zoo.base import MultimodalModel
from model_zoo.layers import LinearPart, mean_pooling


class LR(MultimodalModel):
    """A linear part for the target and one for the history.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        kwargs: what MultimodalModel takes.
    """

    def __init__(self, feature_map, model_id="LR", learning_rate=1e-3, **kwargs):
        super().__init__(feature_map, model_id=model_id, **kwargs)
        self.bias = nn.Parameter(torch.zeros(1))
        self.lr_layer = LinearPart(feature_map)
        self.history_layer = LinearPart(feature_map, [*self.item_features, *self.level_features])
        self.finish(learning_rate, **kwargs)

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities.

        Args:
            inputs: an IndexBatch or the challenge's triple.

        Returns:
            {"y_pred": float [B, 1]}.
        """
        batch = self.read_batch(inputs)
        of_items = self.history_layer(batch.items)
        of_history = mean_pooling(of_items, batch.history, batch.mask, batch.padding_row)
        logit = self.bias + self.lr_layer(batch.target_columns()) + of_history
        return {"y_pred": self.output_activation(logit.float())}

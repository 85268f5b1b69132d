"""DIN, the organisers' baseline (Deep Interest Network, Zhou et al., KDD 2018).

Each history item is weighted by its relevance for the target, the weighted sum is the user's interest, and an MLP
reads the row's features, the target and that interest. The defaults are FuxiCTR's; the challenge's sizes are in the
config.
"""

import torch
from torch import Tensor

from .base import Inputs
from .history import HistoryModel
from .layers import DINAttention, logit_mlp


class DIN(HistoryModel):
    """Target attention over the history, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        attention_hidden_units, attention_hidden_activations, attention_output_activation, attention_dropout: of the
            MLP that scores a history item.
        din_use_softmax: normalise the scores over the history.
        kwargs: what HistoryModel takes.
    """

    def __init__(
        self,
        feature_map,
        dnn_hidden_units=(512, 128, 64),
        dnn_activations="ReLU",
        attention_hidden_units=(64,),
        attention_hidden_activations="Dice",
        attention_output_activation=None,
        attention_dropout=0.0,
        din_use_softmax=False,
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.attention_layers = DINAttention(
            self.item_dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            output_activation=attention_output_activation,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.dnn = logit_mlp(
            self.row_dim + 2 * self.item_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target and the history as the target weighs it."""
        pooled = self.attention_layers(target, items, batch.history, batch.mask)
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target, pooled], dim=-1))

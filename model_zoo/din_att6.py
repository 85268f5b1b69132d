"""DIN_att6, third prize of the challenge: DIN and cross attention over a history whose items carry their levels.

Two layers in which the target attends to the history stand beside DIN's attention; the user's own embedding and a
deeper MLP are the rest. Levels in the history are what lifts it to 0.98: `history_levels` is on unless the config
says otherwise.
"""

import torch
from torch import Tensor

from mm_fibinet.errors import UserError

from .base import Inputs
from .cross_attention import CrossAttention, SharedNormLayer
from .history import HistoryModel
from .layers import DINAttention, logit_mlp


class DIN_att6(HistoryModel):
    """DIN's and cross attention over the history, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        attention_hidden_units, attention_hidden_activations, attention_output_activation: of DIN's attention.
        attention_dropout: of both attentions.
        din_use_softmax: normalise DIN's scores over the history.
        num_layers: of the cross attention.
        if_use_self_attn: published, and off in every published config; not supported.
        history_levels: the items' vectors carry both levels.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: the item's width does not divide into 4 heads, or self attention is asked for.
    """

    reads_alone = ("attention_dropout",)  # of the cross attention, too

    def __init__(
        self,
        feature_map,
        embedding_dim=64,
        dnn_hidden_units=(512, 128, 64),
        dnn_activations="ReLU",
        attention_hidden_units=(64,),
        attention_hidden_activations="Dice",
        attention_output_activation=None,
        attention_dropout=0.0,
        din_use_softmax=False,
        net_dropout=0.0,
        batch_norm=False,
        num_layers=2,
        if_use_self_attn=False,
        history_levels=True,
        **kwargs,
    ):
        super().__init__(feature_map, embedding_dim=embedding_dim, history_levels=history_levels, **kwargs)
        if if_use_self_attn:
            raise UserError("if_use_self_attn is true, which DIN_att6 does not support; set it to false")
        self.attention_layers = DINAttention(
            self.item_dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            output_activation=attention_output_activation,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.target_attention = CrossAttention(SharedNormLayer, self.item_dim, num_layers, attention_dropout)
        self.dnn = logit_mlp(
            self.row_dim + 3 * self.item_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target and what both attentions make of the history."""
        pooled = self.attention_layers(target, items, batch.history, batch.mask)
        crossed = self.target_attention(target, items, batch.history, batch.mask)
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target, pooled, crossed], dim=-1))

"""DIN_att_emb_rms, of the best published validation AUC of the challenge: DIN, cross attention and a pairwise loss.

As in DIN_att6, history items carry their levels, and layers in which the target attends to the history stand beside
DIN's attention; here each layer has three norms of its own. The loss asks for the order of clicks and no clicks of a
batch too, which is what AUC counts.
"""

import torch
from torch import Tensor

from mm_fibinet import losses
from mm_fibinet.errors import UserError

from .base import Inputs
from .cross_attention import CrossAttention, NormedLayer
from .history import HistoryModel
from .layers import DINAttention, logit_mlp
from .lookup import look_up

POSITIVE_WEIGHT = 0.4


class DIN_att_emb_rms(HistoryModel):
    """DIN's and cross attention over the history, then an MLP; pointwise and pairwise loss.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field without an `embedding_dim` of its own.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        attention_hidden_units, attention_hidden_activations, attention_output_activation: of DIN's attention.
        attention_dropout: of both attentions.
        din_use_softmax: normalise DIN's scores over the history.
        num_layers: of the cross attention.
        alpha: the pointwise loss's share; the rest is the pairwise loss's.
        history_levels: the items' vectors carry both levels.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: alpha is no share.
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
        num_layers=3,
        alpha=0.9,
        history_levels=True,
        **kwargs,
    ):
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}, expected the pointwise loss's share of the loss, from 0 to 1")
        super().__init__(feature_map, embedding_dim=embedding_dim, history_levels=history_levels, **kwargs)
        self.alpha = alpha
        self.attention_layers = DINAttention(
            self.item_dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            output_activation=attention_output_activation,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.cross_attention_layers = CrossAttention(NormedLayer, self.item_dim, num_layers, attention_dropout)
        self.dnn = logit_mlp(
            self.row_dim + 3 * self.item_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities and the logits they come from.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features (no history).

        Returns:
            {"y_pred": float [B, 1], "logit": float [B, 1]}.
        """
        batch = self.read_batch(inputs)
        logit = self.compute_logit(batch, *self.logit_inputs(batch)).float()
        return {"y_pred": self.output_activation(logit), "logit": logit}

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target and what both attentions make of the history."""
        pooled = self.attention_layers(target, items, batch.history, batch.mask)
        crossed = self.cross_attention_layers(target, look_up(items, batch.history), batch.mask)
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target, pooled, crossed], dim=-1))

    def add_loss(self, return_dict: dict[str, Tensor], y_true: Tensor) -> Tensor:
        """alpha * weighted cross entropy + (1 - alpha) * pairwise loss, unless the config has a mixture of its own.

        Args:
            return_dict: of `forward`.
            y_true: float [B, 1], 1 = click.
        """
        if isinstance(self.loss_fn, losses.MixedLoss):
            return super().add_loss(return_dict, y_true)
        label = y_true.flatten()
        pointwise = losses.weighted_bce(return_dict["y_pred"].flatten(), label, POSITIVE_WEIGHT)
        pairwise = losses.pairwise(return_dict["logit"].flatten(), label)
        return self.alpha * pointwise + (1 - self.alpha) * pairwise

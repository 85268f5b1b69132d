"""Transformer_DCN, first in the challenge: a transformer reads the history, a cross network the rest.

A token is a history item beside the target. The last tokens' outputs and the maximum over all go, with the row's
features and the target, through DCNv2's cross network and an MLP side by side.

The published model gives its mask to the encoder the wrong way round: real items are ignored and padding is attended
to (a row without padding has its last position opened). That is the default, as every default here is the original's,
so that its config and its weights make the published model; `mask_polarity: correct`, which the shipped experiments
set, lets the history in.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import CrossNetV2, MLP_Block
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .base import Inputs
from .history import HistoryModel
from .layers import last_width, require_divisor
from .lookup import look_up

MaskPolarity = Literal["correct", "published"]
MASK_POLARITIES = get_args(MaskPolarity)


class Transformer_DCN(HistoryModel):
    """A transformer over the history, then DCNv2.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_heads, transformer_layers, dim_feedforward, transformer_dropout: of the transformer.
        first_k_cols: the last so many tokens are kept one by one.
        concat_max_pool: the maximum over all tokens is kept too.
        dcn_cross_layers: of the cross network.
        dcn_hidden_units, net_dropout, batch_norm: of the MLP beside it.
        mlp_hidden_units: of the MLP that reads both.
        hidden_activations: of both MLPs.
        mask_polarity: "published" (real items are ignored) or "correct".
        kwargs: what HistoryModel takes.

    Raises:
        UserError: mask_polarity is neither, the tokens' width does not divide into num_heads, or dcn_hidden_units is
            empty.
    """

    def __init__(
        self,
        feature_map,
        learning_rate=5e-4,
        embedding_dim=64,
        num_heads=1,
        transformer_layers=2,
        dim_feedforward=256,
        transformer_dropout=0.2,
        first_k_cols=16,
        concat_max_pool=True,
        dcn_cross_layers=3,
        dcn_hidden_units=(1024, 512, 256),
        mlp_hidden_units=(64, 32),
        hidden_activations="ReLU",
        net_dropout=0.2,
        batch_norm=False,
        mask_polarity: MaskPolarity = "published",
        **kwargs,
    ):
        if mask_polarity not in MASK_POLARITIES:
            raise UserError(f"mask_polarity is {mask_polarity!r}, expected one of {', '.join(MASK_POLARITIES)}")
        super().__init__(feature_map, learning_rate=learning_rate, embedding_dim=embedding_dim, **kwargs)
        self.mask_polarity = mask_polarity
        token_dim = 2 * self.item_dim
        require_divisor("num_heads", num_heads, tokens=token_dim)
        dnn_dim = last_width("dcn_hidden_units", dcn_hidden_units)
        self.transformer_encoder = HistoryTransformer(
            token_dim,
            num_heads,
            transformer_layers,
            dim_feedforward,
            transformer_dropout,
            first_k_cols,
            concat_max_pool,
        )
        input_dim = self.row_dim + self.item_dim + (first_k_cols + int(concat_max_pool)) * token_dim
        self.crossnet = CrossNetV2(input_dim, dcn_cross_layers)
        self.parallel_dnn = MLP_Block(
            input_dim=input_dim,
            hidden_units=list(dcn_hidden_units),
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.mlp = MLP_Block(
            input_dim=input_dim + dnn_dim,
            output_dim=1,
            hidden_units=list(mlp_hidden_units),
            hidden_activations=hidden_activations,
        )

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """Cross network and MLP read the row, the target and the history's summary; one more MLP reads both."""
        history = look_up(items, batch.history).expand(target.shape[0], -1, -1)  # where all rows have one
        tokens = torch.cat([history, target.unsqueeze(1).expand_as(history)], dim=-1)
        visible = (batch.mask > 0).expand(target.shape[0], -1)
        if self.mask_polarity == "published":
            visible = open_last(~visible)
        summary = self.transformer_encoder(tokens, visible)
        features = torch.cat([self.row_vectors(batch, items, target), target, summary], dim=-1)
        return self.mlp(torch.cat([self.crossnet(features), self.parallel_dnn(features)], dim=-1))


class HistoryTransformer(nn.Module):
    """A transformer encoder over the visible tokens: its last outputs one by one, and their maximum.

    Args:
        token_dim: T.
        num_heads, num_layers, dim_feedforward, dropout: of nn.TransformerEncoder.
        num_last: K, last positions kept.
        max_pool: keep the maximum over the positions too.
    """

    def __init__(
        self,
        token_dim: int,
        num_heads: int,
        num_layers: int,
        dim_feedforward: int,
        dropout: float,
        num_last: int,
        max_pool: bool,
    ):
        super().__init__()
        layer = nn.TransformerEncoderLayer(token_dim, num_heads, dim_feedforward, dropout, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.out_linear = nn.Linear(token_dim, token_dim) if max_pool else None
        self.num_last = num_last

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Encode; what is not visible is not attended to, and its outputs are zero.

        Args:
            tokens: float [B, L, T].
            visible: bool [B, L].

        Returns:
            float [B, K * T], or [B, (K + 1) * T] with the maximum.
        """
        if not tokens.shape[1]:  # no sequence at all, which torch's encoder does not take
            tokens, visible = F.pad(tokens, (0, 0, 1, 0)), F.pad(visible, (1, 0))
        hidden = self.transformer_encoder(tokens, src_key_padding_mask=~open_last(visible))  # no key may mean NaN
        hidden_there = visible.unsqueeze(-1)
        last = hidden.masked_fill(~hidden_there, 0.0)[:, -self.num_last :].flatten(1)
        last = F.pad(last, (self.num_last * tokens.shape[2] - last.shape[1], 0))  # histories shorter than K
        if self.out_linear is None:
            return last
        pooled = hidden.masked_fill(~hidden_there, -torch.inf).amax(dim=1)
        pooled = pooled.masked_fill(~visible.any(dim=1, keepdim=True), 0.0)
        return torch.cat([last, self.out_linear(pooled)], dim=-1)


def open_last(visible: Tensor) -> Tensor:
    """bool [B, L] with the last position made visible in rows that have none."""
    last = torch.arange(visible.shape[1], device=visible.device) == visible.shape[1] - 1
    return visible | (last & ~visible.any(dim=1, keepdim=True))

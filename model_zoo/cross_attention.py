"""Cross attention: layers in which the target attends to the history, DIN_att6's and DIN_att_emb_rms's.

As in QIN, one query a row meets all keys, so the keys' and values' matrices are applied to the query and to the
weighted sum, not to every item. What the keys' biases add is the same for all positions, and softmax cancels it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .layers import masked_softmax
from .lookup import look_up

NUM_HEADS = 4


class TargetAttention(nn.Module):
    """Multi-head attention of one query a row, with linear maps before those of nn.MultiheadAttention.

    Args:
        dim: W.
        dropout: on the attention weights.
        norm: held for the layer around it, as the published weights have it.

    Raises:
        UserError: W does not divide into the heads.
    """

    def __init__(self, dim: int, dropout: float, norm: nn.Module):
        super().__init__()
        if dim % NUM_HEADS:
            raise UserError(
                f"the items' vectors are {dim} wide, expected a multiple of {NUM_HEADS}; choose another embedding_dim"
            )
        self.query_proj = nn.Linear(dim, dim)
        self.key_proj = nn.Linear(dim, dim)
        self.value_proj = nn.Linear(dim, dim)
        self.multihead_attn = nn.MultiheadAttention(dim, NUM_HEADS, dropout=dropout)
        self.norm = norm
        self.key_proj.bias.requires_grad_(False)  # softmax cancels it

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Attend; a row without history attends to zeros.

        Args:
            target: float [B, W].
            history: float [B, L, W], or [1, L, W] where all rows have one history.
            mask: [B, L] or [1, L], non-zero = a real history item.

        Returns:
            float [B, W].
        """
        inner = self.multihead_attn
        dim, head_dim = inner.embed_dim, inner.head_dim
        w_query, w_key, w_value = inner.in_proj_weight.chunk(3)
        b_query, _, b_value = inner.in_proj_bias.chunk(3)
        w_key = (w_key @ self.key_proj.weight).view(NUM_HEADS, head_dim, dim)
        b_value = F.linear(self.value_proj.bias, w_value, b_value).view(NUM_HEADS, head_dim)
        w_value = (w_value @ self.value_proj.weight).view(NUM_HEADS, head_dim, dim)

        query = F.linear(self.query_proj(target), w_query, b_query) * head_dim**-0.5
        query = torch.einsum("bhd,hdw->bhw", query.view(-1, NUM_HEADS, head_dim), w_key)
        weights = masked_softmax(query @ history.transpose(1, 2), mask.unsqueeze(1))
        weights = F.dropout(weights, inner.dropout, self.training)
        pooled = torch.einsum("bhw,hdw->bhd", weights @ history, w_value)
        return inner.out_proj((pooled + weights.sum(dim=-1, keepdim=True) * b_value).flatten(1))


class CrossAttention(nn.Module):
    """Layers of one kind, each starting from the last one's output.

    Args:
        layer: NormedLayer or SharedNormLayer.
        dim: W, the items' width.
        num_layers: how many.
        dropout: on attention weights, residuals and the feed-forward part.
    """

    def __init__(self, layer: Callable[[int, float], nn.Module], dim: int, num_layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(layer(dim, dropout) for _ in range(num_layers))

    def forward(self, target: Tensor, *history: Tensor) -> Tensor:
        """float [B, W] to the same shape; `history` is what a layer takes beside it."""
        for layer in self.layers:
            target = layer(target, *history)
        return target


class CrossAttentionLayer(nn.Module):
    """What a layer has: attention, its norm, and a feed-forward network; how they are joined is a subclass's.

    Args:
        dim: W.
        dropout: see CrossAttention.
        held_norm: of TargetAttention.
        attn_norm: of the layer.
    """

    def __init__(self, dim: int, dropout: float, held_norm: nn.Module, attn_norm: nn.Module):
        super().__init__()
        self.cross_attn = TargetAttention(dim, dropout, norm=held_norm)
        self.attn_norm = attn_norm
        self.ffn = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)


class RMSNorm(nn.RMSNorm):
    """torch's, in float32 under autocast too: its epsilon is the input type's, which in bfloat16 is 0.008."""

    def forward(self, values: Tensor) -> Tensor:
        """float [..., W] to float32 of the same shape."""
        return super().forward(values.float())


class NormedLayer(CrossAttentionLayer):
    """DIN_att_emb_rms's: RMSNorm after the attention and after each residual.

    Args:
        dim, dropout: see CrossAttention.
    """

    def __init__(self, dim: int, dropout: float):
        super().__init__(dim, dropout, held_norm=RMSNorm(dim), attn_norm=RMSNorm(dim))
        self.ffn_norm = RMSNorm(dim)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """As TargetAttention's."""
        attended = self.cross_attn.norm(self.cross_attn(target, history, mask))
        attended = self.attn_norm(target + self.dropout(attended))
        return self.ffn_norm(attended + self.dropout(self.ffn(attended)))


class SharedNormLayer(CrossAttentionLayer):
    """DIN_att6's: one RMSNorm serves the history and the first residual.

    Args:
        dim, dropout: see CrossAttention.
    """

    def __init__(self, dim: int, dropout: float):
        unused = nn.LayerNorm(dim).requires_grad_(False)  # in published weights, in no formula
        super().__init__(dim, dropout, held_norm=unused, attn_norm=nn.RMSNorm(dim, eps=1e-6))

    def forward(self, target: Tensor, items: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """As TargetAttention's, of history items that are normed once each.

        Args:
            target: float [B, W].
            items: float [M, W].
            positions: integer [B, L], each history position's row in `items`.
            mask: [B, L], non-zero = a real history item.
        """
        history = look_up(self.attn_norm(items), positions)
        attended = self.attn_norm(target + self.dropout(self.cross_attn(target, history, mask)))
        return attended + self.dropout(self.ffn(attended))

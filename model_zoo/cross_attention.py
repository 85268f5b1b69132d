"""Multi-head attention of the target over the history, as DIN_att6 and DIN_att_emb_rms have it; the latter's layers.

As in QIN, one query a row meets all keys, so the keys' and values' matrices are applied to the query and to the
weighted sum, not to every item. What the keys' biases add is the same for all positions, and softmax cancels it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .layers import masked_softmax

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
            history: float [B, L, W].
            mask: [B, L], non-zero = a real history item.

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


class NormedCrossAttention(nn.Module):
    """Layers in which the target attends to the history, each starting from the last one's output.

    Args:
        dim: W, the items' width.
        num_layers: how many.
        dropout: on attention weights, residuals and the feed-forward part.
    """

    def __init__(self, dim: int, num_layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(NormedCrossAttentionLayer(dim, dropout) for _ in range(num_layers))

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Encode.

        Args:
            target: float [B, W].
            history: float [B, L, W].
            mask: [B, L], non-zero = a real history item.

        Returns:
            float [B, W].
        """
        for layer in self.layers:
            target = layer(target, history, mask)
        return target


class RMSNorm(nn.RMSNorm):
    """torch's, in float32 under autocast too: its epsilon is the input type's, which in bfloat16 is 0.008."""

    def forward(self, values: Tensor) -> Tensor:
        """float [..., W] to float32 of the same shape."""
        return super().forward(values.float())


class NormedCrossAttentionLayer(nn.Module):
    """Attention and feed-forward with residuals; RMSNorm after the attention and after each residual.

    Args:
        dim: W.
        dropout: see NormedCrossAttention.
    """

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.cross_attn = TargetAttention(dim, dropout, norm=RMSNorm(dim))
        self.attn_norm = RMSNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.ffn_norm = RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """As NormedCrossAttention's."""
        attended = self.cross_attn.norm(self.cross_attn(target, history, mask))
        attended = self.attn_norm(target + self.dropout(attended))
        return self.ffn_norm(attended + self.dropout(self.ffn(attended)))

"""QIN, second in the challenge: target attention without softmax, then quadratic layers.

The attention's weights are ReLU(q k), so a history item counts for what it is and not for its share. Nothing in it
needs a key or a value per item: one query meets all keys, so q (K h) is taken as (q K) h, and the values' matrix is
applied after the sum. That leaves two products with the history instead of two matrices over every item of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .history import HistoryModel
from .layers import dot_products, weighted_sum
from .lookup import look_up


class QIN(HistoryModel):
    """ReLU target attention over the history, then quadratic layers.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_layers: quadratic layers.
        num_row: linear maps that each of them sums.
        net_dropout, batch_norm: of the quadratic layers.
        kwargs: what HistoryModel takes.
    """

    def __init__(
        self,
        feature_map,
        num_layers=3,
        num_row=2,
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.attention_layers = ReLUTargetAttention(self.item_dim, 2 * self.item_dim)
        self.qnn = QuadraticNetwork(self.row_dim + 2 * self.item_dim, num_layers, num_row, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """Quadratic layers read the row, the target and the history as the target weighs it."""
        pooled = self.attention_layers(target, look_up(items, batch.history), batch.mask)
        return self.qnn(torch.cat([self.row_vectors(batch, items, target), target, pooled], dim=-1))


class ReLUTargetAttention(nn.Module):
    """Sum of the history's values, weighted by ReLU(q k / sqrt(A)), plus the target.

    Args:
        item_dim: W.
        attention_dim: A, the width of query, key and value.
    """

    def __init__(self, item_dim: int, attention_dim: int):
        super().__init__()
        self.scale = attention_dim**-0.5
        self.W_q = nn.Linear(item_dim, attention_dim, bias=False)
        self.W_k = nn.Linear(item_dim, attention_dim, bias=False)
        self.W_v = nn.Linear(item_dim, attention_dim, bias=False)
        self.W_o = nn.Linear(attention_dim, item_dim, bias=False)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """float [B, W], float [B, L, W] and a mask [B, L], non-zero = a real history item, to float [B, W].

        History and mask are [1, L, W] and [1, L] where all rows have one history.
        """
        query = self.W_q(target) @ self.W_k.weight * self.scale
        scores = dot_products(query, history)
        weights = F.relu(scores) * mask.to(scores.dtype)
        pooled = weighted_sum(weights, history)
        return self.W_o(self.W_v(pooled)) + target


class QuadraticNetwork(nn.Module):
    """Residual quadratic layers and a linear output.

    Args:
        input_dim: D.
        num_layers, num_row, net_dropout, batch_norm: as QIN's.
    """

    def __init__(self, input_dim: int, num_layers: int, num_row: int, net_dropout: float, batch_norm: bool):
        super().__init__()
        self.layer = nn.ModuleList(QuadraticLayer(input_dim, num_row, net_dropout) for _ in range(num_layers))
        self.norm = nn.ModuleList(nn.BatchNorm1d(input_dim) for _ in range(num_layers if batch_norm else 0))
        self.activation = nn.ModuleList(nn.PReLU() for _ in range(num_layers))
        self.dropout = nn.Dropout(net_dropout)
        self.fc = nn.Linear(input_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, D] to logits, float [B, 1]."""
        for i, layer in enumerate(self.layer):
            hidden = layer(x)
            if self.norm:
                hidden = self.norm[i](hidden)
            x = x + self.dropout(self.activation[i](hidden))
        return self.fc(x)


class QuadraticLayer(nn.Module):
    """x times the sum of `num_row` linear maps of x.

    Args:
        input_dim: D.
        num_row: R.
        dropout: on the maps.
    """

    def __init__(self, input_dim: int, num_row: int, dropout: float):
        super().__init__()
        self.num_row = num_row
        self.linear = nn.Sequential(nn.Linear(input_dim, input_dim * num_row), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """float [B, D] to float [B, D]."""
        return x * self.linear(x).view(x.shape[0], self.num_row, -1).sum(dim=1)

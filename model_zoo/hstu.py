"""HSTU as a ranker: the history as a sequence that ends in the target (Zhai et al., ICML 2024, arXiv 2402.17152).

A layer's attention is pointwise: SiLU of the scores in place of softmax, so that how much there is of an interest is
kept, and its output is gated. The paper interleaves items and actions; in click histories every action is the same, so
that a position is an item alone. Attention is causal: the history does not see the target, and the last layer is
computed for the target only.

What a layer reads first, linear maps of an item's vector, does not depend on its position: the first layer computes it
once an item.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .history import HistoryModel
from .layers import logit_mlp, require_divisor, require_numbers_to_norm
from .lookup import look_up


class HSTU(HistoryModel):
    """Pointwise attention over history and target, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        hidden_dim: D of a position.
        num_layers, num_heads: of the attention.
        max_distance: positions further apart share a bias.
        attention_dropout: on what a layer adds.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP on the row's features, the target and
            the target's position.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: num_heads does not divide hidden_dim, or hidden_dim is 1.
    """

    def __init__(
        self,
        feature_map,
        hidden_dim=64,
        num_layers=2,
        num_heads=2,
        max_distance=128,
        attention_dropout=0.0,
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        require_divisor("num_heads", num_heads, hidden_dim=hidden_dim)
        require_numbers_to_norm("hidden_dim", hidden_dim)
        self.position = nn.Linear(self.item_dim, hidden_dim)
        self.layers = nn.ModuleList(
            HSTULayer(hidden_dim, num_heads, max_distance, attention_dropout) for _ in range(num_layers)
        )
        self.dnn = logit_mlp(
            self.row_dim + self.item_dim + hidden_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target and the target's position after all layers."""
        summary = self.encode(items, target, batch.history, batch.mask > 0)
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target, summary], dim=-1))

    def encode(self, items: Tensor, target: Tensor, history: Tensor, real: Tensor) -> Tensor:
        """The target's position after all layers.

        Args:
            items: float [M, W].
            target: float [B, W].
            history: integer [B, L], rows of `items`.
            real: bool [B, L].

        Returns:
            float [B, D].
        """
        real = F.pad(real, (0, 1), value=True)
        items, target = self.position(items), self.position(target)
        first, *rest = self.layers
        maps = with_target(first.maps(items), first.maps(target), history)
        hidden = with_target(items, target, history)
        for layer, following in zip(self.layers, [*rest, None], strict=True):
            hidden = layer(hidden, maps, real, last_only=following is None)
            if following is not None:
                maps = following.maps(hidden)
        return hidden[:, -1]


def with_target(items: Tensor, target: Tensor, history: Tensor) -> Tensor:
    """The history's rows of `items`, then the target's: float [M, D], [B, D] and integer [B, L] to [B, L + 1, D]."""
    return torch.cat([look_up(items, history), target.unsqueeze(1)], dim=1)


class HSTULayer(nn.Module):
    """U, V, Q, K = SiLU(linear(LN(X))); Y = linear(LN(SiLU(Q K^T + b) V / n) * U) + X.

    The paper's eq. 1-3, as summaries of it give them, with the LN of X and the n of its authors' code. n is the number
    of the row's real positions, where theirs is the padded length; b a learned number a head and a distance. The
    paper's bias by time is left out: the histories have no times.

    Args:
        dim: D.
        num_heads: H.
        max_distance: see HSTU.
        dropout: on Y before X is added.
    """

    def __init__(self, dim: int, num_heads: int, max_distance: int, dropout: float):
        super().__init__()
        self.num_heads, self.max_distance = num_heads, max_distance
        self.input_norm, self.output_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.input = nn.Linear(dim, 4 * dim)
        self.output = nn.Linear(dim, dim)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, max_distance + 1))
        self.dropout = nn.Dropout(dropout)

    def maps(self, hidden: Tensor) -> Tensor:
        """U, V, Q and K side by side: float [..., D] to float [..., 4 D]."""
        return F.silu(self.input(self.input_norm(hidden)))

    def forward(self, hidden: Tensor, maps: Tensor, real: Tensor, last_only: bool = False) -> Tensor:
        """Attend to the positions before and at one's own.

        Args:
            hidden: float [B, N, D].
            maps: float [B, N, 4 D], `maps` of it.
            real: bool [B, N]; the others are attended to by none.
            last_only: compute the last position alone.

        Returns:
            float [B, N, D] or [B, 1, D].
        """
        length = hidden.shape[1]
        first = length - 1 if last_only else 0
        gate, value, query, key = maps.chunk(4, dim=-1)
        gate, query, hidden = gate[:, first:], query[:, first:], hidden[:, first:]
        query, key, value = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        place = torch.arange(length, device=hidden.device)
        distance = place[first:, None] - place
        bias = self.distance_bias[:, distance.clamp(0, self.max_distance)]  # [H, N, N]
        seen = (distance >= 0) & real[:, None, None, :]
        weights = F.silu(query @ key.transpose(2, 3) + bias) * seen / real.sum(dim=1).view(-1, 1, 1, 1)
        attended = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return hidden + self.dropout(self.output(self.output_norm(attended) * gate))

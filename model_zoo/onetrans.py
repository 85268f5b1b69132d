"""OneTrans: history and features as tokens of one transformer (Zhang et al., WWW 2026, arXiv 2510.26104).

A history item is a token (S), and so is each part of what the row's features and the target's are split into (NS);
causal attention lets an NS token read the whole history and the NS tokens before it. S tokens share their weights, each
NS token has its own. As causal attention gathers what counts at the end, fewer of the last S tokens ask in each layer
(the pyramid): here from all down to none, for the last layer's are read by nobody.

Keys, values and queries of the first layer's S tokens are computed once an item. The paper's order by time is the
history's own; its cache of keys and values is for many candidates of one request.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .history import HistoryModel
from .layers import logit_mlp, require_divisor
from .lookup import look_up
from .token_linear import TokenLinear


class OneTrans(HistoryModel):
    """Transformer layers over history tokens and feature tokens, then an MLP over the feature tokens.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        hidden_dim: D of a token.
        num_layers, num_heads: of the transformer.
        num_tokens: T, NS tokens.
        ffn_ratio: a feed-forward network's hidden layer is so many times as wide as a token.
        transformer_dropout: on what attention and feed-forward networks add.
        max_len: positions of the history; how many of the last ones ask in a layer follows from it, and not from how
            far a batch is padded.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: num_heads does not divide hidden_dim.
    """

    def __init__(
        self,
        feature_map,
        hidden_dim=64,
        num_layers=2,
        num_heads=4,
        num_tokens=4,
        ffn_ratio=4,
        transformer_dropout=0.0,
        max_len=100,
        dnn_hidden_units=(64,),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        require_divisor("num_heads", num_heads, hidden_dim=hidden_dim)
        self.num_tokens = num_tokens
        self.max_len = max_len if self.content_search is None else min(max_len, self.content_search_len)
        self.item_token = nn.Linear(self.item_dim, hidden_dim)
        self.feature_tokens = nn.Linear(self.row_dim + self.item_dim, num_tokens * hidden_dim)
        self.layers = nn.ModuleList(
            OneTransLayer(hidden_dim, num_heads, num_tokens, ffn_ratio, transformer_dropout, left == 0)
            for left in reversed(range(num_layers))
        )
        self.norm = nn.RMSNorm(hidden_dim)
        self.dnn = logit_mlp(num_tokens * hidden_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the NS tokens after all layers."""
        features = torch.cat([self.row_vectors(batch, items, target), target], dim=-1)
        tokens = self.feature_tokens(features).unflatten(1, (self.num_tokens, -1))
        tokens = self.transform(self.item_token(items), batch.history, batch.mask > 0, tokens)
        return self.dnn(self.norm(tokens).flatten(1))

    def transform(self, items: Tensor, positions: Tensor, real: Tensor, tokens: Tensor) -> Tensor:
        """All layers.

        Args:
            items: float [M, D], each item's token.
            positions: integer [B, L], rows of `items`.
            real: bool [B, L].
            tokens: float [B, T, D], the NS tokens.

        Returns:
            float [B, T, D].
        """
        maps = look_up(self.layers[0].maps(items), positions)
        history = look_up(items, positions)
        for layer, asking in zip(self.layers, query_counts(self.max_len, len(self.layers)), strict=True):
            kept = min(asking, history.shape[1])
            if maps is None:
                maps = layer.maps(history)
            history, tokens = layer(history, maps, real, tokens, kept)
            real, maps = real[:, real.shape[1] - kept :], None
        return tokens


def query_counts(length: int, num_layers: int) -> list[int]:
    """How many of the last S tokens each layer asks for and keeps: from `length` down to 0, in equal steps."""
    return [length * left // num_layers for left in reversed(range(num_layers))]


class OneTransLayer(nn.Module):
    """Pre-norm causal attention and feed-forward networks with mixed weights (section 3.3).

    Args:
        dim: D.
        num_heads: H.
        num_tokens: T.
        ffn_ratio, dropout: see OneTrans.
        is_last: no S token asks, so that it has neither queries nor a feed-forward network for them.
    """

    def __init__(self, dim: int, num_heads: int, num_tokens: int, ffn_ratio: int, dropout: float, is_last: bool):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.history_maps = nn.Linear(dim, (2 if is_last else 3) * dim, bias=False)
        self.token_maps = TokenLinear(num_tokens, dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        hidden = ffn_ratio * dim
        self.history_ffn = None
        if not is_last:
            self.history_ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.token_ffn = nn.Sequential(
            TokenLinear(num_tokens, dim, hidden), nn.GELU(), TokenLinear(num_tokens, hidden, dim)
        )

    def maps(self, history: Tensor) -> Tensor:
        """Keys, values and, but in the last layer, queries side by side: float [..., D] to float [..., 3 D or 2 D]."""
        return self.history_maps(self.attention_norm(history))

    def forward(self, history: Tensor, maps: Tensor, real: Tensor, tokens: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Attend to what stands before, and at one's own place.

        Args:
            history: float [B, L, D], the S tokens.
            maps: `maps` of it.
            real: bool [B, L]; no other token attends to the rest.
            tokens: float [B, T, D], the NS tokens.
            kept: L', S tokens that ask and are kept, the last ones; 0 in the last layer.

        Returns:
            (float [B, L', D], float [B, T, D]).
        """
        dim, length = tokens.shape[2], history.shape[1]
        key, value, *query = maps.split(dim, dim=-1)
        token_key, token_value, token_query = self.token_maps(self.attention_norm(tokens)).split(dim, dim=-1)
        queries = torch.cat([*(part[:, length - kept :] for part in query), token_query], dim=1)
        keys, values = torch.cat([key, token_key], dim=1), torch.cat([value, token_value], dim=1)
        queries, keys, values = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        visible = _visible(real, kept, tokens.shape[1])
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        hidden = torch.cat([history[:, length - kept :], tokens], dim=1)
        hidden = hidden + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        normed = self.ffn_norm(hidden)
        made = [self.token_ffn(normed[:, kept:])]
        if self.history_ffn is not None:
            made.insert(0, self.history_ffn(normed[:, :kept]))
        hidden = hidden + self.dropout(torch.cat(made, dim=1))
        return hidden[:, :kept], hidden[:, kept:]


def _visible(real: Tensor, kept: int, num_tokens: int) -> Tensor:
    """Which keys a query sees: bool [B, 1, L' + T, L + T]; itself in any case, for no key would mean NaN."""
    place = torch.arange(real.shape[1] + num_tokens, device=real.device)
    query = place[real.shape[1] - kept :, None]
    there = F.pad(real, (0, num_tokens), value=True)[:, None, None, :]
    return ((query >= place) & there) | (query == place)

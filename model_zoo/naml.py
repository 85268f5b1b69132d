"""NAML: attention over an item's views, then over the history (Wu et al., IJCAI 2019, arXiv 1907.05576).

The paper's views of a news article are its title, body and categories; here each feature of an item is one: text,
image, tags, id. An item's vector is what attention over its views makes of them, a user's what attention over the items
of the history makes of those, and both attentions ask the same of everybody: items are read once each, whoever clicked
on them. The paper's score is the product of the two vectors; a row of ours has features of its own and items have a
popularity, so that an MLP of the row's features and the target is added.
"""

import torch
from torch import Tensor, nn

from .base import Inputs
from .history import HistoryModel
from .layers import logit_mlp, masked_softmax
from .lookup import look_up
from .modalities import require_modalities


class NAML(HistoryModel):
    """Attention over views and over the history; the product of user and item, plus an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items that must be there; all there are unless given. A column
            that the data set's entry does not name is read from item_info.
        view_dim: D of a view and of an item; that of NAML's public implementations unless given.
        query_dim: of both attentions' queries; likewise.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP; the dropout of the views too.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: there is no embedding column.
    """

    reads_alone = ("net_dropout",)  # of the views, too

    def __init__(
        self,
        feature_map,
        modality_features=(),
        view_dim=400,
        query_dim=200,
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        require_modalities("NAML", feature_map, modality_features, kwargs.get("similarity_only"))
        super().__init__(feature_map, **kwargs)
        self.views = nn.ModuleList(nn.Linear(width, view_dim) for width in self.feature_widths)
        self.dropout = nn.Dropout(net_dropout)
        self.view_attention = AdditiveAttention(view_dim, query_dim)
        self.history_attention = AdditiveAttention(view_dim, query_dim)
        self.dnn = logit_mlp(self.row_dim + view_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """The product of user and item, plus an MLP of the row and the item."""
        row = self.row_vectors(batch, items, target)
        items, target = self.encode(items), self.encode(target)
        user = self.history_attention.over_positions(items, batch.history, batch.mask)
        return (user * target).sum(dim=1, keepdim=True) + self.dnn(torch.cat([row, target], dim=-1))

    def encode(self, items: Tensor) -> Tensor:
        """Attention over the views: float [M, W] to float [M, D]."""
        parts = items.split(self.feature_widths, dim=-1)
        views = torch.stack([view(part).relu() for view, part in zip(self.views, parts, strict=True)], dim=1)
        return self.view_attention(self.dropout(views))


class AdditiveAttention(nn.Module):
    """sum_i softmax_i(q tanh(V x_i + v)) x_i, with one learned q (NAML's attention, as summaries of the paper give it).

    Args:
        dim: D.
        query_dim: of q.
    """

    def __init__(self, dim: int, query_dim: int):
        super().__init__()
        self.hidden = nn.Linear(dim, query_dim)
        self.query = nn.Linear(query_dim, 1, bias=False)

    def scores(self, vectors: Tensor) -> Tensor:
        """float [..., D] to float [...]."""
        return self.query(self.hidden(vectors).tanh()).squeeze(-1)

    def forward(self, vectors: Tensor) -> Tensor:
        """float [M, V, D] to float [M, D]."""
        weights = self.scores(vectors).softmax(dim=1)
        return (weights.unsqueeze(1) @ vectors).squeeze(1)

    def over_positions(self, items: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Of the history, with a score once an item; zeros for a row without one.

        Args:
            items: float [M, D].
            positions: integer [B, L], rows of `items`.
            mask: [B, L], non-zero = a real history item.

        Returns:
            float [B, D].
        """
        scores = look_up(self.scores(items).unsqueeze(1), positions).squeeze(-1)
        weights = masked_softmax(scores, mask)
        return (weights.unsqueeze(1) @ look_up(items, positions)).squeeze(1)

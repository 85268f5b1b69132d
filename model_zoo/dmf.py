"""DMF: content beside the ids and content inside their attention (Fan et al., 2025, arXiv 2510.11066).

Two readings of the history: one by content alone, a histogram of how near its items are to the target, and one by ids
whose attention has the bucket of that nearness as side information. The second never mixes the two before the
attention, so that what depends on an item alone is computed once an item. A learned weight adds them up.
"""

import torch
from torch import Tensor, nn

from mm_fibinet.similarity import cosines

from .base import Inputs
from .history import HistoryModel
from .interest import NUM_TIERS, TIER_DIM, BucketAttention, SimTier
from .layers import logit_mlp
from .modalities import require_modalities


class DMF(HistoryModel):
    """Similarity histograms and attention with similarity buckets, added by a learned weight, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items that are compared; all there are unless given.
        interest_dim: D of both readings.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what HistoryModel takes; `similarity_only` takes columns out of the items' vectors.

    Raises:
        UserError: there is no embedding column.
    """

    def __init__(
        self,
        feature_map,
        modality_features=(),
        interest_dim=64,
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        self.compared = require_modalities("DMF", feature_map, modality_features)
        super().__init__(feature_map, **kwargs)
        self.histograms = nn.ModuleList(SimTier() for _ in self.compared)
        self.by_content = nn.Linear(len(self.compared) * NUM_TIERS * TIER_DIM, interest_dim)
        self.by_ids = BucketAttention(self.item_dim, interest_dim, len(self.compared))
        self.balance = nn.Parameter(torch.zeros(1))
        self.dnn = logit_mlp(
            self.row_dim + self.item_dim + interest_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target and the weighed sum of both readings of the history."""
        near = [cosines(batch.items[name], batch.target, batch.history) for name in self.compared]
        counts = [layer(cosine, batch.mask) for layer, cosine in zip(self.histograms, near, strict=True)]
        share = self.balance.sigmoid()
        interest = share * self.by_ids(target, items, batch.history, batch.mask, near)
        interest = interest + (1 - share) * self.by_content(torch.cat(counts, dim=-1))
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target, interest], dim=-1))

    def _is_compared(self, name: str) -> bool:
        return name in self.compared or super()._is_compared(name)

"""MUSE: a long history searched and read by content (Wu et al., 2025, arXiv 2512.07216).

Of the history only the items nearest to the target by one embedding are read. Of those, SimTier counts how near they
are and SA-TA pools them by an attention of ids that the cosines steer (both in model_zoo.interest, held to MUSE's own
outputs); an MLP reads both beside the row's features and the target.
"""

import torch
from torch import Tensor

from .base import Inputs
from .history import HistoryModel
from .layers import logit_mlp
from .modalities import require_modalities


class MUSE(HistoryModel):
    """Content search, SimTier and SA-TA, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items that are compared, the first of them in the search; all
            there are unless given.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what HistoryModel takes; `content_search`, `content_search_len`, `simtier` and `sa_ta` among it are
            set to the columns above unless given, `similarity_only` takes columns out of the items' vectors.

    Raises:
        UserError: there is no embedding column.
    """

    reads_alone = ("content_search_len",)  # its content_search is the first modality unless given

    def __init__(
        self,
        feature_map,
        modality_features=(),
        dnn_hidden_units=(200, 80),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        columns = require_modalities("MUSE", feature_map, modality_features)
        compared = {"content_search": columns[0], "simtier": columns, "sa_ta": columns}
        super().__init__(feature_map, **{**compared, **kwargs})
        self.dnn = logit_mlp(self.row_dim + self.item_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, with what the interest layers make of the history, and the target."""
        return self.dnn(torch.cat([self.row_vectors(batch, items, target), target], dim=-1))

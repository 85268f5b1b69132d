"""MAKE: what content knows of clicks, learned apart from the ids (Sheng et al., CIKM 2024, arXiv 2407.19467).

Weights on content want many passes over the data, tables of ids are overfitted after one. So a network of its own, the
extractor, predicts the clicks from the frozen embeddings of target and history alone, and the ranker reads the
extractor's last layer without training it; beside it stand SimTier's counts of how near the history's items are. In
the paper, as summaries give it, the extractor is trained for several epochs first; here both learn from the same
batches, each by its own loss.
"""

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Inputs
from .history import HistoryModel
from .layers import DINAttention, last_width, logit_mlp
from .modalities import require_modalities


class MAKE(HistoryModel):
    """DIN with SimTier and the knowledge of an extractor that reads frozen embeddings.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items that are compared and extracted; all there are unless given.
        extractor_dim: an item's width in the extractor.
        extractor_hidden_units: of its MLP.
        extractor_weight: of its loss beside the ranker's.
        attention_hidden_units: of both attentions.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the ranker's MLP.
        kwargs: what HistoryModel takes; `simtier` among it is set to the columns above unless given, `similarity_only`
            takes columns out of the items' vectors.

    Raises:
        UserError: there is no embedding column.
    """

    def __init__(
        self,
        feature_map,
        modality_features=(),
        extractor_dim=64,
        extractor_hidden_units=(128, 64, 32, 16),
        extractor_weight=1.0,
        attention_hidden_units=(64,),
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        self.extracted = require_modalities("MAKE", feature_map, modality_features)
        knowledge_dim = last_width("extractor_hidden_units", extractor_hidden_units)
        super().__init__(feature_map, **{"simtier": self.extracted, **kwargs})
        self.extractor_weight = extractor_weight
        raw_dim = sum(feature_map.features[name]["pretrain_dim"] for name in self.extracted)
        self.extractor = KnowledgeExtractor(raw_dim, extractor_dim, extractor_hidden_units, attention_hidden_units)
        self.attention_layers = DINAttention(self.item_dim, attention_hidden_units)
        input_dim = self.row_dim + 2 * self.item_dim + knowledge_dim
        self.dnn = logit_mlp(input_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities, the ranker's and the extractor's.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features (no history).

        Returns:
            {"y_pred", "extractor_pred": float [B, 1]}.
        """
        batch = self.read_batch(inputs)
        items, target = self.logit_inputs(batch)
        pooled = self.attention_layers(target, items, batch.history, batch.mask)
        knowledge, extractor_logit = self.extractor(self._content(batch), batch)
        row = self.row_vectors(batch, items, target)
        logit = self.dnn(torch.cat([row, target, pooled, knowledge.detach()], dim=-1))
        return {
            "y_pred": self.output_activation(logit.float()),
            "extractor_pred": self.output_activation(extractor_logit.float()),
        }

    def add_loss(self, return_dict: dict[str, Tensor], y_true: Tensor) -> Tensor:
        """The ranker's loss plus extractor_weight times the extractor's, which share no weights.

        Args:
            return_dict: of `forward`.
            y_true: float [B, 1], 1 = click.
        """
        extractor_loss = super().add_loss({"y_pred": return_dict["extractor_pred"]}, y_true)
        return super().add_loss(return_dict, y_true) + self.extractor_weight * extractor_loss

    def _content(self, batch: Inputs) -> Tensor:
        """float [M, raw width]: the items' embeddings, each of length 1, or zeros for an item without one."""
        return torch.cat([F.normalize(batch.items[name].float(), dim=-1) for name in self.extracted], dim=-1)

    def _is_compared(self, name: str) -> bool:
        return name in self.extracted or super()._is_compared(name)


class KnowledgeExtractor(nn.Module):
    """Target attention and an MLP on content alone.

    Args:
        raw_dim: of the items' content.
        dim: D that it is mapped to.
        hidden_units: of the MLP.
        attention_hidden_units: of the attention.
    """

    def __init__(self, raw_dim: int, dim: int, hidden_units: tuple[int, ...], attention_hidden_units: tuple[int, ...]):
        super().__init__()
        self.item = nn.Linear(raw_dim, dim)
        self.attention = DINAttention(dim, attention_hidden_units)
        self.mlp = MLP_Block(input_dim=2 * dim, hidden_units=list(hidden_units))
        self.logit = nn.Linear(hidden_units[-1], 1)

    def forward(self, content: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
        """Read the target and the history.

        Args:
            content: float [M, raw width].
            batch: the batch that has these items.

        Returns:
            (float [B, width of the last hidden layer], float [B, 1]).
        """
        items = self.item(content)
        target = items.index_select(0, batch.target)
        pooled = self.attention(target, items, batch.history, batch.mask)
        knowledge = self.mlp(torch.cat([target, pooled], dim=-1))
        return knowledge, self.logit(knowledge)

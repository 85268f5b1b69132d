"""QARM: content as ids that train (Luo et al., CIKM 2025, arXiv 2411.11739).

A frozen embedding cannot follow the clicks. Its codes can: each level of a residual quantisation is an id with a vector
that is trained as any other, shared by the items that are alike, so that a cold item has trained ones too. Codes come
with the items, as build_item_emb.py --semantic_ids writes them: `item_codes`, a code a level, each out of a range of
its own. What the paper aligns before, as summaries give it, is the embedding that they are made of: the encoder's
business, not the ranker's. Target and history have their codes' vectors beside their other features, and DIN's
attention compares them.
"""

import torch
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.fuxictr_adapter import IdTable

from .base import Inputs
from .history import HistoryModel
from .layers import DINAttention, logit_mlp

TABLE_STD = 1e-4  # FuxiCTR's of embeddings


class QARM(HistoryModel):
    """DIN's attention over items with the vectors of their codes, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        code_feature: a feature of source item and of type sequence, a code a level out of one vocabulary, 0 = none. A
            column that the data set's entry does not name is read from item_info.
        code_dim: of a code's vector.
        attention_hidden_units, attention_dropout: of DIN's attention.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        similarity_only, kwargs: what HistoryModel takes.

    Raises:
        UserError: there is no such feature.
    """

    def __init__(
        self,
        feature_map,
        code_feature="item_codes",
        code_dim=16,
        attention_hidden_units=(64,),
        attention_dropout=0.0,
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        similarity_only=(),
        **kwargs,
    ):
        self.code_feature = code_feature
        super().__init__(feature_map, similarity_only=[*(similarity_only or ()), code_feature], **kwargs)
        spec = feature_map.features.get(code_feature, {})
        if spec.get("type") != "sequence" or spec.get("source") != "item":
            raise UserError(
                f"QARM reads codes of the items, but {code_feature} is no feature of source item and of type sequence; "
                "build_item_emb.py --semantic_ids writes item_codes; name that column, or another, in code_feature"
            )
        self.codes = CodeEmbedding(spec["vocab_size"], code_dim)
        width = self.item_dim + spec["max_len"] * code_dim
        self.attention_layers = DINAttention(width, attention_hidden_units, dropout_rate=attention_dropout)
        self.dnn = logit_mlp(self.row_dim + 2 * width, dnn_hidden_units, dnn_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, items: Tensor, target: Tensor) -> Tensor:
        """An MLP reads the row, the target with its codes, and the history as the target weighs it."""
        row = self.row_vectors(batch, items, target)
        codes = self.codes(batch.items[self.code_feature])
        target = torch.cat([target, codes.index_select(0, batch.target)], dim=-1)
        pooled = self.attention_layers(target, torch.cat([items, codes], dim=-1), batch.history, batch.mask)
        return self.dnn(torch.cat([row, target, pooled], dim=-1))

    def _is_compared(self, name: str) -> bool:
        """The codes are read as they are, and are no list to take the mean of."""
        return name == self.code_feature or super()._is_compared(name)


class CodeEmbedding(nn.Module):
    """The vectors of an item's codes side by side; no code, no vector.

    Args:
        num_codes: V, over all levels: each level has a range of its own.
        dim: D.
    """

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        self.table = IdTable(num_codes, dim)
        nn.init.normal_(self.table.weight, std=TABLE_STD)

    def forward(self, codes: Tensor) -> Tensor:
        """integer [M, C] to float [M, C * D]."""
        return (self.table(codes) * (codes > 0).unsqueeze(-1)).flatten(1)

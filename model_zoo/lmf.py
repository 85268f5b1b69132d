"""LMF as a CTR model: low-rank multimodal fusion (Liu et al., ACL 2018, arXiv 1806.00064).

The paper multiplies all elements of all modalities, each extended by a 1, and maps the outer product linearly; with a
weight of low rank that is a product of one linear map a modality, summed over the ranks, and the outer product is never
made. Its modalities are audio, video and text of one utterance. Here they are the embedding columns of the target,
each with what of the same column the history pools to, and, as one more, all other fields of the row.
"""

import torch
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .base import Inputs
from .fields import FieldModel
from .layers import logit_mlp
from .modalities import require_modalities
from .modality_fusion import LowRankFusion


class LMF(FieldModel):
    """Low-rank fusion of the modalities' fields and the other ones, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items; all unless given. A column that the data set's entry does
            not name is read from item_info.
        modality_dim: of a modality's own network, one hidden layer.
        fusion_dim: of the fused vector.
        num_ranks: R.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the MLP; the dropout and the first activation of
            the modalities' networks too.
        kwargs: what FieldModel takes.

    Raises:
        UserError: there is no such column, it is in similarity_only, all fields are of one modality, or low_rank_fusion
            is asked for, which this is.
    """

    reads_alone = ("hidden_activations", "net_dropout")  # in its networks of the modalities, too

    def __init__(
        self,
        feature_map,
        modality_features=(),
        modality_dim=64,
        fusion_dim=64,
        num_ranks=4,
        hidden_units=(64,),
        hidden_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        modalities = require_modalities("LMF", feature_map, modality_features, kwargs.get("similarity_only"))
        if kwargs.get("low_rank_fusion"):
            raise UserError("low_rank_fusion is what LMF is itself; leave it out, or name columns in modality_features")
        super().__init__(feature_map, **kwargs)
        self.groups = self._groups(modalities)
        if len(self.groups) < 2:
            raise UserError(
                f"LMF fuses modalities, but {modalities[0]} is all that the fields are of; add another embedding, or "
                "features like item_id, to feature_cols and use_features"
            )
        one_a_layer = isinstance(hidden_activations, list | tuple)
        self.networks = nn.ModuleList(
            MLP_Block(
                input_dim=len(group) * self.embedding_dim,
                hidden_units=[modality_dim],
                hidden_activations=[*hidden_activations, None][:1] if one_a_layer else hidden_activations,
                dropout_rates=net_dropout,
            )
            for group in self.groups
        )
        self.fusion = LowRankFusion([modality_dim] * len(self.groups), fusion_dim, num_ranks)
        self.dnn = logit_mlp(fusion_dim, hidden_units, hidden_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """An MLP reads the fused modalities."""
        parts = fields.unbind(1)  # a list as an index would make a GPU wait
        hidden = [
            network(torch.cat([parts[place] for place in group], dim=1))
            for network, group in zip(self.networks, self.groups, strict=True)
        ]
        return self.dnn(self.fusion(hidden))

    def _groups(self, modalities: list[str]) -> list[list[int]]:
        """The places of each modality's fields, the target's and the history's, then those of all others."""
        pooled = self.pooled_features if self.history_pooling != "none" else []
        names = [*self.field_features, *pooled]
        groups = [[place for place, name in enumerate(names) if name == modality] for modality in modalities]
        taken = {place for group in groups for place in group}
        others = [place for place in range(self.num_fields) if place not in taken]
        return [group for group in [*groups, others] if group]

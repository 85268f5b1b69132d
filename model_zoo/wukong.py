"""WuKong: stacked factorization machines (Zhang et al., ICML 2024, arXiv 2403.02545).

A layer makes new fields of all pairs' dot products (FMB) and of linear mixtures of its input (LCB); its input is added
to them. Layer i so has interactions of every order up to 2^i, and a model grows by more fields and more layers rather
than by wider tables. The paper's sets of features are the fields here; its final MLP gives the logit.
"""

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Inputs
from .fields import FieldModel
from .layers import logit_mlp, require_numbers_to_norm


class WuKong(FieldModel):
    """Interaction layers over user, target and history fields, then an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        num_layers: of interaction.
        num_fmb_fields: n_F, fields a layer makes of dot products.
        num_lcb_fields: n_L, fields a layer makes of linear mixtures.
        num_compressed: k, columns that the dot products are compressed to.
        fmb_hidden_units: of the MLP from dot products to fields.
        attentive: the compression depends on the fields, as in the paper's experiments; else it is one matrix.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the final MLP.
        kwargs: what FieldModel takes.

    Raises:
        UserError: embedding_dim is 1, of which a layer norm leaves nothing.
    """

    def __init__(
        self,
        feature_map,
        num_layers=2,
        num_fmb_fields=8,
        num_lcb_fields=8,
        num_compressed=8,
        fmb_hidden_units=(64,),
        attentive=True,
        hidden_units=(64, 64),
        hidden_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        require_numbers_to_norm("embedding_dim", self.embedding_dim)
        counts = [self.num_fields] + [num_fmb_fields + num_lcb_fields] * num_layers
        self.layers = nn.Sequential(
            *(
                WuKongLayer(
                    count,
                    self.embedding_dim,
                    num_fmb_fields,
                    num_lcb_fields,
                    num_compressed,
                    fmb_hidden_units,
                    attentive,
                )
                for count in counts[:-1]
            )
        )
        self.mlp = logit_mlp(counts[-1] * self.embedding_dim, hidden_units, hidden_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """An MLP reads the last layer's fields."""
        return self.mlp(self.layers(fields).flatten(1))


class WuKongLayer(nn.Module):
    """LN(concat(FMB(X), LCB(X)) + residual) (section 3.3); the residual is mapped where the counts differ.

    Args:
        num_fields: F.
        embedding_dim: D.
        num_fmb_fields, num_lcb_fields: n_F, n_L.
        num_compressed, fmb_hidden_units, attentive: see WuKong.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_fmb_fields: int,
        num_lcb_fields: int,
        num_compressed: int,
        fmb_hidden_units: list[int] | tuple[int, ...],
        attentive: bool,
    ):
        super().__init__()
        num_made = num_fmb_fields + num_lcb_fields
        self.fmb = FactorizationMachineBlock(
            num_fields, embedding_dim, num_fmb_fields, num_compressed, fmb_hidden_units, attentive
        )
        self.lcb = FieldMixture(num_fields, num_lcb_fields)
        self.residual = nn.Identity() if num_fields == num_made else FieldMixture(num_fields, num_made)
        self.norm = nn.LayerNorm(embedding_dim)

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to float [B, n_F + n_L, D]."""
        made = torch.cat([self.fmb(fields), self.lcb(fields)], dim=1)
        return self.norm(made + self.residual(fields))


class FactorizationMachineBlock(nn.Module):
    """MLP(LN(flatten(X X^T Y))) (sections 3.4 and 3.6), with X^T Y first: no F x F products are ever made.

    Args:
        num_fields: F.
        embedding_dim: D.
        num_made: n_F.
        num_compressed: k, the columns of Y.
        hidden_units: of the MLP.
        attentive: Y is an MLP's output of the linearly compressed fields; else it is learned as it is.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_made: int,
        num_compressed: int,
        hidden_units: list[int] | tuple[int, ...],
        attentive: bool,
    ):
        super().__init__()
        self.num_made = num_made
        self.projection = nn.Parameter(torch.empty(num_fields, num_compressed))
        nn.init.xavier_normal_(self.projection)
        self.attention = None
        if attentive:
            self.attention = MLP_Block(
                input_dim=num_compressed * embedding_dim,
                output_dim=num_fields * num_compressed,
                hidden_units=list(hidden_units),
            )
        self.norm = nn.LayerNorm(num_fields * num_compressed)
        self.mlp = MLP_Block(
            input_dim=num_fields * num_compressed, output_dim=num_made * embedding_dim, hidden_units=list(hidden_units)
        )

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to float [B, n_F, D]."""
        compressed = fields.transpose(1, 2) @ self.projection  # [B, D, k]
        if self.attention is not None:
            projection = self.attention(compressed.flatten(1)).unflatten(1, self.projection.shape)
            compressed = fields.transpose(1, 2) @ projection
        products = (fields @ compressed).flatten(1)  # [B, F k]
        return self.mlp(self.norm(products)).unflatten(1, (self.num_made, -1))


class FieldMixture(nn.Module):
    """Fields that are weighted sums of fields (the LCB, section 3.5).

    Args:
        num_fields: F.
        num_made: n.
    """

    def __init__(self, num_fields: int, num_made: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_made, num_fields))
        nn.init.xavier_normal_(self.weight)

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to float [B, n, D]."""
        return F.linear(fields.transpose(1, 2), self.weight).transpose(1, 2)

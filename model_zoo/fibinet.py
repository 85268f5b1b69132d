"""FiBiNET: feature importance and bilinear feature interactions (Huang et al., RecSys 2019).

SENET re-weights the fields; both the fields and the re-weighted fields interact bilinearly in all pairs; an MLP reads
the interactions, and a linear part is added.

With `history_pooling: none` and no embedding field this is FuxiCTR's FiBiNET: same weight names, same outputs. With
`feature_norm`, `senet_plus` and `bilinear_plus` it is FiBiNET++ (Zhang et al., CIKM 2022) beside that linear part.
"""

import torch
from fuxictr.pytorch.layers import SqueezeExcitation
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .base import Inputs
from .fields import FieldModel
from .layers import BilinearInteraction, BilinearType, LinearPart, logit_mlp, require_divisor, require_numbers_to_norm
from .plus_layers import BilinearPlus, FieldNorm, SENETPlus


class FiBiNET(FieldModel):
    """FiBiNET over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        hidden_units, hidden_activations, net_dropout, batch_norm: of the MLP.
        excitation_activation: of SENET, "ReLU" or "Sigmoid".
        reduction_ratio: of SENET.
        bilinear_type: "field_all", "field_each" or "field_interaction".
        feature_norm: normalise the fields first, as FiBiNET++ does.
        senet_plus: FiBiNET++'s SENET+ in place of SENET.
        bilinear_plus: FiBiNET++'s bilinear+ over the fields; the MLP then reads the re-weighted fields themselves in
            place of their interactions.
        similarity_to_mlp: the MLP reads the numbers behind the similarity fields too, batch-normed, so that it can bend
            them before they meet other fields.
        num_groups: of SENET+.
        bilinear_output_dim: of bilinear+.
        kwargs: what FieldModel takes.

    Raises:
        UserError: there is one field only, similarity_to_mlp is True without similarity_fields, or embedding_dim does
            not divide into num_groups or is 1 where fields are layer-normed.
    """

    def __init__(
        self,
        feature_map,
        hidden_units=(),
        hidden_activations="ReLU",
        excitation_activation="ReLU",
        reduction_ratio=3,
        bilinear_type: BilinearType = "field_interaction",
        feature_norm=False,
        senet_plus=False,
        bilinear_plus=False,
        similarity_to_mlp=False,
        num_groups=2,
        bilinear_output_dim=50,
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        num_fields, dim = self.num_fields, self.embedding_dim
        if num_fields < 2:
            only = (self.field_features or ["of similarity or interest"])[0]
            raise UserError(f"FiBiNET has one field, {only}, expected two or more to interact")
        if feature_norm or senet_plus:
            require_numbers_to_norm("embedding_dim", dim)
        self.feature_norm = FieldNorm(dim, self.numeric_fields) if feature_norm else None
        if senet_plus:
            require_divisor("num_groups", num_groups, embedding_dim=dim)
            self.senet_layer = SENETPlus(num_fields, dim, reduction_ratio, num_groups)
        else:
            self.senet_layer = SqueezeExcitation(num_fields, reduction_ratio, excitation_activation)
        if bilinear_plus:
            self.bilinear_interaction1 = BilinearPlus(num_fields, dim, bilinear_type, bilinear_output_dim)
            self.bilinear_interaction2 = None
            input_dim = bilinear_output_dim + num_fields * dim
        else:
            self.bilinear_interaction1 = BilinearInteraction(num_fields, dim, bilinear_type)
            self.bilinear_interaction2 = BilinearInteraction(num_fields, dim, bilinear_type)
            input_dim = num_fields * (num_fields - 1) * dim
        self.similarity_norm = None
        if similarity_to_mlp:
            if self.similarity is None:
                raise UserError("similarity_to_mlp is True without similarity_fields: True, expected both or neither")
            self.similarity_norm = nn.BatchNorm1d(self.similarity.num_features)
            input_dim += self.similarity.num_features
        self.lr_layer = LinearPart(feature_map, self.field_features)
        self.dnn = logit_mlp(input_dim, hidden_units, hidden_activations, net_dropout, batch_norm)

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """The linear part, plus an MLP that reads the interactions."""
        read = self.interactions(fields)
        if self.similarity_norm is not None:
            read = torch.cat([read, self.similarity_norm(torch.cat(batch.similarities, dim=1))], dim=1)
        return self.lr_layer(batch.target_columns()) + self.dnn(read)

    def interactions(self, fields: Tensor) -> Tensor:
        """What the MLP reads of the fields: float [B, F, D] to float [B, I]."""
        if self.feature_norm is not None:
            fields = self.feature_norm(fields)
        weighted = self.senet_layer(fields)
        second = weighted.flatten(1) if self.bilinear_interaction2 is None else self.bilinear_interaction2(weighted)
        return torch.cat([self.bilinear_interaction1(fields), second], dim=1)

"""FinalMLP: two MLPs, each on its own selection of the features, fused bilinearly (Mao et al., AAAI 2023).

A gate, computed from a few context features (or learned alone when none are named), scales every input of a stream,
so that the streams see different sides of a row. Naming a user feature for one and an item feature for the other is
the paper's choice.
"""

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .base import Inputs
from .fields import FieldModel
from .layers import last_width, require_divisor


class FinalMLP(FieldModel):
    """Two gated MLP streams over user, target and history fields.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        mlp1_hidden_units, mlp1_hidden_activations, mlp1_dropout, mlp1_batch_norm: of the first stream.
        mlp2_hidden_units, mlp2_hidden_activations, mlp2_dropout, mlp2_batch_norm: of the second.
        use_fs: gate the streams' inputs (feature selection).
        fs_hidden_units: of the gates.
        fs1_context, fs2_context: features that each gate reads, the row's own or the target item's.
        num_heads: of the bilinear fusion, a divisor of both streams' last widths.
        kwargs: what FieldModel takes.

    Raises:
        UserError: a context is no feature of the data, num_heads does not divide the streams' widths, or a stream has
            no units.
    """

    def __init__(
        self,
        feature_map,
        mlp1_hidden_units=(64, 64, 64),
        mlp1_hidden_activations="ReLU",
        mlp1_dropout=0.0,
        mlp1_batch_norm=False,
        mlp2_hidden_units=(64, 64, 64),
        mlp2_hidden_activations="ReLU",
        mlp2_dropout=0.0,
        mlp2_batch_norm=False,
        use_fs=True,
        fs_hidden_units=(64,),
        fs1_context=(),
        fs2_context=(),
        num_heads=1,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self._require_contexts(fs1_context=fs1_context, fs2_context=fs2_context)
        width1 = last_width("mlp1_hidden_units", mlp1_hidden_units)
        width2 = last_width("mlp2_hidden_units", mlp2_hidden_units)
        require_divisor("num_heads", num_heads, mlp1_hidden_units=width1, mlp2_hidden_units=width2)
        input_dim = self.num_fields * self.embedding_dim
        self.mlp1 = MLP_Block(
            input_dim=input_dim,
            hidden_units=list(mlp1_hidden_units),
            hidden_activations=mlp1_hidden_activations,
            dropout_rates=mlp1_dropout,
            batch_norm=mlp1_batch_norm,
        )
        self.mlp2 = MLP_Block(
            input_dim=input_dim,
            hidden_units=list(mlp2_hidden_units),
            hidden_activations=mlp2_hidden_activations,
            dropout_rates=mlp2_dropout,
            batch_norm=mlp2_batch_norm,
        )
        self.gate1: ContextGate | None = None
        self.gate2: ContextGate | None = None
        if use_fs:
            gate_dims = (self.embedding_dim, list(fs_hidden_units), input_dim)
            self.gate1 = ContextGate(self.feature_map, list(fs1_context), *gate_dims)
            self.gate2 = ContextGate(self.feature_map, list(fs2_context), *gate_dims)
        self.fusion = BilinearFusion(width1, width2, num_heads)

    def item_side_features(self) -> dict[str, dict]:
        """As MultimodalModel's; a context that is compared otherwise is embedded by its gate, and needs its scale."""
        contexts = [name for gate in (self.gate1, self.gate2) if gate is not None for name in gate.context]
        specs = super().item_side_features()
        return {
            name: {**spec, "compared_only": False, "keep_int8": True} if name in contexts else spec
            for name, spec in specs.items()
        }

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """The bilinear fusion of both streams."""
        stream1 = stream2 = fields.flatten(1)
        if self.gate1 is not None and self.gate2 is not None:
            columns = batch.target_columns()
            stream1, stream2 = stream1 * self.gate1(columns), stream2 * self.gate2(columns)
        return self.fusion(self.mlp1(stream1), self.mlp2(stream2))

    def _require_contexts(self, **contexts: list[str]) -> None:
        known = [*self.user_features, *self.item_features, *self.compared_features]
        for setting, names in contexts.items():
            for name in names:
                if name not in known or list(names).count(name) > 1:
                    raise UserError(f"{setting} is {list(names)}, expected features of the data, each once: {known}")


class ContextGate(nn.Module):
    """A factor between 0 and 2 for each input of a stream.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        context: features it reads, through embeddings of its own; empty for one learned vector.
        embedding_dim: D.
        hidden_units: of the gate.
        output_dim: N, inputs of the stream.
    """

    def __init__(self, feature_map, context: list[str], embedding_dim: int, hidden_units: list[int], output_dim: int):
        super().__init__()
        self.context = context
        if context:
            self.embedding = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=context)
        else:
            self.vector = nn.Parameter(torch.randn(1, embedding_dim))  # zeros would stay zeros behind ReLU
        self.gate = MLP_Block(
            input_dim=embedding_dim * max(len(context), 1),
            output_dim=output_dim,
            hidden_units=hidden_units,
            output_activation="Sigmoid",
        )

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """float [B, N], or [1, N] without context."""
        if not self.context:
            return 2 * self.gate(self.vector)
        return 2 * self.gate(self.embedding({name: columns[name] for name in self.context}, flatten_emb=True))


class BilinearFusion(nn.Module):
    """b + w1 x + w2 y + the sum over heads of x_h W_h y_h.

    Args:
        x_dim, y_dim: widths of the streams.
        num_heads: H, a divisor of both.
    """

    def __init__(self, x_dim: int, y_dim: int, num_heads: int):
        super().__init__()
        self.linear_x = nn.Linear(x_dim, 1)
        self.linear_y = nn.Linear(y_dim, 1, bias=False)
        self.weight = nn.Parameter(torch.empty(num_heads, x_dim // num_heads, y_dim // num_heads))
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier normal, as FuxiCTR's."""
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """float [B, X] and [B, Y] to float [B, 1]."""
        x_heads = x.view(len(x), len(self.weight), -1)
        y_heads = y.view(len(y), len(self.weight), -1)
        bilinear = (torch.einsum("bhi,hij->bhj", x_heads, self.weight) * y_heads).sum(dim=(1, 2))
        return self.linear_x(x) + self.linear_y(y) + bilinear.unsqueeze(1)

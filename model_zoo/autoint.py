"""AutoInt: fields attend to each other (Song et al., CIKM 2019), with an MLP beside it as in the paper's AutoInt+."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .fields import FieldModel
from .layers import LinearPart, logit_mlp, require_divisor, require_numbers_to_norm


class AutoInt(FieldModel):
    """Self-attention layers over user, target and history fields, plus an MLP.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        attention_layers, num_heads: of the self-attention.
        attention_dim: width of a field in it, over all heads.
        layer_norm: normalise each layer's output before its ReLU.
        use_scale: divide the scores by the square root of a head's width; the paper does not.
        use_wide: add a linear part.
        use_residual: add what a layer reads, mapped, to what it attends to. The map is there in every layer, as in the
            paper; FuxiCTR leaves it out where the widths are equal, and applies net_dropout to the attention too.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP; no units, no MLP.
        kwargs: what FieldModel takes.

    Raises:
        UserError: attention_dim does not divide into num_heads, or is 1 with layer_norm.
    """

    def __init__(
        self,
        feature_map,
        attention_layers=2,
        num_heads=1,
        attention_dim=8,
        layer_norm=False,
        use_scale=False,
        use_wide=False,
        use_residual=True,
        dnn_hidden_units=(64, 64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        require_divisor("num_heads", num_heads, attention_dim=attention_dim)
        if layer_norm:
            require_numbers_to_norm("attention_dim", attention_dim)
        dims = [self.embedding_dim] + [attention_dim] * attention_layers
        self.self_attention = nn.Sequential(
            *(
                FieldAttention(dims[i], attention_dim, num_heads, use_scale, use_residual, layer_norm)
                for i in range(attention_layers)
            )
        )
        self.fc = nn.Linear(self.num_fields * dims[-1], 1)
        self.lr_layer = LinearPart(feature_map, self.field_features) if use_wide else None
        self.dnn = None
        if dnn_hidden_units:
            self.dnn = logit_mlp(
                self.num_fields * self.embedding_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
            )

    def compute_logit(self, batch: Inputs, fields: Tensor) -> Tensor:
        """Self-attention over the fields, plus the MLP and the linear part where there are any."""
        logit = self.fc(self.self_attention(fields).flatten(1))
        if self.dnn is not None:
            logit = logit + self.dnn(fields.flatten(1))
        if self.lr_layer is not None:
            logit = logit + self.lr_layer(batch.target_columns())
        return logit


class FieldAttention(nn.Module):
    """Multi-head self-attention with a residual map and ReLU (AutoInt, eq. 5-8).

    Args:
        input_dim: D.
        attention_dim: A, over all heads.
        num_heads: H, a divisor of A.
        use_scale, use_residual, layer_norm: see AutoInt.
    """

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        use_scale: bool,
        use_residual: bool = True,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (attention_dim // num_heads) ** -0.5 if use_scale else 1.0
        self.W_q = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_k = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_v = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_res = nn.Linear(input_dim, attention_dim, bias=False) if use_residual else None
        self.layer_norm = nn.LayerNorm(attention_dim) if layer_norm else None

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to float [B, F, A]."""
        query, key, value = (
            layer(fields).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.W_q, self.W_k, self.W_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale).transpose(1, 2).flatten(2)
        if self.W_res is not None:
            attended = attended + self.W_res(fields)
        if self.layer_norm is not None:
            attended = self.layer_norm(attended)
        return F.relu(attended)

"""Layers in shapes that are fast, with the weights and the mathematics of FuxiCTR's.

Every layer here keeps the parameter names and shapes of the FuxiCTR layer it stands for, so weights load both ways;
tests hold each against that layer. What changes is only how the products are grouped:

- a bilinear interaction multiplies whole fields by blocks of weights, instead of one row by one matrix;
- DIN's attention computes what depends on the target or on the history item alone once per row or once per distinct
  item, and only the product term per position, and only at positions that hold an item, where nothing counts the rest.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.layers.activations import Dice
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.precision import autocast_dtype

from .lookup import look_up, pool_rows

BilinearType = Literal["field_all", "field_each", "field_interaction"]
BILINEAR_TYPES = get_args(BilinearType)


class BilinearInteraction(nn.Module):
    """Bilinear interactions of all field pairs (FiBiNET, Huang et al. 2019, eq. 8-10).

    Weights as FuxiCTR's BilinearInteractionV2: `bilinear_W` [D, D], [F, D, D] or [P, D, D] for the bilinear types
    field_all, field_each and field_interaction, P = F (F - 1) / 2 pairs in the order (0,1), (0,2), ..., (F-2,F-1).

    Args:
        num_fields: F.
        embedding_dim: D.
        bilinear_type: one of BILINEAR_TYPES.
    """

    def __init__(self, num_fields: int, embedding_dim: int, bilinear_type: str = "field_interaction"):
        super().__init__()
        if bilinear_type not in BILINEAR_TYPES:
            raise UserError(f"bilinear_type is {bilinear_type!r}, expected one of {', '.join(BILINEAR_TYPES)}")
        self.bilinear_type = bilinear_type
        self.num_fields = num_fields
        self.embedding_dim = embedding_dim
        self.num_pairs = num_fields * (num_fields - 1) // 2
        blocks = {"field_all": (), "field_each": (num_fields,), "field_interaction": (self.num_pairs,)}[bilinear_type]
        self.bilinear_W = nn.Parameter(torch.empty(*blocks, embedding_dim, embedding_dim))
        self.register_buffer("triu_index", torch.triu_indices(num_fields, num_fields, offset=1))  # FuxiCTR's key
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier normal, as FuxiCTR's."""
        nn.init.xavier_normal_(self.bilinear_W)

    def forward(self, fields: Tensor) -> Tensor:
        """The interactions p_ij = (v_i W) * v_j of all pairs i < j.

        Args:
            fields: float [B, F, D].

        Returns:
            float [B, P * D], the pairs one after the other.
        """
        if self.bilinear_type == "field_interaction":
            return _PairProducts.apply(fields, self.bilinear_W, autocast_dtype(fields)).flatten(1)
        if self.bilinear_type == "field_all":
            hidden = fields @ self.bilinear_W
        else:
            hidden = torch.bmm(fields.transpose(0, 1), self.bilinear_W).transpose(0, 1)
        pairs = [hidden[:, i : i + 1] * fields[:, i + 1 :] for i in range(self.num_fields - 1)]
        return torch.cat(pairs, dim=1).flatten(1)


class _PairProducts(torch.autograd.Function):
    """(v_i W_ij) * v_j of all pairs, from float [B, F, D] and [P, D, D] to [B, P, D].

    A field is multiplied by the weights of all its pairs side by side: F - 1 large products. Autograd would keep each
    of them, together as large as the output; the backward here makes them once more, which is a small part of a step.

    Under autocast the output is of the type of its products, which is what the next matrix product reads: float32 in
    between would double the traffic of the largest tensor of a step. Sums stay float32: inside a product by the
    hardware, over the pairs of a field by the gradient's own type.
    """

    @staticmethod
    def forward(ctx, fields: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, P, D] in `dtype`."""
        ctx.save_for_backward(fields, weights)
        ctx.dtype = dtype
        values, blocks = fields.to(dtype), side_by_side(weights.to(dtype))
        batch, num_fields, dim = fields.shape
        output = values.new_empty(batch, len(weights), dim)
        for i, pairs in pairs_by_field(num_fields):
            left = values[:, i] @ blocks[:, pairs].flatten(1)
            torch.mul(left.view(batch, -1, dim), values[:, i + 1 :], out=output[:, pairs])
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of fields [B, F, D] and weights [P, D, D], from that of the output, in the inputs' type."""
        fields, weights = ctx.saved_tensors
        values, blocks = fields.to(ctx.dtype), side_by_side(weights.to(ctx.dtype))
        batch, num_fields, dim = fields.shape
        grad_fields, grad_blocks = torch.zeros_like(fields), torch.empty_like(blocks)
        for i, pairs in pairs_by_field(num_fields):
            field, block = values[:, i], blocks[:, pairs].flatten(1)
            grad_fields[:, i + 1 :].addcmul_(grad[:, pairs], (field @ block).view(batch, -1, dim))
            grad_left = (grad[:, pairs] * values[:, i + 1 :]).flatten(1)
            grad_fields[:, i].add_(grad_left @ block.t())
            torch.mm(field.t(), grad_left, out=grad_blocks[:, pairs].flatten(1))
        return grad_fields, grad_blocks.transpose(0, 1).to(weights.dtype), None


def pairs_by_field(num_fields: int) -> Iterator[tuple[int, slice]]:
    """Every field i that has pairs (i, i + 1), ..., (i, F - 1), and where they stand among all pairs."""
    first = 0
    for i in range(num_fields - 1):
        count = num_fields - 1 - i
        yield i, slice(first, first + count)
        first += count


def side_by_side(weights: Tensor) -> Tensor:
    """[P, D, D] as [D, P, D] in memory, so that the blocks of neighbouring pairs are one matrix [D, n D] of it."""
    return weights.transpose(0, 1).contiguous()


class LinearPart(nn.Module):
    """The first-order part of FiBiNET and its kin: one weight per feature value.

    FuxiCTR's LogisticRegression, except that an `embedding` field gets one weight per dimension; FuxiCTR stacks the
    raw [B, pretrain_dim] with the [B, 1] of the other fields and fails.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        names: the features that get weights; None for all.
    """

    def __init__(self, feature_map, names: list[str] | None = None):
        super().__init__()
        features = feature_map.features
        if names is None:
            names = [name for name, spec in features.items() if spec["type"] != "meta"]
        dense = [name for name in features if name in names and features[name]["type"] == "embedding"]
        looked_up = [name for name in names if name not in dense]
        self.embedding_layer = None
        if looked_up:
            self.embedding_layer = FeatureEmbedding(
                feature_map, 1, use_pretrain=False, use_sharing=False, required_feature_columns=looked_up
            )
        self.embedding_weights = nn.ModuleDict(
            {name: nn.Linear(features[name]["pretrain_dim"], 1, bias=False) for name in dense}
        )

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The sum of the weights of the features present.

        Args:
            inputs: {feature: [B] or [B, W]} of user-side and target-item features.

        Returns:
            float [B, 1].
        """
        rest = {name: values for name, values in inputs.items() if name not in self.embedding_weights}
        terms = [self.embedding_layer(rest).sum(dim=1)] if self.embedding_layer is not None and rest else []
        terms += [weights(inputs[name].float()) for name, weights in self.embedding_weights.items() if name in inputs]
        return sum(terms)


class DINAttention(nn.Module):
    """DIN's target attention over the history (Zhou et al. 2018), weights as FuxiCTR's DIN_Attention.

    The score of history item h for target t is MLP([t, h, t - h, t * h]). With the first layer's weights split by
    these four inputs, its value is (W1 + W3) t + (W2 - W3) h + W4 (t * h) + b: the first term is needed once per row,
    the second once per distinct item, only the third per position. Scores are not normalised (no softmax), so
    positions without an item add exactly nothing and are left out. In training a batch norm (Dice has one) takes its
    statistics over the padding too, as FuxiCTR's does: then they stay.

    Args:
        embedding_dim: W, the width of an item's vector.
        attention_units: hidden units of the MLP.
        hidden_activations: one for all, or one a layer.
        dropout_rate: after every hidden layer.
        use_softmax: normalise the scores over the history.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        attention_units: tuple[int, ...] = (32,),
        hidden_activations: str | list = "ReLU",
        output_activation: str | None = None,
        dropout_rate: float = 0.0,
        batch_norm: bool = False,
        use_softmax: bool = False,
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.use_softmax = use_softmax
        self.attention_layer = MLP_Block(
            input_dim=4 * embedding_dim,
            output_dim=1,
            hidden_units=list(attention_units),
            hidden_activations=hidden_activations,
            output_activation=output_activation,
            dropout_rates=dropout_rate,
            batch_norm=batch_norm,
        )
        self.has_batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in self.attention_layer.modules())

    def forward(self, target: Tensor, items: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """The history, weighted by its relevance for the target.

        Args:
            target: float [B, W].
            items: float [M, W], vectors of items.
            positions: integer [B, L], each history position's row in `items`; [1, L] where all rows have one history.
            mask: [B, L] or [1, L] as they, non-zero = a real history item.

        Returns:
            float [B, W].
        """
        if not positions.shape[1]:
            return torch.zeros_like(target)
        layers = self.attention_layer.mlp
        first = layers[0]
        w_target, w_item, w_difference, w_product = first.weight.chunk(4, dim=1)
        from_target = F.linear(target, w_target + w_difference, first.bias)
        from_item = F.linear(items, w_item - w_difference)
        # The largest tensors there are, in the type that the products read.
        items, target = items.to(autocast_dtype(items)), target.to(autocast_dtype(target))

        batch, length = target.shape[0], positions.shape[1]
        skips_padding = positions.shape[0] == batch and self.skips_padding(positions)
        if skips_padding:
            row, column = mask.nonzero(as_tuple=True)
            position = positions[row, column]
            its_target, its_bias = F.embedding(row, target), F.embedding(row, from_target)
        else:
            position = positions
            its_target, its_bias = target.unsqueeze(1), from_target.unsqueeze(1)
        history = look_up(items, position)
        hidden = F.linear(its_target * history, w_product) + its_bias + look_up(from_item, position)
        scores = sparing(layers[1:], hidden.flatten(0, -2)).squeeze(-1)

        if skips_padding and not self.use_softmax:
            weighted = history * scores.unsqueeze(-1)
            return torch.zeros_like(target, dtype=weighted.dtype).index_add(0, row, weighted)
        if skips_padding:
            full = scores.new_zeros(batch, length).index_put((row, column), scores)
        else:
            full = scores.view(batch, length) * mask.to(scores.dtype)
        if self.use_softmax:
            full = masked_softmax(full, mask)
        if skips_padding:
            history = look_up(items, positions)
        return weighted_sum(full.to(history.dtype), history)

    def skips_padding(self, positions: Tensor) -> bool:
        """Whether to leave out positions without an item: finding them costs a GPU a wait, which training avoids."""
        if self.training and self.has_batch_norm:
            return False
        return not torch.is_grad_enabled() or positions.device.type == "cpu"


def sparing(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What the layers of an MLP_Block compute, with less kept for the backward pass.

    At every position of every history a hidden layer is the largest tensor there is. Of ReLU and dropout one tensor is
    kept in place of three, the output, which the next layer keeps anyway; of Dice two in place of four.

    Args:
        layers: of FuxiCTR's MLP_Block.
        x: float [N, D].

    Returns:
        float [N, D'], the same random numbers drawn in the same order.
    """
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        follower = rest[0] if rest else None
        if type(layer) is nn.ReLU and isinstance(follower, nn.Dropout) and follower.training and follower.p < 1:
            x = _ReLUDropout.apply(x, rest.pop(0).p)
        elif type(layer) is Dice:
            x = _DiceGate.apply(x, layer.bn(x), layer.alpha)
        else:
            x = layer(x)
    return x


class _ReLUDropout(torch.autograd.Function):
    """dropout(relu(x)); its output is positive exactly where x is and was not dropped, which is all backward asks."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        """Of the shape of x."""
        output = F.dropout(x.relu(), p)
        ctx.save_for_backward(output)
        ctx.scale = 1 / (1 - p)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, output, 0).mul_(ctx.scale), None  # the backward of ReLU itself


class _DiceGate(torch.autograd.Function):
    """p x + alpha (1 - p) x with p = sigmoid(normed), the activation of DIN (Zhou et al. 2018, eq. 3-4)."""

    @staticmethod
    def forward(ctx, x: Tensor, normed: Tensor, alpha: Tensor) -> Tensor:
        """float [N, D] of x and normed [N, D] and alpha [D]."""
        ctx.save_for_backward(x, normed, alpha)
        p = normed.sigmoid()
        return p * x + alpha * (1 - p) * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, normed and alpha."""
        x, normed, alpha = ctx.saved_tensors
        p = normed.sigmoid()
        rest = 1 - p
        grad_alpha = (grad * x * rest).sum(dim=0)
        grad_normed = grad * x * (1 - alpha) * (p * rest)
        return (grad * (p + alpha * rest)).to(x.dtype), grad_normed.to(normed.dtype), grad_alpha.to(alpha.dtype)


def logit_mlp(
    input_dim: int, hidden_units: list[int] | tuple[int, ...], activations: str, dropout: float, batch_norm: bool
) -> MLP_Block:
    """FuxiCTR's MLP from features to one logit: float [B, input_dim] to float [B, 1]."""
    return MLP_Block(
        input_dim=input_dim,
        output_dim=1,
        hidden_units=list(hidden_units),
        hidden_activations=activations,
        dropout_rates=dropout,
        batch_norm=batch_norm,
    )


def last_width(name: str, hidden_units: list[int] | tuple[int, ...]) -> int:
    """The width of an MLP's last hidden layer.

    Raises:
        UserError: there is none, and something is to be put on it.
    """
    if not hidden_units:
        raise UserError(f"{name} is empty, expected the units of one layer or more, for example [64, 64, 64]")
    return hidden_units[-1]


def require_divisor(name: str, value: int, **widths: int) -> None:
    """A UserError unless `value` divides all of these widths, which are named in it."""
    if value < 1 or any(width % value for width in widths.values()):
        expected = " and ".join(f"{width} ({what})" for what, width in widths.items())
        raise UserError(f"{name} is {value}, expected a divisor of {expected}")


def require_numbers_to_norm(name: str, width: int) -> None:
    """A UserError where a layer norm would be of one number: it makes 0 of whatever that is."""
    if width < 2:
        raise UserError(f"{name} is {width}, expected 2 or more: a layer norm of one number is 0 whatever it was")


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the real positions of the last dimension; zeros everywhere where there is none.

    Args:
        scores: float [..., L].
        mask: broadcastable to it, non-zero = a real position.

    Returns:
        float [..., L].
    """
    real = mask > 0
    weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights * real


def dot_products(query: Tensor, history: Tensor) -> Tensor:
    """float [B, W] and [B, L, W], or [1, L, W] where all rows have one history, to [B, L]."""
    if len(history) == 1:
        return query @ history[0].T
    return torch.bmm(history, query.unsqueeze(2)).squeeze(2)


def weighted_sum(weights: Tensor, history: Tensor) -> Tensor:
    """float [B, L] and [B, L, W], or [1, L, W] where all rows have one history, to [B, W]."""
    if len(history) == 1:
        return weights @ history[0]
    return torch.bmm(weights.unsqueeze(1), history).squeeze(1)


def mean_pooling(items: Tensor, positions: Tensor, mask: Tensor, padding_row: int | None) -> Tensor:
    """The mean of the real history items; zeros where there is none.

    Args:
        items: float [M, W].
        positions: integer [B, L], rows of `items`.
        mask: [B, L], non-zero = a real history item.
        padding_row: the row every padded position points at, when there is one: the pooling then reads only real ones.

    Returns:
        float [B, W].
    """
    if padding_row is not None:
        return pool_rows(items, positions, "mean", padding_row)
    weights = mask.to(items.dtype)
    summed = torch.bmm(weights.unsqueeze(1), look_up(items, positions)).squeeze(1)
    return summed / weights.sum(dim=1, keepdim=True).clamp(min=1)

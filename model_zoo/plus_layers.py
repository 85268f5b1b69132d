"""FiBiNET++'s layers: SENET+ and bilinear+ (Zhang et al., CIKM 2022, section 3).

FiBiNET multiplies every pair of fields to a vector and hands P * D numbers to its MLP, twice. FiBiNET++ hands it one
number a pair, compressed, and beside them the fields themselves, re-weighted element by element. Its MLP is then a
fraction of the size, and what a single field says reaches it without passing through a product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_fibinet.precision import autocast_dtype, without_autocast

from .layers import pairs_by_field, side_by_side


class FieldNorm(nn.Module):
    """Normalises each field: a layer norm for embedded fields, a batch norm for numeric ones (FiBiNET++, eq. 8).

    A numeric field is a number times a vector; a layer norm would take the number away.

    Args:
        embedding_dim: D.
        numeric: F flags, which fields come from numbers.
    """

    def __init__(self, embedding_dim: int, numeric: list[bool]):
        super().__init__()
        embedded = [i for i, flag in enumerate(numeric) if not flag]
        numbers = [i for i, flag in enumerate(numeric) if flag]
        self.register_buffer("embedded", torch.tensor(embedded), persistent=False)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("place", torch.tensor(embedded + numbers).argsort(), persistent=False)
        self.split = len(embedded) if embedded + numbers == list(range(len(numeric))) else None  # nothing to reorder
        self.weight = nn.Parameter(torch.ones(len(embedded), embedding_dim))
        self.bias = nn.Parameter(torch.zeros(len(embedded), embedding_dim))
        self.batch_norm = nn.BatchNorm1d(len(numbers) * embedding_dim) if numbers else None

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to the same shape."""
        if self.split is None:
            embedded, numbers = fields.index_select(1, self.embedded), fields.index_select(1, self.numbers)
        else:
            embedded, numbers = fields[:, : self.split], fields[:, self.split :]
        embedded = F.layer_norm(embedded, fields.shape[-1:]) * self.weight + self.bias
        if self.batch_norm is None:
            return embedded
        numbers = self.batch_norm(numbers.flatten(1)).view_as(numbers)
        normed = torch.cat([embedded, numbers], dim=1)
        return normed if self.split is not None else normed.index_select(1, self.place)


class SENETPlus(nn.Module):
    """Re-weights every element of every field, adds the field, and normalises (FiBiNET++, section 3.3).

    Squeeze: each field in `num_groups` groups, of each its maximum and its mean. Excitation: two linear maps with a
    ReLU between them, to one weight an element. Fuse: the re-weighted field plus the field, layer-normed.

    Args:
        num_fields: F.
        embedding_dim: D, a multiple of num_groups.
        reduction_ratio: the hidden layer has 2 F num_groups / reduction_ratio units.
        num_groups: groups of a field.
    """

    def __init__(self, num_fields: int, embedding_dim: int, reduction_ratio: float = 3, num_groups: int = 2):
        super().__init__()
        self.num_groups = num_groups
        squeezed = 2 * num_groups * num_fields
        hidden = max(int(squeezed / reduction_ratio), 1)
        self.excitation = nn.Sequential(
            nn.Linear(squeezed, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, num_fields * embedding_dim, bias=False),
        )
        self.weight = nn.Parameter(torch.ones(num_fields, embedding_dim))
        self.bias = nn.Parameter(torch.zeros(num_fields, embedding_dim))

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to the same shape."""
        groups = fields.unflatten(-1, (self.num_groups, -1))
        squeezed = torch.cat([groups.amax(dim=-1), groups.mean(dim=-1)], dim=-1).flatten(1)
        weights = self.excitation(squeezed).view_as(fields)
        fused = fields * weights + fields
        return F.layer_norm(fused, fused.shape[-1:]) * self.weight + self.bias


class BilinearPlus(nn.Module):
    """Bilinear interactions as one number a pair, then a linear layer over all pairs (FiBiNET++, eq. 10-12).

    Args:
        num_fields: F.
        embedding_dim: D.
        bilinear_type: "field_all" (the paper's: one W), "field_each" or "field_interaction".
        output_dim: M, of the linear layer (the paper's low-rank layer).
    """

    def __init__(self, num_fields: int, embedding_dim: int, bilinear_type: str = "field_all", output_dim: int = 50):
        super().__init__()
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("flat_index", first * num_fields + second, persistent=False)
        self.bilinear_type = bilinear_type
        self.num_pairs = len(first)
        blocks = {"field_all": (), "field_each": (num_fields,), "field_interaction": (self.num_pairs,)}[bilinear_type]
        self.bilinear_W = nn.Parameter(torch.empty(*blocks, embedding_dim, embedding_dim))
        nn.init.xavier_normal_(self.bilinear_W)
        self.low_rank = nn.Linear(self.num_pairs, output_dim)

    def forward(self, fields: Tensor) -> Tensor:
        """float [B, F, D] to float [B, M]."""
        return self.low_rank(self.products(fields))

    def products(self, fields: Tensor) -> Tensor:
        """<v_i W, v_j> of all pairs i < j, in the order (0,1), (0,2), ..., (F-2,F-1): float [B, P]."""
        if self.bilinear_type == "field_interaction":
            dtype = autocast_dtype(fields)
            if torch.is_grad_enabled():
                return _PairSums.apply(fields, self.bilinear_W, dtype)
            with without_autocast(fields.device.type):
                return self.products_by_field(fields.to(dtype), self.bilinear_W.to(dtype))
        if self.bilinear_type == "field_each":
            left = torch.bmm(fields.transpose(0, 1), self.bilinear_W).transpose(0, 1)
        else:
            left = fields @ self.bilinear_W
        return torch.bmm(left, fields.transpose(1, 2)).flatten(1).index_select(1, self.flat_index)

    @staticmethod
    def products_by_field(fields: Tensor, weights: Tensor) -> Tensor:
        """`products` with a W a pair, in the type of `fields`; each is summed in float32 (float64 of float64)."""
        sum_dtype = torch.promote_types(fields.dtype, torch.float32)
        products = []
        for i, pairs in pairs_by_field(fields.shape[1]):
            left = _left(fields[:, i], side_by_side(weights[pairs]))
            products.append((left * fields[:, i + 1 :]).sum(dim=-1, dtype=sum_dtype))
        return torch.cat(products, dim=1)


class _PairSums(torch.autograd.Function):
    """BilinearPlus.products_by_field with its gradients, from float [B, F, D] and [P, D, D] to float32 [B, P].

    Autograd would make a gradient of all fields for each slice of them, zeros but for the slice, and add them up. And
    left to autocast, whatever is as large as all pairs' vectors would be widened to float32 and stored so: here it is
    of `dtype`.
    """

    @staticmethod
    def forward(ctx, fields: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, P]."""
        values, blocks = fields.to(dtype), side_by_side(weights.to(dtype))
        output = values.new_empty(len(fields), len(weights), dtype=torch.promote_types(dtype, torch.float32))
        lefts = []
        for i, pairs in pairs_by_field(fields.shape[1]):
            lefts.append(_left(values[:, i], blocks[:, pairs]))
            torch.sum(lefts[-1] * values[:, i + 1 :], dim=-1, dtype=output.dtype, out=output[:, pairs])
        ctx.save_for_backward(fields, weights, *lefts)
        ctx.dtype = dtype
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of fields [B, F, D] and weights [P, D, D], from that of the output, in the inputs' type."""
        fields, weights, *lefts = ctx.saved_tensors
        values, blocks = fields.to(ctx.dtype), side_by_side(weights.to(ctx.dtype))
        grad = grad.to(ctx.dtype).unsqueeze(-1)
        grad_fields, grad_blocks = torch.zeros_like(fields), torch.empty_like(blocks)
        for (i, pairs), left in zip(pairs_by_field(fields.shape[1]), lefts, strict=True):
            grad_fields[:, i + 1 :].addcmul_(grad[:, pairs], left)
            grad_left = (grad[:, pairs] * values[:, i + 1 :]).flatten(1)
            grad_fields[:, i].add_(grad_left @ blocks[:, pairs].flatten(1).t())
            torch.mm(values[:, i].t(), grad_left, out=grad_blocks[:, pairs].flatten(1))
        return grad_fields, grad_blocks.transpose(0, 1).to(weights.dtype), None


def _left(field: Tensor, blocks: Tensor) -> Tensor:
    """v_i W_ij of a field's pairs: [B, D] and their weights side by side, [D, n, D], to [B, n, D]."""
    return (field @ blocks.flatten(1)).unflatten(1, blocks.shape[1:])

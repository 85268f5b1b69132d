"""A low-rank fusion of the items' embeddings beside a model's interactions: a logit of its own.

An interaction of fields is of two at a time. LMF's product (Liu et al., ACL 2018, arXiv 1806.00064) is of all
modalities at once: what the text says of the target and of the history, what the image says of both, and
what all fields of the row say. Here it stands beside the interactions, and the two logits are added.

What it learns depends much on its start: two seeds differ by more than settings do. So it can have several heads, which
start apart, share all that is before them and each learn by a loss of their own; a row's score is the mean of theirs
(TreeNets: Lee et al. 2015, arXiv 1511.06314).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Inputs
from .layers import mean_pooling
from .token_linear import TokenLinear


class ModalityFusion(nn.Module):
    """Logits of the items' embeddings and a row's fields.

    Args:
        pretrain_dims: {embedding column: E}.
        embedding_dim: D, to which each column is projected.
        fields_dim: F * D of the row's fields, which are one more modality.
        reads_history: the mean over the history is read beside the target.
        fusion_dim, num_ranks, dropout: as FusionHeads'.
        num_heads: H.
    """

    def __init__(
        self,
        pretrain_dims: dict[str, int],
        embedding_dim: int,
        fields_dim: int,
        reads_history: bool,
        fusion_dim: int,
        num_ranks: int,
        num_heads: int,
        dropout: float,
    ):
        super().__init__()
        self.columns, self.embedding_dim, self.reads_history = list(pretrain_dims), embedding_dim, reads_history
        self.projections = nn.ModuleList(nn.Linear(dim, embedding_dim, bias=False) for dim in pretrain_dims.values())
        dims = [embedding_dim * (1 + reads_history)] * len(self.columns) + [fields_dim]
        self.heads = FusionHeads(dims, fusion_dim, num_ranks, num_heads, dropout)

    def item_vectors(self, columns: dict[str, Tensor]) -> list[Tensor]:
        """The projected columns: {column: [M, E]} to one float [M, D] a column."""
        return [project(columns[name].float()) for name, project in zip(self.columns, self.projections, strict=True)]

    def modalities(self, batch: Inputs, items: list[Tensor], target: list[Tensor]) -> list[Tensor]:
        """What each column says of the target and of the history.

        Args:
            batch: the batch.
            items: float [M, D] a column, of `item_vectors`.
            target: float [B, D] a column, those of the targets.

        Returns:
            float [B, 2 D] a column; [B, D] without reads_history.
        """
        if not self.reads_history:
            return target
        pooled = mean_pooling(torch.cat(items, dim=1), batch.history, batch.mask, batch.padding_row)
        means = pooled.expand(target[0].shape[0], -1).split(self.embedding_dim, dim=1)
        return [torch.cat(both, dim=1) for both in zip(target, means, strict=True)]

    def forward(self, modalities: list[Tensor], fields: Tensor) -> Tensor:
        """Fuse.

        Args:
            modalities: of `modalities`.
            fields: float [B, F, D].

        Returns:
            float [B, H].
        """
        return self.heads([*modalities, fields.flatten(1)])


class FusionHeads(nn.Module):
    """H logits: each of a network for each modality, their fusion, and a network of that; all heads at once.

    Args:
        dims: of the modalities.
        fusion_dim: U, of each modality's network, of the fused vector and of the one layer that makes the logit of it.
        num_ranks: R, as LMF's.
        num_heads: H.
        dropout: of these networks.
    """

    def __init__(self, dims: list[int], fusion_dim: int, num_ranks: int, num_heads: int, dropout: float):
        super().__init__()
        self.networks = nn.ModuleList(LinearOfHeads(num_heads, dim, fusion_dim) for dim in dims)
        self.fusion = LowRankFusion([fusion_dim] * len(dims), fusion_dim, num_ranks, num_heads)
        nn.init.constant_(self.fusion.rank_weights, num_ranks**-0.5)  # by random ones runs differed in luck
        self.hidden = TokenLinear(num_heads, fusion_dim, fusion_dim)
        self.output = TokenLinear(num_heads, fusion_dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, modalities: list[Tensor]) -> Tensor:
        """float [B, d_m] a modality to float [B, H]."""
        read = zip(self.networks, modalities, strict=True)
        fused = self.fusion([self.dropout(network(vectors).relu()).transpose(0, 1) for network, vectors in read])
        return self.output(self.dropout(self.hidden(fused.transpose(0, 1)).relu())).squeeze(2)


class LinearOfHeads(nn.Module):
    """A linear layer a head of one input, all of them one product.

    Args:
        num_heads: H.
        input_dim: d.
        output_dim: U.
    """

    def __init__(self, num_heads: int, input_dim: int, output_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, output_dim, input_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, output_dim))
        for weight in self.weight.data:
            nn.init.xavier_normal_(weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """float [B, d] to float [B, H, U]."""
        return F.linear(vectors, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, self.bias.shape)


class LowRankFusion(nn.Module):
    """sum_r w_r prod_m W_m^r [h_m; 1] + b (the paper's eq. 8, with the weights and the bias of its authors' code).

    Args:
        dims: of the modalities.
        output_dim: D.
        num_ranks: R.
        num_heads: H fusions at once, each of vectors of its own; None for one, of vectors without that axis.
    """

    def __init__(self, dims: list[int], output_dim: int, num_ranks: int, num_heads: int | None = None):
        super().__init__()
        heads = () if num_heads is None else (num_heads,)
        self.factors = nn.ParameterList(torch.empty(*heads, num_ranks, dim + 1, output_dim) for dim in dims)
        self.rank_weights = nn.Parameter(torch.empty(num_heads or 1, num_ranks))
        self.bias = nn.Parameter(torch.zeros(*heads, output_dim))
        for factor in self.factors:
            for matrix in factor.data.flatten(0, -3):
                nn.init.xavier_normal_(matrix)
        nn.init.xavier_normal_(self.rank_weights)

    def forward(self, modalities: list[Tensor]) -> Tensor:
        """float [B, d_m] a modality to float [B, D], or [H, B, d_m] to [H, B, D]."""
        read = zip(modalities, self.factors, strict=True)
        # the last row meets the 1; [R, B, D] or [H, R, B, D] a modality
        mapped = [vectors.unsqueeze(-3) @ factor[..., :-1, :] + factor[..., -1:, :] for vectors, factor in read]
        product = functools.reduce(torch.mul, mapped)
        weights = self.rank_weights.view(product.shape[:-2])
        return torch.einsum("...r,...rbd->...bd", weights, product) + self.bias.unsqueeze(-2)

"""A low-rank fusion of the items' embeddings beside a model's interactions: a logit of its own.

An interaction of fields is of two at a time. LMF's product (Liu et al., ACL 2018, arXiv 1806.00064) is of all
modalities at once: what the text says of the target and of the history, what the image says of both, and
what all fields of the row say. Here it stands beside the interactions, and the two logits are added.

What it learns depends much on its start: two seeds differ by more than settings do. So it can have several heads, which
start apart, share all that is before them and each learn by a loss of their own; a row's score is the mean of theirs
(TreeNets: Lee et al. 2015, arXiv 1511.06314).
"""

import torch
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Inputs
from .layers import logit_mlp, mean_pooling


class ModalityFusion(nn.Module):
    """Logits of the items' embeddings and a row's fields.

    Args:
        pretrain_dims: {embedding column: E}.
        embedding_dim: D, to which each column is projected.
        fields_dim: F * D of the row's fields, which are one more modality.
        reads_history: the mean over the history is read beside the target.
        fusion_dim, num_ranks, dropout: of each head, as FusionHead's.
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
        self.heads = nn.ModuleList(FusionHead(dims, fusion_dim, num_ranks, dropout) for _ in range(num_heads))

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
        read = [*modalities, fields.flatten(1)]
        return torch.cat([head(read) for head in self.heads], dim=1)


class FusionHead(nn.Module):
    """One logit: a network for each modality, their fusion, and a network of that.

    Args:
        dims: of the modalities.
        fusion_dim: of each modality's network, of the fused vector and of the one layer that makes the logit of it.
        num_ranks: R, as LMF's.
        dropout: of these networks.
    """

    def __init__(self, dims: list[int], fusion_dim: int, num_ranks: int, dropout: float):
        super().__init__()
        self.networks = nn.ModuleList(
            MLP_Block(input_dim=dim, hidden_units=[fusion_dim], hidden_activations="ReLU", dropout_rates=dropout)
            for dim in dims
        )
        self.fusion = LowRankFusion([fusion_dim] * len(dims), fusion_dim, num_ranks)
        nn.init.constant_(self.fusion.rank_weights, num_ranks**-0.5)  # by random ones runs differed in luck
        self.dnn = logit_mlp(fusion_dim, [fusion_dim], "ReLU", dropout, False)

    def forward(self, modalities: list[Tensor]) -> Tensor:
        """float [B, d_m] a modality to float [B, 1]."""
        hidden = [network(vectors) for network, vectors in zip(self.networks, modalities, strict=True)]
        return self.dnn(self.fusion(hidden))


class LowRankFusion(nn.Module):
    """sum_r w_r prod_m W_m^r [h_m; 1] + b (the paper's eq. 8, with the weights and the bias of its authors' code).

    Args:
        dims: of the modalities.
        output_dim: D.
        num_ranks: R.
    """

    def __init__(self, dims: list[int], output_dim: int, num_ranks: int):
        super().__init__()
        self.factors = nn.ParameterList(torch.empty(num_ranks, dim + 1, output_dim) for dim in dims)
        self.rank_weights = nn.Parameter(torch.empty(1, num_ranks))
        self.bias = nn.Parameter(torch.zeros(output_dim))
        for factor in self.factors:
            for matrix in factor.data:
                nn.init.xavier_normal_(matrix)
        nn.init.xavier_normal_(self.rank_weights)

    def forward(self, modalities: list[Tensor]) -> Tensor:
        """float [B, d_m] a modality to float [B, D]."""
        product = None
        for vectors, factor in zip(modalities, self.factors, strict=True):
            mapped = vectors @ factor[:, :-1] + factor[:, -1:]  # [R, B, D]; the last row meets the 1
            product = mapped if product is None else product * mapped
        return torch.einsum("r,rbd->bd", self.rank_weights[0], product) + self.bias

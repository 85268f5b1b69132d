"""MARN: what modalities share and what is their own, told apart by adversaries (Li et al., WWW 2020, arXiv 2003.07162).

Every feature of an item is a modality. It has a specific part, weighed by an attention over the modalities, and an
invariant one, from a map that all share. Discriminators guess which modality a part came from: they should know it of
the specific parts, and the map of the invariant ones is trained until they cannot. A first discriminator, which
trains nothing but itself, says which invariant parts still show where they came from; the second leaves those aside.

All this as summaries of the paper give it. Its user is a recurrent network with attention; here it is DIN's attention
over the items' representations. The item's invariant part is the mean over its modalities. Discriminators see the
target items of a batch.
"""

import torch
from torch import Tensor, nn

from mm_fibinet.errors import UserError

from .history import HistoryModel
from .layers import DINAttention, logit_mlp
from .modalities import require_modalities


class MARN(HistoryModel):
    """Items of specific and invariant parts, DIN's attention over the history, an MLP; discriminators in the loss.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        modality_features: embedding columns of the items that must be there; all there are unless given. A column
            that the data set's entry does not name is read from item_info.
        modality_dim: D of a part and of an item.
        adversarial_weight: of the discriminators' losses beside that of the clicks.
        attention_hidden_units: of DIN's attention.
        dnn_hidden_units, dnn_activations, net_dropout, batch_norm: of the MLP.
        kwargs: what HistoryModel takes.

    Raises:
        UserError: there is no embedding column, or no second feature.
    """

    def __init__(
        self,
        feature_map,
        modality_features=(),
        modality_dim=64,
        adversarial_weight=0.05,
        attention_hidden_units=(64,),
        dnn_hidden_units=(64, 64),
        dnn_activations="ReLU",
        net_dropout=0.0,
        batch_norm=False,
        **kwargs,
    ):
        require_modalities("MARN", feature_map, modality_features, kwargs.get("similarity_only"))
        super().__init__(feature_map, **kwargs)
        num_modalities = len(self.feature_widths)
        if num_modalities < 2:
            raise UserError(
                f"MARN tells modalities apart, but {', '.join(self.vector_features)} is the only feature of the items; "
                "add item_id or another embedding to feature_cols"
            )
        self.adversarial_weight = adversarial_weight
        self.parts = ModalityParts(self.feature_widths, modality_dim)
        self.first_discriminator = nn.Linear(modality_dim, num_modalities)
        self.discriminator = nn.Linear(modality_dim, num_modalities)
        self.attention_layers = DINAttention(modality_dim, attention_hidden_units)
        self.dnn = logit_mlp(
            self.row_dim + 2 * modality_dim, dnn_hidden_units, dnn_activations, net_dropout, batch_norm
        )

    def forward(self, inputs) -> dict[str, Tensor]:
        """Click probabilities and the parts of the target.

        Args:
            inputs: an IndexBatch, the challenge's triple, or a dictionary of the target's features (no history).

        Returns:
            {"y_pred": float [B, 1], "specific", "invariant": float [B, modalities, D]}.
        """
        batch = self.read_batch(inputs)
        items, target = self.logit_inputs(batch)
        row = self.row_vectors(batch, items, target)
        specific, invariant = self.parts(target)
        target = self.parts.combine(specific, invariant)
        items = self.parts.combine(*self.parts(items))
        pooled = self.attention_layers(target, items, batch.history, batch.mask)
        logit = self.dnn(torch.cat([row, target, pooled], dim=-1)).float()
        return {"y_pred": self.output_activation(logit), "specific": specific, "invariant": invariant}

    def add_loss(self, return_dict: dict[str, Tensor], y_true: Tensor) -> Tensor:
        """The clicks' loss plus adversarial_weight times those of the discriminators.

        Args:
            return_dict: of `forward`.
            y_true: float [B, 1], 1 = click.
        """
        specific, invariant = return_dict["specific"].float(), return_dict["invariant"].float()
        first = self.first_discriminator(invariant.detach()).log_softmax(dim=-1)
        own = (first.diagonal(dim1=1, dim2=2)).exp().detach()  # how surely a part is known for its modality's
        fooled = self.discriminator(reverse_gradient(invariant)).log_softmax(dim=-1)
        known = self.discriminator(specific).log_softmax(dim=-1)
        terms = [cross_entropy(first), cross_entropy(fooled, 1 - own), cross_entropy(known)]
        return super().add_loss(return_dict, y_true) + self.adversarial_weight * sum(terms)


class ModalityParts(nn.Module):
    """The specific and the invariant part of each modality of an item.

    Args:
        widths: of the modalities' vectors, side by side.
        dim: D.
    """

    def __init__(self, widths: list[int], dim: int):
        super().__init__()
        self.widths = widths
        self.specific = nn.ModuleList(nn.Linear(width, dim) for width in widths)
        self.common = nn.ModuleList(nn.Linear(width, dim) for width in widths)
        self.invariant = nn.Linear(dim, dim)
        self.attention = nn.ModuleList(nn.Linear(dim, dim) for _ in widths)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """float [M, W] to (specific, invariant), each float [M, modalities, D]."""
        vectors = items.split(self.widths, dim=-1)
        specific = [layer(vector).relu() for layer, vector in zip(self.specific, vectors, strict=True)]
        common = [layer(vector) for layer, vector in zip(self.common, vectors, strict=True)]
        return torch.stack(specific, dim=1), self.invariant(torch.stack(common, dim=1)).relu()

    def combine(self, specific: Tensor, invariant: Tensor) -> Tensor:
        """sum_m tanh(W_m s_m + b_m) * s_m plus the mean of the invariant parts: float [M, D]."""
        weights = [layer(part).tanh() for layer, part in zip(self.attention, specific.unbind(dim=1), strict=True)]
        return (torch.stack(weights, dim=1) * specific).sum(dim=1) + invariant.mean(dim=1)


def reverse_gradient(values: Tensor) -> Tensor:
    """The same values; what a loss of them would lower, its gradient raises."""
    return 2 * values.detach() - values


def cross_entropy(log_likelihood: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over items and modalities of -log p(its own modality).

    Args:
        log_likelihood: float [B, modalities, modalities], of each part for each modality.
        weights: float [B, modalities]; 1 unless given.
    """
    own = -log_likelihood.diagonal(dim1=1, dim2=2)
    return (own if weights is None else own * weights).mean()

"""What the history says of the target by their content: layers of frozen embeddings, for every model.

An item's embedding of text or image says how alike two items are whether or not anybody ever clicked on one of them.
These layers read that likeness, the cosine of the target with each history item, in three ways: they count it
(SimTier), they let it steer an attention (SA-TA, buckets), and a model can keep only the nearest items of a long
history (`nearest_history`). With them stands cross attention, which reads the items' whole vectors.

`InterestModel` makes them of settings; a model of fields takes each output as a field, one of vectors puts them beside
the row's. All are off unless asked for.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ
from mm_fibinet.similarity import cosines

from .base import Inputs, MultimodalModel
from .cross_attention import CrossAttention, NormedLayer
from .layers import masked_softmax
from .lookup import look_up
from .modalities import embedding_features

TIER_WIDTH = 0.1
NUM_TIERS = 22  # ceil(cosine / 0.1) + 10: 0 .. 20, and 21 for what rounding makes of a cosine of 1
TIER_DIM = 2  # MUSE's
SA_TA_HEADS = 2  # MUSE's


class InterestModel(MultimodalModel):
    """A model of the target and a history of items, with the layers of this file as settings.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        simtier: embedding features, of each a SimTier histogram.
        sa_ta: embedding features whose cosines steer one attention over the history, MUSE's SA-TA.
        bucket_attention: embedding features whose cosines are side information of one attention over the history.
        cross_attention_layers: layers in which the target attends to the history, as DIN_att_emb_rms has them.
        interest_dropout: of those layers.
        content_search: an embedding feature; only the history items nearest to the target by it are read, whatever
            reads the history.
        content_search_len: how many.
        similarity_only: item features that are compared only, by one of these settings, and are no features of the
            items' vectors.
        id_dropout: share of the training rows whose target is without its item_id's embedding, so that the model learns
            to score an item it has none for (a cold one) by its content.
        kwargs: what MultimodalModel takes.

    Raises:
        UserError: a setting names what is no embedding of the items, or there is no history to compare with.
    """

    def __init__(
        self,
        feature_map,
        simtier=(),
        sa_ta=(),
        bucket_attention=(),
        cross_attention_layers=0,
        interest_dropout=0.0,
        content_search=None,
        content_search_len=50,
        similarity_only=(),
        id_dropout=0.0,
        **kwargs,
    ):
        super().__init__(feature_map, **kwargs)
        self.id_dropout = id_dropout
        self.content_search, self.content_search_len = content_search, int(content_search_len)
        self.interest_settings = {
            "simtier": list(simtier or ()),
            "sa_ta": list(sa_ta or ()),
            "bucket_attention": list(bucket_attention or ()),
        }
        self.cross_attention_layers, self.interest_dropout = cross_attention_layers, interest_dropout
        for setting, names in {**self.interest_settings, "content_search": self._searched_by()}.items():
            self._require_embeddings(setting, names)
        if cross_attention_layers:
            self._require_history("cross_attention_layers", cross_attention_layers)
        self.compared_features = self._compared_only(list(similarity_only or ()))
        self.item_features = [name for name in self.item_features if name not in self.compared_features]

    def read_batch(self, inputs) -> Inputs:
        """As MultimodalModel's; with content_search, of the nearest history items alone."""
        if self.content_search is None:
            return super().read_batch(inputs)
        if isinstance(inputs, IndexBatch):  # before anything of the other items is read
            items = self._item_columns(inputs.item_table.columns)[self.content_search]
            index, real = self._nearest(items, inputs.item_index, inputs.item_index[:, :-1] > 0)
            index[:, :-1] *= real
            return super().read_batch(inputs._replace(item_index=index))
        batch = super().read_batch(inputs)
        positions, real = self._nearest(batch.items[self.content_search], batch.positions, batch.mask > 0)
        return dataclasses.replace(batch, positions=positions, mask=real)

    def idle_settings(self) -> list[str]:
        """As MultimodalModel's: `id_dropout` where the items have no id."""
        if self.id_dropout and ITEM_ID not in self.item_features:
            return [f"id_dropout is {self.id_dropout}, but item_id is no feature of the items: there is no id to drop"]
        return []

    def make_interest(self, item_dim: int, width: int) -> "InterestLayers | None":
        """The layers that the settings ask for; None when they ask for none.

        Args:
            item_dim: W, of the items' vectors.
            width: of the attentions' outputs.
        """
        asked = {**self.interest_settings, "cross_attention_layers": self.cross_attention_layers}
        asked = {setting: value for setting, value in asked.items() if value}
        attending = [setting for setting in asked if setting != "simtier"]
        if attending and not item_dim:
            raise UserError(
                f"{attending[0]} is {asked[attending[0]]!r}, which attends to the items' vectors, but no feature of "
                "source item is in them; add item_id to feature_cols, or take simtier alone"
            )
        return InterestLayers(item_dim, width, dropout=self.interest_dropout, **asked) if asked else None

    def _nearest(self, items: Tensor, positions: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        history, real = nearest_history(items, positions[:, -1], positions[:, :-1], real, self.content_search_len)
        return torch.cat([history, positions[:, -1:]], dim=1), real

    def _searched_by(self) -> list[str]:
        return [] if self.content_search is None else [self.content_search]

    def _require_history(self, setting: str, value: object) -> None:
        if ITEM_SEQ not in self.feature_map.features:
            raise UserError(
                f"{setting} is {value!r}, which compares the target with the history, but the feature map has no "
                f"{ITEM_SEQ}; add it to feature_cols and use_features, or leave {setting} out"
            )

    def _require_embeddings(self, setting: str, names: list[str]) -> None:
        """A UserError unless each of these is an embedding of the items, and there is a history."""
        known = embedding_features(self.feature_map)
        for name in names:
            if name not in known:
                raise UserError(
                    f"{setting} has {name!r}, expected features of source item and of type embedding, here "
                    f"{', '.join(known) or 'none'}; a column of item_info that is to be compared only is named in "
                    "similarity_only too"
                )
        if len(set(names)) < len(names):
            raise UserError(f"{setting} is {names}, expected each feature once")
        if names:
            self._require_history(setting, names)

    def _compared_only(self, names: list[str]) -> list[str]:
        """`similarity_only`, checked: each is compared by some setting."""
        compared = {*self._searched_by(), *itertools.chain(*self.interest_settings.values())}
        for name in names:
            if name not in compared and not self._is_compared(name):
                raise UserError(
                    f"similarity_only has {name!r}, expected features of source item that a setting compares: of type "
                    f"embedding or sequence and similarity_fields: True, or named in "
                    f"{', '.join(self.interest_settings)} or content_search"
                )
        return names

    def _is_compared(self, name: str) -> bool:
        """Whether something beside this class's settings compares a feature."""
        return False


class InterestLayers(nn.Module):
    """The layers of one model, on cosines that are computed once a column.

    Args:
        item_dim: W, of the items' vectors.
        width: D, of the attentions' outputs.
        simtier, sa_ta, bucket_attention, cross_attention_layers: as InterestModel's.
        dropout: of cross attention.

    Attributes:
        widths: of the outputs, in their order.
        counts: for each output whether it is made of counts, whose size says something, and of no vectors.
    """

    def __init__(
        self,
        item_dim: int,
        width: int,
        simtier: Sequence[str] = (),
        sa_ta: Sequence[str] = (),
        bucket_attention: Sequence[str] = (),
        cross_attention_layers: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.columns = {"simtier": simtier, "sa_ta": sa_ta, "bucket_attention": bucket_attention}
        self.compared = list(dict.fromkeys(itertools.chain(*self.columns.values())))
        self.simtiers = nn.ModuleList(SimTier() for _ in simtier)
        self.widths = [NUM_TIERS * TIER_DIM for _ in simtier]
        self.sa_ta = self.bucket_attention = self.cross_attention = None
        if sa_ta:
            head_dim = max(width // SA_TA_HEADS, 1)
            self.sa_ta = SimilarityAwareAttention(item_dim, head_dim, len(sa_ta))
            self.widths.append(SA_TA_HEADS * head_dim)
        if bucket_attention:
            self.bucket_attention = BucketAttention(item_dim, width, len(bucket_attention))
            self.widths.append(width)
        if cross_attention_layers:
            self.cross_attention = CrossAttention(NormedLayer, item_dim, cross_attention_layers, dropout)
            self.widths.append(item_dim)
        self.counts = [i < len(self.simtiers) for i in range(len(self.widths))]

    def forward(self, batch: Inputs, items: Tensor, target: Tensor) -> list[Tensor]:
        """The outputs: float [B, width] each.

        Args:
            batch: the batch.
            items: float [M, W], the items' vectors.
            target: float [B, W], those of the targets.
        """
        found = {name: cosines(batch.items[name], batch.target, batch.history) for name in self.compared}
        near = {setting: [found[name] for name in names] for setting, names in self.columns.items()}
        outputs = [layer(cosine, batch.mask) for layer, cosine in zip(self.simtiers, near["simtier"], strict=True)]
        if self.sa_ta is not None:
            outputs.append(self.sa_ta(target, items, batch.history, batch.mask, near["sa_ta"]))
        if self.bucket_attention is not None:
            outputs.append(self.bucket_attention(target, items, batch.history, batch.mask, near["bucket_attention"]))
        if self.cross_attention is not None:
            outputs.append(self.cross_attention(target, look_up(items, batch.history), batch.mask))
        return outputs


def nearest_history(items: Tensor, target: Tensor, history: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The history items of the largest cosine to the target, in their order (the search of MUSE, arXiv 2512.07216).

    An item whose cosine is 0 has no vector, or its target has none, and counts as padding.

    Args:
        items: float or int8 [M, E].
        target: integer [B], history: integer [B, L]; rows of `items`.
        real: bool [B, L].
        count: K.

    Returns:
        (integer [B, min(K, L)], rows of `items`; bool of the same shape, real ones; those at the end).
    """
    near = cosines(items, target, history)
    near = near.masked_fill(~real | (near == 0), -torch.inf)
    best, place = near.topk(min(count, history.shape[1]), dim=1)
    place = place.masked_fill(best == -torch.inf, -1).sort(dim=1).values
    return history.gather(1, place.clamp(min=0)), place >= 0


def tiers(cosine: Tensor) -> Tensor:
    """The tier of a cosine (SimTier of MAKE, arXiv 2407.19467): float [...] to int64 [...], 0 .. 21."""
    return ((cosine / TIER_WIDTH).ceil() + 10).long().clamp(0, NUM_TIERS - 1)


def tier_sums(cosine: Tensor, weights: Tensor) -> Tensor:
    """The sum of the weights in each tier: float [B, L] twice to float [B, 22]."""
    return weights.new_zeros(len(weights), NUM_TIERS).scatter_add(1, tiers(cosine), weights)


class SimTier(nn.Module):
    """How many history items are how near to the target (SimTier of MAKE, arXiv 2407.19467, as MUSE has it).

    A learned vector a tier of the cosine, times log(1 + how many history items are in it).
    """

    def __init__(self):
        super().__init__()
        self.emb = nn.Parameter(torch.empty(NUM_TIERS, TIER_DIM))
        nn.init.xavier_normal_(self.emb)

    def forward(self, cosine: Tensor, mask: Tensor) -> Tensor:
        """Count.

        Args:
            cosine: float [B, L].
            mask: [B, L], non-zero = a real history item.

        Returns:
            float [B, 22 * 2].
        """
        counts = tier_sums(cosine, (mask > 0).float())
        return (counts.log1p().unsqueeze(-1) * self.emb).flatten(1)


class SimilarityAwareAttention(nn.Module):
    """Attention of the target over the history that cosines steer (SA-TA of MUSE, arXiv 2512.07216).

    A head's score is b1 * dot + b2 * c + b3 * dot * c, with dot of its query and key and c the sum of the columns'
    cosines, each over a temperature. Queries, keys and values are Linear layers with x * sigmoid(x); as none of them
    reads both items, keys and values are computed once an item and not at every position.

    Args:
        item_dim: W.
        head_dim: of a head's query, key and value.
        num_columns: of cosines.
        num_heads: H.
    """

    def __init__(self, item_dim: int, head_dim: int, num_columns: int, num_heads: int = SA_TA_HEADS):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(item_dim, num_heads * head_dim) for _ in range(3))
        self.temperature = nn.Parameter(torch.full((num_columns, num_heads), 0.1))
        self.factors = nn.Parameter(torch.ones(3, num_heads))

    def forward(self, target: Tensor, items: Tensor, positions: Tensor, mask: Tensor, cosine: list[Tensor]) -> Tensor:
        """Attend; a row without history gets zeros.

        Args:
            target: float [B, W].
            items: float [M, W].
            positions: integer [B, L], each history position's row in `items`.
            mask: [B, L], non-zero = a real history item.
            cosine: float [B, L] a column.

        Returns:
            float [B, H * head_dim].
        """
        heads = self.factors.shape[1]
        query = F.silu(self.query(target)).unflatten(1, (heads, -1)).unsqueeze(2)  # [B, H, 1, d]
        key = self._at_positions(self.key, items, positions)  # [B, H, L, d]
        dot = (query @ key.transpose(2, 3)).squeeze(2)  # [B, H, L]
        near = (torch.stack(cosine, dim=1).unsqueeze(2) / self.temperature[:, :, None]).sum(dim=1)
        b1, b2, b3 = self.factors.unsqueeze(-1)
        weights = masked_softmax(b1 * dot + b2 * near + b3 * dot * near, mask.unsqueeze(1))
        weights = (weights + 1e-7) * (mask.unsqueeze(1) > 0)  # MUSE's, but for its padding
        value = self._at_positions(self.value, items, positions)
        return (weights.to(value.dtype).unsqueeze(2) @ value).flatten(1)

    def _at_positions(self, layer: nn.Linear, items: Tensor, positions: Tensor) -> Tensor:
        """x * sigmoid(x) of a layer's outputs at each position: float [B, H, L, d]."""
        heads = self.factors.shape[1]
        return look_up(F.silu(layer(items)), positions).unflatten(2, (heads, -1)).transpose(1, 2)


class BucketAttention(nn.Module):
    """Attention of the target over the history with the tier of their cosine as side information (after DMF).

    DMF is arXiv 2510.11066. The tier's learned vectors are added to a history item's key and to its value. Neither sum
    is ever made: a query meets the 22 vectors of keys once a row, and the output gets each tier's vector once, times
    the sum of the weights in that tier.

    Args:
        item_dim: W.
        width: D, of query, key and value.
        num_columns: of cosines.
    """

    def __init__(self, item_dim: int, width: int, num_columns: int):
        super().__init__()
        self.query = nn.Linear(item_dim, width)
        self.key = nn.Linear(item_dim, width, bias=False)  # softmax would cancel it
        self.value = nn.Linear(item_dim, width)
        self.key_tiers = nn.Parameter(torch.empty(num_columns, NUM_TIERS, width))
        self.value_tiers = nn.Parameter(torch.empty(num_columns, NUM_TIERS, width))
        for table in (self.key_tiers, self.value_tiers):
            nn.init.normal_(table, std=width**-0.5)

    def forward(self, target: Tensor, items: Tensor, positions: Tensor, mask: Tensor, cosine: list[Tensor]) -> Tensor:
        """Attend; a row without history gets zeros.

        Args:
            target, items, positions, mask, cosine: as SimilarityAwareAttention's.

        Returns:
            float [B, D].
        """
        query = self.query(target) * self.key.out_features**-0.5
        scores = (look_up(self.key(items), positions) @ query.unsqueeze(-1)).squeeze(-1)
        for column, vectors in zip(cosine, self.key_tiers, strict=True):
            scores = scores + (query @ vectors.T).gather(1, tiers(column)).to(scores.dtype)
        weights = masked_softmax(scores, mask)
        pooled = (weights.unsqueeze(1) @ look_up(self.value(items), positions).to(weights.dtype)).squeeze(1)
        for column, vectors in zip(cosine, self.value_tiers, strict=True):
            pooled = pooled + tier_sums(column, weights) @ vectors
        return pooled

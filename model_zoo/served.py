"""Models as a server needs them: an item is encoded once, a history once a request, and only pairs are left to score.

A request is one history and C candidates. What a model makes of an item alone (its fields' embeddings, its vectors of
length 1 for cosines, its share of a linear part) is a row of a table that `ItemEncoder` fills at export. What is left
(`served`) reads such rows, one history for all candidates, and calls the model's own layers: no formula is written a
second time here, so the model that was trained is the model that is served.
"""

import copy
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fuxictr.pytorch.layers import FeatureEmbeddingDict, MaskedAveragePooling
from torch import Tensor, nn

from mm_fibinet.errors import UserError
from mm_fibinet.schema import ITEM_ID
from mm_fibinet.similarity import TOP, cosine_numbers, history_weights, level_numbers, tag_features_of_one

from .base import Inputs, MultimodalModel
from .dcnv2 import DCNv2
from .deepfm import DeepFM
from .din import DIN
from .din_att6 import DIN_att6
from .din_att_emb_rms import DIN_att_emb_rms
from .fibinet import FiBiNET
from .fields import FieldModel
from .history import HistoryModel
from .layers import LinearPart
from .plus_layers import BilinearPlus
from .qin import QIN
from .served_pairs import PairsWithOneHistory
from .transformer_dcn import Transformer_DCN

SERVED = (FiBiNET, DeepFM, DCNv2, DIN, DIN_att6, DIN_att_emb_rms, QIN, Transformer_DCN)
# Parts of an item's row beside its fields: a share, vectors of length 1, and what a fusion makes of columns.
LINEAR, UNIT, FUSED = "linear", "unit ", "fused "
PAIRS = 1 << 18  # of candidates and positions at once, of a few numbers each
WIDE_PAIRS = 1 << 15  # of hundreds of numbers each


@dataclass
class OneHistory(Inputs):
    """A batch whose rows all have the history of one request: `history` and `mask` are [1, L].

    Attributes:
        shares: float [C, 1], what the linear part makes of the candidates.
        fields: {feature: float [C, D]}, the candidates' vectors by feature.
    """

    shares: Tensor | None = None
    fields: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def target(self) -> Tensor:
        """integer [C]."""
        return self.positions

    @cached_property
    def history(self) -> Tensor:
        """integer [1, L], rows of the history's vectors."""
        return torch.arange(self.mask.shape[1], device=self.mask.device).unsqueeze(0)

    def target_columns(self) -> dict[str, Tensor]:
        """What ServedLinear reads."""
        return self.user if self.shares is None else {LINEAR: self.shares, **self.user}


class ServedLinear(nn.Module):
    """A LinearPart whose items' share is in their rows.

    Args:
        linear: the model's.
    """

    def __init__(self, linear: LinearPart):
        super().__init__()
        self.linear = linear

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """{LINEAR: float [C, 1], feature: [C] or [C, W]} to float [C, 1]."""
        row = {name: values for name, values in columns.items() if name != LINEAR}
        return columns[LINEAR] + self.linear(row) if row else columns[LINEAR]


class ItemEncoder(nn.Module):
    """What a model makes of items alone, as rows of a table.

    Args:
        model: one of SERVED.

    Attributes:
        features: the item features it reads, in the order of `forward`'s arguments.
        parts: {name: width} of a row, in its order; the first are those of the item's vector.
        of_content: the parts that do not depend on an item's id.
    """

    def __init__(self, model: MultimodalModel):
        super().__init__()
        self.model = model
        self.features = list(model.item_side_features())
        specs, similarity = model.feature_map.features, getattr(model, "similarity", None)
        self.compared = [] if similarity is None else similarity.embeddings
        self.has_linear = isinstance(getattr(model, "lr_layer", None), LinearPart)
        self.parts = dict(zip(model.vector_features, vector_widths(model), strict=True))
        self.parts |= {LINEAR: 1} if self.has_linear else {}
        self.parts |= {f"{UNIT}{name}": specs[name]["pretrain_dim"] for name in self.compared}
        self.parts |= {f"{FUSED}{name}": model.embedding_dim for name in fused_columns(model)}
        gate = getattr(model, "modality_gate", None)
        gated = list(itertools.compress(model.vector_features, gate.is_gated)) if gate is not None else []
        self.of_content = [name for name in self.parts if name not in (ITEM_ID, LINEAR, *gated)]

    def forward(self, *columns: Tensor) -> Tensor:
        """Encode.

        Args:
            columns: [M] or [M, width] of each of `features`.

        Returns:
            float [M, width of all parts].
        """
        items = dict(zip(self.features, columns, strict=True))
        batch = Inputs({}, items, torch.empty(0), torch.empty(0), None)
        parts = [self.model.item_vectors(batch)] if self.model.vector_features else []
        if self.has_linear:
            linear = {name: items[name] for name in self.model.item_features}
            parts.append(self.model.lr_layer(linear) if linear else columns[0].new_zeros(columns[0].shape[0], 1))
        parts += [F.normalize(items[name].float(), dim=-1) for name in self.compared]
        parts += self.model.modality_fusion.item_vectors(items) if fused_columns(self.model) else []
        return torch.cat(parts, dim=-1)


class NewItemEncoder(ItemEncoder):
    """The same for items that no training row had: of an id they have the padding item's embedding, which is zero.

    It holds no table of ids, whose size is that of the catalogue.

    Attributes:
        asked: the features that `forward` takes, all but item_id.
    """

    def __init__(self, model: MultimodalModel):
        super().__init__(_to_export(model))
        self.asked = [name for name in self.features if name != ITEM_ID]
        for module in self.model.modules():
            if isinstance(module, FeatureEmbeddingDict) and ITEM_ID in module.embedding_layers:
                padding = module.embedding_layers[ITEM_ID].weight[:1].detach().clone()
                module.embedding_layers[ITEM_ID] = nn.Embedding.from_pretrained(padding, padding_idx=0)

    def forward(self, *columns: Tensor) -> Tensor:
        """As ItemEncoder's, of the columns of `asked`."""
        given = dict(zip(self.asked, columns, strict=True))
        padding = torch.zeros(columns[0].shape[0], dtype=torch.long)
        return super().forward(*(given.get(name, padding) for name in self.features))


class Rows(NamedTuple):
    """Items of a request.

    Attributes:
        parts: {name: float [M, width]} of their rows.
        ids: integer [M, width of all ids], what is beside the rows.
    """

    parts: dict[str, Tensor]
    ids: Tensor


class Served(nn.Module):
    """A model that scores the candidates of one request, of rows that ItemEncoder made.

    Args:
        model: one of SERVED; it is copied.

    Attributes:
        parts: of ItemEncoder.
        ids: {feature: width} of integers beside an item's row: levels, and tags that are compared.
        row_features: the row's own features, in the order of `forward`'s last arguments.
        min_len: positions that a history has at least, padding in front.
        pairs_at_once: how many pairs of a candidate and a position are scored at once, for the memory that takes.
        reads_padding: what is padded changes scores.
    """

    min_len, pairs_at_once, reads_padding = 1, PAIRS, False

    def __init__(self, model: MultimodalModel):
        super().__init__()
        self.parts = ItemEncoder(model).parts
        self.vector_dim = sum(vector_widths(model))
        self.ids = dict.fromkeys(model.level_features, 1)
        self.row_features = list(model.user_features)
        self.model = _to_export(model)

    def forward(
        self,
        history: Tensor,
        real: Tensor,
        candidates: Tensor,
        history_ids: Tensor,
        candidate_ids: Tensor,
        row: list[Tensor],
    ) -> Tensor:
        """Click probabilities.

        Args:
            history: float [L, width of a row], the history's items, oldest first.
            real: float [L], 1 = an item, 0 = padding.
            candidates: float [C, width of a row].
            history_ids: integer [L, width of `ids`], candidate_ids: integer [C, width of `ids`].
            row: [C] or [C, width] of each of `row_features`.

        Returns:
            float [C].
        """
        theirs = Rows(_by_name(history, self.parts), history_ids)
        own = Rows(_by_name(candidates, self.parts), candidate_ids)
        mask = real.unsqueeze(0)
        place = torch.arange(candidates.shape[0], device=candidates.device)
        batch = OneHistory(dict(zip(self.row_features, row, strict=True)), {}, place, mask, None)
        batch.shares = own.parts.get(LINEAR)
        batch.similarities = self.similarities(theirs, own, mask)
        batch.modalities = self.modalities(batch, theirs, own)
        batch.fields = {name: own.parts[name] for name in self.model.vector_features}
        logit = self.logit(batch, history[:, : self.vector_dim], candidates[:, : self.vector_dim])
        return self.model.output_activation(logit.float()).mean(dim=1)

    def similarities(self, theirs: Rows, own: Rows, mask: Tensor) -> list[Tensor]:
        """The numbers behind the similarity fields; none for a model without them."""
        return []

    def modalities(self, batch: OneHistory, theirs: Rows, own: Rows) -> list[Tensor]:
        """What a fusion of embeddings reads; nothing for a model without one."""
        return []

    def logit(self, batch: OneHistory, history: Tensor, candidates: Tensor) -> Tensor:
        """float [C, 1], or [C, H] of H heads, of the items' vectors, float [L, W] and [C, W]."""
        raise NotImplementedError


class ServedFields(Served):
    """A model of fields."""

    model: FieldModel

    def __init__(self, model: FieldModel):
        super().__init__(model)
        if hasattr(self.model, "lr_layer"):
            self.model.lr_layer = ServedLinear(self.model.lr_layer)
        if model.history_pooling == "target_attention":
            self.pairs_at_once = WIDE_PAIRS
        pairs = getattr(self.model, "bilinear_interaction1", None)
        one_history = model.history_pooling == "mean"  # and not as each candidate asks for it
        if one_history and isinstance(pairs, BilinearPlus) and pairs.bilinear_type == "field_interaction":
            first = len(model.field_features)
            shared = range(first, first + len(model.pooled_features))
            self.model.bilinear_interaction1 = PairsWithOneHistory(pairs, model.num_fields, shared)
        similarity = model.similarity
        if similarity is not None:
            self.min_len = TOP
            if similarity.tags:
                self.ids[similarity.tags] = model.feature_map.features[similarity.tags]["max_len"]

    def similarities(self, theirs: Rows, own: Rows, mask: Tensor) -> list[Tensor]:
        """In SimilarityFields' order."""
        similarity = self.model.similarity
        if similarity is None:
            return []
        weights = history_weights(mask > 0)
        parts = [f"{UNIT}{name}" for name in similarity.embeddings]
        found = [cosine_numbers(own.parts[part] @ theirs.parts[part].T, mask > 0, weights) for part in parts]
        own_ids, their_ids = (_by_name(each.ids, self.ids) for each in (own, theirs))
        if similarity.tags:
            size = self.model.feature_map.features[similarity.tags]["vocab_size"]
            found.append(tag_features_of_one(own_ids[similarity.tags], their_ids[similarity.tags], size, weights))
        if similarity.levels:
            levels = [level_numbers(own_ids[name][:, 0], their_ids[name].T, weights) for name in similarity.levels]
            found.append(torch.cat(levels, dim=1))
        return found

    def modalities(self, batch: OneHistory, theirs: Rows, own: Rows) -> list[Tensor]:
        """Of the rows' projected columns."""
        if self.model.modality_fusion is None:
            return []
        names = [f"{FUSED}{name}" for name in self.model.modality_fusion.columns]
        items, target = ([rows.parts[name] for name in names] for rows in (theirs, own))
        return self.model.modality_fusion.modalities(batch, items, target)

    def logit(self, batch: OneHistory, history: Tensor, candidates: Tensor) -> Tensor:
        """The fields that FieldModel makes, with the history's where all rows have one."""
        model, row = self.model, dict(batch.fields)
        pooled = [field.expand(candidates.shape[0], -1) for field in model.history_fields(batch, history, candidates)]
        row |= model.embed(model.embedding_layer, batch.user)  # the row's own levels, not the item's
        return model.logit(batch, model.stack_fields(row, pooled, batch.similarities, []))


class ServedVectors(Served):
    """A model of a history whose items are one vector each."""

    model: HistoryModel

    def __init__(self, model: HistoryModel):
        super().__init__(model)
        self.pairs_at_once = PAIRS if isinstance(model, QIN) else WIDE_PAIRS
        if isinstance(model, Transformer_DCN):
            self.min_len = model.transformer_encoder.num_last + 1
            self.reads_padding = model.mask_polarity == "published"

    def logit(self, batch: OneHistory, history: Tensor, candidates: Tensor) -> Tensor:
        """The model's own."""
        return self.model.compute_logit(batch, history, candidates)


def served(model: nn.Module) -> Served:
    """A model as it is served.

    Raises:
        UserError: it is none of SERVED, has a setting that is not served, or no items to encode.
    """
    if type(model) not in SERVED:
        known = ", ".join(sorted(each.__name__ for each in SERVED))
        raise UserError(f"{type(model).__name__} cannot be exported, expected one of {known}")
    name = type(model).__name__
    asked = [setting for setting, columns in model.interest_settings.items() if columns]
    asked += ["content_search"] if model.content_search else []
    asked += ["cross_attention_layers"] if model.interest is not None and not asked else []
    if asked:
        raise UserError(f"{name} with {asked[0]} cannot be exported; score it with prediction.py, or train it without")
    if not model.item_side_features():
        raise UserError(f"{name} has no features of source item to encode once; score it with prediction.py")
    return ServedFields(model) if isinstance(model, FieldModel) else ServedVectors(model)


def _by_name(values: Tensor, widths: dict[str, int]) -> dict[str, Tensor]:
    """[M, all widths] to {name: [M, width]}."""
    return dict(zip(widths, values.split(list(widths.values()), dim=1), strict=True)) if widths else {}


def _to_export(model: MultimodalModel) -> MultimodalModel:
    """A copy whose lists of ids are pooled by FuxiCTR's own layers: ONNX has no sum of looked-up rows in one pass."""
    model = copy.deepcopy(model).eval()
    model.__dict__["embed"] = lambda layer, columns: layer.embedding_layer(columns)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is MaskedAveragePooling:
                module.add_module(name, MeanOfThere())
    return model


class MeanOfThere(nn.Module):
    """MaskedAveragePooling whose empty lists are zeros in ONNX too.

    It divides by a count + 1e-12, which the exporter's optimizer takes for + 0, so that an empty list was 0 / 0.
    A count of at least 1 gives the same numbers.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """float [M, L, D] to [M, D]; padding has zeros."""
        count = (vectors.sum(dim=-1) != 0).float().sum(dim=-1, keepdim=True)
        return vectors.sum(dim=1) / count.clamp(min=1)


def fused_columns(model: MultimodalModel) -> list[str]:
    """The embeddings that a model reads projected, beside its fields."""
    return getattr(model, "fused_columns", [])


def vector_widths(model: MultimodalModel) -> list[int]:
    """The widths of the fields of an item's vector, in its order."""
    if isinstance(model, HistoryModel):
        return model.feature_widths
    return [model.embedding_dim] * len(model.vector_features)

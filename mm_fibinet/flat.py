"""Rows as FuxiCTR's plain dictionary, for its models that know of no items and no history: DeepFM, MaskNet, PNN, ...

Such a model asks for columns by the names of its feature map and embeds each as its type says. So the history becomes
features like any others: `history_item_id`, a sequence whose ids are looked up in item_id's own table and averaged by
FuxiCTR's encoder, `history_item_tags`, all tags of all its items, and for an embedding the mean of the history's
vectors, of type embedding. With `similarity_fields` come numeric features that say how alike target and history are.

A model gets the feature map that `FlatFormat.feature_map` makes of the data set's, a batch the columns of that map.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from fuxictr.features import FeatureMap
from torch import Tensor

from mm_fibinet import similarity
from mm_fibinet.errors import UserError
from mm_fibinet.gather import flat_index, take_rows
from mm_fibinet.item_table import ItemTable, item_side_features
from mm_fibinet.schema import ITEM_ID, ITEM_SEQ
from mm_fibinet.setting_types import SEQUENCE_ENCODERS

HISTORY, SIMILARITY = "history_", "similarity_"
CONTEXT = "context"  # the source of what is neither the user's nor an item's; DSSM and FLEN tell these apart


class FlatFormat:
    """How a data set's rows become a plain dictionary.

    Args:
        feature_map: the data set's, of FuxiCTR.
        history_levels: the history's items carry likes_level and views_level too.
        similarity_fields: add numbers that say how like the history the target is, by every embedding, by the first
            list of tags and, with history_levels, by the levels.
        similarity_only: item features that are compared so, and are no features of their own.

    Attributes:
        numbers: names of the similarity's features, in the order of their columns.

    Raises:
        UserError: the data has a feature by a name that is needed here, there is nothing to compare, or similarity_only
            names what cannot be compared.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        history_levels: bool = False,
        similarity_fields: bool = False,
        similarity_only: tuple[str, ...] | list[str] | None = (),
    ):
        self.original = feature_map
        features = feature_map.features
        compared_only = list(similarity_only or ())
        of_items = item_side_features(features, history_levels)
        for name in compared_only:
            kind = features.get(name, {}).get("type")
            if not similarity_fields or name not in of_items or kind not in ("embedding", "sequence"):
                raise UserError(
                    f"similarity_only has {name!r}, expected features of source item and of type embedding or "
                    "sequence, and similarity_fields: True"
                )
        self.left_out = set(compared_only)
        has_history = ITEM_SEQ in features
        self.target = [
            name for name, spec in features.items() if spec.get("source") == "item" and name not in self.left_out
        ]
        self.history = {f"{HISTORY}{name}": name for name in of_items if name not in self.left_out and has_history}
        self.embeddings, self.tags, self.levels = [], None, []
        if similarity_fields:
            kinds = {name: features[name]["type"] for name in of_items}
            self.embeddings = [name for name, kind in kinds.items() if kind == "embedding"]
            self.tags = next((name for name, kind in kinds.items() if kind == "sequence"), None)
            self.levels = [name for name in of_items if features[name].get("source") != "item"]
            if not (self.embeddings or self.tags or self.levels) or not has_history:
                raise UserError(
                    "similarity_fields is True, but there is nothing to compare: expected a history, and a feature of "
                    "source item and of type embedding or sequence, or history_levels: True"
                )
        numeric = {name for name, spec in features.items() if spec["type"] == "numeric"}
        self._scalars = numeric
        self.numbers = list(self._numbers())
        for name in (*self.history, *self.numbers):
            if name in features:
                raise UserError(
                    f"feature {name}: batch_format flat gives the history's features such names; rename the column"
                )
        self._compared_of: ItemTable | None = None
        self._compared: dict[str, Tensor] = {}

    def feature_map(self, max_len: int, unpooled: tuple[str, ...] | list[str] = ()) -> FeatureMap:
        """The feature map of the plain dictionary.

        Args:
            max_len: L, history positions.
            unpooled: history features that stay sequences, for a model that attends to them itself.
        """
        flat = copy.deepcopy(self.original)
        for name in self.left_out:
            del flat.features[name]
        for spec in flat.features.values():
            spec["source"] = spec.get("source") or CONTEXT
            if spec["type"] == "embedding":  # its width is that of models whose fields need not be of one width
                spec.pop("embedding_dim", None)
        for name, item_feature in self.history.items():
            encoder = None if name in unpooled else SEQUENCE_ENCODERS[0]
            flat.features[name] = _history_spec(item_feature, flat.features[item_feature], max_len, encoder)
        for name in self.numbers:
            flat.features[name] = {"type": "numeric", "source": CONTEXT}
        flat.num_fields = flat.get_num_fields()
        flat.set_column_index()
        return flat

    def batch(self, batch_dict: dict[str, Tensor], item_index: Tensor, table: ItemTable) -> dict[str, Tensor]:
        """The columns of a batch.

        Args:
            batch_dict: {feature or label: [B] or [B, W]}, the row's own.
            item_index: int32 [B, L + 1], history first (0 = padding), target last.
            table: the items.

        Returns:
            batch_dict and the features of target, history and similarity: [B] or [B, W], and [B, 1] of numeric ones,
            which DLRM puts beside each other.
        """
        target, history = flat_index(item_index[:, -1]), item_index[:, :-1]
        columns = dict(batch_dict)
        columns.update({name: take_rows(table[name], target) for name in self.target})
        for name, item_feature in self.history.items():
            columns[name] = self._of_history(item_feature, table[item_feature], history)
        if self.numbers:
            columns.update(zip(self.numbers, self._similarity(target, history, table).split(1, dim=1), strict=True))
        return {name: values.view(-1, 1) if name in self._scalars else values for name, values in columns.items()}

    def _of_history(self, name: str, values: Tensor, history: Tensor) -> Tensor:
        """An item feature of the history: ids [B, L] or [B, L * W], means [B, 1] or [B, E]."""
        if name == ITEM_ID:
            return history
        if self.original.features[name]["type"] in ("categorical", "sequence"):
            return take_rows(values, flat_index(history)).view(len(history), -1)
        vectors = values.float().view(len(values), -1)
        return F.embedding_bag(history, vectors, mode="mean", padding_idx=0)

    @torch.no_grad()
    def _similarity(self, target: Tensor, history: Tensor, table: ItemTable) -> Tensor:
        """float [B, number of `numbers`]."""
        real = history > 0
        weights = similarity.history_weights(real)
        found = [
            similarity.cosine_numbers(similarity.unit_cosines(self._unit(name, table), target, history), real, weights)
            for name in self.embeddings
        ]
        if self.tags:
            found.append(similarity.tag_features(self._distinct(self.tags, table), target, history, weights))
        if self.levels:
            levels = [table[name] for name in self.levels]
            found.append(similarity.level_features(levels, target, history, weights))
        return torch.cat(found, dim=1)

    def _unit(self, name: str, table: ItemTable) -> Tensor:
        """The items' vectors at length 1."""
        return self._once(name, table, lambda vectors: F.normalize(vectors.float(), dim=-1))

    def _distinct(self, name: str, table: ItemTable) -> Tensor:
        """The items' tags, each once."""
        return self._once(name, table, similarity.distinct_tags)

    def _once(self, name: str, table: ItemTable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What is compared of a column, made once for a table."""
        if self._compared_of is not table:
            self._compared_of, self._compared = table, {}
        if name not in self._compared:
            self._compared[name] = make(table[name])
        return self._compared[name]

    def _numbers(self) -> Iterator[str]:
        parts: list[tuple[str, tuple[str, ...]]] = [(name, similarity.OF_EMBEDDING) for name in self.embeddings]
        parts += [(self.tags, similarity.OF_TAGS)] if self.tags else []
        parts += [(name, similarity.OF_LEVEL) for name in self.levels]
        for name, features in parts:
            yield from (f"{SIMILARITY}{name}_{feature}" for feature in features)


def _history_spec(name: str, spec: dict, max_len: int, encoder: str | None) -> dict:
    """The spec of a history's feature by that of its items' feature; it shares the table, where there is one."""
    if spec["type"] not in ("categorical", "sequence"):
        kept = ("type", "pretrain_dim")
        return {"source": "user", **{key: spec[key] for key in kept if key in spec}}
    shared = {key: spec[key] for key in ("padding_idx", "vocab_size", "embedding_dim") if key in spec}
    return {
        "source": "user",
        "type": "sequence",
        **shared,
        "share_embedding": name,
        "max_len": max_len * spec.get("max_len", 1),
        "feature_encoder": encoder,
    }

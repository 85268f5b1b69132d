"""The challenge's way, written plainly: what the table of speeds compares with.

- `row_wise_loader`: a map-style Dataset that hands out one row at a time, a torch DataLoader, and a collate function
  that looks the items up in a pandas frame; it yields the challenge's triple `(batch_dict, item_dict, mask)`.
- `StockFiBiNET`, `StockDIN`: the same mathematics and weight names as ours, on FuxiCTR's own layers, every occurrence
  of an item embedded anew, trained by FuxiCTR's own loop (BaseModel.train_epoch).

The tests hold both models against ours: the same weights give the same scores.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    DIN_Attention,
    FeatureEmbedding,
    LogisticRegression,
    MLP_Block,
    SqueezeExcitation,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LEVELS = ("likes_level", "views_level")
TRAINING = {"verbose": 0, "model_root": "", "metrics": ["AUC"]}


class RowDataset(Dataset):
    """One row at a time.

    Attributes:
        rows: int64 [N, L + 1 + C]: history, target item, then the row's other columns.
    """

    def __init__(self, path: str | Path, columns: list[str], max_len: int):
        frame = pd.read_parquet(path)
        history = np.stack(frame["item_seq"].to_numpy())[:, -max_len:]
        self.rows = np.column_stack([history, frame[["item_id", *columns]].to_numpy()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


class TripleCollator:
    """Rows to the challenge's triple, the items looked up in pandas.

    Args:
        item_info: item_info.parquet.
        item_columns: the items' columns to hand out.
        columns: the row's columns after history and target.
        max_len: L.
    """

    def __init__(self, item_info: str | Path, item_columns: list[str], columns: list[str], max_len: int):
        self.items = pd.read_parquet(item_info)[item_columns]
        self.columns = columns
        self.max_len = max_len

    def __call__(self, rows: list[np.ndarray]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """A batch as the challenge's triple (batch_dict, item_dict, mask)."""
        batch = torch.from_numpy(np.stack(rows))
        batch_dict = {name: batch[:, self.max_len + 1 + i] for i, name in enumerate(self.columns)}
        found = self.items.iloc[batch[:, : self.max_len + 1].flatten().numpy()]
        item_dict = {name: torch.from_numpy(np.array(found[name].to_list())) for name in found.columns}
        mask = (batch[:, : self.max_len] > 0).float()
        return batch_dict, item_dict, mask


def row_wise_loader(
    feature_map,
    path: str | Path,
    item_info: str | Path,
    batch_size: int,
    max_len: int,
    shuffle: bool = True,
    num_workers: int = 0,
    history_levels: bool = False,
    labels: bool = True,
) -> DataLoader:
    """Batches of a split, the challenge's way.

    Args:
        feature_map: FuxiCTR's FeatureMap; features of source `item` are looked up.
        history_levels: the items carry likes_level and views_level as well.
        labels: the file has the label.
    """
    item_columns = [name for name, spec in feature_map.features.items() if spec.get("source") == "item"]
    item_columns += LEVELS if history_levels else ()
    columns = [*LEVELS, feature_map.group_id, *(feature_map.labels if labels else [])]
    return DataLoader(
        RowDataset(path, columns, max_len),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=TripleCollator(item_info, item_columns, columns, max_len),
    )


class StockModel(BaseModel):
    """Reads the triple and embeds every occurrence of every item with FuxiCTR's FeatureEmbedding.

    Args:
        feature_map: FuxiCTR's FeatureMap.
        embedding_dim: D of every field without an `embedding_dim` of its own.
        history_levels: the items' levels are embedded too.
        kwargs: what FuxiCTR's BaseModel takes.
    """

    def __init__(self, feature_map, embedding_dim: int, history_levels: bool = False, **kwargs):
        super().__init__(feature_map, **{**TRAINING, **kwargs})
        features = {name: spec for name, spec in feature_map.features.items() if spec["type"] != "meta"}
        self.item_features = [name for name, spec in features.items() if spec.get("source") == "item"]
        self.user_features = [name for name in features if name not in self.item_features]
        self.level_features = list(LEVELS) if history_levels else []
        self.widths = {name: spec.get("embedding_dim", embedding_dim) for name, spec in features.items()}
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)

    def prepare_training(self, learning_rate: float) -> None:
        """Optimizer, initialisation and device, as FuxiCTR's models end their constructors."""
        self.compile("adam", "binary_crossentropy", learning_rate)
        self.reset_parameters()
        self.model_to_device()
        self._max_gradient_norm, self._total_steps = 10.0, 0
        self._eval_steps, self._stop_training = math.inf, False  # no evaluation within the steps that are timed

    def read_triple(self, inputs) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The triple on the device, every occurrence embedded.

        Returns:
            ({feature: ids [B]} of user and target, {feature: float [B, D]} of the user,
            {feature: float [B, L + 1, D]} of the items, mask [B, L]).
        """
        batch_dict, item_dict, mask = inputs
        mask = mask.to(self.device)
        batch, length = mask.shape
        embed = self.embedding_layer.embedding_layer
        user = {name: batch_dict[name].to(self.device) for name in self.user_features}
        items = {name: item_dict[name].to(self.device) for name in [*self.item_features, *self.level_features]}
        embedded = {name: values.view(batch, length + 1, -1) for name, values in embed(items).items()}
        target = {name: items[name].view(batch, length + 1, -1)[:, -1].squeeze(-1) for name in self.item_features}
        return {**user, **target}, embed(user), embedded, mask

    def get_labels(self, inputs) -> Tensor:
        """float [B, 1]."""
        return super().get_labels(inputs[0])

    def get_group_id(self, inputs) -> Tensor:
        """integer [B]."""
        return super().get_group_id(inputs[0])


class StockLinear(LogisticRegression):
    """FuxiCTR's linear part over the fields it can read, and a Linear for the embedding field, on which it fails."""

    def __init__(self, feature_map):
        nn.Module.__init__(self)
        features = feature_map.features
        self.bias = None
        self.vectors = [name for name, spec in features.items() if spec["type"] == "embedding"]
        self.embedding_layer = FeatureEmbedding(
            feature_map, 1, use_pretrain=False, use_sharing=False, not_required_feature_columns=self.vectors
        )
        self.embedding_weights = nn.ModuleDict(
            {name: nn.Linear(features[name]["pretrain_dim"], 1, bias=False) for name in self.vectors}
        )

    def forward(self, X: dict[str, Tensor]) -> Tensor:
        """float [B, 1]."""
        output = super().forward({name: values for name, values in X.items() if name not in self.vectors})
        return output + sum(weights(X[name].float()) for name, weights in self.embedding_weights.items())


class StockFiBiNET(StockModel):
    """FiBiNET on FuxiCTR's layers, with the history's masked mean as further fields."""

    def __init__(
        self,
        feature_map,
        embedding_dim=10,
        hidden_units=(),
        bilinear_type="field_interaction",
        reduction_ratio=3,
        net_dropout=0.0,
        batch_norm=False,
        learning_rate=1e-3,
        **kwargs,
    ):
        super().__init__(feature_map, embedding_dim, **kwargs)
        num_fields = len(self.user_features) + 2 * len(self.item_features) + len(self.level_features)
        self.senet_layer = SqueezeExcitation(num_fields, reduction_ratio)
        self.bilinear_interaction1 = BilinearInteractionV2(num_fields, embedding_dim, bilinear_type)
        self.bilinear_interaction2 = BilinearInteractionV2(num_fields, embedding_dim, bilinear_type)
        self.lr_layer = StockLinear(feature_map)
        self.dnn = MLP_Block(
            input_dim=num_fields * (num_fields - 1) * embedding_dim,
            output_dim=1,
            hidden_units=list(hidden_units),
            hidden_activations="ReLU",
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.prepare_training(learning_rate)

    def forward(self, inputs) -> dict[str, Tensor]:
        """{"y_pred": float [B, 1]}."""
        ids, user, items, mask = self.read_triple(inputs)
        target = {name: values[:, -1] for name, values in items.items() if name in self.item_features}
        own = {**user, **target}
        fields = [own[name] for name in self.feature_map.features if name in own]
        real = mask.sum(dim=1, keepdim=True).clamp(min=1)
        for name in [*self.item_features, *self.level_features]:
            fields.append((items[name][:, :-1] * mask.unsqueeze(-1)).sum(dim=1) / real)
        fields = torch.stack(fields, dim=1)
        interactions = [self.bilinear_interaction1(fields), self.bilinear_interaction2(self.senet_layer(fields))]
        logit = self.lr_layer(ids) + self.dnn(torch.cat(interactions, dim=1).flatten(1))
        return {"y_pred": self.output_activation(logit)}


class StockDIN(StockModel):
    """The organisers' DIN on FuxiCTR's layers."""

    def __init__(
        self,
        feature_map,
        embedding_dim=64,
        dnn_hidden_units=(1024, 512, 256),
        attention_hidden_units=(512, 256),
        attention_dropout=0.1,
        net_dropout=0.1,
        batch_norm=True,
        learning_rate=1e-3,
        **kwargs,
    ):
        super().__init__(feature_map, embedding_dim, **kwargs)
        item_dim = sum(self.widths[name] for name in self.item_features)
        user_dim = sum(self.widths[name] for name in self.user_features)
        self.attention_layers = DIN_Attention(
            item_dim, attention_units=list(attention_hidden_units), dropout_rate=attention_dropout
        )
        self.dnn = MLP_Block(
            input_dim=user_dim + 2 * item_dim,
            output_dim=1,
            hidden_units=list(dnn_hidden_units),
            hidden_activations="ReLU",
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.prepare_training(learning_rate)

    def forward(self, inputs) -> dict[str, Tensor]:
        """{"y_pred": float [B, 1]}."""
        _, user, items, mask = self.read_triple(inputs)
        vectors = torch.cat([items[name] for name in self.item_features], dim=-1)
        target, history = vectors[:, -1], vectors[:, :-1]
        pooled = self.attention_layers(target, history, mask)
        own = [user[name] for name in self.user_features]
        return {"y_pred": self.output_activation(self.dnn(torch.cat([*own, target, pooled], dim=-1)))}

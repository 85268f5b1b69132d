"""Shared by the tests: golden files, small feature maps and tables."""

import json
from pathlib import Path

import pytest
import torch
from fuxictr.features import FeatureMap
from safetensors.torch import load_file

from mmctr.dataloader import IndexBatch
from mmctr.item_table import ItemTable

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
REAL_DATA = ROOT.parent / "shared" / "data" / "ml100k_mm"


def make_feature_map(features: dict, dataset_id: str = "test", group_id: str | None = "user_id") -> FeatureMap:
    """A FeatureMap of these feature specs, as FuxiCTR's load leaves it."""
    feature_map = FeatureMap(dataset_id, "")
    feature_map.features = {name: dict(spec) for name, spec in features.items()}
    feature_map.labels = ["label"]
    feature_map.group_id = group_id
    feature_map.num_fields = feature_map.get_num_fields()
    return feature_map


class Golden:
    """A published model's weights, inputs and outputs.

    Attributes:
        spec: the JSON beside the tensors.
        weights: the model's state dict.
        batch: the inputs as an IndexBatch.
        expected: float32 [B, 1].
    """

    def __init__(self, name: str):
        self.spec = json.loads((GOLDEN / f"{name}.json").read_text())
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
        self.expected = tensors["y"]
        table = {key[8:]: value for key, value in tensors.items() if key.startswith("x.table.")}
        num_items = len(table["item_tags"])
        table["item_id"] = torch.arange(num_items)
        item_id = tensors["x.item_id"]
        row = {
            "user_id": tensors["x.user_id"],
            "likes_level": table["likes_level"][item_id],
            "views_level": table["views_level"][item_id],
            "label": torch.zeros(len(item_id)),
        }
        index = torch.cat([tensors["x.item_seq"], item_id.unsqueeze(1)], dim=1)
        self.batch = IndexBatch(row, index.int(), ItemTable(table))

    def feature_map(self) -> FeatureMap:
        """The model's FeatureMap."""
        return make_feature_map(self.spec["features"])

    def dictionary(self) -> dict:
        """The target's features as FuxiCTR passes them."""
        target = self.batch.item_table.rows(self.batch.item_index[:, -1])
        columns = {**target, **self.batch.batch_dict}
        return {name: columns[name] for name in [*self.spec["features"], "label"] if name in columns}


@pytest.fixture
def golden():
    """Golden files by name."""
    return Golden

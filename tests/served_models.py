"""Small models of every class that can be exported, with weights that say something, and their items."""

from pathlib import Path

import numpy as np
import torch
from conftest import make_feature_map
from test_model_contract import FEATURES, ITEMS, MODALITIES, SIZES, TAGS, WIDTH
from torch import nn

import model_zoo
from mm_fibinet import onnx_export
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.item_table import ItemTable
from mm_fibinet.served_files import Card
from model_zoo import served

MAX_LEN = 10
USER = {"age": {"type": "numeric", "source": "user", "shift": 30.0, "scale": 10.0, "fill_na": 30.0}}
USER_ID = {"user_id": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 20}}
LISTS = {
    "user_tags": {
        "type": "sequence", "source": "user", "feature_encoder": "layers.MaskedAveragePooling()", "padding_idx": 0,
        "max_len": 3, "vocab_size": 7,
    },
    "user_emb": {"type": "embedding", "source": "user", "pretrain_dim": 4, "embedding_dim": 8},
}  # fmt: skip
RECOMMENDED = {
    **dict.fromkeys(("feature_norm", "senet_plus", "bilinear_plus", "similarity_fields"), True),
    "similarity_to_mlp": True,
    "similarity_only": ["item_emb_d128", "img_emb_d128"],
    "history_levels": True,
    "embedding_dim": 8,
    "features": MODALITIES,
}
ONE_LAYER = {"num_layers": 1, "dnn_hidden_units": [8]}
FEWER_FIELDS = {"similarity_only": ["item_emb_d128", "item_tags"], "features": FEATURES}
FUSED = {"low_rank_fusion": ["item_emb_d128"], "low_rank_fusion_dim": 8}
CASES = {  # one of each class, FiBiNET with the settings of the strong recipe; exporting a field takes long
    "FiBiNET recommended": {**RECOMMENDED, **FEWER_FIELDS, **FUSED, "low_rank_fusion_heads": 2},
    "DeepFM": {"features": {**FEATURES, **USER}},
    "DCNv2": {"num_cross_layers": 1},
    "DIN": {"dnn_hidden_units": [8]},
    "DIN_att6": {**ONE_LAYER, "features": {**FEATURES, **USER_ID}},
    "DIN_att_emb_rms": ONE_LAYER,
    "QIN": {"num_layers": 1},
    "Transformer_DCN": {},
}
VARIANTS = {  # of which only the torch side is tried
    "FiBiNET": {},
    "FiBiNET recommended with all fields": RECOMMENDED,
    "FiBiNET recommended with low_rank_fusion of two": {
        **RECOMMENDED,
        **FUSED,
        "low_rank_fusion": ["img_emb_d128", "item_emb_d128"],
        "low_rank_fusion_heads": 3,
    },
    "FiBiNET with low_rank_fusion without history": {**FUSED, "history_pooling": "none"},
    "FiBiNET with target_attention": {"history_pooling": "target_attention"},
    "FiBiNET without history": {"history_pooling": "none"},
    "FiBiNET with modality_gating": {"modality_gating": True},
    "FiBiNET with user's lists": {"features": {**FEATURES, **LISTS}},
    "FiBiNET with rows of items alone": {"features": {k: v for k, v in FEATURES.items() if "level" not in k}},
    "DeepFM with low_rank_fusion": FUSED,
    "DeepFM with similarity_fields": {"similarity_fields": True, "history_levels": True},
    "DCNv2 with embedding compared": {"similarity_fields": True, "similarity_only": ["item_emb_d128"]},
    "DIN with Dice": {"attention_hidden_activations": "Dice"},
    "DIN with softmax": {"din_use_softmax": True, "history_levels": True},
    "Transformer_DCN published": {"mask_polarity": "published"},
}


def make_model(case: str) -> nn.Module:
    """The model of CASES or VARIANTS, in evaluation mode."""
    name = case.split()[0]
    settings = {**SIZES[name], **{**CASES, **VARIANTS}[case]}
    torch.manual_seed(0)
    model = getattr(model_zoo, name)(make_feature_map(settings.pop("features", FEATURES)), **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[0] = 0
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def make_table() -> ItemTable:
    """Items of MODALITIES with levels; some have no tags, some no embedding."""
    generator = torch.Generator().manual_seed(1)
    tags = torch.stack([torch.randperm(TAGS, generator=generator)[:5] for _ in range(ITEMS)]).int()  # no tag twice,
    tags[::5, 4] = tags[::5, 3]  # but for some
    tags[:, :2] *= (torch.rand(ITEMS, 1, generator=generator) < 0.5).int()
    columns = {"item_id": torch.arange(ITEMS, dtype=torch.int32), "item_tags": tags}
    for name in ("item_emb_d128", "img_emb_d128"):
        columns[name] = torch.randn(ITEMS, WIDTH, generator=generator)
        columns[name][::7] = 0
    for name in ("likes_level", "views_level"):
        columns[name] = torch.randint(0, 11, (ITEMS,), generator=generator, dtype=torch.int32)
    for values in columns.values():
        values[0] = 0
    return ItemTable(columns)


def make_row(model: nn.Module, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of the row's own features, as a parquet file has them."""
    rng = np.random.default_rng(seed)
    row = {}
    for name in model.user_features:
        spec = model.feature_map.features[name]
        if spec["type"] == "numeric":
            row[name] = rng.normal(spec["shift"], spec["scale"], count)
        elif spec["type"] == "embedding":
            row[name] = rng.normal(size=(count, spec["pretrain_dim"]))
        else:
            row[name] = rng.integers(0, spec["vocab_size"], (count, spec["max_len"]) if "max_len" in spec else count)
    return row


def score_rows(model: nn.Module, table: ItemTable, history, candidates, row: dict[str, np.ndarray]) -> np.ndarray:
    """The model's own scores, float32 [C]: a row for each candidate, each with the whole history."""
    columns = {}
    for name, values in row.items():
        spec = model.feature_map.features[name]
        if spec["type"] == "numeric":
            values = (values - spec["shift"]) / spec["scale"]
        columns[name] = torch.tensor(values, dtype=torch.float32 if values.dtype.kind == "f" else torch.int32)
    index = np.concatenate([np.tile(history, (len(candidates), 1)), np.asarray(candidates)[:, None]], axis=1)
    with torch.no_grad():
        return model(IndexBatch(columns, torch.tensor(index).int(), table))["y_pred"].flatten().numpy()


def make_card(model: nn.Module, item_table: str = "fp32") -> Card:
    """A card of a model of these items."""
    module, specs, items = served.served(model), model.feature_map.features, model.item_side_features()
    of_content = served.ItemEncoder(model).of_content
    return Card(
        model=type(model).__name__, expid="test", dataset_id="test", item_table=item_table, num_items=ITEMS,
        parts=module.parts, of_content=of_content, ids=module.ids,
        row_features={name: specs[name] for name in module.row_features},
        item_features={name: spec for name, spec in items.items() if name != "item_id"}, max_len=MAX_LEN,
        min_len=module.min_len, padded_len=0, pairs_at_once=module.pairs_at_once, files={}, about={},
    )  # fmt: skip


def export(folder: Path, model: nn.Module, item_table: str = "fp32", form: str = "onnx") -> Path:
    """A folder as export_onnx.py writes it, without the encoder of new items, which takes as long as many tests."""
    folder.mkdir(parents=True)
    modules = served.served(model), served.ItemEncoder(model), None
    onnx_export.write_model(folder, *modules, make_table(), make_card(model, item_table), form)
    return folder

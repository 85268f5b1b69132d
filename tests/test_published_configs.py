"""The organisers' and the winners' YAML files load unchanged, and make their authors' networks.

The keys and values are those of the published repositories, written down here as facts; what each network must be
follows from its authors' code: widths of inputs and layers, dropouts, norms, the learning rate's decay.
"""

import types
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import list_column
from torch import nn

import model_zoo
from mm_fibinet.compare.search import Search
from mm_fibinet.compare.tuner import read_tuner
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params

FOLDER = "./data/MicroLens_1M_x1"
BASE = {
    "model_root": "./checkpoints/",
    "num_workers": 3,
    "verbose": 1,
    "early_stop_patience": 3,
    "pickle_feature_encoder": True,
    "save_best_only": True,
    "eval_steps": None,
    "debug_mode": False,
    "group_id": "user_id",
    "use_features": None,
    "feature_specs": None,
    "feature_config": None,
}
RUN = {
    "loss": "binary_crossentropy",
    "metrics": ["AUC", "logloss"],
    "task": "binary_classification",
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "embedding_regularizer": 0,
    "net_regularizer": 0,
    "batch_size": 4096,
    "embedding_dim": 64,
    "epochs": 100,
    "shuffle": True,
    "seed": 20242025,
    "monitor": "AUC",
    "monitor_mode": "max",
}
DIN = {
    **RUN,
    "model": "DIN",
    "dataset_id": "TBD",
    "dnn_hidden_units": [1024, 512, 256],
    "dnn_activations": "ReLU",
    "attention_hidden_units": [512, 256],
    "attention_hidden_activations": "ReLU",
    "attention_output_activation": None,
    "attention_dropout": 0.1,
    "din_use_softmax": False,
    "net_dropout": 0,
    "batch_norm": True,
    "max_len": 64,
    "accumulation_steps": 1,
}
QIN = {
    **RUN,
    "model": "QIN_variety_v9",
    "dataset_id": "MicroLens_1M_x1",
    "learning_rate": 2e-3,
    "embedding_regularizer": 2e-4,
    "batch_size": 8192,
    "embedding_dim": 128,
    "num_layers": 4,
    "num_row": 4,
    "net_dropout": 0.1,
    "batch_norm": True,
    "monitor": {"AUC": 1, "logloss": 0},
    "max_len": 64,
    "early_stop_patience": 8,
    "accumulation_steps": 1,
    "factor": 0.5,
}
TRANSFORMER_DCN = {
    **BASE,
    **RUN,
    "model": "Transformer_DCN",
    "dataset_id": "MicroLens_1M_x1",
    "metrics": ["logloss", "AUC"],
    "learning_rate": 5e-4,
    "batch_size": 128,
    "hidden_activations": "relu",
    "dcn_cross_layers": 3,
    "dcn_hidden_units": [1024, 512, 256],
    "mlp_hidden_units": [64, 32],
    "num_heads": 1,
    "transformer_layers": 2,
    "transformer_dropout": 0.2,
    "dim_feedforward": 256,
    "net_dropout": 0.2,
    "batch_norm": False,
    "first_k_cols": 16,
    "monitor": {"AUC": 1},
    "concat_max_pool": True,
}
DIN_ATT6 = {
    **BASE,
    **DIN,
    "model": "DIN_att6",
    "dataset_id": "MicroLens_1M_x1",
    "embedding_regularizer": 1e-7,
    "net_regularizer": 0.01,
    "net_dropout": 0.1,
    "dnn_hidden_units": [1024, 512, 256, 64, 16],
    "if_use_self_attn": False,
    "num_layers": 2,
    "seed": 29,
}
MMCTRERS = {
    **BASE,
    **DIN,
    "dataset_id": "MicroLens_1M_x1",
    "model_change": "DIN_att_emb_rms",
    "dnn_hidden_units": [1024, 512, 512, 256, 128, 64],
    "num_layers": 4,
    "alpha": 0.8,
    "seed": 2026,
}


def dataset(user: dict, **more) -> dict:
    """The data set's entry of the published configs; only the user's column differs between them."""
    return {
        "data_root": "./data/",
        "data_format": "parquet",
        **{f"{split}_data": f"{FOLDER}/{split}.parquet" for split in ("train", "valid", "test")},
        "item_info": f"{FOLDER}/item_info.parquet",
        **more,
        "rebuild_dataset": False,
        "feature_cols": [
            {"name": "user_id", "active": True, "dtype": "int", **user},
            {"name": "item_seq", "active": True, "dtype": "int", "type": "meta"},
            {"name": "likes_level", "active": True, "dtype": "int", "type": "categorical", "vocab_size": 11},
            {"name": "views_level", "active": True, "dtype": "int", "type": "categorical", "vocab_size": 11},
            {
                "name": "item_id", "active": True, "dtype": "int", "type": "categorical", "vocab_size": 91718,
                "source": "item",
            },
            {
                "name": "item_tags", "active": True, "dtype": "int", "type": "sequence", "max_len": 5,
                "vocab_size": 11740, "source": "item",
            },
            {
                "name": "item_emb_d128", "active": True, "dtype": "float", "type": "embedding", "source": "item",
                "embedding_dim": 128,
            },
        ],
        "label_col": {"name": "label", "dtype": "float"},
    }  # fmt: skip


META = {"type": "meta"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with the item table that pretrain_dim is read from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER).mkdir(parents=True)
    table = {"item_id": [0, 1], "item_emb_d128": list_column(np.zeros((2, 128), dtype=np.float32))}
    pq.write_table(pa.table(table), tmp_path / FOLDER / "item_info.parquet")
    return tmp_path


def write(folder, experiment: dict, entry: dict, base: dict | None = None):
    models = {"X": experiment} if base is None else {"Base": base, "X": experiment}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(models))
    (folder / "dataset_config.yaml").write_text(yaml.safe_dump({"MicroLens_1M_x1": entry}))
    return folder


def build(params: dict) -> nn.Module:
    """The network, whose weights are shapes without numbers."""
    with torch.device("meta"), mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):
        return getattr(model_zoo, params["model"])(build_feature_map(params), **params)


def widths(layers: nn.Module) -> list[int]:
    """The input's width and every linear layer's."""
    linear = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def dropouts(layers: nn.Module) -> list[float]:
    return [layer.p for layer in layers.modules() if isinstance(layer, nn.Dropout)]


def test_the_organisers(folder):
    """DIN: an item is id 64 + tags 64 + embedding 128; the row has two levels."""
    (folder / "din_config").mkdir()
    (folder / "din_config/model_config.yaml").write_text(yaml.safe_dump({"Base": BASE, "DIN_default": DIN}))
    tuner = {
        "base_config": "./din_config/",
        "base_expid": "DIN_default",
        "dataset_id": "MicroLens_1M_x1",
        "dataset_config": {"MicroLens_1M_x1": dataset(META)},
        "tuner_space": {
            "embedding_regularizer": [1e-6, 1e-7],
            "net_regularizer": 0,
            "net_dropout": 0.1,
            "learning_rate": 1e-3,
            "batch_size": 8192,
        },
    }
    (folder / "tuner.yaml").write_text(yaml.safe_dump(tuner))
    search = Search(read_tuner("tuner.yaml", model_zoo), model_zoo, folder / "out", ["run_expid.py"], [-1])
    search.add(*search.tuner.combine(search.tuner.space))
    assert len(search.experiments) == 2
    for expid, regularizer in zip(search.experiments, (1e-6, 1e-7), strict=True):
        params = load_params(str(folder / "out"), expid, model_zoo)
        assert params["embedding_regularizer"] == regularizer and params["batch_size"] == 8192
    model = build(params)
    assert widths(model.dnn) == [2 * 64 + 2 * 256, 1024, 512, 256, 1]
    assert dropouts(model.dnn) == [0.1] * 3
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in model.dnn.modules()) == 3
    assert widths(model.attention_layers.attention_layer) == [4 * 256, 512, 256, 1]
    assert dropouts(model.attention_layers.attention_layer) == [0.1] * 2


def test_qin(folder):
    """QIN: an item is 128 wide three times; `factor` is what the learning rate is multiplied by on a plateau."""
    params = load_params(str(write(folder, QIN, dataset(META), BASE)), "X", model_zoo)
    assert params["lr_decay_factor"] == 0.5 and "factor" not in params
    assert (params["early_stop_patience"], params["num_workers"]) == (8, 3)
    model = build(params)
    width = 2 * 128 + 2 * 3 * 128
    assert [widths(layer) for layer in model.qnn.layer] == [[width, 4 * width]] * 4
    assert dropouts(model.qnn) == [0.1] * 5 and len(model.qnn.norm) == 4
    assert widths(model.attention_layers)[:2] == [3 * 128, 2 * 3 * 128]


def test_transformer_dcn(folder):
    """Tokens are pairs of items; 16 of them and their maximum go to the cross network; max_len is their loader's."""
    params = load_params(str(write(folder, TRANSFORMER_DCN, dataset(META))), "X", model_zoo)
    assert params["max_len"] == 100
    model = build(params)
    width = 2 * 64 + 256 + (16 + 1) * 2 * 256
    assert widths(model.parallel_dnn) == [width, 1024, 512, 256] and dropouts(model.parallel_dnn) == [0.2] * 3
    assert widths(model.mlp) == [width + 256, 64, 32, 1]
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())


def test_din_att6(folder):
    """Items carry both levels; the row's features are the user and the levels."""
    entry = dataset({"type": "categorical", "vocab_size": 1000001}, item_feature="item_feature.parquet")
    params = load_params(str(write(folder, DIN_ATT6, entry)), "X", model_zoo)
    assert params["seed"] == 29
    model = build(params)
    item = 256 + 2 * 64
    assert widths(model.dnn) == [3 * 64 + 3 * item, 1024, 512, 256, 64, 16, 1]
    assert dropouts(model.dnn) == [0.1] * 5
    assert len(model.target_attention.layers) == 2


def test_a_model_that_is_not_here_is_all_that_is_missed(folder):
    """MMCTRers' file names another model than `model`; with that model's constructor its settings are read."""
    config = write(folder, MMCTRERS, dataset(META))
    with pytest.raises(UserError, match=r"experiment X: model 'DIN_att_emb_rms' is unknown, expected one of"):
        load_params(str(config), "X", types.SimpleNamespace(__all__=["DIN"], DIN=model_zoo.DIN))

    class DIN_att_emb_rms(model_zoo.DIN):
        def __init__(self, feature_map, num_layers=1, alpha=0.9, **kwargs):
            super().__init__(feature_map, **kwargs)

    models = types.SimpleNamespace(__all__=["DIN_att_emb_rms"], DIN_att_emb_rms=DIN_att_emb_rms)
    params = load_params(str(config), "X", models)
    assert (params["model"], params["num_layers"], params["alpha"]) == ("DIN_att_emb_rms", 4, 0.8)


def test_a_dataset_entry_may_have_what_the_model_reads(folder):
    """momo's second model takes a path that its file has in the data set's entry."""

    class Transformer_DCN_Quant(model_zoo.Transformer_DCN):
        def __init__(self, feature_map, top_k=3, codebook_num=3, default_vocab=5, global_item_info=None, **kwargs):
            super().__init__(feature_map, **kwargs)

    more = {"model": "Transformer_DCN_Quant", "top_k": 10, "codebook_num": 5, "default_vocab": 10}
    monitor = {"monitor": {"AUC": 1, "logloss": -1}}
    entry = dataset(META, global_item_info=f"{FOLDER}/item_info.parquet")
    config = write(folder, {**TRANSFORMER_DCN, **more, **monitor}, entry)
    models = types.SimpleNamespace(
        __all__=["Transformer_DCN", "Transformer_DCN_Quant"],
        Transformer_DCN=model_zoo.Transformer_DCN,
        Transformer_DCN_Quant=Transformer_DCN_Quant,
    )
    assert load_params(str(config), "X", models)["global_item_info"] == f"{FOLDER}/item_info.parquet"
    with pytest.raises(UserError, match="dataset MicroLens_1M_x1: global_item_info: unknown key"):
        load_params(str(write(folder, TRANSFORMER_DCN, entry)), "X", models)

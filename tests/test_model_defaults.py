"""Defaults are those of the originals: the same settings with a key left out make the same network.

Where FuxiCTR ships a model, its own class is asked; the others' signatures and default networks are facts that were
read from the repositories named here.
"""

import importlib.util
import inspect
import itertools
from importlib.metadata import distribution
from types import MappingProxyType

import pytest
import torch
from conftest import ROOT, make_feature_map

import model_zoo
from mm_fibinet import settings
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.item_table import ItemTable
from mm_fibinet.training import Trainer
from model_zoo.base import KWARG_DEFAULTS

# What a run or FuxiCTR's BaseModel decides, and no network shows.
NOT_OF_THE_NETWORK = {"self", "feature_map", "model_id", "gpu", "kwargs"}
CLASSIC = {"learning_rate": 1e-3, "embedding_dim": 10, "embedding_regularizer": None, "net_regularizer": None}
DEEP = {**CLASSIC, "net_dropout": 0, "batch_norm": False}
DIN_LIKE = {
    **DEEP,
    "dnn_hidden_units": [512, 128, 64],
    "dnn_activations": "ReLU",
    "attention_hidden_units": [64],
    "attention_hidden_activations": "Dice",
    "attention_output_activation": None,
    "attention_dropout": 0,
    "din_use_softmax": False,
    "accumulation_steps": 1,
}
FUXICTR = "reczoo/FuxiCTR model_zoo/{0}/src/{0}.py"
FACTS = {
    "DIN": ("reczoo/WWW2025_MMCTR_Challenge src/DIN.py", DIN_LIKE),
    "DIN_att6": (
        "Gavin113/WWW2025_MMCTR src/DIN_att6.py",
        {**DIN_LIKE, "embedding_dim": 64, "if_use_self_attn": False, "num_layers": 2},
    ),
    "DIN_att_emb_rms": (
        "Tol1ve/MM-CTR-MMCTRers src/DIN_att_emb_rms.py",
        {**DIN_LIKE, "embedding_dim": 64, "num_layers": 3, "alpha": 0.9},
    ),
    "QIN_variety_v9": (  # its `factor` of 0.1 is the trainer's lr_decay_factor
        "salmon1802/QIN src/QIN_variety_v9.py",
        {**DEEP, "num_layers": 3, "num_row": 2, "accumulation_steps": 1, "lr_decay_factor": 0.1},
    ),
    "Transformer_DCN": (  # which has no mask_polarity: it is as published
        "pinskyrobin/WWW2025_MMCTR src/Transformer_DCN.py",
        {
            **DEEP,
            "hidden_activations": "ReLU",
            "dcn_cross_layers": 3,
            "dcn_hidden_units": [1024, 512, 256],
            "mlp_hidden_units": [64, 32],
            "num_heads": 1,
            "transformer_layers": 2,
            "transformer_dropout": 0.2,
            "dim_feedforward": 256,
            "learning_rate": 5e-4,
            "embedding_dim": 64,
            "net_dropout": 0.2,
            "first_k_cols": 16,
            "concat_max_pool": True,
            "accumulation_steps": 1,
            "mask_polarity": "published",
        },
    ),
    "FiBiNET": (
        FUXICTR,
        {
            **DEEP,
            "hidden_units": [],
            "hidden_activations": "ReLU",
            "excitation_activation": "ReLU",
            "reduction_ratio": 3,
            "bilinear_type": "field_interaction",
        },
    ),
    "DeepFM": (FUXICTR, {**DEEP, "hidden_units": [64, 64, 64], "hidden_activations": "ReLU"}),
    "AutoInt": (
        FUXICTR,
        {
            **DEEP,
            "dnn_hidden_units": [64, 64, 64],
            "dnn_activations": "ReLU",
            "attention_layers": 2,
            "num_heads": 1,
            "attention_dim": 8,
            "layer_norm": False,
            "use_scale": False,
            "use_wide": False,
            "use_residual": True,
        },
    ),
    "xDeepFM": (
        FUXICTR,
        {**DEEP, "dnn_hidden_units": [64, 64, 64], "dnn_activations": "ReLU", "cin_hidden_units": [16, 16, 16]},
    ),
    "GDCN": (FUXICTR, {**DEEP, "dnn_hidden_units": [], "dnn_activations": "ReLU", "num_cross_layers": 3}),
    "FM": (FUXICTR, {"learning_rate": 1e-3, "embedding_dim": 10, "regularizer": None}),
    "LR": (FUXICTR, {"learning_rate": 1e-3, "regularizer": None}),
}
# Papers whose authors' own code has no constructor to compare with; their layers are held to the equations.
FROM_PAPERS = (
    *("WuKong", "RankMixer", "HSTU", "OneTrans"),  # tests/test_rankers.py
    *("LMF", "NAML", "MARN", "QARM", "MAKE", "DMF", "MUSE"),  # tests/test_multimodal_models.py
)
SHIPPED = ("DIN", "DCNv2", "FinalMLP")  # by FuxiCTR's wheel, under model_zoo/LongCTR

FEATURES = {
    "user_id": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 30},
    "item_seq": {"type": "meta"},
    "likes_level": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 11},
    "views_level": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 11},
    "item_id": {"type": "categorical", "source": "item", "padding_idx": 0, "vocab_size": 40},
    "item_emb": {"type": "embedding", "source": "item", "embedding_dim": 6, "pretrain_dim": 5},
}


def shipped_class(name):
    """FuxiCTR's own model; ours has its package's name, so it is loaded by path."""
    path = distribution("fuxictr").locate_file(f"model_zoo/LongCTR/{name}/{name}.py")
    spec = importlib.util.spec_from_file_location(f"fuxictr_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def defaults(*classes):
    """Defaults by name over the constructors of these classes; a class counts before its parents."""
    found = {}
    for model_class in classes:
        for parent in model_class.__mro__:
            if "__init__" in vars(parent):
                for name, parameter in inspect.signature(parent.__init__).parameters.items():
                    found.setdefault(name, parameter.default)
    return found


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def assert_defaults(name, expected, source):
    ours = defaults(getattr(model_zoo, name), Trainer)
    assert {key: plain(ours.get(key, "not a setting")) for key in expected} == expected, source


@pytest.mark.parametrize("name", SHIPPED)
def test_signatures_are_fuxictrs_where_it_ships_the_model(name):
    theirs = inspect.signature(shipped_class(name).__init__).parameters
    expected = {key: parameter.default for key, parameter in theirs.items() if key not in NOT_OF_THE_NETWORK}
    assert len(expected) > 8
    assert_defaults(name, expected, "FuxiCTR's wheel")


@pytest.mark.parametrize("name", FACTS)
def test_defaults_are_the_originals(name):
    source, expected = FACTS[name]
    assert_defaults(name, expected, source.format(name))


def test_every_model_has_an_original_or_a_paper():
    models = {getattr(model_zoo, name) for name in model_zoo.__all__}
    assert models == {getattr(model_zoo, name) for name in (*FACTS, *SHIPPED, *FROM_PAPERS)}


def default_network(name, features=MappingProxyType(FEATURES)):
    """{parameter or buffer: shape} of a model that is given nothing but features."""
    model = getattr(model_zoo, name)(make_feature_map(features))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def tables(dim):
    """The embeddings of FEATURES."""
    prefix = "embedding_layer.embedding_layer"
    sizes = {"user_id": 30, "likes_level": 11, "views_level": 11, "item_id": 40}
    shapes = {f"{prefix}.embedding_layers.{name}.weight": (size, dim) for name, size in sizes.items()}
    return {**shapes, f"{prefix}.feature_encoders.item_emb.weight": (6, 5)}


def linears(prefix, places, widths):
    """The weights and biases of linear layers, one after the other, at these places of a sequence."""
    shapes = {}
    for place, (before, after) in zip(places, itertools.pairwise(widths), strict=True):
        shapes[f"{prefix}.{place}.weight"] = (after, before)
        shapes[f"{prefix}.{place}.bias"] = (after,)
    return shapes


def dice_attention(dim):
    """DIN_Attention of 64 units with Dice."""
    prefix = "attention_layers.attention_layer.mlp"
    buffers = {"running_mean": (64,), "running_var": (64,), "num_batches_tracked": ()}
    return {
        **linears(prefix, (0, 2), (4 * dim, 64, 1)),
        f"{prefix}.1.alpha": (64,),
        **{f"{prefix}.1.bn.{name}": shape for name, shape in buffers.items()},
    }


def test_din_without_settings_is_the_published_network():
    theirs = make_shipped_din()
    assert default_network("DIN") == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    item = 10 + 6
    mlp = linears("dnn.mlp", (0, 2, 4, 6), (3 * 10 + 2 * item, 512, 128, 64, 1))  # ReLU between, no norm, no dropout
    assert default_network("DIN") == {**tables(10), **dice_attention(item), **mlp}


def test_qin_without_settings_is_the_published_network():
    item, width = 16, 3 * 10 + 2 * 16
    expected = {**tables(10), "qnn.fc.weight": (1, width), "qnn.fc.bias": (1,), "attention_layers.W_o.weight": (16, 32)}
    expected.update({f"attention_layers.W_{part}.weight": (2 * item, item) for part in "qkv"})
    for layer in range(3):
        expected.update(linears(f"qnn.layer.{layer}.linear", (0,), (width, 2 * width)))
        expected[f"qnn.activation.{layer}.weight"] = (1,)
    assert default_network("QIN") == expected


def test_din_att6_without_settings_is_the_published_network():
    features = {**FEATURES, "item_emb": {**FEATURES["item_emb"], "embedding_dim": 8}}
    item = 2 * 64 + 64 + 8  # both levels, id, embedding
    expected = {**tables(64), **dice_attention(item)}
    expected["embedding_layer.embedding_layer.feature_encoders.item_emb.weight"] = (8, 5)
    for layer in range(2):
        prefix = f"target_attention.layers.{layer}"
        for part in ("query_proj", "key_proj", "value_proj", "multihead_attn.out_proj"):
            expected[f"{prefix}.cross_attn.{part}.weight"] = (item, item)
            expected[f"{prefix}.cross_attn.{part}.bias"] = (item,)
        expected[f"{prefix}.cross_attn.multihead_attn.in_proj_weight"] = (3 * item, item)
        expected[f"{prefix}.cross_attn.multihead_attn.in_proj_bias"] = (3 * item,)
        expected[f"{prefix}.cross_attn.norm.weight"] = expected[f"{prefix}.cross_attn.norm.bias"] = (item,)
        expected[f"{prefix}.attn_norm.weight"] = (item,)
        expected.update(linears(f"{prefix}.ffn", (0, 3), (item, item, item)))
    expected.update(linears("dnn.mlp", (0, 2, 4, 6), (3 * 64 + 3 * item, 512, 128, 64, 1)))
    assert default_network("DIN_att6", features) == expected


def test_transformer_dcn_without_settings_is_the_published_network():
    features = {name: FEATURES[name] for name in ("item_seq", "likes_level", "item_id")}
    token, prefix = 2 * 64, "transformer_encoder.transformer_encoder.layers"
    width = 64 + 64 + (16 + 1) * token
    expected = {
        name: shape for name, shape in tables(64).items() if name.endswith(("likes_level.weight", "item_id.weight"))
    }
    for layer in range(2):
        expected[f"{prefix}.{layer}.self_attn.in_proj_weight"] = (3 * token, token)
        expected[f"{prefix}.{layer}.self_attn.in_proj_bias"] = (3 * token,)
        expected.update(linears(f"{prefix}.{layer}.self_attn", ("out_proj",), (token, token)))
        expected.update(linears(f"{prefix}.{layer}", ("linear1", "linear2"), (token, 256, token)))
        for norm in ("norm1", "norm2"):
            expected[f"{prefix}.{layer}.{norm}.weight"] = expected[f"{prefix}.{layer}.{norm}.bias"] = (token,)
    expected.update(linears("transformer_encoder", ("out_linear",), (token, token)))
    expected.update(linears("crossnet.cross_layers", (0, 1, 2), (width,) * 4))
    expected.update(linears("parallel_dnn.mlp", (0, 3, 6), (width, 1024, 512, 256)))  # ReLU and dropout between
    expected.update(linears("mlp.mlp", (0, 2, 4), (width + 256, 64, 32, 1)))
    assert default_network("Transformer_DCN", features) == expected


def make_shipped_din(features=MappingProxyType(FEATURES), **kwargs):
    """FuxiCTR's DIN as it ships."""
    feature_map = make_feature_map(features)
    feature_map.default_emb_dim = kwargs.get("embedding_dim", 10)
    given = {**KWARG_DEFAULTS, "optimizer": "adam", "loss": "binary_crossentropy"}
    return shipped_class("DIN")(feature_map, **given, **kwargs)


@pytest.mark.parametrize("changes", [{}, {"attention_hidden_activations": "ReLU"}, {"dnn_activations": "Dice"}])
def test_din_trains_as_fuxictrs_does(changes):
    """Steps of training: Dice takes its statistics over the padding too, so the padding must be there."""
    torch.manual_seed(0)
    theirs = make_shipped_din(**changes)
    ours = model_zoo.DIN(make_feature_map(FEATURES), **changes)
    ours.load_state_dict(theirs.state_dict())
    table = ItemTable({"item_id": torch.arange(40), "item_emb": torch.randn(40, 5)})
    table["item_emb"][0] = 0
    history = torch.randint(1, 40, (12, 6))
    for row in range(12):
        history[row, : row % 7] = 0
    label = torch.randint(0, 2, (12,))
    row = {"user_id": torch.arange(12), "likes_level": torch.arange(12) % 11, "label": label}
    row["views_level"] = row["likes_level"].flip(0)
    batch = IndexBatch(row, torch.cat([history, torch.randint(1, 40, (12, 1))], dim=1).int(), table)
    for _ in range(3):
        for model, inputs in ((theirs, batch.triple()), (ours, batch)):
            model.train()
            loss = model.add_loss(model(inputs), label.float().view(-1, 1))
            model.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
            for parameter in model.parameters():
                parameter.data -= parameter.grad  # Adam would turn a rounding difference into a whole step
    for name, values in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-4, atol=1e-5)
    theirs.eval(), ours.eval()
    torch.testing.assert_close(ours(batch)["y_pred"], theirs(batch.triple())["y_pred"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("expid", settings.experiment_ids(ROOT / "config"))
def test_shipped_experiments_do_not_lean_on_a_default_that_may_surprise(expid):
    """They keep the real history visible and score it by the published ReLU, whatever the originals' defaults are."""
    params = settings.load_model_config(ROOT / "config", expid)
    if params["model"].startswith("DIN"):
        assert params["attention_hidden_activations"] == "ReLU"
    if params["model"] == "Transformer_DCN":
        assert params["mask_polarity"] == ("published" if expid.endswith("_published_mask") else "correct")
    assert "embedding_dim" in params or params["model"] == "LR"
    model_class = settings.find_model(model_zoo, params["model"])
    assert "history_pooling" in params or not issubclass(model_class, model_zoo.fields.FieldModel)

"""What every model of the zoo must do, whatever it computes.

A new model enters these tests by its name in `model_zoo.__all__` and its small sizes in SIZES below.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_feature_map
from sklearn.metrics import roc_auc_score
from torch import nn

import model_zoo
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError
from mm_fibinet.item_table import ItemTable
from model_zoo.fields import FieldModel

ITEMS, ROWS, LENGTH, TAGS, WIDTH = 300, 256, 6, 20, 12
FEATURES = {
    "user_id": {"type": "meta"},
    "item_seq": {"type": "meta"},
    "likes_level": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 11},
    "views_level": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 11},
    "item_id": {"type": "categorical", "source": "item", "padding_idx": 0, "vocab_size": ITEMS},
    "item_tags": {
        "type": "sequence",
        "source": "item",
        "feature_encoder": "layers.MaskedAveragePooling()",
        "padding_idx": 0,
        "max_len": 5,
        "vocab_size": TAGS,
    },
    "item_emb_d128": {"type": "embedding", "source": "item", "embedding_dim": 16, "pretrain_dim": WIDTH},
}
MODALITIES = {**FEATURES, "img_emb_d128": {"type": "embedding", "source": "item", "pretrain_dim": WIDTH}}
LEVELS_OF_CODES, CODES = 3, 8
QARM_FEATURES = {
    **FEATURES,
    "item_codes": {
        "type": "sequence",
        "source": "item",
        "feature_encoder": "layers.MaskedAveragePooling()",
        "padding_idx": 0,
        "max_len": LEVELS_OF_CODES,
        "vocab_size": CODES,
    },
}
DIN_SIZES = {"dnn_hidden_units": [16, 8], "attention_hidden_units": [8]}
TRANSFORMER_SIZES = {
    "transformer_layers": 1,
    "dim_feedforward": 16,
    "transformer_dropout": 0.0,
    "first_k_cols": 3,
    "dcn_cross_layers": 1,
    "dcn_hidden_units": [16],
    "mlp_hidden_units": [8],
    "net_dropout": 0.0,
    "mask_polarity": "correct",
}
STREAMS = {"mlp1_hidden_units": [16, 8], "mlp2_hidden_units": [16, 4], "fs_hidden_units": [8], "num_heads": 2}
SIZES = {
    "AutoInt": {"dnn_hidden_units": [16], "num_heads": 2},
    "DCNv2": {"parallel_dnn_hidden_units": [16]},
    "DIN": DIN_SIZES,
    "DIN_att6": DIN_SIZES,
    "DIN_att_emb_rms": {**DIN_SIZES, "num_layers": 2},
    "DeepFM": {"hidden_units": [16]},
    "FM": {},
    "FiBiNET": {"hidden_units": [16]},
    "FinalMLP": STREAMS,
    "GDCN": {"dnn_hidden_units": [16]},
    "HSTU": {"hidden_dim": 8, "num_heads": 2, "max_distance": 4, "dnn_hidden_units": [16]},
    "LMF": {"modality_dim": 8, "fusion_dim": 8, "num_ranks": 2, "hidden_units": [8]},
    "LR": {},
    "DMF": {"interest_dim": 8, "dnn_hidden_units": [16]},
    "MAKE": {"extractor_dim": 8, "extractor_hidden_units": [16, 8], **DIN_SIZES},
    "MARN": {"modality_dim": 8, **DIN_SIZES},
    "MUSE": {"content_search_len": 4, "dnn_hidden_units": [16]},
    "QARM": {"features": QARM_FEATURES, "code_dim": 4, **DIN_SIZES},
    "NAML": {"view_dim": 8, "query_dim": 4, "dnn_hidden_units": [16]},
    "OneTrans": {
        "hidden_dim": 8,
        "num_heads": 2,
        "num_tokens": 2,
        "ffn_ratio": 2,
        "max_len": LENGTH,
        "dnn_hidden_units": [8],
    },
    "QIN": {"num_layers": 2, "num_row": 2, "net_dropout": 0.0},
    "RankMixer": {"num_tokens": 4, "token_dim": 16, "ffn_ratio": 2},
    "Transformer_DCN": TRANSFORMER_SIZES,
    "WuKong": {"num_fmb_fields": 3, "num_lcb_fields": 3, "num_compressed": 2, "fmb_hidden_units": [8]},
    "xDeepFM": {"cin_hidden_units": [4, 4], "dnn_hidden_units": [16]},
}
EMBEDDING = ["item_emb_d128"]
INTEREST = {**dict.fromkeys(("simtier", "sa_ta", "bucket_attention"), EMBEDDING), "cross_attention_layers": 2}
VARIANTS = {
    "AutoInt without MLP": {"dnn_hidden_units": []},
    "AutoInt with linear part and layer norm": {"use_wide": True, "layer_norm": True},
    "AutoInt without residual": {"use_residual": False},
    "DCNv2 crossnet_only": {"model_structure": "crossnet_only", "parallel_dnn_hidden_units": []},
    "DCNv2 stacked": {"model_structure": "stacked", "stacked_dnn_hidden_units": [16]},
    "DCNv2 stacked_parallel": {"model_structure": "stacked_parallel", "stacked_dnn_hidden_units": [8]},
    "DCNv2 with low rank mixture": {"use_low_rank_mixture": True, "low_rank": 4, "num_experts": 2},
    "DIN with ReLU": {"attention_hidden_activations": "ReLU"},
    "DIN with softmax": {"din_use_softmax": True},
    "DIN_att6 with softmax": {"din_use_softmax": True},
    "FinalMLP with contexts": {"fs1_context": ["likes_level", "views_level"], "fs2_context": ["item_emb_d128"]},
    "FinalMLP without gates": {"use_fs": False},
    "GDCN with target_attention": {"history_pooling": "target_attention"},
    "FiBiNET with target_attention": {"history_pooling": "target_attention"},
    "FiBiNET with similarity_fields": {"similarity_fields": True},
    "FiBiNET with similarity_only": {"similarity_fields": True, "similarity_only": ["item_emb_d128"]},
    "FiBiNET with modality_gating": {"modality_gating": True},
    "FiBiNET with senet_plus": {"senet_plus": True},
    "FiBiNET with bilinear_plus": {"bilinear_plus": True},
    "FiBiNET with similarity_to_mlp": {"similarity_fields": True, "similarity_to_mlp": True},
    "FiBiNET with all of FiBiNET++": {
        **dict.fromkeys(("feature_norm", "senet_plus", "bilinear_plus", "similarity_fields"), True),
        "similarity_to_mlp": True,
        "bilinear_type": "field_all",
        "history_levels": True,
    },
    "FiBiNET with low_rank_fusion": {"low_rank_fusion": EMBEDDING},
    "FiBiNET with low_rank_fusion of the target alone": {
        "low_rank_fusion": EMBEDDING,
        "history_pooling": "none",
        "similarity_fields": True,
    },
    "FiBiNET with low_rank_fusion of two modalities": {
        "features": MODALITIES,
        "low_rank_fusion": ["img_emb_d128", "item_emb_d128"],
        "similarity_only": ["item_emb_d128"],
        "similarity_fields": True,
        "low_rank_fusion_dropout": 0.1,
    },
    "FiBiNET with heads of low_rank_fusion": {"low_rank_fusion": EMBEDDING, "low_rank_fusion_heads": 3},
    **{f"{name} with low_rank_fusion": {"low_rank_fusion": EMBEDDING} for name in ("DeepFM", "FinalMLP", "RankMixer")},
    "GDCN without MLP": {"dnn_hidden_units": []},
    "DIN with interest": INTEREST,
    "QIN with interest": {**INTEREST, "history_levels": True},
    "DeepFM with simtier": {"simtier": EMBEDDING},
    "FiBiNET with interest": {**INTEREST, "feature_norm": True},
    "FiBiNET with interest on what is no field": {
        **INTEREST,
        "similarity_fields": True,
        "similarity_only": EMBEDDING,
        "history_pooling": "none",
    },
    "DIN with interest in what is no feature": {**INTEREST, "similarity_only": EMBEDDING},
    "DIN with content_search": {"content_search": "item_emb_d128", "content_search_len": 4},
    "Transformer_DCN with content_search": {"content_search": "item_emb_d128", "content_search_len": 4},
    "FiBiNET with content_search": {"content_search": "item_emb_d128", "content_search_len": 4, **INTEREST},
    "Transformer_DCN without maximum": {"concat_max_pool": False},
    **{
        f"{name} with two modalities": {"features": MODALITIES, "modality_features": ["item_emb_d128", "img_emb_d128"]}
        for name in ("DMF", "LMF", "MAKE", "MARN", "MUSE", "NAML")
    },
    **{f"{name} with ids alone": {"similarity_only": EMBEDDING} for name in ("DMF", "MAKE", "MUSE")},
    "OneTrans of three layers": {"num_layers": 3},
    "OneTrans of one layer": {"num_layers": 1},
    "HSTU of three layers": {"num_layers": 3},
    "WuKong with one compression": {"attentive": False},
    "xDeepFM without MLP": {"dnn_hidden_units": []},
}


def model_classes(zoo) -> dict[str, type]:
    """What a namespace exports, each model once however many names it has."""
    return {getattr(zoo, name).__name__: getattr(zoo, name) for name in zoo.__all__}


MODELS = model_classes(model_zoo)
CASES = [
    *((name, {**sizes, "history_levels": levels}) for name, sizes in SIZES.items() for levels in (True, False)),
    *((name.split()[0], {**SIZES[name.split()[0]], **extra}) for name, extra in VARIANTS.items()),
]
CASE_NAMES = [f"{name}{' levels' * options['history_levels']}" for name, options in CASES[: 2 * len(SIZES)]]
FIELD_MODELS = [name for name in SIZES if name in MODELS and issubclass(MODELS[name], FieldModel)]
every_case = pytest.mark.parametrize("case", CASES, ids=[*CASE_NAMES, *VARIANTS])


def make_model(case, awake=True, seed=0, **kwargs):
    """The case's model in evaluation mode.

    Args:
        case: (name, settings); `features` among them are the feature map's, FEATURES unless given.
        awake: its tables and biases are large enough for every input to show.
        kwargs: further settings.
    """
    name, options = case
    torch.manual_seed(seed)
    options = {"embedding_dim": 8, "learning_rate": 0.01, "features": FEATURES, **options, **kwargs}
    model = MODELS[name](make_feature_map(options.pop("features")), **options)
    if awake:
        tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        for parameter in model.parameters():
            if parameter in tables or parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_batch(seed=1):
    """Rows with different targets and histories of every length: row 0 has none, row 1 is full."""
    torch.manual_seed(seed)
    table = {
        "item_id": torch.arange(ITEMS),
        "item_tags": torch.randint(0, TAGS, (ITEMS, 5)),
        "item_emb_d128": torch.randn(ITEMS, WIDTH),
        "likes_level": torch.randint(1, 11, (ITEMS,)),
        "views_level": torch.randint(1, 11, (ITEMS,)),
    }
    own = torch.Generator().manual_seed(seed)  # the columns of few models, not drawn in between
    table["img_emb_d128"] = torch.randn(ITEMS, WIDTH, generator=own)
    table["item_codes"] = torch.randint(0, CODES, (ITEMS, LEVELS_OF_CODES), generator=own)
    for values in table.values():
        values[0] = 0
    targets = torch.randperm(ITEMS - 1)[:ROWS] + 1
    history = torch.randint(1, ITEMS, (ROWS, LENGTH))
    lengths = torch.randint(0, LENGTH + 1, (ROWS, 1))
    lengths[0], lengths[1] = 0, LENGTH
    history[torch.arange(LENGTH) < LENGTH - lengths] = 0
    row = {
        "user_id": torch.arange(ROWS),
        "likes_level": table["likes_level"][targets],
        "views_level": table["views_level"][targets],
        "label": torch.randint(0, 2, (ROWS,)),
    }
    return IndexBatch(row, torch.cat([history, targets.unsqueeze(1)], dim=1).int(), ItemTable(table))


def target_alone(batch):
    """The rows as FuxiCTR's dictionary: no history."""
    return {**batch.item_table.rows(batch.item_index[:, -1]), **batch.batch_dict}


def some_rows(batch, rows):
    """The batch's rows, in this order."""
    columns = {name: values[rows] for name, values in batch.batch_dict.items()}
    return IndexBatch(columns, batch.item_index[rows], batch.item_table)


def with_item(batch, item, **values):
    """The batch with other values for some items."""
    columns = {name: column.clone() for name, column in batch.item_table.columns.items()}
    for name, value in values.items():
        columns[name][item] = value
    return batch._replace(item_table=ItemTable(columns))


@torch.no_grad()
def scores(model, inputs):
    return model(inputs)["y_pred"]


def backward(model, batch):
    loss = model.add_loss(model(batch), model.get_labels(batch))
    model.zero_grad()
    loss.backward()


def trainable(model, case):
    """(name, parameter) of all that a loss must reach: not a bias that is the same for all of a softmax."""
    cancelled = "attention_layers.attention_layer.mlp.2.bias" if case[1].get("din_use_softmax") else None
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and name != cancelled]


def assert_equal_scores(ours, expected, tolerance=2e-6):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def require_sizes(name: str) -> None:
    """Fail, with what to do, for a model that these tests know no sizes of."""
    if name not in SIZES:
        pytest.fail(
            f"{name} is in model_zoo.__all__, but the contract tests know no small sizes of it: add {name!r}: {{...}} "
            "to SIZES in tests/test_model_contract.py (its constructor's settings for a network of a few units)"
        )


@pytest.mark.parametrize("name", MODELS)
def test_every_exported_model_is_under_contract(name):
    require_sizes(name)


def test_a_model_without_sizes_is_told_what_to_add():
    zoo = SimpleNamespace(__all__=["DIN", "Fresh", "Alias"], DIN=model_zoo.DIN, Fresh=type("Fresh", (), {}))
    zoo.Alias = zoo.DIN
    assert list(model_classes(zoo)) == ["DIN", "Fresh"]
    require_sizes("DIN")
    with pytest.raises(
        pytest.fail.Exception, match=r"add 'Fresh': \{\.\.\.\} to SIZES in tests/test_model_contract.py"
    ):
        require_sizes("Fresh")


def test_sizes_are_of_exported_models():
    assert set(SIZES) <= set(MODELS)


@every_case
def test_scores_are_probabilities(case):
    predicted = scores(make_model(case), make_batch())
    assert predicted.shape == (ROWS, 1)
    assert predicted.dtype == torch.float32
    assert 0 <= predicted.min() < predicted.max() <= 1


@every_case
def test_indices_and_triple_score_the_same(case):
    model, batch = make_model(case), make_batch()
    expected = scores(model, batch.triple())
    assert_equal_scores(scores(model, batch), expected)  # the whole table embedded once
    few = some_rows(batch, torch.arange(8))  # only the distinct items embedded
    assert_equal_scores(scores(model, few), expected[:8])


@every_case
def test_padding_content_never_matters(case):
    model, batch = make_model(case), make_batch()
    expected = scores(model, batch)
    row, items, mask = batch.triple()
    real = torch.cat([mask, torch.ones(ROWS, 1)], dim=1).view(-1) > 0
    junk = batch.item_table.rows(torch.randint(1, ITEMS, (len(real),)))
    filled = {name: torch.where(real.view(-1, *[1] * (v.dim() - 1)), v, junk[name]) for name, v in items.items()}
    assert_equal_scores(scores(model, (row, filled, mask)), expected)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.num_embeddings == ITEMS:
                module.weight[0] += 5
    junk = {"item_tags": torch.arange(5) + 3, "item_emb_d128": torch.randn(WIDTH) * 9, "likes_level": 7}
    assert_equal_scores(scores(model, with_item(batch, 0, **junk)), expected)


@every_case
def test_a_row_scores_alone_as_among_others(case):
    """Rows without a history, with a full one and with some."""
    model, batch = make_model(case), make_batch()
    expected = scores(model, batch)
    for row in range(4):
        alone = some_rows(batch, torch.tensor([row]))
        assert_equal_scores(scores(model, alone), expected[row : row + 1])
        assert_equal_scores(scores(model, alone.triple()), expected[row : row + 1])


@every_case
def test_further_padding_in_front_never_matters(case):
    """A file of longer lists, or a batch with longer histories, pads the same row further."""
    model, batch = make_model(case), make_batch()
    longer = batch._replace(item_index=F.pad(batch.item_index, (5, 0)))
    expected = scores(model, batch)
    assert_equal_scores(scores(model, longer), expected)
    assert_equal_scores(scores(model, longer.triple()), expected)


@every_case
def test_order_of_the_batch_never_matters(case):
    model, batch = make_model(case), make_batch()
    order = torch.randperm(ROWS)
    assert_equal_scores(scores(model, some_rows(batch, order)), scores(model, batch)[order])


@every_case
def test_history_is_used(case):
    model, batch = make_model(case), make_batch()
    index = batch.item_index.clone()
    index[:, -2] = torch.where(index[:, -2] > 0, index[:, -2] % (ITEMS - 1) + 1, 0)
    moved = (scores(model, batch._replace(item_index=index)) - scores(model, batch)).abs().squeeze(1)
    has_history = batch.mask.sum(dim=1) > 0
    assert moved[~has_history].max() < 1e-6
    assert (moved[has_history] > 1e-6).float().mean() > 0.5


@every_case
def test_the_embedding_field_is_used(case):
    model, batch = make_model(case), make_batch()
    other = with_item(batch, slice(1, None), item_emb_d128=torch.randn(ITEMS - 1, WIDTH))
    assert ((scores(model, other) - scores(model, batch)).abs() > 1e-6).float().mean() > 0.5


@every_case
def test_levels_of_the_history_are_used_when_asked_for(case):
    model, batch = make_model(case), make_batch()
    history = torch.arange(1, ITEMS)[~torch.isin(torch.arange(1, ITEMS), batch.item_index[:, -1])]  # no target
    other = with_item(batch, history, likes_level=10, views_level=1)
    asked = bool(model.level_features)
    assert asked == case[1].get("history_levels", case[0] == "DIN_att6")
    changed = (scores(model, other) - scores(model, batch)).abs().max() > 1e-6
    assert changed == asked


@every_case
def test_gradients_reach_every_trainable_weight(case):
    model, batch = make_model(case), make_batch()
    backward(model, batch)
    for name, parameter in trainable(model, case):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@every_case
def test_fresh_weights_get_gradients(case):
    model = make_model(case, awake=False).train()
    backward(model, make_batch())
    still = [name for name, p in trainable(model, case) if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


@every_case
def test_rows_without_history_are_finite(case):
    model, batch = make_model(case), make_batch()
    empty = batch._replace(item_index=batch.item_index.clone())
    empty.item_index[:, :-1] = 0
    for inputs in (empty, empty.triple()):
        assert scores(model, inputs).isfinite().all()
        backward(model, inputs)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert_equal_scores(scores(model, empty)[:1], scores(model, batch)[:1])


@every_case
def test_saved_and_loaded_it_scores_the_same(case, tmp_path):
    model, batch = make_model(case), make_batch()
    model.save_weights(str(tmp_path / "weights.model"))
    other = make_model(case, seed=9)
    assert not scores(other, batch).equal(scores(model, batch))
    other.load_weights(str(tmp_path / "weights.model"))
    assert scores(other, batch).equal(scores(model, batch))


@pytest.mark.parametrize("case", [case for case in CASES[: 2 * len(SIZES)] if case[1]["history_levels"]], ids=SIZES)
def test_it_overfits_256_rows(case):
    model, batch = make_model(case, awake=False), make_batch()
    for step in range(200):
        model.train()
        backward(model, batch)
        model.optimizer.step()
        if step % 20 == 19:
            model.eval()
            auc = roc_auc_score(batch.batch_dict["label"], scores(model, batch).squeeze(1))
            if auc > 0.99:
                break
    assert auc > 0.99


@pytest.mark.parametrize("name", FIELD_MODELS)
def test_without_history_pooling_the_history_is_not_read(name):
    model, batch = make_model((name, SIZES[name]), history_pooling="none"), make_batch()
    assert_equal_scores(scores(model, target_alone(batch)), scores(model, batch))


@every_case
def test_a_dictionary_is_a_row_without_history(case):
    model, batch = make_model(case), make_batch()
    empty = batch._replace(item_index=batch.item_index.clone())
    empty.item_index[:, :-1] = 0
    assert_equal_scores(scores(model, target_alone(batch)), scores(model, empty))
    backward(model.train(), target_alone(batch))


@every_case
def test_the_item_table_is_what_the_model_asks_for(case):
    """Nothing less, or a score would fail; nothing more, or a column would be read for nobody."""
    model, batch = make_model(case), make_batch()
    asked = model.item_side_features()
    assert {spec["source"] for spec in asked.values()} == {"item"}
    columns = {name: batch.item_table[name] for name in asked}
    assert_equal_scores(scores(model, batch._replace(item_table=ItemTable(columns))), scores(model, batch))
    for name in asked:
        rest = {other: values for other, values in columns.items() if other != name}
        with pytest.raises(UserError, match=f"items lack {name}"):
            model(batch._replace(item_table=ItemTable(rest)))


@pytest.mark.parametrize(("dropped", "field"), [("id_dropout", "item_id"), ("modality_dropout", "item_emb_d128")])
def test_dropped_fields_of_the_target(dropped, field):
    """In training the target's field is zero in about that share of the rows, in evaluation in none."""
    model = make_model(("GDCN", {**SIZES["GDCN"], "history_pooling": "none"}), **{dropped: 0.4})
    inputs = model.read_batch(make_batch())
    place = model.field_features.index(field)
    whole = model.fields(inputs)
    torch.manual_seed(0)
    partly = model.train().fields(inputs)
    zero = (partly[:, place] == 0).all(dim=1)
    assert 0.3 < zero.float().mean() < 0.5
    assert not (whole[:, place] == 0).all(dim=1).any()
    assert partly[~zero].equal(whole[~zero])
    others = [i for i in range(model.num_fields) if i != place]
    assert partly[:, others].equal(whole[:, others])


@pytest.mark.parametrize("dropped", ["id_dropout", "modality_dropout"])
def test_an_attention_asks_without_the_targets_dropped_field(dropped):
    """It asks as for a target that has none: with an id that nothing is known of, or without the embedding."""
    model, batch = make_model(("GDCN", {**SIZES["GDCN"], "history_pooling": "target_attention"})), make_batch()
    targets = batch.item_index[:, -1]
    batch.item_index[:, :-1] *= ~torch.isin(batch.item_index[:, :-1], targets)  # the history's items keep theirs
    setattr(model, dropped, 1.0)
    model.dropped_fields[{"id_dropout": "item_id", "modality_dropout": "item_emb_d128"}[dropped]] = 1.0
    with torch.no_grad():
        found = model.train().fields(model.read_batch(batch))
        if dropped == "id_dropout":
            model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight[targets.long()] = 0
        else:
            batch = with_item(batch, targets.long(), item_emb_d128=0)
        expected = model.eval().fields(model.read_batch(batch))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_lr_is_a_sum_of_weights():
    model, batch = make_model(("LR", {"history_levels": True})), make_batch()
    tables = {
        part: {
            name: layer.weight[:, 0] for name, layer in module.embedding_layer.embedding_layer.embedding_layers.items()
        }
        for part, module in (("target", model.lr_layer), ("history", model.history_layer))
    }
    dense = {"target": model.lr_layer.embedding_weights, "history": model.history_layer.embedding_weights}

    def weight(part, item):
        row = {name: column[item] for name, column in batch.item_table.columns.items()}
        ids = [tables[part][name][row[name]].sum() for name in FEATURES if name in row and name != "item_emb_d128"]
        return sum(ids) + row["item_emb_d128"] @ dense[part]["item_emb_d128"].weight[0]

    for index in batch.item_index[:5].tolist():
        history = [weight("history", item) for item in index[:-1] if item]
        logit = model.bias + weight("target", index[-1]) + (sum(history) / len(history) if history else 0)
        position = batch.item_index.tolist().index(index)
        torch.testing.assert_close(scores(model, batch)[position], logit.sigmoid(), rtol=0, atol=1e-6)


def test_fm_sums_the_products_of_all_pairs():
    model, batch = make_model(("FM", {"history_levels": True})), make_batch()
    inputs = model.read_batch(batch)
    fields = model.fields(inputs)
    assert fields.shape == (ROWS, 2 + 3 + 5, 8)
    pairs = sum((fields[:, i] * fields[:, j]).sum(1) for i in range(10) for j in range(i))
    logit = model.bias + model.lr_layer(inputs.target_columns()).squeeze(1) + pairs
    torch.testing.assert_close(scores(model, batch).squeeze(1), logit.sigmoid(), rtol=0, atol=1e-5)

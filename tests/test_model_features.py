"""What models make of the features there are: of items or not, with levels or not, with a history or not."""

import pytest
import torch
from test_model_contract import (
    FEATURES,
    FIELD_MODELS,
    MODELS,
    ROWS,
    SIZES,
    WIDTH,
    backward,
    make_batch,
    make_model,
    scores,
)

from mm_fibinet.errors import UserError
from mm_fibinet.item_table import ItemTable
from model_zoo.history import HistoryModel

HISTORY_MODELS = [name for name in SIZES if name in MODELS and issubclass(MODELS[name], HistoryModel)]


OF_ANY_FEATURES = [name for name in FIELD_MODELS if name != "LMF"]  # which is a fusion of embeddings


def without(*names, of=FEATURES):
    """Features, some of them left out."""
    return {name: spec for name, spec in of.items() if name not in names}


WITH_ONE_EMBEDDING = without("likes_level", "views_level", "item_id", "item_tags")
COMPARED_ONLY = {"similarity_fields": True, "similarity_only": ["item_emb_d128"]}
SEARCHED = {"content_search": "item_emb_d128"}


@pytest.mark.parametrize("name", [*OF_ANY_FEATURES, "LR"])
def test_it_works_without_features_of_items(name):
    """As in FuxiCTR's demo example8: two numbers and a vector, no source, no history."""
    features = {
        "feat1": {"type": "numeric", "source": ""},
        "feat2": {"type": "numeric", "source": ""},
        "feat3": {"type": "embedding", "source": "", "pretrain_dim": WIDTH},
    }
    model = make_model((name, SIZES[name]), features=features)
    torch.manual_seed(2)
    columns = {"feat1": torch.randn(ROWS), "feat2": torch.randn(ROWS), "feat3": torch.randn(ROWS, WIDTH)}
    before = scores(model, columns)
    for changed in columns:
        moved = (scores(model, {**columns, changed: columns[changed] + 1}) - before).abs()
        assert (moved > 1e-6).float().mean() > 0.5
    assert model.item_side_features() == {}
    backward(model.train(), {**columns, "label": torch.ones(ROWS)})


@pytest.mark.parametrize("name", OF_ANY_FEATURES)
def test_history_pooling_says_when_there_is_nothing_to_pool(name, caplog):
    features = without("item_id", "item_tags", "item_emb_d128")
    with pytest.raises(UserError, match=r"history_pooling is 'mean', but the .* set history_pooling: none, or mark"):
        make_model((name, SIZES[name]), features=features, history_pooling="mean")
    assert not caplog.messages
    model, batch = make_model((name, SIZES[name]), features=features), make_batch()  # not asked for
    assert caplog.messages == ["item_seq is not read: no feature of source item describes the items of a history"]
    assert model.history_pooling == "none"
    assert scores(model, batch).equal(scores(model, batch.batch_dict))


@pytest.mark.parametrize("name", [*FIELD_MODELS, *HISTORY_MODELS, "LR"])
def test_an_items_vector_has_the_feature_maps_order(name):
    model = make_model((name, {**SIZES[name], "history_levels": True}))
    assert model.vector_features == ["likes_level", "views_level", "item_id", "item_tags", "item_emb_d128"]


@pytest.mark.parametrize("pooling", ["mean", "target_attention"])
@torch.no_grad()
def test_fields_come_in_a_known_order(pooling):
    """The row's and the target's by the feature map, then the history's: features of items, then levels."""
    model, batch = make_model(("FM", {"history_levels": True, "history_pooling": pooling})), make_batch()
    if pooling == "target_attention":  # every score 1: the sum of the history
        last = model.history_attention.attention_layer.mlp[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
    fields = model.fields(model.read_batch(batch))
    embed = model.embedding_layer.embedding_layer
    target, history = batch.item_index[:, -1], batch.item_index[:, :-1]
    names = ["likes_level", "views_level", "item_id", "item_tags", "item_emb_d128"]
    for place, name in enumerate(names):
        expected = embed({name: batch.item_table[name][target.long()]})[name]
        torch.testing.assert_close(fields[:, place], expected, rtol=0, atol=1e-6)
    count = (history > 0).sum(dim=1, keepdim=True).clamp(min=1) if pooling == "mean" else 1
    for place, name in enumerate(["item_id", "item_tags", "item_emb_d128", "likes_level", "views_level"], start=5):
        vectors = embed({name: batch.item_table[name]})[name]
        expected = (vectors[history.long()] * (history > 0).unsqueeze(-1)).sum(dim=1) / count
        torch.testing.assert_close(fields[:, place], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("features", "pooling"), [(FEATURES, "mean"), (without("item_seq"), "none")])
def test_history_is_pooled_where_there_is_one(features, pooling):
    assert make_model(("FM", {}), features=features).history_pooling == pooling


@pytest.mark.parametrize("name", HISTORY_MODELS)
def test_a_history_model_needs_features_of_items(name):
    message = (
        f"{name} reads (a history of items, but .* it has likes_level, views_level; mark|(embeddings|codes) of the)"
    )
    with pytest.raises(UserError, match=message):
        make_model((name, {"history_levels": False}), features=without("item_id", "item_tags", "item_emb_d128"))


@pytest.mark.parametrize("name", HISTORY_MODELS)
def test_a_history_model_needs_a_history(name):
    """Data of FuxiCTR's own kind have items and no history; DIN would be an MLP there, without a word."""
    features = without("item_seq", of=SIZES[name].get("features", FEATURES))
    with pytest.raises(UserError, match="but the feature map has no item_seq"):
        make_model((name, {**SIZES[name], "features": features}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history_pooling": "mean"}, "history_pooling is 'mean', but the feature map has no item_seq to pool"),
        ({"history_pooling": "target_attention"}, "'target_attention', but the feature map has no item_seq to pool"),
        ({"similarity_fields": True}, "similarity_fields is True, which compares .* has no item_seq"),
    ],
)
def test_fields_of_a_history_need_one(settings, message):
    with pytest.raises(UserError, match=message):
        make_model(("FM", {}), features=without("item_seq"), **settings)


@pytest.mark.parametrize("name", SIZES)
def test_levels_are_refused_where_there_are_none(name):
    features = without("likes_level", "views_level", of=SIZES[name].get("features", FEATURES))
    message = (
        f"history_levels is True for {name}, but .* neither likes_level nor views_level, it has item_id, item_tags, "
    )
    with pytest.raises(UserError, match=message):
        make_model((name, {**SIZES[name], "history_levels": True, "features": features}))
    sizes = {key: value for key, value in SIZES[name].items() if "context" not in key and key != "features"}
    assert (
        scores(make_model((name, {**sizes, "history_levels": False}), features=features), make_batch()).isfinite().all()
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("FM", {"history_pooling": "max"}), "history_pooling is 'max', expected one of mean"),
        (
            ("FiBiNET", {"similarity_only": ["item_emb_d128"]}),
            "similarity_only has 'item_emb_d128', .* similarity_fields",
        ),
        (
            ("FiBiNET", {"similarity_fields": True, "similarity_only": ["views"]}),
            "similarity_only has 'views', expected",
        ),
        (("FiBiNET", {"similarity_to_mlp": True}), "similarity_to_mlp is True without similarity_fields"),
        (
            ("FM", {"similarity_fields": True, "similarity_only": ["item_emb_d128"], "modality_gating": True}),
            "modality_gating is True, but no embedding is a field",
        ),
        (
            ("FM", {"similarity_fields": True, "features": without("item_tags", "item_emb_d128")}),
            "similarity_fields is True, but there is nothing to compare",
        ),
        (("DCNv2", {"model_structure": "wide"}), "model_structure is 'wide', expected one of crossnet_only, stacked"),
        (("DCNv2", {}), "parallel_dnn_hidden_units is empty, expected the units"),
        (("AutoInt", {"num_heads": 3}), r"num_heads is 3, expected a divisor of 8 \(attention_dim\)"),
        (
            ("FinalMLP", {"num_heads": 6, "mlp1_hidden_units": [12], "mlp2_hidden_units": [8]}),
            r"num_heads is 6, expected a divisor of 12 \(mlp1_hidden_units\) and 8 \(mlp2_hidden_units\)",
        ),
        (
            ("FinalMLP", {"fs1_context": ["likes_level", "age"]}),
            r"fs1_context is \['likes_level', 'age'\], expected features of the data, each once: \['likes_level'",
        ),
        (("FinalMLP", {"fs2_context": ["user_id"]}), r"fs2_context is \['user_id'\], expected features of the data"),
        (("FinalMLP", {"fs2_context": ["item_id"] * 2}), "fs2_context is .* each once"),
        (("FiBiNET", {"features": {"likes_level": FEATURES["likes_level"]}}), "FiBiNET has one field, likes_level"),
        (
            ("FiBiNET", {"senet_plus": True, "num_groups": 3}),
            r"num_groups is 3, expected a divisor of 8 \(embedding_dim",
        ),
        (
            ("FiBiNET", {"features": WITH_ONE_EMBEDDING, **COMPARED_ONLY, "history_pooling": "none"}),
            "FiBiNET has one field, of similarity or interest, expected two or more",
        ),
        (
            ("GDCN", {"features": WITH_ONE_EMBEDDING, **COMPARED_ONLY, "similarity_fields": False, **SEARCHED}),
            "GDCN has no fields: similarity_only takes item_emb_d128 out of them",
        ),
        (
            ("DIN", {"features": WITH_ONE_EMBEDDING, "similarity_only": ["item_emb_d128"], **SEARCHED}),
            "DIN reads a history of items, but item_emb_d128, kept out of their vectors",
        ),
        (("LMF", {"features": WITH_ONE_EMBEDDING}), "LMF fuses modalities, but item_emb_d128 is all that the fields"),
        (("LMF", COMPARED_ONLY), "LMF reads embeddings .* but similarity_only takes item_emb_d128 out of these"),
        (
            ("LMF", {**COMPARED_ONLY, "modality_features": ["item_emb_d128"]}),
            "modality_features and similarity_only both have 'item_emb_d128', but LMF reads modalities as features",
        ),
        (
            ("LMF", {"low_rank_fusion": ["item_emb_d128"]}),
            "low_rank_fusion is what LMF is itself; leave it out, or name",
        ),
        (("NAML", {"similarity_only": ["item_emb_d128"], **SEARCHED}), "NAML reads embeddings .* out of these"),
        (("MARN", {"similarity_only": ["item_emb_d128"], **SEARCHED}), "MARN reads embeddings .* out of these"),
        *(
            (case, f"{name} is 1, expected 2 or more: a layer norm of one number is 0 whatever it was")
            for name, case in {
                "embedding_dim": ("WuKong", {"embedding_dim": 1}),
                "token_dim": ("RankMixer", {"num_tokens": 1, "token_dim": 1}),
                "hidden_dim": ("HSTU", {"hidden_dim": 1, "num_heads": 1}),
                "attention_dim": ("AutoInt", {"attention_dim": 1, "layer_norm": True}),
            }.items()
        ),
        (("FiBiNET", {"embedding_dim": 1, "feature_norm": True}), "embedding_dim is 1, expected 2 or more"),
        (("FiBiNET", {"embedding_dim": 1, "senet_plus": True, "num_groups": 1}), "embedding_dim is 1, expected 2"),
        (("Transformer_DCN", {"num_heads": 5}), r"num_heads is 5, expected a divisor of 64 \(tokens\)"),
        (
            ("LR", {"regularizer": 1e-3, "net_regularizer": 1e-4}),
            "regularizer is 0.001 and net_regularizer is 0.0001, expected one of the two",
        ),
        (("DIN_att_emb_rms", {"alpha": -0.5}), r"alpha is -0.5, expected .* share of the loss, from 0 to 1"),
        (("DIN_att_emb_rms", {"alpha": 2}), "alpha is 2, expected"),
        (("DIN_att6", {"if_use_self_attn": True}), "if_use_self_attn is true"),
        (("DIN_att6", {"embedding_dim": 9, "history_levels": False}), "34 wide, expected a multiple of 4"),
    ],
)
def test_what_a_model_cannot_do_is_refused(case, message):
    with pytest.raises(UserError, match=message):
        make_model(case)


def test_items_without_levels_are_refused():
    model, batch = make_model(("DIN", {**SIZES["DIN"], "history_levels": True})), make_batch()
    columns = {name: values for name, values in batch.item_table.columns.items() if "level" not in name}
    with pytest.raises(UserError, match=r"items lack likes_level, views_level; make .* item_side_features"):
        model(batch._replace(item_table=ItemTable(columns)))

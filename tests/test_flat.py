"""The plain dictionary for FuxiCTR's flat models: every column is what a loop over the rows finds."""

import numpy as np
import pytest
import torch
from conftest import make_feature_map
from fuxictr.pytorch.layers import FeatureEmbedding
from test_model_contract import FEATURES, ITEMS, LENGTH, ROWS, make_batch

import model_zoo
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.flat import FlatFormat
from mm_fibinet.item_table import ItemTable
from mm_fibinet.settings import load_params
from mm_fibinet.similarity import RECENCY

PRICE = {"price": {"type": "numeric", "source": "item"}}


@pytest.fixture
def batch():
    made = make_batch()
    made.item_table.columns["price"] = torch.randn(ITEMS)
    made.item_table.columns["price"][0] = 0
    return made


def flat(features=FEATURES, **settings):
    return FlatFormat(make_feature_map({**features, **PRICE}), **settings)


def real(row):
    """The real items of a row's history, oldest first."""
    return [item for item in row[:-1].tolist() if item]


def test_columns_of_target_and_history(batch):
    columns = flat(history_levels=True).batch(*batch)
    table = batch.item_table
    assert columns.keys() == {
        "user_id", "label", "likes_level", "views_level", "item_id", "item_tags", "item_emb_d128", "price",
        "history_likes_level", "history_views_level", "history_item_id", "history_item_tags", "history_item_emb_d128",
        "history_price",
    }  # fmt: skip
    for i, row in enumerate(batch.item_index[:40]):
        target, history = int(row[-1]), row[:-1].tolist()
        assert columns["likes_level"][i] == batch.batch_dict["likes_level"][i]
        for name in ("item_id", "item_tags", "item_emb_d128"):
            assert columns[name][i].equal(table[name][target]), name
        assert columns["price"][i].tolist() == [table["price"][target]]
        assert columns["history_item_id"][i].tolist() == history
        assert columns["history_item_tags"][i].tolist() == [tag for item in history for tag in table["item_tags"][item]]
        assert columns["history_views_level"][i].tolist() == table["views_level"][history].tolist()
        for name in ("item_emb_d128", "price"):
            vectors = [table[name][item].numpy() for item in real(row)]
            mean = np.mean(vectors, axis=0) if vectors else np.zeros_like(table[name][0])
            np.testing.assert_allclose(columns[f"history_{name}"][i], mean, rtol=1e-5, atol=1e-6)
    assert columns["history_item_id"].shape == (ROWS, LENGTH)


def test_fuxictrs_layer_pools_the_history_by_the_items_own_table(batch):
    feature_map = flat().feature_map(max_len=LENGTH)
    assert feature_map.features["history_item_id"] == {
        "type": "sequence", "source": "user", "vocab_size": ITEMS, "padding_idx": 0, "share_embedding": "item_id",
        "max_len": LENGTH, "feature_encoder": "layers.MaskedAveragePooling()",
    }  # fmt: skip
    assert feature_map.features["history_item_tags"]["max_len"] == 5 * LENGTH
    assert feature_map.num_fields == 2 + 4 + 4
    assert feature_map.features["likes_level"]["source"] == "context"
    columns = flat().batch(*batch)
    layer = FeatureEmbedding(feature_map, 8).embedding_layer
    assert layer.embedding_layers["history_item_id"] is layer.embedding_layers["item_id"]
    assert layer.embedding_layers["history_item_tags"] is layer.embedding_layers["item_tags"]
    fields = layer(
        {name: columns[name] for name in feature_map.features if feature_map.features[name]["type"] != "meta"}
    )
    for i, row in enumerate(batch.item_index[:40]):
        ids, table = real(row), layer.embedding_layers["item_id"].weight
        expected = sum(table[item] for item in ids) / max(len(ids), 1) if ids else torch.zeros(8)
        torch.testing.assert_close(fields["history_item_id"][i], expected)
        tags = [tag for item in ids for tag in batch.item_table["item_tags"][item].tolist() if tag]
        weights = layer.embedding_layers["item_tags"].weight
        expected = sum(weights[tag] for tag in tags) / len(tags) if tags else torch.zeros(8)
        torch.testing.assert_close(fields["history_item_tags"][i], expected)
    assert {values.shape for values in fields.values()} == {(ROWS, 8)}


def test_a_sequence_may_stay_one_for_a_model_that_attends_to_it():
    feature_map = flat().feature_map(max_len=LENGTH, unpooled=["history_item_id"])
    assert feature_map.features["history_item_id"]["feature_encoder"] is None
    assert feature_map.features["history_item_tags"]["feature_encoder"] == "layers.MaskedAveragePooling()"


def test_similarity_is_that_of_our_models_of_fields(batch):
    settings = {"similarity_fields": True, "history_levels": True}
    form = flat(**settings)
    columns = form.batch(*batch)
    model = model_zoo.FiBiNET(make_feature_map(FEATURES), embedding_dim=8, hidden_units=[8], **settings)
    expected = torch.cat(model.similarity.features(model.read_batch(batch)), dim=1)
    torch.testing.assert_close(torch.cat([columns[name] for name in form.numbers], dim=1), expected)
    assert len(form.numbers) == 4 + 3 + 8 and len(set(form.numbers)) == 15
    feature_map = form.feature_map(max_len=LENGTH)
    assert all(feature_map.features[name] == {"type": "numeric", "source": "context"} for name in form.numbers)


def test_similarity_by_name(batch):
    columns = flat(similarity_fields=True).batch(*batch)
    vectors = batch.item_table["item_emb_d128"].numpy()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    for i, row in enumerate(batch.item_index[:40]):
        history = [(age, item) for age, item in enumerate(reversed(row[:-1].tolist())) if item]
        cosines = np.array([unit[item] @ unit[int(row[-1])] for _, item in history])
        weights = np.array([RECENCY**age for age, _ in history])
        expected = {"mean": 0, "top": 0, "max": 0, "recent": 0}
        if len(cosines):
            expected = {"mean": cosines.mean(), "top": np.sort(cosines)[-4:].mean(), "max": cosines.max()}
            expected["recent"] = (cosines * weights).sum() / weights.sum()
        for figure, value in expected.items():
            assert columns[f"similarity_item_emb_d128_{figure}"][i] == pytest.approx(value, abs=1e-5), figure


def test_similarity_is_of_the_table_that_is_given(batch):
    """A study scores the same rows with other items."""
    form, turned = flat(similarity_fields=True), {**batch.item_table.columns}
    turned["item_emb_d128"] = turned["item_emb_d128"].flip(0)
    turned["item_tags"] = turned["item_tags"].flip(0)
    for table in (batch.item_table, ItemTable(turned), batch.item_table):
        found = form.batch(batch.batch_dict, batch.item_index, table)
        expected = flat(similarity_fields=True).batch(batch.batch_dict, batch.item_index, table)
        for name in form.numbers:
            torch.testing.assert_close(found[name], expected[name], msg=name)


def test_what_is_only_compared_is_no_feature(batch):
    form = flat(similarity_fields=True, similarity_only=["item_emb_d128"])
    columns, features = form.batch(*batch), form.feature_map(max_len=LENGTH).features
    assert not {"item_emb_d128", "history_item_emb_d128"} & (columns.keys() | features.keys())
    assert "similarity_item_emb_d128_mean" in columns


def test_without_a_history_there_is_the_target_alone(batch):
    features = {name: spec for name, spec in FEATURES.items() if name != "item_seq"}
    assert not [name for name in flat(features).batch(*batch) if name.startswith("history_")]
    with pytest.raises(
        UserError, match="similarity_fields is True, but there is nothing to compare: expected a history"
    ):
        flat(features, similarity_fields=True)


@pytest.mark.parametrize("name", ["item_id", "nothing"])
def test_what_cannot_be_compared(name):
    with pytest.raises(UserError, match=f"similarity_only has '{name}', expected features of source item"):
        flat(similarity_fields=True, similarity_only=[name])
    with pytest.raises(UserError, match="and similarity_fields: True"):
        flat(similarity_only=["item_emb_d128"])


def test_a_name_that_is_taken():
    with pytest.raises(UserError, match=r"feature history_item_id: batch_format flat gives .* rename the column"):
        flat({**FEATURES, "history_item_id": {"type": "meta"}})


def test_the_loader_yields_it(dataset):
    params = load_params(str(dataset), "FiBiNET_test", model_zoo, ["batch_size=50"])
    feature_map = build_feature_map(params)

    def batches(batch_format, **settings):
        return list(
            MMCTRDataLoader(feature_map, params["train_data"], **{**params, "batch_format": batch_format, **settings})
        )

    indices = batches("indices")
    form = FlatFormat(feature_map, similarity_fields=True)
    for batch, plain in zip(indices, batches("flat", similarity_fields=True), strict=True):
        assert plain.keys() == form.batch(*batch).keys()
        assert all(plain[name].equal(values) for name, values in form.batch(*batch).items())

"""A request's scores from encoded rows are the model's own, a row for each candidate."""

import numpy as np
import pytest
import served_models
import torch
from conftest import make_feature_map
from served_models import CASES, ITEMS, VARIANTS
from test_model_contract import EMBEDDING, FEATURES, SIZES

import model_zoo
from mm_fibinet import similarity
from mm_fibinet.errors import UserError
from mm_fibinet.item_table import ItemTable
from mm_fibinet.onnx_export import encode_items, item_ids
from model_zoo import served

HISTORIES = {
    "full": lambda rng: rng.integers(1, ITEMS, 8),
    "padded": lambda rng: np.concatenate([np.zeros(5, int), rng.integers(1, ITEMS, 3)]),
    "empty": lambda rng: np.zeros(8, int),
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("case", [*CASES, *VARIANTS])
@torch.no_grad()
def test_a_request_is_scored_as_its_rows(case, history):
    model, table, rng = served_models.make_model(case), served_models.make_table(), np.random.default_rng(2)
    module, encoder = served.served(model), served.ItemEncoder(model)
    ids = HISTORIES[history](rng)
    rows, compared = torch.from_numpy(encode_items(encoder, table)), torch.from_numpy(item_ids(table, module.ids))
    for count in (1, 7):
        candidates = rng.integers(1, ITEMS, count)
        row = served_models.make_row(model, count)
        expected = served_models.score_rows(model, table, ids, candidates, row)
        batch = {name: torch.tensor(values) for name, values in row.items()}
        if "age" in row:
            batch["age"] = (batch["age"] - 30) / 10
        floats = [v.float() if v.is_floating_point() else v.int() for v in batch.values()]
        real = torch.tensor(ids > 0).float()
        found = module(rows[ids], real, rows[candidates], compared[ids], compared[candidates], floats)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
        assert count == 1 or np.ptp(expected) > 0.01


def test_every_class_that_is_served_is_tried():
    assert {case.split()[0] for case in CASES} == {each.__name__ for each in served.SERVED}


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {each.__name__ for each in served.SERVED}))
def test_other_models_are_refused_by_name(name):
    settings = dict(SIZES[name])
    model = getattr(model_zoo, name)(make_feature_map(settings.pop("features", FEATURES)), **settings)
    with pytest.raises(UserError, match=rf"^{name} cannot be exported, expected one of DCNv2, DIN, "):
        served.served(model)


@pytest.mark.parametrize(
    "setting",
    [
        {"content_search": "item_emb_d128"},
        {"simtier": EMBEDDING},
        {"sa_ta": EMBEDDING},
        {"bucket_attention": EMBEDDING},
        {"cross_attention_layers": 1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_read_pairs_otherwise_are_refused_by_name(setting):
    model = model_zoo.DIN(make_feature_map(FEATURES), **SIZES["DIN"], **setting)
    with pytest.raises(UserError, match=rf"^DIN with {next(iter(setting))} cannot be exported"):
        served.served(model)


def test_tags_of_one_history_are_compared_as_those_of_rows():
    generator = torch.Generator().manual_seed(0)
    tags = torch.randint(0, 6, (30, 4), generator=generator).int()  # many are there twice
    target, history = torch.randint(30, (50,), generator=generator), torch.randint(30, (1, 9), generator=generator)
    real = torch.rand(1, 9, generator=generator) < 0.7
    weights = similarity.history_weights(real)
    rows = history.expand(50, -1), weights.expand(50, -1, -1)
    expected = similarity.tag_features(similarity.distinct_tags(tags), target, *rows)
    found = similarity.tag_features_of_one(tags[target], tags[history[0]], 6, weights)
    torch.testing.assert_close(found, expected)


def test_an_embedding_that_is_kept_as_int8_is_encoded_with_its_scale():
    model, plain = served_models.make_model("FiBiNET"), served_models.make_table()
    columns = {name: plain[name] for name in model.item_side_features()}
    small = {**columns, "item_emb_d128": (columns["item_emb_d128"] * 20).to(torch.int8)}
    scaled = {**columns, "item_emb_d128": small["item_emb_d128"].float() * 0.05}
    encoder = served.ItemEncoder(model)
    found = encode_items(encoder, ItemTable(small, {"item_emb_d128": 0.05}))
    np.testing.assert_array_equal(found, encode_items(encoder, ItemTable(scaled)))


def test_a_new_item_is_encoded_as_one_without_an_id():
    model, table = served_models.make_model("FiBiNET recommended"), served_models.make_table()
    encoder, added = served.ItemEncoder(model).eval(), served.NewItemEncoder(model)
    columns = [table[name][5:9] for name in encoder.features]
    without = [
        torch.zeros_like(c) if name == "item_id" else c for name, c in zip(encoder.features, columns, strict=True)
    ]
    given = [table[name][5:9] for name in added.asked]
    with torch.no_grad():
        torch.testing.assert_close(added(*given), encoder(*without))
        assert not torch.allclose(added(*given), encoder(*columns))
    assert max(p.shape[0] for p in added.parameters()) < ITEMS

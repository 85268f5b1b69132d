"""The interest layers against MUSE's published outputs, and against the obvious form of each."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from safetensors.torch import load_file
from test_model_contract import (
    EMBEDDING,
    FEATURES,
    INTEREST,
    ITEMS,
    SIZES,
    assert_equal_scores,
    make_batch,
    make_model,
    scores,
    with_item,
)

from mm_fibinet.errors import UserError
from mm_fibinet.similarity import ITEMS_PER_POSITION, cosines, unit_cosines
from model_zoo.interest import (
    NUM_TIERS,
    BucketAttention,
    SimilarityAwareAttention,
    SimTier,
    nearest_history,
    tiers,
)

ROWS, WIDTH, DIM = 7, 6, 4


def golden_tensors(name):
    """(weights by MUSE's names, inputs, outputs) of a golden file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key[2:]: value for key, value in tensors.items() if key.startswith("w.")}
    inputs = {key[2:]: value for key, value in tensors.items() if key.startswith("x.")}
    return weights, inputs, tensors["y"]


def attention_inputs(num_items=20, length=5, columns=2, seed=3):
    """(target, items, positions, mask, cosines of each column); row 0 has no history, row 1 a full one."""
    torch.manual_seed(seed)
    items, target = torch.randn(num_items, WIDTH), torch.randn(ROWS, WIDTH)
    positions = torch.randint(0, num_items, (ROWS, length))
    lengths = torch.randint(0, length + 1, (ROWS, 1))
    lengths[0], lengths[1] = 0, length
    mask = (torch.arange(length) >= length - lengths).float()
    return target, items, positions, mask, [torch.rand(ROWS, length) * 2 - 1 for _ in range(columns)]


@torch.no_grad()
def test_simtier_is_muses():
    weights, inputs, expected = golden_tensors("muse_simtier")
    layer = SimTier()
    layer.emb.copy_(weights["emb"].squeeze(0))
    every_position = torch.ones_like(inputs["cosine"])  # MUSE counts its padding, as of cosine 0
    torch.testing.assert_close(layer(inputs["cosine"], every_position), expected, rtol=0, atol=1e-5)


def test_the_settings_of_simtier_are_the_golden_files():
    assert "eps 0.1, dim 2" in json.loads((GOLDEN / "muse.json").read_text())["muse_simtier"]
    assert SimTier().emb.shape == (22, 2)


@torch.no_grad()
def test_sa_ta_is_muses():
    weights, inputs, expected = golden_tensors("muse_sa_ta")
    batch, length, width = inputs["history"].shape
    layer = SimilarityAwareAttention(width, head_dim=3, num_columns=2)
    for ours, theirs in {"query": "query_layers", "key": "fact_layers", "value": "value_layers"}.items():
        for part in ("weight", "bias"):
            both = [weights[f"{theirs}.{head}.linears.0.{part}"] for head in range(2)]
            getattr(getattr(layer, ours), part).copy_(torch.cat(both))
    layer.temperature.copy_(weights["cosine_tau1"])
    layer.factors.copy_(weights["cosine_tau2"])
    positions = torch.arange(batch * length).view(batch, length)
    columns = [inputs["cosine"], torch.zeros(batch, length)]  # one column of the two is there
    output = layer(inputs["query"].squeeze(1), inputs["history"].flatten(0, 1), positions, inputs["mask"], columns)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_simtier_counts_real_positions():
    layer = SimTier()
    cosine = torch.tensor([[1.0, -1.0, 0.0, 0.05, 0.1001, 0.55, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    counts = dict.fromkeys(range(NUM_TIERS), 0) | {20: 1, 0: 1, 10: 1, 11: 1, 12: 1, 16: 1}  # the last one is padding
    expected = torch.cat([math.log(1 + counts[tier]) * layer.emb[tier] for tier in range(NUM_TIERS)])
    torch.testing.assert_close(layer(cosine, mask)[0], expected)
    assert layer(cosine, torch.zeros_like(mask)).abs().max() == 0


def silu(x):
    return x / (1 + (-x).exp())


def test_sa_ta_is_an_attention_head_by_head():
    target, items, positions, mask, columns = attention_inputs()
    layer = SimilarityAwareAttention(WIDTH, head_dim=3, num_columns=2)
    with torch.no_grad():
        layer.temperature.uniform_(0.2, 0.9)
        layer.factors.uniform_(0.5, 1.5)
    output = layer(target, items, positions, mask, columns)
    for row in range(ROWS):
        real = mask[row] > 0
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            history = items[positions[row][real]]
            dot = silu(layer.key(history))[:, part] @ silu(layer.query(target[row]))[part]
            near = sum(c[row][real] / layer.temperature[i, head] for i, c in enumerate(columns))
            b1, b2, b3 = layer.factors[:, head]
            weights = (b1 * dot + b2 * near + b3 * dot * near).softmax(dim=0)
            expected = weights @ silu(layer.value(history))[:, part]
            torch.testing.assert_close(output[row, part], expected, rtol=1e-5, atol=1e-5)


def test_bucket_attention_is_one_with_the_tiers_vectors_added():
    target, items, positions, mask, columns = attention_inputs()
    layer = BucketAttention(WIDTH, DIM, num_columns=2)
    output = layer(target, items, positions, mask, columns)
    keys, values = layer.key(items)[positions], layer.value(items)[positions]
    for i, cosine in enumerate(columns):
        keys, values = keys + layer.key_tiers[i][tiers(cosine)], values + layer.value_tiers[i][tiers(cosine)]
    for row in range(ROWS):
        real = mask[row] > 0
        weights = (keys[row][real] @ layer.query(target[row]) / DIM**0.5).softmax(dim=0)
        torch.testing.assert_close(output[row], weights @ values[row][real], rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(output.square().sum(), layer.parameters())
    assert all(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("kind", [torch.float32, torch.int8])
@pytest.mark.parametrize(("num_items", "at_most"), [(30, ITEMS_PER_POSITION), (30, 1), (40, 1)])
def test_cosines(num_items, at_most, kind, monkeypatch):
    """Of all items at once, of gathered ones of few items and of many, in blocks of two rows; item 0 has no vector."""
    monkeypatch.setattr("mm_fibinet.similarity.NUMBERS_AT_ONCE", 2 * 5 * WIDTH)
    monkeypatch.setattr("mm_fibinet.similarity.ITEMS_PER_POSITION", at_most)
    torch.manual_seed(0)
    items = (torch.randn(num_items, WIDTH) * 40).clamp(-127, 127).to(kind)
    items[0] = 0
    target, history = torch.randint(1, num_items, (ROWS,)), torch.randint(0, num_items, (ROWS, 5)).int()
    target[0], history[1, :2] = 0, torch.tensor([0, target[1]])
    found = cosines(items, target, history)
    for row in range(ROWS):
        own = items[target[row]].double()
        expected = [F.cosine_similarity(own, items[i].double(), dim=0).float() for i in history[row].tolist()]
        torch.testing.assert_close(found[row], torch.stack(expected), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert not found[0].any()
    assert found[1, :2].tolist() == pytest.approx([0, 1])
    assert tiers(found[1, 1]) == 20
    of_length_1 = unit_cosines(F.normalize(items.float(), dim=-1), target, history)
    torch.testing.assert_close(of_length_1, found, rtol=0, atol=1e-6)


def test_cosines_of_int8_need_no_scale():
    torch.manual_seed(0)
    items = torch.randint(-127, 128, (200, 16), dtype=torch.int8)
    target, history = torch.arange(9), torch.randint(0, 200, (9, 4))
    with torch.autocast("cpu", torch.bfloat16):
        half = cosines(items, target, history)
    scaled = cosines(items.float() / 127, target, history)
    torch.testing.assert_close(cosines(items, target, history), scaled, rtol=0, atol=1e-6)
    torch.testing.assert_close(half, scaled, rtol=0, atol=0.01)


def test_the_nearest_history_is_kept_in_its_order():
    torch.manual_seed(1)
    items = torch.randn(30, WIDTH)
    items[[0, 7]] = 0  # padding, and an item without a vector
    target, history = torch.randint(1, 30, (ROWS,)), torch.randint(1, 30, (ROWS, 9))
    real = torch.arange(9) >= torch.arange(ROWS).unsqueeze(1)
    target[2], history[3, 4] = 7, 7
    kept, kept_real = nearest_history(items, target, history * real, real, 4)
    for row in range(ROWS):
        cosine = F.cosine_similarity(items[history[row]], items[target[row]], dim=-1)
        places = sorted(
            (place for place in range(9) if real[row, place] and cosine[place] != 0), key=lambda p: -cosine[p]
        )
        expected = [history[row, place].item() for place in sorted(places[:4])]
        assert kept[row][kept_real[row]].tolist() == expected
        assert kept_real[row].tolist() == sorted(kept_real[row].tolist())  # in front there is padding
    assert not kept_real[2].any()
    assert nearest_history(items, target, history, real, 50)[0].shape == (ROWS, 9)


@pytest.mark.parametrize("name", ["DIN", "DeepFM", "Transformer_DCN"])
def test_content_search_is_a_history_of_those_items(name):
    """What a model makes of the nearest items is what it makes of a history that has no others."""
    batch = make_batch()
    searching = make_model((name, SIZES[name]), content_search="item_emb_d128", content_search_len=3)
    plain = make_model((name, SIZES[name]))
    plain.load_state_dict(searching.state_dict())
    index = batch.item_index.long()
    kept, real = nearest_history(batch.item_table["item_emb_d128"], index[:, -1], index[:, :-1], index[:, :-1] > 0, 3)
    short = batch._replace(item_index=torch.cat([kept * real, index[:, -1:]], dim=1).int())
    assert_equal_scores(scores(searching, batch), scores(plain, short))
    assert (scores(searching, batch) - scores(plain, batch)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", [name for name in SIZES if name not in ("LR", "MAKE", "MUSE")]
)  # these are made of them
def test_off_is_as_before(name):
    """No weight, no random number and no score more than without the settings."""
    off = {"simtier": [], "sa_ta": None, "bucket_attention": (), "cross_attention_layers": 0, "content_search": None}
    model, plain = make_model((name, SIZES[name]), **off), make_model((name, SIZES[name]))
    assert not [key for key in plain.state_dict() if "interest" in key]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert scores(model, make_batch()).equal(scores(plain, make_batch()))


@pytest.mark.parametrize("name", ["DIN", "FiBiNET"])
def test_each_layer_is_read(name):
    """Without a layer's last weights the scores are others."""
    model, batch = make_model((name, {**SIZES[name], **INTEREST})), make_batch()
    before = scores(model, batch)
    layers = model.interest
    for weights in (
        layers.simtiers[0].emb,
        layers.sa_ta.value.weight,
        layers.bucket_attention.value_tiers,
        layers.cross_attention.layers[1].ffn_norm.weight,
    ):
        kept = weights.detach().clone()
        with torch.no_grad():
            weights.zero_()
            assert ((scores(model, batch) - before).abs() > 1e-6).float().mean() > 0.5
            weights.copy_(kept)
    assert scores(model, batch).equal(before)


@pytest.mark.parametrize("name", ["DIN", "FiBiNET"])
def test_int8_columns_are_compared_as_they_are(name):
    torch.manual_seed(5)
    batch = make_batch()
    whole = torch.randint(-127, 128, (ITEMS, 12), dtype=torch.int8)
    whole[0] = 0
    model = make_model((name, {**SIZES[name], **INTEREST, "similarity_only": EMBEDDING}))
    scaled = scores(model, with_item(batch, slice(None), item_emb_d128=whole.float() / 127))
    columns = dict(batch.item_table.columns) | {"item_emb_d128": whole}
    table = type(batch.item_table)(columns)
    for inputs in (batch._replace(item_table=table), batch._replace(item_table=table).triple()):
        assert_equal_scores(scores(model, inputs), scaled, tolerance=1e-5)


@torch.no_grad()
def test_id_dropout_of_a_history_model():
    """In training some targets have no id in their vector, in evaluation none; the history keeps its ids."""
    model = make_model(("DIN", SIZES["DIN"]), id_dropout=0.4)
    batch = model.read_batch(make_batch())
    items = model.item_vectors(batch)
    whole = model.target_vectors(batch, items)
    assert whole.equal(items[batch.target])
    torch.manual_seed(0)
    partly = model.train().target_vectors(batch, items)
    ids = slice(0, 8)  # item_id comes first, then tags and the embedding
    dropped = (partly[:, ids] == 0).all(dim=1)
    assert 0.3 < dropped.float().mean() < 0.5
    assert partly[~dropped].equal(whole[~dropped])
    assert partly[:, 8:].equal(whole[:, 8:])
    assert whole[:, ids].abs().min(dim=1).values.max() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["DIN", "DeepFM"])
def test_id_dropout_reaches_the_interest_layers(name, monkeypatch):
    """Their target has no id where the model's has none."""
    model = make_model((name, {**SIZES[name], **INTEREST}), id_dropout=0.4).train()
    seen = []
    monkeypatch.setattr(model.interest.sa_ta, "forward", lambda target, *rest: seen.append(target) or target[:, :8])
    model(make_batch())
    dropped = (seen[0][:, :8] == 0).all(dim=1)  # item_id comes first
    assert 0.3 < dropped.float().mean() < 0.5
    assert not (seen[0][:, 8:] == 0).all(dim=1).any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["DIN", "FiBiNET"])
def test_semantic_ids_are_a_sequence_feature(name):
    """Codes of the items' embeddings, a list of ids an item (0 = none), embedded and averaged as tags are."""
    codes = {**FEATURES["item_tags"], "max_len": 3, "vocab_size": 13}
    model = make_model((name, SIZES[name]), features={**FEATURES, "item_codes": codes})
    batch = make_batch()
    values = torch.randint(1, 13, (ITEMS, 3))
    values[0] = 0
    table = type(batch.item_table)({**batch.item_table.columns, "item_codes": values})
    batch = batch._replace(item_table=table)
    assert model.vector_features[-1] == "item_codes"
    embedded = model.embed(model.embedding_layer, {"item_codes": values})["item_codes"]
    rows = model.embedding_layer.embedding_layer.embedding_layers["item_codes"].weight
    torch.testing.assert_close(embedded[1:], rows[values[1:]].mean(dim=1), rtol=0, atol=1e-6)
    other = with_item(batch, slice(1, None), item_codes=values[1:] % 12 + 1)
    assert ((scores(model, other) - scores(model, batch)).abs() > 1e-6).float().mean() > 0.5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DIN", {"simtier": ["txt_emb"]}, r"simtier has 'txt_emb', expected features .* here item_emb_d128; a column"),
        ("DeepFM", {"sa_ta": ["item_tags"]}, "sa_ta has 'item_tags', expected features of source item and of type emb"),
        ("QIN", {"bucket_attention": EMBEDDING * 2}, "bucket_attention is .* expected each feature once"),
        ("FiBiNET", {"content_search": "views_level"}, "content_search has 'views_level', expected features"),
        ("DIN", {"similarity_only": EMBEDDING}, "similarity_only has 'item_emb_d128', expected .* or named in simtier"),
    ],
)
def test_what_cannot_be_compared_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        make_model((name, {**SIZES[name], **settings}))


@pytest.mark.parametrize("name", ["DIN", "FiBiNET"])
@pytest.mark.parametrize(
    "setting", ["simtier", "sa_ta", "bucket_attention", "content_search", "cross_attention_layers"]
)
def test_without_a_history_they_are_refused(name, setting):
    value = {"content_search": "item_emb_d128", "cross_attention_layers": 2}.get(setting, EMBEDDING)
    features = {key: spec for key, spec in FEATURES.items() if key != "item_seq"}
    with pytest.raises(UserError, match=f"{setting} .* the feature map has no item_seq; add it .* leave {setting} out"):
        make_model((name, SIZES[name]), features=features, **{setting: value})


def test_attentions_need_items_vectors():
    features = {name: FEATURES[name] for name in ("user_id", "item_seq", "likes_level", "views_level", "item_emb_d128")}
    only = {"similarity_only": EMBEDDING, "features": features}
    assert make_model(("FM", {"simtier": EMBEDDING, **only})).interest.widths == [2 * NUM_TIERS]
    with pytest.raises(UserError, match=r"sa_ta is \['item_emb_d128'\], which attends to the items' vectors, but no"):
        make_model(("FM", {"sa_ta": EMBEDDING, **only}))

"""The challenge's models equal the published ones: same weights in, same outputs out.

Each is made of the settings in its JSON alone: a published config says no more, so all else must be right by default.
"""

import math

import pytest
import torch
from conftest import GOLDEN, Golden

import model_zoo
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError

NOT_HERE = ("fibinet", "muse")  # test_fibinet.py, test_interest.py
MODELS = sorted(path.stem for path in GOLDEN.glob("*.json") if not path.stem.startswith(NOT_HERE))


def golden_model(name, **kwargs):
    """(the golden file, its model with the published weights)."""
    golden = Golden(name)
    model = getattr(model_zoo, golden.spec["model"])(golden.feature_map(), **golden.spec["hyper_parameters"], **kwargs)
    model.load_state_dict(golden.weights, strict=True)
    return golden, model.eval()


def changed(batch, position):
    """The batch with another item at one history position of all rows."""
    index = batch.item_index.clone()
    index[:, position] = index[:, position] % 38 + 1
    return IndexBatch(batch.batch_dict, index, batch.item_table)


@pytest.mark.parametrize("form", ["indices", "triple"])
@pytest.mark.parametrize("name", MODELS)
def test_published_outputs(name, form):
    golden, model = golden_model(name)
    inputs = golden.batch if form == "indices" else golden.batch.triple()
    torch.testing.assert_close(model(inputs)["y_pred"], golden.expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs)["y_pred"], golden.expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if Golden(name).loss is not None])
def test_published_loss(name):
    golden, model = golden_model(name)
    loss = model.add_loss(model(golden.batch), model.get_labels(golden.batch))
    torch.testing.assert_close(loss, golden.loss, rtol=1e-5, atol=1e-6)


def test_the_loss_of_din_att_emb_rms_by_hand():
    _, model = golden_model("din_att_emb_rms")
    logits, labels = [0.3, -1.2, 2.0, 0.0], [1.0, 0.0, 0.0, 1.0]
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits]
    terms = [-0.4 * math.log(p) if y else -math.log(1 - p) for p, y in zip(probabilities, labels, strict=True)]
    pairs = [math.log(1 + math.exp(logits[n] - logits[p])) for p in (0, 3) for n in (1, 2)]
    output = {"y_pred": torch.tensor(probabilities).view(-1, 1), "logit": torch.tensor(logits).view(-1, 1)}
    for clicks, expected in (
        (labels, 0.8 * sum(terms) / 4 + 0.2 * sum(pairs) / 4),
        ([0.0] * 4, 0.8 * sum(-math.log(1 - p) for p in probabilities) / 4),  # no pair
    ):
        loss = model.add_loss(output, torch.tensor(clicks).view(-1, 1))
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_only_the_correct_mask_lets_history_in():
    golden, correct = golden_model("transformer_dcn", mask_polarity="correct")
    _, published = golden_model("transformer_dcn")
    padded = golden.batch.mask.sum(dim=1) < golden.spec["max_len"]  # full rows have a position opened
    before, after = golden.batch, changed(golden.batch, -2)
    torch.testing.assert_close(published(after)["y_pred"][padded], published(before)["y_pred"][padded])
    moved = (correct(after)["y_pred"] - correct(before)["y_pred"]).abs()
    assert moved.min() > 1e-5


@torch.no_grad()
def test_correct_mask_is_the_published_model_given_the_opposite_mask():
    golden, correct = golden_model("transformer_dcn", mask_polarity="correct")
    _, published = golden_model("transformer_dcn")
    row, items, mask = golden.batch.triple()
    expected = published((row, items, 1 - mask))["y_pred"]
    torch.testing.assert_close(correct(golden.batch)["y_pred"], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_short_history_is_a_padded_one():
    golden, model = golden_model("transformer_dcn", mask_polarity="correct")
    row, index, table = golden.batch
    short = IndexBatch(row, index[:, -3:], table)  # 2 history items, first_k_cols is 4
    padded = IndexBatch(row, torch.cat([torch.zeros(len(index), 6).int(), index[:, -3:]], dim=1), table)
    torch.testing.assert_close(model(short)["y_pred"], model(padded)["y_pred"], rtol=0, atol=1e-6)


def test_unknown_mask_polarity_is_refused():
    with pytest.raises(UserError, match="mask_polarity is 'inverted', expected one of correct, published"):
        model_zoo.Transformer_DCN(Golden("transformer_dcn").feature_map(), mask_polarity="inverted")


def test_qin_under_its_published_name():
    assert model_zoo.QIN_variety_v9 is model_zoo.QIN

"""Mixed losses: each against its obvious form, gradients too, and from the config to a trained model."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from test_model_contract import SIZES, make_batch, make_model

import model_zoo
from mm_fibinet import losses
from mm_fibinet.any_model import make_model as make_any_model
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import find_model, load_params
from mm_fibinet.training import Trainer


def rows(count=60, scale=1.0, seed=0):
    """(float64 logits that ask for gradients, labels): more no clicks than clicks."""
    generator = torch.Generator().manual_seed(seed)
    logit = (torch.randn(count, generator=generator) * scale).double().requires_grad_()
    return logit, (torch.rand(count, generator=generator) < 0.3).double()


def all_pairs(logit, label):
    """-log sigmoid of every difference, one after the other."""
    pairs = [
        math.log1p(math.exp(low - high)) if low < high else low - high + math.log1p(math.exp(high - low))
        for high, clicked in zip(logit.tolist(), label.tolist(), strict=True)
        for low, other in zip(logit.tolist(), label.tolist(), strict=True)
        if clicked and not other
    ]
    return sum(pairs) / max(len(pairs), 1)


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 16])
def test_pairwise_is_the_mean_over_all_pairs(scale, at_once, monkeypatch):
    monkeypatch.setitem(losses.PAIRS_AT_ONCE, "cpu", at_once)
    logit, label = rows(scale=scale)
    loss = losses.pairwise(logit, label)
    assert loss.item() == pytest.approx(all_pairs(logit.detach(), label), rel=1e-12)
    difference = logit[label == 1].unsqueeze(1) - logit[label == 0]
    (expected,) = torch.autograd.grad(F.softplus(-difference).mean(), logit)
    (found,) = torch.autograd.grad(3 * loss, logit)
    torch.testing.assert_close(found, 3 * expected, rtol=1e-9, atol=1e-15)
    assert torch.autograd.gradcheck(lambda logit: losses.pairwise(logit, label), logit)


def test_pairwise_with_weights_is_what_a_gpu_computes():
    """There no row is picked, which would make it wait: the others have weight 0."""
    logit, label = rows()
    clicked = label.clone()
    weighted = losses._PairLoss.apply(logit, logit, clicked, 1 - clicked)
    picked = losses.pairwise(logit, label)
    assert weighted.item() == pytest.approx(picked.item(), rel=1e-12)
    (found,), (expected,) = (torch.autograd.grad(loss, logit) for loss in (weighted, picked))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_without_pairs_there_is_no_pairwise_loss(label):
    logit, _ = rows(5)
    loss = losses.pairwise(logit, torch.full((5,), label))
    loss.backward()
    assert loss.item() == 0
    assert not logit.grad.any()


def test_pairwise_needs_no_memory_for_the_pairs():
    """Of 3,000 rows there are two million pairs; no tensor of a step has more numbers than a block."""
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.append(
                max((t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)), default=0)
            )
            return out

    logit, label = rows(3000)
    with Sizes():
        losses.pairwise(logit, label).backward()
    assert int(label.sum() * (1 - label).sum()) > 1_500_000
    assert max(largest) <= losses.PAIRS_AT_ONCE["cpu"]


@pytest.mark.parametrize("pos_weight", [1.0, 0.4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_by_hand(gamma, pos_weight):
    logit, label = rows()
    probability = logit.sigmoid()
    terms = []
    for p, y in zip(probability, label, strict=True):
        happened = p if y else 1 - p
        terms.append(-(pos_weight if y else 1) * (1 - happened) ** gamma * happened.log())
    loss = losses.focal(probability, label, gamma, pos_weight)
    (found,), (expected,) = (
        torch.autograd.grad(value, logit, retain_graph=True) for value in (loss, sum(terms) / len(terms))
    )
    assert loss.item() == pytest.approx((sum(terms) / len(terms)).item(), rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_bce_with_pos_weight_is_torchs():
    logit, label = rows()
    expected = F.binary_cross_entropy_with_logits(logit, label, pos_weight=torch.tensor(0.4).double())
    found = losses.weighted_bce(logit.sigmoid(), label, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, logit)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_a_mixture_is_a_weighted_sum_of_float32():
    logit, label = rows()
    logit = logit.detach().float().requires_grad_()
    mixed = losses.resolve({"bce": 0.8, "pairwise": 0.2, "focal": 0.1}, pos_weight=0.4, focal_gamma=1.0)
    found = mixed(logit.sigmoid().view(-1, 1), label.float().view(-1, 1), reduction="mean")
    expected = 0.8 * F.binary_cross_entropy_with_logits(logit, label.float(), pos_weight=torch.tensor(0.4))
    difference = logit[label == 1].unsqueeze(1) - logit[label == 0]
    expected = expected + 0.2 * F.softplus(-difference).mean()
    expected = expected + 0.1 * losses.focal(logit.sigmoid(), label.float(), 1.0, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, logit)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("terms", [{"bce": 1.0}, {"focal": 1.0}, {"pairwise": 1.0}])
def test_probabilities_of_0_and_1_have_a_finite_loss(terms):
    probability = torch.tensor([0.0, 1.0, 0.0, 1.0, 1e-30]).requires_grad_()
    loss = losses.resolve(terms, focal_gamma=0.5 if "focal" in terms else 2.0)(
        probability, torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    )
    loss.backward()
    assert 10 < loss < 100
    assert probability.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"bce": 0}}, "loss has bce: 0, expected weights above 0 of bce, focal, pairwise"),
        ({"loss": {"hinge": 1}}, "loss has hinge: 1, expected weights above 0 of"),
        (
            {"loss": {"pairwise": 1}, "pos_weight": 0.4},
            "pos_weight is 0.4, which only bce and focal read, but the loss",
        ),
        ({"loss": "mse_loss", "pos_weight": 0.4}, "pos_weight is 0.4, which only bce and focal read, .* 'mse_loss'"),
        ({"loss": "focal", "pos_weight": 0.4}, "pos_weight is 0.4, .* but the loss is 'focal'"),
        ({"loss": "bce", "focal_gamma": 1.0}, "focal_gamma is 1.0, which only focal read, .* set for example loss: "),
    ],
)
def test_what_is_no_mixture_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        losses.resolve(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "loss=hinge",
            "loss is 'hinge', expected one of binary_crossentropy, .* weights above 0 of bce, focal, pairwise",
        ),
        ("loss={hinge: 1}", r"loss is \{'hinge': 1\}, expected one of"),
        ("loss={bce: -1}", r"loss is \{'bce': -1\}, expected one of"),
        ("loss={}", r"loss is \{\}, expected one of"),
        ("pos_weight=0", "pos_weight is 0, expected a number above 0"),
        ("focal_gamma=1", "focal_gamma is 1.0, which only focal read, but the loss is 'binary_crossentropy'"),
    ],
)
def test_settings_that_are_no_losses(dataset, change, message):
    with pytest.raises(UserError, match=message):
        load_params(str(dataset), "FiBiNET_test", model_zoo, [change])


def gradients_of(model, batch):
    """The gradients of one step of training, by the trainer's own objective."""
    trainer = Trainer(model, checkpoint="unused.model")
    trainer._gradients(batch, model.get_labels(batch))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SIZES)
def test_every_model_trains_by_a_mixture(name):
    """The gradients of bce + pairwise are the sum of those of each."""
    batch = make_batch()
    mixed = {"bce": 0.8, "pairwise": 0.2}
    found = gradients_of(make_model((name, SIZES[name]), loss=mixed), batch)
    parts = {term: gradients_of(make_model((name, SIZES[name]), loss={term: 1.0}), batch) for term in mixed}
    for key, gradient in found.items():
        expected = sum(weight * parts[term][key] for term, weight in mixed.items())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert any((parts["bce"][key] - parts["pairwise"][key]).abs().max() > 1e-4 for key in found)


def test_plain_names_stay_what_they_were():
    batch = make_batch()
    plain, mixed = (make_model(("DeepFM", SIZES["DeepFM"]), loss=loss) for loss in ("bce", {"bce": 1}))
    assert plain.loss_fn is F.binary_cross_entropy
    first, second = gradients_of(plain, batch), gradients_of(mixed, batch)
    assert all(first[key].equal(second[key]) for key in first)


def test_pos_weight_alone_is_of_bce():
    model = make_model(("DeepFM", SIZES["DeepFM"]), pos_weight=0.4)
    assert model.loss_fn == losses.MixedLoss({"bce": 1.0}, 0.4)


def test_the_published_loss_gives_way_to_a_mixture_only():
    """DIN_att_emb_rms without a mixture is as published; tests/test_golden_models.py has its numbers."""
    batch = make_batch()
    published, other = (
        make_model(("DIN_att_emb_rms", {**SIZES["DIN_att_emb_rms"], **more})) for more in ({}, {"loss": {"focal": 1}})
    )
    output, label = published(batch), published.get_labels(batch)
    weighted = losses.weighted_bce(output["y_pred"], label, 0.4)
    torch.testing.assert_close(
        published.add_loss(output, label), 0.9 * weighted + 0.1 * losses.pairwise(output["logit"], label)
    )
    torch.testing.assert_close(other.add_loss(output, label), losses.focal(output["y_pred"], label, 2.0))


def test_half_precision_gives_the_loss_in_float32():
    batch = make_batch()
    model = make_model(("DeepFM", SIZES["DeepFM"]), loss={"bce": 0.5, "pairwise": 0.5})
    whole = Trainer(model, checkpoint="unused.model")
    half = Trainer(model, checkpoint="unused.model", precision="fp16")
    labels = model.get_labels(batch)
    expected, found = (trainer._gradients(batch, labels) for trainer in (whole, half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_the_command_trains_by_a_mixture(dataset, tmp_path, capsys):
    arguments = ["--config", dataset, "--expid", "FiBiNET_test", "--model_root", tmp_path]
    changes = ["epochs=1", "loss={bce: 0.8, pairwise: 0.2}", "pos_weight=0.4"]
    code, out, err = run_script("run_expid", *arguments, "--set", *changes, capsys=capsys)
    assert code == 0, err
    assert "loss={'bce': 0.8, 'pairwise': 0.2}" in out


def test_a_model_of_another_trains_by_a_mixture(dataset, working_folder):
    """FuxiCTR's compile knows no mixture; the model is made without, and its own loss method calls it then."""
    (working_folder / "config").mkdir()
    for name in ("dataset_config.yaml", "model_config.yaml"):
        (working_folder / "config" / name).write_text((dataset / name).read_text())
    with open(working_folder / "config" / "model_config.yaml", "a") as config:
        config.write("Mine:\n    model: my_models:Mine\n    dataset_id: TEST_DATA\n    loss: {bce: 1, pairwise: 1}\n")
    params = load_params(str(working_folder / "config"), "Mine", model_zoo)
    model = make_any_model(find_model(model_zoo, params["model"]), build_feature_map(params), params)
    assert model.loss_fn is F.binary_cross_entropy
    trainer = Trainer(model, **{**params, "checkpoint": "unused.model"})
    assert trainer.model.loss_fn == losses.MixedLoss({"bce": 1, "pairwise": 1})
    predicted, label = torch.tensor([[0.2], [0.9], [0.4]]), torch.tensor([[0.0], [1.0], [1.0]])
    expected = losses.weighted_bce(predicted, label) + losses.pairwise(predicted.logit().flatten(), label.flatten())
    torch.testing.assert_close(model.add_loss({"y_pred": predicted}, label), expected)

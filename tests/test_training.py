"""The loop follows FuxiCTR's rules, and a run that was stopped anywhere ends as one that was not."""

import copy
import functools
import importlib.util
from pathlib import Path

import fuxictr
import numpy as np
import pytest
import torch
from conftest import make_dataset, make_feature_map
from fuxictr.metrics import evaluate_metrics
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

import model_zoo
from mm_fibinet import training
from mm_fibinet.checkpoint import RunCheckpoints
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.fuxictr_adapter import LOOP_METHODS
from mm_fibinet.settings import load_params
from mm_fibinet.training import Trainer


class Run:
    """A small experiment, made anew: model, loaders, parameters."""

    def __init__(self, config, folder, gpu=-1, **settings):
        overrides = [f"{key}={value}" for key, value in settings.items()]
        self.params = load_params(config, "FiBiNET_test", model_zoo, overrides, model_root=str(folder), gpu=gpu)
        seed_everything(self.params["seed"])
        feature_map = build_feature_map(self.params)
        arguments = {**self.params, "batch_format": "indices"}
        self.train = MMCTRDataLoader(feature_map, self.params["train_data"], split="train", **arguments)
        arguments["shuffle"] = False
        self.valid = MMCTRDataLoader(feature_map, self.params["valid_data"], split="valid", **arguments)
        self.model = model_zoo.FiBiNET(feature_map, **self.params)
        self.checkpoint = folder / "best.model"
        self.folder = folder

    def trainer(self, **options):
        return Trainer(self.model, **{**self.params, "checkpoint": self.checkpoint, **options})

    def fit(self, resume=False, **options):
        options.setdefault("checkpoints", RunCheckpoints(self.folder, "test"))
        trainer = self.trainer(**options)
        if resume:
            trainer.resume()
        return trainer.fit(self.train, self.valid, self.params["epochs"])


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Stop(Exception):
    """Stands for a power cut."""


def stop_before(monkeypatch, stops):
    """Training stops as by a power cut before each of these steps, counted over all starts."""
    step, done = Trainer._train_step, 0

    def stopping(self, *args, **kwargs):
        nonlocal done
        done += 1
        if stops and done == stops[0]:
            stops.pop(0)
            raise Stop
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_step", stopping)


def fit_to_the_end(make):
    while True:
        run = make()
        try:
            return run, run.fit(resume=True, checkpoint_every=2)
        except Stop:
            continue


@pytest.mark.parametrize("regularizer", ["1e-2", "l1(1e-3)", "l1_l2(1e-3,1e-2)"])
def test_a_step_equals_fuxictrs(dataset, tmp_path, regularizer):
    run = Run(dataset, tmp_path, net_dropout=0, embedding_regularizer=regularizer, net_regularizer=1e-3)
    reference = copy.deepcopy(run.model)
    BaseModel.compile(reference, "adam", "binary_crossentropy", run.params["learning_rate"])
    reference._max_gradient_norm = 0.05  # small enough to clip
    trainer = run.trainer(max_gradient_norm=0.05)
    run.model.train()
    reference.train()
    for batch in run.train:
        trainer._train_step(batch, run.train, last=False)
        trainer.step += 1
        BaseModel.train_step(reference, batch)
    for (name, got), want in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(50, 2), (70, 4), (70, 5), (200, 999)])
def test_accumulated_batches_equal_one_of_all_their_rows(dataset, tmp_path, batch_size, accumulation_steps):
    """Of 600 rows, so that an epoch ends with fewer batches, a shorter one among them, or has no full step at all."""
    rows = min(batch_size * accumulation_steps, 600)
    settings = {"net_dropout": 0, "epochs": 2, "embedding_regularizer": 1e-2, "optimizer": "SGD", "learning_rate": 0.5}
    whole = Run(dataset, tmp_path / "whole", batch_size=rows, **settings)
    parts = Run(dataset, tmp_path / "parts", batch_size=batch_size, accumulation_steps=accumulation_steps, **settings)
    whole.fit(checkpoints=None)
    parts.fit(checkpoints=None)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_early_stopping_and_learning_rate_follow_fuxictr(dataset, tmp_path, monkeypatch):
    run = Run(dataset, tmp_path, epochs=9, early_stop_patience=2, verbose=0)
    values = [0.6, 0.7, 0.6999, 0.71, 0.7100005, 0.705, 0.72]
    shown = iter(values)
    monkeypatch.setattr(training, "evaluate", lambda *_: {"AUC": next(shown), "logloss": 0.0, "gAUC": 0.0})
    history = run.fit()

    reference = copy.deepcopy(run.model)
    reference.optimizer.param_groups[0]["lr"] = run.params["learning_rate"]
    reference._best_metric, reference._stopping_steps, reference._stop_training = -np.inf, 0, False
    reference._epoch_index = 0
    rates = []
    for value in values:
        rates.append(reference.optimizer.param_groups[0]["lr"])
        BaseModel.checkpoint_and_earlystop(reference, {"AUC": value})
        if reference._stop_training:
            break
    assert [entry["learning_rate"] for entry in history] == pytest.approx(rates)
    assert len(history) == 6


def test_a_plateau_never_raises_a_learning_rate(dataset, tmp_path, monkeypatch):
    """FuxiCTR raises one below its least, 1e-6, to that."""
    run = Run(dataset, tmp_path, epochs=4, early_stop_patience=9, learning_rate=2e-6, table_learning_rate=3e-7)
    monkeypatch.setattr(training, "evaluate", lambda *_: {"AUC": 0.5, "logloss": 0.0, "gAUC": 0.0})
    run.fit()
    assert [group["lr"] for group in run.model.optimizer.param_groups] == [1e-6, 3e-7]


def test_without_a_validation_split_the_last_weights_are_kept(dataset, tmp_path):
    """Also where the last evaluation, of the training loss alone, was some steps before."""
    run = Run(dataset, tmp_path, epochs=1, eval_steps=4)
    trainer = run.trainer(checkpoints=None)
    assert len(run.train) == 10
    history = trainer.fit(run.train, None, epochs=1)
    assert [entry["step"] for entry in history] == [4, 8]
    kept, same = torch.load(run.checkpoint, weights_only=True), Run(dataset, tmp_path / "same", epochs=1)
    same.trainer(checkpoints=None).fit(same.train, None, epochs=1)  # evaluated at its end
    assert_equal_weights(kept, weights(same.model))


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_the_average_of_the_weights_is_evaluated_and_kept(dataset, tmp_path, monkeypatch, accumulation_steps):
    run = Run(
        dataset, tmp_path, ema_decay=0.8, epochs=2, eval_steps=20, batch_norm=True,
        accumulation_steps=accumulation_steps,
    )  # fmt: skip
    expected, steps = weights(run.model), 0
    step = Trainer._update

    def following(self):
        nonlocal steps
        step(self)
        steps += 1
        kept = min(0.8, (1 + steps) / (10 + steps))
        for name, value in self.model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value if value.is_floating_point() else value.clone()

    monkeypatch.setattr(Trainer, "_update", following)
    history = run.fit()
    for name, value in torch.load(run.checkpoint, weights_only=True).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert history[0]["AUC"] == run.model.evaluate(run.valid, ["AUC"])["AUC"]  # the kept weights are those evaluated
    with pytest.raises(UserError, match=r"ema_decay is 1\.0, expected a number from 0"):
        run.trainer(ema_decay=1.0)


def test_a_linear_schedule_ends_at_nothing(dataset, tmp_path, monkeypatch):
    run = Run(dataset, tmp_path, lr_schedule="linear", epochs=3, learning_rate=0.02)
    optimizer, rates = run.model.optimizer, []
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (rates.append(optimizer.param_groups[0]["lr"]), step()))
    history = run.fit()
    steps = 3 * len(run.train)
    np.testing.assert_allclose(rates, 0.02 * (steps - np.arange(steps)) / steps, rtol=1e-12)
    assert len(history) == 3


def test_epochs_are_evaluated_at_their_end_when_resumed_with_other_batches(dataset, tmp_path):
    """Two processes make three batches an epoch of what are four for one, as the fourth has too few rows for two."""
    first = Run(dataset, tmp_path, batch_size=199, epochs=1)
    assert len(first.train) == 4
    first.fit()
    second = Run(dataset, tmp_path, batch_size=199, epochs=3)
    second.train = MMCTRDataLoader(
        second.model.feature_map, second.params["train_data"],
        **{**second.params, "item_info": second.train.item_table, "batch_format": "indices", "world_size": 2},
    )  # fmt: skip
    assert len(second.train) == 3
    assert [entry["step"] for entry in second.fit(resume=True)] == [4, 4 + 3, 4 + 3 + 3]


def test_evaluation_equals_fuxictrs(dataset, tmp_path):
    run = Run(dataset, tmp_path)
    run.model.eval()
    scores, labels, users = [], [], []
    for batch in run.valid:
        scores += run.model(batch)["y_pred"].reshape(-1).tolist()
        labels += batch.batch_dict["label"].tolist()
        users += batch.batch_dict["user_id"].tolist()
    metrics = ["AUC", "logloss", "gAUC"]
    expected = evaluate_metrics(np.array(labels), np.array(scores), metrics, np.array(users))
    assert run.model.evaluate(run.valid, metrics) == pytest.approx(dict(expected), abs=1e-9)
    assert run.model.predict(run.valid) == pytest.approx(np.array(scores))


def test_the_same_seed_gives_the_same_weights(dataset, tmp_path):
    fitted = []
    for index, seed in enumerate([5, 5, 6]):
        run = Run(dataset, tmp_path / str(index), seed=seed)
        run.fit()
        fitted.append(weights(run.model))
    assert_equal_weights(fitted[0], fitted[1])
    assert not torch.equal(fitted[0]["dnn.mlp.0.weight"], fitted[2]["dnn.mlp.0.weight"])


MEASURED = {"rows_per_second": 0, "peak_memory_mb": 0}  # of this machine, at this moment


@pytest.mark.parametrize(
    ("stops", "settings"),
    [([3], {}), ([9, 10, 14], {}), ([1, 2, 17], {}), ([5, 13], {"lr_schedule": "linear", "ema_decay": 0.9})],
)
def test_resume_is_exact(dataset, tmp_path, monkeypatch, stops, settings):
    whole = Run(dataset, tmp_path / "whole", batch_norm=True, **settings)
    whole_history = whole.fit(checkpoint_every=2)

    stop_before(monkeypatch, stops)
    run, history = fit_to_the_end(lambda: Run(dataset, tmp_path / "stopped", batch_norm=True, **settings))
    assert not stops
    assert_equal_weights(weights(whole.model), weights(run.model))
    for entry, expected in zip(history, whole_history, strict=True):
        assert {**entry, **MEASURED} == {**expected, **MEASURED}


def test_resuming_a_finished_run_changes_nothing(dataset, tmp_path):
    run = Run(dataset, tmp_path)
    run.fit()
    again = Run(dataset, tmp_path)
    again.fit(resume=True)
    assert_equal_weights(weights(run.model), weights(again.model))


@pytest.mark.parametrize("damage", ["torn", "flipped", "foreign"])
def test_a_bad_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, damage):
    checkpoints = RunCheckpoints(tmp_path, "this run")
    checkpoints.save({"weight": torch.arange(1000.0), "epoch": 1})
    checkpoints.save({"weight": torch.arange(1000.0) + 1, "epoch": 2})
    assert checkpoints.load()["epoch"] == 2
    content = bytearray(checkpoints.last.read_bytes())
    if damage == "torn":
        checkpoints.last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        at = content.find(torch.tensor([500.0, 501.0, 502.0]).numpy().tobytes())
        assert at > 0
        content[at + 2] ^= 0x10
        checkpoints.last.write_bytes(content)
    else:
        RunCheckpoints(tmp_path, "another run").save({"weight": torch.zeros(3), "epoch": 9})
        checkpoints.previous.unlink()
        RunCheckpoints(tmp_path / "aside", "this run").save({"weight": torch.arange(1000.0), "epoch": 1})
        (tmp_path / "aside" / "last.ckpt").replace(checkpoints.previous)
    state = checkpoints.load()
    assert state["epoch"] == 1
    assert torch.equal(state["weight"], torch.arange(1000.0))
    assert str(checkpoints.last) in caplog.text


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(dataset, tmp_path):
    good = Run(dataset, tmp_path, epochs=1)
    good.fit()
    kept = (tmp_path / "best.model").read_bytes()
    bad = Run(dataset, tmp_path, epochs=3)
    with torch.no_grad():
        bad.model.dnn.mlp[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan at epoch 1.*lower learning_rate.*are kept: .*best\.model"):
        bad.fit(checkpoints=RunCheckpoints(tmp_path, "test"))
    assert (tmp_path / "best.model").read_bytes() == kept


def test_bf16_stays_close_to_fp32(dataset, tmp_path):
    losses = [Run(dataset, tmp_path / p, precision=p, net_dropout=0).fit()[-1]["loss"] for p in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_compiled_model_gives_the_same_losses(dataset, tmp_path, monkeypatch):
    plain = Run(dataset, tmp_path / "plain", net_dropout=0, epochs=1).fit()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # no C++ build
    compiled = Run(dataset, tmp_path / "compiled", net_dropout=0, epochs=1, compile="true").fit()
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


def test_a_model_learns_and_its_embedding_helps(tmp_path):
    config = make_dataset(tmp_path, rows=6000)
    aucs = []
    for features in ("null", "[user_id, item_seq, likes_level, views_level, item_id, item_tags]"):
        run = Run(config, tmp_path / features[:4], epochs=4, use_features=features, batch_size=128)
        aucs.append(max(entry["AUC"] for entry in run.fit()))
    assert aucs[0] > 0.8
    assert aucs[0] > aucs[1]


def test_the_optimizer_is_made_where_the_weights_are(dataset, monkeypatch):
    """Adagrad's state is made with it; on the CPU it would stay there when the weights move on to a GPU."""
    there_before = []
    monkeypatch.setattr(
        model_zoo.FiBiNET, "model_to_device", lambda self: there_before.append(hasattr(self, "optimizer"))
    )
    params = {**load_params(dataset, "FiBiNET_test", model_zoo), "optimizer": "Adagrad"}
    model = model_zoo.FiBiNET(build_feature_map(params), **params)
    assert type(model.optimizer) is torch.optim.Adagrad
    assert there_before == [False]


def test_a_state_of_other_layers_is_refused_in_one_line(dataset, tmp_path):
    """Settings and data are those of the run; the model's code is another version's."""
    Run(dataset, tmp_path, epochs=1).fit()
    with pytest.raises(
        UserError, match=r"--resume: the run's state is not of this FiBiNET \(.*\): the code has changed"
    ):
        Run(dataset, tmp_path, epochs=1, embedding_dim=4).fit(resume=True)
    Run(dataset, tmp_path / "other", epochs=1, optimizer="SGD").fit()
    run = Run(dataset, tmp_path / "other", epochs=1, ema_decay=0.9)
    with pytest.raises(UserError, match="the run's state is not of this FiBiNET"):
        run.fit(resume=True)


class OwnAddLoss(model_zoo.FiBiNET):
    """An auxiliary loss on a second output, as FuxiCTR's SIM has it."""

    def forward(self, inputs):
        y_pred = super().forward(inputs)["y_pred"]
        return {"y_pred": y_pred, "y_aux": y_pred**2}

    def add_loss(self, return_dict, y_true):
        return super().add_loss(return_dict, y_true) + 3 * (return_dict["y_aux"] - y_true).square().mean()


class OwnComputeLoss(model_zoo.FiBiNET):
    def compute_loss(self, return_dict, y_true):
        return 2 * self.add_loss(return_dict, y_true)  # and no penalty


class OwnRegularizationLoss(model_zoo.FiBiNET):
    def regularization_loss(self):
        return 0.3 * self.dnn.mlp[0].weight.square().sum()


class OwnTotalLoss(model_zoo.FiBiNET):
    """As in the first FuxiCTR: the batch in, the whole loss out."""

    def get_total_loss(self, inputs):
        return self.compute_loss(self.forward(inputs), self.get_labels(inputs)) * 0.5

    def compute_loss(self, return_dict, y_true):
        return super().compute_loss(return_dict, y_true) * 3


class Deaf(model_zoo.FiBiNET):
    """Its loss is its own alone, whatever the settings say."""

    def add_loss(self, return_dict, y_true):
        return torch.nn.functional.binary_cross_entropy(return_dict["y_pred"], y_true)


class DeafTotal(Deaf):
    def get_total_loss(self, inputs):
        return self.add_loss(self.forward(inputs), self.get_labels(inputs))


@pytest.mark.parametrize("own", [Deaf, DeafTotal])
@pytest.mark.parametrize("settings", [{"loss": "{bce: 0.8, pairwise: 0.2}"}, {"pos_weight": 3.0}])
def test_a_mixture_that_a_models_own_loss_does_not_read_is_refused(dataset, tmp_path, own, settings):
    run = Run(dataset, tmp_path, **settings)
    run.model = own(run.model.feature_map, **run.params)
    with pytest.raises(UserError, match=f"{own.__name__} overrides .* and never calls its loss_fn there, so that loss"):
        run.fit()
    heard = Run(dataset, tmp_path, epochs=1, **settings)
    heard.model = OwnAddLoss(heard.model.feature_map, **heard.params)
    heard.fit()
    plain = Run(dataset, tmp_path / "plain", epochs=1)
    plain.model = own(plain.model.feature_map, **plain.params)
    plain.fit()


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_ends_with_no_batch_of_one_row(dataset, tmp_path, shuffle):
    """Batch norm has no statistics of one; of 600 rows 599 would leave it."""
    run = Run(dataset, tmp_path, batch_size=599, shuffle=shuffle, batch_norm=True, epochs=1)
    assert [len(batch.item_index) for batch in run.train] == [600]
    run.fit()
    assert len(run.valid) == 1


def test_batches_of_one_row_have_no_batch_norm(dataset, tmp_path):
    run = Run(dataset, tmp_path, batch_size=1, batch_norm=True)
    with pytest.raises(UserError, match="a batch has one row, of which FiBiNET's batch norm has no statistics"):
        run.fit()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def fuxictrs_gradients(model, batch):
    """Those of FuxiCTR's own step, by automatic differentiation of all of its loss."""
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model._max_gradient_norm = 1e9
    if hasattr(model, "get_total_loss"):
        model.get_total_loss(batch).backward()
    else:
        BaseModel.train_step(model, batch)
    return gradients(model)


@pytest.mark.parametrize("own", [model_zoo.FiBiNET, OwnAddLoss, OwnComputeLoss, OwnRegularizationLoss, OwnTotalLoss])
def test_a_models_own_loss_is_trained_on(dataset, tmp_path, monkeypatch, own):
    run = Run(dataset, tmp_path, net_dropout=0, embedding_regularizer=1e-2, net_regularizer=1e-2)
    model = own(run.model.feature_map, **run.params)
    model.load_state_dict(run.model.state_dict())
    batch = next(iter(run.train))
    expected = fuxictrs_gradients(copy.deepcopy(model).train(), batch)
    plain = fuxictrs_gradients(copy.deepcopy(run.model).train(), batch)
    if own is not model_zoo.FiBiNET:
        assert (expected["dnn.mlp.0.weight"] - plain["dnn.mlp.0.weight"]).abs().max() > 1e-4

    trainer = Trainer(model, **{**run.params, "checkpoint": run.checkpoint})
    found = {}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: found.update(gradients(model)))
    trainer._train_step(batch, run.train, last=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_fuxictrs_sim_trains_with_its_auxiliary_loss(dataset, tmp_path):
    run = Run(dataset, tmp_path, batch_format="triple")
    path = Path(fuxictr.__file__).parent.parent / "model_zoo" / "LongCTR" / "SIM" / "SIM.py"
    spec = importlib.util.spec_from_file_location("fuxictrs_sim", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    features = {
        name: spec for name, spec in run.model.feature_map.features.items() if spec["type"] in ("categorical", "meta")
    }
    feature_map = make_feature_map(features)
    feature_map.default_emb_dim = run.params["embedding_dim"]
    settings = {**run.params, "dnn_hidden_units": [8], "attention_dim": 8, "num_heads": 1, "topk": 3, "net_dropout": 0}
    settings.update(embedding_regularizer=None, short_seq_len=5)

    model = module.SIM(feature_map, **settings)
    arguments = {**run.params, "batch_format": "triple", "use_features": None}
    loader = MMCTRDataLoader(feature_map, run.params["train_data"], split="train", **arguments)
    batch = next(iter(loader))
    batch = (batch[0], {"item_id": batch[1]["item_id"]}, batch[2])
    model.train()
    outputs, labels = model(batch), model.get_labels(batch)
    wanted = sum(torch.nn.functional.binary_cross_entropy(outputs[name], labels).item() for name in ("y_pred", "y_aux"))
    trainer, before = Trainer(model, checkpoint=run.checkpoint), weights(model)
    trainer._train_step(batch, loader, last=False)
    assert trainer.loss_sum.item() == pytest.approx(wanted, rel=1e-6)
    assert not torch.equal(model.dnn_aux.mlp[0].weight, before["dnn_aux.mlp.0.weight"])


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_a_loop_of_its_own_is_refused_with_the_reason(dataset, tmp_path, name):
    run = Run(dataset, tmp_path)
    own = type("Mine", (model_zoo.FiBiNET,), {name: lambda self, *_: None})
    with pytest.raises(UserError, match=f"Mine overrides {name}, .*replaces and would never call.*add_loss"):
        Trainer(own(run.model.feature_map, **run.params))


@pytest.mark.parametrize("name", ["y_pred", "y_aux"])
def test_nan_in_a_models_own_loss_stops_the_run(dataset, tmp_path, name):
    class Broken(OwnAddLoss):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return {**outputs, name: outputs[name] * float("nan")}

    run = Run(dataset, tmp_path)
    run.model = Broken(run.model.feature_map, **run.params)
    with pytest.raises(UserError, match="the training loss is nan at epoch 1"):
        run.fit()
    assert not run.checkpoint.exists()


def test_a_monitored_nan_stops_the_run(dataset, tmp_path, monkeypatch):
    """Where the labels were not seen before: another loader than ours."""
    run = Run(dataset, tmp_path)
    monkeypatch.setattr(training, "evaluate", lambda *_: {"AUC": float("nan"), "logloss": 0.5, "gAUC": 0.5})
    with pytest.raises(UserError, match=r"the monitored metric \(AUC\) is nan at epoch 1"):
        run.fit()
    assert not run.checkpoint.exists()


def test_a_model_that_is_not_compiled_gets_its_optimizer(dataset, tmp_path):
    run = Run(dataset, tmp_path)
    run.model.optimizer = None
    trainer = run.trainer(optimizer="SGD", learning_rate=0.25)
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25


def test_observers_need_no_order(dataset, tmp_path):
    seen = []
    history = Run(dataset, tmp_path).fit(on_evaluation=[lambda entries: seen.append(dict(entries[-1]))])
    assert seen == history
    assert all(entry["peak_memory_mb"] > 50 and "peak_gpu_memory_mb" in entry for entry in seen)

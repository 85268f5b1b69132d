"""A replayed step is the plain step, and whatever does not fit a graph is trained on plainly.

There may be no GPU: `Replayed` stands in for one. It keeps what a graph keeps, fixed buffers that are written anew, and
does what a replay does: the captured work, on what the buffers hold then.
"""

import contextlib
import logging

import pytest
import torch
from test_model_contract import (
    CASE_NAMES,
    CASES,
    ROWS,
    VARIANTS,
    assert_equal_scores,
    every_case,
    make_batch,
    make_model,
    scores,
    some_rows,
)
from test_training import MEASURED, Run, assert_equal_weights, weights
from torch import nn

import model_zoo
from mm_fibinet import step_graph
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError
from mm_fibinet.objective import Objective
from mm_fibinet.precision import Precision
from mm_fibinet.run_manifest import run_fingerprint
from mm_fibinet.step_graph import WARM_UP_STEPS, CudaRecorder, StepGraph
from mm_fibinet.training import Trainer


class Replayed:
    """A recorder for the CPU; `log` has a letter for each step: p plain, c captured, r replayed."""

    log = ""

    def __init__(self, device=None):
        type(self).log = ""
        self.parameters, self.buffers = [], []  # set by the test

    def follow(self, model):
        self.parameters, self.buffers = list(model.parameters()), list(model.buffers())
        return self

    def rehearse(self, step):
        type(self).log += "p"
        return step(), None

    def record(self, step):
        type(self).log += "c"
        before, state = [buffer.clone() for buffer in self.buffers], self.random_state()
        loss = step().clone()
        gradients = [p.grad for p in self.parameters]
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)
        self.set_random_state(state)

        def replay():
            type(self).log += "r"
            for parameter in self.parameters:
                parameter.grad = None
            loss.copy_(step())
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    gradient.copy_(parameter.grad)

        return replay, loss

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        torch.set_rng_state(state)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Training takes this machine for one with graphs."""
    monkeypatch.setattr(step_graph, "can_capture", lambda device: True)
    monkeypatch.setattr(step_graph, "CudaRecorder", Replayed)
    monkeypatch.setattr(Replayed, "log", "")
    plan = step_graph.plan

    def planned(wanted, gradients, model, *rest):
        graph = plan(wanted, gradients, model, *rest)
        if graph is not None:
            graph.recorder.follow(model)
        return graph

    monkeypatch.setattr(step_graph, "plan", planned)


# 600 rows: nine batches of 64 and one of 24 an epoch; batch norm, dropout and a schedule have state of their own.
SETTINGS = {"batch_norm": True, "net_dropout": 0.2, "id_dropout": 0.3, "epochs": 3, "lr_schedule": "linear"}


def test_training_by_replays_is_plain_training(dataset, tmp_path, on_a_gpu, caplog):
    plain = Run(dataset, tmp_path / "plain", cuda_graphs="False", ema_decay=0.9, **SETTINGS)
    history = plain.fit()
    assert not Replayed.log
    replayed = Run(dataset, tmp_path / "replayed", ema_decay=0.9, **SETTINGS)
    with caplog.at_level(logging.INFO):
        replayed_history = replayed.fit()
    assert "CUDA graphs: used for batches of 64 rows" in caplog.text
    assert_equal_weights(weights(plain.model), weights(replayed.model))
    for entry, expected in zip(replayed_history, history, strict=True):
        assert {**entry, **MEASURED} == {**expected, **MEASURED}
    full = 3 * 9
    assert Replayed.log == "p" * WARM_UP_STEPS + "c" + "r" * (full - WARM_UP_STEPS)


def test_evaluations_in_between_and_a_kill_change_nothing(dataset, tmp_path, on_a_gpu, monkeypatch):
    plain = Run(dataset, tmp_path / "plain", cuda_graphs="False", eval_steps=4, **SETTINGS)
    plain.fit(checkpoint_every=2)
    step, steps = Trainer._train_step, iter(range(1000))

    def killed(self, *args, **kwargs):
        if next(steps) == 13:  # a replayed step of the second epoch
            raise KeyError
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_step", killed)
    with pytest.raises(KeyError):
        Run(dataset, tmp_path / "killed", eval_steps=4, **SETTINGS).fit(checkpoint_every=2)
    assert Replayed.log.endswith("rr")
    resumed = Run(dataset, tmp_path / "killed", eval_steps=4, **SETTINGS)
    resumed.fit(resume=True, checkpoint_every=2)
    assert Replayed.log.endswith("rr")
    assert_equal_weights(weights(plain.model), weights(resumed.model))


def rows(count, table, seed):
    """A batch of random rows for `small_step`, and its labels."""
    generator = torch.Generator().manual_seed(seed)
    columns = {"x": torch.randn(count, 4, generator=generator)}
    labels = torch.randint(0, 2, (count, 1), generator=generator).float()
    return IndexBatch(columns, torch.zeros(count, 1, dtype=torch.int32), table), labels


def small_step(scale=lambda: 1.0, **options):
    """A model of one layer and the StepGraph of its loss times `scale()`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1))

    def gradients(batch, labels):
        loss = scale() * (model(batch.batch_dict["x"]) - labels).square().mean()
        loss.backward()
        return loss.detach()

    return model, StepGraph(gradients, model, Replayed().follow(model), **options)


def take_steps(model, step, batches):
    """The weights' gradients and the loss of each batch, as training would see them."""
    found = []
    for batch, labels in batches:
        loss = step(batch, labels)
        found.append((float(loss), model[0].weight.grad.clone()))
        for parameter in model.parameters():
            parameter.grad.mul_(2)  # as clipping does, in place
            parameter.grad = None
    return found


def test_short_batches_and_other_tables_go_the_plain_way():
    table, other = object(), object()
    sizes = [3, 8, 8, 8, 8, 8, 3, 8, 8]
    batches = [rows(size, table, seed) for seed, size in enumerate(sizes)] + [rows(8, other, 9), rows(9, table, 10)]
    model, step = small_step()
    plain_model, plain = small_step()
    found, expected = take_steps(model, step, batches), take_steps(plain_model, plain.gradients, batches)
    for (loss, gradient), (expected_loss, expected_gradient) in zip(found, expected, strict=True):
        assert loss == expected_loss
        assert torch.equal(gradient, expected_gradient)
    assert Replayed.log == "ppppcrrrr"  # one short batch, three to warm up, one that is compared, then replays
    for value, wanted in zip(model.buffers(), plain_model.buffers(), strict=True):
        assert torch.equal(value, wanted)


def test_what_python_does_anew_each_step_is_noticed(caplog):
    """A graph would repeat the number that it was captured with."""
    counter = iter(range(1, 100))
    model, step = small_step(scale=lambda: next(counter))
    batches = [rows(8, None, seed) for seed in range(8)]
    with caplog.at_level(logging.INFO):
        losses = [loss for loss, _ in take_steps(model, step, batches)]
    assert "CUDA graphs: not used, a replayed step differs from a plain one: its loss by" in caplog.text
    assert step.captured is None and step.reason
    counter = iter(range(1, 100))
    plain_model, plain = small_step(scale=lambda: next(counter))
    expected = [loss for loss, _ in take_steps(plain_model, plain.gradients, batches)]
    # the counter went on twice more: while capturing and while comparing
    assert losses[:WARM_UP_STEPS] == expected[:WARM_UP_STEPS]


def test_an_overflow_proves_nothing():
    factors = iter([1.0] * (WARM_UP_STEPS + 1) + [float("inf"), float("inf")] + [1.0] * 20)
    model, step = small_step(scale=lambda: next(factors))
    batches = [rows(8, None, seed) for seed in range(7)]
    take_steps(model, step, batches[: WARM_UP_STEPS + 1])
    assert step.captured is None and step.reason is None
    take_steps(model, step, batches[WARM_UP_STEPS + 1 :])
    assert step.captured is not None


def test_a_replay_that_is_no_number_where_the_plain_step_is_one_is_refused():
    factors = iter([1.0] * (WARM_UP_STEPS + 2) + [float("nan")] + [1.0] * 20)
    model, step = small_step(scale=lambda: next(factors))
    take_steps(model, step, [rows(8, None, seed) for seed in range(WARM_UP_STEPS + 1)])
    assert step.captured is None and "its loss by inf%" in step.reason


@pytest.mark.parametrize("required", [False, True])
def test_a_capture_that_fails_leaves_plain_training(required, monkeypatch, caplog):
    def fails(self, step):
        step()
        raise step_graph.NotCapturable("capturing a step failed: no")

    monkeypatch.setattr(Replayed, "record", fails)
    model, step = small_step(required=required)
    batches = [rows(8, None, seed) for seed in range(6)]
    if required:
        with pytest.raises(UserError, match="cuda_graphs is True, but capturing a step failed: no; or set"):
            take_steps(model, step, batches)
        return
    plain_model, plain = small_step()
    with caplog.at_level(logging.INFO):
        found = take_steps(model, step, batches)
    assert "CUDA graphs: not used, capturing a step failed: no" in caplog.text
    for (loss, gradient), expected in zip(found, take_steps(plain_model, plain.gradients, batches), strict=True):
        assert loss == expected[0] and torch.equal(gradient, expected[1])


def test_weights_that_were_moved_are_captured_anew():
    batches = [rows(8, None, seed) for seed in range(12)]
    model, step = small_step()
    take_steps(model, step, batches[:6])
    assert step.captured is not None
    model[0].weight.data = model[0].weight.data.clone() * 3
    found = take_steps(model, step, batches[6:])
    assert Replayed.log == 2 * "pppcrrr"
    plain_model, plain = small_step()
    plain_model.load_state_dict(model.state_dict())
    for (loss, _), (expected, _) in zip(found, take_steps(plain_model, plain.gradients, batches[6:]), strict=True):
        assert loss == pytest.approx(expected)


def test_sparse_gradients_are_no_graph(caplog):
    torch.manual_seed(0)
    model = nn.Embedding(5, 1, sparse=True)

    def gradients(batch, labels):
        loss = (model(batch.item_index) - labels).square().mean()
        loss.backward()
        return loss.detach()

    step = StepGraph(gradients, model, Replayed().follow(model))
    for seed in range(5):
        step(*rows(8, None, seed))
        model.weight.grad = None
    assert step.reason == "a table has sparse gradients"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"accumulation_steps": 2}, "accumulation_steps is 2"),
        ({"batch_format": "triple"}, "the batches are no indices"),
    ],
)
def test_what_cannot_be_a_graph_is_said_or_refused(dataset, tmp_path, on_a_gpu, monkeypatch, caplog, settings, reason):

    def run(wanted):
        made = Run(dataset, tmp_path / wanted, cuda_graphs=wanted, epochs=1, **settings)
        made.train.batch_format = settings.get("batch_format", "indices")
        made.fit()

    with caplog.at_level(logging.INFO):
        run("auto")
    assert f"CUDA graphs: not used, {reason}" in caplog.text
    assert not Replayed.log
    with pytest.raises(UserError, match=f"cuda_graphs is True, but {reason}"):
        run("True")


def test_several_processes_and_a_cpu_train_without(dataset, tmp_path, monkeypatch, caplog):
    run = Run(dataset, tmp_path)
    with caplog.at_level(logging.INFO):
        assert run.trainer().graph is None
    assert "CUDA graphs" not in caplog.text  # on a CPU nobody expects them
    with pytest.raises(UserError, match="cuda_graphs is True, but the model is on the CPU; or set cuda_graphs: auto"):
        run.trainer(cuda_graphs=True)
    monkeypatch.setattr(step_graph, "can_capture", lambda device: True)
    assert step_graph.plan("auto", None, run.model, 2, 1) is None


def test_cuda_graphs_takes_three_values(dataset, tmp_path):
    with pytest.raises(UserError, match=r"cuda_graphs is .never., expected one of auto, True, False"):
        Run(dataset, tmp_path, cuda_graphs="never")


def test_a_run_may_go_on_with_or_without_graphs(dataset, tmp_path):
    prints = [run_fingerprint(Run(dataset, tmp_path, cuda_graphs=value).params, {}) for value in ("auto", "False")]
    assert prints[0] == prints[1]


@pytest.mark.parametrize("count", [ROWS, 20], ids=["whole table", "rows of the table"])
@pytest.mark.parametrize("case", CASES, ids=[*CASE_NAMES, *VARIANTS])
def test_no_models_step_asks_the_device_for_a_number(case, count):
    """Tensors without data stand for a GPU's: the models take the same branches, and there is no number to be had."""
    step_without_data(make_model(case).train(), some_rows(make_batch(), slice(count)))


def test_no_loss_asks_the_device_for_a_number():
    """How many clicks a batch has, the data say; the pairwise loss does without."""
    loss = {"bce": 1, "focal": 1, "pairwise": 1}
    step_without_data(make_model(("LR", {"loss": loss, "pos_weight": 0.4})).train(), make_batch())


def test_asking_for_a_number_would_be_noticed():
    class Asks(model_zoo.LR):
        def forward(self, inputs):
            chosen = inputs.item_index.nonzero()
            return {"y_pred": super().forward(inputs)["y_pred"] * len(chosen)}

    model = make_model(("LR", {})).train()
    model.__class__ = Asks
    with pytest.raises(NotImplementedError, match="nonzero"):
        step_without_data(model, make_batch())


def step_without_data(model, batch):
    batch = moved(model, batch, "meta")
    Objective(model)(model, batch, model.get_labels(batch), contextlib.nullcontext()).backward()


def moved(model, batch, device):
    """The batch on another device, where the model then is, too."""
    model.to(device)
    model.device = torch.device(device)
    columns = {name: values.to(device) for name, values in batch.batch_dict.items()}
    return IndexBatch(columns, batch.item_index.to(device), batch.item_table.to(device))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@every_case
def test_every_models_scores_on_a_gpu_are_those_on_a_cpu(case):
    model, batch = make_model(case), make_batch()
    expected = scores(model, batch)
    with Precision.on("fp32", torch.device("cuda", 0)).products():
        assert_equal_scores(scores(model, moved(model, batch, "cuda:0")).cpu(), expected, tolerance=1e-5)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_case
def test_every_models_step_is_a_graph(case, precision):
    model = make_model(case).train()
    batch = moved(model, make_batch(), "cuda:0")
    objective, to_bf16 = Objective(model), precision == "bf16"

    def gradients(batch, labels):
        loss = objective(model, batch, labels, torch.autocast("cuda", torch.bfloat16, enabled=to_bf16))
        loss.backward()
        return loss.detach()

    step = StepGraph(gradients, model, CudaRecorder(model.device))
    for _ in range(WARM_UP_STEPS + 3):
        rows = some_rows(batch, torch.randperm(ROWS, device="cuda:0"))
        step(rows, model.get_labels(rows))
        model.zero_grad(set_to_none=True)
    assert step.captured is not None, step.reason


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpus_graph_trains_as_plain_steps_do(dataset, tmp_path, precision):
    """Dropout included: the generator goes on through replays as it does through plain steps."""
    histories = []
    for wanted in ("False", "True"):
        run = Run(dataset, tmp_path / wanted, gpu=0, cuda_graphs=wanted, precision=precision, **SETTINGS)
        histories.append(run.fit())
    for entry, expected in zip(*histories, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-3 if precision == "fp32" else 1e-2)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_step_is_a_graph_too(dataset, tmp_path, precision, caplog):
    settings = {"net_dropout": 0, "batch_norm": True, "precision": precision, "gpu": 0}
    plain = Run(dataset, tmp_path / "plain", cuda_graphs="False", **settings).fit()
    with caplog.at_level(logging.INFO):
        compiled = Run(dataset, tmp_path / "compiled", cuda_graphs="True", compile="true", **settings).fit()
    assert "CUDA graphs: used for batches of 64 rows" in caplog.text
    for entry, expected in zip(compiled, plain, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-3 if precision == "fp32" else 1e-2)


@needs_gpu
def test_a_gpus_rehearsal_sees_a_wait():
    recorder, values = CudaRecorder(torch.device("cuda", 0)), torch.ones(3, device="cuda")
    assert recorder.rehearse(lambda: values.sum())[1] is None
    _, reason = recorder.rehearse(lambda: values.sum() * values.sum().item())
    assert "waits for the GPU" in reason

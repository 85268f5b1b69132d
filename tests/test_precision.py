"""Each precision is what the device has, and computes what fp32 does; fp16's scale changes nothing but the rounding."""

import contextlib
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, list_column, make_dataset, run_script
from test_model_contract import CASE_NAMES, CASES, VARIANTS, make_batch, make_model
from test_runs import Commands
from test_training import (
    MEASURED,
    OwnTotalLoss,
    Run,
    Stop,
    assert_equal_weights,
    fit_to_the_end,
    stop_before,
    weights,
)
from torch.utils._python_dispatch import TorchDispatchMode

import model_zoo
from mm_fibinet import precision, scoring, training
from mm_fibinet.demo.data import generate
from mm_fibinet.errors import UserError
from mm_fibinet.precision import Precision, Scaling
from mm_fibinet.training import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ON_CPU = ("fp32", "bf16", "fp16")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def hardware(monkeypatch):
    """A function that says what hardware there is: the GPU's compute capability, and whether the CPU has bf16."""

    def pretend(capability=None, cpu_has_bf16=True):
        monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: cpu_has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla Z1")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as torch says of a T4

    return pretend


@pytest.fixture
def eager(monkeypatch):
    """fp16 starts with a scale that overflows, and doubles it every third step: a short run skips steps and grows."""
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**30)
    monkeypatch.setattr(precision, "STEPS_UNTIL_DOUBLED", 3)


# What a setting comes to


@pytest.mark.parametrize(
    ("capability", "cpu_has_bf16", "device", "expected"),
    [
        ((9, 0), True, GPU, "bf16"),
        ((8, 0), False, GPU, "bf16"),
        ((7, 5), True, GPU, "fp16"),
        ((7, 0), True, GPU, "fp16"),
        ((6, 0), True, GPU, "fp32"),
        (None, True, CPU, "bf16"),
        (None, False, CPU, "fp32"),
    ],
)
def test_auto_takes_the_cheapest_that_the_device_has(hardware, capability, cpu_has_bf16, device, expected):
    hardware(capability, cpu_has_bf16)
    found = Precision.on("auto", device)
    assert (found.asked, found.name) == ("auto", expected)
    where = "CPU with" if device == CPU else "Tesla Z1 (compute capability"
    assert f"{expected} (auto, on " in str(found) and where in str(found)


@pytest.mark.parametrize(
    ("asked", "capability", "device", "message"),
    [
        (
            "bf16",
            (7, 5),
            GPU,
            r"precision is bf16, which GPUs have from compute capability 8\.0 on \(torch imitates it",
        ),
        ("bf16", (6, 1), GPU, r"found Tesla Z1 \(compute capability 6\.1\), expected one of fp16, fp32, auto"),
        ("tf32", (7, 5), GPU, "precision is tf32, which GPUs have from"),
        ("tf32", None, CPU, "found a CPU with bf16 instructions, expected one of bf16, fp16, fp32, auto"),
        ("half", None, CPU, "precision is 'half', expected one of fp32, tf32, bf16, fp16, auto"),
    ],
)
def test_what_a_device_lacks_or_imitates_is_refused(hardware, dataset, tmp_path, asked, capability, device, message):
    hardware(capability)
    with pytest.raises(UserError, match=message):
        Precision.on(asked, device)
    if device == CPU:
        run = Run(dataset, tmp_path)
        with pytest.raises(UserError, match=message):
            run.trainer(precision=asked)
        with pytest.raises(UserError, match=message):
            scoring.predict(run.model, run.valid, asked)


@pytest.mark.parametrize("asked", ["fp32", "tf32", "bf16", "fp16"])
def test_an_ampere_has_them_all(hardware, asked):
    hardware((8, 6))
    assert Precision.on(asked, GPU).name == asked


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("flags\t\t: fpu sse4_2 avx512_bf16 avx512_vbmi\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd svebf16 i8mm bf16 dgh\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\nmodel name\t: avx512_bf16less\n", False),
        (None, False),
    ],
)
def test_bf16_instructions_are_read_from_the_kernels_list(monkeypatch, tmp_path, content, expected):
    path = tmp_path / "cpuinfo"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(precision, "CPU_INFO", path)
    assert precision._cpu_has_bf16.__wrapped__() is expected


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch cannot be asked")
def test_the_kernels_list_agrees_with_torchs():
    found = torch.cpu.get_capabilities()
    assert precision._cpu_has_bf16() == any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


# tf32


def tf32_flags():
    matmul = torch.backends.cuda.matmul
    return matmul.allow_tf32, getattr(matmul, "fp32_precision", None), torch.get_float32_matmul_precision()


def test_tf32_is_on_inside_and_put_back_afterwards():
    before = tf32_flags()
    assert not before[0]
    with contextlib.suppress(Stop), Precision("tf32", "tf32", GPU, "").products():
        assert tf32_flags() in [(True, "tf32", "high"), (True, None, "high")]
        with Precision("tf32", "tf32", GPU, "").products():  # scoring within training
            pass
        assert tf32_flags()[0]
        raise Stop
    assert tf32_flags() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch 2.9 and 2.10 warn of some of its ways to set this
        with Precision("tf32", "tf32", GPU, "").products():
            pass
    for name in ("fp32", "bf16", "fp16"):
        with Precision(name, name, GPU, "").products():
            assert tf32_flags() == before


def convolutions():
    cudnn = torch.backends.cudnn
    kinds = [getattr(cudnn, kind).fp32_precision for kind in ("conv", "rnn") if hasattr(cudnn, kind)]
    return cudnn.allow_tf32, *kinds


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_are_in_tf32_where_that_is_the_precision(name, allowed):
    """torch's own setting lets cuDNN take them in tf32 although matrix products are fp32."""
    first = torch.backends.cudnn.allow_tf32
    assert first  # torch's
    try:
        torch.backends.cudnn.allow_tf32 = allowed
        before = convolutions()
        with contextlib.suppress(Stop), Precision(name, name, GPU, "").products():
            assert convolutions()[0] == (name == "tf32")
            raise Stop
        assert convolutions() == before
    finally:
        torch.backends.cudnn.allow_tf32 = first


def test_tf32_of_the_whole_process_stays():
    try:
        torch.set_float32_matmul_precision("high")
        before = tf32_flags()
        with Precision("tf32", "tf32", GPU, "").products():
            assert tf32_flags() == before
        assert tf32_flags() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_and_scoring_in_tf32_leave_nothing_behind(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_hardware", lambda device: ("a CPU that has it", ("tf32", "fp32")))
    seen = []
    forward = model_zoo.FiBiNET.forward
    monkeypatch.setattr(model_zoo.FiBiNET, "forward", lambda *args: (seen.append(tf32_flags()[0]), forward(*args))[1])
    run = Run(dataset, tmp_path, precision="tf32", epochs=1)
    before = tf32_flags()
    run.model.register_forward_hook(lambda *_: _gradient_hook(run.model, seen))
    run.fit()
    assert len(seen) > 2 * len(run.train) and all(seen)
    assert tf32_flags() == before
    scoring.predict(run.model, run.valid, "tf32")
    assert all(seen) and tf32_flags() == before
    scoring.predict(run.model, run.valid, "fp32")
    assert not any(seen[-len(run.valid) :])

    def interrupted(*_, **__):
        raise Stop

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    with pytest.raises(Stop):
        Run(dataset, tmp_path, precision="tf32").fit()
    assert tf32_flags() == before


def _gradient_hook(model, seen):
    """Note the flag in the next backward pass, too."""
    weight = model.dnn.mlp[0].weight
    if model.training:
        handle = weight.register_hook(lambda grad: (seen.append(tf32_flags()[0]), handle.remove())[0])


# fp16's scale


class SlowScaledTraining:
    """fp16 as a textbook has it: every number read, every rule an `if`; Adam, clipping and penalties by their formulas.

    Args:
        model: a copy of the one that is trained.
        settings: of the experiment.
    """

    def __init__(self, model, settings, planned_steps):
        self.model, self.settings, self.planned_steps = model, settings, planned_steps
        self.scale, self.streak, self.step, self.taken, self.skipped = precision.FIRST_SCALE, 0, 0, 0, 0
        self.updates = 0
        self.parameters = dict(model.named_parameters())
        self.means = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.averaged = {name: p.detach().clone() for name, p in self.parameters.items()}

    def follow(self, batches):
        """One step of the optimizer over some batches; whether it was taken."""
        self.model.zero_grad()
        rows, self.updates = sum(len(self.model.get_labels(batch)) for batch in batches), self.updates + 1
        for batch in batches:
            self.step += 1
            labels = self.model.get_labels(batch)
            with torch.autocast("cpu", torch.float16):
                predicted = self.model(batch)["y_pred"]
            loss = torch.nn.functional.binary_cross_entropy(predicted, labels) * len(labels) / rows
            (loss * self.scale).backward()
        gradients = {name: p.grad.double() / self.scale for name, p in self.parameters.items()}
        taken = all(gradient.isfinite().all().item() for gradient in gradients.values())
        if taken:
            self._take(gradients)
            self.taken, self.streak = self.taken + 1, self.streak + 1
            if self.streak == precision.STEPS_UNTIL_DOUBLED:
                self.scale, self.streak = self.scale * 2, 0
        else:
            self.scale, self.streak, self.skipped = self.scale / 2, 0, self.skipped + 1
        share = 1 - min(self.settings["ema_decay"], (1 + self.updates) / (10 + self.updates))
        for name, p in self.parameters.items():
            self.averaged[name] += share * (p.detach() - self.averaged[name])
        return taken

    def _take(self, gradients):
        count = self.taken + 1
        rate = self.settings["learning_rate"] * (1 - (self.step - 1) / self.planned_steps)
        for name, p in self.parameters.items():
            of_tables = "embedding_layer" in name
            gradients[name] += p.detach() * self.settings["embedding_regularizer" if of_tables else "net_regularizer"]
        norm = sum(gradient.square().sum() for gradient in gradients.values()).sqrt()
        shrink = min(1.0, self.settings["max_gradient_norm"] / (norm.item() + 1e-6))
        for name, p in self.parameters.items():
            gradient = (gradients[name] * shrink).float()
            self.means[name] = 0.9 * self.means[name] + 0.1 * gradient
            self.squares[name] = 0.999 * self.squares[name] + 0.001 * gradient.square()
            mean, square = self.means[name] / (1 - 0.9**count), self.squares[name] / (1 - 0.999**count)
            p.data -= rate * mean / (square.sqrt() + 1e-8)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_scaled_training_is_its_slow_form(dataset, tmp_path, eager, accumulation_steps):
    settings = {"embedding_regularizer": 1e-2, "net_regularizer": 1e-3, "net_dropout": 0, "max_gradient_norm": 0.05}
    settings.update(lr_schedule="linear", ema_decay=0.9, accumulation_steps=accumulation_steps, epochs=5)
    run = Run(dataset, tmp_path, precision="fp16", **settings)
    trainer = run.trainer()
    trainer.planned_steps = 5 * len(run.train)
    run.model.train()
    slow = SlowScaledTraining(copy.deepcopy(run.model), run.params, trainer.planned_steps)
    waiting, taken = [], []
    for trainer.epoch in range(5):
        trainer.step = 0
        for batch in run.train:
            trainer.step += 1
            trainer.total_steps += 1
            before = weights(run.model)
            trainer._train_step(batch, run.train, last=trainer.step == len(run.train))
            waiting.append(batch)
            if len(waiting) < accumulation_steps and trainer.step < len(run.train):
                continue
            slow.model.load_state_dict(before)  # else fp16 would round differences of the last bit up to its own size
            taken.append(slow.follow(waiting))
            waiting = []
            for (name, got), want in zip(run.model.named_parameters(), slow.model.parameters(), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
            if not taken[-1]:
                assert_equal_weights(before, weights(run.model))
            state = trainer.scaling.state()
            assert (state["scale"], state["_growth_tracker"]) == (slow.scale, slow.streak)
    assert slow.skipped > 10 and slow.taken >= 10
    assert not all(taken[taken.index(True) :])  # also a scale that grew too far, not only the first one
    names = [name for name, value in run.model.state_dict().items() if value.is_floating_point()]
    for name, got in zip(names, trainer.average.averaged, strict=True):
        torch.testing.assert_close(got, slow.averaged[name], rtol=1e-4, atol=1e-6, msg=name)
    assert trainer._mean_loss() > 0


class Reads(TorchDispatchMode):
    """Counts the numbers that a program takes from tensors, each of which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adam", "SGD", "RMSprop"])
def test_a_step_reads_no_number_from_the_device(dataset, tmp_path, optimizer):
    found = {}
    for name in ("fp32", "fp16"):
        run = Run(dataset, tmp_path, precision=name, optimizer=optimizer)
        trainer, batches = run.trainer(), iter(run.train)
        run.model.train()
        trainer._train_step(next(batches), run.train, last=True)
        batch = next(batches)
        with Reads() as reads:
            trainer._train_step(batch, run.train, last=True)
        found[name] = reads.count
    assert found["fp16"] - found["fp32"] == (optimizer == "RMSprop")  # which is not fused


class Broken(model_zoo.FiBiNET):
    """Its forward pass gives NaN in some of the training steps, as where fp16 overflows."""

    broken_steps = range(0)

    def forward(self, inputs):
        outputs = super().forward(inputs)
        if self.training:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps in self.broken_steps:
                self.break_one(outputs)
        return outputs

    def break_one(self, outputs):
        outputs["y_pred"] = outputs["y_pred"] * float("nan")


class BrokenAside(Broken):
    """The NaN is one that no gradient passes, of a loss of its own."""

    def break_one(self, outputs):
        outputs["y_aux"] = torch.full((1,), float("nan"))

    def add_loss(self, return_dict, y_true):
        return torch.nn.functional.binary_cross_entropy(return_dict["y_pred"], y_true)


def broken_run(dataset, folder, steps, model_class=Broken, **settings):
    run = Run(dataset, folder, net_dropout=0, epochs=1, **settings)
    run.model = model_class(run.model.feature_map, **run.params)
    run.model.broken_steps = steps
    return run


@pytest.mark.parametrize("model_class", [Broken, BrokenAside])
def test_a_step_whose_loss_overflows_is_skipped_and_not_counted(dataset, tmp_path, monkeypatch, model_class):
    run = broken_run(dataset, tmp_path, [3, 7], model_class, precision="fp16")
    losses, before, step = [], [], Trainer._train_step

    def noting(trainer, batch, *args, **kwargs):
        before.append(weights(run.model))
        labels = run.model.get_labels(batch)
        with torch.autocast("cpu", torch.float16):
            predicted = model_zoo.FiBiNET.forward(run.model, batch)["y_pred"]
        losses.append(torch.nn.functional.binary_cross_entropy(predicted, labels).item())
        return step(trainer, batch, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_step", noting)
    (entry,) = run.fit()
    good = [loss for number, loss in enumerate(losses, 1) if number not in (3, 7)]
    assert entry["loss"] == pytest.approx(np.mean(good), rel=1e-6)
    for number in range(1, len(losses)):
        same = torch.equal(before[number - 1]["dnn.mlp.0.weight"], before[number]["dnn.mlp.0.weight"])
        assert same == (number in (3, 7)), number


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_only_fp16_takes_a_broken_loss_for_its_own(dataset, tmp_path, name):
    with pytest.raises(UserError, match=r"the training loss is nan at epoch 1, step 10; lower learning_rate"):
        broken_run(dataset, tmp_path, [3], precision=name).fit()


def test_fp16_that_never_has_a_loss_is_an_error(dataset, tmp_path):
    run = broken_run(dataset, tmp_path, range(1, 1000), precision="fp16")
    with pytest.raises(UserError, match=r"the training loss is nan .*; set precision to bf16 or fp32, lower learning"):
        run.fit()
    assert not run.checkpoint.exists()


def test_gradients_that_overflow_at_any_scale_are_an_error(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "FIRST_SCALE", 8.0)
    run = Run(dataset, tmp_path, precision="fp16", epochs=1)
    run.model.dnn.mlp[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"precision is fp16, and the gradients overflow at any scale"):
        run.fit()
    assert not run.checkpoint.exists()


# Going on


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("stops", [[6], [13, 14, 30]])
def test_resume_is_exact(dataset, tmp_path, monkeypatch, eager, name, stops):
    settings = {"precision": name, "epochs": 4, "ema_decay": 0.9, "batch_norm": True}
    scales = []
    monkeypatch.setattr(Scaling, "require_room", lambda self: scales.append(self.state()))
    whole = Run(dataset, tmp_path / "whole", **settings)
    expected = whole.fit(checkpoint_every=2)
    kept = list(scales)
    scales.clear()
    stop_before(monkeypatch, stops)
    run, history = fit_to_the_end(lambda: Run(dataset, tmp_path / "stopped", **settings))
    assert not stops
    assert_equal_weights(weights(whole.model), weights(run.model))
    assert [{**entry, **MEASURED} for entry in history] == [{**entry, **MEASURED} for entry in expected]
    assert scales[-1] == kept[-1]
    if name == "fp16":
        assert kept[-1]["scale"] < 2.0**30 and any(a["scale"] < b["scale"] for a, b in itertools.pairwise(kept))


def test_a_lost_loss_is_still_left_out_after_resuming(dataset, tmp_path, monkeypatch):
    def make(folder):
        run = broken_run(dataset, folder, [], precision="fp16", eval_steps=10)
        run.model.register_forward_hook(lambda model, args, out: _break(model, args[0], out))
        return run

    def _break(model, batch, outputs):
        """The rows decide, not the count of steps: that starts anew with the process."""
        if model.training and batch.batch_dict["user_id"].sum() % 3 == 0:
            outputs["y_pred"] = outputs["y_pred"] * float("nan")
        return outputs

    (expected,) = make(tmp_path / "whole").fit(checkpoint_every=2)
    stop_before(monkeypatch, [8])
    _, (entry,) = fit_to_the_end(lambda: make(tmp_path / "stopped"))
    assert entry["loss"] == expected["loss"]


def test_auto_goes_on_in_what_the_run_began_with(dataset, tmp_path, monkeypatch, hardware):
    hardware()
    whole = Run(dataset, tmp_path / "whole", precision="auto")
    whole.fit(checkpoint_every=2)
    stop_before(monkeypatch, [5])
    run = Run(dataset, tmp_path / "stopped", precision="auto")
    with pytest.raises(Stop):
        run.fit(checkpoint_every=2)
    hardware(cpu_has_bf16=False)
    run = Run(dataset, tmp_path / "stopped", precision="auto")
    trainer = run.trainer(checkpoints=training.RunCheckpoints(run.folder, "test"))
    assert trainer.precision.name == "fp32"
    assert trainer.resume()
    assert str(trainer.precision) == "bf16 (auto, as the run began)"
    trainer.fit(run.train, run.valid, run.params["epochs"])
    assert_equal_weights(weights(whole.model), weights(run.model))


def test_going_on_in_another_precision_is_refused(dataset, tmp_path, hardware):
    Run(dataset, tmp_path, precision="fp16", epochs=1).fit()
    with pytest.raises(UserError, match="--resume: the run's state is of precision fp16, precision is fp32; set fp16"):
        Run(dataset, tmp_path, precision="fp32", epochs=2).fit(resume=True)
    hardware((7, 5))
    began = Precision("auto", "fp16", GPU, "")
    with pytest.raises(UserError, match=r"--resume: the run began in bf16: .*found Tesla Z1 .*resume it on such"):
        began.resumed("bf16")
    assert began.resumed("fp16") == began


DRIVER = """
import json, os, runpy, sys
from mm_fibinet import precision, training
precision.FIRST_SCALE, precision.STEPS_UNTIL_DOUBLED = 2.0**30, 3
rank = int(os.environ.get("RANK", "0"))

class Watched(training.Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = 0
        if rank == 1:
            self.parameters[-1].register_hook(self.overflow)

    def overflow(self, gradient):
        self.count += 1
        return gradient * float("inf") if self.count == 30 else gradient

    def _train_step(self, *args, **kwargs):
        if self.total_steps == int(os.environ.get("STOP_AT", "0")):
            sys.exit(1)
        return super()._train_step(*args, **kwargs)

    def fit(self, *args, **kwargs):
        try:
            return super().fit(*args, **kwargs)
        finally:
            weights = sum(p.double().sum().item() for p in self.parameters)
            with open(os.environ["SCALES"] + str(rank), "w") as opened:
                json.dump([self.scaling.state(), weights], opened)

training.Trainer = Watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start_driver(tmp_path, runs, config, *arguments, ranks=1, stop_at=0, **settings):
    """run_expid.py with the eager scale, in fp16; with several ranks the second one overflows once, alone.

    Args:
        stop_at: all ranks die before this step.
    """
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    prefix = [sys.executable] + (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    )
    given = [f"{name}={value}" for name, value in {"precision": "fp16", "batch_size": 16, **settings}.items()]
    command = [*prefix, driver, ROOT / "run_expid.py", "--config", config, "--expid", "FiBiNET_test"]
    command += ["--model_root", runs, *arguments, "--set", *given]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SCALES": str(runs) + "_scale",
        "STOP_AT": str(stop_at),
    }
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_killed_command_ends_as_one_that_was_not(tmp_path):
    config = make_dataset(tmp_path, rows=1500)
    finish(start_driver(tmp_path, tmp_path / "whole", config, "--checkpoint_every", "3"))
    path = tmp_path / "killed" / "TEST_DATA" / "FiBiNET_test" / "last.ckpt"
    process = start_driver(tmp_path, tmp_path / "killed", config, "--checkpoint_every", "3")
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.poll() is None, "the run ended before it could be killed: make it longer"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = torch.load(path, weights_only=True)["state"]
    assert 0 < before["total_steps"] < 188 and before["scaling"]["scale"] != 2.0**30
    finish(start_driver(tmp_path, tmp_path / "killed", config, "--checkpoint_every", "3", "--resume"))
    ends = [
        torch.load(tmp_path / runs / path.relative_to(tmp_path / "killed"), weights_only=True)["state"]
        for runs in ("whole", "killed")
    ]
    assert_equal_weights(ends[0]["model"], ends[1]["model"])
    assert ends[0]["scaling"] == ends[1]["scaling"]


@pytest.mark.slow
def test_two_ranks_keep_one_scale(tmp_path):
    config = make_dataset(tmp_path, rows=610)
    settings = {"epochs": 2, "net_dropout": 0, "batch_size": 24}
    finish(start_driver(tmp_path, tmp_path / "runs", config, ranks=2, **settings))
    (first, weight), (second, other) = (json.loads((tmp_path / f"runs_scale{rank}").read_text()) for rank in (0, 1))
    assert first == second and first["scale"] < 2.0**30
    assert weight == pytest.approx(other, rel=1e-12)
    finish(start_driver(tmp_path, tmp_path / "alone", config, **settings))
    alone = json.loads((tmp_path / "alone_scale0").read_text())[0]
    assert alone["scale"] != first["scale"]  # which did not overflow in the thirtieth step

    stopped = {"ranks": 2, **settings}
    arguments = (tmp_path, tmp_path / "stopped", config, "--checkpoint_every", "5")
    assert start_driver(*arguments, stop_at=39, **stopped).wait(timeout=280) != 0  # in the second epoch
    finish(start_driver(*arguments, "--resume", **stopped))
    histories = [tmp_path / runs / "TEST_DATA" / "FiBiNET_test" / "metrics.csv" for runs in ("runs", "stopped")]
    losses = [pl.read_csv(path)["loss"].to_list() for path in histories]
    assert losses[0][0] == losses[1][0]
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-9)


# What it comes to


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=[*CASE_NAMES, *VARIANTS])
def test_every_model_scores_and_learns_as_in_fp32(tmp_path, monkeypatch, case, name):
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**8)  # with torch's own, xDeepFM's first steps are skipped
    found, scored, batch = {}, {}, make_batch()
    clip = torch.nn.utils.clip_grad_norm_
    for setting in ("fp32", name):
        model = make_model(case)
        trainer = Trainer(model, checkpoint=tmp_path / "best.model", precision=setting)
        scored[setting] = scoring.predict(model, [batch], setting)
        model.train()
        torch.manual_seed(1)

        def keep(parameters, *args, setting=setting, **kwargs):
            found[setting] = torch.cat([(p.grad if p.grad is not None else p * 0).flatten() for p in parameters])
            return clip(parameters, *args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
        trainer._train_step(batch, None, last=True)
        assert all(p.isfinite().all() for p in model.parameters())
    tiers = {"simtier", "bucket_attention"} & case[1].keys()  # a cosine at a tier's edge is rounded over it
    difference = np.abs(scored[name] - scored["fp32"])
    assert difference.max() > 0 and np.quantile(difference, 0.95 if tiers else 1) < 0.05
    assert torch.nn.functional.cosine_similarity(found[name], found["fp32"], dim=0) > 0.99
    assert found[name].norm() == pytest.approx(found["fp32"].norm().item(), rel=0.05, abs=0.02)


class Raw(model_zoo.FiBiNET):
    """A stranger's model: its scores are as its last layer gives them, in half precision."""

    def forward(self, inputs):
        return {"y_pred": super().forward(inputs)["y_pred"].to(torch.get_autocast_dtype("cpu"))}


class RawWithLoss(Raw):
    def add_loss(self, return_dict, y_true):
        return torch.nn.functional.binary_cross_entropy(return_dict["y_pred"], y_true)


@pytest.mark.parametrize("model_class", [Raw, RawWithLoss])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_losses_are_fp32_whatever_a_model_returns(dataset, tmp_path, model_class, name):
    run = Run(dataset, tmp_path, precision=name, embedding_regularizer=0)
    model = model_class(run.model.feature_map, **run.params).train()
    trainer = Trainer(model, **{**run.params, "checkpoint": run.checkpoint, "net_dropout": 0})
    batch = next(iter(run.train))
    torch.manual_seed(1)
    with torch.autocast("cpu", precision.HALVES[name]):
        predicted = model(batch)["y_pred"]
    assert predicted.dtype == precision.HALVES[name]
    score, label = predicted.double().squeeze(1), batch.batch_dict["label"].double()
    expected = -torch.where(label == 1, score.log(), (1 - score).log()).mean().item()
    torch.manual_seed(1)
    trainer._train_step(batch, run.train, last=True)
    assert trainer.loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_a_model_that_runs_itself_for_its_loss_is_told_why_it_cannot(dataset, tmp_path):
    run = Run(dataset, tmp_path)
    model = OwnTotalLoss(run.model.feature_map, **run.params)
    Trainer(model, checkpoint=run.checkpoint)
    with pytest.raises(UserError, match=r"OwnTotalLoss overrides get_total_loss\(inputs\), .* set precision to fp32"):
        Trainer(model, checkpoint=run.checkpoint, precision="fp16")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Demo data with an embedding of each item's true topic and style, in noise: encoding takes longer than this test.

    With a random embedding AUC is so steep after an epoch that the order of two additions moves it by 0.002.
    """
    folder = tmp_path_factory.mktemp("demo")
    sizes = {"items": 100, "users": 500, "train_rows": 30000, "valid_rows": 10000, "test_rows": 500, "max_len": 16}
    generate(folder, **sizes, images=False, random_embedding=True)
    path = folder / "MMCTR_demo" / "item_info.parquet"
    info, truth = pq.read_table(path), pl.read_parquet(folder / "item_truth.parquet")
    embedding = 0.3 * np.array(info["item_emb_d128"].to_pylist(), dtype=np.float32)
    for first, column in ((0, "topic"), (64, "style")):
        kind = np.unique(truth[column].to_numpy(), return_inverse=True)[1]
        embedding[truth["item_id"].to_numpy(), first + kind] += 3
    at = info.column_names.index("item_emb_d128")
    pq.write_table(info.set_column(at, "item_emb_d128", list_column(embedding)), path)
    return folder


def demo_auc(demo, runs, name, gpu=-1):
    """The validation AUC after an epoch of the demo experiment, smaller, with similarity fields, from result.json."""
    code, _, err = run_script(
        "run_expid", "--expid", "FiBiNET_demo", "--gpu", gpu, "--data_root", demo, "--model_root", runs / name,
        "--set", f"item_info={demo}/MMCTR_demo/item_info.parquet", f"precision={name}", "epochs=1", "batch_size=128",
        "learning_rate=5e-3", "lr_schedule=linear", "similarity_fields=True", "embedding_dim=8", "hidden_units=[32]",
        "id_dropout=0", "net_dropout=0", "max_len=16", "verbose=0",
    )  # fmt: skip
    assert code == 0, err
    return json.loads((runs / name / "MMCTR_demo" / "FiBiNET_demo" / "result.json").read_text())["metrics"]["AUC"]


@pytest.mark.slow
def test_auc_after_a_demo_epoch_is_that_of_fp32(demo, tmp_path):
    found = {name: demo_auc(demo, tmp_path, name) for name in ON_CPU}
    assert found["fp32"] > 0.75
    assert found["bf16"] != found["fp32"] != found["fp16"]
    for name in ON_CPU:
        assert found[name] == pytest.approx(found["fp32"], abs=0.002), found


@pytest.mark.parametrize("name", [*ON_CPU, "auto"])
def test_python_callers_name_it_too(dataset, tmp_path, name):
    run = Run(dataset, tmp_path)
    run.model.fit(run.train, epochs=1, validation_data=run.valid, precision=name)
    exact = scoring.predict(run.model, run.valid)
    scores = scoring.predict(run.model, run.valid, name)
    assert np.abs(scores - exact).max() < 0.01
    assert np.array_equal(scores, exact) == (Precision.on(name, CPU).name == "fp32")


# The commands


@pytest.fixture
def commands(tmp_path, capsys):
    """The scripts on a data set that the test may change."""
    return Commands(tmp_path, capsys)


def manifest(commands, **changes):
    """The run's manifest, some entries rewritten."""
    content = {**json.loads(commands.run.manifest.read_text()), **changes}
    commands.run.manifest.write_text(json.dumps(content))
    return content


def test_a_run_says_and_keeps_what_it_computed_in(commands, hardware):
    hardware(cpu_has_bf16=True)
    code, out, err = commands.train("precision=auto")
    assert code == 0, err
    assert "Precision: bf16 (auto, on a CPU with bf16 instructions)" in out
    assert "Precision: bf16" in commands.run.log.read_text()
    reason = "auto, on a CPU with bf16 instructions"
    assert manifest(commands)["precision"] == {"asked": "auto", "used": "bf16", "device": "cpu", "reason": reason}
    assert manifest(commands)["config"]["precision"] == "auto"


def test_prediction_is_in_the_runs_precision_where_the_device_has_it(commands, hardware):
    hardware(cpu_has_bf16=True)
    assert commands.train("precision=fp16")[0] == 0
    scores = {}
    for what, record, expected in [
        ("as it was", {"used": "fp16", "device": "cpu"}, "precision   fp16 (as the run's validation)"),
        ("of a T4", {"used": "fp16", "device": "cuda"}, "precision   fp32 (the run's fp16 is not to be had on a CPU"),
        ("of an H100", {"used": "bf16", "device": "cuda"}, "precision   bf16 (as the run's validation)"),
        ("in tf32", {"used": "tf32", "device": "cuda"}, "precision   fp32 (the run's tf32 is not to be had on a CPU"),
        ("unknown", None, "precision   fp16 (as set, on a CPU"),
    ]:
        manifest(commands, precision=record)
        code, out, err = commands.predict()
        assert code == 0, err
        assert expected in out
        scores[what] = commands.scores()
    assert np.array_equal(scores["of a T4"], scores["in tf32"])
    assert np.array_equal(scores["as it was"], scores["unknown"])
    assert 0 < np.abs(scores["as it was"] - scores["of a T4"]).max() < 0.01
    assert 0 < np.abs(scores["of an H100"] - scores["of a T4"]).max() < 0.02

    code, out, err = commands.predict("--set", "precision=fp32")
    assert code == 2 and 'precision is "fp32", was "fp16"' in err
    manifest(commands, precision={"used": "fp16", "device": "cpu"})
    code, out, err = commands.predict("--set", "precision=fp32", "--allow_other_data")
    assert code == 0 and "precision   fp32 (as set" in out
    assert np.array_equal(commands.scores(), scores["of a T4"])
    manifest(commands, precision={"used": "fp8"})
    code, out, err = commands.predict()
    assert code == 2 and "not a run's manifest: its precision is {'used': 'fp8'}" in err
    assert not commands.out.exists()


def test_a_precision_that_is_not_here_leaves_the_old_run(commands):
    assert commands.train()[0] == 0
    before = commands.kept()
    code, _, err = commands.train("precision=tf32")
    assert code == 2 and err.startswith("error: precision is tf32, which GPUs have from compute capability 8.0 on")
    assert commands.kept() == before


# With a GPU


def skip_unless_here(name):
    try:
        Precision.on(name, GPU)
    except UserError as error:
        pytest.skip(str(error))


@needs_gpu
@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
def test_a_gpus_losses_are_those_of_fp32(dataset, tmp_path, name):
    skip_unless_here(name)
    losses = [Run(dataset, tmp_path / p, gpu=0, precision=p, net_dropout=0).fit()[-1]["loss"] for p in ("fp32", name)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
def test_auc_on_a_gpu_is_that_of_fp32(demo, tmp_path, name):
    skip_unless_here(name)
    assert demo_auc(demo, tmp_path, name, gpu=0) == pytest.approx(demo_auc(demo, tmp_path, "fp32", gpu=0), abs=0.002)


@needs_gpu
@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "fp16"])
def test_a_step_never_waits_for_the_gpu(dataset, tmp_path, name):
    skip_unless_here(name)
    run = Run(dataset, tmp_path, gpu=0, precision=name)
    trainer, batches = run.trainer(), iter(run.train)
    run.model.train()
    trainer._train_step(next(batches), run.train, last=True)  # makes the optimizer's state and the scale
    batch = next(batches)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        trainer._train_step(batch, run.train, last=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_fp16s_scale_is_resumed_on_a_gpu(dataset, tmp_path, eager):
    run = Run(dataset, tmp_path, gpu=0, precision="fp16", epochs=1)
    trainer = run.trainer(checkpoints=training.RunCheckpoints(tmp_path, "test"))
    trainer.fit(run.train, run.valid, 1)
    resumed = run.trainer(checkpoints=training.RunCheckpoints(tmp_path, "test"))
    assert resumed.resume()
    assert resumed.scaling.state() == trainer.scaling.state()
    assert trainer.scaling.state()["scale"] < 2.0**30


@needs_gpu
def test_tf32_products_are_rounded_inside_alone():
    skip_unless_here("tf32")
    torch.manual_seed(0)
    values = torch.randn(512, 512, device=GPU)
    exact = values.double() @ values.double()
    outside = values @ values
    with Precision.on("tf32", GPU).products():
        inside = values @ values
    assert torch.equal(values @ values, outside)
    assert (outside - exact).abs().max() < 1e-3 < (inside - exact).abs().max() < 0.5


@needs_gpu
def test_fp32_convolutions_are_not_rounded():
    torch.manual_seed(0)
    layer, values = torch.nn.Conv1d(64, 64, 1).to(GPU), torch.randn(512, 64, 32, device=GPU)
    with torch.no_grad():
        exact = torch.einsum("oi,nil->nol", layer.weight[:, :, 0].double(), values.double()) + layer.bias[:, None]
        with Precision.on("fp32", GPU).products():
            assert (layer(values) - exact).abs().max() < 1e-5

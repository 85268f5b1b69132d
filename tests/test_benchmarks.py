"""The speed benchmark runs, and compares like with like: its references compute what ours computes."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import ROOT, make_dataset
from PIL import Image
from small_models import bert_folder

from benchmarks import (
    busy,
    contenders,
    encoding,
    figure,
    items_scale,
    kept_out,
    measure,
    random_weights,
    similarity_fields,
    speed,
)
from benchmarks.contenders import Ours, Reference, Task
from benchmarks.encoding import Encoding, Notebook
from benchmarks.figure import Result
from benchmarks.remote import Remote, RemoteError
from benchmarks.synthetic import Sizes, write_data
from mm_fibinet import memory, schema
from mm_fibinet.data_check import main as check_data
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.items import modalities

SIZES = Sizes(rows=200, test_rows=70, items=40, max_len=6, emb_dim=12)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return Task(write_data(tmp_path_factory.mktemp("speed"), SIZES), SIZES, batch_size=32, small=True)


@pytest.fixture(autouse=True)
def unchanged_malloc(monkeypatch):
    monkeypatch.setenv(memory.SWITCH, "0")


def test_the_generated_data_keeps_the_contract(task, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["schema", "check", str(task.folder)])
    with pytest.raises(SystemExit) as stopped:
        run_cli(check_data)
    assert not stopped.value.code, capsys.readouterr()
    history = np.stack(next(schema.read_slices(task.data_path("train"), ["item_seq"]))[1]["item_seq"].to_pylist())
    assert (np.diff((history > 0).astype(int), axis=1) >= 0).all()  # padding in front only
    assert (history == 0).any() and (history[:, -5:] > 0).all()


def test_the_row_wise_loader_yields_our_triple(task):
    ours, theirs = Ours("FiBiNET", task), Reference("FiBiNET", task)
    for split, with_label in (("train", True), ("test", False)):
        for own, other in zip(ours.load(split, "triple"), theirs.load(split), strict=True):
            assert set(other[0]) == {"likes_level", "views_level", "user_id", *(["label"] if with_label else [])}
            assert set(other[1]) == set(own[1]) == {*theirs.model.item_features, "likes_level", "views_level"}
            for one, reference in zip(own[:2], other[:2], strict=True):
                for name in reference:
                    torch.testing.assert_close(one[name], reference[name], check_dtype=False, rtol=0, atol=0)
            assert torch.equal(own[2], other[2])


@pytest.mark.parametrize("name", speed.MODELS)
def test_the_reference_scores_as_ours_from_the_same_weights(task, name):
    ours, theirs = Ours(name, task), Reference(name, task)
    with torch.no_grad():
        for key, values in ours.model.state_dict().items():
            if values.is_floating_point() and "running" not in key:
                values.normal_(std=0.3)
            if key.endswith(("item_id.weight", "item_tags.weight", "level.weight")):
                values[0] = 0  # as FuxiCTR initialises the padding id
    theirs.model.load_state_dict(ours.model.state_dict())
    scores, expected = ours.model.predict(ours.load("test")), theirs.model.predict(theirs.load("test"))
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", speed.MODELS)
def test_a_training_step_of_the_reference_is_ours(task, name):
    """Without dropout, one step of both loops on the same batch gives the same weights."""
    ours, theirs = Ours(name, task), Reference(name, task)
    theirs.model.load_state_dict(ours.model.state_dict())
    for model in (ours.model, theirs.model):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ours.loader, theirs.loader = [next(iter(ours.load("train")))] * 2, [next(iter(theirs.load("train")))]
    ours.train(1, warm_up=0)  # and the step after the clock
    theirs.loader *= 2
    theirs.model.train_epoch(theirs.loader)
    expected = theirs.model.state_dict()
    for key, values in ours.model.state_dict().items():
        torch.testing.assert_close(
            values, expected[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_similarity_fields_are_measured_against_the_same_written_plainly(capsys, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["similarity_fields.py", "--quick", "--repeats", "2"])
    similarity_fields.main()  # which compares what both sides compute
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 2 * 3


def test_timed_batches_counts_what_is_on_the_clock():
    seen = []
    timed = measure.TimedBatches(range(10), 4, warm_up=2, tail=1, batch_size=5, device=torch.device("cpu"))
    for batch in timed:
        seen.append(batch)
    assert seen == list(range(7)) and len(timed) == 7
    assert timed.rows_per_second == pytest.approx(20 / timed.seconds)
    assert len(measure.TimedBatches(range(5), 100, 1, 1, 5, torch.device("cpu"))) == 5


def test_line_fit_and_ratio():
    fit = measure.line_fit([1, 2, 3, 4], [3, 5, 7, 9])
    assert fit == pytest.approx({"slope": 2, "intercept": 1, "r2": 1})
    assert measure.line_fit([0, 1, 2], [0, 1, 0])["r2"] == pytest.approx(0, abs=1e-12)
    assert Result("loader", "rows/s", 10, 40).ratio == 4
    assert Result("scoring", "s", 10, 40).ratio == 0.25
    assert Result("encoding", "items/s", 10, 40).ratio == 4


def test_a_mark_is_a_ratio_or_the_most_that_ours_may_be():
    epoch = Result("epoch", "s", 100, 4, limit=5)
    assert epoch.met and not Result("epoch", "s", 100, 6, limit=5).met
    assert epoch.cells()[-1] == "<= 5 s"
    assert Result("training", "rows/s", 1, 50, target=50).met and not Result("training", "rows/s", 1, 49, target=50).met
    assert Result("training", "rows/s", 1, 49).met is None


def test_a_gpus_name_stands_above_its_figures():
    results = [Result("training", "rows/s", 10, 40)]
    assert figure._table(results, "NVIDIA H100")[0].split("|")[3].strip() == "ours, NVIDIA H100"
    assert figure._table(results, "cpu")[0].split("|")[3].strip() == "ours"


@pytest.mark.parametrize("modality", ["text", "image"])
def test_an_encoder_is_timed_on_full_batches(task, modality):
    ours = Encoding(modality, task, batch_size=2)
    assert len(ours.samples) == ours.encoder.batch_size == 2
    flops = ours.flops_per_item()
    # both networks are published with their cost: 6 layers of 384 on 16 tokens, and 0.4 G multiplications at 224 pixels
    layer = 16 * (4 * 384 * 384 + 2 * 384 * 1536) + 2 * 16 * 16 * 384
    expected = {"text": 2 * 6 * layer, "image": 2 * 0.40e9}[modality]
    assert flops == pytest.approx(expected, rel=0.05)
    assert ours.items_per_second(1) > 0 and ours.built_per_second(3) > 0
    assert Notebook(modality, task).built_per_second(1) > 0


@pytest.mark.parametrize(
    ("modality", "encoder", "dim"), [("image", "timm:test_vit", 64), ("image", "open_clip:ViT-S-32-alt:FILE", 256)]
)
def test_the_loop_runs_the_encoder_that_is_asked_for(task, modality, encoder, dim):
    loop = Notebook(modality, dataclasses.replace(task, **{f"{modality}_encoder": encoder}))
    with torch.no_grad():
        assert loop.network(Image.new("RGB", (32, 18))).shape == (dim,)
    assert loop.built_per_second(1) > 0


def test_the_encoder_that_is_asked_for_is_measured(task, tmp_path, monkeypatch):
    weights = str(tmp_path / "weights.pth")
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    ours = Encoding("image", dataclasses.replace(task, image_encoder=f"timm:test_vit:{weights}"), batch_size=2)
    assert ours.encoder.id.startswith("timm test_vit ") and ours.items_per_second(1) > 0
    monkeypatch.setattr(sys, "argv", ["speed.py", "--image_encoder", "column:img_emb", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--image_encoder column:img_emb: no loop to compare it with"):
        speed.main()


def test_encoders_alone_are_measured_without_fuxictr(tmp_path, monkeypatch, capsys):
    """As on a machine that has the networks' libraries and no more."""
    asked = "import benchmarks.encoding, sys; print({'fuxictr', 'ray', 'polars'} & set(sys.modules))"
    line, environment = [sys.executable, "-c", asked], os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout == "set()\n"
    rates = iter([300.0, 600.0, 50.0])  # a build, the network alone, the loop
    monkeypatch.setattr(encoding, "in_turns", lambda repeats, *works: [[next(rates)] * repeats for _ in works])
    line = ["--modalities", "text", "--items", "3", "--text_encoder", f"sentence_transformers:{bert_folder(tmp_path)}"]
    monkeypatch.setattr(sys, "argv", ["encoding.py", *line])
    encoding.main()
    said = "text: a build 300 items/s, 50% of the network's own 600, 6.0 times a notebook's 50 (sentence-transformers "
    assert capsys.readouterr().out.startswith(said)


def test_random_weights_are_of_the_default_encoders_sizes(tmp_path):
    name = random_weights.text_folder(tmp_path, encoding.WORDS)
    text = Encoding("text", encoding.Encoders({"text": name}), batch_size=1)
    weights = text.encoder._model.model.parameters()
    assert sum(weight.numel() for weight in weights) == pytest.approx(22.7e6, rel=0.01)
    assert text.encoder.dim == 384 and text.encoder._tokens is not None
    assert text.encoder.tokenizer.unk_token_id not in text.samples[0], "the made-up titles' words are whole"
    name = random_weights.image_file(tmp_path)
    image = Encoding("image", encoding.Encoders({"image": name}), batch_size=1)
    assert sum(weight.numel() for weight in image.encoder.network.parameters()) == 3_371_008  # without its classifier


def test_step_flops_counts_forward_and_backward():
    model = _Scored(torch.nn.Linear(8, 4))
    flops = measure.step_flops(model, torch.ones(5, 8))
    assert flops == 2 * 5 * 8 * 4 * 2  # forward and the weights' gradient; the inputs need none
    assert model.layer.weight.grad is None


class _Scored(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return {"y_pred": self.layer(inputs)}


class Local:
    """Stands in for Remote: the contender in this process."""

    def __init__(self, kind, *arguments, seconds=None):
        self.contender = kind(*arguments)

    def __enter__(self):
        return self.contender

    def __exit__(self, *error):
        pass


def test_a_build_of_a_store_that_is_full_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(items_scale, "Remote", Local)
    monkeypatch.setattr(modalities, "MODALITIES", modalities.MODALITIES)  # put back afterwards
    found = items_scale.measure(tmp_path, [150, 200])
    assert [items for items, *_ in found] == [150, 200]
    assert all(seconds > 0 and worked > 0 and peak > 0 for _, seconds, worked, peak in found)
    assert capsys.readouterr().out.startswith("| 150 | ")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.num_rows == 201 and written.column_names[1:] == ["item_emb_d128", "txt_emb_d128", "img_emb_d128"]


def test_a_quick_run_writes_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "Remote", Local)
    megabytes = itertools.count(1)
    monkeypatch.setattr(contenders, "peak_memory", lambda task: {"cpu": next(megabytes) * 1e6, "gpu": 0})
    monkeypatch.setattr(measure, "peak_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(measure, "peak_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", "--out", str(tmp_path)])
    speed.main()
    content = json.loads((tmp_path / "speed.json").read_text())
    lines = (tmp_path / "speed.md").read_text().splitlines()
    results = {result["what"]: result for result in content["results"]}
    assert results["peak CPU memory, training FiBiNET"]["ours"] == 1
    assert results["encoding, image, a build / a notebook's loop"]["ours"] > 0
    assert "of the network's own speed on prepared batches" in _note(content, "text: a build reaches ")
    assert "text fp32" in _note(content, "text fp32: ")
    assert _note(content, "text: minilm ")
    for what in ("loader, indices / row-wise", "training FiBiNET, fp32", "training DIN, fp32", "gAUC, 20 groups"):
        assert results[what]["target"] and results[what]["ours"] > 0
    assert sum(line.startswith("| ") for line in lines) == len(results) + 1
    assert [curve["what"] for curve in content["curves"]] == ["rows", "items", "max_len"]
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert (tmp_path / "profile_DIN_fp32.txt").exists()
    own, stock = [float(word.rstrip(",")) for word in _note(content, "gAUC: ").split() if word[0] == "0"]
    assert own == pytest.approx(stock, abs=1e-12)


class Rates:
    """Stands in for Remote: what is measured takes twice as long, or three times, beside a neighbour."""

    has_neighbour = False

    def __init__(self, kind, *arguments, seconds=None):
        self.is_ours = kind is Ours

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def pass_over(self, what, batches=None):
        if not self.is_ours:
            return 3.0
        return {"indices": 800.0, "triple": 60.0}[what] / (2 if self.has_neighbour else 1)

    def train(self, steps):
        return 90.0 / (3 if self.has_neighbour else 1)


def test_busy_compares_with_the_quiet_machine(tmp_path, monkeypatch, capsys):
    @contextlib.contextmanager
    def neighbour():
        monkeypatch.setattr(Rates, "has_neighbour", True)
        yield
        monkeypatch.setattr(Rates, "has_neighbour", False)

    monkeypatch.setattr(busy, "neighbour", neighbour)
    monkeypatch.setattr(busy, "Remote", Rates)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--busy", "--quick", "--out", str(tmp_path)])
    speed.main()
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert [(r["reference"], r["ours"], r["target"]) for r in results] == [
        (800, 400, 0.7), (60, 30, 0.7), (90, 30, 0.7), (3, 60, 15)
    ]  # fmt: skip
    assert [r["ratio"] for r in results] == pytest.approx([1 / 2, 1 / 2, 1 / 3, 20])


def test_a_neighbour_is_busy_and_gone_when_the_work_is_done():
    before = os.times().children_user
    assert busy.beside(lambda: time.sleep(1) or 5.0) == 5.0
    assert os.times().children_user - before > 0.03  # counted once it has ended
    with pytest.raises(ZeroDivisionError), busy.neighbour() as process:
        assert process.poll() is None
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL


RATES = {"fp32": 2e5, "usual": 5e5, "plain": 3e5, "compiled": 9e5}


class OnAGpu:
    """Stands in for a contender on a GPU: thousands of rows/s by what is used; the reference ten."""

    def __init__(self, kind, name, task):
        self.rate, self.graphs = RATES["fp32"] if kind is Ours else 1e4, "CUDA graphs"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def use(self, precision, cuda_graphs=True, compile=False):
        self.rate = RATES["compiled" if compile else "usual" if cuda_graphs else "plain"]
        self.graphs = "CUDA graphs" if cuda_graphs else "no CUDA graphs"

    def train(self, *steps):
        return self.rate

    def flops_per_row(self):
        return 3e6

    def profile(self, *_):
        pass

    def graphs_used(self):
        return self.graphs


@pytest.mark.parametrize(("capability", "half"), [((9, 0), "bf16"), ((7, 5), "fp16")])
def test_a_full_run_on_a_gpu_has_its_marks(tmp_path, monkeypatch, capsys, capability, half):
    monkeypatch.setattr(speed, "Remote", OnAGpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--gpu", "0", "--full"])
    bench = speed.Bench(speed.parse_arguments(), tmp_path)
    bench.peaks = {"fp32": 5e13, half: 9e14, "bytes": 3e12}
    bench.training()
    assert (bench.task.workers, bench.task.batch_size, bench.task.sizes.rows) == (3, 8192, 3_600_000)
    results = {result.what: result for result in bench.results}
    assert results["training FiBiNET, fp32"].met is None
    usual, plain, compiled = (results[f"training DIN, ours in {half}{how}"] for how in speed.HOW.values())
    assert (usual.ratio, usual.met, plain.ratio, plain.met) == (50, True, 30, None)
    assert (compiled.ratio, compiled.met) == (90, True)
    assert f"DIN, {half}, plain steps: no CUDA graphs" in bench.notes
    epoch = results[f"an epoch of 3,600,000 rows, FiBiNET, ours in {half}"]
    assert (epoch.reference, epoch.ours, epoch.limit, epoch.met) == (360, 4, 5, True)


def test_a_contender_answers_from_its_own_process():
    with Remote(list, [3, 1, 2]) as other:
        assert other.index(2) == 2
        other.append(4)
        assert other.count(4) == 1
        with pytest.raises(RemoteError, match="ValueError"):
            other.index(9)


def _note(content, start):
    return next(note for note in content["notes"] if note.startswith(start))


def test_kept_out_rows_are_of_users_and_items_that_training_never_met(tmp_path, capsys, monkeypatch):
    folder = make_dataset(tmp_path / "data").parent / "TEST_DATA"
    splits = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("train", "valid")}
    command = ["kept_out", "--train", str(folder / "train.parquet"), "--valid", str(folder / "valid.parquet")]
    for wrong, message in {
        ("--users", "1.5"): "--users is 1.5, expected a share above 0 and below 1",
        ("--out", str(folder)): "is an input; inputs are never modified",
        ("--valid", str(folder / "item_info.parquet")): "item_info.parquet: column user_id is missing, found item_id",
    }.items():
        monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out"), *wrong])
        with pytest.raises(UserError, match=message):
            kept_out.main()
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out"), "--users", "0.3", "--items", "0.5"])
    kept_out.main()
    train, valid, kept = (pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("train", "valid", "kept"))
    users, items = (set(splits["train"][column]) for column in ("user_id", "item_id"))
    of_kept = set(kept["user_id"])
    assert len(of_kept) == round(0.3 * len(users))
    of_train = splits["train"].filter(pl.col("user_id").is_in(list(of_kept)))
    assert kept.drop("ID").equals(of_train) and kept["ID"].to_list() == list(range(len(kept)))
    assert not of_kept & {*train["user_id"], *valid["user_id"]}
    assert valid.equals(splits["valid"].filter(~pl.col("user_id").is_in(list(of_kept))))
    gone = items - set(train["item_id"])
    assert len(gone) >= round(0.5 * len(items))
    cold = sum(item in gone for item in kept["item_id"]) / len(kept)
    assert f"cold        {cold:.0%} of the rows of kept" in capsys.readouterr().out

"""The notebooks, executed as Kaggle executes them: inputs on a read-only mount, as deep as Kaggle puts them."""

import ast
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
from conftest import ROOT, run_script
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from mm_fibinet.demo.data import generate
from mm_fibinet.errors import UserError
from mm_fibinet.files import sha256
from mm_fibinet.kaggle import EMBEDDED, find_data
from mm_fibinet.notebook import _run_module, run
from mm_fibinet.submission import check_submission

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ITEMS = 140  # a PCA to 128 numbers needs more
TINY = ["--size", "tiny", "--items", str(ITEMS)]
CELL_SECONDS, PATIENCE = 400, 900  # many times what the slowest take


@contextlib.contextmanager
def read_only(folder):
    """The folder cannot be changed: by a mount where that is allowed, else by permissions.

    In any case what it holds is compared before and after.
    """

    def content():
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path: (sha256(path), path.stat().st_mtime_ns) for path in paths}

    before = content()
    if os.geteuid() == 0:
        bind = ["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]
        mounted = all(subprocess.run(command, capture_output=True).returncode == 0 for command in bind)
    else:
        mounted = False
        set_permissions(folder, 0o555, 0o444)
    try:
        if mounted or os.geteuid():
            with pytest.raises(OSError):
                (folder / "new").touch()
        yield
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            set_permissions(folder, 0o755, 0o644)
    assert content() == before


def set_permissions(folder, folders, files):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


def execute(name, working, monkeypatch, **parameters):
    """A notebook with these parameters in place of its own; returns what its cells have put out, by the cells' ids."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    [place] = [at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    lines = "\n".join(f"{key} = {value!r}" for key, value in {"WORKING": str(working), **parameters}.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    working.mkdir(exist_ok=True)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(working)}})
    try:
        client.execute()
    finally:
        nbformat.write(notebook, working.parent / f"{working.name}_{name}.ipynb")
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shows_picture(outputs):
    return any("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """A folder as /kaggle/input: the challenge's files, small, and a copy of the project's notebooks."""
    folder = tmp_path_factory.mktemp("kaggle")
    data = folder / "input" / "datasets" / "someone" / "www2025-mmctr-data" / "MicroLens_1M_MMCTR"
    generate(data, name="MicroLens_1M_x1", size="tiny", items=ITEMS)
    for name in ("demo.json", "test_labels.parquet", "item_truth.parquet", "user_truth.parquet", ".lock"):
        (data / name).unlink(missing_ok=True)
    shutil.copytree(ROOT / "notebooks", folder / "input" / "datasets" / "someone" / "mm-fibinet" / "notebooks")
    shutil.copytree(ROOT / "config", folder / "config")  # for these files, the number of items is theirs
    microlens = folder / "config" / "dataset_config" / "microlens.yaml"
    microlens.write_text(microlens.read_text().replace("vocab_size: 91718", f"vocab_size: {ITEMS + 1}"))
    return folder


def train(kaggle, data, epochs):
    """An earlier version's run, by the command that the notebook calls."""
    root = kaggle / "input" / "notebooks" / "someone" / "train" / "checkpoints"
    options = options_of(kaggle, epochs)
    code, _, _ = run_script(
        "run_expid", "--expid", "FiBiNET_recommended", *data.train_arguments, "--model_root", root, *options
    )
    assert code == 0
    return root / "MicroLens_1M_x1_own" / "FiBiNET_recommended"


def options_of(kaggle, epochs):
    return ["--config", str(kaggle / "config"), "--set", "batch_size=256", f"epochs={epochs}"]


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_task_1_then_training_from_an_earlier_versions_output(kaggle, monkeypatch):
    inputs, first, second = kaggle / "input", kaggle / "first", kaggle / "second"
    with read_only(inputs):
        outputs = execute("task1", first, monkeypatch, INPUT=str(inputs))
    assert "mm_fibinet is installed" in printed(outputs["setup"])
    assert "MicroLens_1M_MMCTR/item_images\n" in printed(outputs["data"])
    embedding = np.array(pl.read_parquet(first / EMBEDDED)["item_emb_d128"].to_list())
    assert embedding.shape == (ITEMS + 1, 128) and embedding[1:].any(axis=1).all()
    assert shows_picture(outputs["evidence"]) and (first / "click_evidence.png").is_file()
    assert "AUC, cold" in printed(outputs["report"]) and "data:image/jpeg" in (first / "report.html").read_text()

    attached = inputs / "notebooks" / "someone" / "task-1" / EMBEDDED
    shutil.copytree(first, attached.parent)
    earlier = train(kaggle, find_data(inputs), epochs=1)
    with read_only(inputs):
        options = options_of(kaggle, epochs=2)
        outputs = execute("train_predict_kaggle", second, monkeypatch, INPUT=str(inputs), OPTIONS=options)
    run = second / "checkpoints" / "MicroLens_1M_x1_own" / "FiBiNET_recommended"
    assert f"{run}: copied from {earlier}" in printed(outputs["train"])
    assert "Resumed at epoch 2, step 0" in printed(outputs["train"])
    assert json.loads((run / "manifest.json").read_text())["data"]["item_info"]["sha256"] == sha256(attached)
    with open(earlier / "metrics.csv") as before, open(second / "logs" / "metrics.csv") as after:
        [old], new = list(csv.DictReader(before)), list(csv.DictReader(after))
    assert [line["epoch"] for line in new] == ["1", "2"] and old.items() <= new[0].items()
    test = find_data(inputs).test
    for name in ("submission.csv", "submission.zip"):
        assert "accepted: 600 rows" in check_submission(second / name, test)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_without_microlens_on_demo_data(tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    shutil.copytree(ROOT / "notebooks", tmp_path / "input" / "mm-fibinet" / "notebooks")
    working = tmp_path / "working"
    parameters = {"INPUT": str(tmp_path / "input"), "DEMO": TINY, "OPTIONS": ["--set", "epochs=1"]}
    with read_only(tmp_path / "input"):
        outputs = execute("train_predict_kaggle", working, monkeypatch, **parameters)
    assert "not found: train.parquet" in printed(outputs["data"])
    runs = printed(outputs["runs"])
    assert runs.count("device        cpu, no GPU, 1 process") == 2
    [table] = [output.data["text/markdown"] for output in outputs["leaderboard"] if "data" in output]
    results = working / "checkpoints" / "MMCTR_demo" / "FiBiNET_demo" / "result.json"
    assert f"{json.loads(results.read_text())['metrics']['AUC']:.4f}" in table and "DIN_demo" in table
    assert shows_picture(outputs["curves"])
    assert {"MMCTR_demo_FiBiNET_demo.log", "MMCTR_demo_DIN_demo.log", "metrics.csv"} < set(os.listdir(working / "logs"))
    assert "accepted" in check_submission(working / "submission.zip", working / "demo" / "MMCTR_demo" / "test.parquet")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs_and_hold_calls_not_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            if not cell.source.startswith("%%"):
                kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
                assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.If, ast.While, ast.Try, ast.Lambda}
            assert len(cell.source.splitlines()) <= 12


def test_a_failed_command_ends_the_cell_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = "from mm_fibinet.notebook import run\nrun('train', '--nothing')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(notebook, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = notebook.cells[0].outputs
    assert "$ python -m mm_fibinet train --nothing" in printed(outputs) and "usage: mm-fibinet train" in printed(
        outputs
    )
    assert outputs[-1].traceback == ["error: mm_fibinet ended with exit code 2; its last lines above say why"]


def test_several_processes_are_started_by_torchrun(monkeypatch, capfd):
    """The command says what it was started as; torch.distributed.run is replaced by what prints its arguments."""
    monkeypatch.setattr("mm_fibinet.notebook.subprocess.Popen", fake := FakePopen())
    run("train", "--expid", "x", "--gpu", 0, processes=2)
    run("train", "--expid", "x", processes=0)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    assert fake.commands == [
        [sys.executable, *torchrun, "mm_fibinet", "train", "--expid", "x", "--gpu", "0"],
        [sys.executable, "-m", "mm_fibinet", "train", "--expid", "x"],
    ]
    assert "$ python -m torch.distributed.run --standalone" in capfd.readouterr().out


@pytest.mark.slow
def test_two_processes_train_as_one_does(dataset, tmp_path, monkeypatch):
    """On two CPU ranks, as on two GPUs but for the device."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        options = ["--config", dataset, "--model_root", root, "--gpu", -1, "--set", "net_dropout=0"]
        run("train", "--expid", "FiBiNET_test", *options, processes=processes)
        folder = root / "TEST_DATA" / "FiBiNET_test"
        assert json.loads((folder / "manifest.json").read_text())["machine"]["processes"] == processes
        found.append(json.loads((folder / "result.json").read_text())["metrics"])
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_the_stop_button_waits_for_the_command(monkeypatch, tmp_path):
    """Jupyter's interrupt reaches the command as well; the cell ends when that has ended."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = tmp_path / "until_asked.py"
    module.write_text(
        "import os, time\n"
        "try:\n    print('pid', os.getpid(), 'waits', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n"
    )
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        asked = client.execute("from mm_fibinet.notebook import _run_module\n_run_module('until_asked')")
        said = ""
        while "waits" not in said:
            said += client.get_iopub_msg(timeout=60)["content"].get("text", "")
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        while reply["parent_header"]["msg_id"] != asked:
            reply = client.get_shell_msg(timeout=60)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.split("pid ")[1].split()[0]), 0)


class FakePopen:
    """Notes what would have been started."""

    returncode = 0

    def __init__(self):
        self.commands, self.stdout = [], io.BytesIO()

    def __call__(self, command, **_):
        self.commands.append(command)
        return contextlib.nullcontext(self)


def test_a_command_is_stopped_when_its_hours_are_over(capfd, monkeypatch):
    _run_module("timeit", "-n1", "-r1", "-s", "import time", "time.sleep(600)", hours=2 / 3600)
    out = capfd.readouterr().out
    assert "stopped after" in out and "--resume goes on" in out
    monkeypatch.setattr("mm_fibinet.notebook.SECONDS_TO_STOP", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    _run_module("timeit", "-n1", "-r1", "-s", deaf, "time.sleep(600)", hours=2 / 3600)
    assert "stopped after" in capfd.readouterr().out
    _run_module("timeit", "-n1", "-r1", "print('b\xe9gun')", hours=1)
    out = capfd.readouterr().out
    assert "b\xe9gun\n1 loop" in out and "stopped" not in out
    with pytest.raises(UserError, match="timeit ended with exit code 1; its last lines"):
        _run_module("timeit", "1 / 0", hours=1)

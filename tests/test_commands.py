"""The scripts and `mm-fibinet COMMAND`: one command line each, help without waiting."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script

import model_zoo
from mm_fibinet import commands
from mm_fibinet.commands.arguments import COMMANDS

SCRIPTS = {
    "train": "run_expid", "predict": "prediction", "embed": "build_item_emb", "benchmark": "run_benchmark",
    "tune": "run_param_tuner", "prepare": "build_dataset", "export": "export_onnx",
}  # fmt: skip
# What is run by python -m, but for the loader's module, which is torch's itself.
MODULES = ["data_check", "submission", "demo.data", "demo.score", "items.report", "scorer", "new_items", "wheelhouse"]
HEAVY = ("torch", "pandas", "polars", "pyarrow", "numpy", "fuxictr", "pydantic", "scipy", "h5py")


def loaded_after(code, *arguments):
    """(exit code, output, the heavy modules that were loaded by then)."""
    shown = f"print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    code = f"import sys\ntry:\n    {code}\nfinally:\n    {shown}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    *printed, heavy = done.stderr.splitlines()
    return done.returncode, done.stdout + "\n".join(printed), heavy.split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_wrong_arguments_load_nothing_heavy(name):
    code = f"import {SCRIPTS[name]}; from mm_fibinet.errors import run_cli; run_cli({SCRIPTS[name]}.main)"
    code_of_help, printed, heavy = loaded_after(code, "--help")
    assert code_of_help == 0 and COMMANDS[name].description in " ".join(printed.split()) and not heavy
    code_of_mistake, printed, heavy = loaded_after(code, "--no-such-option")
    assert code_of_mistake == 2 and not heavy, printed


@pytest.mark.parametrize("module", MODULES)
def test_help_of_a_module_waits_for_neither_torch_nor_polars(module):
    code = f"import runpy; runpy.run_module('mm_fibinet.{module}', run_name='__main__')"
    code_of_help, printed, heavy = loaded_after(code, "--help")
    assert code_of_help == 0 and f"python -m mm_fibinet.{module}" in printed
    assert not {"torch", "polars", "pandas"} & set(heavy)


def test_the_console_command_lists_its_commands_and_their_options():
    code = "from mm_fibinet.__main__ import entry_point; entry_point()"
    exit_code, printed, heavy = loaded_after(code, "--help")
    assert exit_code == 0 and not heavy
    for name, command in COMMANDS.items():
        assert name in printed.split() and " ".join(command.description.split()[:4]) in " ".join(printed.split())
        exit_code, of_command, heavy = loaded_after(code, name, "--help")
        assert exit_code == 0 and f"mm-fibinet {name}" in of_command and not heavy
    assert loaded_after(code, "nothing")[0] == 2


@pytest.mark.parametrize("gpus", [[0, 0], [-1, 0], [1, -1, -1]])
def test_gpus_that_cannot_be_meant(gpus):
    code = "import run_expid; from mm_fibinet.errors import run_cli; run_cli(run_expid.main)"
    exit_code, printed, heavy = loaded_after(code, "--expid", "X", "--gpu", *map(str, gpus))
    assert exit_code == 2 and not heavy and f"error: --gpu {' '.join(map(str, gpus))}: expected" in printed


def test_several_gpus_under_torchrun_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("mm_fibinet.ranks.is_rank", lambda: True)
    monkeypatch.setattr("mm_fibinet.errors._leave", sys.exit)
    code, _, err = run_script("run_expid", "--expid", "FiBiNET_demo", "--gpu", 0, 1, capsys=capsys)
    assert code == 2 and err == "error: --gpu has 2 GPUs under torchrun, which starts the processes: give it one\n"


@pytest.mark.parametrize(("rank", "times"), [(None, 1), ("0", 1), ("1", 0)])
def test_of_several_processes_one_is_warned(rank, times, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    code = "import warnings, run_expid; from mm_fibinet import commands; from mm_fibinet.commands import list as c; "
    code += "c.run = lambda *_: warnings.warn('old name'); commands.main('list', run_expid.HOME, [])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("UserWarning: old name") == times


def test_list_names_every_experiment_and_model(dataset, capsys):
    code, out, _ = run_script("mm_fibinet.__main__", "list", "--config", dataset, capsys=capsys)
    assert code == 0
    experiments, models = out.split("\n\n")
    heads, *rows = [line.split() for line in experiments.splitlines()]
    assert heads == ["experiment", "model", "data", "set"]
    assert [row[:2] for row in rows] == [["FiBiNET_test", "FiBiNET"], ["FiBiNET_test_no_emb", "FiBiNET"]]
    _, *lines = [line.split(maxsplit=1) for line in models.splitlines()]
    assert [name for name, _ in lines] == sorted(model_zoo.__all__, key=str.lower)
    assert ["DIN", "Target attention over the history, then an MLP."] in lines
    assert ["QIN_variety_v9", "another name of QIN"] in lines
    assert run_script("run_expid", "--list", "--config", dataset, capsys=capsys) == (0, out, "")


def test_both_homes_have_the_same_experiments():
    """The repository's scripts, and pip's command: here an editable installation, which reads the same folder."""
    repository, installed = commands.Home.repository(ROOT), commands.Home.installed()
    assert repository.import_models().__all__ == installed.import_models().__all__
    for home in (repository, installed):
        assert (home.config / "model_config").is_dir()
        assert Path(home.train[0]) == Path(sys.executable)


def test_models_of_another_clone_that_is_installed_are_not_mixed_in(tmp_path):
    """As pip install -e of one clone says where they are, and the commands are started in a second one."""
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "__init__.py").touch()
    code = f"""
import importlib.util, sys
class Installed:
    def find_spec(name, path=None, target=None):
        if name == "mm_fibinet.model_zoo":
            return importlib.util.spec_from_file_location(name, {str(tmp_path / "model_zoo" / "__init__.py")!r})
sys.meta_path.insert(0, Installed)
from mm_fibinet.commands import Home
print(Home.installed().import_models().__file__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "model_zoo" / "__init__.py"), done.stderr


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=1", "--master_port=0"]


@pytest.mark.skipif(sys.platform != "linux", reason="what OpenMP has read is told by GNU's alone")
@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        (["run_expid.py"], None, "PASSIVE"),
        (["run_expid.py"], "active", "ACTIVE"),
        (["-m", "mm_fibinet", "train"], None, "PASSIVE"),
        ([*TORCHRUN, "run_expid.py"], None, "PASSIVE"),
        (["benchmarks/speed.py"], None, "PASSIVE"),
    ],
)
def test_threads_wait_without_spinning(command, given, expected, monkeypatch, tmp_path):
    """As OpenMP says itself when torch loads it; the last process that does is the command's."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "TRUE")
    arguments = (
        ["--gpu", "0", "--expid", "Nope", "--config", tmp_path] if "speed" not in command[0] else ["--gpu", "99"]
    )
    line = [sys.executable, *command, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    read = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert done.returncode and f"'{expected}'" in read[-1], done.stderr


def test_the_runs_of_a_benchmark_inherit_it(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is as before when the test is over
    monkeypatch.delenv("OMP_WAIT_POLICY")
    probe = (sys.executable, "-c", "import os; print(os.environ['OMP_WAIT_POLICY'])")
    arguments = ["--expids", "FiBiNET_test", "--out", str(tmp_path / "out")]
    home = commands.Home("model_zoo", dataset, probe, probe, probe)
    assert commands.main("benchmark", home, arguments) == 1  # there is no result
    (printed,) = tmp_path.rglob("output.log")
    assert printed.read_text().split() == ["PASSIVE"], capsys.readouterr()

"""The commands as pip installs them: a wheel unpacked away from the repository, called from a folder of its own."""

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("setuptools")
PACKED = ("mm_fibinet", "model_zoo", "config", "pyproject.toml", "README.md", "LICENSE")
DEMO = Path("data/demo")  # as the config has it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy: a build leaves its folders beside pyproject.toml."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "-w", out, source], check=True, capture_output=True)
    [made] = out.glob("mm_fibinet-*.whl")
    return made


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Run Python on the unpacked wheel in a folder with neither models nor configs: the lines it printed."""
    installed, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(installed)

    def run(*arguments):
        variables = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=elsewhere, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run.installed, run.folder = installed, elsewhere
    return run


def test_the_wheel_holds_models_and_configs_inside_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mm_fibinet"}
    for folder, inside in (
        ("model_zoo", "*.py"),
        ("config", "*.yaml"),
        ("mm_fibinet", "*.py"),
        ("mm_fibinet", "*.html"),
        ("mm_fibinet", "*.js"),
    ):
        found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(inside)}
        assert found and {name if folder == "mm_fibinet" else f"mm_fibinet/{name}" for name in found} <= names


def test_fuxictrs_own_model_zoo_stays_importable_beside(command):
    code = "import mm_fibinet.model_zoo as ours, model_zoo as theirs, mm_fibinet; print(mm_fibinet.__file__, "
    code += "ours.FiBiNET.__module__, theirs.__path__[0], sep='\\n')"
    ours, module, theirs = command("-c", code)
    assert ours.startswith(str(command.installed)) and module == "mm_fibinet.model_zoo.fibinet"
    assert Path(theirs).parent not in (ROOT, command.installed, command.installed / "mm_fibinet")


@pytest.mark.slow
def test_the_whole_way_by_the_installed_command(command):
    listed = command("-m", "mm_fibinet", "list")
    shipped = command("-m", "mm_fibinet", "list", "--config", ROOT / "config")
    assert listed == shipped and any(line.split()[0] == "FiBiNET_demo" for line in listed)

    splits = DEMO / "MMCTR_demo"
    command("-m", "mm_fibinet.demo.data", "--size", "tiny", "--items", 150, "--no_images", "--output", DEMO)
    command(
        "-m", "mm_fibinet", "embed", "--item_info", splits / "item_info.parquet", "--item_feature",
        DEMO / "item_feature.parquet", "--image_encoder", "none", "--output", DEMO / "embedded" / "item_info.parquet",
    )  # fmt: skip
    command("-m", "mm_fibinet", "benchmark", "--expids", "LR_demo", "--set", "epochs=1", "batch_size=512")
    with open(command.folder / "leaderboard" / "leaderboard.csv", newline="") as opened:
        [row] = csv.DictReader(opened)
    assert row["expid"] == "LR_demo" and 0 < float(row["auc"]) < 1  # its run was `python -m mm_fibinet train`
    run = command.folder / "leaderboard" / "runs" / "LR_demo" / "2025"
    *_, accepted = command("-m", "mm_fibinet", "predict", "--expid", "LR_demo", "--model_root", run)
    assert accepted.endswith("submission/LR_demo.zip: accepted: 600 rows, Task1&2")

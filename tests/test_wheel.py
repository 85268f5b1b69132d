"""What is distributed, and the commands as pip installs them: a wheel unpacked away from the repository."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("setuptools")
PACKED = ("mm_fibinet", "model_zoo", "config", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
ONLY_IN_THE_SOURCES = (
    "MANIFEST.in", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "data/README.md", "docs/install.md",
    "examples/serve.py", "run_expid.py", "docs/quality.png", "tests/test_wheel.py", "tests/golden/muse.json",
)  # fmt: skip
DEMO = Path("data/demo")  # as the config has it


def build(kind, source, out):
    """Build "wheel" or "sdist" without the network: its path."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the repository, of what could be packed: a build leaves its folders beside pyproject.toml."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKED, *ONLY_IN_THE_SOURCES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name)
    (source / "data" / "demo.parquet").write_bytes(bytes(10))
    return source


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", sources, folder)) as packed:
        packed.extractall(folder)
    [unpacked] = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


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


def test_the_source_distribution_is_what_a_user_needs_and_no_more(sdist):
    files = {path.relative_to(sdist).as_posix(): path.stat().st_size for path in sdist.rglob("*") if path.is_file()}
    left_out = {"docs/quality.png", "tests/test_wheel.py", "tests/golden/muse.json"}
    assert {name for name in ONLY_IN_THE_SOURCES if name not in files} == left_out
    assert max(files.values()) < 100_000, max(files, key=files.get)
    assert not [name for name in files if name.endswith((".pyc", ".parquet", ".png")) or name.startswith("tests/")]


def test_the_wheel_of_the_source_distribution_is_that_of_the_repository(sdist, wheel, tmp_path):
    def contents(path):
        with zipfile.ZipFile(path) as packed:
            return {name: hashlib.sha256(packed.read(name)).hexdigest() for name in packed.namelist()}

    assert contents(build("wheel", sdist, tmp_path)) == contents(wheel)


def test_licence_and_notices_are_in_both(sdist, wheel):
    with zipfile.ZipFile(wheel) as packed:
        inside = {Path(name).name: packed.read(name) for name in packed.namelist() if "/licenses/" in name}
        [metadata] = (packed.read(name).decode() for name in packed.namelist() if name.endswith("/METADATA"))
    assert inside == {name: (ROOT / name).read_bytes() for name in ("LICENSE", "NOTICE")}
    assert inside == {name: (sdist / name).read_bytes() for name in inside}
    assert "License-Expression: Apache-2.0" in metadata.splitlines()


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

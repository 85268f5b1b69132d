"""A published solution, in miniature, runs on our loader: what the check says must change is all that must.

The scripts of tests/published are run as their users run them, in a process of their own, on FuxiCTR 2.3.7, for which
they were written, where pip can get it, and on the installed release. Their results with their own, row-wise loader
are what ours must give.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_dataset

from mm_fibinet.repository_check import check_repository

MINIATURE = Path(__file__).resolve().parent / "published"
OLD = "2.3.7"
OLD_PACKAGES = (f"fuxictr=={OLD}", "keras_preprocessing==1.1.2", "six")
# FuxiCTR up to 2.3.9 says np.Inf, which numpy 2 no longer has; the packages that are installed need numpy 2.
NUMPY_NAME = "import numpy\n\nnumpy.Inf = numpy.inf\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    make_dataset(folder, rows=400)
    return folder


def clone(data: Path, folder: Path) -> Path:
    """The miniature with its data."""
    shutil.copytree(MINIATURE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    (folder / "data" / "TEST_DATA").symlink_to(data / "TEST_DATA")
    return folder


def apply(changes, folder: Path) -> None:
    """Make the changes as a user would: line by line."""
    for change in sorted(changes, key=lambda change: -change.first):
        lines = (folder / change.path).read_text().split("\n")
        start, stop = change.first - 1, change.first - 1 + len(change.before)
        assert lines[start:stop] == change.before
        lines[start:stop] = change.after
        (folder / change.path).write_text("\n".join(lines))


def run_expids(*folders: Path, packages: Path | None = None) -> list[dict]:
    """Run the script in each folder, at the same time; what they found."""
    path = os.pathsep.join(map(str, ([packages] if packages else []) + [ROOT]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run_expid.py", "--expid", "MeanPooling"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = [subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) for folder in folders]
    for process in started:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    return [json.loads((folder / "result.json").read_text()) for folder in folders]


def assert_same_run(found: dict, expected: dict) -> None:
    """The same AUC, and the same weights as far as their sums tell; by our loader."""
    assert found["loader"] == "mm_fibinet.dataloader" != expected["loader"]
    assert found["AUC"] == pytest.approx(expected["AUC"], abs=1e-6)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5)


def old_fuxictr() -> Path:
    """A folder with FuxiCTR 2.3.7 and what it needs, outside of the repository; the environment stays as it is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mm-fibinet-tests"
    folder = cache / f"fuxictr-{OLD}-py{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.is_dir():
        fresh = cache / f"{folder.name}.{os.getpid()}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        try:
            done = subprocess.run(
                [*pip, "--only-binary", ":all:", "--target", fresh, *OLD_PACKAGES],
                capture_output=True,
                text=True,
                timeout=120,
            )
            reason = done.stderr.strip().splitlines()[-1:] if done.returncode else None
        except subprocess.TimeoutExpired:
            reason = ["no answer within two minutes"]
        if reason is not None:
            shutil.rmtree(fresh, ignore_errors=True)
            pytest.skip(f"pip cannot get FuxiCTR {OLD}: {' '.join(reason)}")
        (fresh / "sitecustomize.py").write_text(NUMPY_NAME)
        fresh.rename(folder)
    return folder


@pytest.mark.slow
def test_the_changes_that_the_check_names_make_it_run_on_the_installed_fuxictr(data, tmp_path):
    folder = clone(data, tmp_path / "repository")
    found = check_repository(folder)
    changed = {str(change.path): [line.strip() for line in change.after] for change in found.changes}
    assert found.notes == []
    assert [str(change.path) for change in found.changes] == [
        "fuxictr_version.py", "run_expid.py", "run_expid.py", "config/dataset_config.yaml",
    ]  # fmt: skip
    assert changed["config/dataset_config.yaml"][0].endswith(
        "type: embedding, pretrain_dim: 16, source: item, embedding_dim: 16}"
    )

    own = clone(data, tmp_path / "own")  # all but the loader
    apply([change for change in found.changes if "mm_fibinet" not in "".join(change.after)], own)
    apply(found.changes, folder)
    assert check_repository(folder).changes == []
    assert_same_run(*run_expids(folder, own))


@pytest.mark.slow
def test_one_changed_import_makes_it_run_on_the_fuxictr_it_was_written_for(data, tmp_path):
    packages = old_fuxictr()
    own, ours = clone(data, tmp_path / "own"), clone(data, tmp_path / "ours")
    found = check_repository(ours, OLD)
    assert [change.after for change in found.changes] == [["from mm_fibinet.dataloader import MMCTRDataLoader"]]
    apply(found.changes, ours)
    assert_same_run(*run_expids(ours, own, packages=packages))

"""notebooks/install.sh asks pip for the right things; a Python that notes what it is asked stands in for the real."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

STUB = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$*" in
    "-c import mm_fibinet") [ -n "$INSTALLED" ] ;;
    "-m pip list"*) printf '%s\\n' torch==2.10.0+cu128 numpy==2.0.2 setuptools==65 wheel==0.45 pip==24.1 wheelie==1.4 ;;
    "-m pip install"*)
        echo "pinned: $(tr '\\n' ' ' <"$(sed 's/.*--constraint \\([^ ]*\\).*/\\1/' <<<"$*")")" >>"$NOTES"
        source=${*: -1}
        source=${source%\\[*}
        if [ -f "$source/pyproject.toml" ]; then touch "$source/build"; echo builds >>"$NOTES"; fi ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """Runs a read-only copy of install.sh: (exit code, output, what the stand-in was asked)."""
    copy, notes = tmp_path / "input" / "mm-fibinet", tmp_path / "notes"
    (copy / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "install.sh", copy / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(**environment):
        environment = {**os.environ, "PYTHON": str(stub), "NOTES": str(notes), "INSTALLED": "", **environment}
        script = ["bash", copy / "notebooks" / "install.sh", tmp_path / "input"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, notes.read_text().splitlines()

    yield run
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)


def asked_of_pip(notes):
    [line] = [line for line in notes if line.startswith("-m pip install")]
    return line


def test_what_the_image_has_is_pinned_and_the_copy_is_built_elsewhere(install):
    code, out, notes = install()
    assert code == 0, out
    assert asked_of_pip(notes).endswith("/source[encoders,rar]") and "--no-index" not in asked_of_pip(notes)
    assert "pinned: torch==2.10.0+cu128 numpy==2.0.2 wheelie==1.4 " in notes and "builds" in notes


@pytest.mark.parametrize(
    ("packed", "extras"), [(["fuxictr-2.3.10"], "encoders"), (["libarchive_c-5.1"], "encoders,rar")]
)
def test_from_a_wheelhouse_the_network_is_not_asked(install, tmp_path, packed, extras):
    wheels = tmp_path / "input" / "notebooks" / "me" / "wheelhouse"
    wheels.mkdir(parents=True)
    for name in ["mm_fibinet-0.1.0", *packed]:
        (wheels / f"{name}-py3-none-any.whl").touch()
    code, out, notes = install()
    assert code == 0 and f"installing from {wheels}, without the network" in out
    assert asked_of_pip(notes).endswith(f"--no-index --find-links {wheels} mm-fibinet[{extras}]")
    assert "pinned: torch==2.10.0+cu128 numpy==2.0.2 wheelie==1.4 " in notes and "builds" not in notes


def test_nothing_is_done_twice(install):
    assert install(INSTALLED="yes") == (0, "mm_fibinet is installed\n", ["-c import mm_fibinet"])

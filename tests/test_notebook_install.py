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
    *" --report "*) printf '{"install": [%s]}' "$REPORT" >"$(sed 's/.*--report \\([^ ]*\\).*/\\1/' <<<"$*")" ;;
    "-m pip install"*)
        echo "pinned: $(tr '\\n' ' ' <"$(sed 's/.*--constraint \\([^ ]*\\).*/\\1/' <<<"$*")")" >>"$NOTES"
        source=${*: -1}
        for word in "$@"; do case $word in */source\\[*) source=${word%\\[*} ;; esac; done
        touch "$source/build" && [ -f "$source/pyproject.toml" ] && echo "builds" >>"$NOTES" ;;
    "- "*) shift; exec REAL - "$@" ;;
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
    stub.write_text(STUB.replace("REAL", shutil.which("python3")))
    stub.chmod(0o755)

    def run(*arguments, **environment):
        environment = {**os.environ, "PYTHON": str(stub), "NOTES": str(notes), "INSTALLED": "", **environment}
        script = ["bash", copy / "notebooks" / "install.sh", *arguments]
        done = subprocess.run(script, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, notes.read_text().splitlines()

    yield run
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)


def test_what_the_image_has_is_pinned_and_the_copy_is_built_elsewhere(install, tmp_path):
    code, out, notes = install(tmp_path / "input")
    assert code == 0, out
    [asked] = [line for line in notes if line.startswith("-m pip install")]
    assert asked.endswith("/source[encoders,rar]") and "--no-index" not in asked
    assert "pinned: torch==2.10.0+cu128 numpy==2.0.2 wheelie==1.4 " in notes and "builds" in notes


def test_from_a_wheelhouse_the_network_is_not_asked(install, tmp_path):
    wheels = tmp_path / "input" / "datasets" / "me" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "fuxictr-2.3.10-py3-none-any.whl").touch()
    code, out, notes = install(tmp_path / "input")
    assert code == 0 and f"installing from {wheels}, without the network" in out
    [asked] = [line for line in notes if line.startswith("-m pip install")]
    assert asked.endswith(f"--no-index --find-links {wheels}")


def test_nothing_is_done_twice(install, tmp_path):
    assert install(tmp_path / "input", INSTALLED="yes") == (0, "mm_fibinet is installed\n", ["-c import mm_fibinet"])


def test_a_wheelhouse_holds_what_the_image_lacks(install, tmp_path):
    entries = [f'{{"metadata": {{"name": "{name}", "version": "1.5"}}}}' for name in ("fuxictr", "mm-fibinet", "timm")]
    (tmp_path / "wheels").mkdir()
    code, out, notes = install("--wheels", tmp_path / "wheels", REPORT=", ".join(entries))
    assert code == 0, out
    assert notes[-1].endswith(f"--no-deps --wheel-dir {tmp_path}/wheels setuptools fuxictr==1.5 timm==1.5")
    assert not any(line.startswith("-m pip install --quiet") for line in notes)

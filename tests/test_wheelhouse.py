"""What is packed for an installation without the internet. pip itself is not run: it would need the internet."""

import json

import pytest
from conftest import run_script

from mm_fibinet import wheelhouse


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A pip that plans three packages and writes a file for each wheel; its command lines."""
    calls = []
    planned = [("mm-fibinet", "0.1.0"), ("fuxictr", "2.3.10"), ("ftfy", "6.3.1")]

    def answer(*arguments):
        calls.append(arguments)
        if arguments[0] == "install":
            report = arguments[arguments.index("--report") + 1]
            entries = [{"metadata": {"name": name, "version": version}} for name, version in planned]
            with open(report, "w") as opened:
                json.dump({"install": entries}, opened)
        else:
            folder = tmp_path / "wheelhouse"
            folder.mkdir()
            for name, version in planned:
                (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(bytes(1_000_000))

    monkeypatch.setattr(wheelhouse, "_pip", answer)
    return calls


def test_what_is_not_installed_is_packed_and_nothing_else(pip, tmp_path, capsys):
    output = tmp_path / "wheelhouse"
    code, out, _ = run_script("mm_fibinet.wheelhouse", "--output", output, capsys=capsys)
    assert code == 0
    assert f"{output}: 3 wheels, 3 MB" in out and f'--no-index --find-links {output} "mm-fibinet[encoders]"' in out
    plan, pack = pip
    assert "--dry-run" in plan and plan[-1] == f"{wheelhouse.CLONE}[encoders]"
    assert "--no-deps" in pack and pack[-3:] == (str(wheelhouse.CLONE), "fuxictr==2.3.10", "ftfy==6.3.1")


def test_it_is_run_in_a_clone(pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wheelhouse, "CLONE", tmp_path)
    code, _, err = run_script("mm_fibinet.wheelhouse", capsys=capsys)
    assert code == 2 and "no pyproject.toml there; run this in a clone" in err and not pip

"""The README's commands for MicroLens, as they stand there, on small files in the places that data/README.md names."""

import re
import shlex
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import ROOT, run_script

from mm_fibinet.demo.data import generate
from mm_fibinet.demo.score import score

ITEMS, TEST_ROWS = 140, 600


def commands(heading):
    """The command lines below a heading of the README, without their comments, split as a shell splits them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL).group(1)
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]


def run(line, capsys):
    """A line of the README in this process: (script or module, exit code, stdout, stderr)."""
    program, *arguments = line
    assert program == "python"
    script, *arguments = arguments[1:] if arguments[0] == "-m" else arguments
    return script, *run_script(script.removesuffix(".py"), *arguments, capsys=capsys)


@pytest.mark.slow
def test_microlens_in_five_commands(tmp_path, capsys, monkeypatch):
    """A newcomer has to know no flag beside those shown; for these files, the config's number of items is theirs."""
    data = tmp_path / "data"
    generate(data, name="MicroLens_1M_x1", items=ITEMS, users=400, train_rows=6000, valid_rows=600, test_rows=TEST_ROWS)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    microlens = tmp_path / "config" / "dataset_config" / "microlens.yaml"
    microlens.write_text(microlens.read_text().replace("vocab_size: 91718", f"vocab_size: {ITEMS + 1}"))
    monkeypatch.chdir(tmp_path)
    lines = commands("MicroLens in five commands")
    assert len(lines) == 5
    for line in lines:
        line = ["-1" if before == "--gpu" else word for before, word in zip(["", *line], line, strict=False)]
        config = ["--config", "config"] if "run_expid.py" in line else []
        script, code, out, err = run([*line, *config], capsys)
        assert code == 0, (script, out, err)
    assert f"accepted: {TEST_ROWS} rows, Task1&2" in out

    info = pl.read_parquet(data / "own" / "item_info.parquet")
    assert np.array(info["item_emb_d128"].to_list()).shape == (ITEMS + 1, 128)
    assert score(tmp_path / "submission" / "FiBiNET_recommended.zip", data)["all"] > 0.55

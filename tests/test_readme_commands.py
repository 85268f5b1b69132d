"""The README's commands for MicroLens, as they stand there, on small files in the places that data/README.md names."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from mm_fibinet.demo.data import generate
from mm_fibinet.demo.score import score

ITEMS, TEST_ROWS = 140, 600


@pytest.mark.slow
@pytest.mark.documented("README.md", "MicroLens in five commands")
def test_microlens_in_five_commands(documented, tmp_path, capsys, monkeypatch):
    """A newcomer has to know no flag beside those shown; for these files, the config's number of items is theirs."""
    data = tmp_path / "data"
    generate(data, name="MicroLens_1M_x1", items=ITEMS, users=400, train_rows=6000, valid_rows=600, test_rows=TEST_ROWS)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    microlens = tmp_path / "config" / "dataset_config" / "microlens.yaml"
    microlens.write_text(microlens.read_text().replace("vocab_size: 91718", f"vocab_size: {ITEMS + 1}"))
    monkeypatch.chdir(tmp_path)
    assert len(documented.commands) == 5
    for command in documented.commands:
        config = ["--config", "config"] if "run_expid.py" in command.words else []
        done = documented.run(command, *config, capsys=capsys)
        assert done.code == 0, (command, done.out, done.err)
    assert f"accepted: {TEST_ROWS} rows, Task1&2" in done.out

    info = pl.read_parquet(data / "own" / "item_info.parquet")
    assert np.array(info["item_emb_d128"].to_list()).shape == (ITEMS + 1, 128)
    assert score(tmp_path / "submission" / "FiBiNET_recommended.zip", data)["all"] > 0.55


@pytest.mark.slow
@pytest.mark.documented("README.md", "Ten lines of Python")
def test_ten_lines_of_python(documented, tmp_path, capsys, monkeypatch):
    """As printed, on a small data set in the demo's place; the metrics are those of scikit-learn on its scores."""
    generate(tmp_path / "data" / "demo", items=ITEMS, users=300, train_rows=4000, valid_rows=600, test_rows=TEST_ROWS)
    info = pl.read_parquet(tmp_path / "data" / "demo" / "MMCTR_demo" / "item_info.parquet")
    embedding = np.random.default_rng(0).normal(size=(ITEMS + 1, 128)).astype(np.float32)
    embedding[0] = 0
    (tmp_path / "data" / "demo" / "embedded").mkdir()
    columns = [pl.Series(name, embedding) for name in ("item_emb_d128", "txt_emb_d128", "img_emb_d128")]
    info.with_columns(columns).write_parquet(tmp_path / "data" / "demo" / "embedded" / "item_info.parquet")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)

    [block] = documented.blocks
    assert len([line for line in block.code.splitlines() if line.strip()]) <= 11
    names = documented.execute(block)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1].replace("'", '"'))
    labels = pl.read_parquet(names["params"]["valid_data"])["label"].to_numpy()
    assert printed["AUC"] == pytest.approx(roc_auc_score(labels, names["model"].predict(names["valid"])), abs=6e-4)

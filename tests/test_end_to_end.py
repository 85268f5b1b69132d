"""From raw titles and covers to a scored submission, by the scripts, on generated data; and on the real posters."""

import json
import subprocess
import zipfile

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import REAL_DATA, ROOT, run_script
from doc_pages import shell
from documented import start
from sklearn.metrics import roc_auc_score

from mm_fibinet.demo.score import score

ITEMS = 150


SIZES = ["--items", ITEMS, "--users", 600, "--train_rows", 9000, "--valid_rows", 1000, "--test_rows", 1500]
SMALL = {
    "mm_fibinet.demo.data": [*SIZES, "--max_len", 32],
    "run_expid.py": ["--set", "epochs=2", "batch_size=128", "verbose=0"],
}


def listing(folder):
    """Every file of a folder with its size and time."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.documented("README.md", "Two commands")
@pytest.mark.documented("docs/index.md", "Start")
@pytest.mark.documented("docs/zh.md", "安装与演示", "demo")
def test_make_demo(documented, tmp_path, capsys, monkeypatch):
    """The commands that make runs, as it prints them, on a smaller set."""
    make, *same = documented.commands
    assert {each.words for each in (make, *same)} == {("make", "demo")}
    dry = [*make.words, "-n", "-B", "VENV=bin"]  # -B: as where nothing has been built
    printed = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for each in (make, *same):
        documented.done(each)
    lines = [
        c.words for c in shell(printed, "Makefile", 1, "", "") if c.words[0] == "bin/python" and "pip" not in c.words
    ]
    monkeypatch.chdir(tmp_path)
    demo, said, inputs = tmp_path / "data" / "demo", {}, {}
    for _, *words in lines:
        program, *arguments = words[1:] if words[0] == "-m" else words
        code = start(program.removesuffix(".py"), [*arguments, *map(str, SMALL.get(program, []))])
        said[program], err = capsys.readouterr()
        assert code == 0, (program, err)
        inputs = inputs or listing(demo)
    programs = ["mm_fibinet.demo.data", "build_item_emb.py", "run_expid.py", "prediction.py", "mm_fibinet.demo.score"]
    assert list(said) == programs
    assert {path: listing(demo)[path] for path in inputs} == inputs

    table = pq.read_table(demo / "embedded" / "item_info.parquet")
    levels, embeddings = ["likes_level", "views_level"], ["item_emb_d128", "txt_emb_d128", "img_emb_d128"]
    assert table.column_names == ["item_id", "item_tags", *levels, *embeddings]
    embedding = np.array(table["item_emb_d128"].to_pylist())
    assert embedding.shape == (ITEMS + 1, 128)
    assert not embedding[0].any() and embedding[1:].any(axis=1).all()

    manifest = json.loads((tmp_path / "checkpoints" / "MMCTR_demo" / "FiBiNET_demo" / "manifest.json").read_text())
    assert manifest["seed"] == 2025
    assert manifest["features"]["item_emb_d128"]["pretrain_dim"] == 128
    assert {"torch", "fuxictr", "python"} <= set(manifest["versions"])
    assert len(manifest["data"]["train_data"]["sha256"]) == 64
    assert "AUC: 0." in (tmp_path / "checkpoints" / "config.csv").read_text()

    submission = tmp_path / "submission" / "FiBiNET_demo.zip"
    test = demo / "MMCTR_demo" / "test.parquet"
    code, out, _ = run_script("mm_fibinet.submission", "check", submission, "--test", test, capsys=capsys)
    assert code == 0 and "accepted: 1500 rows, Task1&2" in out
    with zipfile.ZipFile(submission) as archive:
        predicted = pl.read_csv(archive.read("prediction.csv"))
    labels = pl.read_parquet(demo / "test_labels.parquet")
    expected = roc_auc_score(labels["label"], predicted["Task1&2"])
    assert score(submission, demo)["all"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0.6
    assert f"{expected:.4f}" in said["mm_fibinet.demo.score"] and "best possible" in said["mm_fibinet.demo.score"]


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the research data is not here")
def test_real_titles_make_a_valid_submission(tmp_path, capsys):
    """A few lines of config, text alone and a small model, to stay quick; docs/results.md has the full runs."""
    data = REAL_DATA / "ML100K_MM"
    code, _, err = run_script(
        "build_item_emb",
        "--item_info", data / "item_info.parquet",
        "--item_feature", REAL_DATA / "item_feature.parquet",
        "--image_encoder", "none", "--emb_dim", "32",
        "--output", tmp_path / "item_info.parquet",
        capsys=capsys,
    )  # fmt: skip
    assert code == 0, err
    (tmp_path / "dataset_config.yaml").write_text(f"""
ML100K_MM:
    train_data: {data}/train.parquet
    valid_data: {data}/valid.parquet
    test_data: {data}/test.parquet
    item_info: {tmp_path}/item_info.parquet
    feature_cols:
        - {{name: [user_id, item_seq], type: meta}}
        - {{name: [likes_level, views_level], type: categorical, vocab_size: 11}}
        - {{name: item_id, type: categorical, source: item}}
        - {{name: item_tags, type: sequence, source: item}}
        - {{name: item_emb_d32, type: embedding, source: item}}
""")
    (tmp_path / "model_config.yaml").write_text("""
small: {model: FiBiNET, dataset_id: ML100K_MM, learning_rate: 5e-3, embedding_dim: 8, hidden_units: [32],
        batch_size: 2048, id_dropout: 0.3, epochs: 1, max_len: 32}
""")
    arguments = ["--config", tmp_path, "--expid", "small", "--model_root", tmp_path / "runs"]
    code, out, err = run_script("run_expid", *arguments, capsys=capsys)
    assert code == 0, err
    auc = float(out.rsplit("AUC: ", 1)[1].split()[0])
    assert auc > 0.75
    code, out, err = run_script("prediction", *arguments, "--out", tmp_path / "out.zip", capsys=capsys)
    assert code == 0, err
    assert "accepted: 13108 rows" in out

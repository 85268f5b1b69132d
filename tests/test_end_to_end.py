"""From raw titles and covers to a scored submission, by the scripts, on generated data; and on the real posters."""

import json
import zipfile

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import REAL_DATA, ROOT, run_script
from sklearn.metrics import roc_auc_score

from mm_fibinet.demo.data import generate
from mm_fibinet.demo.score import score

ITEMS = 150


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Demo data small enough for a test, its folder."""
    folder = tmp_path_factory.mktemp("demo")
    generate(folder / "in", items=ITEMS, users=600, train_rows=9000, valid_rows=1000, test_rows=1500, max_len=32)
    return folder


def listing(folder):
    """Every file of a folder with its size and time."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def settings(demo):
    """The shipped demo experiment, pointed at the small data."""
    data = demo / "in" / "MMCTR_demo"
    return [
        "--model_root", demo / "runs", "--data_root", demo / "in",
        "--set", f"item_info={demo}/out/item_info.parquet", "epochs=2", "batch_size=128", "verbose=0",
        f"train_data={data}/train.parquet",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_whole_way(demo, capsys, monkeypatch):
    inputs = listing(demo / "in")
    code, out, err = run_script(
        "build_item_emb",
        "--item_info", demo / "in" / "MMCTR_demo" / "item_info.parquet",
        "--item_feature", demo / "in" / "item_feature.parquet",
        "--images", demo / "in" / "item_images",
        "--output", demo / "out" / "item_info.parquet",
        capsys=capsys,
    )  # fmt: skip
    assert code == 0, err
    table = pq.read_table(demo / "out" / "item_info.parquet")
    levels, embeddings = ["likes_level", "views_level"], ["item_emb_d128", "txt_emb_d128", "img_emb_d128"]
    assert table.column_names == ["item_id", "item_tags", *levels, *embeddings]
    embedding = np.array(table["item_emb_d128"].to_pylist())
    assert embedding.shape == (ITEMS + 1, 128)
    assert not embedding[0].any() and embedding[1:].any(axis=1).all()

    code, _, err = run_script("run_expid", "--expid", "FiBiNET_demo", *settings(demo), capsys=capsys)
    assert code == 0, err
    run = demo / "runs" / "MMCTR_demo"
    manifest = json.loads((run / "FiBiNET_demo" / "manifest.json").read_text())
    assert manifest["seed"] == 2025
    assert manifest["features"]["item_emb_d128"]["pretrain_dim"] == 128
    assert {"torch", "fuxictr", "python"} <= set(manifest["versions"])
    assert len(manifest["data"]["train_data"]["sha256"]) == 64
    assert "AUC: 0." in (demo / "runs" / "config.csv").read_text()

    monkeypatch.chdir(demo)
    code, out, err = run_script("prediction", "--expid", "FiBiNET_demo", *settings(demo), capsys=capsys)
    assert code == 0, err
    submission = demo / "submission" / "FiBiNET_demo.zip"
    code, out, err = run_script(
        "mm_fibinet.submission",
        "check",
        submission,
        "--test",
        demo / "in" / "MMCTR_demo" / "test.parquet",
        capsys=capsys,
    )
    assert code == 0 and "accepted: 1500 rows, Task1&2" in out

    with zipfile.ZipFile(submission) as archive:
        predicted = pl.read_csv(archive.read("prediction.csv"))
    labels = pl.read_parquet(demo / "in" / "test_labels.parquet")
    expected = roc_auc_score(labels["label"], predicted["Task1&2"])
    assert score(submission, demo / "in")["all"] == pytest.approx(expected, abs=1e-9)
    assert expected > 0.6
    assert listing(demo / "in") == inputs

    code, out, err = run_script(
        "mm_fibinet.demo.score", "--data", demo / "in", "--model_root", demo / "runs", capsys=capsys
    )
    assert code == 0, err
    assert f"{expected:.4f}" in out and "best possible" in out


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


def test_readme_shows_commands_that_exist():
    text = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for script in ("build_item_emb.py", "run_expid.py", "prediction.py"):
        assert script in text and (ROOT / script).exists()
    for target in ("docs/guide.md", "docs/kaggle.md", "docs/loader.md", "docs/performance.md", "docs/results.md"):
        assert target in text and (ROOT / target).exists(), target

"""The four commands of docs/own-data.md, as they stand there, on a shop whose click model is known."""

import shutil

import polars as pl
import pytest
from conftest import ROOT
from shop import ROWS, draw_shop
from sklearn.metrics import roc_auc_score


@pytest.mark.slow
@pytest.mark.documented("docs/own-data.md", "From a raw log to scores")
def test_raw_csv_to_an_accepted_submission_in_four_commands(documented, tmp_path, capsys, monkeypatch):
    """AUC within 0.03 of that of the probabilities which the labels were drawn from."""
    truth = draw_shop(tmp_path / "shop")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    scripts = [command.words[1] for command in documented.commands]
    assert scripts == ["build_dataset.py", "build_item_emb.py", "run_expid.py", "prediction.py"]
    *_, last = documented.run_all(capsys=capsys)
    assert f"accepted: {ROWS // 10} rows" in last.out

    scores = pl.read_csv("submission/shop.csv", schema_overrides={"item_id": pl.String})
    labels = pl.read_parquet("data/shop/test_labels.parquet")["label"]
    test = truth.tail(ROWS // 10).sort("customer", "time")  # ids are in the order of their texts, rows in that of time
    assert scores["user_id"].to_list() == test["customer"].to_list()
    assert scores["item_id"].to_list() == test["product"].to_list()
    best = roc_auc_score(labels, test["probability"])
    assert roc_auc_score(labels, scores["score"]) > best - 0.03

"""docs/own-model.md and docs/own-encoder.md from their first to their last line, in a folder beside a clone."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from bench_runs import trained_here
from conftest import nothing_stays_imported, write_clone
from doc_check import SHELL
from documented import Documented
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

ITEMS = 140
SMALL = ("--set", "epochs=1", "batch_size=256")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """`mm-fibinet`, the clone that the pages' folders lie beside."""
    clone = tmp_path_factory.mktemp("own") / "mm-fibinet"
    write_clone(clone, ITEMS, max_len=16)
    return clone


@pytest.fixture
def beside(clone, monkeypatch):
    """The folder that the clone is in, as the current one; nothing of a user's modules stays imported."""
    monkeypatch.chdir(clone.parent)
    with nothing_stays_imported(clone.parent):
        yield clone.parent


def prepare(documented: Documented) -> list:
    """Make the folders and save the files, as the page says; the commands that are left."""
    left = []
    for command in documented.commands:
        if command.words[0] in SHELL:
            documented.run(command)
        else:
            left.append(command)
    for block in documented.blocks:
        documented.save(block)
    return left


@pytest.mark.documented("docs/own-model.md", "A model of your own")
@pytest.mark.documented("docs/own-model.md", "The model")
@pytest.mark.documented("docs/own-model.md", "An experiment ID")
@pytest.mark.documented("docs/own-model.md", "Train, predict, compare")
def test_own_model(documented, beside, capsys):
    """Board and submission have what the model itself says of the rows, computed a row at a time from its layers."""
    train, predict, board = prepare(documented)
    assert documented.run(train, *SMALL, capsys=capsys).code == 0
    done = documented.run(predict, capsys=capsys)
    assert done.code == 0 and "accepted: 100 rows" in done.out, done.err
    with trained_here() as trained:
        done = documented.run(board, *SMALL, capsys=capsys)
    assert done.code == 0 and len(trained) == 4, done.err
    rows = pl.read_csv("board/leaderboard.csv")
    assert set(rows["expid"]) == {"FiBiNET", "TwoTowers"} and set(rows["runs"]) == {2}
    [ours] = rows.filter(pl.col("expid") == "TwoTowers")["auc"]
    tables = [pl.read_parquet(job.folder / "valid_scores.parquet") for job in trained if job.expid == "TwoTowers"]
    assert ours == pytest.approx(np.mean([roc_auc_score(table["label"], table["score"]) for table in tables]), abs=1e-6)

    manifest = json.loads(Path("checkpoints/MMCTR_demo/TwoTowers/manifest.json").read_text())
    assert manifest["data"]["model_code"]["class"] == "two_towers:TwoTowers"
    with zipfile.ZipFile("submission/TwoTowers.zip") as archive:
        scores = pl.read_csv(archive.read("prediction.csv"))["Task1&2"].to_numpy()
    np.testing.assert_allclose(scores, by_hand(beside / "mm-fibinet" / "data" / "demo"), atol=2e-6)


def by_hand(data):
    """The scores of the test rows by the saved weights, from the tables, one row at a time."""
    state = torch.load("checkpoints/MMCTR_demo/TwoTowers.model", weights_only=True)
    weights = {name.removeprefix("embedding_layer.embedding_layer."): value for name, value in state.items()}
    info = pl.read_parquet(data / "embedded" / "item_info.parquet").sort("item_id").to_dict(as_series=False)

    def parts(item):
        tags = [weights["embedding_layers.item_tags.weight"][tag] for tag in info["item_tags"][item] if tag]
        dense = weights["feature_encoders.item_emb_d128.weight"] @ torch.tensor(info["item_emb_d128"][item]).float()
        return [weights["embedding_layers.item_id.weight"][item], torch.stack(tags).mean(dim=0), dense]

    def tower(name, vector):
        hidden = (weights[f"{name}.mlp.0.weight"] @ vector + weights[f"{name}.mlp.0.bias"]).clamp(min=0)
        return weights[f"{name}.mlp.3.weight"] @ hidden + weights[f"{name}.mlp.3.bias"]

    scores = []
    for row in pl.read_parquet(data / "MMCTR_demo" / "test.parquet").sort("ID").iter_rows(named=True):
        target, seen = parts(row["item_id"]), [parts(item) for item in row["item_seq"] if item]
        history = [torch.stack(each).mean(dim=0) for each in zip(*seen, strict=True)]
        history = history or [torch.zeros_like(each) for each in target]
        user, item = tower("user_tower", torch.cat(history)), tower("item_tower", torch.cat(target))
        levels = [weights[f"embedding_layers.{name}.weight"][row[name]] for name in ("likes_level", "views_level")]
        matches = torch.stack([mine @ theirs for mine, theirs in zip(history, target, strict=True)])
        logit = weights["scale"] * (user @ item) / (user.norm() * item.norm())
        logit = logit + weights["match.weight"] @ matches + weights["match.bias"]
        logit = logit + weights["bias.weight"] @ torch.cat(levels) + weights["bias.bias"]
        scores.append(logit.sigmoid().item())
    return scores


@pytest.mark.documented("docs/own-encoder.md", "An encoder of your own")
@pytest.mark.documented("docs/own-encoder.md", "The class")
@pytest.mark.documented("docs/own-encoder.md", "An embedding by it")
def test_own_encoder(documented, beside, capsys):
    """The image column is the PCA, by scikit-learn, of colours that are counted pixel by pixel."""
    build, report, train = prepare(documented)
    done = documented.run(build, capsys=capsys)
    assert done.code == 0, done.err
    images = beside / "mm-fibinet" / "data" / "demo" / "item_images"
    counts = np.zeros((ITEMS, 8, 8, 8))
    for item in range(ITEMS):
        with Image.open(images / f"{item + 1}.jpg") as picture:
            pixels = np.asarray(picture.convert("RGB").resize((32, 32)))
        for place, number in Counter(tuple(pixel // 32) for pixel in pixels.reshape(-1, 3)).items():
            counts[(item, *place)] = number
    expected = PCA(128).fit_transform(counts.reshape(ITEMS, -1))
    written = pl.read_parquet("embedded/item_info.parquet").sort("item_id")["img_emb_d128"]
    found = np.array(written.to_list())[1:]
    np.testing.assert_allclose(gram(found), gram(expected), atol=1e-4)

    assert documented.run(report, capsys=capsys).code == 0 and "img_emb_d128" in Path("report.html").read_text()
    assert documented.run(train, *SMALL[1:], capsys=capsys).code == 0


def gram(vectors):
    """All inner products, whose mean square on the diagonal is 1: what rotations and one scale leave alone."""
    products = vectors @ vectors.T
    return products / np.trace(products) * len(vectors)

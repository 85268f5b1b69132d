"""export_onnx.py: what it writes, where it refuses to, and that a folder is whole or as it was."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import user_data
from conftest import run_script
from test_onnx_export import require_plain_graph

import model_zoo
from mm_fibinet import files, onnx_export
from mm_fibinet.commands import export
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.scorer import Scorer
from mm_fibinet.served_files import CARD, ENCODER, GRAPH, IDS, ROWS, Card, ItemRows
from mm_fibinet.settings import load_params


@pytest.fixture
def run(exported):
    return RunFolder(exported.root / "TEST_DATA", exported.expid)


def command(exported, out, *more, capsys=None):
    given = ["--expid", exported.expid, "--model_root", exported.root, "--out", out, *more]
    return run_script("export_onnx", *given, capsys=capsys)


def test_the_card_says_what_was_exported(exported, run):
    assert {path.name for path in exported.folder.iterdir()} == {CARD, GRAPH, ENCODER, ROWS, IDS}
    card = json.loads((exported.folder / CARD).read_text())
    manifest = json.loads(run.manifest.read_text())
    about = card["about"]
    assert (card["model"], card["expid"], card["dataset_id"]) == ("DeepFM", "FiBiNET_test", "TEST_DATA")
    assert about["metrics"] == json.loads(run.result.read_text())["metrics"] and about["metrics"]["AUC"] > 0.5
    assert about["weights"]["sha256"] == files.sha256(run.weights)
    assert about["data"]["item_info"]["sha256"] == files.sha256(exported.test.parent / "item_info.parquet")
    assert about["data"].keys() == manifest["data"].keys() and about["trained_with"] == manifest["versions"]
    assert about["settings"]["similarity_fields"] is True and about["exported_with"]["opset"] == 18
    assert "/" not in json.dumps(card).replace("N/A", "")  # no path of ours
    assert card["max_len"] == 10 and card["min_len"] == 4 and card["num_items"] == 40


def test_graphs_say_nothing_of_this_machine(exported):
    for name in (GRAPH, ENCODER):
        require_plain_graph(exported.folder / name)


def test_an_earlier_export_is_replaced_and_nothing_else(exported, run, tmp_path, monkeypatch, capsys):
    calls = []

    def write(folder, *arguments):
        calls.append(folder)
        shutil.copytree(exported.folder, folder, dirs_exist_ok=True)

    monkeypatch.setattr(onnx_export, "write_model", write)
    out = tmp_path / "new" / "served"
    for _ in range(2):
        assert command(exported, out)[0] == 0
        assert {path.name for path in out.parent.iterdir()} == {"served"} and Scorer(out)
    assert len(calls) == 2

    def fail(folder, *arguments):
        write(folder)
        raise files.UserError("no space")

    monkeypatch.setattr(onnx_export, "write_model", fail)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, err = command(exported, out, capsys=capsys)
    assert code == 2 and err == "error: no space\n"
    assert {path.name for path in out.parent.iterdir()} == {"served"}
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}

    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / GRAPH).write_text("mine")
    for place, message in {
        out: "there is notes.txt, which is no part of an earlier one",
        tmp_path / "file": "this is no folder",
        tmp_path / "other": f"there is {GRAPH}, which is no part",
        run.weights.parent: "is an input",
        exported.test.parent: "is an input",
    }.items():
        code, _, err = command(exported, place, capsys=capsys)
        assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert len(calls) == 3


def test_what_cannot_be_exported(exported, tmp_path, capsys):
    out = tmp_path / "served"
    shutil.copytree(exported.config, tmp_path / "config")
    one = "{{dataset_id: TEST_DATA, epochs: 1, batch_size: 64, verbose: 0, metrics: [AUC], group_id: user_id, {}}}"
    experiments = {"plain": "model: LR", "counted": "model: DeepFM, embedding_dim: 4, simtier: [item_emb_d16]"}
    lines = [f"{name}: {one.format(settings)}" for name, settings in experiments.items()]
    (tmp_path / "config" / "model_config.yaml").write_text("\n".join(lines))
    for expid, message in {
        "plain": "LR cannot be exported, expected one of DCNv2, DIN, DIN_att6, DIN_att_emb_rms, DeepFM, FiBiNET",
        "counted": "DeepFM with simtier cannot be exported; score it with prediction.py",
    }.items():
        run = ["--config", tmp_path / "config", "--expid", expid, "--model_root", tmp_path / "runs"]
        assert run_script("run_expid", *run)[0] == 0
        code, _, err = run_script("export_onnx", *run, "--out", out, capsys=capsys)
        assert code == 2 and message in err and len(err.splitlines()) == 1 and not out.exists()
    code, _, err = command(exported, out, "--set", "embedding_dim=4", capsys=capsys)
    assert code == 2 and "was trained with other settings: embedding_dim" in err
    code, _, err = command(exported, out, "--checkpoint", tmp_path / "no.model", capsys=capsys)
    assert code == 2 and not out.exists() and not list(tmp_path.glob(".*"))


def test_a_torch_that_cannot_export_is_one_line(exported, tmp_path, monkeypatch, capsys):
    """torch 2.6 with today's onnxscript: what fails inside both is nothing that a user can read."""

    def fail(*arguments, **options):
        raise RuntimeError("Failed to convert\nthe exported program")

    monkeypatch.setattr(torch.onnx, "export", fail)
    code, _, err = command(exported, tmp_path / "served", capsys=capsys)
    assert code == 2 and len(err.splitlines()) == 1 and f"torch {torch.__version__} with onnxscript" in err
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(("item_table", "close"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_smaller_tables_score_nearly_the_same(exported, tmp_path, item_table, close):
    folder = tmp_path / "served"
    shutil.copytree(exported.folder, folder)
    card = Card.read(folder)
    rows = ItemRows.read(folder, card)
    ItemRows.pack(np.array(rows.values), np.array(rows.ids), card.parts, item_table).write(folder)
    dataclasses.replace(card, item_table=item_table).write(folder)
    history, candidates = [3, 9, 14, 2], range(1, 40)
    expected, found = (Scorer(each).score(history, candidates) for each in (exported.folder, folder))
    difference = np.abs(found - expected).max()
    assert 0 < difference < close
    bits = 8 * (folder / ROWS).stat().st_size / (40 * sum(card.parts.values()))
    assert bits < {"fp16": 17, "int8": 9}[item_table] + 128 * 8 / sum(card.parts.values()) / 40


def test_padding_of_a_published_mask_is_that_of_the_data(exported):
    train = {"train_data": str(exported.test.parent / "train.parquet"), "max_len": 100}
    assert export.padded_len(train) == 12 and export.padded_len({**train, "max_len": 7}) == 7
    assert export.padded_len({"max_len": 50, "train_data": "nowhere.parquet"}) == 50


def test_padding_of_users_histories_is_that_of_the_longest(tmp_path):
    """As the loader has it: no row is padded beyond the longest history of all users."""
    config = user_data.make_forms(tmp_path, rows=60)["users"]
    params = load_params(config, "FiBiNET_test", model_zoo, ["max_len=100"])
    loader = MMCTRDataLoader(
        build_feature_map(params),
        params["train_data"],
        batch_size=7,
        batch_format="indices",
        **{name: params[name] for name in ("item_info", "item_feature", "user_info", "max_len")},
    )
    for max_len, expected in ((100, user_data.LONGEST), (8, 8)):
        assert export.padded_len({**params, "max_len": max_len}) == expected
    assert next(iter(loader)).mask.shape == (7, user_data.LONGEST)
    assert export.padded_len({**params, "user_info": str(tmp_path / "nowhere.parquet")}) == 100


def test_a_link_to_an_earlier_export_stays_one(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / CARD).write_text("old")
    (tmp_path / "current").symlink_to("v1")
    with files.atomic_folder(tmp_path / "current") as folder:
        (folder / CARD).write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"v1", "current"} and (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / CARD).read_text() == "new"

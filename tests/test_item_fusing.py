"""What `build` writes beside the PCA: fusions by name, mixed or chosen, levels and semantic ids."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, list_column, make_dataset, run_script
from item_files import ITEMS, Hashes, build, embedding, fails, make_data

from mm_fibinet import options
from mm_fibinet.errors import UserError
from mm_fibinet.items import fusion, modalities
from mm_fibinet.items.build import build as build_embedding
from mm_fibinet.items.info_columns import put_column
from mm_fibinet.items.linear import Fused
from mm_fibinet.items.modalities import Modality
from mm_fibinet.items.report import history_cosine
from mm_fibinet.items.semantic_ids import quantise
from mm_fibinet.metrics import auc


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A catalogue, encoders that take no time, and splits of users who click odd items or even ones."""

    def hashing(modality: Modality, dim: int) -> Modality:
        loaders = {modality.default: lambda rest, how: Hashes(modality.name, dim, how.batch_size)}
        return dataclasses.replace(modality, encoders=lambda: loaders)

    text, image = modalities.MODALITIES
    monkeypatch.setattr(modalities, "MODALITIES", (hashing(text, 20), hashing(image, 20)))
    for module in ("contrastive", "item2vec"):
        monkeypatch.setattr(f"mm_fibinet.items.{module}.PAIRS", 2000)
    folder = make_data(tmp_path / "data")
    rng = np.random.default_rng(0)
    for name, users in (("train", range(60)), ("valid", range(100, 160))):
        rows = {"user_id": [], "item_seq": [], "item_id": [], "label": []}
        for user in users:
            own = rng.permutation(np.arange(1 + user % 2, ITEMS + 1, 2))
            others = np.arange(2 - user % 2, ITEMS + 1, 2)
            for item, label in ((own[5], 1), (rng.choice(others), 0)):
                rows["user_id"].append(user)
                rows["item_seq"].append([0, *own[:5]])
                rows["item_id"].append(int(item))
                rows["label"].append(label)
        rows["item_seq"] = list_column(np.array(rows["item_seq"]))
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return folder


def test_the_option_offers_every_fusion_there_is():
    assert (*fusion.FUSIONS, *fusion.CLICK_FUSIONS, "mix", "auto") == options.FUSIONS
    guide = (ROOT / "docs" / "embeddings.md").read_text()
    assert [name for name in options.FUSIONS if f"`{name}`" not in guide] == []


@pytest.mark.parametrize("name", [*fusion.FUSIONS, *fusion.CLICK_FUSIONS])
def test_a_fusion_by_name_is_that_function_of_the_features(name, data, tmp_path, monkeypatch, capsys):
    seen = {}
    registry = fusion.FUSIONS if name in fusion.FUSIONS else fusion.CLICK_FUSIONS
    original = registry[name]
    monkeypatch.setitem(registry, name, lambda *given: seen.setdefault("fused", original(*given)))
    more = {"opening_words": 0} | ({"train": data / "train.parquet"} if name in fusion.CLICK_FUSIONS else {})
    values = build(data, tmp_path / "out.parquet", monkeypatch, fusion=name, **more)
    np.testing.assert_array_equal(values[1:], seen["fused"].embedding)
    assert re.search(rf"^fusion +{name}\b", capsys.readouterr().out, re.M)
    assert json.loads((tmp_path / "out.build.json").read_text())["fusion"] == name
    pca = build(data, tmp_path / "pca.parquet", monkeypatch, opening_words=0)
    assert np.array_equal(pca, values) == (name == "pca")
    for column in ("txt_emb_d8", "img_emb_d8"):  # of each modality the PCA, whatever fuses them
        assert pq.read_table(tmp_path / "pca.parquet")[column] == pq.read_table(tmp_path / "out.parquet")[column]


def test_auto_takes_what_tells_clicks_best_and_says_so(data, tmp_path, monkeypatch, capsys):
    made = {}
    for registry in (fusion.FUSIONS, fusion.CLICK_FUSIONS):
        for name, original in registry.items():
            monkeypatch.setitem(
                registry, name, lambda *given, _name=name, _of=original: made.setdefault(_name, _of(*given))
            )
    values = build(data, tmp_path / "out.parquet", monkeypatch, fusion="auto", train=data / "train.parquet")
    valid = pq.read_table(data / "valid.parquet").to_pydict()
    history, target, label = (np.array(valid[name]) for name in ("item_seq", "item_id", "label"))
    expected = {}
    for name, fused in made.items():
        cosine = history_cosine(np.vstack([np.zeros((1, 8)), fused.embedding]), history, target)
        scored = np.isfinite(cosine)
        expected[name] = auc(label[scored], cosine[scored])
    assert list(made) == ["pca", "pca_per_modality", "whiten", "cca", "item2vec", "contrastive"]  # no space in common
    manifest = json.loads((tmp_path / "out.build.json").read_text())
    assert manifest["chosen_by_auc_on_valid"] == pytest.approx(expected)
    best = max(expected, key=expected.get)
    assert manifest["fusion"] == best
    np.testing.assert_array_equal(values[1:], made[best].embedding)
    assert re.search(
        rf"^fusion +{best}, by the AUC of its cosines on valid: {best} 0\.\d+", capsys.readouterr().out, re.M
    )

    made.clear()
    options = {"train": None, "valid": data / "valid.parquet", "text_encoder": "none", "item_feature": None}
    build(data, tmp_path / "alone.parquet", monkeypatch, fusion="auto", **options)
    assert list(made) == ["pca", "whiten"]


def test_only_training_rows_are_learned_from(data, tmp_path, monkeypatch, capsys):
    """The leaks that a user can plant, through the command: nothing is written."""
    out, test = tmp_path / "out.parquet", tmp_path / "nowhere" / "log.parquet"
    test.parent.mkdir()
    pq.write_table(pq.read_table(data / "valid.parquet").drop_columns(["label"]), test)
    table = pq.read_table(data / "train.parquet")
    both = tmp_path / "nowhere" / "both.parquet"
    pq.write_table(pa.concat_tables([table, pq.read_table(data / "valid.parquet")]), both)
    for leak, valid, message in (
        (data / "valid.parquet", None, "this is the validation or the test split"),
        (test, None, "has no column label, expected the training split"),
        (both, data / "valid.parquet", r"knows \d+ of \d+ clicks of .*valid.parquet"),
    ):
        found = fails(data, out, monkeypatch, capsys, fusion="item2vec", train=leak, valid=valid)
        assert re.search(message, found), found
    assert not (tmp_path / ".mm_fibinet_features").exists()  # refused before anything was encoded


def once_a_user(data: Path, folder: Path) -> Path:
    """The splits with histories once a user, who goes on there with what he clicks in the row, and one item more."""
    folder.mkdir()
    sequences: dict[int, list[int]] = {}
    for name in ("train", "valid"):
        table = pq.read_table(data / f"{name}.parquet")
        rows = table.to_pydict()
        for user, history, item, label in zip(*rows.values(), strict=True):
            if label:
                before = [each for each in history if each]
                sequences[user] = [*before, item, next(each for each in range(1, ITEMS) if each % 2 == item % 2)]
        table = table.drop_columns(["item_seq"]).append_column("history_end", pa.array([5] * table.num_rows))
        pq.write_table(table, folder / f"{name}.parquet")
    users = {"user_id": range(160), "item_seq": pa.array([sequences.get(user, []) for user in range(160)])}
    pq.write_table(pa.table(users), folder / "user_info.parquet")
    return folder


@pytest.mark.parametrize("name", [*fusion.CLICK_FUSIONS, "auto"])
def test_histories_once_a_user_give_the_bytes_of_histories_in_the_rows(name, data, tmp_path, monkeypatch):
    users = once_a_user(data, data / "users")
    for out, folder, more in (("rows", data, {}), ("once", users, {"user_info": users / "user_info.parquet"})):
        output = tmp_path / out / "item_info.parquet"
        build(data, output, monkeypatch, fusion=name, train=folder / "train.parquet", store=tmp_path / "store", **more)
    for file in ("item_info.parquet", "item_info.build.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "rows" / file).read_bytes()


def test_user_info_is_named_where_it_is_needed_and_only_there(data, tmp_path, monkeypatch, capsys):
    users = once_a_user(data, data / "users")
    info, out = users / "user_info.parquet", tmp_path / "out.parquet"
    learning = {"fusion": "item2vec", "train": users / "train.parquet"}
    for given, message in (
        (learning, "has no column item_seq, found user_id, item_id, label, history_end; where histories are once a"),
        (learning | {"train": data / "train.parquet", "user_info": info}, "item_seq is there, and user_info has the"),
        (learning | {"user_info": users / "none.parquet"}, "none.parquet: no such file"),
        ({"user_info": info}, "--fusion pca reads no histories"),
    ):
        found = fails(data, out, monkeypatch, capsys, **given)
        assert message in found, found
    found = fails(data, info, monkeypatch, capsys, **learning, user_info=info)
    assert "is an input" in found


def test_only_training_rows_look_back_in_user_info(data, tmp_path, monkeypatch, capsys):
    """Rows that were to end later know what valid asks; valid's users are given training rows to plant that."""
    users = once_a_user(data, data / "users")
    both = pa.concat_tables([pq.read_table(users / f"{name}.parquet") for name in ("train", "valid")])
    for end, message in ((6, "knows 60 of 60 clicks of"), (5, None)):
        train = both.set_column(2, "label", pa.array([1, 0] * 60 + [0] * 120))
        train = train.set_column(3, "history_end", pa.array([5] * 120 + [end] * 120))
        pq.write_table(train, users / "train.parquet")
        given = {"fusion": "item2vec", "train": users / "train.parquet", "user_info": users / "user_info.parquet"}
        if message:
            assert message in fails(data, tmp_path / "out.parquet", monkeypatch, capsys, **given)
        else:
            build(data, tmp_path / "out.parquet", monkeypatch, **given)


def test_further_fusions_are_columns_of_their_own(data, tmp_path, monkeypatch, capsys):
    more = {"train": data / "train.parquet", "store": tmp_path / "store"}
    build(data, tmp_path / "item2vec.parquet", monkeypatch, fusion="item2vec", **more)
    build(data, tmp_path / "whiten.parquet", monkeypatch, fusion="whiten", store=tmp_path / "store")
    build(data, tmp_path / "pca.parquet", monkeypatch, store=tmp_path / "store")
    capsys.readouterr()
    build(data, tmp_path / "out.parquet", monkeypatch, also=["item2vec", "whiten"], **more)
    names = ["item_emb_d8", "txt_emb_d8", "img_emb_d8", "item2vec_emb_d8", "whiten_emb_d8"]
    said = capsys.readouterr().out
    assert f"columns {', '.join(names)}\n" in said
    assert re.search(r"^also +item2vec, items_learned_from \d+, unexplained [\d.]+\nalso +whiten$", said, re.M)
    table = pq.read_table(tmp_path / "out.parquet")
    for column in names[:3]:
        assert table[column] == pq.read_table(tmp_path / "pca.parquet")[column]
    for name in ("item2vec", "whiten"):
        assert table[f"{name}_emb_d8"] == pq.read_table(tmp_path / f"{name}.parquet")["item_emb_d8"]
    manifest = json.loads((tmp_path / "out.build.json").read_text())
    assert manifest["fusion"] == "pca" and list(manifest["also"]) == ["item2vec", "whiten"]
    assert manifest["columns"] == names


def test_a_mix_is_the_weighted_sum_of_columns(data, tmp_path, monkeypatch, capsys):
    info = pq.read_table(data / "item_info.parquet")
    first = np.array(info["item_emb_d8"].to_pylist())
    second = np.random.default_rng(0).normal(size=(ITEMS, 8))
    feature = pq.read_table(data / "item_feature.parquet")
    order = feature["item_id"].to_numpy() - 1
    feature = feature.append_column("item_emb_d8_v3", pa.array(list(second[order])))
    pq.write_table(feature, data / "item_feature.parquet")
    built = build_embedding(
        data / "item_info.parquet", tmp_path / "a.parquet", item_feature=data / "item_feature.parquet",
        text_encoder="none", image_encoder="none", emb_dim=8, mix={"item_emb_d8": 0.4, "item_emb_d8_v3": -0.6},
    )  # fmt: skip
    assert built.columns == ["item_emb_d8"] and built.fusion["fusion"] == "mix"
    expected = 0.4 * first[1:] - 0.6 * second
    np.testing.assert_allclose(embedding(tmp_path / "a.parquet")[1:], expected, atol=1e-6)
    none = {"text_encoder": "none", "image_encoder": "none", "images": None}
    bad = {
        "item_emb_d8": "expected COLUMN=WEIGHT",
        "item_emb_d8=0": "expected COLUMN=WEIGHT with a number other than 0",
        "item_emb_d8=nan": "expected COLUMN=WEIGHT",
        "item_emb=1": r"no column item_emb in .*item_info.parquet nor .*, found the embeddings item_emb_d8, item",
        "item_title=1": "item_title",
    }
    for given, message in bad.items():
        found = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, mix=given, **none)
        assert re.search(message, found), found
    found = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, mix="item_emb_d8=1", emb_dim=4, **none)
    assert "item_emb_d8 has 8 numbers an item, expected 4" in found


def test_options_that_do_not_go_together_are_refused(data, tmp_path, monkeypatch, capsys):
    train, valid = data / "train.parquet", data / "valid.parquet"
    for given, message in (
        ({"fusion": "concat"}, "--fusion concat: unknown, expected pca or pca_per_modality or"),
        ({"fusion": "item2vec"}, "--fusion item2vec: --train is missing"),
        ({"fusion": "auto"}, "--fusion auto: --valid is missing"),
        ({"also": "vq"}, "--also vq: unknown, expected pca or"),
        ({"also": "auto"}, "--also auto: unknown, expected pca or"),
        ({"also": "pca"}, "--also pca: it is there already"),
        ({"also": ["cca", "cca"]}, "--also cca: it is there already"),
        ({"also": "item2vec"}, "--also item2vec: --train is missing"),
        ({"also": "mean"}, "text has 40 numbers, image has 20 numbers, expected encoders of one space"),
        ({"also": "whiten", "mix": "item_emb_d8=1", "text_encoder": "none", "image_encoder": "none"}, "--also whiten:"),
        ({"train": train}, "--fusion pca learns nothing from clicks; choose item2vec or contrastive, or"),
        ({"valid": valid}, "--fusion pca does not read it"),
        ({"fusion": "mix"}, "--fusion mix without --mix"),
        ({"fusion": "pca", "mix": "a=1"}, "--fusion pca with --mix"),
        ({"fusion": "mean"}, "text has 40 numbers, image has 20 numbers, expected encoders of one space"),
        ({"fusion": "cca", "text_encoder": "none"}, "there is image alone, expected two modalities"),
        ({"semantic_ids": "vq"}, "--semantic_ids vq: unknown, expected kmeans or gmm"),
        ({"semantic_ids": "kmeans", "code_size": 1}, "--code_size 1: expected 2 to 65536"),
        ({"semantic_ids": "kmeans", "code_levels": 17}, "--code_levels 17: expected 1 to 16"),
        ({"code_levels": 2}, "--code_levels 2 --code_size 256: --semantic_ids is not given, so there are no codes"),
        ({"semantic_ids": "kmeans"}, "--code_size is 256, but there are 24 items; choose so many or less"),
        (
            {"levels_from": data / "train.parquet"},
            "train.parquet: has neither likes_level nor views_level, found user_id",
        ),
        ({"fusion": "contrastive", "train": data / "none.parquet"}, "none.parquet: no such file"),
    ):
        found = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, **given)
        assert message in found, found
    found = fails(data, train, monkeypatch, capsys, fusion="contrastive", train=train)
    assert "is an input" in found


def test_levels_are_joined_into_item_info(data, tmp_path, monkeypatch, capsys):
    feature = pq.read_table(data / "item_feature.parquet")
    ids = feature["item_id"].to_numpy()
    feature = feature.append_column("views_level", pa.array(ids % 11)).append_column("likes_level", pa.array(ids % 7))
    pq.write_table(feature.filter(pa.array(ids != 9)), data / "item_feature.parquet")
    build(data, tmp_path / "out.parquet", monkeypatch)
    assert "levels      views_level, from the catalogue\n" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["likes_level"] == [0] * (ITEMS + 1)  # item_info's own stay
    assert table["views_level"] == [0 if item in (0, 9) else item % 11 for item in range(ITEMS + 1)]
    build(data, tmp_path / "named.parquet", monkeypatch, levels_from=data / "item_feature.parquet")
    named = pq.read_table(tmp_path / "named.parquet")
    assert named["likes_level"].to_pylist() == [0 if item in (0, 9) else item % 7 for item in range(ITEMS + 1)]
    assert named.column_names[:4] == pq.read_table(data / "item_info.parquet").column_names


def test_semantic_ids_are_written_as_a_sequence_and_as_ids(data, tmp_path, monkeypatch, capsys):
    options = {"semantic_ids": "gmm", "code_size": 4, "code_levels": 2}
    values = build(data, tmp_path / "out.parquet", monkeypatch, **options)
    table = pq.read_table(tmp_path / "out.parquet")
    expected = quantise(values[1:], "gmm", 2, 4, seed=0)
    assert table["item_codes"].type == pa.list_(pa.int64(), 2)
    sequence = np.array(table["item_codes"].to_pylist())
    np.testing.assert_array_equal(sequence[1:], expected.sequence)
    assert not sequence[0].any() and sequence[:, 1].max() <= 8
    for level in (1, 2):
        assert table[f"item_code_{level}"].to_pylist() == [0, *expected.codes[:, level - 1].tolist()]
    facts = json.loads((tmp_path / "out.build.json").read_text())["semantic_ids"]
    assert facts["collisions"] == expected.collisions and facts["unexplained"] == expected.unexplained
    assert re.search(
        r"^codes +2 levels of 4, used [\d, ]+; \d+\.\d% of the embedding kept, ", capsys.readouterr().out, re.M
    )


CODES_SEQUENCE = "        - {name: item_codes, type: sequence, source: item}\n"
CODES_IDS = "        - {name: [item_code_1, item_code_2], type: categorical, source: item}\n"


@pytest.mark.parametrize("lines", [CODES_SEQUENCE, CODES_IDS], ids=["sequence", "ids"])
@pytest.mark.parametrize("model", ["FiBiNET", "DIN"])
def test_models_read_semantic_ids(lines, model, tmp_path, capsys):
    """The config of docs/embeddings.md; the item's id and embedding are left out, so that codes have to tell items."""
    config = make_dataset(tmp_path)
    path = tmp_path / "TEST_DATA" / "item_info.parquet"
    table = pq.read_table(path)
    vectors = np.array(table["item_emb_d16"].to_pylist(), dtype=np.float32)[1:]
    for column, values in quantise(vectors, "kmeans", 2, 12).columns.items():
        table = put_column(table, column, values)
    pq.write_table(table, path)
    entry = (config / "dataset_config.yaml").read_text()
    (config / "dataset_config.yaml").write_text(entry.replace("    label_col:", f"{lines}    label_col:"))
    names = re.findall(r"item_code\w+", lines)
    settings = [f"use_features=[user_id,item_seq,likes_level,views_level,{','.join(names)}]", "epochs=1"]
    experiments = yaml.safe_load((config / "model_config.yaml").read_text())
    experiments["DIN_test"] = experiments["FiBiNET_test"] | {"model": "DIN", "dnn_hidden_units": [16]}
    del experiments["DIN_test"]["hidden_units"]
    (config / "model_config.yaml").write_text(yaml.safe_dump(experiments))
    line = ["--config", config, "--expid", f"{model}_test", "--model_root", tmp_path / "runs", "--set", *settings]
    done = run_script("run_expid", *line, capsys=capsys)
    assert done[0] in (None, 0), done
    run = tmp_path / "runs" / "TEST_DATA" / f"{model}_test"
    features = json.loads((run / "feature_map.json").read_text())["features"]
    features = {name: spec for each in features for name, spec in each.items()}
    sizes = {"item_codes": 25, "item_code_1": 13, "item_code_2": 13}  # codes of both levels, of one; 0 is the padding
    assert {name: features[name]["vocab_size"] for name in names} == {name: sizes[name] for name in names}
    weights = torch.load(run.with_suffix(".model"), weights_only=True)
    for name in names:
        table = weights[f"embedding_layer.embedding_layer.embedding_layers.{name}.weight"]
        assert len(table) == sizes[name] and not table[0].any() and (table[1:].abs().amax(dim=1) > 1e-3).all()


def test_the_recommended_experiments_have_one_with_codes():
    experiments = yaml.safe_load((ROOT / "config" / "model_config" / "fibinet.yaml").read_text())
    entries = yaml.safe_load((ROOT / "config" / "dataset_config" / "microlens.yaml").read_text())
    for expid, names in {
        "FiBiNET_recommended_codes": {"item_codes"},
        "FiBiNET_recommended_code_ids": {"item_code_1", "item_code_2", "item_code_3"},
    }.items():
        read = set(experiments[expid]["use_features"])
        assert names <= read
        columns = entries[experiments[expid]["dataset_id"]]["feature_cols"]
        known = {
            name for line in columns for name in ([line["name"]] if isinstance(line["name"], str) else line["name"])
        }
        assert read <= known


def test_a_choice_needs_clicks_and_others(tmp_path):
    rows = {"item_seq": list_column(np.array([[1, 2]])), "item_id": [3], "label": [1]}
    pq.write_table(pa.table(rows), tmp_path / "valid.parquet")
    fused = Fused(np.ones((4, 2), dtype=np.float32))
    with pytest.raises(UserError, match="1 rows with a history, expected some with label 0 and some with label 1"):
        fusion.choose(["pca"], lambda name: fused, tmp_path / "valid.parquet", 4)

"""The build of an item embedding with quick encoders: what is read, refused and written, as a command and as a call."""

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from item_files import ITEMS, Hashes, arguments, build, cover, fails, feature_with, make_data, pack

import build_item_emb
from mm_fibinet import archives, commands
from mm_fibinet.commands import embed
from mm_fibinet.errors import UserError
from mm_fibinet.items import feature_store, fusion, modalities
from mm_fibinet.items.build import build as build_embedding
from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.modalities import Modality


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def quick(monkeypatch):
    """Text and image with an encoder that takes no time, of 20 and 30 numbers, in place of the default ones."""

    def hashing(modality: Modality, dim: int) -> Modality:
        loaders = {modality.default: lambda rest, how: Hashes(modality.name, dim, how.batch_size)}
        return dataclasses.replace(modality, encoders=lambda: loaders)

    text, image = modalities.MODALITIES
    monkeypatch.setattr(modalities, "MODALITIES", (hashing(text, 20), hashing(image, 30)))


def test_one_changed_cover_costs_one_forward_pass(data, tmp_path, monkeypatch, capsys, quick):
    options = {"text_encoder": "none", "item_feature": None}
    first = build(data, tmp_path / "a.parquet", monkeypatch, **options)
    (data / "images" / "2.jpg").write_bytes(cover(999))
    second = build(data, tmp_path / "b.parquet", monkeypatch, **options)
    assert "encoded 1, reused 22" in capsys.readouterr().out
    assert not np.array_equal(first[2], second[2])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "rar", "h5", "parquet"])
def test_every_kind_of_source_gives_the_bytes_of_the_folder(data, tmp_path, monkeypatch, capsys, quick, kind):
    if kind in ("tar", "tar.gz", "rar"):
        pytest.importorskip("libarchive")
    options = {"text_encoder": "none", "item_feature": None}
    build(data, tmp_path / "folder.parquet", monkeypatch, **options)
    build(data, tmp_path / "out.parquet", monkeypatch, images=pack(kind, data), store=tmp_path / "s", **options)
    assert "1 images of ids that are not in item_info" in capsys.readouterr().out
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "folder.parquet").read_bytes()


def test_an_archive_is_read_in_one_pass(data, tmp_path, monkeypatch, quick):
    """Opened once, front to back, each file's content asked for once: by what the build asks of libarchive."""
    pytest.importorskip("libarchive")
    opened, read, members = [], [], archives.members

    def watched(path):
        opened.append(path)
        for member in members(path):
            asked = member.blocks
            yield member._replace(blocks=lambda name=member.name, asked=asked: read.append(name) or asked())

    monkeypatch.setattr(archives, "members", watched)
    packed = pack("rar", data)
    build(data, tmp_path / "out.parquet", monkeypatch, images=packed, text_encoder="none", item_feature=None)
    assert opened == [packed]
    assert len(read) == len(set(read)) >= 20


def test_text_alone_takes_any_title_and_tag_types(data, tmp_path, monkeypatch, capsys, quick):
    plain = pq.read_table(data / "item_feature.parquet")
    options = {"image_encoder": "none", "images": None}
    expected = build(data, tmp_path / "a.parquet", monkeypatch, **options)
    assert np.all(expected[[0, 3]] == 0)
    strings = [", ".join(tags or []) for tags in plain.column("item_tags").to_pylist()]
    titles = plain.column("item_title").cast(pa.string()).combine_chunks().dictionary_encode()
    table = pa.table({"item_title": titles, "item_tags": strings, "item_id": plain.column("item_id").cast(pa.int32())})
    keep = [item != 3 for item in plain.column("item_id").to_pylist()]  # a missing row is a missing text
    pq.write_table(table.filter(pa.array(keep)), data / "item_feature.parquet")
    values = build(data, tmp_path / "b.parquet", monkeypatch, **options)
    np.testing.assert_array_equal(values, expected)
    assert "encoded 0, reused 23" in capsys.readouterr().out, "the same texts, read from other types"


def test_emb_dim_names_the_column_and_a_new_one_comes_last(data, tmp_path, monkeypatch, quick):
    options = {"image_encoder": "none", "images": None, "emb_dim": 6, "fused_only": True}
    build(data, tmp_path / "out.parquet", monkeypatch, **options)
    before, after = pq.read_table(data / "item_info.parquet"), pq.read_table(tmp_path / "out.parquet")
    assert after.column_names == [*before.column_names, "item_emb_d6"]
    assert after.select(before.column_names).equals(before)


def test_each_modality_alone_is_written_too(data, tmp_path, monkeypatch, capsys, quick):
    fused = build(data, tmp_path / "all.parquet", monkeypatch)
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column_names[-2:] == ["txt_emb_d8", "img_emb_d8"]
    assert "columns item_emb_d8, txt_emb_d8, img_emb_d8" in capsys.readouterr().out
    build(data, tmp_path / "asked.parquet", monkeypatch, per_modality=True)
    assert (tmp_path / "asked.parquet").read_bytes() == (tmp_path / "all.parquet").read_bytes()
    np.testing.assert_array_equal(fused, build(data, tmp_path / "fused.parquet", monkeypatch, fused_only=True))
    assert pq.read_table(tmp_path / "fused.parquet").column_names == table.column_names[:-2]
    for column, other in (("txt_emb_d8", "image_encoder"), ("img_emb_d8", "text_encoder")):
        alone = build(data, tmp_path / f"{column}.parquet", monkeypatch, **{other: "none"})
        values = table.column(column).combine_chunks().flatten().to_numpy().reshape(-1, 8)
        np.testing.assert_array_equal(values, alone)


def test_the_default_build_writes_what_the_recommended_experiment_reads(data, tmp_path, monkeypatch, quick):
    """The names alone: as many items as emb_dim's default needs would take long."""
    experiments = yaml.safe_load((ROOT / "config" / "model_config" / "fibinet.yaml").read_text())
    default = commands.parse("embed", build_item_emb.HOME, ["--item_info", "in", "--output", "out"]).emb_dim
    build(data, tmp_path / "out.parquet", monkeypatch)
    written = {name.replace("_d8", f"_d{default}") for name in pq.read_table(tmp_path / "out.parquet").column_names}
    assert set(experiments["FiBiNET_recommended"]["similarity_only"]) <= written


def test_fewer_directions_than_emb_dim_are_named_with_the_way_out(data, tmp_path, monkeypatch, capsys, quick):
    text, image = modalities.MODALITIES
    narrow = {"minilm": lambda rest, how: Hashes("narrow", 3, how.batch_size)}
    monkeypatch.setattr(modalities, "MODALITIES", (dataclasses.replace(text, encoders=lambda: narrow), image))
    message = fails(data, tmp_path / "a.parquet", monkeypatch, capsys)
    assert (
        "text or image features have at most 6 independent directions; choose --emb_dim 6 or less, or --fused_only"
        in message
    )
    build(data, tmp_path / "a.parquet", monkeypatch, fused_only=True)
    build(data, tmp_path / "b.parquet", monkeypatch, emb_dim=3)
    message = fails(data, tmp_path / "c.parquet", monkeypatch, capsys, fused_only=True, emb_dim=25)
    assert message.endswith("text + image features have at most 23 independent directions; choose --emb_dim 23 or less")

    monkeypatch.setattr(modalities, "MODALITIES", (text, image))
    few = feature_with(data, item_title=["a", "b", "c"] + [""] * 21, item_tags=[[]] * 24)
    message = fails(data, tmp_path / "d.parquet", monkeypatch, capsys, item_feature=few)
    assert re.search(r"txt_emb_d8: emb_dim is 8, but 24 items .* have 2 independent .*--fused_only", message)
    build(data, tmp_path / "d.parquet", monkeypatch, item_feature=few, fused_only=True)


def test_a_call_from_python_gives_what_the_command_prints(data, tmp_path, quick, capfd):
    (data / "images" / "item_16.jpg").write_bytes(cover(16))
    (data / "images" / "7.jpg").write_bytes(b"<html>")
    built = build_embedding(
        item_info=data / "item_info.parquet",
        item_feature=feature_with(data, item_title=None),
        images=data / "images",
        output=tmp_path / "out.parquet",
        emb_dim=8,
    )
    assert built.output == tmp_path / "out.parquet" and built.items == ITEMS
    assert built.columns == ["item_emb_d8", "txt_emb_d8", "img_emb_d8"]
    assert pq.read_table(built.output).column_names[-2:] == built.columns[1:]
    text, image = built.modalities["text"], built.modalities["image"]
    assert text.counts == {"found": 23, "missing": 1}
    assert image.counts == {"found": 22, "missing": 1, "corrupt": 1, "oversized": 0}
    assert image.bad == [("7.jpg", "corrupt", "not an image")]
    assert (image.computed, image.reused) == (22, 0)
    assert capfd.readouterr().out == ""
    embed.print_summary(built)
    out = capfd.readouterr().out
    assert "read item_tags: no title, expected one of item_title, title" in out
    assert "1 file is not named ITEM_ID.jpg/.jpeg/.png/.webp, e.g. item_16.jpg" in out
    assert json.loads((tmp_path / "out.build.json").read_text())["image"]["misnamed"] == 1
    asked = build_embedding(
        data / "item_info.parquet",
        tmp_path / "tags.parquet",
        item_feature=data / "item_feature.parquet",
        text_columns="item_tags",
        image_encoder="none",
        emb_dim=8,
    )
    assert asked.modalities["text"].facts["columns"] == ["item_tags"] and list(asked.modalities) == ["text"]
    with pytest.raises(
        TypeError, match="unexpected argument 'image', expected one of item_feature, text_encoder, text_dim"
    ):
        build_embedding("in.parquet", "out.parquet", image="covers")
    with pytest.raises(UserError, match="--emb_dim 0: expected 1 or more"):
        build_embedding("in.parquet", "out.parquet", emb_dim=0)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("emb_dim", True, "a whole number"),
        ("emb_dim", 8.0, "a whole number"),
        ("emb_dim", "8", "a whole number"),
        ("emb_dim", None, "a whole number"),
        ("batch_size", 2.5, "a whole number"),
        ("opening_words", None, "a whole number"),
        ("seed", None, "a whole number"),
        ("seed", -1, "0 to 4294967295"),
        ("strict", "no", "True or False"),
        ("per_modality", 0, "True or False"),
        ("text_columns", [], "names of columns"),
        ("text_columns", 5, "names of columns"),
    ],
)
def test_values_of_another_kind_are_refused(data, tmp_path, quick, option, value, expected):
    options = {"emb_dim": 8, "item_feature": data / "item_feature.parquet", "image_encoder": "none", option: value}
    with pytest.raises(UserError, match=f"^--{option} .*: expected {expected}"):
        build_embedding(data / "item_info.parquet", tmp_path / "out" / "o.parquet", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_keeps_freed_memory_and_a_call_leaves_the_process_as_it_is(data, tmp_path, monkeypatch, quick):
    asked = []
    monkeypatch.setattr(embed, "keep_freed_memory", lambda: asked.append("malloc"))
    build(data, tmp_path / "command.parquet", monkeypatch)
    assert asked == ["malloc"]
    options = {"item_feature": data / "item_feature.parquet", "image_encoder": "none", "emb_dim": 8}
    build_embedding(data / "item_info.parquet", tmp_path / "call.parquet", **options)
    assert asked == ["malloc"]


def test_an_output_whose_name_is_no_text_is_written(data, tmp_path, quick):
    options = {"emb_dim": np.int64(8), "item_feature": data / "item_feature.parquet", "image_encoder": "none"}
    outputs = [tmp_path / name / "o.parquet" for name in ("plain", os.fsdecode(b"\xff"))]
    for output in outputs:
        build_embedding(data / "item_info.parquet", output, **options)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


class Clips:
    """A source of sounds: a folder of ITEM_ID.wav."""

    def __init__(self, path):
        files = sorted(Path(path).glob("*.wav"))
        self.views = {"audio": [Entry(int(file.stem), file.name, file.read_bytes) for file in files]}

    def facts(self):
        return {"files": len(self.views["audio"])}

    def notes(self):
        return ["heard"]


def test_a_third_modality_is_one_record(data, tmp_path, monkeypatch, capsys, quick):
    loaders = {"loudness:": lambda rest, how: Hashes(f"loudness {rest}", 16, how.batch_size)}
    audio = Modality(
        "audio", "aud_emb", "clips", lambda path, how: Clips(path), lambda: loaders, "loudness:a", "sounds"
    )
    monkeypatch.setattr(modalities, "MODALITIES", (*modalities.MODALITIES, audio))
    (data / "clips").mkdir()
    for item in range(1, ITEMS, 2):
        (data / "clips" / f"{item}.wav").write_bytes(b"RIFF%d" % item)
    assert "--clips is missing" in fails(data, tmp_path / "out.parquet", monkeypatch, capsys)
    options = {"clips": data / "clips", "audio_encoder": "loudness:b"}
    three = build(data, tmp_path / "out.parquet", monkeypatch, **options)
    assert re.search(r"^audio +found 12, missing 12\n +heard\n", capsys.readouterr().out, re.M)
    made = json.loads((tmp_path / "out.build.json").read_text())
    assert made["columns"] == ["item_emb_d8", "txt_emb_d8", "img_emb_d8", "aud_emb_d8"]
    assert made["audio"] == {"encoder": "loudness b", "counts": {"found": 12, "missing": 12}, "files": 12}
    assert list(made["explained_variance"]) == ["text", "image", "audio", "total"]
    two = build(data, tmp_path / "two.parquet", monkeypatch, audio_encoder="none")
    assert not np.array_equal(two, three)
    message = fails(data, tmp_path / "x.parquet", monkeypatch, capsys, clips=data, audio_encoder="pitch")
    assert "--audio_encoder pitch: unknown, expected none, loudness:..." in message


def test_the_opening_is_a_view_of_its_own(data, tmp_path, monkeypatch, capsys, quick):
    titles = [f"number {i} {'and a story that goes on ' * 6}{i * i}" for i in range(1, 25)]
    titles[1] = titles[0].split(" and")[0] + " but nothing else is the same in this one"
    fused, pca = [], fusion.pca
    monkeypatch.setitem(fusion.FUSIONS, "pca", lambda parts, *rest: (fused.append(parts), pca(parts, *rest))[1])
    options = {"item_feature": feature_with(data, item_title=titles), "image_encoder": "none", "images": None}
    options["fused_only"] = True
    for words in (2, 0):
        build(data, tmp_path / f"{words}.parquet", monkeypatch, opening_words=words, **options)
    both, whole = (parts["text"].read(np.arange(ITEMS)) for parts in fused)
    np.testing.assert_array_equal(both[:, : whole.shape[1]], whole)
    opening = both[:, whole.shape[1] :]
    assert opening.shape == whole.shape
    _, kind, counts = np.unique(opening, axis=0, return_inverse=True, return_counts=True)
    assert sorted(counts) == [1] * 22 + [2]
    one, other = np.flatnonzero(counts[kind.ravel()] == 2)
    assert not np.array_equal(whole[one], whole[other])
    assert "encoded 47, reused 0" in capsys.readouterr().out  # 24 texts, 23 openings
    assert json.loads((tmp_path / "2.build.json").read_text())["text"]["opening_words"] == 2


def test_an_item_with_one_bad_view_has_no_features_and_not_those_of_another(data, tmp_path, monkeypatch, capsys):
    class NoQuestions(Hashes):
        def prepare(self, content: bytes):
            if content.endswith(b"?"):
                raise BadContent("corrupt", "a question")
            return content, 0

    text, image = modalities.MODALITIES
    loaders = {text.default: lambda rest, how: NoQuestions("no questions", 20, how.batch_size)}
    monkeypatch.setattr(modalities, "MODALITIES", (dataclasses.replace(text, encoders=lambda: loaders), image))
    titles = [f"number {item} and what it is about" for item in range(1, ITEMS + 1)]
    tags = [["one", "two"]] * ITEMS
    titles[10] = "number eleven? and what it is about"  # its opening is a question
    tags[12] = ["one", "two?"]  # its whole text is one
    titles[14], tags[14] = "really so?", None  # both are
    bad = pq.read_table(data / "item_feature.parquet")["item_id"].to_numpy()[[10, 12, 14]]
    options = {"item_feature": feature_with(data, item_title=titles, item_tags=tags), "image_encoder": "none"}
    options |= {"images": None, "opening_words": 2, "fused_only": True}
    found = build(data, tmp_path / "out.parquet", monkeypatch, **options)
    assert np.flatnonzero(~found.any(axis=1)).tolist() == [0, *np.sort(bad)]
    assert "found 21, missing 0, corrupt 3" in capsys.readouterr().out
    titles[14], tags[12] = "so!", None
    options |= {"item_feature": feature_with(data, item_title=titles, item_tags=tags), "strict": True}
    message = fails(data, tmp_path / "strict.parquet", monkeypatch, capsys, **options)
    assert "found 1 bad text files, expected none with --strict" in message and f"item {bad[0]} corrupt" in message


def test_no_output_is_an_input_a_device_or_in_an_input_folder(data, tmp_path, monkeypatch, capsys, quick):
    def refused(expected: str, output: Path = tmp_path / "out.parquet", **options):
        message = fails(data, output, monkeypatch, capsys, **options)
        assert re.search(expected, message), message

    refused("is inside the input folder .*images; inputs are never modified", output=data / "images" / "out.parquet")
    refused("--store .* is in the input .*images; inputs are never modified", store=data / "images" / "store")
    refused("--store .* is in the input .*images; inputs are never modified", store=data / "images")
    refused("--store .*out.parquet is the --output, expected a folder", store=tmp_path / "out.parquet")
    (data / "other_store").mkdir()
    refused("is inside the input folder .*other_store", output=data / "other_store" / "out.parquet",
            store=[tmp_path / "store", data / "other_store"])  # fmt: skip
    shutil.copy(data / "item_info.parquet", data / "levels.parquet")
    for option in ("levels_from", "train"):
        levels = data / "levels.parquet"
        fusion = {"fusion": "item2vec"} if option == "train" else {}
        refused("levels.parquet is an input", output=levels, **{option: levels}, **fusion)
    shutil.copy(data / "item_feature.parquet", data / "out.build.json")
    refused("--output's manifest .*out.build.json is an input", output=data / "out.parquet",
            item_feature=data / "out.build.json")  # fmt: skip
    (tmp_path / "linked.parquet").symlink_to(data / "item_info.parquet")
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [3, 1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"score": [0.5]}), tmp_path / "scores.parquet")
    kept = {name: (tmp_path / name).read_bytes() for name in ("train.parquet", "scores.parquet")}
    monkeypatch.setattr(sys, "argv", ["x", *arguments(data, tmp_path / "linked.parquet")])
    before = (data / "item_info.parquet").read_bytes()
    for place, expected in (
        (tmp_path / "linked.parquet", "is an input"),
        (tmp_path / "pipe", "this is a device or a pipe"),
        (tmp_path / "notes.txt", "there is a file that is no parquet"),
        (
            tmp_path / "train.parquet",
            "there is a parquet file whose item_id is not 0, 1, 2, ..., so it is no item table",
        ),
        (tmp_path / "scores.parquet", "so it is no item table"),
    ):
        if place.name == "pipe":
            os.mkfifo(place)  # /dev/null is of this kind, and must not be at stake in a test
        elif place.name == "notes.txt":
            place.write_text("mine")
        monkeypatch.setattr(sys, "argv", ["x", *arguments(data, place)])
        with pytest.raises(UserError, match=expected):
            build_item_emb.main()
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "notes.txt").read_text() == "mine"
    assert (data / "item_info.parquet").read_bytes() == before
    assert kept == {name: (tmp_path / name).read_bytes() for name in kept}
    assert sorted(os.listdir(data / "images")) == sorted(f"{item}.jpg" for item in range(1, 25) if item != 5)


def test_a_store_at_work_and_a_full_disk_are_one_clear_error(data, tmp_path, monkeypatch, capsys, quick):
    with feature_store.open_store(tmp_path / "store", "image", 30):
        message = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, store=tmp_path / "store")
    assert "another process is at work there; wait for it, or choose another folder" in message

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in fails(data, tmp_path / "out.parquet", monkeypatch, capsys)
    assert not list(tmp_path.rglob("*.part"))


def test_every_bad_input_is_one_clear_error(data, tmp_path, monkeypatch, capsys, quick):
    def refused(expected: str, **options):
        message = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, **options)
        assert re.search(expected, message), message

    ids = pq.read_table(data / "item_feature.parquet").column("item_id").to_pylist()
    refused(
        r"item_id 99 in row 23 is not in item_info \(1 to 24\)",
        item_feature=feature_with(data, item_id=[*ids[:-1], 99]),
    )
    refused("item_id -1 in row 0 is not in item_info", item_feature=feature_with(data, item_id=[-1, *ids[1:]]))
    refused("occurs again in row 23", item_feature=feature_with(data, item_id=[*ids[:-1], ids[0]]))
    refused("item_id has type string", item_feature=feature_with(data, item_id=[str(item) for item in ids]))
    refused("column item_id is missing", item_feature=feature_with(data, item_id=None))
    refused(
        "found columns item_id, expected item_title or item_tags .*--text_columns",
        item_feature=feature_with(data, item_title=None, item_tags=None),
    )
    refused("item_title has type double, expected text", item_feature=feature_with(data, item_title=[0.5] * ITEMS))
    empty = {"item_title": [""] * ITEMS, "item_tags": [[]] * ITEMS}
    refused("found no titles or tags", item_feature=feature_with(data, **empty))
    (data / "f.parquet").write_bytes((data / "item_feature.parquet").read_bytes()[:-50])
    refused("not a complete parquet file", item_feature=data / "f.parquet")
    table = pq.read_table(data / "item_info.parquet")
    pq.write_table(table.slice(1), data / "shifted.parquet")
    refused("item_id is 1 in row 0, expected 0", item_info=data / "shifted.parquet")
    pq.write_table(table.slice(0, 1), data / "padding.parquet")
    refused("has 0 items beside the padding row", item_info=data / "padding.parquet")

    images_only = {"text_encoder": "none", "item_feature": None}
    (data / "covers.zip").write_bytes(b"PK not a zip")
    refused("not a complete zip file", images=data / "covers.zip", **images_only)
    (data / "nothing").mkdir()
    refused("found no usable images named ITEM_ID.jpg", images=data / "nothing", **images_only)
    shutil.copy(data / "images" / "1.jpg", data / "images" / "1.png")
    refused("item 1 has two images, 1.jpg and 1.png", **images_only)

"""`build_item_emb.py` as users run it: real encoders on small drawn covers, killed runs, bad files and bad options."""

import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from transformers.utils import logging as transformers_logging

import build_item_emb
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.items import decoding, feature_store, fusion, modalities
from mm_fibinet.items.build import build as build_embedding
from mm_fibinet.items.modalities import Modality
from mm_fibinet.items.sources import BadContent, Entry

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["cat", "dog", "river", "night", "city", "song", "dance", "cook", "travel", "game", "snow", "robot", "garden"]
ITEMS = 24


def cover(seed: int) -> bytes:
    """A small JPEG with a few random shapes."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (60, 80), tuple(rng.integers(0, 255, 3).tolist()))
    for _ in range(3):
        left, top = rng.integers(0, 50, 2).tolist()
        box = [left, top, left + int(rng.integers(5, 40)), top + int(rng.integers(5, 40))]
        ImageDraw.Draw(picture).ellipse(box, fill=tuple(rng.integers(0, 255, 3).tolist()))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def make_data(folder: Path, items: int = ITEMS) -> Path:
    """item_info.parquet, item_feature.parquet and images/ of `items` items; item 3 has no text, item 5 no image."""
    rng = np.random.default_rng(7)
    titles = [" ".join(rng.choice(WORDS, 4)) for _ in range(items)]
    tags: list = [list(rng.choice(WORDS, 2)) for _ in range(items)]
    titles[2], tags[2] = "", None
    order = rng.permutation(items)
    feature = {
        "item_id": pa.array(order + 1),
        "item_title": pa.array([titles[row] for row in order], pa.large_string()),
        "item_tags": pa.array([tags[row] for row in order], pa.large_list(pa.large_string())),
    }
    info = {
        "item_tags": pa.array([[0, 0]] + [[0, row] for row in range(items)], pa.list_(pa.int32(), 2)),
        "item_id": pa.array(range(items + 1), pa.int64()),
        "item_emb_d8": pa.array([[0.0] * 8] + [[0.5] * 8] * items, pa.list_(pa.float64())),
        "likes_level": pa.array([0] * (items + 1), pa.int8()),
    }
    images = folder / "images"
    images.mkdir(parents=True)
    for item in range(1, items + 1):
        if item != 5:
            (images / f"{item}.jpg").write_bytes(cover(item))
    pq.write_table(pa.table(info), folder / "item_info.parquet")
    pq.write_table(pa.table(feature), folder / "item_feature.parquet")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on the number of threads, and spinning threads are slow on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


def arguments(data: Path, output: Path, **options) -> list[str]:
    """The command line; an option of None is left out, one of True is a flag."""
    named = {
        "item_info": data / "item_info.parquet",
        "item_feature": data / "item_feature.parquet",
        "images": data / "images",
        "output": output,
        "emb_dim": 8,
        "batch_size": 4,
        "device": "cpu",
    } | options
    line = []
    for name, value in named.items():
        if value is not None:
            line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return line


def build(data: Path, output: Path, monkeypatch, **options) -> np.ndarray:
    """Run main in this process; the embedding, float32 [ITEMS + 1, emb_dim]."""
    monkeypatch.setattr(sys, "argv", ["build_item_emb.py", *arguments(data, output, **options)])
    build_item_emb.main()
    return embedding(output, int(options.get("emb_dim", 8)))


def embedding(path: Path, emb_dim: int = 8) -> np.ndarray:
    column = pq.read_table(path).column(f"item_emb_d{emb_dim}").combine_chunks()
    assert column.type == pa.list_(pa.float32(), emb_dim)
    return column.flatten().to_numpy().reshape(-1, emb_dim)


class Hashes:
    """An encoder whose vector is drawn from the content's hash: quick, and another one for every content."""

    def __init__(self, id: str, dim: int, batch_size: int = 4):
        self.id, self.dim, self.batch_size = id, dim, batch_size

    def prepare(self, content: bytes):
        if content.startswith(b"<html>"):
            raise BadContent("corrupt", "not an image")
        return content, 0

    def encode(self, samples):
        seeds = [int.from_bytes(hashlib.sha256(sample).digest()[:8], "big") for sample in samples]
        return np.stack([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]).astype(np.float32)


@pytest.fixture
def quick(monkeypatch):
    """Text and image with an encoder that takes no time, of 20 and 30 numbers, in place of the default ones."""

    def hashing(modality: Modality, dim: int) -> Modality:
        loaders = {modality.default: lambda rest, device, size: Hashes(modality.name, dim, size)}
        return dataclasses.replace(modality, encoders=loaders)

    text, image = modalities.MODALITIES
    monkeypatch.setattr(modalities, "MODALITIES", (hashing(text, 20), hashing(image, 30)))


def fails(data: Path, output: Path, monkeypatch, capsys, **options) -> str:
    """Run as the script does and expect a user error: exit code 2, one line, nothing written. Returns the line."""
    monkeypatch.setattr(sys, "argv", ["build_item_emb.py", *arguments(data, output, **options)])
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run_cli(build_item_emb.main)
    message = [line for line in capsys.readouterr().err.splitlines() if "item/s" not in line and line.strip()]
    assert stopped.value.code == 2
    assert len(message) == 1 and message[0].startswith("error: ")
    assert not output.exists() or output.is_dir() or output in before
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    return message[0]


def test_the_command_and_its_repetition(data, tmp_path, monkeypatch, capsys):
    """The real command, then again: the second run encodes nothing and writes the same bytes."""
    output = tmp_path / "out" / "item_info.parquet"
    line = [sys.executable, str(ROOT / "build_item_emb.py"), *arguments(data, output)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^items +24$", done.stdout, re.M)
    assert re.search(r"^text +found 23, missing 1$", done.stdout, re.M)
    assert re.search(r"^image +found 23, missing 1, corrupt 0, oversized 0$", done.stdout, re.M)
    assert "encoded 23, reused 0" in done.stdout and "items/s" in done.stdout
    assert re.search(r"^explained +text \d+\.\d%, image \d+\.\d%, total \d+\.\d%$", done.stdout, re.M)
    assert "text:" in done.stderr and "image:" in done.stderr, "progress bars"

    before, after = pq.read_table(data / "item_info.parquet"), pq.read_table(output)
    assert after.column_names == [*before.column_names, "txt_emb_d8", "img_emb_d8"]
    for name in ("item_tags", "item_id", "likes_level"):
        assert after.column(name).equals(before.column(name))
    values = embedding(output)
    assert np.all(values[0] == 0) and np.isfinite(values).all()
    assert np.square(values[1:]).sum(axis=1).mean() == pytest.approx(8, rel=1e-5)  # a mean variance of 1 a column
    made = json.loads(output.with_suffix(".build.json").read_text())
    assert made["image"]["counts"] == {"found": 23, "missing": 1, "corrupt": 0, "oversized": 0}
    assert made["text"]["encoder"].startswith("minilm 53aa5117")

    first = output.read_bytes()
    build(data, output, monkeypatch)
    assert capsys.readouterr().out.count("encoded 0, reused 23") == 2
    assert output.read_bytes() == first


def process_state() -> dict:
    """What a library must leave as it was, though its own libraries ask for other settings."""
    backends = torch.backends
    return {
        "warnings": list(warnings.filters),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "transformers": (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()),
        "kernels": (backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32),
        "matmul": backends.cuda.matmul.allow_tf32,
        "random": torch.get_rng_state().tolist(),
    }


def test_another_store_gives_the_same_bytes_and_the_process_is_as_it_was(data, tmp_path, monkeypatch, capsys):
    build(data, tmp_path / "a.parquet", monkeypatch, store=tmp_path / "a")
    before = process_state()  # not earlier: what the libraries do while they are imported is theirs
    build(data, tmp_path / "b.parquet", monkeypatch, store=tmp_path / "b")
    assert process_state() == before
    assert capsys.readouterr().out.count("encoded 23, reused 0") == 4
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / "data", items=80)
    store, output = tmp_path / "store", tmp_path / "out.parquet"
    script = (
        "import sys, runpy, torch, mm_fibinet.items.feature_store as store; "
        "torch.set_num_threads(1); store.SHARD_ROWS = 4; "
        f"sys.argv[0] = 'build_item_emb.py'; runpy.run_path({str(ROOT / 'build_item_emb.py')!r}, None, '__main__')"
    )
    line = [sys.executable, "-c", script, *arguments(data, output, store=store)]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while len(list(store.glob("efficientnet*/*.h5"))) < 3:
        assert process.poll() is None and time.monotonic() < limit, "the run was to be killed in its middle"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()

    build(data, output, monkeypatch, store=store)
    resumed = capsys.readouterr().out
    encoded, reused = map(int, re.findall(r"encoded (\d+), reused (\d+)", resumed)[1])
    assert encoded + reused == 79 and reused >= 12 and encoded > 0
    build(data, tmp_path / "whole.parquet", monkeypatch, store=tmp_path / "fresh")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_one_changed_cover_costs_one_forward_pass(data, tmp_path, monkeypatch, capsys, quick):
    options = {"text_encoder": "none", "item_feature": None}
    first = build(data, tmp_path / "a.parquet", monkeypatch, **options)
    (data / "images" / "2.jpg").write_bytes(cover(999))
    second = build(data, tmp_path / "b.parquet", monkeypatch, **options)
    assert "encoded 1, reused 22" in capsys.readouterr().out
    assert not np.array_equal(first[2], second[2])


def test_zip_and_rar_equal_the_folder(data, tmp_path, monkeypatch, capsys, quick):
    files = {path.name: path.read_bytes() for path in sorted((data / "images").iterdir())}
    with zipfile.ZipFile(data / "covers.zip", "w") as packed:
        for name, content in files.items():
            packed.writestr(f"some/where/{name}", content)
        packed.writestr("__MACOSX/._1.jpg", b"rubbish")
        packed.writestr("README.txt", b"hello")
        packed.writestr("deep/77.png", cover(77))
    options = {"text_encoder": "none", "item_feature": None}
    build(data, tmp_path / "folder.parquet", monkeypatch, **options)
    build(data, tmp_path / "zip.parquet", monkeypatch, images=data / "covers.zip", store=tmp_path / "z", **options)
    assert "1 images of ids that are not in item_info" in capsys.readouterr().out
    assert (tmp_path / "zip.parquet").read_bytes() == (tmp_path / "folder.parquet").read_bytes()

    pytest.importorskip("libarchive")
    (data / "covers.rar").write_bytes(rar({f"covers/{name}": content for name, content in files.items()}))
    build(data, tmp_path / "rar.parquet", monkeypatch, images=data / "covers.rar", store=tmp_path / "r", **options)
    assert (tmp_path / "rar.parquet").read_bytes() == (tmp_path / "folder.parquet").read_bytes()


def rar(files: dict[str, bytes]) -> bytes:
    """A RAR 4 archive that stores its files without compression."""

    def block(kind: int, flags: int, fields: bytes) -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head

    parts = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for name, content in files.items():
        size, checksum = len(content), zlib.crc32(content)
        head = struct.pack("<IIBIIBBHI", size, size, 3, checksum, 0, 20, 0x30, len(name), 0o100644)
        parts += [block(0x74, 0x8000, head + name.encode()), content]
    return b"".join([*parts, block(0x7B, 0x4000, b"")])


def test_without_libarchive_a_rar_says_what_to_install(data, tmp_path, monkeypatch, capsys):
    (data / "covers.rar").write_bytes(rar({"1.jpg": cover(1)}))
    monkeypatch.setitem(sys.modules, "libarchive", None)
    options = {"images": data / "covers.rar", "text_encoder": "none"}
    message = fails(data, tmp_path / "out.parquet", monkeypatch, capsys, **options)
    assert "install libarchive-c" in message and "unpack it to a folder" in message


def test_bad_images_are_named_and_get_the_mean(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "MAX_IMAGE_PIXELS", 10_000)
    images = data / "images"
    whole = (images / "1.jpg").read_bytes()
    (images / "1.jpg").write_bytes(whole[:-100])
    (images / "2.jpg").write_bytes(b"<html>not found</html>")
    (images / "4.jpg").write_bytes(b"")
    Image.new("RGB", (101, 100)).save(images / "6.jpg")
    Image.new("P", (50, 50)).save(images / "7.png")
    (images / "7.jpg").unlink()
    options = {"text_encoder": "none", "item_feature": None}
    values = build(data, tmp_path / "out.parquet", monkeypatch, **options)
    out = capsys.readouterr().out
    assert "found 19, missing 1, corrupt 3, oversized 1" in out
    assert "1.jpg corrupt" in out and "6.jpg oversized (101 x 100 pixels" in out
    assert np.all(values[[0, 1, 2, 4, 5, 6]] == 0), "the mean of image features is the origin"
    assert np.all(np.any(values[[3, 7, 8]] != 0, axis=1))
    message = fails(data, tmp_path / "strict.parquet", monkeypatch, capsys, strict=True, **options)
    assert "found 4 bad image files" in message and "2.jpg corrupt (not an image)" in message


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
    assert "column item_emb_d8, txt_emb_d8, img_emb_d8" in capsys.readouterr().out
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
    monkeypatch.setattr(sys, "argv", ["build_item_emb.py", "--item_info", "in", "--output", "out"])
    default = build_item_emb.parse_arguments().emb_dim
    build(data, tmp_path / "out.parquet", monkeypatch)
    written = {name.replace("_d8", f"_d{default}") for name in pq.read_table(tmp_path / "out.parquet").column_names}
    assert set(experiments["FiBiNET_recommended"]["similarity_only"]) <= written


def test_fewer_directions_than_emb_dim_are_named_with_the_way_out(data, tmp_path, monkeypatch, capsys, quick):
    text, image = modalities.MODALITIES
    narrow = {"minilm": lambda rest, device, size: Hashes("narrow", 3, size)}
    monkeypatch.setattr(modalities, "MODALITIES", (dataclasses.replace(text, encoders=narrow), image))
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
    build_item_emb.print_summary(built)
    out = capfd.readouterr().out
    assert "read item_tags: no title, expected one of item_title, title" in out
    assert "1 file is not named ITEM_ID.jpg/.jpeg/.png/.webp, e.g. item_16.jpg" in out
    assert json.loads((tmp_path / "out.build.json").read_text())["image"]["misnamed"] == 1
    with pytest.raises(
        TypeError, match="unexpected argument 'image', expected one of item_feature, text_encoder, images"
    ):
        build_embedding("in.parquet", "out.parquet", image="covers")
    with pytest.raises(UserError, match="--emb_dim 0: expected 1 or more"):
        build_embedding("in.parquet", "out.parquet", emb_dim=0)


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
    loaders = {"loudness:": lambda rest, device, size: Hashes(f"loudness {rest}", 16, size)}
    audio = Modality("audio", "aud_emb", "clips", lambda path, how: Clips(path), loaders, "loudness:a", "sounds")
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
    both, whole = (parts["text"].features for parts in fused)
    np.testing.assert_array_equal(both[:, : whole.shape[1]], whole)
    opening = both[:, whole.shape[1] :]
    assert opening.shape == whole.shape
    _, kind, counts = np.unique(opening, axis=0, return_inverse=True, return_counts=True)
    assert sorted(counts) == [1] * 22 + [2]
    one, other = np.flatnonzero(counts[kind.ravel()] == 2)
    assert not np.array_equal(whole[one], whole[other])
    assert "encoded 47, reused 0" in capsys.readouterr().out  # 24 texts, 23 openings
    assert json.loads((tmp_path / "2.build.json").read_text())["text"]["opening_words"] == 2


def feature_with(data: Path, **columns) -> Path:
    """A changed item_feature beside the data."""
    table = pq.read_table(data / "item_feature.parquet").to_pydict() | columns
    pq.write_table(pa.table({name: value for name, value in table.items() if value is not None}), data / "f.parquet")
    return data / "f.parquet"


def test_every_bad_option_is_one_clear_error(data, tmp_path, monkeypatch, capsys):
    def refused(expected: str, output: Path = tmp_path / "out.parquet", **options):
        message = fails(data, output, monkeypatch, capsys, **options)
        assert re.search(expected, message), message

    none = {"text_encoder": "none", "image_encoder": "none"}
    refused("all encoders are none, expected at least one", **none)
    refused("--opening_words -1: expected 0 or more", opening_words=-1)
    refused("--item_feature is missing; give it, or .*--text_encoder none", item_feature=None)
    refused("--images is missing; give it, or .*--image_encoder none", images=None)
    refused("is an input; inputs are never modified", output=data / "item_info.parquet")
    refused("is an input; inputs are never modified", output=data / "item_feature.parquet")
    refused("this is a folder", output=data)
    refused("item_info.parquet: no such file", item_info=data / "none" / "item_info.parquet")
    refused("no such file or folder", images=data / "nowhere")
    refused("cannot tell what kind of archive", images=data / "item_info.parquet")
    refused("--device tpu: unknown device", device="tpu")
    refused("emb_dim is 128, but 24 items .* choose --emb_dim 23 or less", emb_dim=128)
    refused("--image_encoder vgg: unknown", image_encoder="vgg", text_encoder="none")
    (data / "file").write_text("")
    refused("cannot write", store=data / "file")
    refused("--emb_dim 0: expected 1 or more", emb_dim=0)
    refused("--batch_size 0: expected 1 or more", batch_size=0)


def test_no_output_is_an_input_a_device_or_in_an_input_folder(data, tmp_path, monkeypatch, capsys, quick):
    def refused(expected: str, output: Path = tmp_path / "out.parquet", **options):
        message = fails(data, output, monkeypatch, capsys, **options)
        assert re.search(expected, message), message

    refused("is inside the input folder .*images; inputs are never modified", output=data / "images" / "out.parquet")
    refused("--store .* is in the input .*images; inputs are never modified", store=data / "images" / "store")
    refused("--store .* is in the input .*images; inputs are never modified", store=data / "images")
    refused("--store .*out.parquet is the --output, expected a folder", store=tmp_path / "out.parquet")
    shutil.copy(data / "item_feature.parquet", data / "out.build.json")
    refused("--output's manifest .*out.build.json is an input", output=data / "out.parquet",
            item_feature=data / "out.build.json")  # fmt: skip
    (tmp_path / "linked.parquet").symlink_to(data / "item_info.parquet")
    monkeypatch.setattr(sys, "argv", ["x", *arguments(data, tmp_path / "linked.parquet")])
    before = (data / "item_info.parquet").read_bytes()
    for place, expected in (
        (tmp_path / "linked.parquet", "is an input"),
        (tmp_path / "pipe", "this is a device or a pipe"),
        (tmp_path / "notes.txt", "there is a file that is no parquet"),
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


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_store, "_encode", interrupt)
    monkeypatch.setattr(sys, "argv", ["build_item_emb.py", *arguments(data, tmp_path / "out.parquet")])
    with pytest.raises(SystemExit) as stopped:
        run_cli(build_item_emb.main)
    assert stopped.value.code == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()

"""`build_item_emb.py` as users run it: real encoders on small drawn covers, killed runs, bad files and bad options."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from item_files import arguments, build, cover, embedding, fails, make_data, rar
from PIL import Image
from transformers.utils import logging as transformers_logging

import build_item_emb
from mm_fibinet.errors import run_cli
from mm_fibinet.items import decoding, pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "data")


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
    assert not done.stderr  # no bars where there is no terminal, and no library's warning

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
    refused("no.parquet: no such file; check the path, or", fusion="item2vec", train=data / "no.parquet")
    refused("no such file or folder", images=data / "nowhere")
    refused("expected one column of image files' bytes .*; found item_tags", images=data / "item_info.parquet")
    refused("cannot tell what kind of archive", images=Path(__file__))
    refused("--device tpu: unknown device", device="tpu")
    refused("emb_dim is 128, but 24 items .* choose --emb_dim 23 or less", emb_dim=128)
    refused("--image_encoder vgg: unknown", image_encoder="vgg", text_encoder="none")
    (data / "file").write_text("")
    refused("cannot write", store=data / "file")
    refused("--emb_dim 0: expected 1 or more", emb_dim=0)
    refused("--batch_size 0: expected 1 or more", batch_size=0)


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline._Network, "take", interrupt)
    monkeypatch.setattr(sys, "argv", ["build_item_emb.py", *arguments(data, tmp_path / "out.parquet")])
    with pytest.raises(SystemExit) as stopped:
        run_cli(build_item_emb.main)
    assert stopped.value.code == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()

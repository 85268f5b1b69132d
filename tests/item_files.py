"""Small catalogues to build an embedding of, the build as users start it, and an encoder that takes no time."""

import hashlib
import io
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

import build_item_emb
from mm_fibinet.errors import run_cli
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.encoding import Encoder
from mm_fibinet.items.sources import ImageSource

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


def arguments(data: Path, output: Path, **options) -> list[str]:
    """The command line; an option of None is left out, one of True is a flag, a list has several values."""
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
            line += (
                [f"--{name}"]
                if value is True
                else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
            )
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


class Hashes(Encoder):
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


def feature_with(data: Path, **columns) -> Path:
    """A changed item_feature beside the data."""
    table = pq.read_table(data / "item_feature.parquet").to_pydict() | columns
    pq.write_table(pa.table({name: value for name, value in table.items() if value is not None}), data / "f.parquet")
    return data / "f.parquet"


def rar(files: dict[str, bytes], encrypted: bool = False) -> bytes:
    """A RAR 4 archive that stores its files without compression; one that says they are encrypted, where asked."""

    def block(kind: int, flags: int, fields: bytes) -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head

    parts = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for name, content in files.items():
        path, size, checksum = name.encode(), len(content), zlib.crc32(content)
        head = struct.pack("<IIBIIBBHI", size, size, 3, checksum, 0, 20, 0x30, len(path), 0o100644)
        parts += [block(0x74, 0x8004 if encrypted else 0x8000, head + path), content]
    return b"".join([*parts, block(0x7B, 0x4000, b"")])


def images_of(source: ImageSource) -> dict[int, bytes | str]:
    """By item: the bytes, or the kind and the reason of those that cannot be used."""
    found: dict[int, bytes | str] = {}
    for entry in source:
        try:
            found[entry.item_id] = entry.load()
        except BadContent as error:
            found[entry.item_id] = f"{error.kind}: {error}"
    return found


def pack(kind: str, data: Path) -> Path:
    """The covers of the folder in a file of another kind, in another order, with what does not belong there."""
    files = {path.name: path.read_bytes() for path in sorted((data / "images").iterdir(), reverse=True)}
    others = {"__MACOSX/._1.jpg": b"rubbish", "README.txt": b"hello", "deep/77.png": cover(77)}
    placed = {f"some/where/{name}": content for name, content in files.items()} | others
    packed = data / f"covers.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in placed.items():
                archive.writestr(name, content)
    elif kind in ("tar", "tar.gz"):
        with tarfile.open(packed, "w:gz" if kind.endswith("gz") else "w") as archive:
            for name, content in placed.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    elif kind == "rar":
        packed.write_bytes(rar(placed))
    elif kind == "h5":
        with h5py.File(packed, "w") as archive:
            for name, content in placed.items():
                archive[name.removesuffix(".jpg")] = np.frombuffer(content, dtype=np.uint8)
    else:
        ids = [int(Path(name).stem) for name in files]
        pq.write_table(pa.table({"item_id": [*ids, 77], "image": [*files.values(), cover(77)]}), packed)
    return packed

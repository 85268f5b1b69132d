"""Targets of the item embedding: images, archives of them, texts, and the store of features."""

import io
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from fuzz.changes import TEXTS, byte_changes, change_bytes, change_table, table_changes
from fuzz.oracle import Done, Fault, Place, invoke

ITEMS, EMB_DIM = 6, 3
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "jpg", "BMP": "jpg"}


def picture(seed: int, form: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 60)) -> bytes:
    """A small image file with a few shapes."""
    rng = np.random.default_rng(seed)
    drawn = Image.new("RGB", size, tuple(rng.integers(0, 255, 3).tolist()))
    for _ in range(3):
        left, top = rng.integers(0, 30, 2).tolist()
        ImageDraw.Draw(drawn).ellipse([left, top, left + 15, top + 15], fill=tuple(rng.integers(0, 255, 3).tolist()))
    buffer = io.BytesIO()
    converted = drawn.convert("I").convert("I;16") if mode == "I;16" else drawn.convert(mode)
    converted.save(buffer, form)
    return buffer.getvalue()


def make_base(base: Path) -> None:
    """item_info, item_feature and images of ITEMS items, their features in a store, each modality's embedding."""
    folder = base / "items"
    (folder / "images").mkdir(parents=True)
    for item in range(1, ITEMS + 1):
        (folder / "images" / f"{item}.jpg").write_bytes(picture(item))
    tags = pa.FixedSizeListArray.from_arrays(pa.array(range(2 * (ITEMS + 1)), pa.int64()), 2)
    tags = pa.array([[0, 0], *tags.to_pylist()[1:]], pa.list_(pa.int64(), 2))
    pq.write_table(pa.table({"item_id": range(ITEMS + 1), "item_tags": tags}), folder / "item_info.parquet")
    titles = ["a red cat", "two dogs in the snow", "songs of the river", "night city", "how to cook", "a robot"]
    feature = {"item_id": range(1, ITEMS + 1), "item_title": titles, "item_tags": [["a", "b"]] * ITEMS}
    pq.write_table(pa.table(feature), folder / "item_feature.parquet")
    for modality in ("image", "text"):
        done = invoke(
            "build_item_emb", *_arguments(folder, base / "store", base / f"expected_{modality}.parquet", modality)
        )
        if done.code:
            raise RuntimeError(f"the unchanged items are refused: {done.err}")


def _arguments(given: Path, store: Path, output: Path, modality: str, images: Path | None = None) -> list[object]:
    source = {
        "image": ["--images", images or given / "images", "--text_encoder", "none"],
        "text": ["--item_feature", given / "item_feature.parquet", "--image_encoder", "none"],
    }[modality]
    return [
        *("--item_info", given / "item_info.parquet", "--output", output, "--store", store, "--device", "cpu"),
        *("--emb_dim", EMB_DIM, "--batch_size", 2, *source),
    ]


def build(place: Place, base: Path, modality: str, images: Path | None = None) -> Done:
    """Build the embedding of what is given; features of unchanged content come from the store."""
    if not (place.out / "store").exists():
        shutil.copytree(base / "store", place.out / "store")
    output = place.out / "item_info.parquet"
    arguments = _arguments(place.given, place.out / "store", output, modality, images)
    done = place.run("build_item_emb", *arguments, results=("*.parquet", "*.json"))
    if done.code == 0:
        built, given = pq.read_table(output), pq.read_table(place.given / "item_info.parquet")
        if any(built[name].to_pylist() != given[name].to_pylist() for name in given.column_names):
            raise Fault("build_item_emb: a column of item_info is not that of the input")
        values = np.array(built[f"item_emb_d{EMB_DIM}"].to_pylist(), dtype=np.float64)
        if values.shape != (ITEMS + 1, EMB_DIM) or not np.isfinite(values).all() or values[0].any():
            raise Fault("build_item_emb: ended with 0 and the embedding is not finite, or row 0 is not zero")
    return done


NAMES = (
    *(
        "2.JPG",
        "02.jpg",
        "item_2.jpg",
        "2.jpg.jpg",
        "0.jpg",
        "99.jpg",
        "-1.jpg",
        "2.avif",
        "2",
        ".jpg",
        "2 .jpg",
        "2.gif",
    ),
    *(
        "\uff12.jpg",
        "2\n.jpg",
        "\x1b[2J2.jpg",
        "\u202e2.jpg",
        "9" * 30 + ".jpg",
        "x" * 200 + ".jpg",
        "sub/1.jpg",
        "sub/9.jpg",
    ),
)
image_change = st.one_of(
    st.tuples(st.just("bytes"), st.sampled_from(sorted(FORMATS)), byte_changes),
    st.tuples(
        st.just("mode"), st.sampled_from(["PNG", "WEBP", "BMP"]), st.sampled_from(["1", "L", "P", "I;16", "RGBA"])
    ),
    st.tuples(
        st.just("size"),
        st.sampled_from(["PNG", "JPEG", "GIF"]),
        st.sampled_from([0, 1, 255, 65535, 2**31 - 1, 2**32 - 1]),
    ),
    st.tuples(st.just("shape"), st.sampled_from([(1, 1), (1, 20000), (20000, 1), (3000, 3)]), st.none()),
    st.tuples(st.just("name"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("link"), st.sampled_from(["2.jpg", "nowhere.jpg", ".", "/dev/null"]), st.none()),
    st.tuples(st.just("folder"), st.none(), st.none()),
)
image_cases = st.lists(image_change, min_size=1, max_size=2)


def changed_image(kind: str, what: object, more: object) -> bytes:
    """The bytes of item 2's image after a change."""
    if kind == "bytes":
        return change_bytes(picture(2, str(what)), more)  # type: ignore[arg-type]
    if kind == "mode":
        form = str(what)
        return picture(2, form if form == "PNG" or more in ("L", "RGBA") else "PNG", str(more))
    if kind == "shape":
        return picture(2, "PNG", size=what)  # type: ignore[arg-type]
    return _with_size(picture(2, str(what)), str(what), int(more))  # type: ignore[call-overload]


def _with_size(content: bytes, form: str, side: int) -> bytes:
    """An image whose header states another width, and the same height or, for a PNG of 65535, both."""
    if form == "PNG":
        header = (
            struct.pack(">I", side) + (struct.pack(">I", side) if side == 65535 else content[20:24]) + content[24:29]
        )
        return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]
    if form == "GIF":
        return content[:6] + struct.pack("<H", side & 0xFFFF) + content[8:]
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", side & 0xFFFF, side & 0xFFFF) + content[at + 9 :]


def run_images(place: Place, base: Path, case: list[tuple]) -> list[int]:
    """Changed images: an embedding of those that can be used, or a refusal."""
    shutil.copytree(base / "items", place.given, dirs_exist_ok=True)
    images = place.given / "images"
    for kind, what, more in case:
        path = images / "2.jpg"
        if kind == "name":
            (images / str(what)).parent.mkdir(exist_ok=True)
            shutil.copy(images / "3.jpg", images / str(what))
        elif kind in ("link", "folder") and path.is_file():
            path.unlink()
            path.mkdir() if kind == "folder" else path.symlink_to(str(what))
        elif path.is_file():
            path.write_bytes(changed_image(kind, what, more))
    return [build(place, base, "image").code]


MEMBERS = (
    *("../../2.jpg", "/tmp/2.jpg", "2.jpg/", "a/2.jpg", "1.jpg", "C:\\2.jpg", "2.jpg\x00.exe"),
    *(name for name in NAMES if "\n" not in name),
)
archive_change = st.one_of(
    st.tuples(st.just("bytes"), byte_changes),
    st.tuples(
        st.just("suffix"), st.sampled_from([".zip", ".tar", ".tgz", ".rar", ".7z", ".gz", ".xz", ".zst", "", ".jpg"])
    ),
    st.tuples(st.just("name"), st.sampled_from(MEMBERS)),
    st.tuples(st.just("kind"), st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6", b"L", b"x", b"S", b"7"])),
    st.tuples(st.just("zeros"), st.sampled_from([1, 20, 100, 300])),
    st.tuples(st.just("patch"), st.sampled_from([2, 4, 6, 16, 20, 24, 38]), st.integers(0, 2**32 - 1)),
)
archive_cases = st.tuples(
    st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.xz", ".rar"]), st.lists(archive_change, min_size=1, max_size=2)
)


def run_archives(place: Place, base: Path, case: tuple) -> list[int]:
    """A changed archive of the images."""
    shutil.copytree(base / "items", place.given, dirs_exist_ok=True)
    images = _write_archive(place, *case)  # in a function of its own: its memory is not the build's
    return [build(place, base, "image", images).code]


def _write_archive(place: Place, suffix: str, changes: list[tuple]) -> Path:
    """Put a changed archive in the place of the folder of images; returns its path."""
    members = {path.name: path.read_bytes() for path in sorted((place.given / "images").iterdir())}
    kind, edits, named = None, [], suffix
    for change, *what in changes:
        if change == "name":
            members[what[0]] = members["3.jpg"]
        elif change == "zeros":
            members["2.jpg"] = bytes(what[0] << 20)
        elif change == "kind":
            kind = what[0]
        elif change == "suffix":
            named = what[0]
        else:
            edits.append((change, what))
    packed = _packed(members, suffix, kind)
    for change, what in edits:
        if change == "bytes":
            packed = change_bytes(packed, what[0])
        elif (at := packed.rfind(b"PK\x01\x02")) >= 0:
            packed = packed[: at + 4 + what[0]] + struct.pack("<I", what[1]) + packed[at + 8 + what[0] :]
    images = place.given / f"images{named}"
    shutil.rmtree(place.given / "images")
    images.write_bytes(packed)
    return images


def _packed(members: dict[str, bytes], suffix: str, kind: bytes | None) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".rar":
        return b"Rar!\x1a\x07\x01\x00" + bytes(range(200))
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()
    options = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz"}[suffix]
    level = {"compresslevel": 1} if suffix == ".tar.gz" else {"preset": 0} if suffix == ".tar.xz" else {}
    with tarfile.open(fileobj=buffer, mode=options, **level) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if kind and name == "2.jpg":
                member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


text_cases = table_changes


def run_texts(place: Place, base: Path, case: list[tuple]) -> list[int]:
    """A changed item_feature."""
    shutil.copytree(base / "items", place.given, dirs_exist_ok=True)
    change_table(place.given / "item_feature.parquet", case)
    return [build(place, base, "text").code]


store_change = st.one_of(
    st.tuples(st.just("bytes"), byte_changes),
    st.tuples(st.just("drop"), st.sampled_from(["keys", "features", "encoder"])),
    st.tuples(
        st.just("type"), st.sampled_from(["keys", "features"]), st.sampled_from(["f8", "i4", "S3", "O", "c8", "?"])
    ),
    st.tuples(
        st.just("shape"),
        st.sampled_from(["keys", "features"]),
        st.sampled_from(["scalar", "flat", "short", "wide", "vast"]),
    ),
    st.tuples(st.just("values"), st.sampled_from([np.nan, np.inf, 1e38]), st.none()),
    st.tuples(st.just("link"), st.sampled_from(["keys", "features"]), st.sampled_from(["soft", "external", "self"])),
    st.tuples(st.just("encoder"), st.sampled_from([*TEXTS, 7, b"x", [1, 2]])),
    st.tuples(st.just("group"), st.sampled_from(["keys", "features"])),
    st.tuples(st.just("folder")),
)
store_cases = st.tuples(st.sampled_from(["image", "text"]), store_change)


def run_store(place: Place, base: Path, case: tuple) -> list[int]:
    """A changed shard of the store: its features are made again, so the embedding is that of the unchanged store."""
    modality, (kind, *what) = case
    shutil.copytree(base / "items", place.given, dirs_exist_ok=True)
    shutil.copytree(base / "store", place.out / "store")
    for path in (place.out / "store").rglob("*.h5"):
        if kind == "bytes":
            path.write_bytes(change_bytes(path.read_bytes(), what[0]))
        elif kind == "folder":
            path.unlink()
            path.mkdir()
        else:
            _change_shard(path, kind, what)
    done = build(place, base, modality)
    if done.code == 0 and kind != "values":
        expected = pq.read_table(base / f"expected_{modality}.parquet")
        if not pq.read_table(place.out / "item_info.parquet").equals(expected):
            raise Fault(f"build_item_emb: another embedding after a damaged store ({kind})")
    return [done.code]


def _change_shard(path: Path, kind: str, what: list) -> None:
    with h5py.File(path, "r+") as shard:
        name = what[0]
        if kind == "values":
            features = shard["features"][:]
            features[0, 0] = name
            shard["features"][...] = features
        elif kind == "encoder":
            value = name.replace("\x00", "") if isinstance(name, str) else name
            shard.attrs["encoder"] = value
        elif kind == "drop" and name == "encoder":
            del shard.attrs["encoder"]
        else:
            values = shard[name][:]
            del shard[name]
            if kind == "group":
                shard.create_group(name)
            elif kind == "link":
                shard[name] = {
                    "soft": h5py.SoftLink("/nowhere"),
                    "self": h5py.SoftLink(f"/{name}"),
                    "external": h5py.ExternalLink("/etc/passwd", "/x"),
                }[what[1]]
            elif kind == "type":
                changed = values.astype(what[1]) if what[1] != "O" else [str(value) for value in values.ravel()]
                shard.create_dataset(name, data=changed)
            elif kind == "shape" and what[1] == "vast":
                shard.create_dataset(
                    name, shape=(10**12, values.shape[1]), dtype=values.dtype, chunks=(1, values.shape[1])
                )
            elif kind == "shape":
                shard.create_dataset(
                    name,
                    data={
                        "scalar": lambda: values[0, 0],
                        "flat": lambda: values.ravel(),
                        "short": lambda: values[:-1],
                        "wide": lambda: np.hstack([values, values]),
                    }[what[1]](),
                )

"""Images of strangers: what a person would see, within bounds, and every file that cannot be used is counted."""

import gzip
import io
import os
import struct
import tarfile
import threading
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from item_files import images_of, rar
from PIL import Image, ImageOps

from mm_fibinet.errors import UserError
from mm_fibinet.items import decoding, image_files
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.decoding import decode_image
from mm_fibinet.items.sources import ImageSource


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours(size=(6, 4)) -> Image.Image:
    """Red, with a blue corner at the upper left: every turn looks different."""
    image = Image.new("RGB", size, (200, 10, 10))
    image.paste((10, 10, 200), (0, 0, 2, 1))
    return image


COVER = encoded(two_colours())


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG whose header says what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(two_colours((64, 32)), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode_image(data)
    assert decoded.size == ((32, 64) if orientation > 4 else (64, 32))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def test_damaged_exif_does_not_spoil_the_picture():
    plain = encoded(two_colours(), "JPEG")
    at = plain.index(b"\xff\xdb")
    segment = b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f rubbish"
    broken = plain[:at] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[at:]
    with decoding.quiet_pillow():
        np.testing.assert_array_equal(np.asarray(decode_image(broken)), np.asarray(decode_image(plain)))


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values))))
    np.testing.assert_array_equal(decoded, np.repeat(np.rint(values / 257).astype(np.uint8)[..., None], 3, axis=2))


def test_transparent_parts_are_white_and_cmyk_is_converted():
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 0, 0, 0, 0, 250])
    palette.putdata([0, 1])
    assert np.asarray(decode_image(encoded(palette, transparency=0))).tolist() == [[[255, 255, 255], [0, 0, 250]]]
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 51))  # an opacity of a fifth
    assert np.asarray(decode_image(encoded(half))).tolist() == [[[204, 224, 244]]]
    grey = Image.new("LA", (1, 1), (7, 0))
    assert np.asarray(decode_image(encoded(grey))).tolist() == [[[255, 255, 255]]]
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    pixel = np.asarray(decode_image(encoded(ink, "JPEG", quality=100)))[4, 4].astype(int)
    assert np.abs(pixel - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_film_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((240, 0, 0), (0, 240, 0), (0, 0, 240))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.asarray(decode_image(data)).reshape(-1, 3).tolist() == [[240, 0, 0]] * 64


def test_bombs_and_strips_are_measured_and_not_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width, height in ((100_000, 100_000), (8001, 8000), (1, 60_000), (60_000, 1), (65, 1)):
        with decoding.quiet_pillow(), pytest.raises(BadContent) as caught:
            decode_image(png(width, height))
        assert caught.value.kind == "oversized"


def test_endless_scans_are_counted_and_not_decoded():
    data = encoded(two_colours((64, 64)), "JPEG", progressive=True)
    decode_image(data)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadContent, match="more than 100 scans"):
        decode_image(data[:-2] + last * 100 + data[-2:])


def test_a_strip_within_the_limit_and_one_pixel_are_pictures():
    for width, height in ((64, 1), (1, 64), (1, 1)):
        rows = b"".join(b"\0" + bytes([9] * width) for _ in range(height))
        assert decode_image(png(width, height, rows)).size == (width, height)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_halved(monkeypatch, kind):
    monkeypatch.setattr(decoding, "FULL_PIXELS", 100_000)
    large = two_colours((6, 4)).resize((600, 400), Image.Resampling.NEAREST)
    decoded = decode_image(encoded(large, kind))
    assert decoded.size == (300, 200)
    difference = np.asarray(decoded).astype(int) - np.asarray(large.resize((300, 200), Image.Resampling.NEAREST))
    assert np.abs(difference).mean() <= 3
    assert decode_image(encoded(two_colours((300, 200)), kind)).size == (300, 200), "not up to the limit"


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    at_once, peak, to_rgb = [], [], decoding._to_rgb

    def watched(opened):
        at_once.append(1)
        peak.append(len(at_once))
        threading.Event().wait(0.005)
        at_once.pop()
        return to_rgb(opened)

    monkeypatch.setattr(decoding, "_to_rgb", watched)
    monkeypatch.setattr(decoding, "FULL_PIXELS", 10)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(decode_image, [COVER] * 16))
    assert peak == [1] * 16 and {picture.size for picture in pictures} == {(3, 2)}


def test_warnings_are_as_they_were_after_a_build():
    before = list(warnings.filters)
    with decoding.quiet_pillow():
        assert warnings.filters != before
    assert warnings.filters == before


def folder_of(path: Path, names: list[str]) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(COVER)
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path / "covers.zip", "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path / "covers.zip"


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path / "covers.tar.gz", "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path / "covers.tar.gz"


NAMES = [
    "1.jpg",
    "sub/2.PNG",
    "item_16.jpg",
    "3.avif",
    "4.heic",
    "5.tif",
    "6",
    ".DS_Store",
    "__MACOSX/._1.jpg",
    "77.jpg",
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_files_of_other_names_are_counted_and_one_is_shown(tmp_path, kind):
    if kind == "folder":
        path = folder_of(tmp_path / "images", NAMES)
    elif kind == "zip":
        path = zip_of(tmp_path, dict.fromkeys(NAMES, COVER))
    else:
        pytest.importorskip("libarchive")
        path = tar_of(tmp_path, dict.fromkeys(NAMES, COVER))
    source = ImageSource(path, 20)
    assert images_of(source) == {1: COVER, 2: COVER}
    assert source.facts() == {"unknown": 1, "misnamed": 5}
    shown = "3.avif" if kind == "folder" else "item_16.jpg"  # a folder is read in order
    assert source.notes() == [
        "1 images of ids that are not in item_info were passed over",
        f"5 files are not named ITEM_ID.jpg/.jpeg/.png/.webp, e.g. {shown}",
    ]


def test_what_is_no_file_is_a_bad_image_and_never_waited_for(tmp_path):
    folder = folder_of(tmp_path / "images", ["1.jpg", "5.jpg/cover.txt"])
    os.mkfifo(folder / "2.jpg")
    (folder / "3.jpg").symlink_to(folder / "nothing")
    (folder / "4.jpg").symlink_to(folder / "4.jpg")
    (folder / "6.jpg").symlink_to(folder / "1.jpg")
    assert images_of(ImageSource(folder, 9)) == {
        1: COVER,
        2: "corrupt: a pipe or a device, not a file",
        3: "corrupt: a link to nothing",
        4: "corrupt: cannot read 4.jpg: its symbolic links go in a circle",
        5: "corrupt: a folder, not a file",
        6: COVER,
    }


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    folder = folder_of(tmp_path / "images", ["1.jpg", "sub/2.jpg"])
    elsewhere = folder_of(tmp_path / "elsewhere", ["3.jpg"])
    (folder / "more").symlink_to(elsewhere)
    (folder / "sub" / "circle").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder / "sub")
    assert sorted(images_of(ImageSource(folder, 9))) == [1, 2, 3]


def test_a_folder_that_may_not_be_read_is_one_clear_error(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "images", ["1.jpg", "sub/2.jpg"])
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*images/sub: permission denied"):
        ImageSource(folder, 9)


def test_two_images_of_an_item_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"item 1 has two images, 1.jpg and sub/1.webp; keep one"):
        ImageSource(folder_of(tmp_path / "images", ["1.jpg", "sub/1.webp"]), 9)
    with pytest.raises(UserError, match=r"item 7 has two images, 007.jpg and 7.png; keep one"):
        ImageSource(zip_of(tmp_path, {"007.jpg": COVER, "7.png": COVER}), 9)


def test_a_device_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "covers.zip")
    for path in (tmp_path / "covers.zip", Path(os.devnull)):
        with pytest.raises(UserError, match="this is a device or a pipe, expected a folder or an archive"):
            ImageSource(path, 9)


def test_nothing_is_unpacked_and_only_the_last_part_of_a_path_counts(tmp_path):
    path = zip_of(tmp_path, {"../../1.jpg": COVER, "/etc/2.jpg": COVER, "3.jpg/": b"", "a/4.jpg/": b""})
    folder = "corrupt: a folder, not a file"
    assert images_of(ImageSource(path, 9)) == {1: COVER, 2: COVER, 3: folder, 4: folder}
    assert os.listdir(tmp_path) == ["covers.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_one_bad_image(tmp_path, method):
    path = tmp_path / "covers.zip"
    content = np.random.default_rng(0).bytes(3000)
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("1.jpg", content)
        packed.writestr("2.jpg", content[::-1])
        start = packed.getinfo("2.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[start + 50 : start + 1500] = bytes(1450)
    path.write_bytes(data)
    found = images_of(ImageSource(path, 9))
    assert found[1] == content and found[2].startswith("corrupt: ")


@pytest.mark.parametrize(
    ("declared", "found"), [(10, "corrupt: Bad CRC-32"), (100_000, COVER), (2**31, "oversized: 2")]
)
def test_a_wrong_size_in_a_zip_is_no_trouble(tmp_path, declared, found):
    path = zip_of(tmp_path, {"1.jpg": COVER})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, declared)
    path.write_bytes(data)
    assert images_of(ImageSource(path, 9))[1].startswith(found)


def test_an_encrypted_image_is_one_clear_error_and_other_encrypted_files_do_not_matter(tmp_path):
    for name in ("1.jpg", "notes.txt"):
        path = zip_of(tmp_path, {name: COVER, "2.jpg": COVER})
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        if name == "1.jpg":
            with pytest.raises(UserError, match=r"1.jpg is encrypted; unpack it to a folder"):
                ImageSource(path, 9)
        else:
            assert images_of(ImageSource(path, 9)) == {2: COVER}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_file_beyond_the_limit_is_never_loaded(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 1000)
    files = {"1.jpg": COVER, "2.jpg": bytes(1001)}
    if kind == "folder":
        path = tmp_path / "images"
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    elif kind == "zip":
        path = zip_of(tmp_path, files)
    else:
        libarchive = pytest.importorskip("libarchive")
        path = tar_of(tmp_path, files)
        monkeypatch.setattr(
            libarchive.entry.ArchiveEntry, "get_blocks",
            lambda self, size, read=libarchive.entry.ArchiveEntry.get_blocks: (
                read(self, size) if self.size <= 1000 else pytest.fail("loaded")
            ),
        )  # fmt: skip
    entries = {entry.item_id: entry for entry in ImageSource(path, 9)}
    assert entries[1].load() == COVER and entries[2].size == 0
    with pytest.raises(BadContent, match="0 MiB, at most 0"):
        entries[2].load()


def test_an_archive_is_read_no_further_than_the_limit_whatever_its_header_says(tmp_path, monkeypatch):
    libarchive = pytest.importorskip("libarchive")
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 100_000)
    monkeypatch.setattr(libarchive.entry.ArchiveEntry, "size", property(lambda self: None))
    path = tar_of(tmp_path, {"1.jpg": bytes(10**6), "2.jpg": COVER})
    assert images_of(ImageSource(path, 9)) == {1: "oversized: 0 MiB, at most 0", 2: COVER}


def test_links_in_an_archive_are_bad_images(tmp_path):
    pytest.importorskip("libarchive")
    path = tmp_path / "covers.tar"
    with tarfile.open(path, "w") as packed:
        for name, kind in (("1.jpg", tarfile.REGTYPE), ("2.jpg", tarfile.SYMTYPE), ("3.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg" if kind == tarfile.LNKTYPE else "/etc/passwd"
            member.size = len(COVER) if kind == tarfile.REGTYPE else 0
            packed.addfile(member, io.BytesIO(COVER) if member.size else None)
        packed.add(folder_of(tmp_path / "4.jpg", ["x.txt"]), "4.jpg", recursive=False)
    bad = "corrupt: a folder, a link or a device, not a file"
    assert images_of(ImageSource(path, 9)) == {1: COVER, 2: bad, 3: bad, 4: bad}


@pytest.mark.parametrize(
    "content", [b"<html>", gzip.compress(b"no archive", mtime=0), gzip.compress(bytes(10**5), mtime=0)[:60]]
)
def test_an_archive_that_cannot_be_read_is_one_clear_error(tmp_path, content):
    pytest.importorskip("libarchive")
    (tmp_path / "covers.tar.gz").write_bytes(content)
    with pytest.raises(
        UserError, match=r"covers.tar.gz: cannot be read at its first file .* download or pack it again"
    ):
        list(ImageSource(tmp_path / "covers.tar.gz", 9))


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(14), b"PK\x05\x06" + b"\xff" * 18])
def test_a_zip_that_cannot_be_read_is_one_clear_error_or_empty(tmp_path, content):
    (tmp_path / "covers.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"covers.zip: not a complete zip file"):
        ImageSource(tmp_path / "covers.zip", 9)


def test_an_archive_that_breaks_off_is_named_with_the_file_where_it_does(tmp_path):
    pytest.importorskip("libarchive")
    whole = rar({f"{item}.jpg": COVER for item in range(1, 5)})
    (tmp_path / "covers.rar").write_bytes(whole[: len(whole) * 5 // 8])
    found = []
    with pytest.raises(UserError, match=r"covers.rar: cannot be read at 3.jpg .*download or pack it again"):
        for entry in ImageSource(tmp_path / "covers.rar", 9):
            found.append(entry.load())
    assert found == [COVER] * 2, "what comes before is read, and kept in the store"


def test_an_encrypted_archive_is_one_clear_error(tmp_path):
    pytest.importorskip("libarchive")
    (tmp_path / "covers.rar").write_bytes(rar({"1.jpg": COVER}, encrypted=True))
    with pytest.raises(UserError, match=r"covers.rar: .*is encrypted; unpack it to a folder"):
        list(ImageSource(tmp_path / "covers.rar", 9))

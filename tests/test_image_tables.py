"""Images in HDF5 and in parquet: the same bytes as the files', and every value that cannot be used is counted."""

import io

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from item_files import images_of
from PIL import Image

from mm_fibinet.errors import UserError
from mm_fibinet.items import image_files
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.decoding import decode_image
from mm_fibinet.items.sources import ImageSource

BYTES = np.random.default_rng(0).bytes(500) + b"\0"
OTHER = b"other \0 bytes"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_a_parquet_column_of_bytes(tmp_path, kind):
    path = tmp_path / "item_feature.parquet"
    images = pa.array([OTHER, None, BYTES, b"padding"]).cast(kind)
    pq.write_table(pa.table({"item_id": [9, 2, 1, 0], "item_title": ["a"] * 4, "jpg": images}), path)
    source = ImageSource(path, 10)
    assert images_of(source) == {1: BYTES, 9: OTHER} == images_of(source), "it can be read again"
    assert source.facts() == {"unknown": 0, "misnamed": 0}
    few = ImageSource(path, 5)
    assert list(images_of(few)) == [1] and few.facts()["unknown"] == 1


def test_a_parquet_column_as_hugging_faces_data_sets_have(tmp_path):
    images = [{"bytes": BYTES, "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None]
    pq.write_table(pa.table({"item_id": [1, 2, 3], "image": images, "sound": [b"", b"", b""]}), tmp_path / "d.parquet")
    assert images_of(ImageSource(tmp_path / "d.parquet", 3)) == {1: BYTES}


def test_a_parquet_file_of_images_that_cannot_be_read_is_one_clear_error(tmp_path, monkeypatch):
    path = tmp_path / "d.parquet"

    def refused(expected: str, **columns):
        pq.write_table(pa.table({"item_id": [1, 1], **columns}), path)
        with pytest.raises(UserError, match=expected):
            images_of(ImageSource(path, 9))

    refused("expected one column of image files' bytes .*; found item_id, title", title=["a", "b"])
    refused("found 2 such columns, a, b", a=[b"", b""], b=[b"", b""])
    refused("item 1 has two images, cover in row 0 and cover in row 1", cover=[b"a", b"b"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a complete parquet file"):
        images_of(ImageSource(path, 9))

    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 10)
    pq.write_table(pa.table({"item_id": [1, 2], "cover": [b"12345678901", b"1"]}), path)
    assert images_of(ImageSource(path, 9)) == {1: "oversized: 0 MiB, at most 0", 2: b"1"}


def test_hdf5_values_of_every_kind(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "covers.h5", "w") as made:
        made["1"] = np.frombuffer(BYTES, dtype=np.uint8)
        made["deep/group/2.jpg"] = np.void(BYTES)
        made.create_dataset("3", data=np.frombuffer(BYTES, dtype=np.uint8), compression="gzip")
        made.create_dataset("4", (), dtype=h5py.vlen_dtype(np.uint8))[()] = np.frombuffer(OTHER, dtype=np.uint8)
        made["5"], made["6"] = pixels, pixels[..., 0]
        made["7"], made["8"] = np.arange(3), np.zeros((2, 2, 7), dtype=np.uint8)
        made["names"], made["77"] = b"rubbish", b"unknown"
    source = ImageSource(tmp_path / "covers.h5", 9)
    found = images_of(source)
    for item, expected in ((5, pixels), (6, np.repeat(pixels[..., :1], 3, axis=2))):
        np.testing.assert_array_equal(np.asarray(decode_image(found.pop(item))), expected)
    assert [found[item] for item in (1, 2, 3, 4)] == [BYTES, BYTES, BYTES, OTHER]
    assert found[7] == "corrupt: holds int64 [3], expected bytes, uint8 [n] or uint8 [height, width, 3]"
    assert found[8] == "corrupt: pixels of shape [2, 2, 7], expected [height, width, 3]"
    assert source.facts() == {"unknown": 1, "misnamed": 1} and images_of(source)[1] == BYTES


def test_hdf5_links_and_claims_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["1"] = np.frombuffer(b"secret", dtype=np.uint8)
    with h5py.File(tmp_path / "covers.h5", "w") as made:
        made["1"] = h5py.ExternalLink("other.h5", "1")
        made["2"] = h5py.SoftLink("/nothing")
        made.create_dataset("3", (6,), dtype=np.uint8, external=[(str(tmp_path / "secret"), 0, 6)])
        made.create_dataset("4", (2**40,), dtype=np.uint8, chunks=(2**20,), compression="gzip")
        layout = h5py.VirtualLayout((6,), dtype=np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "1", shape=(6,))
        made.create_virtual_dataset("5", layout)
    elsewhere = "corrupt: its bytes are in another file"
    found = images_of(ImageSource(tmp_path / "covers.h5", 9))
    assert found == {3: elsewhere, 4: "oversized: 1,048,576 MiB, at most 64", 5: elsewhere}


def test_a_damaged_hdf5_file(tmp_path):
    path = tmp_path / "covers.hdf5"
    with h5py.File(path, "w") as made:
        made.create_dataset("1", data=np.frombuffer(BYTES, dtype=np.uint8), fletcher32=True, chunks=(len(BYTES),))
        made["2"] = np.frombuffer(BYTES, dtype=np.uint8)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(BYTES, BYTES[:100] + bytes(len(BYTES) - 100), 1))
    found = images_of(ImageSource(path, 9))
    assert found[1].startswith("corrupt: ") and found[2] == BYTES
    for number, content in enumerate((b"", b"<html>", whole[:60])):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{number}.h5: not a complete HDF5 file"):
            ImageSource(path, 9)


def test_pixels_take_the_way_of_every_other_image(tmp_path):
    with h5py.File(tmp_path / "covers.h5", "w") as made:
        made["1"] = np.zeros((1, 65, 3), dtype=np.uint8)
    [entry] = ImageSource(tmp_path / "covers.h5", 1)
    assert Image.open(io.BytesIO(entry.load())).size == (65, 1)
    with pytest.raises(BadContent, match="one side at most 64 times the other"):
        decode_image(entry.load())

"""Features on disk: the index against a dictionary, rows against the whole array, and what stays out of memory."""

import tracemalloc

import h5py
import numpy as np
import pytest
from test_feature_store import Letters, run

from mm_fibinet.errors import UserError
from mm_fibinet.items import feature_store
from mm_fibinet.items.feature_store import FeatureStore, StoredFeatures, content_key, open_store
from mm_fibinet.items.features import ArrayFeatures, blocks
from mm_fibinet.items.pipeline import fill
from mm_fibinet.items.shards import KEY, KEY_BYTES, KeyIndex


def random_keys(rng, number: int) -> np.ndarray:
    """KEY [number]; many with zeros at their end, which a numpy string does not show."""
    keys = rng.integers(0, 256, (number, KEY_BYTES), dtype=np.uint8)
    keys[::3, 12:] = 0
    keys[::7, 0] = 0
    return keys.reshape(-1).view(KEY)


def bytes_of(keys: np.ndarray) -> list[bytes]:
    return [key.tobytes() for key in keys.view(np.uint8).reshape(-1, KEY_BYTES)]


def test_the_index_equals_a_dictionary():
    rng = np.random.default_rng(0)
    pool = random_keys(rng, 600)
    index, expected, place = KeyIndex.empty(), {}, 0
    for _ in range(9):
        keys = rng.choice(pool[:400], 120)  # some again, in the same part and in later ones
        index = index.extended(keys, np.arange(place, place + 120))
        for key in bytes_of(keys):
            expected.setdefault(key, place)
            place += 1
    assert len(index) == len(expected)
    assert index.find(pool).tolist() == [expected.get(key, -1) for key in bytes_of(pool)]
    assert index.keys.nbytes + index.places.nbytes == 24 * len(expected)
    assert KeyIndex.empty().find(pool[:3]).tolist() == [-1, -1, -1]


def filled_store(folder, rows: int, dim: int, shard_rows: int, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """A store whose rows were added in another order than the keys are in: (KEY [rows], float32 [rows, dim])."""
    monkeypatch.setattr(feature_store, "SHARD_ROWS", shard_rows)
    rng = np.random.default_rng(1)
    keys, features = random_keys(rng, rows), rng.normal(size=(rows, dim)).astype(np.float32)
    store = FeatureStore(folder, "letters v1", dim)
    for part in np.array_split(rng.permutation(rows), rows // 16):
        store.add(bytes_of(keys[part]), features[part])
    store.flush()
    return keys, features


def test_rows_come_from_disk_in_any_order(tmp_path, monkeypatch):
    keys, features = filled_store(tmp_path, 500, 5, 64, monkeypatch)
    store = FeatureStore(tmp_path, "letters v1", 5)
    assert len(list(tmp_path.rglob("*.h5"))) > 5
    rng = np.random.default_rng(2)
    for wanted in (rng.integers(0, 500, 300), np.arange(500), np.array([7]), np.empty(0, np.int64)):
        read = store.read(store.places(keys[wanted]))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, features[wanted])
    with pytest.raises(KeyError, match="1 of 2 keys"):
        store.places(np.array([bytes_of(keys)[0], content_key(b"never seen")], KEY))


def test_views_stand_side_by_side_as_an_array_would(tmp_path, monkeypatch):
    keys, features = filled_store(tmp_path, 90, 4, 16, monkeypatch)
    store = FeatureStore(tmp_path, "letters v1", 4)
    present = np.arange(40) % 3 != 1
    views = [store.places(keys[:40]), store.places(keys[50:])]
    stored = StoredFeatures(store, views, present)
    held = ArrayFeatures(np.hstack([features[:40], features[50:]]), present)
    assert stored.width == held.width == 8
    for (rows, block), (expected_rows, expected) in zip(blocks(stored, 7), blocks(held, 7), strict=True):
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(block, expected)


def test_opening_and_reading_hold_a_shard_and_a_block_and_no_more(tmp_path, monkeypatch):
    shard = 512 * 256 * 4
    keys, _ = filled_store(tmp_path, 20 * 512, 256, 512, monkeypatch)
    tracemalloc.start()
    try:
        store = FeatureStore(tmp_path, "letters v1", 256)
        assert tracemalloc.get_traced_memory()[1] < 4 * shard
        stored = StoredFeatures(store, [store.places(keys)], np.ones(len(keys), dtype=bool))
        for _ in blocks(stored, 512):
            pass
        assert tracemalloc.get_traced_memory()[1] < 8 * shard < store._shards[0].rows * 20 * 256 * 4
    finally:
        tracemalloc.stop()


def test_one_per_cent_of_new_items_costs_one_per_cent(tmp_path):
    texts = [f"{'x' * (row % 5 + 1)}{row}" for row in range(400)]
    run(tmp_path, texts)
    filled, store, encoder = run(tmp_path, [*texts, "new a", "new b", "new c", "new d"])
    assert filled.computed == sum(map(len, encoder.batches)) == 4
    assert len(filled.items) == len(store) == 404


def test_a_file_that_shrinks_after_it_was_opened_is_a_user_error(tmp_path):
    filled, store, _ = run(tmp_path, ["aa", "bb"])
    [path] = tmp_path.rglob("*.h5")
    places = store.places(filled.keys)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="has become shorter since it was opened"):
        store.read(places)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        store.read(places)


def test_features_in_pieces_or_compressed_are_not_read_by_place(tmp_path, capsys):
    for options in ({"chunks": (1, 3)}, {"compression": "gzip"}, {}):
        run(tmp_path, ["aa", "bb"])
        [path] = tmp_path.rglob("*.h5")
        with h5py.File(path, "r+") as shard:
            features = shard["features"][:]
            del shard["features"]
            shard.create_dataset("features", data=features, **options)
        assert len(FeatureStore(tmp_path, "letters v1", 3)) == 0
        assert "damaged, moved to" in capsys.readouterr().err


def test_parts_are_written_side_by_side_and_read_as_one(tmp_path):
    with open_store(tmp_path, "letters v1", 3, "1-of-2") as one, open_store(tmp_path, "letters v1", 3, "2-of-2") as two:
        for store, text in ((one, b"aa"), (two, b"bbb")):
            store.add([content_key(text)], np.full((1, 3), len(text), dtype=np.float32))
            store.flush()
        with (
            pytest.raises(UserError, match="2-of-2: another process is at work there"),
            open_store(tmp_path, "letters v1", 3, "2-of-2"),
        ):
            pass
        with (
            pytest.raises(UserError, match="1-of-2: another process is at work there; wait for it"),
            open_store(tmp_path, "letters v1", 3),
        ):
            pass
    with open_store(tmp_path, "letters v1", 3) as whole:
        keys = np.array([content_key(b"bbb"), content_key(b"aa")], KEY)
        assert whole.read(whole.places(keys))[:, 0].tolist() == [3, 2]
    with open_store(tmp_path, "letters v1", 3, "2-of-2") as again:
        assert content_key(b"aa") in again, "what other parts hold is not encoded again"


def test_other_stores_are_read_and_never_changed(tmp_path, capsys):
    run(tmp_path / "a", ["aa", "bb"])
    run(tmp_path / "b", ["cc"])
    [damaged] = (tmp_path / "b").rglob("*.h5")
    damaged.write_bytes(b"rubbish")
    run(tmp_path / "c", ["dd"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    store = FeatureStore(tmp_path / "new", "letters v1", 3, others=[tmp_path / name for name in "abc"])
    assert f"{damaged}: damaged, left out; its items are encoded again" in capsys.readouterr().err
    assert [content_key(text) in store for text in (b"aa", b"bb", b"cc", b"dd")] == [True, True, False, True]
    encoder = Letters()
    fill(store, encoder, [], title="nothing")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}

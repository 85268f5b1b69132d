"""The feature store: nothing is encoded twice, nothing is lost by an interruption, nothing damaged is believed."""

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from mm_fibinet.errors import UserError
from mm_fibinet.items import feature_store, pipeline
from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.encoding import Encoder
from mm_fibinet.items.feature_store import FeatureStore, content_key, open_store
from mm_fibinet.items.pipeline import fill


class Letters(Encoder):
    """An encoder whose vector is (length, first byte, 1); texts of equal length share a batch."""

    id, dim, batch_size = "letters v1", 3, 4

    def __init__(self, fail_after: int | None = None):
        self.batches: list[list[bytes]] = []
        self.fail_after = fail_after

    def prepare(self, content: bytes):
        if content.startswith(b"!"):
            raise BadContent("corrupt", "exclaims")
        return content, len(content)

    def encode(self, samples):
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise KeyboardInterrupt
        assert len({len(sample) for sample in samples}) == 1, "one shape a batch"
        self.batches.append(samples)
        return np.array([[len(sample), sample[0], 1] for sample in samples], dtype=np.float32)


def entries(texts: list[str], sized: bool = False) -> list[Entry]:
    return [
        Entry(row, f"item {row}", lambda text=text: text.encode(), len(text) * sized)
        for row, text in enumerate(texts, start=1)
    ]


def run(folder, texts: list[str], encoder: Letters | None = None):
    encoder = encoder or Letters()
    store = FeatureStore(folder, encoder.id, encoder.dim)
    return fill(store, encoder, entries(texts), title="letters"), store, encoder


def test_equal_contents_are_encoded_once_and_every_item_gets_its_row(tmp_path):
    texts = ["aa", "b", "aa", "cc", "ddd", "b", "ee", "ff", "gg"]
    filled, store, encoder = run(tmp_path, texts)
    assert filled.computed == len(set(texts)) == sum(map(len, encoder.batches))
    assert max(map(len, encoder.batches)) == encoder.batch_size
    rows = store.read(store.places(filled.keys))
    np.testing.assert_array_equal(rows[:, :2], [[len(text), ord(text[0])] for text in texts])


def test_a_second_run_encodes_only_what_changed(tmp_path):
    texts = [f"{letter}x" for letter in "abcdefghij"]
    run(tmp_path, texts)
    again, _, encoder = run(tmp_path, texts)
    assert again.computed == 0 and encoder.batches == []
    texts[3] = "changed"
    changed, _, encoder = run(tmp_path, texts)
    assert encoder.batches == [[b"changed"]] and changed.computed == 1


def test_ctrl_c_keeps_what_was_encoded(tmp_path):
    texts = [f"{letter}x" for letter in "abcdefghijkl"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, texts, Letters(fail_after=2))
    filled, _, _ = run(tmp_path, texts)
    assert filled.computed == 12 - 2 * 4


def test_shards_are_written_as_the_run_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 4)
    store = FeatureStore(tmp_path, "letters v1", 3)
    for number in range(10):
        store.add([content_key(bytes([number]))], np.full((1, 3), number, dtype=np.float32))
    assert len(list(tmp_path.rglob("*.h5"))) == 2
    reopened = FeatureStore(tmp_path, "letters v1", 3)
    assert len(reopened) == 8 and content_key(b"\x09") not in reopened
    monkeypatch.setattr(feature_store, "SHARD_SECONDS", 0.0)
    store.add([content_key(b"slow")], np.zeros((1, 3), dtype=np.float32))
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 11


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_shard_is_moved_aside_and_its_items_encoded_again(tmp_path, capsys, damage):
    run(tmp_path, ["aa", "bb"])
    [path] = tmp_path.rglob("*.h5")
    data = bytearray(path.read_bytes())
    position = data.index(np.array([2, ord("a"), 1], dtype=np.float32).tobytes())
    if damage == "flip":
        data[position] ^= 255
    broken = {"truncate": data[: len(data) // 2], "flip": data, "empty": b"", "text": b"not HDF5"}[damage]
    path.write_bytes(broken)
    filled, store, _ = run(tmp_path, ["aa", "bb"])
    assert "damaged, moved to" in capsys.readouterr().err
    assert filled.computed == 2
    np.testing.assert_array_equal(store.read(store.places(filled.keys))[0], [2, ord("a"), 1])
    assert path.with_suffix(".corrupt").read_bytes() == bytes(broken)


def test_a_killed_write_leaves_nothing_that_is_read(tmp_path, capsys):
    _, store, _ = run(tmp_path, ["aa", "bb"])
    (store.folder / ".0123.h5.abcd.part").write_bytes(b"half a shard")
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 2
    assert capsys.readouterr().err.count("damaged") == 0


def test_encoders_do_not_see_each_other(tmp_path):
    run(tmp_path, ["aa", "bb"])
    assert len(FeatureStore(tmp_path, "letters v2", 3)) == 0
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 2


def test_bad_contents_are_named_and_do_not_stop_the_run(tmp_path):
    filled, _, _ = run(tmp_path, ["aa", "!bad", "cc"])
    assert filled.items.tolist() == [1, 3]
    assert filled.bad == [("item 2", "corrupt", "exclaims")]


def test_features_that_are_not_finite_are_refused(tmp_path):
    encoder = Letters()
    encoder.encode = lambda samples: np.full((len(samples), 3), np.nan, dtype=np.float32)
    with pytest.raises(UserError, match="letters v1 gave NaN"):
        run(tmp_path, ["aa"], encoder)


def test_an_unwritable_store_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        FeatureStore(tmp_path / "file", "letters v1", 3)


def rewrite(path, **changes):
    """A shard with other datasets or another encoder."""
    with h5py.File(path, "r+") as shard:
        for name, values in changes.items():
            if name == "encoder":
                shard.attrs["encoder"] = values
            else:
                del shard[name]
                shard[name] = values


NAN = np.array([[2, 97, np.nan], [2, 98, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": NAN}, "holds NaN or infinity"),
        ({"features": NAN[:1]}, r"holds features (1, 3), expected (2, 3)"),
        ({"features": np.zeros((2, 3))}, "damaged"),
        ({"keys": np.zeros((2, 4), dtype=np.uint8)}, "damaged"),
        ({"encoder": "letters v0"}, "holds the features of another encoder"),
        ({"encoder": np.zeros(3)}, "damaged"),
    ],
    ids=["nan", "rows", "float64", "keys", "encoder", "no name"],
)
def test_a_shard_that_cannot_be_believed_says_why_and_its_items_are_encoded_again(tmp_path, capsys, changes, reason):
    run(tmp_path, ["aa", "bb"])
    [path] = tmp_path.rglob("*.h5")
    rewrite(path, **changes)
    filled, store, _ = run(tmp_path, ["aa", "bb"])
    assert f"{path}: {reason}, moved to {path.stem}.corrupt" in capsys.readouterr().err
    assert filled.computed == 2 and np.isfinite(store.read(store.places(filled.keys))).all()


def test_another_width_under_the_same_name_is_encoded_again(tmp_path, capsys):
    run(tmp_path, ["aa", "bb"])
    assert len(FeatureStore(tmp_path, "letters v1", 4)) == 0
    assert "holds features (2, 3), expected (2, 4), moved to" in capsys.readouterr().err


def test_a_size_that_is_only_claimed_is_not_allocated(tmp_path, capsys):
    run(tmp_path, ["aa"])
    [path] = tmp_path.rglob("*.h5")
    with h5py.File(path, "r+") as shard:
        del shard["keys"], shard["features"]
        shard.create_dataset("keys", shape=(10**12, 16), dtype=np.uint8, chunks=(1024, 16))
        shard.create_dataset("features", shape=(10**12, 3), dtype=np.float32, chunks=(1024, 3))
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 0
    assert "damaged, moved to" in capsys.readouterr().err


def test_a_pipe_or_a_folder_in_a_shards_place_is_moved_aside(tmp_path, capsys):
    _, store, _ = run(tmp_path, ["aa"])
    os.mkfifo(store.folder / "pipe.h5")
    (store.folder / "folder.h5").mkdir()
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 1
    assert capsys.readouterr().err.count("not a file, moved to") == 2


def test_one_process_at_a_time_and_a_killed_ones_parts_go(tmp_path):
    other = (
        "import sys; from mm_fibinet.items.feature_store import open_store\n"
        f"with open_store({str(tmp_path)!r}, 'letters v1', 3) as store:\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", other], text=True, **pipes) as process:
        assert process.stdout.readline() == "open\n"
        [folder] = tmp_path.iterdir()
        part = folder / ".0123.h5.abcd.part"
        part.write_bytes(b"half a shard")
        with pytest.raises(UserError, match="another process is at work there"), open_store(tmp_path, "letters v1", 3):
            pass
        with open_store(tmp_path, "letters v2", 3):
            pass
        assert part.exists(), "it is the other's"
        process.kill()
    with open_store(tmp_path, "letters v1", 3) as store:
        assert len(store) == 0 and not part.exists()


def test_a_complete_store_that_may_not_be_written_is_read(tmp_path, monkeypatch):
    run(tmp_path, ["aa"])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may do everything
    [folder] = tmp_path.iterdir()
    with open_store(tmp_path, "letters v1", 3) as store:
        assert len(store) == 1
    assert not (folder / ".lock").exists()


def test_a_full_disk_is_a_user_error_and_what_was_written_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 4)
    flush, left = os.fsync, [1]

    def full(handle):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(tmp_path, [f"{letter}x" for letter in "abcdefghijkl"])
    monkeypatch.setattr(os, "fsync", flush)
    assert len(list(tmp_path.rglob("*"))) == 2, "the encoder's folder and one whole shard"
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 4


@pytest.mark.parametrize(("size", "together", "most"), [(1, 4, 12), (1, 1, 9), (100, 4, 8), (400, 4, 2), (5000, 4, 1)])
def test_contents_ahead_of_the_encoder_are_bounded_by_their_number_and_bytes(monkeypatch, size, together, most):
    """An archive's entries come with their bytes: eight may wait and the list that is taken, or fewer large ones."""
    monkeypatch.setattr(pipeline, "MAX_BYTES_AHEAD", 1000)
    monkeypatch.setattr(pipeline, "TOGETHER", together)
    monkeypatch.setattr(pipeline, "BYTES_TOGETHER", 400)
    given = []

    def read():
        for row in range(1, 31):
            given.append(row)
            yield Entry(row, f"item {row}", lambda: b"", size)

    ahead, taken = [], []
    for some in pipeline._in_background(lambda entries: [entry.item_id for entry in entries], read(), "x", depth=8):
        taken += some
        ahead.append(len(given) - len(taken))
    assert taken == list(range(1, 31))
    assert max(ahead) == most


def test_a_thread_prepares_some_contents_at_a_time():
    sizes = [1] * 70 + [2**15, 2**15, 1, 0, 2**17, 3]
    lists = list(pipeline._together(Entry(row, "", lambda: b"", size) for row, size in enumerate(sizes)))
    assert [len(some) for some, _ in lists] == [64, 8, 2, 1, 1]  # 64; their bytes; one of unknown size ends its list
    assert [size for _, size in lists] == [64, 6 + 2**16, 1, 2**17, 3]
    assert [entry.item_id for some, _ in lists for entry in some] == list(range(76))


@pytest.mark.parametrize("together", [1, 3, 64])
def test_a_network_of_its_own_thread_gives_the_same_store(tmp_path, monkeypatch, together):
    """With contents that are equal, bad, and known to the store, however many a thread prepares at a time."""
    monkeypatch.setattr(pipeline, "TOGETHER", together)
    rng = np.random.default_rng(0)
    texts = [*rng.choice(["a", "bb", "b", "cc", "!", "!!", "d" * 9], 30), *(f"text {row}" for row in range(40))]
    found = {}
    for own_thread in (False, True):
        folder = tmp_path / str(own_thread)
        run(folder, ["bb", "text 7"])
        store = FeatureStore(folder, "letters v1", 3)
        filled = fill(store, Letters(), entries(texts, sized=True), "letters", own_thread=own_thread)
        assert filled.computed == len({text for text in texts if not text.startswith("!")}) - 2
        assert [name for name, *_ in filled.bad] == [
            f"item {row}" for row, text in enumerate(texts, 1) if text.startswith("!")
        ]
        rows = store.read(store.places(filled.keys))
        assert [texts[item - 1] for item in filled.items] == [text for text in texts if not text.startswith("!")]
        np.testing.assert_array_equal(rows[:, 0], [len(texts[item - 1]) for item in filled.items])
        found[own_thread] = {path.name: path.read_bytes() for path in folder.rglob("*.h5")}
    assert found[True] == found[False]


def test_what_ends_a_network_of_its_own_thread_ends_the_run(tmp_path):
    texts = [f"{letter}x" for letter in "abcdefghijklmnopqrstuvwxyz"]
    store = FeatureStore(tmp_path, "letters v1", 3)
    with pytest.raises(KeyboardInterrupt):
        fill(store, Letters(fail_after=3), entries(texts, sized=True), "letters", own_thread=True)
    assert len(FeatureStore(tmp_path, "letters v1", 3)) == 12, "what was encoded is kept"

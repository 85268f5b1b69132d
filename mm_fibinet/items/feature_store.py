"""A store of raw modality features on disk: what was encoded once is not encoded again.

One folder an encoder, and in it HDF5 files ("shards") of some hundred rows: the key of each content (a hash of the text
or of the image file's bytes) and its vector. A shard is built in memory and appears whole by a rename, so a run can be
killed at any instant and leaves nothing torn: the next run reads the shards that are there and encodes the rest. Keys
are contents, not item ids, so one changed title costs one forward pass, equal contents share one, and two data sets can
share a store. Device and batch size are not part of the key: features made on a GPU serve later runs without one. One
process at a time writes to an encoder's folder (`open_store`); one that nobody may write to is read as it is.
"""

import contextlib
import hashlib
import os
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mm_fibinet.errors import UserError, explain_os_error, printable
from mm_fibinet.files import atomic_path, locked, make_folder
from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.encoders import Encoder
from mm_fibinet.progress import track

SHARD_ROWS = 1024
SHARD_SECONDS = 20.0  # what a killed run loses at most
KEY_BYTES = 16
WORKERS = 8
MAX_BYTES_AHEAD = 256 * 2**20  # of contents that wait for the encoder


def content_key(content: bytes) -> bytes:
    """The store's key of a content: BLAKE2b, 16 bytes."""
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def _encoder_folder(folder: str | Path, encoder_id: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", encoder_id).strip("-")[:60]
    return Path(folder) / f"{slug}-{hashlib.sha256(encoder_id.encode()).hexdigest()[:8]}"


class FeatureStore:
    """The features of one encoder; `open_store` opens it for this process alone.

    Args:
        folder: the store; the encoder gets a folder of its own inside.
        encoder_id: `Encoder.id`.
        dim: D, the width of the encoder's vectors.
    """

    def __init__(self, folder: str | Path, encoder_id: str, dim: int):
        self.folder = make_folder(_encoder_folder(folder, encoder_id))
        self.encoder_id = encoder_id
        self.dim = dim
        self._blocks: list[np.ndarray] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        self._pending: dict[bytes, np.ndarray] = {}
        self._flushed = time.monotonic()
        for path in sorted(self.folder.glob("*.h5")):
            self._read(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place or key in self._pending

    def __len__(self) -> int:
        return len(self._place) + len(self._pending)

    def add(self, keys: list[bytes], features: np.ndarray) -> None:
        """Take rows in; they are on disk after SHARD_ROWS rows, SHARD_SECONDS or `flush`.

        Args:
            keys: n content keys.
            features: float32 [n, D].
        """
        self._pending.update(zip(keys, features, strict=True))
        if len(self._pending) >= SHARD_ROWS or time.monotonic() - self._flushed >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows taken in since the last flush as one shard."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        keys = np.frombuffer(b"".join(self._pending), dtype=np.uint8).reshape(-1, KEY_BYTES)
        features = np.stack(list(self._pending.values()))
        # Built in memory: HDF5 reports a full disk in its own words, a plain write in the system's.
        with h5py.File("shard", "w", driver="core", backing_store=False) as shard:
            shard.attrs["encoder"] = self.encoder_id
            shard.create_dataset("keys", data=keys)
            shard.create_dataset("features", data=features, chunks=features.shape, fletcher32=True)
            shard.flush()
            image = shard.id.get_file_image()
        with atomic_path(self.folder / f"{content_key(keys.tobytes()).hex()}.h5") as path:
            path.write_bytes(image)
        self._index(keys, features)
        self._pending.clear()

    def rows(self, keys: list[bytes]) -> np.ndarray:
        """The features of `keys`, all of them in the store: float32 [len(keys), D]."""
        self.flush()
        features = np.empty((len(keys), self.dim), dtype=np.float32)
        for row, key in enumerate(keys):
            block, place = self._place[key]
            features[row] = self._blocks[block][place]
        return features

    def _index(self, keys: np.ndarray, features: np.ndarray) -> None:
        for row, key in enumerate(keys):
            self._place.setdefault(key.tobytes(), (len(self._blocks), row))
        self._blocks.append(features)

    def _read(self, path: Path) -> None:
        try:
            keys, features = self._load(path)
        except PermissionError as error:
            raise explain_os_error(error, path, "read") from error
        except Exception as error:  # h5py's for a damaged file are of every kind
            reason = str(error) if isinstance(error, _Damaged) else "damaged"
            aside = path.with_suffix(".corrupt")
            message = f"warning: {path}: {reason}, moved to {aside.name}; its items are encoded again"
            print(printable(message), file=sys.stderr)
            try:
                path.replace(aside)
            except OSError as failed:
                raise explain_os_error(failed, aside) from failed
        else:
            self._index(keys, features)

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """A shard's keys, uint8 [n, KEY_BYTES], and features, float32 [n, D]."""
        if not path.is_file():  # opening a pipe would wait for ever
            raise _Damaged("not a file")
        with h5py.File(path, "r") as shard:
            if shard.attrs["encoder"] != self.encoder_id:
                raise _Damaged("holds the features of another encoder")
            keys, features = shard["keys"], shard["features"]
            if features.shape != (len(keys), self.dim):
                raise _Damaged(f"holds features {features.shape}, expected ({len(keys)}, {self.dim})")
            if keys.shape[1:] != (KEY_BYTES,) or (keys.dtype, features.dtype) != (np.uint8, np.float32):
                raise _Damaged("damaged")
            if features.nbytes > path.stat().st_size:  # a size that is only claimed must not be allocated
                raise _Damaged("damaged")
            keys, features = keys[:], features[:]
        if not np.isfinite(features).all():
            raise _Damaged("holds NaN or infinity")
        return keys, features


class _Damaged(Exception):
    """A shard cannot be believed; the message says why."""


@contextlib.contextmanager
def open_store(folder: str | Path, encoder_id: str, dim: int) -> Iterator[FeatureStore]:
    """The features of one encoder, for this process alone.

    Args:
        folder, encoder_id, dim: see `FeatureStore`.

    Raises:
        UserError: another process is at work on them.
    """
    own = make_folder(_encoder_folder(folder, encoder_id))
    if not os.access(own, os.W_OK):  # a store in a read-only folder is complete, or the first flush says so
        yield FeatureStore(folder, encoder_id, dim)
        return
    with locked(own):
        for part in own.glob(".*.part"):  # of a killed run
            part.unlink(missing_ok=True)
        yield FeatureStore(folder, encoder_id, dim)


@dataclass
class Filled:
    """What `fill` did.

    Attributes:
        keys: item_id -> content key, for every item whose content could be used.
        bad: (name, "corrupt" or "oversized", reason) of the others.
        computed: distinct contents that went through the encoder in this run.
        seconds: the time it took.
    """

    keys: dict[int, bytes] = field(default_factory=dict)
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0


def fill(store: FeatureStore, encoder: Encoder, entries: Iterable[Entry], title: str) -> Filled:
    """Bring the features of all entries into the store, encoding those that are not there.

    Background threads load, hash and prepare contents ahead of the encoder. Whatever ends the loop early, what was
    encoded so far is written.

    Args:
        title: the progress bar's label.
    """

    def prepare(entry: Entry) -> tuple[bytes | None, Any, int]:
        try:
            content = entry.load()
            key = content_key(content)
            if key in store:
                return key, None, 0
            return key, *encoder.prepare(content)
        except BadContent as error:
            return None, (error.kind, str(error)), 0  # not the error, whose traceback holds the content

    filled = Filled()
    queued: set[bytes] = set()
    batches: dict[int, dict[bytes, Any]] = defaultdict(dict)
    begun = time.monotonic()
    try:
        for item_id, name, (key, sample, shape) in _in_background(prepare, entries, title, 2 * encoder.batch_size):
            if key is None:
                filled.bad.append((name, *sample))
                continue
            filled.keys[item_id] = key
            if key in queued or key in store:
                continue
            queued.add(key)
            batches[shape][key] = sample
            if len(batches[shape]) == encoder.batch_size:
                filled.computed += _encode(store, encoder, batches.pop(shape))
        for batch in batches.values():
            filled.computed += _encode(store, encoder, batch)
    finally:
        store.flush()
    filled.seconds = time.monotonic() - begun
    return filled


def _encode(store: FeatureStore, encoder: Encoder, batch: dict[bytes, Any]) -> int:
    features = encoder.encode(list(batch.values()))
    if not np.isfinite(features).all():
        raise UserError(f"encoder {encoder.id} gave NaN or infinity, expected finite features; choose another encoder")
    store.add(list(batch), features)
    return len(batch)


def _in_background(
    work: Callable[[Entry], Any], entries: Iterable[Entry], title: str, depth: int
) -> Iterator[tuple[int, str, Any]]:
    """Run `work` over entries in threads and yield (item_id, name, result) in order, under a bar.

    The threads run ahead by `depth` entries at most, and by fewer when these hold MAX_BYTES_AHEAD: an entry of an
    archive has its bytes with it.
    """
    waiting: deque[tuple[int, str, int, Future]] = deque()  # without the entries, which would keep their bytes
    held = 0
    with (
        ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), thread_name_prefix="prepare") as pool,
        track(desc=title, total=length_hint(entries) or None, unit="item") as bar,
    ):
        try:
            for entry in entries:
                while waiting and (len(waiting) > depth or held + entry.size > MAX_BYTES_AHEAD):
                    item_id, name, size, future = waiting.popleft()
                    held -= size
                    yield item_id, name, future.result()
                    bar.update()
                waiting.append((entry.item_id, entry.name, entry.size, pool.submit(work, entry)))
                held += entry.size
            for item_id, name, _, future in waiting:
                yield item_id, name, future.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

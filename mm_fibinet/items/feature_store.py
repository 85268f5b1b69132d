"""A store of raw modality features on disk: what was encoded once is not encoded again.

One folder an encoder, and in it HDF5 files ("shards", `mm_fibinet.items.shards`): the key of each content (a hash of
the text or of the image file's bytes) and its vector. A shard is built in memory and appears whole by a rename, so a
run can be killed at any instant and leaves nothing torn: the next run reads the shards that are there and encodes the
rest. Keys are contents, not item ids, so one changed title costs one forward pass, equal contents share one, and two
data sets can share a store. Device and batch size are not part of the key: features made on a GPU serve later runs
without one. Rows are read from disk when they are asked for; of those that are there, only the keys are in memory.

One process at a time writes to an encoder's folder (`open_store`); several that share the work have a folder each in
it, their parts, which later runs read as one. A store that nobody may write to is read as it is.
"""

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_fibinet.errors import explain_os_error, printable
from mm_fibinet.files import atomic_path, locked, make_folder
from mm_fibinet.items.shards import KEY, KEY_BYTES, Damaged, KeyIndex, Shard, open_shard, pack_shard

SHARD_ROWS = 1024
SHARD_SECONDS = 20.0  # what a killed run loses at most


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
        part: the folder in it that this process writes to, None for the encoder's folder itself. All parts are read.
        others: further stores, which are only read.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder_id: str,
        dim: int,
        part: str | None = None,
        others: Sequence[str | Path] = (),
    ):
        whole = _encoder_folder(folder, encoder_id)
        self.folder = make_folder(whole / part if part else whole)
        self.encoder_id = encoder_id
        self.dim = dim
        self._shards: list[Shard] = []
        self._starts = np.zeros(1, np.int64)  # a shard's first place; places count the rows of all shards
        self._index = KeyIndex.empty()
        self._pending: dict[bytes, np.ndarray] = {}
        self._flushed = time.monotonic()
        read = [_open(path, encoder_id, dim) for path in _shard_paths(whole)]
        for other in (_encoder_folder(other, encoder_id) for other in others):
            read += [_open(path, encoder_id, dim, keep=True) for path in _shard_paths(other)]
        self._take_in([each for each in read if each is not None])

    def __contains__(self, key: bytes) -> bool:
        return self.has([key])[0]

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of some contents' features are there."""
        # In this order: another thread may be flushing, which moves keys from the one to the other.
        pending = [key in self._pending for key in keys]
        found = (self._index.find(np.frombuffer(b"".join(keys), KEY)) >= 0).tolist()
        return [either or other for either, other in zip(pending, found, strict=True)]

    def __len__(self) -> int:
        return len(self._index) + len(self._pending)

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
        keys = np.frombuffer(b"".join(self._pending), KEY)
        packed, start = pack_shard(self.encoder_id, keys, np.stack(list(self._pending.values())))
        path = self.folder / f"{content_key(keys.tobytes()).hex()}.h5"
        with atomic_path(path) as temporary:
            temporary.write_bytes(packed)
        self._take_in([(Shard(path, len(keys), self.dim, start), keys)])
        self._pending.clear()

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where rows are, for `read`: KEY [m], all of them in the store -> int64 [m]."""
        self.flush()
        places = self._index.find(keys)
        if (places < 0).any():
            raise KeyError(f"{(places < 0).sum()} of {len(keys)} keys are not in {self.folder}")
        return places

    def read(self, places: np.ndarray) -> np.ndarray:
        """The rows at some places, read from disk in the order in which they lie there.

        Args:
            places: int64 [m], of `places`.

        Returns:
            float32 [m, D].
        """
        distinct, inverse = np.unique(places, return_inverse=True)
        rows = np.empty((len(distinct), self.dim), dtype=np.float32)
        begins = distinct.searchsorted(self._starts).tolist()  # of each shard's rows among these
        for shard, start, begin, end in zip(self._shards, self._starts, begins, begins[1:], strict=False):
            if begin < end:
                shard.read(distinct[begin:end] - start, rows[begin:end])
        return rows[inverse]

    def _take_in(self, shards: list[tuple[Shard, np.ndarray]]) -> None:
        """Let further shards be found by their keys."""
        if not shards:
            return
        first = self._starts[-1]
        self._shards += [shard for shard, _ in shards]
        ends = first + np.cumsum([shard.rows for shard, _ in shards])
        keys = np.concatenate([keys for _, keys in shards])
        self._starts = np.append(self._starts, ends)
        self._index = self._index.extended(keys, np.arange(first, ends[-1]))


def _shard_paths(folder: Path) -> list[Path]:
    """The shards of an encoder's folder, then those of its parts."""
    return sorted(folder.glob("*.h5")) + sorted(folder.glob("*/*.h5"))


def _open(path: Path, encoder_id: str, dim: int, keep: bool = False) -> tuple[Shard, np.ndarray] | None:
    """A shard and its keys; None for one that cannot be believed, which is moved aside unless it is to be kept."""
    try:
        return open_shard(path, encoder_id, dim)
    except PermissionError as error:
        raise explain_os_error(error, path, "read") from error
    except Exception as error:  # h5py's for a damaged file are of every kind
        reason = str(error) if isinstance(error, Damaged) else "damaged"
        aside = path.with_suffix(".corrupt")
        done = "left out" if keep else f"moved to {aside.name}"
        print(printable(f"warning: {path}: {reason}, {done}; its items are encoded again"), file=sys.stderr)
        if not keep:
            try:
                path.replace(aside)
            except FileNotFoundError:  # another process that shares the store came first
                pass
            except OSError as failed:
                raise explain_os_error(failed, aside) from failed
        return None


@contextlib.contextmanager
def open_store(
    folder: str | Path, encoder_id: str, dim: int, part: str | None = None, others: Sequence[str | Path] = ()
) -> Iterator[FeatureStore]:
    """The features of one encoder, for this process alone; with a `part`, that part of them.

    Args:
        folder, encoder_id, dim, part, others: see `FeatureStore`.

    Raises:
        UserError: another process is at work on them.
    """
    whole = make_folder(_encoder_folder(folder, encoder_id))
    own = make_folder(whole / part) if part else whole
    with contextlib.ExitStack() as locks:
        if os.access(own, os.W_OK):  # a store in a read-only folder is complete, or the first flush says so
            # Who takes the whole waits for no part: what is still at work there would be encoded twice.
            parts = [] if part else sorted(path for path in whole.iterdir() if path.is_dir() and path.suffix != ".h5")
            for each in [own, *parts]:
                locks.enter_context(locked(each))
                for rest in each.glob(".*.part"):  # of a killed run
                    rest.unlink(missing_ok=True)
        yield FeatureStore(folder, encoder_id, dim, part, others)


@dataclass(frozen=True)
class StoredFeatures:
    """The features of n items in a store, several views of an item side by side; see `features.Features`.

    Attributes:
        store: where the rows are.
        places: int64 [n] a view, of `FeatureStore.places`; those of missing items are not looked at.
        present: bool [n], False where the item has no such content.
    """

    store: FeatureStore
    places: list[np.ndarray]
    present: np.ndarray

    @property
    def width(self) -> int:
        """D, of all views."""
        return len(self.places) * self.store.dim

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `Features`."""
        return np.hstack([self.store.read(view[rows]) for view in self.places])

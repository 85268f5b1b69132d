"""Shards, the files of a feature store: some hundred rows of features in one HDF5 file, and an index of their keys.

A shard is checked as a whole when a store is opened (checksum, shapes, NaN) and then read by rows: its features lie in
one piece, not compressed, so a row is a place in the file, and no more of it is read than is asked for. The index holds
24 bytes a row: a store of a million items takes 24 MB of memory, whatever the width of their features.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mm_fibinet.errors import UserError, explain_os_error

KEY_BYTES = 16
KEY = np.dtype(f"S{KEY_BYTES}")  # sorts as bytes do; zeros at a key's end get lost where one is taken out alone


class Damaged(Exception):
    """A shard cannot be believed; the message says why."""


@dataclass(frozen=True)
class Shard:
    """A shard on disk.

    Attributes:
        path: its file.
        rows: n.
        dim: D.
        start: where the features, float32 [n, D], begin in the file, in bytes.
    """

    path: Path
    rows: int
    dim: int
    start: int

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read some rows.

        Args:
            rows: int64 [m], ascending, each once.
            out: float32 [m, D], filled.

        Raises:
            UserError: the file cannot be read, or is shorter than it was.
        """
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)  # of neighbours, each one read
        done = 0
        try:
            with open(self.path, "rb") as file:
                for run in runs:
                    part = out[done : done + len(run)]
                    done += len(run)
                    file.seek(self.start + int(run[0]) * self.dim * out.itemsize)
                    if file.readinto(part.data) != part.nbytes:
                        raise UserError(f"{self.path}: has become shorter since it was opened; run the command again")
        except OSError as error:
            raise explain_os_error(error, self.path, "read") from error


def pack_shard(encoder_id: str, keys: np.ndarray, features: np.ndarray) -> tuple[bytes, int]:
    """A shard as the bytes of its file, and where in them the features begin.

    Built in memory: HDF5 reports a full disk in its own words, a plain write in the system's.

    Args:
        encoder_id: `Encoder.id`.
        keys: KEY [n].
        features: float32 [n, D].
    """
    with h5py.File("shard", "w", driver="core", backing_store=False) as shard:
        shard.attrs["encoder"] = encoder_id
        shard.create_dataset("keys", data=keys.view(np.uint8).reshape(-1, KEY_BYTES))
        stored = shard.create_dataset("features", data=features, chunks=features.shape, fletcher32=True)
        shard.flush()
        return shard.id.get_file_image(), stored.id.get_chunk_info(0).byte_offset


def open_shard(path: Path, encoder_id: str, dim: int) -> tuple[Shard, np.ndarray]:
    """A shard that is there, checked as a whole, and its keys, KEY [n].

    Raises:
        Damaged, or what h5py raises on a damaged file, which is of every kind.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise Damaged("not a file")
    with h5py.File(path, "r") as shard:
        if shard.attrs["encoder"] != encoder_id:
            raise Damaged("holds the features of another encoder")
        keys, features = shard["keys"], shard["features"]
        if features.shape != (len(keys), dim):
            raise Damaged(f"holds features {features.shape}, expected ({len(keys)}, {dim})")
        if keys.shape[1:] != (KEY_BYTES,) or (keys.dtype, features.dtype) != (np.uint8, np.float32):
            raise Damaged("damaged")
        if features.nbytes > path.stat().st_size:  # a size that is only claimed must not be allocated
            raise Damaged("damaged")
        if not np.isfinite(features[:]).all():  # read, whereby the checksum is compared
            raise Damaged("holds NaN or infinity")
        stored = features.id
        as_packed = features.chunks == features.shape and features.fletcher32
        if not as_packed or stored.get_create_plist().get_nfilters() != 1:
            raise Damaged("damaged")  # in pieces, compressed or without a checksum, as no store writes it
        opened = Shard(path, len(keys), dim, stored.get_chunk_info(0).byte_offset)
        return opened, keys[:].reshape(-1).view(KEY)


@dataclass(frozen=True)
class KeyIndex:
    """Where each key's row is.

    Attributes:
        keys: KEY [n], ascending, each once.
        places: int64 [n].
    """

    keys: np.ndarray
    places: np.ndarray

    @classmethod
    def empty(cls) -> "KeyIndex":
        """Of nothing."""
        return cls(np.empty(0, KEY), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The places of KEY [m]: int64 [m], -1 for a key that is not there."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(self.keys.searchsorted(keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.places[at], -1)

    def extended(self, keys: np.ndarray, places: np.ndarray) -> "KeyIndex":
        """With further keys, KEY [m], at int64 [m]; a key that is there, or comes again, stays where it was first."""
        new = self.find(keys) < 0
        keys, first = np.unique(keys[new], return_index=True)
        at = self.keys.searchsorted(keys)
        return KeyIndex(np.insert(self.keys, at, keys), np.insert(self.places, at, places[new][first]))

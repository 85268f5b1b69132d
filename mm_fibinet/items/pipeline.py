"""All contents of a source through their encoder into the feature store, as fast as the network can take them.

Background threads load, hash and prepare contents ahead of it, some at a time: handing one over takes longer than to
cut a title into tokens. Contents of one shape are collected to full batches. On a GPU the network has a thread of its
own, which is given the next batch before this one is done; on a CPU it would only take cores from the others.
"""

import os
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import length_hint
from typing import Any

import numpy as np

from mm_fibinet.distributed import current
from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.encoding import Encoder
from mm_fibinet.items.feature_store import FeatureStore, content_key
from mm_fibinet.items.shards import KEY
from mm_fibinet.progress import track

WORKERS = 16
MAX_BYTES_AHEAD = 256 * 2**20  # of contents that wait for the encoder
TOGETHER = 64  # contents that one thread prepares at a time, or fewer when these have
BYTES_TOGETHER = 2**16
BATCHES_AHEAD = 4  # that wait for a GPU


@dataclass
class Filled:
    """What `fill` did.

    Attributes:
        items: int64 [m], the items whose content could be used.
        keys: KEY [m], the keys of their contents.
        bad: (name, "corrupt" or "oversized", reason) of the others.
        computed: distinct contents that went through the encoder in this run.
        seconds: the time it took.
    """

    items: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, KEY))
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Chunk:
    """Some contents, prepared.

    Attributes:
        items, keys: of those that could be used.
        new: {key: (sample, shape)} of those that were not in the store.
        bad: (name, kind, reason) of the others.
    """

    items: list[int]
    keys: list[bytes]
    new: dict[bytes, tuple[Any, int]]
    bad: list[tuple[str, str, str]]


def fill(
    store: FeatureStore, encoder: Encoder, entries: Iterable[Entry], title: str, own_thread: bool = False
) -> Filled:
    """Bring the features of all entries into the store, encoding those that are not there.

    Whatever ends the loop early, what was encoded so far is written.

    Args:
        store, encoder: where to, and by what.
        entries: the contents.
        title: the progress bar's label.
        own_thread: run the network in a thread of its own, for one that is on a GPU.
    """
    filled = Filled()
    items, keys = array("q"), bytearray()
    batches: dict[int, dict[bytes, Any]] = defaultdict(dict)
    begun = time.monotonic()
    network = _Network(store, encoder, own_thread)
    try:
        with network:
            chunks = _in_background(partial(_prepare, store, encoder), entries, title, 2 * encoder.batch_size)
            for chunk in chunks:
                items.extend(chunk.items)
                keys += b"".join(chunk.keys)
                filled.bad += chunk.bad
                for key in network.missing(list(chunk.new)):
                    sample, shape = chunk.new[key]
                    batches[shape][key] = sample
                    if len(batches[shape]) == encoder.batch_size:
                        network.take(batches.pop(shape))
            for batch in batches.values():
                network.take(batch)
    finally:
        store.flush()
    filled.computed = network.computed
    filled.items, filled.keys = np.array(items, np.int64), np.frombuffer(bytes(keys), KEY)
    filled.seconds = time.monotonic() - begun
    return filled


class _Network:
    """An encoder that puts what it gives into the store, in a thread of its own or in this one.

    Args:
        store, encoder, own_thread: of `fill`.

    Attributes:
        computed: contents that were encoded.
    """

    def __init__(self, store: FeatureStore, encoder: Encoder, own_thread: bool):
        self.store = store
        self.encoder = encoder
        self.computed = 0
        self._queued: set[bytes] = set()
        self._running: deque[tuple[list[bytes], Future]] = deque()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="network") if own_thread else None

    def __enter__(self) -> "_Network":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            while self._running and kind is None:
                self._collect()
        finally:
            if self._threads:
                self._threads.shutdown(cancel_futures=True)

    def missing(self, keys: list[bytes]) -> list[bytes]:
        """Those that are neither in the store nor on their way; they are from now on."""
        found = self.store.has(keys) if keys else []
        new = [key for key, there in zip(keys, found, strict=True) if not there and key not in self._queued]
        self._queued.update(new)
        return new

    def take(self, batch: dict[bytes, Any]) -> None:
        """Encode samples of one shape, now or soon."""
        keys, samples = list(batch), list(batch.values())
        if self._threads is None:
            self._store(keys, self.encoder.encode(samples))
            return
        self._running.append((keys, self._threads.submit(self.encoder.encode, samples)))
        if len(self._running) > BATCHES_AHEAD:
            self._collect()

    def _collect(self) -> None:
        keys, future = self._running.popleft()
        self._store(keys, future.result())

    def _store(self, keys: list[bytes], features: np.ndarray) -> None:
        if not np.isfinite(features).all():
            raise UserError(
                f"encoder {self.encoder.id} gave NaN or infinity, expected finite features; choose another encoder"
            )
        self.store.add(keys, features)
        self.computed += len(keys)
        self._queued.difference_update(keys)


def _prepare(store: FeatureStore, encoder: Encoder, entries: list[Entry]) -> _Chunk:
    """Load contents, and prepare those that are not in the store."""
    found: list[tuple[Entry, bytes | BadContent]] = []
    contents: dict[bytes, bytes] = {}
    for entry in entries:
        try:
            content = entry.load()
        except BadContent as error:
            found.append((entry, error))
            continue
        key = content_key(content)
        contents[key] = content
        found.append((entry, key))
    new = [key for key, there in zip(contents, store.has(list(contents)), strict=True) if not there]
    prepared = dict(zip(new, encoder.prepare_all([contents[key] for key in new]), strict=True))
    chunk = _Chunk([], [], {}, [])
    for entry, what in found:
        sample = what if isinstance(what, BadContent) else prepared.get(what)
        if isinstance(sample, BadContent):
            chunk.bad.append((entry.name, sample.kind, str(sample)))
        elif isinstance(what, bytes):
            chunk.items.append(entry.item_id)
            chunk.keys.append(what)
            if sample is not None:
                chunk.new[what] = sample
    return chunk


def _in_background(
    work: Callable[[list[Entry]], _Chunk], entries: Iterable[Entry], title: str, depth: int
) -> Iterator[_Chunk]:
    """Run `work` over entries in threads, some at a time, and yield what it gives in order, under a bar.

    The threads run ahead by about `depth` entries, and by fewer when these hold MAX_BYTES_AHEAD: an entry of an archive
    has its bytes with it.
    """
    waiting: deque[tuple[int, int, Future[_Chunk]]] = deque()  # without the entries, which would keep their bytes
    ahead = held = 0
    with (
        ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), thread_name_prefix="prepare") as pool,
        track(desc=title, total=length_hint(entries) or None, unit="item", shown=current().is_main) as bar,
    ):
        try:
            for some, size in _together(entries):
                while waiting and ((ahead > depth and len(waiting) > 1) or held + size > MAX_BYTES_AHEAD):
                    number, bytes_held, future = waiting.popleft()
                    ahead -= number
                    held -= bytes_held
                    yield future.result()
                    bar.update(number)
                waiting.append((len(some), size, pool.submit(work, some)))
                ahead += len(some)
                held += size
            for number, _, future in waiting:
                yield future.result()
                bar.update(number)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _together(entries: Iterable[Entry]) -> Iterator[tuple[list[Entry], int]]:
    """Entries in lists of TOGETHER, or fewer of BYTES_TOGETHER, and their bytes; one of unknown size ends its list."""
    some: list[Entry] = []
    size = 0
    for entry in entries:
        some.append(entry)
        size += entry.size
        if len(some) == TOGETHER or size >= BYTES_TOGETHER or not entry.size:
            yield some, size
            some, size = [], 0
    if some:
        yield some, size

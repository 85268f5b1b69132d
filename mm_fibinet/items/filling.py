"""Contents through their encoders into the store, all of them or one process's share of the items.

Several processes divide the items among themselves, on one machine or many (`--shard I/N`, torchrun, Ray): each encodes
its share into a part of the store, and the build that follows finds everything there. An item's vector depends on its
own content alone, so the bytes are those of one process.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mm_fibinet.errors import UserError
from mm_fibinet.items.blocks import Chosen, described, load, open_sources
from mm_fibinet.items.contents import Source
from mm_fibinet.items.decoding import quiet_pillow
from mm_fibinet.items.encoders import deterministic, resolve_device, resolve_precision
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.items.feature_store import FeatureStore, StoredFeatures, open_store
from mm_fibinet.items.features import Features
from mm_fibinet.items.modalities import Modality, Reading
from mm_fibinet.items.pipeline import Filled, fill
from mm_fibinet.items.shares import Share
from mm_fibinet.options import NONE

NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One block of a build: a modality by one of its encoders.

    Attributes:
        encoder: the encoder's id.
        counts: items found, missing, and bad by kind, which add up to all items.
        facts: what else was read or not, see `Source.facts`.
        notes: the same as sentences.
        bad: (name, kind, reason) of each content that could not be used.
        computed: contents that went through the encoder.
        reused: contents whose features were in the store.
        seconds: the time it took.
    """

    encoder: str
    counts: dict[str, int]
    facts: dict[str, Any]
    notes: list[str]
    bad: list[tuple[str, str, str]]
    computed: int
    reused: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be encoded and how, as plain values that another process can be given.

    Attributes:
        chosen: the blocks.
        reading: how contents are read.
        tables: where columns of vectors are looked for.
        stores: the store, and further ones that are only read.
        device, batch_size, precision, seed, strict: see `build`.
    """

    chosen: list[Chosen]
    reading: Reading
    tables: list[str | Path]
    stores: list[Path]
    device: str
    batch_size: int | None
    precision: str
    seed: int
    strict: bool

    def anywhere(self) -> "Work":
        """The same with absolute paths, for a process that runs in another folder."""
        chosen = [
            each if each.path is None else dataclasses.replace(each, path=Path(each.path).absolute())
            for each in self.chosen
        ]
        tables: list[str | Path] = [Path(table).absolute() for table in self.tables]
        stores = [store.absolute() for store in self.stores]
        return dataclasses.replace(self, chosen=chosen, tables=tables, stores=stores)


class Filling:
    """Sources that are open and encoders that are loaded, to run as often as there are shares.

    Args:
        work: what they are for.

    Attributes:
        sources, encoders: a block each.
        widths: the numbers an item of each block, of all views, by the block's name.
        groups: the names of each modality's blocks.
        device: where the networks run.
    """

    def __init__(self, work: Work):
        self.work = work
        self.sources = open_sources(work.chosen, work.reading, work.tables)
        self.device = resolve_device(work.device)
        batch_size = work.batch_size or (256 if self.device.type == "cuda" else 16)
        how = Loading(self.device, batch_size, resolve_precision(work.precision, self.device))
        with deterministic(work.seed, self.device):
            self.encoders = [load(each, source, how) for each, source in zip(work.chosen, self.sources, strict=True)]
        self.widths: dict[str, int] = {}
        self.groups: dict[Modality, list[str]] = {}
        for each, source, encoder in zip(work.chosen, self.sources, self.encoders, strict=True):
            self.widths[each.block] = encoder.dim * len(source.views)
            self.groups.setdefault(each.modality, []).append(each.block)

    def run(self, share: Share | None = None) -> tuple[dict[str, Encoded], dict[str, Features]]:
        """Encode what is not in the store; both by the blocks' names, of a share of the items or of all."""
        encoded, features = {}, {}
        own, *others = self.work.stores
        part = share.part if share else None
        with deterministic(self.work.seed, self.device), quiet_pillow():
            for each, source, encoder in zip(self.work.chosen, self.sources, self.encoders, strict=True):
                with open_store(own, encoder.id, encoder.dim, part, others) as store:
                    encoded[each.block], features[each.block] = self._encode(each, source, encoder, store, share)
        return encoded, features

    def _encode(
        self, chosen: Chosen, source: Source, encoder: Encoder, store: FeatureStore, share: Share | None
    ) -> tuple[Encoded, Features]:
        """Run a block's views through its encoder, as far as their features are not in the store."""
        num_items = self.work.reading.num_items
        views: list[Filled] = []
        for title, entries in source.views.items():
            own = share.select(entries) if share else entries
            views.append(fill(store, encoder, own, title, own_thread=self.device.type == "cuda"))
            if len(views) == 1:
                _check_found(chosen, views[0], source, self.work.strict, every_item=share is None)
        whole = _whole(views)
        if len(views) > 1:
            _check_found(chosen, whole, source, self.work.strict, every_item=share is None)
        kinds = [kind for _, kind, _ in whole.bad]
        asked = share.count(num_items) if share else num_items
        counts = {"found": len(whole.items), "missing": asked - len(whole.items) - len(kinds)}
        counts |= {kind: kinds.count(kind) for kind in (*chosen.modality.flaws, *kinds)}
        computed = sum(view.computed for view in views)
        used = len(np.unique(np.concatenate([view.keys for view in views])))
        seconds = sum(view.seconds for view in views)
        facts, notes = described(encoder, source)
        encoded = Encoded(encoder.id, counts, facts, notes, whole.bad, computed, used - computed, seconds)
        return encoded, _features(views, whole.items, store, num_items)


def together(encoded: dict[str, Encoded], shares: list[dict[str, Encoded]]) -> dict[str, Encoded]:
    """What a build did whose items were encoded in shares: all that the shares encoded, in the time of the slowest."""
    added = {}
    for block, each in encoded.items():
        computed = each.computed + sum(share[block].computed for share in shares)
        reused = max(each.computed + each.reused - computed, 0)  # equal contents of two shares are encoded twice
        seconds = each.seconds + max((share[block].seconds for share in shares), default=0.0)
        added[block] = dataclasses.replace(each, computed=computed, reused=reused, seconds=seconds)
    return added


def _check_found(chosen: Chosen, whole: Filled, source: Source, strict: bool, every_item: bool) -> None:
    """Refuse a modality with no content for any of every item and, when strict, one with bad contents."""
    name, place = chosen.modality.name, chosen.path or chosen.encoder_name
    if strict and whole.bad:
        raise UserError(
            f"{place}: found {len(whole.bad)} bad {name} files, expected none with --strict: "
            f"{first_names(whole.bad)}; replace or remove them"
        )
    if every_item and not len(whole.items):
        found = f" ({'; '.join(source.notes())})" if source.notes() else ""
        bad = f", but {len(whole.bad)} bad: {first_names(whole.bad)}" if whole.bad else ""
        raise UserError(
            f"{place}: found no {chosen.modality.expected}{found}{bad}; leave the modality out with "
            f"--{chosen.modality.encoder_option} {NONE}"
        )


def _whole(views: list[Filled]) -> Filled:
    """The items with all views, and the contents that cannot be used: one bad view leaves its item without features."""
    items = views[0].items
    bad: dict[str, tuple[str, str, str]] = {}
    for view in views:
        items = items[np.isin(items, view.items)]
        for each in view.bad:
            bad.setdefault(each[0], each)
    return Filled(items, bad=list(bad.values()))


def _features(views: list[Filled], items: np.ndarray, store: FeatureStore, num_items: int) -> Features:
    """Features in the order of item_info, without its row 0; several views of the same items side by side.

    Args:
        views: what was filled.
        items: int64 [m], those with all views.
        store, num_items: where the rows are, and of how many items.
    """
    present = np.zeros(num_items, dtype=bool)
    present[items - 1] = True
    places = []
    for view in views:
        places.append(np.zeros(num_items, np.int64))
        places[-1][view.items - 1] = store.places(view.keys)
    return StoredFeatures(store, places, present)


def first_names(bad: list[tuple[str, str, str]]) -> str:
    """The first few bad contents, for a person."""
    named = "; ".join(f"{name} {kind} ({reason})" for name, kind, reason in bad[:NAMES_SHOWN])
    return named + (f"; and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else "")

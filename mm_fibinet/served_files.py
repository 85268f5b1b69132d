"""What an exported model's folder holds: a graph that scores, the items' rows beside it, and a card that names both.

The items' rows are outside of the graph: a catalogue grows and a graph does not, several processes share one memory
map, and rows may be stored smaller than they are computed with (`pack`). Nothing here needs more than numpy, since
what scores runs where there is no torch.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.files import write_json
from mm_fibinet.options import ITEM_TABLES

FORMAT = 1
CARD, GRAPH, COMPILED, ENCODER = "card.json", "model.onnx", "model.pt2", "item_encoder.onnx"
ROWS, SCALES, IDS = "items.npy", "item_scales.npy", "item_ids.npy"
FILES = (CARD, GRAPH, COMPILED, ENCODER, ROWS, SCALES, IDS)  # all that a folder may hold
LEAST = {"num_items": 1, "max_len": 1, "min_len": 1, "padded_len": 0, "pairs_at_once": 1}  # numbers of a card
FEATURES = ("row_features", "item_features")  # specs of a card, each of a type that has these sizes
SIZES: dict[str, tuple[str, ...]] = {
    "numeric": (),
    "categorical": ("vocab_size",),
    "sequence": ("vocab_size", "max_len"),
    "embedding": ("pretrain_dim",),
}
LARGEST = 127  # of an int8 that has a negative
TYPES = dict(zip(ITEM_TABLES, (np.float32, np.float16, np.int8), strict=True))
MOST = 1e12  # of an item's row: far more than a model is trained on; not far beyond it products overflow to NaN


@dataclass(frozen=True)
class Card:
    """What a folder holds.

    Attributes:
        model, expid, dataset_id: whose weights it scores with.
        item_table: how the items' rows are stored, one of ITEM_TABLES.
        num_items: N, the padding item 0 counted.
        parts: {name: width} of an item's row, in its order.
        of_content: the parts that do not depend on an item's id.
        ids: {feature: width} of the integers beside an item's row, in their order.
        row_features: feature specs by name, in the graph's order: what a row has of its own.
        item_features: feature specs by name: what an item that is added must have, but for its id.
        max_len: positions of a history that are read, the last ones.
        min_len: positions that the graph takes at least.
        padded_len: positions that a history is padded to, for a model that reads the padding too; else 0.
        pairs_at_once: how many pairs of a candidate and a position are scored at once.
        files: {name: bytes} of the other files.
        about: what is for people: metrics, data and their hashes, settings, versions.
    """

    model: str
    expid: str
    dataset_id: str
    item_table: str
    num_items: int
    parts: dict[str, int]
    of_content: list[str]
    ids: dict[str, int]
    row_features: dict[str, dict]
    item_features: dict[str, dict]
    max_len: int
    min_len: int
    padded_len: int
    pairs_at_once: int
    files: dict[str, int]
    about: dict

    @property
    def graph(self) -> str:
        """The file that scores: GRAPH or COMPILED."""
        return COMPILED if COMPILED in self.files else GRAPH

    def write(self, folder: Path) -> None:
        """card.json, with the sizes of the files that are there."""
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != CARD}
        write_json(folder / CARD, {"format": FORMAT, **dataclasses.asdict(self), "files": sizes})

    @classmethod
    def read(cls, folder: str | Path) -> "Card":
        """Read card.json, and see that the files that it names are whole.

        Raises:
            UserError: it is no folder of an exported model, or not a whole one.
        """
        path = Path(folder) / CARD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            sizes = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
        except FileNotFoundError as error:
            raise UserError(f"{folder}: no exported model ({CARD} is not there); export_onnx.py writes one") from error
        except OSError as error:
            raise explain_os_error(error, path, "read") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not an exported model's card (damaged JSON); export it again") from error
        names = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(f"{path}: not an exported model's card of format {FORMAT}; export it again")
        wrong = [name for name, kind in names.items() if not isinstance(content.get(name), _python_type(kind))]
        wrong += [name for name in ("parts", "ids", "files") if name not in wrong and not _are_sizes(content[name])]
        wrong += [name for name, least in LEAST.items() if name not in wrong and not _is_size(content[name], least)]
        wrong += [name for name in FEATURES if name not in wrong and not all(map(_is_spec, content[name].values()))]
        if wrong or content.keys() - names.keys():
            named = [*wrong, *(content.keys() - names.keys())][0]
            raise UserError(f"{path}: not an exported model's card: {named} is damaged; export it again")
        card = cls(**content)
        for name, size in card.files.items():
            if sizes.get(name) != size:
                found = f"has {sizes[name]:,} bytes" if name in sizes else "is not there"
                raise UserError(f"{Path(folder) / name}: {found}, expected {size:,}; copy or export it again")
        graphs = {GRAPH, COMPILED} & card.files.keys()
        if card.item_table not in TYPES or ROWS not in card.files or len(graphs) != 1:
            raise UserError(f"{path}: not an exported model's card: files or item_table are damaged; export it again")
        return card


def _are_sizes(sizes: dict) -> bool:
    return all(_is_size(size, 1) for size in sizes.values())


def _is_size(size: object, least: int) -> bool:
    return type(size) is int and least <= size < 1 << 40


def _is_spec(spec: object) -> bool:
    """Whether a feature's spec has what reading its values needs."""
    if not isinstance(spec, dict) or not isinstance(spec.get("type"), str) or spec["type"] not in SIZES:
        return False
    numbers = (spec[name] for name in ("shift", "scale", "fill_na") if spec.get(name) is not None)
    sizes = all(_is_size(spec.get(name), 1) for name in SIZES[spec["type"]])
    return sizes and all(isinstance(number, int | float) for number in numbers)


def _python_type(annotation) -> type:
    """dict of dict[str, int], and so on."""
    return getattr(annotation, "__origin__", annotation)


class ItemRows:
    """The items' rows, as they are stored, and what is compared as integers.

    Attributes:
        values: [N, W] of the type of the table.
        scales: float32 [N, parts] of int8; else None.
        ids: int32 [N, X].
        parts: {name: width}, W in all.
    """

    def __init__(self, values: np.ndarray, scales: np.ndarray | None, ids: np.ndarray, parts: dict[str, int]):
        self.values, self.scales, self.ids, self.parts = values, scales, ids, parts
        self._part_of = np.repeat(np.arange(len(parts)), list(parts.values()))

    @classmethod
    def pack(
        cls, rows: np.ndarray, ids: np.ndarray, parts: dict[str, int], item_table: str, first: int = 0
    ) -> "ItemRows":
        """Rows as a kind of table stores them.

        int8 has a scale for each part of each row: the largest number of the part is 127 times it.

        Args:
            rows: float32 [N, W].
            ids: int32 [N, X].
            parts: {name: width}.
            item_table: one of ITEM_TABLES.
            first: the first row's item.

        Raises:
            UserError: a number is NaN, beyond what fp16 holds, or so large that an item would score NaN.
        """
        most = float(np.finfo(np.float16).max) if item_table == "fp16" else MOST
        beyond = np.flatnonzero(~(np.abs(rows).max(axis=1, initial=0) <= most))
        if len(beyond):
            found = f"item {first + beyond[0]} has {np.abs(rows[beyond[0]]).max():g}"
            if item_table == "fp16":
                raise UserError(f"--item_table fp16: {found}, beyond fp16; take fp32 or int8")
            raise UserError(f"{found}, expected at most {most:g}; scale the column that has it")
        if item_table != "int8":
            return cls(rows.astype(TYPES[item_table]), None, ids, parts)
        firsts = np.cumsum([0, *parts.values()])[:-1]
        scales = np.maximum.reduceat(np.abs(rows), firsts, axis=1) / np.float32(LARGEST)
        packed = cls(rows, scales, ids, parts)
        packed.values = np.rint(rows / np.where(scales > 0, scales, 1)[:, packed._part_of]).astype(np.int8)
        return packed

    @classmethod
    def read(cls, folder: str | Path, card: Card) -> "ItemRows":
        """The memory maps of a folder.

        Raises:
            UserError: a file is not what the card says.
        """
        n, width = card.num_items, sum(card.parts.values())
        values = _array(folder, ROWS, (n, width), TYPES[card.item_table])
        scales = _array(folder, SCALES, (n, len(card.parts)), np.float32) if card.item_table == "int8" else None
        shape = (n, sum(card.ids.values()))
        ids = _array(folder, IDS, shape, np.int32) if card.ids else np.zeros(shape, np.int32)
        return cls(values, scales, ids, card.parts)

    def write(self, folder: Path) -> None:
        """items.npy and what belongs to it."""
        np.save(folder / ROWS, self.values)
        if self.scales is not None:
            np.save(folder / SCALES, self.scales)
        if self.ids.shape[1]:
            np.save(folder / IDS, self.ids)

    def followed_by(self, more: "ItemRows") -> "ItemRows":
        """These and further items."""
        scales = None if self.scales is None else np.concatenate([self.scales, more.scales])
        values, ids = np.concatenate([self.values, more.values]), np.concatenate([self.ids, more.ids])
        return ItemRows(values, scales, ids, self.parts)

    def take(self, index: np.ndarray) -> np.ndarray:
        """float32 [M, W] of integers [M]."""
        rows = self.values.take(index, axis=0).astype(np.float32, copy=False)
        return rows if self.scales is None else rows * self.scales.take(index, axis=0)[:, self._part_of]


def _array(folder: str | Path, name: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
    """A .npy as a memory map."""
    path = Path(folder) / name
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except ValueError as error:
        raise UserError(f"{path}: not an array of numpy ({error}); copy or export it again") from error
    if array.shape != shape or array.dtype != dtype:
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{path}: is {found}, {CARD} says {np.dtype(dtype)} {list(shape)}; copy or export it again")
    return np.asarray(array)

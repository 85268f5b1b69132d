"""A small challenge-shaped data set with real text, drawn covers and a known best possible AUC.

The title alone tells an item's topic and the cover alone tells its style; users like some topics and some styles, so
both modalities are needed, most of all for the cold items, a fifth of the valid and test targets. `world` draws
items, users and clicks from a stated model, and because the true click probability is known, so is the AUC that no
model can beat: demo.json holds it, beside the parameters. The *_truth files hold what a model has to find out.

`python -m mm_fibinet.demo.data --output data/demo` writes everything below one folder, demo.json last. The same
parameters give the same bytes.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet import extras
from mm_fibinet.demo import world as click_model
from mm_fibinet.demo.covers import STYLES, save_cover
from mm_fibinet.demo.titles import TOPICS, draw_tags, draw_titles
from mm_fibinet.demo.world import Rows, World, draw_histories, draw_rows, draw_world, expected_auc, stream
from mm_fibinet.errors import UserError, explain_os_error, printable, run_cli
from mm_fibinet.files import LOCK, locked, make_folder, write_json
from mm_fibinet.progress import track

VERSION = 1
TAGS_PER_ITEM = 5
EMBEDDING_DIM = 128

SIZES = {
    "tiny": {"items": 60, "users": 300, "train_rows": 2_000, "valid_rows": 400, "test_rows": 600},
    "demo": {"items": 1_600, "users": 16_000, "train_rows": 160_000, "valid_rows": 10_000, "test_rows": 20_000},
    "full": {"items": 91_717, "users": 1_000_000, "train_rows": 3_600_000, "valid_rows": 10_000, "test_rows": 379_142},
}
_LIMITS = {
    "items": (40, 1_000_000),
    "users": (20, 10_000_000),
    "train_rows": (100, 100_000_000),
    "valid_rows": (100, 100_000_000),
    "test_rows": (100, 100_000_000),
    "max_len": (1, 1_000),
    "seed": (0, 2**32 - 1),
}

_ROW_CHUNK = 100_000
_PART = ".demo.part"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What decides the bytes of a demo set; checked on creation."""

    name: str
    items: int
    users: int
    train_rows: int
    valid_rows: int
    test_rows: int
    max_len: int
    seed: int
    images: bool
    random_embedding: bool

    def __post_init__(self) -> None:
        for field, (least, most) in _LIMITS.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not least <= value <= most:
                raise UserError(f"{field} is {value}, expected a whole number from {least} to {most}")
        for field in ("images", "random_embedding"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"{field} is {getattr(self, field)!r}, expected True or False")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise UserError(f"name is {self.name!r}, expected a folder name of letters, digits, '_', '-' and '.'")
        if self.name in [*self.files, "item_images", "demo.json"]:
            raise UserError(f"name is {self.name!r}, which is a file or a folder of the set; expected another name")

    @property
    def files(self) -> list[str]:
        """Everything that lies in the output folder, relative to it, but demo.json."""
        splits = [f"{self.name}/{split}.parquet" for split in ("train", "valid", "test", "item_info")]
        tables = ["item_feature.parquet", "test_labels.parquet", "item_truth.parquet", "user_truth.parquet"]
        return splits + tables + ["item_images"] * self.images


def generate(
    output: str | os.PathLike,
    name: str = "MMCTR_demo",
    size: str = "demo",
    items: int | None = None,
    users: int | None = None,
    train_rows: int | None = None,
    valid_rows: int | None = None,
    test_rows: int | None = None,
    max_len: int = 64,
    seed: int = 2025,
    images: bool = True,
    random_embedding: bool = False,
    force: bool = False,
) -> dict:
    """Write a demo set below `output`, unless it is there already.

    Args:
        output: folder that will hold all of it.
        name: folder of the splits and of item_info.parquet within `output`.
        size: "tiny", "demo" or "full": the numbers of items, users and rows that are not given.
        items, users, train_rows, valid_rows, test_rows: numbers that replace those of `size`.
        max_len: history positions in a row.
        seed: the same seed and sizes give the same bytes.
        images: draw the covers.
        random_embedding: add a random item_emb_d128 to item_info.parquet.
        force: replace a demo set of other parameters.

    Returns:
        What demo.json holds: parameters, the click model, CTRs, Bayes-optimal AUCs.

    Raises:
        UserError: a value out of range, a folder that holds something else, a disk that cannot be written.
    """
    if size not in SIZES:
        raise UserError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
    given = {"items": items, "users": users, "train_rows": train_rows, "valid_rows": valid_rows, "test_rows": test_rows}
    sizes = SIZES[size] | {field: value for field, value in given.items() if value is not None}
    parameters = Parameters(
        name=name, **sizes, max_len=max_len, seed=seed, images=images, random_embedding=random_embedding
    )
    output = Path(output)
    existing = _existing(output, parameters, force)
    if existing is not None and not force:
        return existing
    if images:
        extras.require("PIL")
    with locked(output, waiting=f"{output}: another process is at work there; waiting for it"):
        existing = _existing(output, parameters, force)  # the one that was waited for may have made it
        return existing if existing is not None and not force else _generate(output, parameters, existing)


def _generate(output: Path, parameters: Parameters, existing: dict | None) -> dict:
    """Write the set into a folder that is this process's own; `existing` is the set that it replaces."""
    part = output / _PART
    try:
        shutil.rmtree(part, ignore_errors=True)
        make_folder(part / parameters.name)
        demo = _build(part, parameters)
        _publish(part, output, parameters, existing)
    except OSError as error:
        raise explain_os_error(error, output) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return demo


def _existing(output: Path, parameters: Parameters, force: bool) -> dict | None:
    """What demo.json in `output` says; None when the folder is free. A `UserError` when it may not be used."""
    try:
        if not output.exists() or {entry.name for entry in output.iterdir()} <= {_PART, LOCK}:
            return None
        found = read_demo_json(output)
        old = Parameters(**found["parameters"])
    except FileNotFoundError:
        raise UserError(
            f"{output} is not empty and has no demo.json (not a demo set, or an unfinished one): "
            "remove it or choose another --output"
        ) from None
    except OSError as error:
        raise explain_os_error(error, output, "read") from error
    if force:
        strangers = [file for file in parameters.files if file not in old.files and os.path.lexists(output / file)]
        if strangers:
            raise UserError(
                f"{output / strangers[0]} is not of the demo set there, and would be replaced: move it or choose "
                "another --output"
            )
        return found
    if (found.get("version"), old) != (VERSION, parameters):
        raise UserError(
            f"{output} holds a demo set of other parameters ({_differences(found, parameters)}): "
            "pass --force to replace it or choose another --output"
        )
    missing = [file for file in parameters.files if not (output / file).exists()]
    if missing:
        raise UserError(f"{output} holds this demo set, but {missing[0]} is missing: pass --force to write it again")
    return found


def read_demo_json(folder: Path) -> dict:
    """The contents of a demo set's demo.json.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not what `generate` writes.
    """
    path = folder / "demo.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Parameters(**found["parameters"])
        if any(set(found["bayes_auc"][split]) != {"all", "warm", "cold"} for split in ("valid", "test")):
            raise KeyError("bayes_auc")
    except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
        raise UserError(f"{path} is damaged: remove the folder or choose another --output") from error
    return found


def _differences(found: dict, parameters: Parameters) -> str:
    wanted = {"version": VERSION} | dataclasses.asdict(parameters)
    present = {"version": found.get("version")} | found["parameters"]
    return ", ".join(f"{key} {present[key]}, not {value}" for key, value in wanted.items() if present[key] != value)


def _publish(part: Path, output: Path, parameters: Parameters, existing: dict | None) -> None:
    """Move a set from `part` to `output`; demo.json goes first and comes last, so that it never vouches for a mix."""
    if existing is not None:
        (output / "demo.json").unlink()
        _remove(output, Parameters(**existing["parameters"]))
    for file in [*parameters.files, "demo.json"]:
        make_folder((output / file).parent)
        os.replace(part / file, output / file)


def _remove(output: Path, parameters: Parameters) -> None:
    """Remove the files of a demo set, and the folder of its splits unless a user keeps something there."""
    for file in parameters.files:
        path = output / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    splits = output / parameters.name
    if splits.is_dir() and not any(splits.iterdir()):
        splits.rmdir()


def _build(folder: Path, parameters: Parameters) -> dict:
    """Write every file of the set into `folder` and return what demo.json holds."""
    seed = parameters.seed
    world = draw_world(parameters.items, parameters.users, seed)
    _write_items(folder, world, parameters)
    _write_truth(folder, world)
    if parameters.images:
        _draw_covers(folder / "item_images", world, seed)
    histories = draw_histories(world, parameters.max_len, stream(seed, "histories"))
    splits = {
        "train": draw_rows(world, parameters.train_rows, stream(seed, "train")),
        "valid": draw_rows(world, parameters.valid_rows, stream(seed, "valid"), "cold_valid"),
        "test": draw_rows(world, parameters.test_rows, stream(seed, "test"), "cold_test"),
    }
    for split, rows in splits.items():
        _write_split(folder / parameters.name / f"{split}.parquet", split, world, histories, rows)

    seen = np.zeros(parameters.items + 1, bool)
    seen[histories] = True
    seen[splits["train"].item] = True
    test = splits["test"]
    columns = {"label": test.label, "p_click": test.probability, "cold": ~seen[test.item]}
    _write_table(folder / "test_labels.parquet", {"ID": np.arange(len(test.label)), **columns})
    demo = _describe(world, parameters, splits, seen)
    demo["mean_history_length"] = float(np.count_nonzero(histories) / parameters.users)
    write_json(folder / "demo.json", demo)
    return demo


def _describe(world: World, parameters: Parameters, splits: dict[str, Rows], seen: np.ndarray) -> dict:
    """The contents of demo.json; Bayes AUCs are those of the true probability, for the drawn labels and expected."""
    bayes: dict[str, dict] = {}
    expected: dict[str, dict] = {}
    for split in ("valid", "test"):
        rows = splits[split]
        cold = ~seen[rows.item]
        subsets = {"all": np.ones_like(cold), "warm": ~cold, "cold": cold}
        bayes[split] = {key: expected_auc(rows.probability[at], rows.label[at]) for key, at in subsets.items()}
        expected[split] = {key: expected_auc(rows.probability[at], rows.probability[at]) for key, at in subsets.items()}
    return {
        "name": parameters.name,
        "version": VERSION,
        "parameters": dataclasses.asdict(parameters),
        "click_model": {
            "formula": click_model.FORMULA,
            "exposure": "items in proportion to 1 + views_level",
            "b0": world.b0,
            "w_topic": click_model.W_TOPIC,
            "w_style": click_model.W_STYLE,
            "w_popularity": click_model.W_POPULARITY,
            "topics_liked_by_a_user": click_model.LIKED_TOPICS,
            "styles_liked_by_a_user": click_model.LIKED_STYLES,
        },
        "topics": list(TOPICS),
        "styles": list(STYLES),
        "items_per_group": {group: len(np.unique(pool)) for group, pool in world.pools.items()},
        "items_seen_in_train": int(seen[1:].sum()),
        "ctr": {split: float(rows.label.mean()) for split, rows in splits.items()},
        "expected_ctr": {split: float(rows.probability.mean()) for split, rows in splits.items()},
        "cold_fraction": {split: float((~seen[splits[split].item]).mean()) for split in ("valid", "test")},
        "bayes_auc": bayes,
        "expected_bayes_auc": expected,
    }


def _lists(values: np.ndarray) -> pa.Array:
    """A matrix [n, width] as n fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write_table(path: Path, columns: dict) -> None:
    with open(path, "wb") as opened:  # opened here: pyarrow takes no names that are not UTF-8
        pq.write_table(pa.table(columns), opened, compression="zstd", compression_level=1)


def _write_items(folder: Path, world: World, parameters: Parameters) -> None:
    """Write item_feature.parquet (titles and tags as words) and item_info.parquet (tags as ids, row 0 = padding)."""
    titles = draw_titles(world.topic[1:], stream(parameters.seed, "titles"))
    tags = draw_tags(world.topic[1:], stream(parameters.seed, "tags"))
    feature = {
        "item_id": np.arange(1, parameters.items + 1),
        "item_title": titles,
        "item_tags": tags,
        "likes_level": world.likes_level[1:],
        "views_level": world.views_level[1:],
    }
    _write_table(folder / "item_feature.parquet", feature)

    tag_id = {tag: index for index, tag in enumerate(sorted({tag for row in tags for tag in row}), start=1)}
    tag_ids = np.zeros((parameters.items + 1, TAGS_PER_ITEM), np.int64)
    for item, row in enumerate(tags, start=1):
        tag_ids[item, TAGS_PER_ITEM - len(row) :] = [tag_id[tag] for tag in row]
    info = {"item_id": np.arange(parameters.items + 1), "item_tags": _lists(tag_ids)}
    if parameters.random_embedding:
        rng = stream(parameters.seed, "embedding")
        embedding = rng.standard_normal((parameters.items + 1, EMBEDDING_DIM), np.float32)
        embedding[0] = 0
        info["item_emb_d128"] = _lists(embedding)
    _write_table(folder / parameters.name / "item_info.parquet", info)


def _write_truth(folder: Path, world: World) -> None:
    """Write what a model must find out: the topic, style and group of items, the tastes of users."""
    group = np.full(len(world.topic), "warm", dtype=object)
    for name in click_model.COLD_ITEMS:
        group[world.pools[name]] = name
    item_truth = {
        "item_id": np.arange(1, len(world.topic)),
        "topic": np.array(TOPICS, object)[world.topic[1:]],
        "style": np.array(STYLES, object)[world.style[1:]],
        "group": group[1:],
    }
    user_truth = {
        "user_id": np.arange(1, len(world.likes_topic)),
        "likes_topic": _lists(world.likes_topic[1:]),
        "likes_style": _lists(world.likes_style[1:]),
    }
    _write_table(folder / "item_truth.parquet", item_truth)
    _write_table(folder / "user_truth.parquet", user_truth)


def _draw_covers(folder: Path, world: World, seed: int) -> None:
    folder.mkdir()
    for item_id in track(range(1, len(world.style)), "covers", unit="cover"):
        save_cover(folder / f"{item_id}.jpg", int(world.style[item_id]), seed, item_id)


def _write_split(path: Path, split: str, world: World, histories: np.ndarray, rows: Rows) -> None:
    """Write one split, _ROW_CHUNK rows at a time; test has ID = row number in front and no label."""
    writer: pq.ParquetWriter | None = None
    size = len(rows.user)
    with open(path, "wb") as opened, track(desc=split, total=size, unit="row") as progress:
        for start in range(0, size, _ROW_CHUNK):
            chunk = slice(start, min(start + _ROW_CHUNK, size))
            user, item = rows.user[chunk], rows.item[chunk]
            columns = {
                "user_id": user,
                "item_seq": _lists(histories[user].astype(np.int64)),
                "item_id": item,
                "likes_level": world.likes_level[item],
                "views_level": world.views_level[item],
            }
            if split == "test":
                columns = {"ID": np.arange(chunk.start, chunk.stop), **columns}
            else:
                columns["label"] = rows.label[chunk]
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(opened, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table)
            progress.update(len(user))
        if writer:
            writer.close()


def main() -> None:
    """Read the command line, write the set, print what it is."""
    parser = argparse.ArgumentParser(prog="python -m mm_fibinet.demo.data", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="data/demo", help="folder that will hold all of it (default: %(default)s)")
    parser.add_argument("--name", default="MMCTR_demo", help="folder of the splits in it (default: %(default)s)")
    parser.add_argument("--size", default="demo", help=f"{', '.join(SIZES)} (default: %(default)s)")
    for field in SIZES["demo"]:
        parser.add_argument(f"--{field}", type=int, help="default: that of --size")
    parser.add_argument("--max_len", type=int, default=64, help="history positions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2025, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--no_images", dest="images", action="store_false", help="draw no covers")
    parser.add_argument("--random_embedding", action="store_true", help="add a random item_emb_d128 to item_info")
    parser.add_argument("--force", action="store_true", help="replace a demo set that is there")
    options = vars(parser.parse_args())

    there = (Path(options["output"]) / "demo.json").exists() and not options["force"]
    demo = generate(**options)
    output = printable(options["output"])
    if there:
        print(f"{output}: this demo set is there already, nothing to do")
    auc = " ".join(f"{key} {value:.4f}" for key, value in demo["bayes_auc"]["test"].items() if value is not None)
    sizes = ", ".join(f"{demo['parameters'][field]:,} {field.replace('_', ' ')}" for field in SIZES["demo"])
    print(f"{output}: {sizes}")
    print(f"best possible test AUC: {auc}; cold test rows {demo['cold_fraction']['test']:.1%}")


if __name__ == "__main__":
    run_cli(main)

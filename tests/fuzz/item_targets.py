"""Targets of what is done with items beside encoding: the options of build_item_emb.py, and the report."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from fuzz.build_targets import EMB_DIM, ITEMS
from fuzz.changes import CODE, TEXTS, byte_changes, change_bytes, change_table, set_canary, table_changes
from fuzz.oracle import Fault, Place

PLACES = (
    *("train.parquet", "valid.parquet", "test.parquet", "levels.parquet", "item_info.parquet", "item_feature.parquet"),
    *("nowhere.parquet", "images", ".", "images/1.jpg", "users.parquet", "pointing.parquet"),
)
FILES = ("train", "valid", "user_info", "levels_from", "output")  # options whose value is a place of what is given
OPTIONS = {  # option: values that are right, nearly right, or not; devices and Ray start processes, which takes long
    "fusion": ("pca", "pca_per_modality", "whiten", "cca", "mean", "mix", "auto", "item2vec", "contrastive", "PCA"),
    "also": ("pca", "pca_per_modality", "whiten", "cca", "mean", "mix", "item2vec", "contrastive", "PCA", ""),
    **dict.fromkeys(FILES, PLACES),
    "output": [place for place in PLACES if place != "nowhere.parquet"],  # a new file there is allowed
    "mix": ("vec=1", "vec=-0.5", "vec=0", "vec=nan", "vec=1e308", "vec", "=1", "item_tags=1", "short=1", "vec=1=1"),
    "semantic_ids": ("kmeans", "gmm", "vq"),
    "code_size": ("1", "2", "3", "6", "7", "65536", "65537", "-1"),
    "code_levels": ("0", "1", "4", "16", "17"),
    "shard": ("1/1", "1/2", "2/2", "7/7", "0/1", "3/2", "1/2/3", "1/0", "\uff11/\uff12"),
    "engine": ("local", "spark"),
    "device": ("cpu", "auto", "cuda:99", "cpu:1", "meta"),
    "precision": ("fp32", "bf16", "auto", "fp8"),
    "text_encoder": ("none", "minilm", "column:vec", "column:short", "column:item_tags", "column:", "timm:x"),
    "image_encoder": ("none", "column:vec", "column:nothing", "lite"),
    "text_prompt": ("query: ", "query"),
    "text_dim": ("1", "384", "385", "0", "-1", "99999999999"),
    "image_dim": ("1", "0", "99999999999"),
    "text_columns": ("item_title", "item_tags", "item_id", "nothing"),
    "opening_words": ("0", "1", "10", "-1", "99999999999"),
    "emb_dim": ("1", "2", "5", "0", "-1", "99999999999"),
    "batch_size": ("1", "1000", "0", "-1", "99999999999"),
    "seed": ("0", "4294967295", "4294967296", "-1"),
}
NUMBERS = ("code_size", "code_levels", "text_dim", "image_dim", "opening_words", "emb_dim", "batch_size", "seed")
NO_TEXTS = ("text_encoder", "image_encoder", "output")  # the names of models on a hub, and of files anywhere
option = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.one_of(
            *[st.sampled_from(OPTIONS[name])] * 4,
            st.nothing() if name in (*NUMBERS, *NO_TEXTS) else st.sampled_from([*TEXTS, *CODE]),
        ),
    )
)
option_cases = st.lists(option, min_size=1, max_size=4, unique_by=lambda change: change[0])
REPORT_PLACES = (
    *("nowhere.parquet", ".", "item_feature.parquet", "config/model_config.yaml"),
    *(f"TEST_DATA/{name}.parquet" for name in ("item_info", "train", "valid", "test")),
)
report_option = st.one_of(
    st.tuples(st.just("columns"), st.sampled_from(["item_emb_d16", "item_tags", "nothing", *TEXTS, *CODE])),
    st.tuples(st.just("seed"), st.sampled_from(["0", "7", "4294967295", "4294967296", "-1"])),
    st.tuples(st.sampled_from(["valid", "train", "titles", "images", "user_info"]), st.sampled_from(REPORT_PLACES)),
    st.tuples(st.just("out"), st.sampled_from([*REPORT_PLACES[1:], "TEST_DATA"])),
)
report_cases = st.tuples(
    st.one_of(
        st.tuples(
            st.sampled_from(["item_info", "train", "valid", "item_feature"]), st.one_of(table_changes, byte_changes)
        ),
        st.none(),
    ),
    st.lists(report_option, max_size=2, unique_by=lambda change: change[0]),
)


def make_base(base: Path) -> None:
    """The items of `build_targets` with vectors and levels, and clicks on them."""
    folder = base / "clicked_items"
    shutil.copytree(base / "items", folder)
    rng = np.random.default_rng(0)
    table = pq.read_table(folder / "item_info.parquet")
    for name, width in {"vec": EMB_DIM, "short": 1}.items():
        vectors = rng.normal(size=(ITEMS + 1, width)).astype(np.float32)
        vectors[0] = 0
        table = table.append_column(name, pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width))
    pq.write_table(table, folder / "item_info.parquet")
    levels = {"item_id": range(1, ITEMS + 1), "likes_level": rng.integers(0, 11, ITEMS)}
    pq.write_table(pa.table(levels), folder / "levels.parquet")
    for number, name in enumerate(("train", "valid", "test")):
        history = rng.integers(1, ITEMS + 1, size=(30, 4))
        history[:, 0] = 0
        columns = {
            "user_id": rng.integers(0, 6, 30) + 10 * number,
            "item_seq": pa.FixedSizeListArray.from_arrays(pa.array(history.ravel()), 4),
            "item_id": rng.integers(1, ITEMS + 1, 30),
            "label": np.arange(30) % 2,
        }
        if name == "test":
            del columns["label"]
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    histories = [rng.integers(1, ITEMS + 1, user).tolist() for user in range(6)]
    users = {"user_id": range(6), "item_seq": pa.array(histories, pa.list_(pa.int64()))}
    pq.write_table(pa.table(users), folder / "users.parquet")
    pointing = pq.read_table(folder / "train.parquet").drop_columns(["item_seq"])
    ends = pa.array(pointing["user_id"].to_numpy() // 2)
    pq.write_table(pointing.append_column("history_end", ends), folder / "pointing.parquet")


def run_options(place: Place, base: Path, case: list[tuple]) -> list[int]:
    """Options of the build: a table with all that was there and sound columns beside it, or a refusal."""
    shutil.copytree(base / "clicked_items", place.given, dirs_exist_ok=True)
    shutil.copytree(base / "store", place.out / "store")
    names = ("item_info.parquet", "item_feature.parquet", "images")
    given: dict[str, object] = {Path(name).stem: place.given / name for name in names}
    given |= {"output": place.out / "item_info.parquet", "store": place.out / "store"}
    given |= {"emb_dim": EMB_DIM, "batch_size": 2, "device": "cpu"}
    given |= {name: _placed(place, name, value) for name, value in set_canary(case, place.canary)}
    arguments = [f"--{name}={value}" for name, value in given.items()]
    done = place.run("build_item_emb", *arguments, results=("*.parquet", "*.json"))
    if done.code == 0 and ("shard" in given) == (place.out / "item_info.parquet").exists():
        raise Fault("build_item_emb: ended with 0 and a shard has an output, or no shard has none")
    if done.code == 0 and "shard" not in given:
        _require_items(place, int(str(given["emb_dim"])), "levels_from" in given)
    return [done.code]


def _placed(place: Place, name: str, value: str) -> object:
    """The value of an option as the command line has it."""
    return place.given / value if name in FILES and value in PLACES else value.replace("\x00", "")


def _require_items(place: Place, emb_dim: int, levels: bool) -> None:
    built, given = (pq.read_table(folder / "item_info.parquet") for folder in (place.out, place.given))
    kept = [name for name in given.column_names if not (levels and name.endswith("_level"))]
    if any(built[name].to_pylist() != given[name].to_pylist() for name in kept):
        raise Fault("build_item_emb: a column of item_info is not that of the input")
    for name in set(built.column_names) - set(given.column_names) - {"likes_level", "views_level"}:
        values = np.array(built[name].to_pylist(), dtype=np.float64)
        if not np.isfinite(values).all() or values[0].any():
            raise Fault("build_item_emb: ended with 0 and a column is not finite, or row 0 is not zero")
        if name.endswith(f"_emb_d{emb_dim}") and values.shape != (ITEMS + 1, emb_dim):
            raise Fault("build_item_emb: ended with 0 and an embedding has another width")


def run_report(place: Place, base: Path, case: tuple) -> list[int]:
    """A report on changed files or by other options: a whole page that runs nothing of theirs, or a refusal."""
    change, options = case
    shutil.copytree(base / "data", place.given, dirs_exist_ok=True)
    files = {name: place.given / "TEST_DATA" / f"{name}.parquet" for name in ("item_info", "train", "valid")}
    files["titles"] = files["item_feature"] = place.given / "item_feature.parquet"
    if change is not None:
        path = files[change[0]]
        if isinstance(change[1][0][0], int):
            change_table(path, change[1])
        else:
            path.write_bytes(change_bytes(path.read_bytes(), change[1]))
    given = {name: files[name] for name in ("train", "valid", "titles")} | {"out": place.out / "report.html"}
    for name, value in set_canary(options, place.canary):
        known = value in (*REPORT_PLACES, "TEST_DATA")
        given[name] = place.given / value if known else value.replace("\x00", "")
    arguments = [files["item_info"], *(f"--{name}={value}" for name, value in given.items())]
    done = place.run("mm_fibinet.items.report.__main__", *arguments, results=("*.html",))
    if done.code == 0:
        page = (place.out / "report.html").read_text(encoding="utf-8")
        if not page.startswith("<!DOCTYPE html>") or not page.rstrip().endswith("</html>"):
            raise Fault("report: ended with 0 and the page is not whole")
        if any(not char.isprintable() and char not in "\n\t" for char in page):
            raise Fault("report: a control character is in the page")
    return [done.code]

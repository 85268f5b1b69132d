"""The target of build_dataset.py: a raw log and a catalogue, changed; what it makes must pass the check."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from fuzz.changes import CODE, NUMBERS, SPECIAL, TEXTS, byte_changes, change_bytes, change_table, set_canary
from fuzz.changes import table_changes as tables
from fuzz.oracle import Fault, Place

ROWS, USERS, ITEMS = 160, 12, 25
OPTIONS = (
    "user", "item", "timestamp", "label", "rating", "features", "categorical", "list_separator", "title", "tags",
    "tag_separator", "max_tags", "item_features", "split", "valid", "test", "negatives", "sampling", "max_len",
    "user_info", "seed", "name", "history", "impressions", "interactions", "items", "images",
)  # fmt: skip
COLUMNS = ("who", "what", "when", "clicked", "stars", "land", "sku", "words", "shelf", "clicked[0]", "stars >= 3")

value = st.one_of(*map(st.sampled_from, (COLUMNS, NUMBERS, SPECIAL, TEXTS, CODE, ("time", "leave_last_out", "random"))))
file_change = st.one_of(
    st.tuples(st.sampled_from(["log.csv", "items.csv"]), byte_changes),
    st.tuples(st.sampled_from(["log.parquet", "items.parquet"]), st.one_of(tables, byte_changes)),
)
cases = st.tuples(
    st.one_of(file_change, file_change, file_change, st.none()),
    st.lists(st.tuples(st.sampled_from(OPTIONS), value), max_size=2, unique_by=lambda change: change[0]),
)


def make_base(base: Path) -> None:
    """The unchanged log and catalogue, each as CSV and as parquet."""
    folder = base / "raw"
    folder.mkdir()
    log = {
        "who": [f"u{n * 7 % USERS}" for n in range(ROWS)],
        "what": [f"0{n * n % ITEMS}" for n in range(ROWS)],
        "when": [1_700_000_000 + 60 * n for n in range(ROWS)],
        "clicked": [n * 5 % 3 % 2 for n in range(ROWS)],
        "stars": [n % 5 + 1 for n in range(ROWS)],
        "land": [["FR", "DE", None][n % 3] for n in range(ROWS)],
    }
    catalogue = {
        "sku": [f"0{n}" for n in range(ITEMS)],
        "words": [f"title, {n}" for n in range(ITEMS)],
        "shelf": ["a|b" if n % 2 else "c" for n in range(ITEMS)],
    }
    for name, columns in {"log": log, "items": catalogue}.items():
        pa.csv.write_csv(pa.table(columns), folder / f"{name}.csv")
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def run_log(place: Place, base: Path, case: tuple) -> list[int]:
    """Build a data set of what is given; one that is made passes the check, one that is not leaves nothing."""
    change, options = case
    shutil.copytree(base / "raw", place.given, dirs_exist_ok=True)
    ending = "csv"
    if change:
        path, changes = place.given / change[0], change[1]
        ending = path.suffix[1:]
        if isinstance(changes[0][0], int):
            change_table(path, changes)
        else:
            path.write_bytes(change_bytes(path.read_bytes(), changes))
    recipe = {
        "interactions": f"log.{ending}",
        "user": "who",
        "item": "what",
        "timestamp": "when",
        "label": "clicked",
        "features": "land",
        "items": f"items.{ending}",
        "item_key": "sku",
        "title": "words",
        "tags": "shelf",
        **{name: set_canary(given, place.canary) for name, given in options},
    }
    (place.given / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = place.out / "made"
    command = ("build_dataset", "--recipe", place.given / "recipe.yaml", "--data_root", place.given, "--out", out)
    built = place.run(*command, results=("made/**/*",))
    if built.code:
        return [built.code]
    checked = place.run("mm_fibinet.data_check", "check", out)
    if checked.code:
        raise Fault(f"build_dataset made what data_check refuses: {' '.join(checked.out.split())[:300]}")
    return [built.code, checked.code]

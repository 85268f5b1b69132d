"""A data set as the files of the contract, and as the entry of a dataset config that says what their columns are."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.files import write_text
from mm_fibinet.module_names import TAKEN, refuse_module_name
from mm_fibinet.prepare.catalogue import DESCRIPTION, KEY, TAGS, TITLE, Catalogue, tag_ids
from mm_fibinet.prepare.dataset import Dataset, Rows
from mm_fibinet.prepare.levels import LEVELS
from mm_fibinet.prepare.recipe import Recipe
from mm_fibinet.prepare.vocabulary import Vocabulary
from mm_fibinet.schema import LABEL
from mm_fibinet.user_info import HISTORY_END, USER_ID

ROWS_AT_ONCE = 100_000
PLACES_AT_ONCE = 1 << 24  # of padded histories, some 400 MB
CONFIG = "dataset_config.yaml"
IDS = "ids.parquet"
IMAGES = "item_images"
EMBEDDED = "embedded/item_info.parquet"  # where build_item_emb.py is told to write
EMBEDDINGS = ("item_emb_d128", "txt_emb_d128", "img_emb_d128")
RESERVED = (
    USER_ID, schema.ITEM_ID, schema.ITEM_SEQ, schema.TEST_ID, LABEL, HISTORY_END, *schema.LEVELS, KEY, TITLE, TAGS,
    DESCRIPTION, *EMBEDDINGS,
)  # fmt: skip
NO_EMBEDDING = "_no_emb"  # behind the data set's name: the entry without an item embedding


class _Dumper(yaml.SafeDumper):
    """Writes what two entries share twice: an alias helps no reader."""

    def ignore_aliases(self, data):
        """PyYAML's hook."""
        return True


def check_names(recipe: Recipe) -> None:
    """Refuse columns that the files of the contract have another meaning for, and a name that is taken twice."""
    seen: set[str] = set()
    of_rows = recipe.features + recipe.categorical
    of_items = recipe.item_features + recipe.item_categorical
    of_users = recipe.user_features + recipe.user_categorical
    for names in (of_rows, of_items, of_users):
        for name in dict.fromkeys(names):
            _require_free(name, seen)
            refuse_module_name(name, "the recipe", name in TAKEN)


def write_splits(made: Dataset, recipe: Recipe, folder: Path) -> None:
    """train, valid and test.parquet, and test_labels.parquet where the test's labels are known."""
    for split, rows in made.splits.items():
        _write(folder / f"{split}.parquet", _chunks(made, recipe, split, rows))
    test = made.splits["test"]
    if test.label is not None:
        labels = {schema.TEST_ID: np.arange(len(test.label)), LABEL: test.label}
        _write(folder / "test_labels.parquet", iter([pa.table(labels)]))


def _chunks(made: Dataset, recipe: Recipe, split: str, rows: Rows) -> Iterator[pa.Table]:
    """A split's rows as tables of ROWS_AT_ONCE, or of fewer where histories are long."""
    people = {} if recipe.user_info else _user_columns(made)
    at_once = ROWS_AT_ONCE if recipe.user_info else min(ROWS_AT_ONCE, max(1, PLACES_AT_ONCE // recipe.max_len))
    for first in range(0, len(rows.place), at_once):
        part = slice(first, first + at_once)
        place, item = rows.place[part], rows.item[part]
        user = made.user[place]
        columns: dict[str, object] = {USER_ID: user}
        if split == "test":
            columns = {schema.TEST_ID: np.arange(first, first + len(place)), **columns}
        past = made.histories.take(place)
        if recipe.user_info:
            columns[HISTORY_END] = past.lengths
        else:
            columns[schema.ITEM_SEQ] = _lists(past.padded(recipe.max_len))
        columns[schema.ITEM_ID] = item
        columns.update({name: values[item] for name, values in made.levels.items()})
        columns.update({name: _nullable(values[place]) for name, values in made.features.items()})
        columns.update({name: _nullable(values[user]) for name, values in people.items()})
        if split != "test" and rows.label is not None:
            columns[LABEL] = rows.label[part]
        yield pa.table(columns)


def write_user_info(made: Dataset, folder: Path) -> None:
    """user_info.parquet: row = user_id, the user's clicks in the order of time as far as any row looks back."""
    users = len(made.users)
    start, end = np.zeros(users, dtype=np.int64), np.zeros(users, dtype=np.int64)
    start[made.user] = made.histories.start
    np.maximum.at(end, made.user, made.histories.end)
    lengths = np.maximum(end - start, 0)
    columns = {name: _nullable(values) for name, values in _user_columns(made).items()}
    _write(folder / "user_info.parquet", _user_tables(made.histories.items, start, lengths, columns))


def _user_tables(
    items: np.ndarray, start: np.ndarray, lengths: np.ndarray, columns: dict[str, pa.Array]
) -> Iterator[pa.Table]:
    """The users, about PLACES_AT_ONCE items of their histories at a time.

    Args:
        items: int32 [P]; a user's are items[start : start + length].
        start, lengths: int64 [U].
        columns: [U] each.
    """
    blocks = np.cumsum(lengths) // PLACES_AT_ONCE
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=blocks[-1] + 1))
    for first, stop in itertools.pairwise(edges):
        offsets = np.concatenate([[0], np.cumsum(lengths[first:stop])])
        places = np.arange(offsets[-1]) + np.repeat(start[first:stop] - offsets[:-1], lengths[first:stop])
        lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(items[places]))
        own = {name: values.slice(first, stop - first) for name, values in columns.items()}
        yield pa.table({USER_ID: np.arange(first, stop), schema.ITEM_SEQ: lists, **own})


def write_items(made: Dataset, recipe: Recipe, folder: Path) -> None:
    """item_info.parquet and item_feature.parquet."""
    number = len(made.items)
    info: dict[str, object] = {schema.ITEM_ID: np.arange(number + 1)}
    feature: dict[str, object] = {schema.ITEM_ID: np.arange(1, number + 1)}
    if made.catalogue is not None:
        known = made.catalogue.of(made.items)
        if has_tags(recipe):
            ids = tag_ids(known[TAGS], tag_vocabulary(made), recipe.max_tags)
            info[TAGS] = _lists(np.vstack([np.zeros((1, recipe.max_tags), dtype=np.int32), ids]))
        for name, values in _values(made.catalogue, made.items).items():
            info[name] = _nullable(np.concatenate([np.zeros(1, dtype=values.dtype), values]))
        feature.update({name: known[name].to_arrow() for name in (TITLE, TAGS, DESCRIPTION) if name in known.columns})
    if made.embedding is not None:
        info[embedding_name(made.embedding)] = _lists(made.embedding)
    feature.update({name: values[1:] for name, values in made.levels.items()})
    _write(folder / "item_info.parquet", iter([pa.table(info)]))
    _write(folder / "item_feature.parquet", iter([pa.table(feature)]))


def write_ids(made: Dataset, recipe: Recipe, folder: Path) -> None:
    """ids.parquet: the original of every id, of users, items, tags and categories."""
    frames = [made.users.frame(USER_ID, first=0), made.items.frame(schema.ITEM_ID)]
    frames += [vocabulary.frame(name) for name, vocabulary in made.vocabularies.items()]
    if made.catalogue is not None and has_tags(recipe):
        frames.append(tag_vocabulary(made).frame(TAGS))
    for table in (made.catalogue, made.people):
        if table is not None:
            frames += [_vocabulary(table, name).frame(name) for name in table.categorical]
    _write(folder / IDS, (frame.to_arrow() for frame in frames))


def write_config(made: Dataset, recipe: Recipe, name: str, written: Path, folder: Path) -> None:
    """dataset_config.yaml: the entries `name`, and the one without an item embedding.

    Args:
        written: where the file goes for now.
        folder: the data set's own, as the entry names its files.
    """
    plain = _entry(made, recipe, folder)
    entries = {name: plain}
    if has_content(made, recipe) and made.embedding is None:
        embedding = {"name": EMBEDDINGS[0], "type": "embedding", "source": "item"}
        columns = [*plain["feature_cols"], embedding]
        embedded = {**plain, "item_info": str(folder / EMBEDDED), "feature_cols": columns}
        entries = {name: embedded, f"{name}{NO_EMBEDDING}": plain}
    head = f"# Made by build_dataset.py. {name} reads the item embedding that build_item_emb.py makes.\n"
    text = yaml.dump(entries, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    write_text(written / CONFIG, head * (len(entries) > 1) + text)


def has_content(made: Dataset, recipe: Recipe) -> bool:
    """Whether there is anything that an item embedding can be made of."""
    texts = bool(recipe.title or recipe.description or has_tags(recipe))
    return recipe.images is not None or (made.catalogue is not None and texts)


def has_tags(recipe: Recipe) -> bool:
    """Whether the catalogue says of tags."""
    return bool(recipe.tags or recipe.tag_flags)


def embedding_name(embedding: np.ndarray) -> str:
    """The column of an embedding, [items, N], that the recipe brought."""
    return f"item_emb_d{embedding.shape[1]}"


def tag_vocabulary(made: Dataset) -> Vocabulary:
    """The tags' ids."""
    return Vocabulary([] if made.catalogue is None else [made.catalogue.of(made.items)[TAGS].explode()])


def _entry(made: Dataset, recipe: Recipe, folder: Path) -> dict:
    """The data set's entry, its items without an embedding."""
    columns: list[dict] = [
        *({"name": name, "type": "meta"} for name in (USER_ID, schema.ITEM_SEQ)),
        *({"name": name, "type": "categorical", "vocab_size": LEVELS + 1} for name in made.levels),
    ]
    for name, values in made.features.items():
        columns.append(_column(name, values, made.vocabularies.get(name), made.splits["train"].place))
    columns.append({"name": schema.ITEM_ID, "type": "categorical", "source": "item"})
    if made.catalogue is not None:
        if has_tags(recipe):
            size = len(tag_vocabulary(made)) + 1
            columns.append({"name": TAGS, "type": "sequence", "source": "item", "vocab_size": size})
        for name, values in _values(made.catalogue, made.items).items():
            vocabulary = _vocabulary(made.catalogue, name) if name in made.catalogue.categorical else None
            columns.append({**_column(name, values, vocabulary), "source": "item"})
    if made.embedding is not None:
        scale = {"scale": recipe.embedding_scale} if made.embedding.dtype == np.int8 else {}
        columns.append({"name": embedding_name(made.embedding), "type": "embedding", "source": "item", **scale})
    if made.people is not None:
        for name, values in _user_columns(made).items():
            vocabulary = _vocabulary(made.people, name) if name in made.people.categorical else None
            columns.append(_column(name, values, vocabulary) | ({"source": "user"} if recipe.user_info else {}))
    files = {f"{split}_data": str(folder / f"{split}.parquet") for split in made.splits}
    files |= {name: str(folder / f"{name}.parquet") for name in ("item_info", "item_feature")}
    files |= {"user_info": str(folder / "user_info.parquet")} if recipe.user_info else {}
    return {"data_root": str(folder), **files, "feature_cols": columns, "label_col": {"name": LABEL, "dtype": "float"}}


def _column(name: str, values: np.ndarray, vocabulary: Vocabulary | None, rows: np.ndarray | None = None) -> dict:
    """A feature's line of feature_cols; `fill_na` of a number is its mean, over some rows or all."""
    if vocabulary is not None:
        return {"name": name, "type": "categorical", "vocab_size": len(vocabulary) + 1}
    column: dict = {"name": name, "type": "numeric"}
    if np.isnan(values).any():
        known = values if rows is None else values[rows]
        known = known[~np.isnan(known)].astype(np.float64)
        column["fill_na"] = float(known.mean()) if len(known) else 0.0
    return column


def _values(table: Catalogue, keys: Vocabulary) -> dict[str, np.ndarray]:
    """The features of a table as ids and numbers, in the order of the keys: [n] each."""
    known = table.of(keys)
    found = {name: _vocabulary(table, name).ids(known[name]) for name in table.categorical}
    numbers = {name: known[name].fill_null(float("nan")).to_numpy().astype(np.float32) for name in table.numeric}
    return {**found, **numbers}


def _user_columns(made: Dataset) -> dict[str, np.ndarray]:
    return {} if made.people is None else _values(made.people, made.users)


def _vocabulary(table: Catalogue, name: str) -> Vocabulary:
    return Vocabulary([table.frame[name]])


def _nullable(values: np.ndarray) -> pa.Array:
    """Numbers with NaN as null."""
    return pa.array(values, from_pandas=values.dtype.kind == "f")


def _lists(values: np.ndarray) -> pa.Array:
    """A matrix [n, width] as n fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables of one schema to a new file."""
    writer: pq.ParquetWriter | None = None
    with open(path, "wb") as opened:  # opened here: pyarrow takes no names that are not UTF-8
        for table in tables:
            writer = writer or pq.ParquetWriter(opened, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _require_free(name: str, seen: set[str]) -> None:
    if name in RESERVED:
        raise UserError(f"feature {name}: the data set has a column of this name; rename yours in the files")
    if name in seen:
        raise UserError(f"feature {name}: is named for two tables, expected different names; rename one of them")
    seen.add(name)

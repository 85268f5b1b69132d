"""Challenge task 1 as one call: titles, tags and cover images in, item_info.parquet with an item embedding out.

    from mm_fibinet.items.build import build

    built = build(item_info="item_info.parquet", item_feature="item_feature.parquet", images="item_images",
                  output="out/item_info.parquet")

Each modality runs through a pretrained encoder, the two are fused to `emb_dim` numbers an item, and the input's columns
are written again with `item_emb_d{emb_dim}` added or replaced, and beside it the PCA of each modality alone and the
items' levels. Raw features are kept in a store: an interrupted run goes on where it was, and a repeated one encodes
only what is new. The same input gives the same bytes.
"""

import dataclasses
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet.errors import UserError
from mm_fibinet.files import atomic_path, require_output, write_json
from mm_fibinet.items import modalities
from mm_fibinet.items.blocks import Chosen, choose, described, load, open_sources, tables
from mm_fibinet.items.contents import Source
from mm_fibinet.items.decoding import quiet_pillow
from mm_fibinet.items.encoders import deterministic, resolve_device, resolve_precision
from mm_fibinet.items.encoding import Encoder, Loading
from mm_fibinet.items.feature_store import FeatureStore, Filled, StoredFeatures, fill, open_store
from mm_fibinet.items.features import Features
from mm_fibinet.items.fusing import check_emb_dim, facts_of, fuse, make_fusing
from mm_fibinet.items.levels import join_levels
from mm_fibinet.items.mix import mix_columns
from mm_fibinet.items.modalities import Modality, Reading
from mm_fibinet.options import NONE, STORE_NAME
from mm_fibinet.parquet_reader import read_column
from mm_fibinet.schema import ITEM_ID, read_item_info

NAMES_SHOWN = 5
MOST = 2**31 - 1
# The least and the most of each number that `build` takes.
NUMBERS = {"emb_dim": (1, MOST), "batch_size": (1, MOST), "opening_words": (0, MOST), "seed": (0, 2**32 - 1)}


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
class Built:
    """What `build` did.

    Attributes:
        output: the file written; its name with .build.json says how it was made.
        columns: the embedding columns in it.
        items: the number of items, without the padding row.
        modalities: what became of each, by name; of a modality with several encoders each, as "text/ENCODER".
        explained: the share of each modality's variance that the embedding keeps, and of their sum as "total"; empty
            where the embedding is no map of the features.
        fusion: the one that was taken, what it found, and where it was chosen every one's AUC on valid.
    """

    output: Path
    columns: list[str]
    items: int
    modalities: dict[str, Encoded]
    explained: dict[str, float]
    fusion: dict[str, Any] = dataclasses.field(default_factory=dict)


def build(
    item_info: str | Path,
    output: str | Path,
    *,
    store: str | Path | None = None,
    emb_dim: int = 128,
    fusion: str | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    mix: list[str] | dict[str, float] | None = None,
    levels_from: str | Path | None = None,
    per_modality: bool = True,
    text_columns: str | list[str] | None = None,
    opening_words: int = 10,
    strict: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    precision: str = "auto",
    seed: int = 0,
    **given: Any,
) -> Built:
    """Make an item embedding and write item_info with it.

    Args:
        item_info: parquet with item_id 0 .. N, row 0 the padding item.
        output: parquet to write; not an input.
        store: folder of raw features; None for STORE_NAME beside `output`.
        emb_dim: numbers an item.
        fusion: one of `fusion.NAMES`; None for pca, or mix where `mix` is given.
        train: the split whose clicks item2vec and contrastive learn from.
        valid: the split that auto chooses on, and whose clicks `train` must not know; None for one beside `train`.
        mix: {column: weight} or ["column=weight"] of the fusion mix: columns of item_info or item_feature.
        levels_from: parquet with likes_level and views_level to write; None for those of item_feature that item_info
            lacks.
        per_modality: write the PCA of each modality alone, too (txt_emb_dN, img_emb_dN).
        text_columns: the columns of item_feature to read; None for a title, tags and a description of usual names.
        opening_words: encode a text's first words on their own, too; 0 for not.
        strict: a corrupt or oversized content is an error.
        device: auto, cpu, cuda or cuda:N.
        batch_size: items a forward pass; None for 16 on a CPU, 256 on a GPU.
        precision: of the encoders on a GPU, one of ENCODER_PRECISIONS; a CPU computes in fp32.
        seed: for fusions with randomness.
        **given: for each of MODALITIES its source, `item_feature` and `images`; its encoders, `text_encoder` and
            `image_encoder`, one or a list: "none" leaves the modality out, None or nothing is the default one; the
            numbers of a vector to keep, `text_dim` and `image_dim`; `text_prompt`.

    Raises:
        UserError: an input, an option or the machine is at fault; nothing was written but features in the store.
        TypeError: an argument that no modality knows.
    """
    _check_numbers({"emb_dim": emb_dim, "batch_size": batch_size, "opening_words": opening_words, "seed": seed})
    _check_kinds(text_columns, {"per_modality": per_modality, "strict": strict})
    fusing = make_fusing(fusion, emb_dim, seed, per_modality, train, valid, mix)
    chosen = choose(given, optional=bool(fusing.mix))
    output = Path(output)
    store = Path(store or output.parent / STORE_NAME)
    sources_given = [given.get(each.source) for each in modalities.MODALITIES]
    _check_paths(output, store, [item_info, *sources_given, *fusing.inputs, levels_from])
    table = read_item_info(item_info)
    num_items = table.num_rows - 1
    if num_items < 2:
        raise UserError(f"{item_info}: has {num_items} items beside the padding row 0, expected at least 2")
    reading = Reading(num_items, [text_columns] if isinstance(text_columns, str) else text_columns, opening_words)
    sources = open_sources(chosen, reading, tables(given, item_info))
    clicks = fusing.read_clicks(num_items)
    mixed = mix_columns(fusing.mix, emb_dim, table, item_info, given.get("item_feature")) if fusing.mix else None
    table = join_levels(table, levels_from, given.get("item_feature"))

    on = resolve_device(device)
    how = Loading(on, batch_size or (256 if on.type == "cuda" else 16), resolve_precision(precision, on))
    encoded, features = {}, {}
    with deterministic(seed, on), quiet_pillow():
        encoders = [load(each, source, how) for each, source in zip(chosen, sources, strict=True)]
        groups: dict[Modality, list[str]] = {}  # the blocks of each modality
        widths: dict[str, int] = {}
        for each, encoder, source in zip(chosen, encoders, sources, strict=True):
            groups.setdefault(each.modality, []).append(each.block)
            widths[each.block] = encoder.dim * len(source.views)
        check_emb_dim(fusing, num_items, widths, {modality.name: blocks for modality, blocks in groups.items()})
        for each, source, encoder in zip(chosen, sources, encoders, strict=True):
            with open_store(store, encoder.id, encoder.dim) as kept:
                encoded[each.block], features[each.block] = _encode(each, source, encoder, kept, num_items, strict)
        alone = {modality.prefix: blocks for modality, blocks in groups.items()}
        columns = fuse(fusing, features, alone, clicks, on, mixed)
    for column, embedding in columns.embeddings.items():
        table = add_embedding(table, column, embedding)
    with atomic_path(output) as path, open(path, "wb") as opened:  # opened here: pyarrow takes UTF-8 names only
        pq.write_table(table, opened)
    built = Built(output, list(columns.embeddings), num_items, encoded, columns.explained, facts_of(columns))
    write_json(_manifest_path(output), _manifest(built, emb_dim, seed))
    return built


def add_embedding(table: pa.Table, column: str, embedding: np.ndarray) -> pa.Table:
    """The table with an embedding column replaced in its place, or appended.

    Args:
        table: item_info, rows 0 .. num_items.
        column: its name.
        embedding: float32 [num_items, emb_dim]; row 0 of the column becomes zeros.
    """
    emb_dim = embedding.shape[1]
    values = np.vstack([np.zeros((1, emb_dim), dtype=np.float32), embedding])
    array = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), emb_dim)
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, array)
    else:
        table = table.append_column(column, array)
    return table.replace_schema_metadata(None)  # pandas' notes would describe the column that was replaced


def first_names(bad: list[tuple[str, str, str]]) -> str:
    """The first few bad contents, for a person."""
    named = "; ".join(f"{name} {kind} ({reason})" for name, kind, reason in bad[:NAMES_SHOWN])
    return named + (f"; and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else "")


def _manifest_path(output: Path) -> Path:
    return output.with_suffix(".build.json")


def _manifest(built: Built, emb_dim: int, seed: int) -> dict[str, Any]:
    """How the output was made."""
    made = {
        name: {"encoder": each.encoder, "counts": each.counts, **each.facts} for name, each in built.modalities.items()
    }
    settings = {"items": built.items, "emb_dim": emb_dim, **built.fusion, "seed": seed}
    return settings | made | {"explained_variance": built.explained, "columns": built.columns}


def _check_numbers(given: dict[str, int | None]) -> None:
    """Whole numbers within NUMBERS; a notebook can give anything, and True would name a column item_emb_dTrue."""
    for name, value in given.items():
        least, most = NUMBERS[name]
        if value is None and name == "batch_size":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise UserError(f"--{name} {value!r}: expected a whole number")
        if not least <= value <= most:
            raise UserError(
                f"--{name} {value}: expected " + (f"{least} to {most}" if name == "seed" else f"{least} or more")
            )


def _check_kinds(text_columns: object, switches: dict[str, object]) -> None:
    """Column names are texts; "no" is no switch, and would be taken for True."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UserError(f"--{name} {value!r}: expected True or False")
    names = [text_columns] if isinstance(text_columns, str) else text_columns
    if names is None:
        return
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"--text_columns {text_columns!r}: expected names of columns, or none at all for the usual ones"
        )


def _check_paths(output: Path, store: Path, inputs: list[str | Path | None]) -> None:
    """Refuse to write over an input or into an input folder, before anything is read."""
    require_output(output, inputs, "parquet")
    _require_item_table_or_nothing(output)
    require_output(_manifest_path(output), inputs, option="--output's manifest")
    place = store.resolve()
    if place == output.resolve():
        raise UserError(f"--store {store} is the --output, expected a folder")
    for source in (Path(source).resolve() for source in inputs if source is not None):
        if place == source or (source.is_dir() and place.is_relative_to(source)):
            raise UserError(
                f"--store {store} is in the input {source}; inputs are never modified, choose another folder"
            )


def _require_item_table_or_nothing(output: Path) -> None:
    """What is replaced is an item table; another parquet file there, a split say, is somebody's data."""
    if not output.exists() or not output.stat().st_size:
        return
    try:
        ids = read_column(output, ITEM_ID)
        is_items = np.array_equal(ids, np.arange(len(ids)))
    except UserError:  # no such column, or a damaged file
        is_items = False
    if not is_items:
        raise UserError(
            f"--output {output}: there is a parquet file whose item_id is not 0, 1, 2, ..., so it is no item table; "
            "remove it or choose another name"
        )


def _encode(
    chosen: Chosen, source: Source, encoder: Encoder, store: FeatureStore, num_items: int, strict: bool
) -> tuple[Encoded, Features]:
    """Run a modality's views through its encoder, as far as their features are not in the store."""
    views: list[Filled] = []
    for title, entries in source.views.items():
        views.append(fill(store, encoder, entries, title))
        if len(views) == 1:
            _check_found(chosen, views[0], source, strict)
    whole = views[0]
    kinds = [kind for _, kind, _ in whole.bad]
    counts = {"found": len(whole.items), "missing": num_items - len(whole.items) - len(kinds)}
    counts |= {kind: kinds.count(kind) for kind in (*chosen.modality.flaws, *kinds)}
    computed = sum(view.computed for view in views)
    used = len(np.unique(np.concatenate([view.keys for view in views])))
    seconds = sum(view.seconds for view in views)
    facts, notes = described(encoder, source)
    encoded = Encoded(encoder.id, counts, facts, notes, whole.bad, computed, used - computed, seconds)
    return encoded, _features(views, store, num_items)


def _check_found(chosen: Chosen, whole: Filled, source: Source, strict: bool) -> None:
    """Refuse a modality with no content at all and, when strict, one with bad contents."""
    name, place = chosen.modality.name, chosen.path or chosen.encoder_name
    if strict and whole.bad:
        raise UserError(
            f"{place}: found {len(whole.bad)} bad {name} files, expected none with --strict: "
            f"{first_names(whole.bad)}; replace or remove them"
        )
    if not len(whole.items):
        found = f" ({'; '.join(source.notes())})" if source.notes() else ""
        bad = f", but {len(whole.bad)} bad: {first_names(whole.bad)}" if whole.bad else ""
        raise UserError(
            f"{place}: found no {chosen.modality.expected}{found}{bad}; leave the modality out with "
            f"--{chosen.modality.encoder_option} {NONE}"
        )


def _features(views: list[Filled], store: FeatureStore, num_items: int) -> Features:
    """Features in the order of item_info, without its row 0; several views of the same items side by side."""
    present = np.zeros(num_items, dtype=bool)
    present[views[0].items - 1] = True
    places = []
    for view in views:
        places.append(np.zeros(num_items, np.int64))
        places[-1][view.items - 1] = store.places(view.keys)
    return StoredFeatures(store, places, present)

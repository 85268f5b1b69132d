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
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_fibinet.errors import UserError
from mm_fibinet.files import atomic_path, require_output, write_json
from mm_fibinet.items import modalities
from mm_fibinet.items.blocks import choose, tables
from mm_fibinet.items.encoders import deterministic
from mm_fibinet.items.filling import Encoded, Filling, Work, together
from mm_fibinet.items.fusing import Columns, check_emb_dim, facts_of, fuse, make_fusing
from mm_fibinet.items.info_columns import add_embedding, put_column
from mm_fibinet.items.levels import join_levels
from mm_fibinet.items.mix import mix_columns
from mm_fibinet.items.modalities import Reading
from mm_fibinet.items.on_ray import fill_on_ray
from mm_fibinet.items.originals import refuse_original_images
from mm_fibinet.items.semantic_ids import SemanticIds, quantise, require_possible
from mm_fibinet.items.shares import Share
from mm_fibinet.options import CODE_LEVELS, CODE_SIZE, ENGINES, STORE_NAME
from mm_fibinet.parquet_reader import read_column
from mm_fibinet.schema import ITEM_ID, read_item_info

MOST = 2**31 - 1
# The least and the most of each number that `build` takes.
NUMBERS = {
    "emb_dim": (1, MOST),
    "batch_size": (1, MOST),
    "opening_words": (0, MOST),
    "code_levels": (1, 16),
    "code_size": (2, 65536),
    "seed": (0, 2**32 - 1),
}


@dataclasses.dataclass(frozen=True)
class Built:
    """What `build` did.

    Attributes:
        output: the file written; its name with .build.json says how it was made. None where a share was encoded.
        columns: the embedding columns in it, and those of codes.
        items: the number of items, without the padding row.
        modalities: what became of each, by name; of a modality with several encoders each, as "text/ENCODER".
        explained: the share of each modality's variance that the embedding keeps, and of their sum as "total"; empty
            where the embedding is no map of the features.
        fusion: the one that was taken, what it found, and where it was chosen every one's AUC on valid.
        levels: the items' levels that were put into the file.
    """

    output: Path | None
    columns: list[str]
    items: int
    modalities: dict[str, Encoded]
    explained: dict[str, float]
    fusion: dict[str, Any] = dataclasses.field(default_factory=dict)
    levels: list[str] = dataclasses.field(default_factory=list)


def build(
    item_info: str | Path,
    output: str | Path,
    *,
    store: str | Path | Sequence[str | Path] | None = None,
    shard: str | None = None,
    engine: str = "local",
    emb_dim: int = 128,
    fusion: str | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    user_info: str | Path | None = None,
    also: str | list[str] | None = None,
    mix: list[str] | dict[str, float] | None = None,
    levels_from: str | Path | None = None,
    semantic_ids: str | None = None,
    code_levels: int = CODE_LEVELS,
    code_size: int = CODE_SIZE,
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
        store: folder of raw features; None for STORE_NAME beside `output`. Of several, the others are only read.
        shard: "I/N" encodes every N-th item, from the I-th on, into a part of the store, and writes no output.
        engine: one of ENGINES, where items are encoded: this process, or Ray's workers.
        emb_dim: numbers an item.
        fusion: one of `fusion.NAMES`; None for pca, or mix where `mix` is given.
        train: the split whose clicks item2vec and contrastive learn from.
        valid: the split that auto chooses on, and whose clicks `train` must not know; None for one beside `train`.
        user_info: the histories of both, where they are once a user.
        also: further fusions, each written as a column of its own, NAME_emb_dN; one or a list.
        mix: {column: weight} or ["column=weight"] of the fusion mix: columns of item_info or item_feature.
        levels_from: parquet with likes_level and views_level to write; None for those of item_feature that item_info
            lacks.
        semantic_ids: a key of `semantic_ids.METHODS`: write codes of the embedding, too; None for none.
        code_levels, code_size: codes an item, and different ones a level.
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
    _check_numbers({"code_levels": code_levels, "code_size": code_size})
    if semantic_ids is None and (code_levels, code_size) != (CODE_LEVELS, CODE_SIZE):
        raise UserError(
            f"--code_levels {code_levels} --code_size {code_size}: --semantic_ids is not given, so there are no codes; "
            "give it, or leave these out"
        )
    _check_kinds(text_columns, {"per_modality": per_modality, "strict": strict})
    fusing = make_fusing(fusion, emb_dim, seed, per_modality, train, valid, mix, user_info, also)
    chosen = choose(given, optional=bool(fusing.mix))
    share = None if shard is None else Share.parse(shard)
    _check_engine(engine, share)
    output = Path(output)
    stores = _store_paths(store, output)
    sources_given = [given.get(each.source) for each in modalities.MODALITIES]
    _check_paths(output, stores, [item_info, *sources_given, *fusing.inputs, levels_from])
    refuse_original_images(item_info, given.get("images"))
    table = _read_items(item_info)
    num_items = table.num_rows - 1
    require_possible(semantic_ids, code_size, num_items)
    reading = Reading(num_items, [text_columns] if isinstance(text_columns, str) else text_columns, opening_words)
    clicks = fusing.read_clicks(num_items)
    mixed = mix_columns(fusing.mix, emb_dim, table, item_info, given.get("item_feature")) if fusing.mix else None
    table, levels = join_levels(table, levels_from, given.get("item_feature"))

    work = Work(chosen, reading, tables(given, item_info), stores, device, batch_size, precision, seed, strict)
    filling = Filling(work)
    check_emb_dim(fusing, num_items, filling.widths, filling.groups)
    if share:
        return Built(None, [], num_items, filling.run(share)[0], {})
    shared = fill_on_ray(work, filling.device) if engine == "ray" else []
    # A store has features by content, not by item: reading all contents tells whose they are, also those that shares
    # have encoded, and finds what a share did not get to.
    encoded, features = filling.run()
    with deterministic(seed, filling.device):
        columns = fuse(fusing, features, filling.groups, clicks, filling.device, mixed)
    ids = quantise(columns.fused, semantic_ids, code_levels, code_size, seed) if semantic_ids is not None else None
    facts = facts_of(columns) | ({"semantic_ids": ids.facts} if ids is not None else {})
    written = _write(output, table, columns, ids)
    built = Built(output, written, num_items, together(encoded, shared), columns.explained, facts, levels)
    write_json(_manifest_path(output), _manifest(built, emb_dim, seed))
    return built


def _store_paths(store: str | Path | Sequence[str | Path] | None, output: Path) -> list[Path]:
    """The store, and after it those that are only read."""
    given = [store] if isinstance(store, str | Path) else list(store or ())
    return [Path(each) for each in given] or [output.parent / STORE_NAME]


def _read_items(item_info: str | Path) -> pa.Table:
    """The whole item_info, of two items or more: of one there is no direction."""
    table = read_item_info(item_info)
    if table.num_rows < 3:
        found = f"{item_info}: has {table.num_rows - 1} items beside the padding row 0"
        raise UserError(f"{found}, expected at least 2")
    return table


def _write(output: Path, table: pa.Table, columns: Columns, ids: SemanticIds | None) -> list[str]:
    """Write the table with embeddings and codes; the names of their columns. The embeddings are gone from `columns`."""
    written = list(columns.embeddings)
    for column in written:  # let go of as it enters the table: for a million items half a gigabyte
        table = add_embedding(table, column, columns.embeddings.pop(column))
    for column, values in ids.columns.items() if ids is not None else ():
        table = put_column(table, column, values)
        written.append(column)
    with atomic_path(output) as path, open(path, "wb") as opened:  # opened here: pyarrow takes UTF-8 names only
        pq.write_table(table, opened)
    return written


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
            expected = f"{least} or more" if most == MOST else f"{least} to {most}"
            raise UserError(f"--{name} {value}: expected {expected}")


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


def _check_engine(engine: str, share: Share | None) -> None:
    """One way to divide the items at a time."""
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: unknown, expected {' or '.join(ENGINES)}")
    if engine != "local" and share:
        raise UserError(f"--shard and --engine {engine}: both divide the items among processes, expected one of them")


def _check_paths(output: Path, stores: list[Path], inputs: list[str | Path | None]) -> None:
    """Refuse to write over an input or into an input folder, before anything is read."""
    store, *others = stores
    for other in others:
        if not other.is_dir():
            raise UserError(f"--store {other}: no such folder; the stores after the first are read, not made")
    require_output(output, [*inputs, *others], "parquet")
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

"""All that the page says, from the files to figures; `page` only writes it.

Columns are looked at one after the other, so that a catalogue of a million items needs the memory of its item_info and
of one column. What is drawn (rows, items, points) is drawn by the seed, and the page says that it was.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.items.report import geometry, languages, probe, projection
from mm_fibinet.items.report.catalogue import Tags, read_tags, read_titles
from mm_fibinet.items.report.evidence import MOST_ROWS, Clicks, history_cosine, judge_clicks, read_rows, warm_items
from mm_fibinet.items.report.pictures import Cover, thumbnails
from mm_fibinet.items.report.vectors import embedding_columns, read_vectors
from mm_fibinet.progress import track

SHOWN_ITEMS = 8
SHOWN_NEIGHBOURS = 6
LEAST_ITEMS = 3
SCRIPTS_NAMED = 5


@dataclass(frozen=True)
class Sources:
    """The files of a report; what is None is left out, and the page says so.

    Attributes:
        item_info: parquet with the embedding columns.
        valid: the split whose clicks are told.
        train: tells warm items from cold ones.
        user_info: the histories, where they are not in the split.
        item_feature: parquet with titles and tags in words.
        images: folder or archive of ITEM_ID.jpg.
    """

    item_info: str | Path
    valid: str | Path | None = None
    train: str | Path | None = None
    user_info: str | Path | None = None
    item_feature: str | Path | None = None
    images: str | Path | None = None

    @property
    def named(self) -> list[str | Path]:
        """Those that there are."""
        paths = (self.item_info, self.valid, self.train, self.user_info, self.item_feature, self.images)
        return [path for path in paths if path is not None]


@dataclass(frozen=True)
class Neighbours:
    """An item's nearest: item_ids [k] and cosines [k]."""

    item_ids: list[int]
    cosines: list[float]


@dataclass(frozen=True)
class ColumnFigures:
    """What is known of an embedding column.

    Attributes:
        geometry: its shape.
        probe: what a linear map knows of the tags; None where there are too few.
        same_script: share of neighbours whose title has the same script; NaN where that is not known.
        maps: {method: int [points, 2]}.
        map_share: the share of the variance that the map by principal components shows.
        shown: the neighbours of the items that are shown.
    """

    geometry: geometry.Geometry
    probe: probe.Probe | None
    same_script: float
    maps: dict[str, np.ndarray]
    map_share: float
    shown: dict[int, Neighbours]


@dataclass(frozen=True)
class Contents:
    """All that the page says.

    Attributes:
        sources: the files.
        seed: of all that was drawn.
        items: without the padding item.
        columns: {embedding column: its figures}.
        clicks: click evidence; None without a valid split.
        warm: bool [items + 1], None where train is not known.
        titles: {item_id: title}.
        tags: {tag: item_ids}.
        scripts: how many titles are in which script, most frequent first.
        script_by_chance: how often two titles drawn at random have the same script.
        points: item_ids of the map.
        shown: item_ids whose neighbours are shown.
        covers: small pictures by item_id.
    """

    sources: Sources
    seed: int
    items: int
    columns: dict[str, ColumnFigures]
    clicks: Clicks | None
    warm: np.ndarray | None
    titles: dict[int, str]
    tags: Tags
    scripts: dict[str, int]
    script_by_chance: float
    points: np.ndarray
    shown: list[int]
    covers: dict[int, Cover]

    def title(self, item: int) -> str:
        """What an item is called."""
        return self.titles.get(item) or f"item {item}"


def collect(sources: Sources, columns: list[str] | None = None, seed: int = 0) -> Contents:
    """Read the files and work everything out.

    Args:
        sources: the files.
        columns: embedding columns; None for all of item_info.
        seed: of everything that is drawn.

    Raises:
        UserError: a file that cannot be read or breaks the contract, a column that is not there or is all zeros.
    """
    table = schema.read_item_info(sources.item_info)
    names = embedding_columns(table, sources.item_info, columns)
    num_items = table.num_rows - 1
    present = np.arange(1, table.num_rows)
    for name in names:
        present = np.intersect1d(
            present, _present(read_vectors(table, sources.item_info, name), sources.item_info, name)
        )
    if not len(present):
        raise UserError(
            f"{sources.item_info}: no item has a vector in each of {', '.join(names)}; choose some with --columns"
        )
    titles = read_titles(sources.item_feature, num_items) if sources.item_feature else {}
    tags = read_tags(sources.item_feature, num_items, table, sources.item_info)
    labels, scripts = _scripts(titles, table.num_rows)
    warm = warm_items(sources.train, table.num_rows) if sources.train else None
    rows = None
    if sources.valid:
        rows = read_rows(sources.valid, table.num_rows, sources.user_info, MOST_ROWS, seed)
    shown = _draw_shown(present, warm, seed)
    points = projection.draw_points(present, seed)

    figures, cosines, by_chance = {}, {}, np.nan
    for name in track(names, desc="columns", unit="column"):
        vectors = read_vectors(table, sources.item_info, name)
        shape = geometry.measure(vectors, seed)
        same_script, by_chance = languages.agreement(labels, shape.queries, shape.neighbours)
        by_pca, share = projection.pca_map(vectors, points)
        maps = {"PCA": by_pca, "UMAP": projection.umap_map(vectors, points, seed)}
        figures[name] = ColumnFigures(
            shape,
            probe.probe_tags(vectors, tags, seed),
            same_script,
            {method: places for method, places in maps.items() if places is not None},
            share,
            _neighbours(vectors, shown),
        )
        if rows is not None:
            cosines[name] = history_cosine(vectors, rows.history, rows.target)
    clicks = judge_clicks(sources.valid, cosines, rows, warm, seed) if sources.valid and rows is not None else None
    pictured = {item for each in figures.values() for near in each.shown.values() for item in near.item_ids}
    covers = thumbnails(sources.images, num_items, pictured | set(shown)) if sources.images else {}
    return Contents(
        sources, seed, num_items, figures, clicks, warm, titles, tags, scripts, by_chance, points, shown, covers
    )


def _present(vectors: np.ndarray, item_info: str | Path, name: str) -> np.ndarray:
    """The items that have a vector: int64 [n]; refused where these are too few to say anything of."""
    present = geometry.with_vector(vectors)
    if len(present) < LEAST_ITEMS:
        raise UserError(
            f"{item_info}: column {name} is zero but in {len(present)} rows, expected vectors of at least "
            f"{LEAST_ITEMS} items; fill it (embed), or choose others with --columns"
        )
    return present


def _draw_shown(present: np.ndarray, warm: np.ndarray | None, seed: int) -> list[int]:
    """Some of the items with a vector in every column, half of them warm and half cold where that is known."""
    rng = np.random.default_rng(seed)
    groups, sizes = [present], [SHOWN_ITEMS]
    if warm is not None:
        groups = [present[warm[present]], present[~warm[present]]]
        cold = min(SHOWN_ITEMS // 2, len(groups[1]))
        sizes = [SHOWN_ITEMS - cold, cold]
    drawn = [rng.choice(group, min(size, len(group)), replace=False) for group, size in zip(groups, sizes, strict=True)]
    return [int(item) for group in drawn for item in np.sort(group)]


def _scripts(titles: dict[int, str], num_rows: int) -> tuple[np.ndarray, dict[str, int]]:
    """Each item's script as a number, -1 for none: int [num_rows]; and how many titles are in which."""
    found = {item: languages.script(title) for item, title in titles.items()}
    counts = Counter(name for name in found.values() if name)
    numbers = {name: number for number, (name, _) in enumerate(counts.most_common())}
    labels = np.full(num_rows, -1)
    for item, name in found.items():
        if name:
            labels[item] = numbers[name]
    return labels, dict(counts.most_common())


def _neighbours(vectors: np.ndarray, shown: list[int]) -> dict[int, Neighbours]:
    ids, cosines = geometry.neighbours_of(vectors, np.array(shown, dtype=int), SHOWN_NEIGHBOURS)
    return {
        item: Neighbours(near.tolist(), cosine.tolist()) for item, near, cosine in zip(shown, ids, cosines, strict=True)
    }

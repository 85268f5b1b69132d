"""The items on a map: two numbers an item, by principal components, and by UMAP where that is installed."""

import importlib.util
import warnings

import numpy as np

from mm_fibinet.items.report.geometry import second_moments, unit_rows, with_vector

MOST_POINTS = 2_000  # more make the page large and the map a blot
GRID = 1000  # points are whole numbers of 0 .. GRID


def draw_points(present: np.ndarray, seed: int = 0) -> np.ndarray:
    """The items of a map: all that are present, or some drawn by the seed: item_ids [m] -> item_ids [n], ascending."""
    if len(present) <= MOST_POINTS:
        return present
    return np.sort(np.random.default_rng(seed).choice(present, MOST_POINTS, replace=False))


def pca_map(vectors: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, float]:
    """The two principal components of all items' directions, at some items.

    Args:
        vectors: float [items, D]; rows of zeros have no place.
        ids: int [n], items that have a vector.

    Returns:
        int [n, 2] on the grid, and the share of the variance that the two hold.
    """
    everybody = unit_rows(vectors, with_vector(vectors))
    variances, directions = np.linalg.eigh(second_moments(everybody))
    axes = directions[:, : -min(2, len(variances)) - 1 : -1]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)  # one of two signs
    points = (unit_rows(vectors, ids) - everybody.mean(axis=0, dtype=np.float64)) @ axes
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    total = variances.sum()
    return _on_grid(points), float(variances[-2:].sum() / total) if total > 0 else 1.0


def umap_map(vectors: np.ndarray, ids: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """UMAP of some items by cosine (McInnes, Healy & Melville 2018): int [n, 2]; None where it is not installed."""
    if importlib.util.find_spec("umap") is None:
        return None
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs threads
        mapper = umap.UMAP(metric="cosine", random_state=seed, n_neighbors=min(15, len(ids) - 1))
        return _on_grid(np.asarray(mapper.fit_transform(unit_rows(vectors, ids)), dtype=np.float64))


def _on_grid(points: np.ndarray) -> np.ndarray:
    """Both axes on one scale, all points within: float [n, 2] -> int [n, 2]; far ones lie on the edge."""
    low, high = np.quantile(points, [0.002, 0.998], axis=0)
    scale = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    return np.clip(np.rint(GRID * ((points - middle) / scale + 0.5)), 0, GRID).astype(int)

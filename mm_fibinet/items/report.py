"""Does an item embedding tell clicks? One figure, from the files alone, before any model is trained.

For each row of a split, the cosine of the target's vector to the mean of its history's: how like what the user clicked
before the shown item is. Were the embedding noise, clicked and other rows would have the same distribution, and the
cosine as a score an AUC of 0.5. Each embedding column of item_info has its own panel, so that what text says and what
images say is seen apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.metrics import auc
from mm_fibinet.parquet_reader import whole_column

LABEL = "label"
CLICKED, OTHER, INK = "#2a7f62", "#b9b4aa", "#33312e"
BINS = (15, 60)  # at least and at most, between them the root of the rows


@dataclass(frozen=True)
class Evidence:
    """What the figure shows.

    Attributes:
        figure: the PNG.
        rows: rows of the split that are compared.
        without_history: rows that have none, or only items without a vector, and are left out.
        auc: {column: AUC of its cosine as a score}.
    """

    figure: Path
    rows: int
    without_history: int
    auc: dict[str, float]


def click_evidence(item_info: str | Path, split: str | Path, output: str | Path) -> Evidence:
    """Draw how the similarity of target and history is distributed over clicked and other rows.

    Args:
        item_info: parquet with embedding columns, each list a row of one width.
        split: parquet with item_seq, item_id and label, the validation split say.
        output: the PNG to write.

    Raises:
        UserError: no embedding, no rows of both labels with a history, or a file that cannot be read or written.
    """
    require_output(output, [item_info, split], kind="png")
    vectors = _embeddings(item_info)
    columns = [*schema.split_columns({}, [LABEL], len(next(iter(vectors.values()))))]
    slices = [blocks for _, blocks in schema.checked_slices(split, columns)]
    history, target, label = (np.concatenate([blocks[column.name] for blocks in slices]) for column in columns)
    cosines = {name: history_cosine(table, history, target) for name, table in vectors.items()}
    usable = np.logical_and.reduce([np.isfinite(cosine) for cosine in cosines.values()])
    clicks = label[usable] == 1
    if clicks.all() or not clicks.any():
        raise UserError(f"{split}: {len(clicks)} rows with a history, expected some with label 0 and some with label 1")
    cosines = {name: cosine[usable] for name, cosine in cosines.items()}
    areas = {name: auc(clicks, cosine) for name, cosine in cosines.items()}
    figure = _draw(cosines, clicks, areas)
    with atomic_path(output) as path:
        figure.savefig(path, format="png", dpi=120)
    return Evidence(Path(output), int(usable.sum()), int((~usable).sum()), areas)


def history_cosine(vectors: np.ndarray, history: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosine of each target's vector to the mean of its history's unit vectors.

    Args:
        vectors: float [items, D], row 0 the padding item; a row of zeros has no direction, and counts for nothing.
        history: int [N, L], 0 = padding.
        target: int [N].

    Returns:
        float64 [N] in -1 .. 1; NaN where the target or the whole history has no direction.
    """
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    units = np.divide(vectors, length, out=np.zeros(vectors.shape), where=length > 0)
    rows, width = history.shape
    starts = np.arange(0, rows * width + 1, width)
    members = csr_matrix((np.ones(rows * width), history.ravel(), starts), shape=(rows, len(vectors)))
    units[0] = 0
    mean = members @ units  # its length does not matter to a cosine
    product = np.einsum("nd,nd->n", mean, units[target])
    size = np.linalg.norm(mean, axis=1) * length[target, 0].astype(bool)
    return np.divide(product, size, out=np.full(rows, np.nan), where=size > 1e-12)


def _embeddings(item_info: str | Path) -> dict[str, np.ndarray]:
    """{column: float [items, D]} of the columns that are lists of floats."""
    table = schema.read_item_info(item_info)
    found = {}
    for field in table.schema:
        if pa.types.is_floating(getattr(field.type, "value_type", pa.null())):
            width = len(table[field.name][0].as_py())
            spec = {"type": "embedding", "pretrain_dim": width}
            found[field.name] = schema.read_feature(whole_column(table, field.name), item_info, field.name, spec)
    if not found:
        raise UserError(
            f"{item_info}: has no embedding column, found {', '.join(table.column_names)}; make one (embed)"
        )
    return found


def _draw(cosines: dict[str, np.ndarray], clicks: np.ndarray, areas: dict[str, float]) -> Figure:
    """A panel a column, on one scale."""
    figure = Figure(figsize=(4.2 * len(cosines) + 0.6, 3.6), layout="constrained")
    figure.suptitle("Are clicked items more like what the user clicked before? (dotted: means)", color=INK, fontsize=12)
    bins = int(np.clip(np.sqrt(len(clicks)), *BINS))
    panels = list(figure.subplots(1, len(cosines), sharey=True, squeeze=False)[0])
    for panel, (name, cosine) in zip(panels, cosines.items(), strict=True):
        low, high = np.quantile(cosine, [0.001, 0.999])
        edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
        for rows, color, what in ((~clicks, OTHER, "not clicked"), (clicks, CLICKED, "clicked")):
            share, _ = np.histogram(cosine[rows], edges)
            panel.stairs(share / rows.sum(), edges, fill=True, color=color, alpha=0.55)
            panel.stairs(share / rows.sum(), edges, color=color, linewidth=1.6, label=f"{what} ({rows.sum():,})")
            panel.axvline(cosine[rows].mean(), color=color, linestyle=":", linewidth=1.4)
        panel.set_title(f"{name}   AUC {areas[name]:.3f}", color=INK, fontsize=11)
        panel.set_xlabel("cosine of the item to the history's mean")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0)
    panels[0].set_ylabel("share of rows")
    panels[0].set_ylim(top=1.2 * panels[0].get_ylim()[1])  # room for the legend
    panels[0].legend(frameon=False, fontsize=9)
    return figure

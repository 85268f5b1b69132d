"""Click evidence as one PNG, for a notebook: how alike target and history are, for clicked and other rows.

Each embedding column of item_info has its own panel, so that what text says and what images say is seen apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_fibinet import schema
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.items.report.evidence import history_cosine, read_rows, usable_rows
from mm_fibinet.items.report.vectors import embedding_columns, read_vectors
from mm_fibinet.metrics import auc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def click_evidence(
    item_info: str | Path, split: str | Path, output: str | Path, user_info: str | Path | None = None
) -> Evidence:
    """Draw how the similarity of target and history is distributed over clicked and other rows.

    Args:
        item_info: parquet with embedding columns, each list a row of one width.
        split: parquet with item_seq, item_id and label, the validation split say.
        output: the PNG to write.
        user_info: where the histories are, if they are not in the split.

    Raises:
        UserError: no embedding, no rows of both labels with a history, or a file that cannot be read or written.
    """
    require_output(output, [item_info, split, user_info], kind="png")
    table = schema.read_item_info(item_info)
    rows = read_rows(split, table.num_rows, user_info)
    cosines = {
        name: history_cosine(read_vectors(table, item_info, name), rows.history, rows.target)
        for name in embedding_columns(table, item_info)
    }
    cosines, used, left_out = usable_rows(split, cosines, rows)
    areas = {name: auc(used.clicked, cosine) for name, cosine in cosines.items()}
    figure = _draw(cosines, used.clicked, areas)
    with atomic_path(output) as path:
        figure.savefig(path, format="png", dpi=120)
    return Evidence(Path(output), len(used.target), left_out, areas)


def bins_of(cosine: np.ndarray) -> np.ndarray:
    """The edges of a histogram's bins; single far values do not stretch them: float [n] -> float [bins + 1]."""
    low, high = np.quantile(cosine, [0.001, 0.999])
    return np.linspace(low, max(high, low + 1e-6), int(np.clip(np.sqrt(len(cosine)), *BINS)) + 1)


def _draw(cosines: dict[str, np.ndarray], clicks: np.ndarray, areas: dict[str, float]) -> Figure:
    """A panel a column, on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(cosines) + 0.6, 3.6), layout="constrained")
    figure.suptitle("Are clicked items more like what the user clicked before? (dotted: means)", color=INK, fontsize=12)
    panels = list(figure.subplots(1, len(cosines), sharey=True, squeeze=False)[0])
    for panel, (name, cosine) in zip(panels, cosines.items(), strict=True):
        edges = bins_of(cosine)
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

"""docs/latency.png: how long a request waits in each form, drawn from the table in docs/serving.md."""

import re
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mm_fibinet.errors import UserError

FORMS = ("a row each", "our eager model", "ONNX")
COLORS = ("#8d97a3", "#4c6a92", "#2a7f62")
HEAD = "| model | history | C | rows | our eager model | ONNX, fp32 | p99 of it | rows / ONNX |"


class Request(NamedTuple):
    """A line of the table.

    Attributes:
        model: its name, without what stands behind it.
        positions, candidates: of the request.
        milliseconds: of each of FORMS, None where it was not measured.
        times: how many times faster ONNX is than a row each, as the table has it; "-" where that is not known.
    """

    model: str
    positions: int
    candidates: int
    milliseconds: tuple[float | None, ...]
    times: str


def read_table(page: Path) -> list[Request]:
    """The lines of the page's table.

    Raises:
        UserError: the page has no such table.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith(HEAD)), None)
    if start is None:
        raise UserError(f"{page}: has no table that begins with {HEAD}")
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, positions, candidates, *cells = (cell.strip().replace(",", "") for cell in line.strip("|").split("|"))
        model = re.split(r" \(|,| the same| of the", name)[0]
        milliseconds = tuple(None if cell == "-" else float(cell) for cell in cells[: len(FORMS)])
        found.append(Request(model, int(positions), int(candidates), milliseconds, cells[len(FORMS) + 1]))
    return found


def draw(requests: list[Request], path: Path) -> None:
    """A panel a model, bars on one logarithmic scale; beside ONNX how many times faster it is than a row each.

    Args:
        requests: of `read_table`.
        path: the PNG.
    """
    models = list(dict.fromkeys(request.model for request in requests))
    figure, panels = plt.subplots(1, len(models), figsize=(10, 3.4), sharey=True, layout="constrained", squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        own = [request for request in requests if request.model == model]
        for form, (label, color) in enumerate(zip(FORMS, COLORS, strict=True)):
            for place, request in enumerate(own):
                value = request.milliseconds[form]
                if value is not None:
                    panel.bar(place + 0.27 * (form - 1), value, 0.25, color=color, label=label if not place else None)
        for place, request in enumerate(own):
            if request.times != "-":
                style = {"ha": "center", "va": "top", "rotation": 90, "fontsize": 8, "color": "white"}
                top = (place + 0.27, request.milliseconds[-1])
                panel.annotate(f"{request.times}x", top, (0, -3), textcoords="offset points", **style)
        panel.set_xticks(range(len(own)), [f"{one.positions:,}\n{one.candidates:,}" for one in own], fontsize=8)
        panel.set_title(model, fontsize=10)
        panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
    slowest = max(value for request in requests for value in request.milliseconds if value is not None)
    panels[0][0].set_ylim(0.3, 1.5 * slowest)  # of all panels
    panels[0][0].set_ylabel("ms of one core, median")
    panels[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.supxlabel("positions of the history, and candidates of the request", fontsize=9)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)

"""The table and the figure of benchmarks/speed.py."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEAD = ("what", "reference", "ours", "ratio", "target")
MET, MISSED, PLAIN = "#2a7f62", "#b4472e", "#4c6a92"
AXIS_NAMES = {"rows": "rows", "items": "items", "max_len": "history length"}


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        what: is measured.
        unit: "rows/s" or "items/s" (more is better), "s" or "MB" (less is better).
        reference, ours: medians in that unit.
        target: the ratio that was asked for.
        limit: the most that ours may be, in the unit.
        spread: of the repeats, the larger of both sides.
        note: for the reader.
    """

    what: str
    unit: str
    reference: float
    ours: float
    target: float | None = None
    limit: float | None = None
    spread: float = 0.0
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether what was asked for is reached; None where nothing was."""
        if self.target is None and self.limit is None:
            return None
        return self.ratio >= (self.target or 0) and self.ours <= (self.limit or float("inf"))

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.ours / self.reference if self.unit.endswith("/s") else self.reference / self.ours

    def cells(self) -> tuple[str, ...]:
        """The table's cells."""
        marks = [f">= {self.target:g}x"] if self.target else []
        marks += [f"<= {self.limit:g} {self.unit}"] if self.limit else []
        target = ", ".join(marks)
        values = (f"{number(value)} {self.unit}" for value in (self.reference, self.ours))
        return (self.what, *values, f"{number(self.ratio)}x", target)


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(result: Result) -> str:
    """One result for the terminal."""
    what, reference, ours, ratio, target = result.cells()
    return f"{what:<46} {reference:>18} {ours:>18} {ratio:>10} {target:>8}  (spread {result.spread:.0%})"


def write(folder: Path, machine: dict, bench) -> Path:
    """Write speed.json, speed.md and speed.png; returns the path of speed.md."""
    task = bench.task
    sizes = {**asdict(task.sizes), "batch_size": task.batch_size, "workers": task.workers}
    content = {
        "machine": machine,
        "sizes": sizes,
        "results": [{**asdict(result), "ratio": result.ratio} for result in bench.results],
        "curves": bench.curves,
        "peaks": bench.peaks,
        "notes": bench.notes,
    }
    (folder / "speed.json").write_text(json.dumps(content, indent=1) + "\n")
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    sized = ", ".join(f"{key} {value:,}" for key, value in sizes.items())
    lines = [
        described,
        "",
        sized,
        "",
        *_table(bench.results, machine["device"]),
        "",
        *(f"- {note}" for note in _notes(bench)),
    ]
    path = folder / "speed.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    draw(folder / "speed.png", bench.results, bench.curves, f"{machine['cpu']}, {machine['cores']} cores")
    return path


def draw(path: Path, results: list[Result], curves: list[dict], title: str) -> None:
    """The ratios as bars on a log scale, the costs as lines below."""
    bars = max(len(results), 1)
    heights = [0.42 * bars + 1.0, *([3.0] if curves else [])]
    figure = plt.figure(figsize=(10, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    _draw_ratios(parts[0].subplots(), results, title)
    if curves:
        for axes, curve in zip(parts[1].subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
            _draw_curve(axes, curve)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def _draw_ratios(axes, results: list[Result], title: str) -> None:
    ratios = [result.ratio for result in results]
    targets = [result.target or 0 for result in results]
    for place, result in enumerate(results):
        color = PLAIN if result.met is None else (MET if result.met else MISSED)
        axes.barh(place, result.ratio - 1, left=1, color=color, height=0.62)
        if result.target:
            axes.plot([result.target] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.6)
        axes.annotate(
            f"{number(result.ratio)}x",
            (max(result.ratio, result.target or 1, 1), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            weight="bold",
        )
        axes.annotate(
            f"{number(result.reference)} to {number(result.ours)} {result.unit}",
            (1, place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=8.5,
            color="#444444",
        )
    axes.set_yticks(range(len(results)), [result.what for result in results], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min([1.0, *ratios]), max([10.0, *ratios, *targets]) * 60)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("times better than the reference; black mark: target; right: reference to ours", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(axis="x", labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes, curve: dict) -> None:
    values, seconds = curve["values"], curve["seconds"]
    axes.plot(values, [curve["slope"] * value + curve["intercept"] for value in values], color=PLAIN, linewidth=1.2)
    axes.plot(values, seconds, "o", color=MET, markersize=5)
    axes.set_ylim(0, max(seconds) * 1.15)
    axes.set_xlabel(AXIS_NAMES[curve["what"]], fontsize=9)
    axes.set_ylabel("seconds: read, train an epoch", fontsize=8.5)
    axes.set_title(f"cost against {AXIS_NAMES[curve['what']]}, R² {curve['r2']:.3f}", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes.spines[["top", "right"]].set_visible(False)


def _table(results: list[Result], device: str) -> list[str]:
    """A Markdown table whose columns line up as text, too; a GPU's name stands above its figures."""
    head = HEAD if device == "cpu" else (*HEAD[:2], f"ours, {device}", *HEAD[3:])
    rows = [head, *(result.cells() for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]

    def text(row: tuple[str, ...]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return [text(rows[0]), rule, *(text(row) for row in rows[1:])]


def _notes(bench) -> list[str]:
    spreads = [f"{result.what}: {result.note}" for result in bench.results if result.note]
    widest = max((result.spread for result in bench.results), default=0)
    return [*spreads, *bench.notes, f"medians of {bench.repeats} repeats in turns; widest spread {widest:.0%}"]

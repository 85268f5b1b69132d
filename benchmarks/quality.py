"""How good and at what cost: the figure of a leaderboard, validation AUC against training time.

python benchmarks/quality.py                                       benchmarks/quality.csv, the figure in the README
python benchmarks/quality.py leaderboard/leaderboard.csv --out out.png

benchmarks/quality.csv is the table of docs/results.md, "Real posters and titles": one data set, every model trained
until its AUC rises no more, one CPU thread a run. Any leaderboard.csv of run_benchmark.py can be drawn.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import polars as pl
from matplotlib.transforms import Bbox

from mm_fibinet.errors import UserError, first_line, run_cli
from mm_fibinet.files import atomic_path, require_output

COLUMNS = ("expid", "auc", "auc_std", "seconds_to_best")
CHALLENGE = ("DIN", "QIN", "Transformer_DCN", "DIN_att6", "DIN_att_emb_rms")  # the organisers' model and the winners'
OURS, WINNERS, CLASSICS = "#2a7f62", "#b4472e", "#7d8aa0"
TICKS = {15: "15 s", 30: "30 s", 60: "1 min", 120: "2 min", 300: "5 min", 600: "10 min", 1800: "30 min", 3600: "1 h"}
NAME_PLACES = (  # points from a point's own, alignment: beside it, above and below, further away
    ((7, 5), "left"), ((7, -12), "left"), ((9, -3), "left"), ((-7, 5), "right"), ((-7, -12), "right"),
    ((-9, -3), "right"), ((0, 9), "center"), ((0, -17), "center"), ((7, 16), "left"), ((-7, 16), "right"),
    ((7, -24), "left"), ((-7, -24), "right"),
)  # fmt: skip
MARKER = 8  # pixels from a point's centre that its name stays away
TITLE = "Real posters, titles and clicks (MovieLens-100K in the challenge's layout), validation rows"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a leaderboard: AUC against training time.")
    parser.add_argument(
        "leaderboard", nargs="?", default=str(ROOT / "benchmarks" / "quality.csv"), help="default: %(default)s"
    )
    parser.add_argument("--out", default=str(ROOT / "docs" / "quality.png"), help="default: %(default)s")
    parser.add_argument("--ours", default="FiBiNET", help="what IDs begin with that stand out (default: %(default)s)")
    parser.add_argument("--title", default=TITLE)
    return parser.parse_args()


def read_leaderboard(path: str) -> pl.DataFrame:
    """The finished experiments of a leaderboard.csv: COLUMNS, sorted by falling AUC.

    Raises:
        UserError: it is no leaderboard, or nothing in it has finished.
    """
    try:
        table = pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({first_line(error)})") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; expected a leaderboard.csv of run_benchmark.py")
    numbers = [pl.col(name).cast(pl.Float64) for name in COLUMNS[1:]]
    table = table.select("expid", *numbers).filter(pl.col("auc").is_not_null())
    if table.is_empty():
        raise UserError(f"{path}: no experiment in it has finished")
    return table.sort("auc", descending=True)


def kind(expid: str, ours: str) -> tuple[str, str]:
    """(colour, legend) of an experiment, by the longest model name that its ID begins with."""
    if expid.startswith(ours):
        return OURS, "this project's"
    model = expid.rsplit("_", 1)[0]
    return (WINNERS, "the challenge's") if model in CHALLENGE else (CLASSICS, "FuxiCTR's classics")


def draw(table: pl.DataFrame, out: Path, ours: str, title: str) -> None:
    """A point an experiment, its standard deviation over the seeds as a bar."""
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    seen: set[str] = set()
    for expid, auc, deviation, seconds in table.iter_rows():
        color, legend = kind(expid, ours)
        label = None if legend in seen else legend
        seen.add(legend)
        size = 9 if color == OURS else 6.5
        axes.errorbar(
            seconds, auc, yerr=deviation, fmt="o", color=color, markersize=size, capsize=3, elinewidth=1.2, label=label
        )
    axes.set_xscale("log")
    low, high = table["seconds_to_best"].min(), table["seconds_to_best"].max()
    axes.set_xlim(low / 1.8, high * 2.2)
    ticks = [tick for tick in TICKS if low / 1.3 <= tick <= high * 2.2]
    axes.set_xticks(ticks, [TICKS[tick] for tick in ticks], minor=False)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("training until the best AUC, one CPU thread", fontsize=9.5)
    axes.set_ylabel("AUC (bar: standard deviation over seeds)", fontsize=9.5)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    axes.set_title(title, fontsize=10, loc="left")
    _add_names(figure, axes, table, ours)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def _add_names(figure, axes, table: pl.DataFrame, ours: str) -> None:
    """Each point's name beside it, inside, on the first side where it covers fewest points, bars and names."""
    figure.canvas.draw()
    taken = [_box(axes, seconds, auc, deviation or 0) for _, auc, deviation, seconds in table.iter_rows()]
    for expid, auc, _, seconds in table.iter_rows():
        color, _ = kind(expid, ours)
        tried = []
        for offset, alignment in NAME_PLACES:
            text = axes.annotate(
                f"{expid.removesuffix('_small')} {auc:.3f}",
                (seconds, auc),
                xytext=offset,
                textcoords="offset points",
                ha=alignment,
                fontsize=8.5,
                color=color,
                weight="bold" if color == OURS else "normal",
            )
            box = text.get_window_extent()
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1)
            tried.append(((outside, sum(box.overlaps(other) for other in taken)), text, box))
        _, chosen, box = min(tried, key=lambda each: each[0])
        for _, text, _ in tried:
            if text is not chosen:
                text.remove()
        taken.append(box)


def _box(axes, seconds: float, auc: float, deviation: float) -> Bbox:
    """A point and its bar, in pixels."""
    (x, low), (_, high) = axes.transData.transform([(seconds, auc - deviation), (seconds, auc + deviation)])
    return Bbox([[x - MARKER, low - MARKER], [x + MARKER, high + MARKER]])


def main() -> None:
    """Read, draw, say where."""
    args = parse_arguments()
    out = Path(args.out)
    require_output(out, [args.leaderboard], option="--out")
    draw(read_leaderboard(args.leaderboard), out, args.ours, args.title)
    print(f"figure      {out}")


if __name__ == "__main__":
    run_cli(main)

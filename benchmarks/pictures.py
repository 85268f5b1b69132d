"""Every picture of docs/, and what it is made of.

python benchmarks/pictures.py                                           those whose data are here
python benchmarks/pictures.py --only report --data data/demo            after make demo
python benchmarks/pictures.py --only leaderboard --leaderboard leaderboard/leaderboard.html

A picture whose data are not here is named with what makes them, and the file that there is stays. Look at each at a
desktop's and at a phone's width before it is kept: `make docs`, then site/index.html.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import figure, latency_picture, page_picture, quality
from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import atomic_path, require_output


@dataclass(frozen=True)
class Picture:
    """A picture of docs/.

    Attributes:
        of: the file that it is drawn from; an option may name another.
        made_by: what makes that file.
        draw: draws it: the file, and the PNG to write.
    """

    of: Path
    made_by: str
    draw: Callable[[Path, Path], None]


def draw_speed(speed: Path, path: Path) -> None:
    """Ratios and costs of a run of benchmarks/speed.py, from its speed.json."""
    content = json.loads(speed.read_text(encoding="utf-8"))
    results = [
        figure.Result(**{name: value for name, value in result.items() if name != "ratio"})
        for result in content["results"]
    ]
    machine = content["machine"]
    figure.draw(path, results, content["curves"], f"{machine['cpu']}, {machine['cores']} cores")


def draw_leaderboard(page: Path, path: Path) -> None:
    """The head of a leaderboard's page, with the first lines of its table."""
    page_picture.head_of(page).save(path, "PNG", optimize=True)


def draw_report(item_info: Path, path: Path) -> None:
    """Parts of the report page of the demo data."""
    page_picture.of_demo(item_info.parent.parent).save(path, "PNG", optimize=True)


def draw_quality(table: Path, path: Path) -> None:
    """AUC against training time of a leaderboard's table."""
    quality.draw(quality.read_leaderboard(str(table)), path, "FiBiNET", quality.TITLE)


def draw_latency(page: Path, path: Path) -> None:
    """How long a request waits, from the page's own table."""
    latency_picture.draw(latency_picture.read_table(page), path)


def pictures(data: Path, speed: Path, leaderboard: Path) -> dict[str, Picture]:
    """{name: picture}, docs/NAME.png each."""
    return {
        "quality": Picture(ROOT / "benchmarks" / "quality.csv", "the repository has it", draw_quality),
        "latency": Picture(ROOT / "docs" / "serving.md", "the repository has it", draw_latency),
        "report": Picture(data / "embedded" / "item_info.parquet", "make demo", draw_report),
        "speed": Picture(speed, "make bench, 15 to 20 minutes on a quiet machine", draw_speed),
        "leaderboard": Picture(
            leaderboard, "run_benchmark.py on data whose figures may be shown, see docs/results.md", draw_leaderboard
        ),
    }


def main() -> None:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pictures (default: all)")
    demo = ROOT / "data" / "demo"
    parser.add_argument("--data", type=Path, default=demo, help="the demo data (default: %(default)s)")
    speed = ROOT / "benchmarks" / "out" / "speed.json"
    parser.add_argument("--speed", type=Path, default=speed, help="of benchmarks/speed.py (default: %(default)s)")
    page = ROOT / "leaderboard" / "leaderboard.html"
    parser.add_argument("--leaderboard", type=Path, default=page, help="of run_benchmark.py (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder (default: %(default)s)")
    args = parser.parse_args()
    known = pictures(args.data, args.speed, args.leaderboard)
    unknown = [name for name in args.only or [] if name not in known]
    if unknown:
        raise UserError(f"--only {unknown[0]}: unknown, expected some of {', '.join(known)}")
    for name, picture in known.items():
        if args.only and name not in args.only:
            continue
        if not picture.of.is_file():
            if args.only:
                raise UserError(f"{picture.of}: no such file, and {name}.png is drawn from it: {picture.made_by}")
            print(f"{name}.png: left as it is, there is no {picture.of}: {picture.made_by}")
            continue
        target = require_output(args.out / f"{name}.png", [picture.of], kind="png", option="--out")
        with atomic_path(target) as path:
            picture.draw(picture.of, path)
        print(target)


if __name__ == "__main__":
    run_cli(main)

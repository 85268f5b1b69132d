"""docs/report.png: parts of the report page of the demo data, side by side in one picture.

python benchmarks/report_picture.py --data data/demo --out docs/report.png      after make demo

The page is made anew and opened in Chromium; what is shown are its head, its charts and the first two items. The demo's
titles and covers are generated, so the picture may be passed on, as those of a real catalogue may not.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from PIL import Image

from mm_fibinet.errors import UserError, run_cli
from mm_fibinet.files import atomic_path, require_output
from mm_fibinet.items.report import Sources, write_report

WIDTH, HEIGHT = 1280, 900
GAP = 18  # pixels, as the page has it
MARGIN = 24
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
BANDS = (
    ("main > header", ".facts"),
    ("#charts", "#charts"),
    ("h2.section", "#items .card:nth-child(2)"),
)  # first, last


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw docs/report.png.")
    parser.add_argument("--data", default="data/demo", help="folder of the demo data (default: %(default)s)")
    parser.add_argument("--out", default=str(ROOT / "docs" / "report.png"), help="PNG to write (default: %(default)s)")
    args = parser.parse_args()
    require_output(args.out, [Path(args.data)], kind="png", option="--out")
    picture = of_demo(Path(args.data))
    with atomic_path(args.out) as path:
        picture.save(path, "PNG", optimize=True)
    print(args.out)


def of_demo(data: Path) -> Image.Image:
    """The picture of the demo data in a folder."""
    item_info, splits = data / "embedded" / "item_info.parquet", data / "MMCTR_demo"
    if not item_info.is_file():
        raise UserError(f"{item_info}: no such file; make demo writes it")
    sources = Sources(
        item_info, splits / "valid.parquet", splits / "train.parquet", None, data / "item_feature.parquet",
        data / "item_images",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(sources, page)
        return draw(page)


@contextlib.contextmanager
def opened(page: Path, width: int = WIDTH) -> Iterator:
    """A page as Chromium shows it in its light scheme, `width` pixels wide."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("chromium is not installed, and draws the picture: apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        shown = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        yield shown
        browser.close()


def whole_of(shown) -> Image.Image:
    """All of an opened page, from its head to its foot."""
    return Image.open(io.BytesIO(shown.screenshot(full_page=True))).convert("RGB")


def draw(page: Path) -> Image.Image:
    """The parts of a page one below the other."""
    with opened(page) as shown:
        whole = whole_of(shown)
        boxes = [[shown.locator(part).first.bounding_box() for part in band] for band in BANDS]
    bands = [(int(first["y"]), int(last["y"] + last["height"]) + 1) for first, last in boxes]
    height = sum(bottom - top + GAP for top, bottom in bands) + 2 * MARGIN - GAP
    picture = Image.new("RGB", (WIDTH, height), whole.getpixel((2, 2)))
    place = MARGIN
    for top, bottom in bands:
        picture.paste(whole.crop((0, top, WIDTH, bottom)), (0, place))
        place += bottom - top + GAP
    return picture.quantize(256, dither=Image.Dither.NONE)


if __name__ == "__main__":
    run_cli(main)

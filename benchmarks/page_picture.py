"""Pages as pictures of docs/, drawn by Chromium for `pictures.py`: the head of one, and parts of the demo's report.

Of the report, made anew, these are its head, its charts and the first two items, one below the other. The demo's titles
and covers are generated, so the picture may be passed on, as those of a real catalogue may not.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mm_fibinet.errors import UserError
from mm_fibinet.items.report import Sources, write_report

WIDTH, HEIGHT = 1280, 900  # of the report's window
HEAD = (1400, 960)
GAP = 18  # pixels, as the page has it
MARGIN = 24
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
BANDS = (
    ("main > header", ".facts"),
    ("#charts", "#charts"),
    ("h2.section", "#items .card:nth-child(2)"),
)  # first, last


def of_demo(data: Path) -> Image.Image:
    """The picture of the demo data in a folder."""
    item_info, splits = data / "embedded" / "item_info.parquet", data / "MMCTR_demo"
    sources = Sources(
        item_info, splits / "valid.parquet", splits / "train.parquet", None, data / "item_feature.parquet",
        data / "item_images",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(sources, page)
        return draw(page)


@contextlib.contextmanager
def opened(page: Path, width: int, height: int) -> Iterator:
    """A page as Chromium shows it in its light scheme, in a window of so many pixels."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("chromium is not installed, and draws the picture: apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        yield shown
        browser.close()


def head_of(page: Path) -> Image.Image:
    """What a desktop's window shows of a page when it is opened."""
    with opened(page, *HEAD) as shown:
        return _few_colours(Image.open(io.BytesIO(shown.screenshot())).convert("RGB"))


def draw(page: Path) -> Image.Image:
    """The parts of a page one below the other."""
    with opened(page, WIDTH, HEIGHT) as shown:
        whole = Image.open(io.BytesIO(shown.screenshot(full_page=True))).convert("RGB")
        boxes = [[shown.locator(part).first.bounding_box() for part in band] for band in BANDS]
    bands = [(int(first["y"]), int(last["y"] + last["height"]) + 1) for first, last in boxes]
    height = sum(bottom - top + GAP for top, bottom in bands) + 2 * MARGIN - GAP
    picture = Image.new("RGB", (WIDTH, height), whole.getpixel((2, 2)))
    place = MARGIN
    for top, bottom in bands:
        picture.paste(whole.crop((0, top, WIDTH, bottom)), (0, place))
        place += bottom - top + GAP
    return _few_colours(picture)


def _few_colours(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, which is enough for a page."""
    return picture.quantize(256, dither=Image.Dither.NONE)

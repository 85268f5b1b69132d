"""Image files of strangers to RGB pictures, within bounds of time and memory.

A file is measured before it is decoded, only a few formats are tried, and one that cannot be used is a `BadContent`,
which the caller counts. What comes out is what a person would see: turned as EXIF says, 16 bits brought to 8,
transparent parts on white, the first frame of a film.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mm_fibinet.items.sources import BadContent

DECODING = "upright"  # a part of every image encoder's id: another word when decode_image gives other pixels
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what a file of such a name really holds, now and then
MAX_IMAGE_PIXELS = 64 * 10**6  # a cover has about one million; more is a mistake or a decompression bomb
MAX_ASPECT = 64  # a longer strip shows nothing at an encoder's size, and some encoders enlarge it by its short side
DRAFT_PIXELS = 16 * 10**6  # JPEGs beyond are decoded at half their size: faster, and still far more than is used
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Shares:
    """Lets threads into a section as long as their amounts stay within a total."""

    def __init__(self, total: int):
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, and hold it."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


_pixels = _Shares(MAX_IMAGE_PIXELS)  # being decoded at once, in all threads: some 7 bytes each


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings about single files, which `decode_image` judges itself; for the main thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file to RGB.

    Args:
        data: the file's bytes.

    Raises:
        BadContent: it is damaged, cut short, has more than MAX_IMAGE_PIXELS, or is a strip beyond MAX_ASPECT.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            _check_shape(*opened.size)  # from the header: nothing is decoded yet
            with _pixels.take(opened.width * opened.height):
                if opened.width * opened.height > DRAFT_PIXELS:
                    opened.draft(None, (opened.width // 2, opened.height // 2))
                picture = _to_rgb(opened)
                turn = TURNS.get(_orientation(opened))
                return picture if turn is None else picture.transpose(turn)
    except BadContent:
        raise
    except Image.DecompressionBombError as error:
        raise BadContent("oversized", str(error)) from error
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadContent("corrupt", reason) from error


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise BadContent("oversized", f"{width} x {height} pixels, at most {MAX_IMAGE_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadContent("oversized", f"{width} x {height} pixels, one side at most {MAX_ASPECT} times the other")


def _to_rgb(opened: Image.Image) -> Image.Image:
    if opened.mode == "I" or opened.mode.startswith("I;16"):  # Pillow's own conversion cuts off above 255
        values = np.asarray(opened).astype(np.int64)
        return Image.fromarray(np.clip((values * 255 + 32767) // 65535, 0, 255).astype(np.uint8)).convert("RGB")
    if opened.has_transparency_data:
        colours = opened.convert("RGBA")
        picture = Image.new("RGB", opened.size, (255, 255, 255))
        picture.paste(colours, mask=colours)
        return picture
    return opened.convert("RGB")


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read: damaged EXIF does not spoil the picture."""
    try:
        return opened.getexif().get(ORIENTATION, 1)
    except Exception:  # the parsers raise nearly anything
        return 1

"""Image files of strangers to RGB pictures, within bounds of time and memory.

A file is measured before it is decoded, only a few formats are tried, and one that cannot be used is a `BadContent`,
which the caller counts. What comes out is what a person would see: turned as EXIF says, 16 bits brought to 8,
transparent parts on white, the first frame of a film.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from mm_fibinet.items.contents import BadContent

DECODING = "upright"  # a part of every image encoder's id: another word when decode_image gives other pixels
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what a file of such a name really holds, now and then
MAX_IMAGE_PIXELS = 64 * 10**6  # a cover has about one million; more is a mistake or a decompression bomb
MAX_ASPECT = 64  # a longer strip shows nothing at an encoder's size, and some encoders enlarge it by its short side
FULL_PIXELS = 16 * 10**6  # pictures beyond are halved, JPEGs while they are decoded: still far more than is used
MAX_SCANS = 100  # of a progressive JPEG, which has about ten; each takes time, and a hundred bytes are one
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


# One thread for all pictures beyond FULL_PIXELS: in each thread's own heap, what they take would add up to gigabytes.
_large_pictures = ThreadPoolExecutor(1, thread_name_prefix="large pictures")


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
        BadContent: it is damaged, cut short, has more than MAX_IMAGE_PIXELS or MAX_SCANS, or is a strip beyond
            MAX_ASPECT.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
            _check_shape(*opened.size)  # from the header: nothing is decoded yet
            if opened.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
                raise BadContent("corrupt", f"more than {MAX_SCANS} scans")
            if opened.width * opened.height <= FULL_PIXELS:
                return _upright(opened)
            opened.draft(None, (opened.width // 2, opened.height // 2))
            return _large_pictures.submit(_upright, opened).result()
    except BadContent:
        raise
    except Image.DecompressionBombError as error:
        raise BadContent("oversized", str(error)) from error
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadContent("corrupt", reason) from error


def _upright(opened: Image.Image) -> Image.Image:
    picture = _to_rgb(opened)
    if picture.width * picture.height > FULL_PIXELS:
        picture = picture.reduce(2)
    turn = TURNS.get(_orientation(opened))
    return picture if turn is None else picture.transpose(turn)


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise BadContent("oversized", f"{width} x {height} pixels, at most {MAX_IMAGE_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadContent("oversized", f"{width} x {height} pixels, one side at most {MAX_ASPECT} times the other")


def _to_rgb(opened: Image.Image) -> Image.Image:
    if opened.mode == "I" or opened.mode.startswith("I;16"):  # Pillow's own conversion cuts off above 255
        values = np.clip(np.asarray(opened), 0, 65535).astype(np.uint32)
        values *= 255
        values += 32895
        values >>= 16  # values / 257, rounded
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if opened.has_transparency_data:
        colours = opened if opened.mode == "RGBA" else opened.convert("RGBA")
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

"""Covers on a page: small JPEGs within the HTML, of the few items that it shows."""

import base64
import io
from collections.abc import Iterable
from operator import length_hint
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mm_fibinet.items.contents import BadContent, Entry
from mm_fibinet.items.decoding import decode_image, quiet_pillow
from mm_fibinet.items.sources import ImageSource
from mm_fibinet.progress import track

SIDE = 192  # pixels, the longer one: twice what is shown, for fine screens
QUALITY = 78


class Cover(NamedTuple):
    """A small picture.

    Attributes:
        uri: a data URI, the picture itself.
        ratio: its width over its height.
    """

    uri: str
    ratio: float


def open_covers(images: str | Path, num_items: int) -> Iterable[Entry]:
    """The covers of a folder or an archive of ITEM_ID.jpg, as for `build_item_emb.py`, not read yet.

    Args:
        images: the folder or the archive.
        num_items: the ids are 1 .. num_items.

    Raises:
        UserError: it cannot be read.
    """
    return ImageSource(images, num_items)


def thumbnails(entries: Iterable[Entry], wanted: set[int]) -> dict[int, Cover]:
    """The covers of some items, by item_id; one that is damaged or missing is left out.

    Args:
        entries: of `open_covers`; an archive that can only be read from its beginning is read until all are found.
        wanted: item_ids.
    """
    found: dict[int, Cover] = {}
    missing = set(wanted)
    with quiet_pillow(), track(entries, desc="covers", total=length_hint(entries) or None, unit="file") as passing:
        for entry in passing:
            if entry.item_id in missing:
                missing.remove(entry.item_id)
                try:
                    found[entry.item_id] = _small(decode_image(entry.load()))
                except BadContent:
                    continue
            if not missing:
                break
    return found


def _small(picture: Image.Image) -> Cover:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Cover(uri, picture.width / picture.height)

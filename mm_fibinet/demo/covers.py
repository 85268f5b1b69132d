"""Cover images for the demo data: a cover tells its style and nothing else.

A style is a motif in a palette of its own, both of which a network trained on photographs tells apart. Angle, scale,
place and colour vary from item to item, so that no two covers are equal. Every cover has its own random stream: it
does not depend on which other covers are drawn. Pillow is imported when one is drawn: the styles are known without it.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 128
JPEG_QUALITY = 85

_Y, _X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)

Color = tuple[int, int, int]


def draw_cover(style: int, seed: int, item_id: int) -> Image.Image:
    """The cover of one item, RGB, 128 x 128 pixels.

    Args:
        style: index into `STYLES`.
        seed: of the data set.
        item_id: the same seed, item and style give the same pixels.
    """
    rng = np.random.default_rng([seed, item_id])
    motif, palette = _STYLES[STYLES[style]]
    return motif(rng, *(_jitter(rng, color) for color in palette))


def save_cover(path: Path, style: int, seed: int, item_id: int) -> None:
    """Draw the cover of one item and write it as JPEG."""
    draw_cover(style, seed, item_id).save(path, format="JPEG", quality=JPEG_QUALITY)


def _jitter(rng: np.random.Generator, hsv: tuple[float, float, float]) -> Color:
    hue, saturation, value = np.array(hsv) + rng.uniform(-1, 1, 3) * (0.025, 0.08, 0.08)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def _blend(amount: np.ndarray, back: Color, front: Color) -> Image.Image:
    """Mix two colours. `amount`: float [SIZE, SIZE], 0 = back, 1 = front."""
    from PIL import Image

    pixels = np.float32(back) + amount[..., None] * (np.float32(front) - np.float32(back))
    return Image.fromarray(pixels.astype(np.uint8))


def _canvas(color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A cover of one colour, and what draws on it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIZE, SIZE), color)
    return image, ImageDraw.Draw(image)


def _turned(rng: np.random.Generator, most: float = math.pi) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in -1..1 turned by a random angle up to `most` radians."""
    angle = rng.uniform(-most, most)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * _X + sin * _Y, cos * _Y - sin * _X


def _circles(rng: np.random.Generator, back: Color, front: Color, other: Color) -> Image.Image:
    image, draw = _canvas(back)
    for _ in range(rng.integers(9, 15)):
        (x, y), radius = rng.uniform(0, SIZE, 2), rng.uniform(8, 24)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=front if rng.random() < 0.6 else other)
    return image


def _stripes(rng: np.random.Generator, back: Color, front: Color) -> Image.Image:
    across, _ = _turned(rng)
    return _blend((np.sin(across * rng.uniform(14, 26) + rng.uniform(0, 6)) > 0).astype(np.float32), back, front)


def _checkerboard(rng: np.random.Generator, back: Color, front: Color) -> Image.Image:
    across, down = _turned(rng, 0.3)
    squares, (x, y) = rng.uniform(2.5, 5), rng.uniform(0, 1, 2)
    return _blend((np.floor(across * squares + x) + np.floor(down * squares + y)) % 2, back, front)


def _stars(rng: np.random.Generator, back: Color, front: Color) -> Image.Image:
    image, draw = _canvas(back)
    for _ in range(rng.integers(10, 18)):
        center, radius, turn = rng.uniform(0, SIZE, 2), rng.uniform(7, 18), rng.uniform(0, math.pi)
        angles = turn + np.arange(10) * math.pi / 5
        radii = radius * np.where(np.arange(10) % 2, 0.4, 1.0)
        points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([tuple(point) for point in points.tolist()], fill=front)
    return image


def _blobs(rng: np.random.Generator, back: Color, front: Color) -> Image.Image:
    height = np.zeros((SIZE, SIZE), np.float32)
    for x, y, width in rng.uniform((-1, -1, 0.15), (1, 1, 0.35), (9, 3)).astype(np.float32):
        height += np.exp(((_X - x) ** 2 + (_Y - y) ** 2) / (-width * width))
    return _blend(((height > 0.35) + 1.0 * (height > 0.75)) / np.float32(2), back, front)


def _spirals(rng: np.random.Generator, back: Color, front: Color) -> Image.Image:
    x, y = (axis - np.float32(shift) for axis, shift in zip((_X, _Y), rng.uniform(-0.4, 0.4, 2), strict=True))
    arms, hand = int(rng.integers(2, 5)), rng.choice([-1, 1])
    phase = hand * arms * np.arctan2(y, x) + rng.uniform(14, 22) * np.hypot(x, y) + rng.uniform(0, 6)
    return _blend((np.sin(phase) > 0).astype(np.float32), back, front)


# style: (motif, palette as hue, saturation, value)
_STYLES: dict[str, tuple[Callable[..., Image.Image], tuple[tuple[float, float, float], ...]]] = {
    "circles": (_circles, ((0.11, 0.15, 0.95), (0.01, 0.8, 0.85), (0.07, 0.8, 0.9))),
    "stripes": (_stripes, ((0.6, 0.05, 0.95), (0.6, 0.85, 0.75))),
    "checkerboard": (_checkerboard, ((0.15, 0.85, 0.95), (0.0, 0.0, 0.1))),
    "stars": (_stars, ((0.73, 0.8, 0.25), (0.14, 0.45, 0.97))),
    "blobs": (_blobs, ((0.28, 0.35, 0.85), (0.38, 0.8, 0.3))),
    "spirals": (_spirals, ((0.22, 0.75, 0.9), (0.86, 0.8, 0.6))),
}

STYLES = tuple(_STYLES)

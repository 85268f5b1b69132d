"""A shop's raw files, drawn from a stated click model: string ids, French and Chinese titles, PNG covers, no levels."""

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

FRENCH = ("roman policier", "cuisine d'été", "vélo de montagne")
CHINESE = ("侦探小说", "夏日美食", "山地自行车")
COLOURS = ((200, 40, 40), (50, 70, 200))
COUNTRIES = {"FR": 0.5, "CN": 0.0, "CA": -0.5}
ITEMS, USERS, ROWS = 160, 200, 30_000
TASTE, STYLE, EVENING = 3.0, 2.0, 0.8


def draw_shop(folder: Path, seed: int = 0) -> pl.DataFrame:
    """Write clicks.csv, products.csv and covers/ID.png.

    The probability of a click is sigmoid(-2.5 + TASTE [the user likes the title's topic] + STYLE [and the cover's
    colour] + the country's figure + EVENING [from 18 o'clock on]).

    Returns:
        customer, product, time and the true probability of each row, in the file's order.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    topic, colour = rng.permutation(ITEMS) % len(FRENCH), rng.permutation(ITEMS) % len(COLOURS)
    skus = np.array([f"{'ÀB' if at % 2 else 'C-'}{at:03d}" for at in rng.permutation(ITEMS)])
    titles = [f"{(FRENCH if at % 2 else CHINESE)[topic[at]]} {at}" for at in range(ITEMS)]
    pl.DataFrame({"sku": skus, "name": titles, "shelf": [f"rayon {at % 7}|nouveau" for at in range(ITEMS)]}).write_csv(
        folder / "products.csv"
    )
    (folder / "covers").mkdir()
    for at in range(ITEMS):
        picture = Image.new("RGB", (48, 64), COLOURS[colour[at]])
        ImageDraw.Draw(picture).ellipse([*rng.integers(0, 20, 2).tolist(), 40, 50], fill=(230, 230, 210))
        picture.save(folder / "covers" / f"{skus[at]}.png")

    likes_topic = rng.random((USERS, len(FRENCH))).argsort(1) < 1
    likes_colour = rng.random((USERS, len(COLOURS))).argsort(1) < 1
    user, item = rng.integers(0, USERS, ROWS), rng.integers(0, ITEMS, ROWS)
    country, hour = rng.choice(list(COUNTRIES), ROWS), rng.integers(0, 24, ROWS)
    logit = -2.5 + TASTE * likes_topic[user, topic[item]] + STYLE * likes_colour[user, colour[item]]
    logit += np.array([COUNTRIES[name] for name in country]) + EVENING * (hour >= 18)
    probability = 1 / (1 + np.exp(-logit))
    log = pl.DataFrame(
        {
            "customer": [f"client-{at:x}" for at in user],
            "product": skus[item],
            "time": 1_700_000_000 + np.arange(ROWS) * 30,
            "clicked": (rng.random(ROWS) < probability).astype(int),
            "country": country,
            "hour": hour,
        }
    )
    log.write_csv(folder / "clicks.csv")
    return log.select("customer", "product", "time").with_columns(probability=probability)

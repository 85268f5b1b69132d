"""In which script is a title written? As near as one comes to its language without a model that tells languages.

A letter's script is the first word of its Unicode name (LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00), a title's is
that of most of its letters; one with kana is Japanese, whose titles are mostly ideographs. English and Spanish are one
script, Chinese and Russian are two: where a catalogue mixes such, an encoder that does not know one of them puts its
titles together, whatever they say, and then nearly all neighbours share a script.
"""

import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np

KANA = ("HIRAGANA", "KATAKANA")
NAMES = {"CJK": "Chinese", "HANGUL": "Korean", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}
JUDGED_CHARACTERS = 200


def script(title: str) -> str | None:
    """The script of most letters of a title, "Latin" say; None for one without letters."""
    letters = Counter(filter(None, map(_script_of_letter, title[:JUDGED_CHARACTERS])))
    if not letters:
        return None
    if any(kana in letters for kana in KANA):
        return "Japanese"
    name = max(sorted(letters), key=letters.__getitem__)
    return NAMES.get(name, name.capitalize())


def agreement(labels: np.ndarray, queries: np.ndarray, neighbours: np.ndarray) -> tuple[float, float]:
    """How often neighbours have the same label, and how often two items drawn at random have.

    Args:
        labels: int [items], -1 for none, such items do not count.
        queries: item_ids [q].
        neighbours: item_ids [q, k].

    Returns:
        (share of the neighbours, share by chance), NaN where none counts.
    """
    own, others = labels[queries][:, None], labels[neighbours]
    counts = (own >= 0) & (others >= 0)
    near = float(np.mean((own == others)[counts])) if counts.any() else np.nan
    sizes = np.bincount(labels[labels >= 0])
    total = sizes.sum()
    by_chance = float(sizes @ (sizes - 1) / (total * (total - 1))) if total > 1 else np.nan
    return near, by_chance


@lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str | None:
    return unicodedata.name(letter, "").partition(" ")[0].partition("-")[0] or None if letter.isalpha() else None

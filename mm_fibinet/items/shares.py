"""One process's share of the items, where several divide them among themselves: every N-th item."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import length_hint

from mm_fibinet.errors import UserError
from mm_fibinet.items.contents import Entry


@dataclass(frozen=True)
class Share:
    """The items number, number + of, number + 2 of, ...: long and short texts, large and small images are spread.

    Attributes:
        number: 1 .. of.
        of: how many shares there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: object) -> "Share":
        """Of `--shard I/N`."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(text))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/4 for the first of four")
        return cls(int(found[1]), int(found[2]))

    @property
    def part(self) -> str:
        """Its folder in a store."""
        return f"{self.number}-of-{self.of}"

    def count(self, num_items: int) -> int:
        """How many of the items 1 .. num_items are in it."""
        return len(range(self.number, num_items + 1, self.of))

    def select(self, entries: Iterable[Entry]) -> "Selected":
        """The entries of its items."""
        return Selected(self, entries)


@dataclass(frozen=True)
class Selected:
    """The entries of a share's items; about as many as its part of all, for a progress bar."""

    share: Share
    entries: Iterable[Entry]

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entry in self.entries if (entry.item_id - self.share.number) % self.share.of == 0)

    def __length_hint__(self) -> int:
        return length_hint(self.entries) // self.share.of

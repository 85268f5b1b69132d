"""What an encoder reads: a stream of items' contents, whatever the modality.

Every modality becomes a stream of `Entry`: an item id, a name for messages, and a function that loads the content when
a background thread gets to it, so that 91,717 covers are never in memory at once. Contents that cannot be used are
counted, never passed over without a word, and are not the end of the run.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mm_fibinet.errors import UserError


class BadContent(Exception):
    """One item's content cannot be used; `kind` is "corrupt" or "oversized", the message says why."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Entry:
    """One item's content in one modality, not loaded yet.

    Attributes:
        item_id: 1 .. N.
        name: for messages.
        load: gives the content; raises `BadContent`.
        size: about how many bytes of memory the content takes.
    """

    item_id: int
    name: str
    load: Callable[[], bytes]
    size: int = 0


class Source(Protocol):
    """What the build needs of a modality's source."""

    @property
    def views(self) -> Mapping[str, Iterable[Entry]]:
        """Streams of entries by name.

        The first holds the whole contents; further ones are other sights of the same items (a text's opening), whose
        features are put beside the first's.
        """

    def facts(self) -> dict[str, Any]:
        """What was read and what was not, for the manifest; final after iteration."""

    def notes(self) -> list[str]:
        """The same as sentences for a person."""


def require_new_item(item_id: int, known: Container[int], num_items: int, path: str | Path, row: int) -> None:
    """A `UserError` unless a table's id is one of 1 .. num_items and not among those known."""
    if not 1 <= item_id <= num_items:
        raise UserError(
            f"{path}: item_id {item_id} in row {row} is not in item_info (1 to {num_items}); give the item_info and "
            "item_feature of the same data set"
        )
    if item_id in known:
        raise UserError(f"{path}: item_id {item_id} occurs again in row {row}, expected each item once")

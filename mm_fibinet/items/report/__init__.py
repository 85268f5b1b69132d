"""Is an item embedding any good? Told from the files alone, before any model is trained.

`python -m mm_fibinet.items.report ITEM_INFO --data DATASET_ID` writes one HTML page with all that is known here:

    evidence     does the cosine of a target to its history tell clicks?
    probe        does the embedding know the items' tags?
    geometry     norms, anisotropy, hubness, duplicates, and who is near whom
    languages    do neighbours speak one language?
    projection   the items on a map
    pictures     covers, small enough for a page

`contents` puts these together, `page` writes them; `click_evidence` is one figure of the first, for a notebook.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_fibinet.items.report.contents import Contents, Sources
    from mm_fibinet.items.report.evidence import Rows, history_cosine, read_rows
    from mm_fibinet.items.report.figure import Evidence, click_evidence
    from mm_fibinet.items.report.page import write_report

__all__ = [
    "Contents",
    "Evidence",
    "Rows",
    "Sources",
    "click_evidence",
    "history_cosine",
    "read_rows",
    "write_report",
]
_HOMES = {
    **dict.fromkeys(("Contents", "Sources"), "contents"),
    **dict.fromkeys(("Rows", "history_cosine", "read_rows"), "evidence"),
    **dict.fromkeys(("Evidence", "click_evidence"), "figure"),
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    """What is named, loaded when it is asked for: the help of the command waits for nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

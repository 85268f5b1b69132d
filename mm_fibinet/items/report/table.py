"""The figures of the page's table: what each is called, what it means, what chance would give, how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mm_fibinet.items.report.contents import ColumnFigures, Contents
from mm_fibinet.items.report.geometry import NEARLY_SAME, K
from mm_fibinet.significance import Interval

NOTHING = "-"


class Cell(NamedTuple):
    """A value and what belongs to it, an interval say."""

    value: str
    detail: str = ""

    @property
    def whole(self) -> str:
        """Both on one line."""
        return f"{self.value} ({self.detail})" if self.detail else self.value


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        title: what the figure is called.
        meaning: what it is, in a sentence.
        reference: what chance or the ideal would give.
        cells: one a column.
        best: places of the columns whose value is the best; empty where no value is better than another.
    """

    title: str
    meaning: str
    reference: str
    cells: list[Cell]
    best: list[int]


def lines(contents: Contents) -> dict[str, list[Line]]:
    """The table: {heading: lines}; what could not be worked out is left out."""
    return {
        heading: found
        for heading, found in (
            ("Clicks", _click_lines(contents)),
            ("Content", _content_lines(contents)),
            ("Shape", _shape_lines(contents)),
        )
        if found
    }


def share(value: float) -> str:
    """A share in per cent; small ones are not rounded to nothing."""
    if math.isnan(value):
        return NOTHING
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}" if value >= 0.0005 else "< 0.1%"


def with_interval(found: Interval) -> Cell:
    """An AUC with its interval."""
    return Cell(f"{found.auc:.3f}", f"{found.low:.3f} to {found.high:.3f}")


def decimals(value: float, digits: int) -> str:
    """A number that is near zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _click_lines(contents: Contents) -> list[Line]:
    clicks = contents.clicks
    if clicks is None:
        return []
    meanings = {
        "all": ("AUC, all rows", "AUC of the cosine between target and history on valid, as a score of clicks"),
        "warm": ("AUC, warm", "The same for targets that occur as a target in train"),
        "cold": ("AUC, cold", "The same for targets that never do: there the embedding is nearly all a model has"),
    }
    return [
        _compared(
            contents,
            f"{title} ({clicks.rows[subset]:,} rows)",
            meaning,
            "0.5",
            [clicks.auc[name][subset].auc for name in contents.columns],
            [with_interval(clicks.auc[name][subset]) for name in contents.columns],
        )
        for subset, (title, meaning) in meanings.items()
        if subset in clicks.rows
    ]


def _content_lines(contents: Contents) -> list[Line]:
    found = []
    probes = [each.probe for each in contents.columns.values()]
    if all(probes):
        known = [each for each in probes if each]
        means = [each.mean for each in known]
        tags = max(len(each.auc) for each in known)
        found.append(
            _compared(
                contents,
                "Tags by a linear probe, AUC",
                f"Mean over {tags} tags of how well a linear map tells them, on items that it was not fitted to",
                "0.5",
                means,
                [Cell(f"{mean:.3f}") for mean in means],
            )
        )
        firsts = [each.first for each in known]
        found.append(
            _compared(
                contents,
                "First tag is right",
                "Share of items whose tag of highest score is one of theirs; by chance: always the commonest tag",
                share(known[0].first_by_chance),
                firsts,
                [Cell(share(first)) for first in firsts],
            )
        )
    if not math.isnan(contents.script_by_chance):
        found.append(
            _plain(
                contents,
                "Neighbours in the same script",
                "Share of neighbours whose title is in the same script, a rough stand-in for language; near 100 % in "
                "a mixed catalogue says that language comes before content",
                share(contents.script_by_chance),
                lambda each: Cell(share(each.same_script)),
            )
        )
    return found


def _shape_lines(contents: Contents) -> list[Line]:
    def hub(each: ColumnFigures) -> Cell:
        item, times = each.geometry.hub
        return Cell(f"{times:,}", contents.title(item))

    def missing(each: ColumnFigures) -> Cell:
        found = each.geometry.missing
        return Cell(f"{found:,}", share(found / each.geometry.items) if found else "")

    def norms(each: ColumnFigures) -> Cell:
        low, middle, high = (f"{value:.3g}" for value in each.geometry.norms)
        return Cell(middle, f"{low} to {high}")

    return [
        _plain(
            contents, "Items without a vector", "Rows of zeros, such as items without a text or a cover", "0", missing
        ),
        _plain(
            contents,
            "Directions in use",
            "How many directions carry the variance (sum of eigenvalues squared over the sum of their squares), of the "
            "numbers an item",
            "",
            lambda each: Cell(f"{each.geometry.directions:.1f}", f"of {each.geometry.width}"),
        ),
        _plain(
            contents,
            "Length of a vector",
            "Median (1 % and 99 % quantiles); far ones weigh more in dot products, not in cosines",
            "",
            norms,
        ),
        _plain(
            contents,
            "Anisotropy",
            "Mean cosine of two different items, over all pairs (Ethayarajh 2019); near 1 all vectors point one way",
            "0",
            lambda each: Cell(decimals(each.geometry.anisotropy, 3)),
        ),
        _plain(
            contents,
            "Hubness",
            f"Skewness of how often an item is among the {K} nearest of another (Radovanović et al. 2010)",
            "0",
            lambda each: Cell(decimals(each.geometry.hubness, 2)),
        ),
        _plain(contents, "Largest hub", f"The item that most others have among their {K} nearest", str(K), hub),
        _plain(
            contents,
            "Near nobody",
            f"Share of items that are among no other's {K} nearest",
            "",
            lambda each: Cell(share(each.geometry.orphans)),
        ),
        _plain(
            contents,
            "Duplicates, exact",
            "Share of items whose vector another item has, too",
            "0",
            lambda each: Cell(share(each.geometry.same)),
        ),
        _plain(
            contents,
            "Duplicates, near",
            f"Share of items with another at a cosine of {NEARLY_SAME} or more, exact ones included",
            "0",
            lambda each: Cell(share(each.geometry.nearly_same)),
        ),
    ]


def _plain(
    contents: Contents, title: str, meaning: str, reference: str, shown: Callable[[ColumnFigures], Cell]
) -> Line:
    return Line(title, meaning, reference, [shown(each) for each in contents.columns.values()], [])


def _compared(
    contents: Contents, title: str, meaning: str, reference: str, values: list[float], cells: list[Cell]
) -> Line:
    """A line of figures of which more is better."""
    several = len(contents.columns) > 1
    return Line(title, meaning, reference, cells, [values.index(max(values))] if several else [])

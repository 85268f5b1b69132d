"""What a study says, as a part of each of the leaderboard's files: a table, a figure of the page, and a CSV.

The table is what is read, the CSV what is reckoned with: one line a figure, with names for columns. A figure is drawn
by the page's script from its points.
"""

import base64
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from mm_fibinet.compare.csv_files import as_csv
from mm_fibinet.compare.text import html_text, markdown_text

OPEN_ROWS = 12  # a longer table is folded on the page
Point = tuple[float, float, float | None, float | None]  # x, y, and the interval of y where there is one


@dataclass(frozen=True)
class Figure:
    """What the page draws.

    Attributes:
        x, y: the axes' titles.
        panels: {title: {expid: points}}; one panel beside the other.
        ticks: [(x, text)] of an axis of groups; none of an axis of numbers.
        log: equal steps of x are equal factors.
        diagonal: the line y = x is drawn, and both axes begin at 0.
    """

    x: str
    y: str
    panels: dict[str, dict[str, list[Point]]]
    ticks: list[tuple[int, str]] = field(default_factory=list)
    log: bool = False
    diagonal: bool = False


@dataclass(frozen=True)
class Section:
    """What a study says; every text is printable.

    Attributes:
        name: of the study.
        title: its heading.
        note: what is shown, and how to read it, in a sentence or two.
        headings, rows: the table, texts; the first of a row is the experiment.
        records: the CSV's lines, of equal keys.
        figure: of the page; None where a table says it.
        failed: what went wrong, a sentence each.
    """

    name: str
    title: str
    note: str
    headings: list[str]
    rows: list[list[str]]
    records: list[dict[str, Any]]
    figure: Figure | None = None
    failed: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The name of its CSV."""
        return f"{file_stem(self.name)}.csv"


def file_stem(name: str) -> str:
    """How the files of a study are called."""
    return f"study_{name}"


def section_csv(section: Section) -> str:
    """The CSV of a study; only a heading when every run failed."""
    return as_csv(list(section.records[0]) if section.records else ["expid"], section.records)


def as_markdown(section: Section) -> list[str]:
    """The lines of a section of leaderboard.md."""
    lines = ["", f"## {markdown_text(section.title)}", "", markdown_text(section.note), ""]
    lines.append("| " + " | ".join(map(markdown_text, section.headings)) + " |")
    lines.append("|---|" + "---:|" * (len(section.headings) - 1))
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in section.rows]
    if section.failed:
        lines += ["", *(f"- {markdown_text(text)}" for text in section.failed)]
    return lines


def as_text(section: Section) -> str:
    """A table for the terminal."""
    table = [section.headings, *section.rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(section.headings))]
    lines = ["", section.title]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join([*lines, *section.failed])


def as_html(section: Section) -> str:
    """A section of the page; its figure is drawn by the script, from `data`."""
    head = "".join(f'<th scope="col">{html_text(text)}</th>' for text in section.headings)
    body = "".join(_body_row(row) for row in section.rows)
    figure = '<div class="panels"></div>' if section.figure else ""
    wide = " wide" if section.figure and len(section.figure.panels) > 1 else ""
    unfolded = " open" if len(section.rows) <= OPEN_ROWS else ""
    failed = "".join(f"<li>{html_text(text)}</li>" for text in section.failed)
    return (
        f'<section class="card study{wide}" id="study-{section.name}">'
        f'<div class="title"><h2>{html_text(section.title)}</h2>'
        f"{download_link(section.file, section_csv(section))}</div>"
        f"<p>{html_text(section.note)}</p>{figure}"
        f'<details{unfolded}><summary>Table</summary><div class="table" tabindex="0" role="region" '
        f'aria-label="{html_text(section.title)}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
        f"{f'<ul>{failed}</ul>' if failed else ''}</section>\n"
    )


def data(section: Section) -> dict | None:
    """What the script draws, for JSON."""
    return asdict(section.figure) if section.figure else None


def download_link(name: str, text: str) -> str:
    """A link in the page that saves a file which the page itself holds."""
    content = base64.b64encode(text.encode()).decode()
    return f'<a class="plain" download="{html_text(name)}" href="data:text/csv;charset=utf-8;base64,{content}">CSV</a>'


def _body_row(row: list[str]) -> str:
    """A row of the table; what stands in brackets behind a number may go below it."""
    cells = "".join(
        re.sub(r" (\(.*\))</td>$", r" <small>\1</small></td>", f"<td>{html_text(text)}</td>") for text in row[1:]
    )
    return f'<tr data-expid="{html_text(row[0])}"><th scope="row">{html_text(row[0])}</th>{cells}</tr>\n'

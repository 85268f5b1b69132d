"""The report as one HTML page that asks the network for nothing: pictures are within it, figures need no script.

A script only draws the map and shows what is under the pointer. Titles and tags are strangers' text: each is made
printable and escaped, and stays text. The same input gives the same bytes, so the page has no date.
"""

import html
import json
import re
from pathlib import Path

import numpy as np

from mm_fibinet import files
from mm_fibinet.errors import UserError, printable
from mm_fibinet.items.report import table
from mm_fibinet.items.report.contents import Contents, Neighbours, Sources, collect
from mm_fibinet.items.report.figure import bins_of
from mm_fibinet.items.report.geometry import EXACT_ITEMS, QUERIES, K
from mm_fibinet.items.report.projection import MOST_POINTS

TEMPLATE = Path(__file__).with_name("page.html")
COLOURED_TAGS = 6
TAGS_LISTED = 16
TITLE_CHARACTERS = 160
RATIOS = (0.6, 1.8)
REFERENCE = "Chance or ideal"
SUBSETS = {"all": "All rows", "warm": "Warm targets", "cold": "Cold targets"}


def write_report(
    sources: Sources, output: str | Path = "report.html", columns: list[str] | None = None, seed: int = 0
) -> Contents:
    """Work everything out and write the page, whole or not at all.

    Args:
        sources: the files to read.
        output: the page; not an input.
        columns: embedding columns; None for all of item_info.
        seed: of everything that is drawn.

    Returns:
        What the page says.

    Raises:
        UserError: an input, an option or the place to write is at fault.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")
    files.require_output(output, sources.named, kind="html", option="--out")
    contents = collect(sources, columns, seed)
    files.write_text(output, as_html(contents))
    return contents


def as_text(contents: Contents) -> str:
    """The figures for a terminal: a line a figure, a column an embedding."""
    names = list(contents.columns)
    lines = [line for found in table.lines(contents).values() for line in found]
    rows = [[line.title, *(_short(cell.whole, 32) for cell in line.cells), line.reference] for line in lines]
    rows = [[printable(cell) for cell in row] for row in [["", *names, REFERENCE.lower()], *rows]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def as_html(contents: Contents) -> str:
    """The page."""
    parts = {
        "file": _text(Path(contents.sources.item_info).name),
        "verdict": _verdict(contents),
        "facts": "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in _facts(contents).items()),
        "figures": _figures(contents),
        "clicks": _clicks(contents),
        "tags": _tags(contents),
        "neighbours": _cards(contents),
        "ratio": _ratio(contents),
        "notes": "".join(f"<li>{_text(note)}</li>" for note in _notes(contents)),
        "data": json.dumps(_map_data(contents)).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], TEMPLATE.read_text(encoding="utf-8"))


def _verdict(contents: Contents) -> str:
    clicks = contents.clicks
    if clicks is None:
        return "Without a valid split, the page says what the embedding is like, and not whether it tells clicks."
    best = max(contents.columns, key=lambda name: clicks.auc[name]["all"].auc)
    found = clicks.auc[best]["all"]
    figure = f"AUC {found.auc:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}, where chance is 0.5"
    if found.low <= 0.5:
        return f"No column tells clicks by its cosine alone: <strong>{_text(best)}</strong> comes nearest, {figure}."
    several = f" best of {len(contents.columns)}" if len(contents.columns) > 1 else ""
    return f"<strong>{_text(best)}</strong> tells clicks{several}: {figure}."


def _facts(contents: Contents) -> dict[str, str]:
    facts = {"Items": f"{contents.items:,}"}
    if contents.warm is not None:
        warm = int(contents.warm[1:].sum())
        facts["Warm items"] = f"{warm:,} ({table.share(warm / contents.items)})"
    if contents.clicks:
        facts["Valid rows"] = f"{contents.clicks.of:,}, {contents.clicks.clicked.mean():.0%} clicked"
    if contents.titles:
        facts["Titles"] = f"{len(contents.titles):,}"
        named = list(contents.scripts.items())[:3]
        facts["Scripts"] = ", ".join(f"{name} {table.share(n / len(contents.titles))}" for name, n in named) or "none"
    if contents.tags:
        facts["Tags"] = f"{len(contents.tags):,}"
    facts["Seed"] = str(contents.seed)
    return facts


def _figures(contents: Contents) -> str:
    """The table's inside: a group of lines each, columns side by side."""
    names = list(contents.columns)
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = []
    for heading, lines in table.lines(contents).items():
        body.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(names) + 2}">{heading}</th></tr>')
        for line in lines:
            cells = "".join(
                _figure(name, cell, place in line.best)
                for place, (name, cell) in enumerate(zip(names, line.cells, strict=True))
            )
            title = f'<th scope="row">{_text(line.title)}<small>{_text(line.meaning)}</small></th>'
            body.append(
                f'<tr>{title}{cells}<td class="soft" data-label="{REFERENCE}">{_text(line.reference)}</td></tr>'
            )
    return (
        f'<thead><tr><th scope="col">Figure</th>{head}<th scope="col">{REFERENCE}</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody>"
    )


def _figure(name: str, cell: table.Cell, best: bool) -> str:
    """A cell of the table; on a phone it names its column itself."""
    detail = f'<small dir="auto">{_text(_short(cell.detail, 40))}</small>' if cell.detail else ""
    return f'<td{" class=best" if best else ""} data-label="{_text(name)}">{_text(cell.value)}{detail}</td>'


def _clicks(contents: Contents) -> str:
    """Intervals of the AUCs on one scale, and how the cosines are distributed."""
    clicks = contents.clicks
    if clicks is None:
        return ""
    found = [interval for each in clicks.auc.values() for interval in each.values()]
    low = min(0.5, *(interval.low for interval in found))
    high = max(0.5, *(interval.high for interval in found))
    margin = 0.06 * (high - low)

    def place(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    groups = []
    for subset, title in SUBSETS.items():
        if subset not in clicks.rows:
            continue
        bars = "".join(
            f'<div class="name">{_text(name)}</div><div class="track">'
            f'<i class="chance" style="left:{place(0.5):.2f}%"></i>'
            f'<i class="bar" style="left:{place(each[subset].low):.2f}%;'
            f'width:{place(each[subset].high) - place(each[subset].low):.2f}%"></i>'
            f'<i class="dot" style="left:{place(each[subset].auc):.2f}%"></i></div>'
            f'<div class="value">{each[subset].auc:.3f}</div>'
            for name, each in clicks.auc.items()
        )
        groups.append(f"<h3>{title} <small>{clicks.rows[subset]:,} rows</small></h3><div class=bars>{bars}</div>")
    histograms = "".join(_histogram(name, cosine, clicks.clicked) for name, cosine in clicks.cosines.items())
    how = "bootstrap over users" if clicks.by_users else "DeLong's variance; the rows do not say which user's they are"
    return (
        '<section class="card"><h2>Does it tell clicks?</h2><p>AUC of the cosine between a target and its history, as '
        f"the only score. Lines are 95 % intervals ({how}), the dashed one is chance.</p>{''.join(groups)}</section>"
        '<section class="card"><h2>Cosine of target and history</h2><p>How it is distributed over rows '
        '<span class="key clicked">clicked</span> and <span class="key other">not clicked</span>. The farther apart '
        f'the two, the better.</p><div class="histograms">{histograms}</div></section>'
    )


def _histogram(name: str, cosine: np.ndarray, clicked: np.ndarray) -> str:
    edges = bins_of(cosine)
    shares = [np.histogram(cosine[rows], edges)[0] / rows.sum() for rows in (~clicked, clicked)]
    top = max(values.max() for values in shares) or 1.0
    paths = "".join(
        f'<path class="{kind}" d="{_steps(values / top)}"/>'
        for kind, values in zip(("other", "clicked"), shares, strict=True)
    )
    return (
        f"<figure><figcaption>{_text(name)}</figcaption>"
        f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="Distribution of the cosines of '
        f'{_text(name)} over clicked and other rows">{paths}</svg>'
        f'<div class="ends"><span>{edges[0]:.2f}</span><span>{edges[-1]:.2f}</span></div></figure>'
    )


def _steps(heights: np.ndarray) -> str:
    """The outline of a histogram as an SVG path within 100 x 40: float [bins], at most 1."""
    step = 100 / len(heights)
    corners = [
        f"L{x:.1f} {40 - 38 * height:.1f}"
        for place, height in enumerate(heights)
        for x in (place * step, (place + 1) * step)
    ]
    return f"M0 40{''.join(corners)}L100 40Z"


def _tags(contents: Contents) -> str:
    """The most frequent tags' AUCs, a column an embedding."""
    probes = {name: each.probe for name, each in contents.columns.items() if each.probe}
    if not probes:
        return ""
    first = next(iter(probes.values()))
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{_text(_short(tag, 40))}<small>{first.items[tag]:,}</small></th>'
        f"{''.join(_meter(each.auc.get(tag)) for each in probes.values())}</tr>"
        for tag in list(first.auc)[:TAGS_LISTED]
    )
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in probes)
    return (
        '<section class="card"><h2>Does it know the tags?</h2><p>AUC of a linear probe for each of the '
        f"{min(TAGS_LISTED, len(first.auc))} most frequent tags, on {first.judged:,} items that it was not "
        "fitted to. An empty bar is chance, a full one is no mistake.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Tags by a linear probe"><table class="probe">'
        f'<thead><tr><th scope="col">Tag <small>items</small></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _meter(auc: float | None) -> str:
    """A cell with an AUC and a bar from chance to no mistake."""
    if auc is None:
        return f"<td>{table.NOTHING}</td>"
    return f'<td><span class="meter"><i style="width:{200 * max(auc - 0.5, 0):.0f}%"></i></span>{auc:.3f}</td>'


def _cards(contents: Contents) -> str:
    """The shown items, each with its neighbours by every column."""
    tags: dict[int, list[str]] = {item: [] for item in contents.shown}
    for tag, ids in contents.tags.items():
        for item in np.intersect1d(ids, contents.shown).tolist():
            tags[item].append(tag)
    cards = []
    for item in contents.shown:
        kind = "" if contents.warm is None else "warm" if contents.warm[item] else "cold"
        chip = f'<span class="chip {kind}">{kind}</span>' if kind else ""
        listed = ", ".join(tags[item][:5])
        strips = "".join(
            f'<div class="strip"><h4>{_text(name)}</h4><div class="tiles" tabindex="0" role="region" '
            f'aria-label="Nearest by {_text(name)}">{_tiles(contents, each.shown[item])}</div></div>'
            for name, each in contents.columns.items()
        )
        cards.append(
            f'<article class="card item"><header>{_cover(contents, item)}<div>'
            f'<h3 dir="auto">{_text(_title(contents, item))}</h3><p dir="auto">{chip}'
            f"{_text(_short(listed, 80))}</p></div></header>{strips}</article>"
        )
    return "".join(cards)


def _tiles(contents: Contents, near: Neighbours) -> str:
    return "".join(
        f'<figure>{_cover(contents, item)}<figcaption><span dir="auto">{_text(_title(contents, item))}</span>'
        f"<b>{cosine:.2f}</b></figcaption></figure>"
        for item, cosine in zip(near.item_ids, near.cosines, strict=True)
    )


def _cover(contents: Contents, item: int) -> str:
    """The cover; where others have one and this item has not, an empty frame."""
    if not contents.covers:
        return ""
    cover = contents.covers.get(item)
    return f'<img alt="" src="{cover.uri}">' if cover else '<span class="blank">no cover</span>'


def _ratio(contents: Contents) -> str:
    """The shape of the frames of covers, that of most covers: width over height."""
    ratios = [cover.ratio for cover in contents.covers.values()]
    return f"{np.clip(np.median(ratios), *RATIOS):.2f}" if ratios else "1"


def _notes(contents: Contents) -> list[str]:
    """What was left out or drawn, and how figures came about."""
    notes = []
    sources, clicks = contents.sources, contents.clicks
    if clicks:
        drawn = sum(clicks.rows[subset] for subset in ("all",) if subset in clicks.rows) + clicks.left_out
        if drawn < clicks.of:
            notes.append(f"Clicks are told on {drawn:,} of {clicks.of:,} rows of valid, drawn by the seed.")
        if clicks.left_out:
            notes.append(
                f"{clicks.left_out:,} rows have no history, or items without a vector alone in one of the columns, and "
                "are left out for all."
            )
    else:
        notes.append("There is no click evidence: --data DATASET_ID or --valid FILE names a split with labels.")
    if contents.warm is None:
        notes.append("Warm and cold items are not told apart: --data DATASET_ID or --train FILE does that.")
    if not contents.titles:
        notes.append("Items have no titles here: --titles item_feature.parquet has them.")
    if not contents.covers:
        notes.append(f"There are no covers{' of these items' if sources.images else ': --images FOLDER has them'}.")
    if not contents.tags:
        notes.append("There are no tags, in item_feature or item_info, and so no probe.")
    elif all(each.probe is None for each in contents.columns.values()):
        notes.append("No tag has enough items for a probe.")
    if any(
        each.geometry.hubs_among < each.geometry.items - each.geometry.missing for each in contents.columns.values()
    ):
        notes.append(
            f"With more than {EXACT_ITEMS:,} items, hubs are counted among {EXACT_ITEMS:,} of them; near duplicates "
            f"and scripts are told of {QUERIES:,} items and their {K} nearest among all. The seed draws both."
        )
    if len(contents.points) >= MOST_POINTS:
        notes.append(f"The map shows {len(contents.points):,} items, drawn by the seed.")
    if contents.scripts:
        notes.append(
            "A title's script is that of most of its letters by their Unicode names; languages that share one are not "
            f"told apart. Here: {', '.join(f'{name} {count:,}' for name, count in list(contents.scripts.items())[:8])}."
        )
    return notes


def _map_data(contents: Contents) -> dict:
    """What the map's script reads."""
    points = contents.points
    place = {int(item): at for at, item in enumerate(points)}
    frequent = sorted(contents.tags, key=lambda tag: (-len(contents.tags[tag]), tag))[:COLOURED_TAGS]
    colour = [-1] * len(points)
    for number, tag in enumerate(frequent):  # the rarest last: an item has the colour of its rarest
        for item in contents.tags[tag].tolist():
            if item in place:
                colour[place[item]] = number
    return {
        "titles": [_short(printable(_title(contents, int(item))), 80) for item in points],
        "tags": [printable(_short(tag, 40)) for tag in frequent],
        "colour": colour,
        "maps": {
            printable(name): {method: places.tolist() for method, places in each.maps.items()}
            for name, each in contents.columns.items()
        },
        "share": {printable(name): round(each.map_share, 3) for name, each in contents.columns.items()},
    }


def _title(contents: Contents, item: int) -> str:
    return _short(contents.title(item), TITLE_CHARACTERS)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _text(value: object) -> str:
    return html.escape(printable(value))

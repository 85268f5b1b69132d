"""Finished runs -> one leaderboard: leaderboard.csv, leaderboard.md and leaderboard.html.

A line is an experiment, its numbers are means over its seeds. The page is one file that asks the network for nothing:
the table is in its HTML, sorting and the charts are a short script over data in the page, so it can be mailed, kept
beside a paper, or opened from a Kaggle output.

Names and errors are strangers' text: `build` makes each one printable, and each format then keeps it from being more
than text: no formula in the CSV, no markup in the Markdown and the HTML.
"""

import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm_fibinet import files
from mm_fibinet.compare import csv_files, section
from mm_fibinet.compare.details import details
from mm_fibinet.compare.section import Section
from mm_fibinet.compare.text import html_text, html_words, markdown_text, without_nan
from mm_fibinet.errors import printable
from mm_fibinet.significance import P_FLOOR, Comparison, Pairs

KINDS = ("csv", "md", "html")
TEMPLATE = Path(__file__).with_name("leaderboard_template.html")
SCRIPTS = [Path(__file__).with_name(f"leaderboard_{name}.js") for name in ("compare", "fit", "studies")]


class Tuned(NamedTuple):
    """What finding an experiment's settings has cost.

    Attributes:
        trials: how many ended.
        seconds: of one core, or of the clock on a GPU, all trials together.
    """

    trials: int
    seconds: float


class Outcome(NamedTuple):
    """How one run ended.

    Attributes:
        expid, seed: what was run.
        result: its result.json, a dictionary; None when it failed.
        scores: its validation rows, a polars DataFrame of label, score and user_id; None when it failed.
        error: why it failed, None when it did not.
        tuned: what its settings have cost, None where they were not tuned.
        manifest: what it was made of, a dictionary; None when that is not known.
    """

    expid: str
    seed: int
    result: Any
    scores: Any
    error: str | None
    tuned: Tuned | None = None
    manifest: Any = None


class Column(NamedTuple):
    """A column of the leaderboard.

    Attributes:
        key: its name in leaderboard.csv.
        title: its heading.
        meaning: the heading's tooltip.
        shown: how a value is written, a format string or a function.
    """

    key: str
    title: str
    meaning: str
    shown: str | Callable[[Any], str] = "{}"


@dataclass
class Board:
    """A leaderboard.

    Attributes:
        baseline: the experiment the others are compared to.
        rows: one dictionary an experiment with a result, by falling AUC; keys of COLUMNS, None = not known.
        failed: the runs without a result.
        curves: {expid: one list a seed of {"epoch", "seconds", "AUC"}}.
        facts: "name: value" pairs above the table.
        pairs: {expid: {other expid: the first against the second}}, of those that have the same validation rows.
        details: {expid: settings and manifest of its first run}.
        sections: what studies of these runs say.
    """

    baseline: str
    rows: list[dict]
    failed: list[Outcome]
    curves: dict[str, list[list[dict]]]
    facts: dict[str, str]
    pairs: dict[str, dict[str, Comparison]] = field(default_factory=dict)
    details: dict[str, dict] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _p_users(value: float) -> str:
    """The bootstrap's, of which nothing below its floor is known."""
    return f"<= {P_FLOOR:.3f}" if value <= P_FLOOR * (1 + 1e-9) else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


COLUMNS = (
    Column("expid", "Experiment", "Experiment ID of the config"),
    Column("auc", "AUC", "Area under the ROC curve over all validation rows, mean over the seeds", "{:.4f}"),
    Column("auc_std", "± seeds", "Standard deviation of the AUC over the seeds: the luck of training", "{:.4f}"),
    Column("difference", "Δ AUC", "AUC minus the baseline's; ▲ ▼ = the interval of users excludes 0", "{:+.4f}"),
    Column("low", "95 % interval", "95 % interval of Δ AUC, bootstrap over users; sorted by its lower end", "{:+.4f}"),
    Column("high", "", "", "{:+.4f}"),
    Column("p_delong", "p DeLong", "Two-sided p-value of Δ AUC by DeLong's test; takes rows as independent", _p_value),
    Column(
        "p_bootstrap",
        "p users",
        f"Two-sided p-value of Δ AUC, bootstrap over users with their rows; {P_FLOOR:.3f} at least",
        _p_users,
    ),
    Column("gauc", "gAUC", "AUC within each user's rows, averaged by their number of rows", "{:.4f}"),
    Column("logloss", "logloss", "Mean negative log-likelihood of the clicks, lower is better", "{:.4f}"),
    Column("auc_warm", "AUC warm", "AUC over rows whose item is a target in train", "{:.4f}"),
    Column("auc_cold", "AUC cold", "AUC over rows whose item is never a target in train", "{:.4f}"),
    Column("parameters", "Parameters", "Trainable parameters, embedding tables included", "{:,}"),
    Column("rows_per_second", "Rows/s", "Rows trained on per second, without evaluations", "{:,.0f}"),
    Column("peak_memory_mb", "Memory, MiB", "Peak main memory of the process", "{:,.0f}"),
    Column("peak_gpu_memory_mb", "GPU memory, MiB", "Peak GPU memory of its tensors", "{:,.0f}"),
    Column(
        "seconds_to_best", "Time to best", "Training time until the best evaluation, without evaluations", _duration
    ),
    Column("train_seconds", "Training", "Training time of a run, without evaluations", _duration),
    Column("trials", "Trials", "Runs that its settings were chosen by, on the validation rows"),
    Column(
        "tuning_seconds", "Tuning", "Time of all trials: seconds of one core each, or of the clock on a GPU", _duration
    ),
    Column("runs", "Runs", "Finished runs, one a seed"),
    Column("dataset", "Data set", "dataset_id of the config"),
)


def build(outcomes: list[Outcome], baseline: str) -> Board:
    """The leaderboard of these runs.

    Args:
        outcomes: all runs.
        baseline: an expid; without a finished run of it nothing is compared.
    """
    outcomes = [_with_printable_texts(outcome) for outcome in outcomes]
    baseline = printable(baseline)
    finished: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result:
            finished.setdefault(outcome.expid, []).append(outcome)
    pairs = _pairs(finished)
    rows = [_row(expid, runs, pairs.get(expid, {}).get(baseline)) for expid, runs in finished.items()]
    rows.sort(key=lambda row: -row["auc"])
    curves = {expid: [run.result["curve"] for run in runs] for expid, runs in finished.items()}
    failed = [outcome for outcome in outcomes if not outcome.result]
    made = {expid: details(runs[0].manifest) for expid, runs in finished.items() if runs[0].manifest}
    return Board(baseline, rows, failed, curves, _facts(outcomes, finished, baseline), pairs, made)


def write(board: Board, folder: Path) -> dict[str, Path]:
    """Write leaderboard.csv, .md and .html, each whole or not at all.

    Returns:
        {what: path}.
    """
    paths = {kind: folder / f"leaderboard.{kind}" for kind in KINDS}
    csv_files.write_csv(paths["csv"], as_csv(board))
    for study in board.sections:
        paths[study.name] = folder / study.file
        csv_files.write_csv(paths[study.name], section.section_csv(study))
    files.write_text(paths["md"], as_markdown(board))
    files.write_text(paths["html"], as_html(board))
    return paths


def as_csv(board: Board) -> str:
    """Every figure, and the failed runs."""
    failed = [{"expid": run.expid, "seed": run.seed, "error": run.error} for run in board.failed]
    return csv_files.as_csv([column.key for column in COLUMNS] + ["seed", "error"], [*board.rows, *failed])


def as_markdown(board: Board) -> str:
    """The facts, a table, the failed runs, and the studies."""
    columns = _columns(board)
    facts = " · ".join(f"{name}: {markdown_text(value)}" for name, value in board.facts.items())
    lines = ["# Leaderboard", "", facts, ""]
    lines.append("| " + " | ".join(column.title for column in columns) + " |")
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    for row in board.rows:
        lines.append("| " + " | ".join(markdown_text(_shown(column, row)) for column in columns) + " |")
    if board.failed:
        lines += ["", "Failed runs:", ""]
        lines += [f"- {markdown_text(run.expid)}, seed {run.seed}: {markdown_text(run.error)}" for run in board.failed]
    if any(row["p_delong"] is not None for row in board.rows):
        lines += [
            "",
            f"Δ AUC, its interval and the p-values are against {markdown_text(board.baseline)}, see significance.py.",
        ]
    lines += [line for study in board.sections for line in section.as_markdown(study)]
    return "\n".join(lines) + "\n"


def as_text(board: Board) -> str:
    """A narrow table for the terminal."""
    width = max([len(row["expid"]) for row in board.rows] + [len(run.expid) for run in board.failed], default=0)
    keys = ("auc", "auc_std", "difference", "gauc", "logloss", "rows_per_second", "seconds_to_best")
    columns = [column for column in _columns(board) if column.key in keys]
    lines = [" " * width + "".join(f"{column.title:>14}" for column in columns)]
    for row in board.rows:
        lines.append(row["expid"].ljust(width) + "".join(f"{_shown(column, row):>14}" for column in columns))
    lines += [f"{run.expid.ljust(width)}  failed, seed {run.seed}: {run.error}" for run in board.failed]
    return "\n".join([*lines, *map(section.as_text, board.sections)])


def as_html(board: Board) -> str:
    """The page."""
    columns = _columns(board)
    data = {
        "baseline": board.baseline,
        "rows": [{key: value for key, value in row.items() if key != "dataset"} for row in board.rows],
        "curves": board.curves,
        "pairs": {expid: _pairs_data(others) for expid, others in board.pairs.items()},
        "p_floor": P_FLOOR,
        "details": board.details,
        "studies": {study.name: section.data(study) for study in board.sections},
    }
    parts = {
        "facts": "".join(f"<div><dt>{html_text(k)}</dt><dd>{html_words(v)}</dd></div>" for k, v in board.facts.items()),
        "head": "".join(_head(column) for column in columns),
        "body": "".join(_body_row(board, columns, row) for row in board.rows),
        "failed": "".join(_failed_row(len(columns), run) for run in board.failed),
        "csv": section.download_link("leaderboard.csv", as_csv(board)),
        "studies": "".join(map(section.as_html, board.sections)),
        "scripts": "".join(script.read_text(encoding="utf-8") for script in SCRIPTS),
        "data": json.dumps(without_nan(data)).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], TEMPLATE.read_text(encoding="utf-8"))


def _pairs(finished: dict[str, list[Outcome]]) -> dict[str, dict[str, Comparison]]:
    """Each experiment against each other one that was judged on the same validation rows."""
    alike: list[dict[str, list[Outcome]]] = []  # groups of experiments with the same rows
    for expid, runs in finished.items():
        if all(_same_rows(run, runs[0]) for run in runs):
            group = next((group for group in alike if _same_rows(next(iter(group.values()))[0], runs[0])), None)
            if group is None:
                alike.append(group := {})
            group[expid] = runs
    compared: dict[str, dict[str, Comparison]] = {}
    for group in alike:
        first = next(iter(group.values()))[0].scores
        scores = {expid: np.stack([run.scores["score"].to_numpy() for run in runs]) for expid, runs in group.items()}
        if len(scores) > 1:
            pairs = Pairs(first["label"].to_numpy(), first["user_id"].to_numpy(), scores)
            for expid in scores:
                compared[expid] = {other: pairs.compare(expid, other) for other in scores if other != expid}
    return compared


def _pairs_data(others: dict[str, Comparison]) -> dict[str, list[float]]:
    """[Δ, low, high, p DeLong, p users] against each other experiment, six digits each."""
    return {
        other: [float(f"{value:.6g}") for value in (one.difference, one.low, one.high, one.p_delong, one.p_bootstrap)]
        for other, one in others.items()
    }


def _same_rows(run: Outcome, other: Outcome) -> bool:
    return run.scores.select("label", "user_id").equals(other.scores.select("label", "user_id"))


def _row(expid: str, runs: list[Outcome], compared: Comparison | None) -> dict:
    results = [run.result for run in runs]
    aucs = [result["metrics"]["AUC"] for result in results]

    def mean(*keys: str) -> float | None:
        values = results
        for key in keys:
            values = [value[key] for value in values]
        return None if any(value is None for value in values) else statistics.fmean(values)

    return {
        "expid": expid,
        "dataset": results[0]["dataset_id"],
        "auc": statistics.fmean(aucs),
        "auc_std": statistics.stdev(aucs) if len(aucs) > 1 else None,
        **(compared._asdict() if compared else dict.fromkeys(Comparison._fields)),
        "gauc": mean("metrics", "gAUC"),
        "logloss": mean("metrics", "logloss"),
        "auc_warm": mean("warm", "AUC") if results[0]["cold"]["rows"] else None,
        "auc_cold": mean("cold", "AUC"),
        "parameters": results[0]["parameters"],
        "rows_per_second": mean("rows_per_second"),
        "peak_memory_mb": max(result["peak_memory_mb"] for result in results),
        "peak_gpu_memory_mb": max(result["peak_gpu_memory_mb"] for result in results) or None,
        "seconds_to_best": mean("seconds_to_best"),
        "train_seconds": mean("train_seconds"),
        "trials": runs[0].tuned.trials if runs[0].tuned else None,
        "tuning_seconds": runs[0].tuned.seconds if runs[0].tuned else None,
        "runs": len(runs),
    }


def _facts(outcomes: list[Outcome], finished: dict[str, list[Outcome]], baseline: str) -> dict[str, str]:
    """What the numbers stand on."""
    runs = [run for group in finished.values() for run in group]
    facts = {}
    if runs:
        facts["Data"] = ", ".join(dict.fromkeys(run.result["dataset_id"] for run in runs))
        facts["Validation rows"] = ", ".join(dict.fromkeys(_judged_rows(run.result) for run in runs))
        facts["Device"] = ", ".join(dict.fromkeys(_device(run.result) for run in runs))
        versions = dict.fromkeys(_versions(run.manifest) for run in runs if run.manifest)
        if len(versions) > 1:  # a finished run is not repeated for a new version
            facts["Versions"] = "; ".join(versions)
    facts["Seeds"] = ", ".join(map(str, dict.fromkeys(outcome.seed for outcome in outcomes)))
    facts["Runs"] = f"{len(runs)} finished, {len(outcomes) - len(runs)} failed"
    facts["Baseline"] = baseline if baseline in finished else f"{baseline} (no finished run)"
    facts["Written"] = datetime.now().strftime("%Y-%m-%d %H:%M")
    return facts


def _judged_rows(result: dict) -> str:
    rows, cold = result["warm"]["rows"] + result["cold"]["rows"], result["cold"]["rows"]
    return f"{rows:,} ({100 * cold / rows:.0f} % cold)"


def _versions(manifest: dict) -> str:
    """Those of a run that its figures may depend on."""
    found = manifest.get("versions", {})
    return ", ".join(f"{name} {printable(found.get(name, 'unknown'))}" for name in ("mm-fibinet", "torch"))


def _device(result: dict) -> str:
    threads = result["threads"]
    return f"CPU, {threads} thread{'s' * (threads > 1)} a run" if result["device"] == "CPU" else result["device"]


def _columns(board: Board) -> list[Column]:
    """The columns that have a value; the data set only where there are several, `high` with `low`."""
    hidden = {"high"} if len({row["dataset"] for row in board.rows}) > 1 else {"high", "dataset"}
    filled = {key for row in board.rows for key, value in row.items() if value is not None} | {"expid"}
    return [column for column in COLUMNS if column.key in filled - hidden]


def _shown(column: Column, row: dict) -> str:
    value = row[column.key]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    text = column.shown(value) if callable(column.shown) else column.shown.format(value)
    if column.key == "low":
        text += f" to {row['high']:+.4f}"
    if column.key == "difference" and row["low"] is not None:
        text += " ▲" if row["low"] > 0 else " ▼" if row["high"] < 0 else ""
    return text


def _with_printable_texts(outcome: Outcome) -> Outcome:
    result = outcome.result
    if result:
        result = {**result, "dataset_id": printable(result["dataset_id"]), "device": printable(result["device"])}
    error = None if outcome.error is None else printable(outcome.error)
    return outcome._replace(expid=printable(outcome.expid), result=result, error=error)


def _head(column: Column) -> str:
    return (
        f'<th scope="col" data-key="{column.key}" aria-sort="{"descending" if column.key == "auc" else "none"}">'
        f'<button type="button" data-tip="{html_text(column.meaning)}">{html_text(column.title)}</button></th>'
    )


def _body_row(board: Board, columns: list[Column], row: dict) -> str:
    cells = []
    for column in columns:
        value = "" if row[column.key] is None else html_text(row[column.key])
        shown = html_text(_shown(column, row))
        if column.key == "expid":
            mark = ' <span class="tag">baseline</span>' if row["expid"] == board.baseline else ""
            cells.append(f'<th scope="row" data-sort="{value}">{html_words(row["expid"])}{mark}</th>')
        else:
            cells.append(f'<td data-sort="{value}">{shown}</td>')
    return f'<tr data-expid="{html_text(row["expid"])}">{"".join(cells)}</tr>\n'


def _failed_row(width: int, run: Outcome) -> str:
    return (
        f'<tr><th scope="row">{html_words(run.expid)}</th><td colspan="{width - 1}">'
        f"<div><strong>failed</strong>, seed {run.seed}: {html_text(run.error)}</div></td></tr>\n"
    )

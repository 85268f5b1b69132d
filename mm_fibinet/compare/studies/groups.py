"""Studies of groups of rows: AUC by how often the target was trained on, and by how long the history is.

They score nothing anew: the runs have kept their validation rows' scores, and the files say which rows a group has.
Groups do not overlap, and together they are all rows; an AUC within a group compares its own clicks with its own other
rows, so the AUC over all rows is no average of them.
"""

import math

import numpy as np

from mm_fibinet import schema
from mm_fibinet.compare.section import Figure, Point, Section
from mm_fibinet.compare.studies.bench import Bench
from mm_fibinet.errors import UserError
from mm_fibinet.parquet_reader import list_values, open_parquet, read_column, read_slices
from mm_fibinet.run_result import MIN_ROWS
from mm_fibinet.significance import Interval, mean_auc_intervals
from mm_fibinet.user_info import HISTORY_END, USER_ID, user_slices

# Groups by their smallest value; each ends before the next.
COUNTS = (0, 1, 4, 11)
LENGTHS = (0, 1, 5, 16, 64)


def require_targets(params: dict, study: str) -> None:
    """Refuse data whose rows have no item_id: `params` of `load_params`."""
    _require_column(params, schema.ITEM_ID, study)


def require_histories(params: dict, study: str) -> None:
    """Refuse data without histories: `params` of `load_params`."""
    if not params.get("user_info"):
        _require_column(params, schema.ITEM_SEQ, study)


def cold(bench: Bench) -> Section:
    """AUC by the number of training rows that the row's item is the target of."""
    counts = target_counts(bench.params["train_data"], bench.params["valid_data"])
    note = (
        "Rows by how many training rows have their item as the target; 0 is a cold item, which may occur in histories. "
        "AUC within the group, mean over the seeds, with its 95 % interval (bootstrap over users)."
    )
    return _section(bench, "cold", "AUC by training count of the item", "rows of train", note, counts, COUNTS)


def history(bench: Bench) -> Section:
    """AUC by the number of items in the row's history."""
    lengths = history_lengths(bench.params["valid_data"], bench.params.get("user_info"))
    note = (
        "Rows by how many items their history has in the file, whatever part of it a model reads (max_len). AUC within "
        "the group, mean over the seeds, with its 95 % interval (bootstrap over users)."
    )
    return _section(bench, "history", "AUC by length of the history", "items in the history", note, lengths, LENGTHS)


def target_counts(train: str, valid: str) -> np.ndarray:
    """How many training rows have the item of each validation row as their target: int64 [N]."""
    items, counts = np.unique(read_column(train, schema.ITEM_ID), return_counts=True)
    targets = read_column(valid, schema.ITEM_ID)
    at = np.minimum(np.searchsorted(items, targets), len(items) - 1)
    return np.where(items[at] == targets, counts[at], 0)


def history_lengths(valid: str, user_info: str | None) -> np.ndarray:
    """How many items each validation row's history has: int64 [N].

    Args:
        valid: the split.
        user_info: the file of the users' histories, where rows have none of their own.
    """
    if not user_info:
        parts = [
            _real_items(*list_values(arrays[schema.ITEM_SEQ], valid, schema.ITEM_SEQ, first))
            for first, arrays in read_slices(valid, [schema.ITEM_SEQ])
        ]
        return np.concatenate(parts)
    if HISTORY_END in open_parquet(valid).schema_arrow.names:
        return read_column(valid, HISTORY_END)
    lengths = np.concatenate([users.lengths for users in user_slices(user_info, {}, None)])
    return lengths[read_column(valid, USER_ID)]


def group_names(starts: tuple[int, ...]) -> list[str]:
    """What the groups are called: 0, 1-3, 4-10 and 11+ of (0, 1, 4, 11)."""
    last = [start - 1 for start in starts[1:]]
    names = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, last, strict=False)]
    return [*names, f"{starts[-1]}+"]


def _section(
    bench: Bench, study: str, title: str, unit: str, note: str, values: np.ndarray, starts: tuple[int, ...]
) -> Section:
    """The AUCs of the groups that `values`, integer [N], fall into."""
    scored = bench.scored()
    names, of_row = group_names(starts), np.searchsorted(starts, values, side="right") - 1
    groups = {name: of_row == at for at, name in enumerate(names) if (of_row == at).any()}
    found = {name: _aucs(scored.label, scored.user, scored.scores, rows) for name, rows in groups.items()}
    records = [
        {
            "expid": expid,
            "group": f"{name} {unit}",  # a unit, so that no spreadsheet reads 1-3 as a date
            "rows": int(rows.sum()),
            "clicks": int(scored.label[rows].sum()),
            **found[name][expid]._asdict(),
        }
        for expid in scored.scores
        for name, rows in groups.items()
    ]
    table = [["rows, of these clicks", *(f"{rows.sum():,}, {scored.label[rows].sum():,}" for rows in groups.values())]]
    table += [[expid, *(_shown(found[name][expid]) for name in groups)] for expid in scored.scores]
    points: dict[str, list[Point]] = {
        expid: [(at, *found[name][expid]) for at, name in enumerate(groups) if not math.isnan(found[name][expid].auc)]
        for expid in scored.scores
    }
    figure = Figure(unit, "AUC", {"": points}, list(enumerate(groups)))
    return Section(study, title, note, [unit.capitalize(), *groups], table, records, figure)


def _aucs(label: np.ndarray, user: np.ndarray, scores: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Interval]:
    """{experiment: AUC over some rows, with its interval}; NaN where a label has fewer than MIN_ROWS of them."""
    clicks = int(label[rows].sum())
    if min(clicks, int(rows.sum()) - clicks) < MIN_ROWS:
        return dict.fromkeys(scores, Interval(math.nan, math.nan, math.nan))
    return mean_auc_intervals(label[rows], user[rows], {expid: own[:, rows] for expid, own in scores.items()})


def _real_items(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many of each list's values are items, not padding: [T] and [n] to int64 [n]."""
    ends = np.cumsum(lengths)
    real = np.concatenate([[0], np.cumsum(values != 0)])
    return real[ends] - real[ends - lengths]


def _shown(interval: Interval) -> str:
    return "-" if math.isnan(interval.auc) else f"{interval.auc:.4f} ({interval.low:.4f}-{interval.high:.4f})"


def _require_column(params: dict, column: str, study: str) -> None:
    valid = params["valid_data"]
    names = open_parquet(valid).schema_arrow.names
    if column not in names:
        raise UserError(f"--study {study}: {valid} has no column {column}, found {', '.join(names)}")

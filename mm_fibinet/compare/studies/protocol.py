"""Study of the protocol: which gaps between models are still there on another split, with fewer inputs?

MMCTR-Bench (github.com/hdu-yzl/MMCTR-Bench, split protocol deterministic-random-80-10-10-v1) shuffles the rows of the
training file with seed 42 into 80, 10 and 10 %, and gives models the last five history items and the items' vectors,
but neither levels nor tags. Each row keeps its history, so a user's later clicks are in train, and nearly every item is
warm. The rows here are the very ones that it would draw from the same file.
"""

import itertools
import json
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.compare.jobs import Job
from mm_fibinet.compare.section import Figure, Point, Section
from mm_fibinet.compare.studies.bench import Bench, Scored, failures, has_auc, scored, set_path
from mm_fibinet.compare.studies.retraining import Variant
from mm_fibinet.compare.studies.rows import num_rows, write_rows
from mm_fibinet.errors import UserError, printable
from mm_fibinet.settings_rules import active_columns
from mm_fibinet.significance import Comparison, Interval, Pairs

SEED, MAX_LEN = 42, 5
NOT_USED = (*schema.LEVELS, "item_tags")
PARTS = ("train", "valid", "test")
NAME = "protocol"
OURS, THEIRS = "split of the data set", "random 80/10/10"


def require_histories(params: dict, study: str) -> None:
    """Refuse data without items and histories, to which this protocol does not apply: `params` of `load_params`."""
    if not params.get("item_info"):
        raise UserError(
            f"--study {study}: data set {params['dataset_id']} has no item_info; it is of items and histories"
        )


def protocol(bench: Bench) -> Section:
    """The same experiments by MMCTR-Bench's protocol: their AUCs, their order, and what becomes of each gap."""
    split = write_split(bench.params["train_data"], bench.folder(NAME))
    runs = bench.retrained(NAME, lambda base: {NAME: changes(base.params, split)})
    ours, gaps = _compared(bench.scored(), bench.baseline)
    theirs, other_gaps = _compared(_scored_there(bench, runs), bench.baseline)

    records, table = [], []
    for expid, interval in ours.items():
        other, gap, other_gap = theirs.get(expid), gaps.get(expid), other_gaps.get(expid)
        record = {"expid": expid, "auc": interval.auc, "auc_protocol": other.auc if other else None}
        for suffix, one in {"": gap, "_protocol": other_gap}.items():
            record |= {f"{key}{suffix}": getattr(one, key, None) for key in ("difference", "low", "high")}
        records.append({**record, "gap": fate(gap, other_gap)})
        auc = f"{other.auc:.4f}" if other else "-"
        table.append([expid, f"{interval.auc:.4f}", auc, _shown(gap), _shown(other_gap), fate(gap, other_gap) or "-"])
    headings = ["Experiment", f"AUC, {OURS}", f"AUC, {THEIRS}", f"Δ, {OURS}", f"Δ, {THEIRS}", "gap"]
    points: dict[str, list[Point]] = {
        expid: [(at, *found[expid]) for at, found in enumerate((ours, theirs)) if expid in found] for expid in ours
    }
    figure = Figure("", "AUC", {"": points}, [(0, OURS), (1, THEIRS)])
    same, pairs = _same_order(ours, theirs)
    note = (
        "MMCTR-Bench's protocol: the training file shuffled with seed 42 into 80, 10 and 10 %, five history items, no "
        "levels, no tags. Trained anew; its second part is the validation split that a run stops by and is judged on, "
        f"as here, and its third is kept out. Δ is against {printable(bench.baseline)}, with its 95 % interval "
        f"(bootstrap over users). {same} of {pairs} pairs of experiments are in the same order by both."
    )
    return Section(NAME, "Another protocol", note, headings, table, records, figure, failures(runs))


def write_split(train: str, folder: Path) -> dict[str, Path]:
    """Write the parts of a training file: {train, valid, test: path}."""
    rows = num_rows(train)
    ends = [0, int(rows * 0.8), int(rows * 0.9), rows]
    part_of_row = np.repeat(np.arange(len(PARTS)), np.diff(ends))
    np.random.RandomState(SEED).shuffle(part_of_row)
    return {name: write_rows(train, part_of_row == at, folder / f"{name}.parquet") for at, name in enumerate(PARTS)}


def changes(params: dict, split: dict[str, Path]) -> list[str]:
    """What --set says for an experiment by this protocol: `params` of `load_params`."""
    columns = active_columns(params, "feature_cols")
    used = [name for name in params.get("use_features") or columns if name not in NOT_USED]
    return [
        *(set_path(f"{name}_data", path) for name, path in split.items()),
        f"max_len={MAX_LEN}",
        f"use_features={json.dumps(used, ensure_ascii=False)}",
        "history_levels=False",
    ]


def fate(here: Comparison | None, there: Comparison | None) -> str:
    """What becomes of a gap; a gap is there where its interval excludes 0."""
    if here is None or there is None:
        return ""
    signs = [int(one.low > 0) - int(one.high < 0) for one in (here, there)]
    if signs == [0, 0]:
        return "none in both"
    if 0 in signs:
        return "vanishes" if signs[0] else "appears"
    return "survives" if signs[0] == signs[1] else "is reversed"


def _scored_there(bench: Bench, runs: list[Variant]) -> Scored | None:
    """The scores of the runs by the protocol, by the experiments' names; None when none has finished."""
    done: dict[str, list[Job]] = {}
    for expid, bases in bench.finished().items():
        own = [one.job for one in runs if one.base in bases and has_auc(one.job)]
        if own:
            done[expid] = own
    return scored(done) if done else None


def _compared(scores: Scored | None, baseline: str) -> tuple[dict[str, Interval], dict[str, Comparison]]:
    """(each experiment's AUC, each against the baseline); nothing of runs or of a baseline that there are not."""
    if scores is None:
        return {}, {}
    pairs, baseline = Pairs(scores.label, scores.user, scores.scores), printable(baseline)
    others = [expid for expid in scores.scores if expid != baseline] if baseline in scores.scores else []
    return (
        {expid: pairs.interval(expid) for expid in scores.scores},
        {expid: pairs.compare(expid, baseline) for expid in others},
    )


def _same_order(ours: dict, theirs: dict) -> tuple[int, int]:
    """(pairs of experiments that both put in the same order, all pairs that both have)."""
    pairs = list(itertools.combinations([expid for expid in ours if expid in theirs], 2))
    signs = [(ours[a].auc - ours[b].auc) * (theirs[a].auc - theirs[b].auc) for a, b in pairs]
    return sum(sign > 0 for sign in signs), len(pairs)


def _shown(gap: Comparison | None) -> str:
    return "-" if gap is None else f"{gap.difference:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"

"""Study of the amount of data: AUC against the number of training rows.

Rows are drawn at random, and those of a smaller share are among those of a larger one. Histories in the rows stay as
they are, so with fewer rows there is less to learn from, not less to know of a user.
"""

import statistics

import numpy as np

from mm_fibinet.compare.section import Figure, Point, Section
from mm_fibinet.compare.studies.bench import Bench, auc_of, failures, has_auc, set_path
from mm_fibinet.compare.studies.rows import num_rows, write_rows

SHARES = (0.125, 0.25, 0.5)  # of the training rows, beside all of them
SEED = 2025
NOTE = (
    "Every experiment trained anew on a share of the training rows, the same for all, and judged on all validation "
    "rows; histories stay whole, settings as they are, so an epoch has fewer steps. Means over the seeds."
)


def scale(bench: Bench) -> Section:
    """AUC on the validation rows after training on shares of the training rows."""
    train = bench.params["train_data"]
    total = num_rows(train)
    order = np.random.default_rng(SEED).permutation(total)
    changes, rows = {}, {}
    for share in SHARES:
        kept = np.zeros(total, dtype=bool)
        kept[order[: max(round(share * total), 1)]] = True
        name = f"train_{share}"
        changes[name] = [set_path("train_data", write_rows(train, kept, bench.folder("scale") / f"{name}.parquet"))]
        rows[name] = int(kept.sum())
    runs = bench.retrained("scale", lambda base: changes)

    records: list[dict] = []
    table, points = [], {}
    for expid, bases in bench.finished().items():
        aucs = {
            rows[name]: [auc_of(one.job) for one in runs if one.base in bases and one.name == name and has_auc(one.job)]
            for name in changes
        }
        aucs[total] = [auc_of(base) for base in bases]
        means = {count: statistics.fmean(values) for count, values in aucs.items() if values}
        records += [
            {"expid": expid, "rows": count, "auc": value, "runs": len(aucs[count])} for count, value in means.items()
        ]
        table.append([expid, *(f"{means[count]:.4f}" if count in means else "-" for count in aucs)])
        line: list[Point] = [(count, value, None, None) for count, value in means.items()]
        points[expid] = line
    headings = ["Rows of train", *(f"{count:,}" for count in [*rows.values(), total])]
    figure = Figure("rows of train", "AUC", {"": points}, log=True)
    return Section("scale", "AUC against rows of train", NOTE, headings, table, records, figure, failures(runs))

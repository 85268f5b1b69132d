"""Study of probabilities: are the clicks as many as the scores say?

Rows are put into ten bins at the deciles of the score, equal scores together. A bin's mean score beside its share of
clicks is a point of the reliability curve; the expected calibration error is the mean distance of the two, weighted by
rows (Naeini, Cooper, Hauskrecht, AAAI 2015, with bins of equal numbers of rows).
"""

import numpy as np

from mm_fibinet.compare.section import Figure, Section
from mm_fibinet.compare.studies.bench import Bench
from mm_fibinet.metrics import logloss

BINS = 10
NOTE = (
    "Rows in ten bins at the deciles of the score: the mean score of a bin, and the share of clicks that it has; on "
    "the dashed line both are equal. ECE is their mean distance, weighted by rows, and the mean over the seeds. A "
    "ranking may be good and its probabilities be off: AUC sees the order alone."
)


def binned(label: np.ndarray, score: np.ndarray, bins: int = BINS) -> np.ndarray:
    """What is in the bins at the quantiles of the score.

    Args:
        label: [N], 0 or 1.
        score: float [N], probabilities.
        bins: how many; one that equal scores leave empty has zeros.

    Returns:
        float64 [3, bins]: number of rows, sum of scores, sum of labels.
    """
    edges = np.quantile(score, np.arange(1, bins) / bins)
    bin_of_row = np.searchsorted(edges, score)
    return np.stack([np.bincount(bin_of_row, weights, bins) for weights in (np.ones(len(score)), score, label)])


def calibration_error(sums: np.ndarray) -> float:
    """The expected calibration error of bins: `sums` of `binned`."""
    rows, scores, clicks = sums
    return float(np.abs(scores - clicks).sum() / rows.sum())


def calibration(bench: Bench) -> Section:
    """Reliability curve and expected calibration error of each experiment."""
    scored = bench.scored()
    records, table, curves = [], [], {}
    for expid, seeds in scored.scores.items():
        each = [binned(scored.label, score) for score in seeds]
        error = float(np.mean([calibration_error(sums) for sums in each]))
        losses = np.mean([logloss(scored.label, score) for score in seeds])
        table.append([expid, *(f"{value:.4f}" for value in (error, seeds.mean(), scored.label.mean(), losses))])
        rows, scores, clicks = np.sum(each, axis=0)
        curves[expid] = []
        for at in np.flatnonzero(rows):
            point = float(scores[at] / rows[at]), float(clicks[at] / rows[at])
            curves[expid].append((*point, None, None))
            size = float(rows[at] / len(seeds))
            records.append(
                {"expid": expid, "ece": error, "bin": int(at) + 1, "rows": size, "score": point[0], "clicks": point[1]}
            )
    headings = ["Experiment", "ECE", "mean score", "share of clicks", "logloss"]
    figure = Figure("mean score", "share of clicks", {"": curves}, diagonal=True)
    return Section("calibration", "Calibration", NOTE, headings, table, records, figure)

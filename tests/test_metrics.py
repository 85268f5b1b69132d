"""Metrics equal scikit-learn's and FuxiCTR's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuxictr.metrics import evaluate_metrics as fuxictr_metrics
from sklearn.metrics import log_loss, roc_auc_score

from mm_fibinet.errors import UserError
from mm_fibinet.metrics import METRICS, auc, evaluate_metrics, group_auc, logloss, undefined_metrics
from mm_fibinet.scoring import evaluate


def draw(rows: int, groups: int, decimals: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    y_true = (rng.random(rows) < 0.3).astype(float)
    y_pred = np.round(np.clip(rng.normal(0.4 + 0.2 * y_true, 0.2), 0, 1), decimals)
    return y_true, y_pred, rng.integers(0, groups, rows)


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_auc_and_logloss_equal_scikit_learn(decimals):
    y_true, y_pred, _ = draw(5000, 1, decimals)
    assert auc(y_true, y_pred) == pytest.approx(roc_auc_score(y_true, y_pred), abs=1e-12)
    assert logloss(y_true, y_pred) == pytest.approx(log_loss(y_true, y_pred), rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 12])
def test_gauc_equals_fuxictr(decimals):
    y_true, y_pred, group = draw(3000, 200, decimals)
    expected = fuxictr_metrics(y_true, y_pred, ["AUC", "logloss", "gAUC"], group)
    assert evaluate_metrics(y_true, y_pred, ["AUC", "logloss", "gAUC"], group) == pytest.approx(expected, abs=1e-9)


class Scored(torch.nn.Module):
    """Gives the scores that are in its batches."""

    device = torch.device("cpu")
    feature_map = SimpleNamespace(group_id="user")

    def forward(self, batch):
        return {"y_pred": batch["score"]}

    def get_labels(self, batch):
        return batch["label"]

    def get_group_id(self, batch):
        return batch["user"]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 3000])
def test_gauc_is_of_whole_users_wherever_batches_end(batch_size):
    """Code that computes it by batches, MUSE's say, has two users where a batch ends within one."""
    y_true, y_pred, group = draw(3000, 200, 12)
    order = np.argsort(group, kind="stable")  # as Taobao-MM's rows are, by users
    y_true, y_pred, group = y_true[order], y_pred[order], group[order]
    columns = {"label": y_true, "score": y_pred, "user": group}
    batches = [
        {name: torch.from_numpy(values[first : first + batch_size]) for name, values in columns.items()}
        for first in range(0, 3000, batch_size)
    ]
    users = {user: (y_true[group == user], y_pred[group == user]) for user in np.unique(group)}
    both = {user: rows for user, rows in users.items() if 0 < rows[0].mean() < 1}
    aucs, sizes = zip(*((roc_auc_score(*rows), len(rows[0])) for rows in both.values()), strict=True)
    exact = np.average(aucs, weights=sizes)
    assert evaluate(Scored(), batches, ["gAUC"])["gAUC"] == pytest.approx(exact, abs=1e-12)
    cut = group + 1000 * (np.arange(3000) // batch_size)
    assert batch_size in (1, 3000) or abs(group_auc(y_true, y_pred, cut) - exact) > 1e-4


def test_gauc_leaves_out_groups_of_one_label():
    y_true, y_pred = np.array([0, 1, 1, 1, 0, 0]), np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.7])
    group = np.array([1, 1, 2, 2, 3, 3])
    assert group_auc(y_true, y_pred, group) == 1.0
    assert np.isnan(group_auc(y_true[2:4], y_pred[2:4], group[2:4]))


def test_auc_of_one_class_is_an_error():
    with pytest.raises(UserError, match="all 3 labels are the same"):
        auc(np.ones(3), np.array([0.1, 0.2, 0.3]))


def test_gauc_without_groups_and_unknown_metrics_are_errors():
    with pytest.raises(UserError, match="needs group_id"):
        evaluate_metrics(np.array([0, 1]), np.array([0.1, 0.2]), ["gAUC"])
    with pytest.raises(UserError, match="'F1' is unknown"):
        evaluate_metrics(np.array([0, 1]), np.array([0.1, 0.2]), ["F1"])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [0.1, np.nan, np.nan], r"2 of 3 scores are NaN, the first in row 1"),
        ([0, np.nan, 1], [0.1, 0.2, 0.3], r"label nan in row 1, expected 0 or 1"),
        ([0, 1, 2], [0.1, 0.2, 0.3], r"label 2 in row 2, expected 0 or 1"),
        ([0, 1, -1], [0.1, 0.2, 0.3], r"label -1 in row 2"),
        ([0, 1], [0.1, 0.2, 0.3], r"labels of shape \(2,\) and scores of shape \(3,\)"),
        ([0, 1], [[0.1], [0.2]], r"labels of shape \(2,\) and scores of shape \(2, 1\)"),
        ([], [], r"no labels and no scores"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_what_no_metric_can_be_of_is_refused(metric, labels, scores, message):
    with pytest.raises(UserError, match=message):
        evaluate_metrics(np.array(labels), np.array(scores), [metric], np.zeros(len(labels), dtype=int))


def test_group_ids_are_as_many_as_labels():
    with pytest.raises(UserError, match="got 3 group ids for 2 labels"):
        evaluate_metrics(np.array([0, 1]), np.array([0.1, 0.2]), ["gAUC"], np.zeros(3))


def test_what_labels_leave_undefined_is_refused_or_nan():
    y_true, y_pred, group = np.ones(4), np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 1, 2, 2])
    with pytest.raises(UserError, match=r"all 4 labels are the same.*; gAUC is not defined: none of the 2 groups"):
        evaluate_metrics(y_true, y_pred, list(METRICS), group)
    values = evaluate_metrics(y_true, y_pred, list(METRICS), group, allow_undefined=True)
    assert np.isnan(values["AUC"]) and np.isnan(values["gAUC"])
    assert values["logloss"] == pytest.approx(-np.mean(np.log(y_pred)))
    assert set(undefined_metrics(METRICS, y_true, group)) == {"AUC", "gAUC"}
    assert not undefined_metrics(METRICS, np.array([0, 1, 1, 1]), group)
    assert set(undefined_metrics(METRICS, np.array([0, 0, 1, 1]), group)) == {"gAUC"}

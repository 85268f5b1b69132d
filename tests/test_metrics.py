"""Metrics equal scikit-learn's and FuxiCTR's."""

import numpy as np
import pytest
from fuxictr.metrics import evaluate_metrics as fuxictr_metrics
from sklearn.metrics import log_loss, roc_auc_score

from mm_fibinet.errors import UserError
from mm_fibinet.metrics import auc, evaluate_metrics, group_auc, logloss


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

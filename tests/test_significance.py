"""DeLong's covariance equals its definition over all pairs; the bootstrap equals copying the users' rows."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mm_fibinet.errors import UserError
from mm_fibinet.significance import Pairs, auc_intervals, bootstrap_auc, delong, midranks

ROWS, USERS = 300, 40


@pytest.fixture
def drawn():
    """Labels [N], users [N] and scores [3, N], the last of them with many ties."""
    rng = np.random.default_rng(1)
    label = (rng.random(ROWS) < 0.3).astype(int)
    user = rng.integers(100, 100 + USERS, ROWS)
    scores = label * np.array([[1.0], [0.7], [0.4]]) + rng.normal(size=(3, ROWS)) + rng.normal(size=ROWS)
    scores[2] = np.round(scores[2])
    return label, user, scores


def pairwise_delong(label, scores):
    """DeLong et al. 1988, eq. 3-6, by looking at every pair."""
    v10, v01 = [], []
    for row in scores:
        positive, negative = row[label == 1][:, None], row[label == 0][None, :]
        wins = (positive > negative) + 0.5 * (positive == negative)
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
    v10, v01 = np.array(v10), np.array(v01)
    auc = v10.mean(1)
    m, n = v10.shape[1], v01.shape[1]
    s10 = (v10 - auc[:, None]) @ (v10 - auc[:, None]).T / (m - 1)
    s01 = (v01 - auc[:, None]) @ (v01 - auc[:, None]).T / (n - 1)
    return auc, s10 / m + s01 / n


def test_delong_equals_its_definition(drawn):
    label, _, scores = drawn
    auc, covariance = delong(label, scores)
    expected_auc, expected = pairwise_delong(label, scores)
    np.testing.assert_allclose(auc, expected_auc, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(auc, [roc_auc_score(label, row) for row in scores], rtol=1e-12)


def test_delong_of_one_model(drawn):
    label, _, scores = drawn
    auc, covariance = delong(label, scores[:1])
    assert auc.shape == (1,) and covariance.shape == (1, 1)
    assert covariance[0, 0] == pytest.approx(delong(label, scores)[1][0, 0])


def test_delong_needs_two_rows_of_each_label():
    with pytest.raises(UserError, match="found 1 of label 1 and 3 of label 0"):
        delong(np.array([1, 0, 0, 0]), np.arange(4.0))


def test_midranks():
    assert midranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_delong_is_calibrated():
    """Of two equally good models, 10 % of data sets call one better at the 10 % level."""
    rng = np.random.default_rng(0)
    called_better = 0
    for _ in range(1000):
        label = (rng.random(200) < 0.4).astype(int)
        scores = label + rng.normal(size=(2, 200)) + rng.normal(size=200)
        auc, covariance = delong(label, scores)
        z = (auc[0] - auc[1]) / np.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1]))
        called_better += abs(z) > 1.6449
    assert 70 < called_better < 130


def test_bootstrap_equals_copying_rows(drawn):
    label, user, scores = drawn
    found = bootstrap_auc(label, scores, user, resamples=5, seed=3)
    ids = np.unique(user)
    generator = np.random.default_rng(3)
    for row in found:
        rows = np.concatenate([np.flatnonzero(user == ids[i]) for i in generator.integers(0, len(ids), len(ids))])
        np.testing.assert_allclose(row, [roc_auc_score(label[rows], s[rows]) for s in scores], rtol=1e-12)


def test_bootstrap_of_single_row_users_agrees_with_delong(drawn):
    label, _, scores = drawn
    deviation = bootstrap_auc(label, scores, np.arange(ROWS), resamples=2000).std(axis=0)
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(delong(label, scores)[1])), rtol=0.1)


def test_comparison_of_equal_and_of_opposite_models(drawn):
    label, user, scores = drawn
    pairs = Pairs(label, user, {"a": scores[:1], "same": scores[:1], "worse": -scores[:1]})
    same, worse = pairs.compare("same", "a"), pairs.compare("worse", "a")
    assert same.difference == 0 and same.p_delong == 1 and same.p_bootstrap == 1 and same.low == same.high == 0
    assert worse.difference == pytest.approx(1 - 2 * roc_auc_score(label, scores[0]))
    assert worse.high < 0 and worse.p_delong < 1e-6 and worse.p_bootstrap < 0.01


@pytest.mark.parametrize("seeds", [2, 3, 5, 7])
def test_models_that_are_equal_at_every_seed_do_not_differ(drawn, seeds):
    """Means of thirds and fifths differ by rounding, and the variance of the difference is less than that."""
    label, user, _ = drawn
    scores = np.random.default_rng(seeds).random((seeds, ROWS))
    pairs = Pairs(label, user, {"a": scores, "same": scores, "shuffled": scores[::-1]})
    for other in ("same", "shuffled"):
        assert pairs.compare("a", other) == (0, 1, 0, 0, 1)
    twice = Pairs(label, user, {"three times": np.repeat(scores[:1], 3, axis=0), "once": scores[:1]})
    assert twice.compare("three times", "once") == (0, 1, 0, 0, 1)


def test_the_smallest_difference_is_no_rounding():
    """One pair of a thousand rows in another order, at one of ten seeds."""
    label, score = np.arange(2000) % 2, np.arange(2000.0)
    changed = score.copy()
    changed[[0, 1]] = changed[[1, 0]]
    pairs = Pairs(label, np.arange(2000) // 20, {"a": np.tile(score, (10, 1)), "b": np.array([changed] + [score] * 9)})
    assert pairs.compare("a", "b").difference == pytest.approx(1e-6 / 10)


def test_seeds_are_compared_by_their_mean_auc(drawn):
    label, user, scores = drawn
    compared = Pairs(label, user, {"two seeds": scores[:2], "base": scores[2:]}).compare("two seeds", "base")
    auc, covariance = delong(label, scores)
    contrast = np.array([0.5, 0.5, -1])
    assert compared.difference == pytest.approx((auc[0] + auc[1]) / 2 - auc[2])
    z = compared.difference / np.sqrt(contrast @ covariance @ contrast)
    assert compared.p_delong == pytest.approx(2 * norm.sf(abs(z)))
    assert compared.low < compared.difference < compared.high


def test_intervals_are_those_of_delong_or_of_the_users(drawn):
    label, user, scores = drawn
    auc, covariance = delong(label, scores)
    by_rows = auc_intervals(label, scores)
    for found, area, variance in zip(by_rows, auc, covariance.diagonal(), strict=True):
        assert found.auc == area
        assert (found.low, found.high) == pytest.approx(norm.interval(0.95, area, np.sqrt(variance)), abs=1e-7)
    for found, area, resampled in zip(
        auc_intervals(label, scores, user), auc, bootstrap_auc(label, scores, user).T, strict=True
    ):
        assert found.auc == area and (found.low, found.high) == tuple(np.quantile(resampled, [0.025, 0.975]))

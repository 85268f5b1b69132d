"""Semantic ids against scikit-learn's k-means and Gaussian mixture, and what their figures say."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from mm_fibinet.errors import UserError
from mm_fibinet.items import semantic_ids as module
from mm_fibinet.items.semantic_ids import (
    METHODS,
    fit_mixture,
    gaussian_mixture,
    kmeans,
    log_densities,
    quantise,
)


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """Six groups of forty items, each of two halves; float32 [241, 5], the last item without an embedding."""
    rng = np.random.default_rng(0)
    centres = 30 * np.eye(6, 5)[:, None, None] + 2 * rng.normal(size=(6, 2, 1, 5))
    items = (centres + 0.1 * rng.normal(size=(6, 2, 20, 5))).reshape(240, 5)
    return np.vstack([items, np.zeros((1, 5))]).astype(np.float32)


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = np.unique(np.stack([first, second]), axis=1).shape[1]
    return pairs == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("method", list(METHODS))
def test_each_level_is_the_grouping_of_what_the_level_before_leaves(method, blobs):
    found = quantise(blobs, method, levels=2, size=6, seed=0)
    left = blobs[:240].astype(np.float64)
    left -= left.mean(axis=0)
    energy = np.square(left).sum()
    for level in range(2):
        codes = found.codes[:240, level]
        if level == 0:
            assert same_partition(codes, np.repeat(np.arange(6), 40))
            assert same_partition(codes, KMeans(6, n_init=10, random_state=0).fit_predict(left))
        centres = np.stack([left[codes == code].mean(axis=0) for code in range(1, 7)])
        left -= centres[codes - 1]
        # a mixture's mean is its members' weighted one, which is theirs where groups are apart
        assert found.unexplained[level] == pytest.approx(
            np.square(left).sum() / energy, rel=1e-3 if level == 0 else 0.2
        )
    assert found.unexplained[1] < found.unexplained[0]
    assert found.codes.dtype == np.int64 and set(found.codes[240]) == {0}


def test_kmeans_is_as_good_as_scikit_learns():
    vectors = np.random.default_rng(1).normal(size=(400, 4))
    ours = kmeans(vectors, 12, np.random.default_rng(0))
    inertia = np.square(vectors - ours.centres[ours.assign(vectors)]).sum()
    theirs = [KMeans(12, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(10)]
    assert inertia < np.mean(theirs) + 3 * np.std(theirs)
    again = KMeans(12, init=ours.centres, n_init=1).fit(vectors)
    np.testing.assert_allclose(again.cluster_centers_, ours.centres, atol=0.35)  # near a fixed point of Lloyd's


def test_the_mixture_is_scikit_learns_step_by_step():
    rng = np.random.default_rng(2)
    vectors = np.concatenate([rng.normal(size=(150, 3)), 0.2 * rng.normal(size=(50, 3)) + [2, 0, 0]])
    start = np.zeros((200, 2))
    start[np.arange(200), (vectors[:, 0] > 1).astype(int)] = 1
    weights, means, variances = fit_mixture(vectors, start, floor=1e-6)
    theirs = GaussianMixture(
        2, covariance_type="diag", reg_covar=1e-6, tol=0, max_iter=7,
        weights_init=weights, means_init=means, precisions_init=1 / variances,
    )  # fmt: skip
    with pytest.warns(match="did not converge"):
        theirs.fit(vectors)
    for _ in range(7):
        scores = log_densities(vectors, weights, means, variances)
        members = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        weights, means, variances = fit_mixture(vectors, members, floor=1e-6)
    np.testing.assert_allclose(means, theirs.means_, atol=1e-6)
    np.testing.assert_allclose(variances, theirs.covariances_, atol=1e-6)
    found = gaussian_mixture(vectors, 2, np.random.default_rng(0))
    assert same_partition(found.assign(vectors), theirs.predict(vectors))


def test_codes_collide_where_items_share_all_of_them(blobs):
    found = quantise(blobs, "kmeans", levels=1, size=6)
    assert found.collisions == 1 and found.used == [6]
    several = quantise(blobs, "kmeans", levels=3, size=40)
    codes, counts = np.unique(several.codes[:240], axis=0, return_counts=True)
    assert several.collisions == pytest.approx(1 - (counts == 1).sum() / 240)
    assert several.collisions < 1 and several.unexplained[-1] < 0.01 and len(codes) > 100


def test_in_a_sequence_every_level_has_ids_of_its_own(blobs):
    found = quantise(blobs, "kmeans", levels=3, size=10)
    for level in range(3):
        column = found.sequence[:240, level]
        assert column.min() >= 1 + 10 * level and column.max() <= 10 * (level + 1)
        np.testing.assert_array_equal(column - 10 * level, found.codes[:240, level])
    assert not found.sequence[240].any()


@pytest.mark.parametrize("method", list(METHODS))
def test_a_seed_gives_the_same_codes_also_from_a_sample(method, blobs, monkeypatch):
    first = quantise(blobs, method, 2, 8, seed=3)
    np.testing.assert_array_equal(quantise(blobs, method, 2, 8, seed=3).codes, first.codes)
    monkeypatch.setattr(module, "SAMPLE", 120)
    monkeypatch.setattr(module, "BLOCK_ROWS", 50)
    sampled = quantise(blobs, method, 1, 6, seed=3)
    assert same_partition(sampled.codes[:240, 0], np.repeat(np.arange(6), 40))


def test_more_codes_than_items_are_refused(blobs):
    with pytest.raises(UserError, match=r"--code_size is 300, but 240 different items .* choose that or less"):
        quantise(blobs, "kmeans", 2, 300)

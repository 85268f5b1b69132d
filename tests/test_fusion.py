"""The linear fusions against scikit-learn, and what they promise about missing items, scale, signs and blocks."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from mm_fibinet.errors import UserError
from mm_fibinet.items import features as features_module
from mm_fibinet.items import joined as joined_module
from mm_fibinet.items.features import ArrayFeatures, blocks
from mm_fibinet.items.fusion import FUSIONS
from mm_fibinet.items.joined import Joined
from mm_fibinet.items.linear import cca, mean, pca, pca_per_modality, whiten


def make_modalities(items: int = 300, missing: int = 40) -> dict[str, ArrayFeatures]:
    """Text [items, 20] and image [items, 50] of very different scales; the image is missing for some items."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(items, 6))
    text = hidden @ rng.normal(size=(6, 20)) + 0.3 * rng.normal(size=(items, 20)) + 5
    image = 100 * (hidden @ rng.normal(size=(6, 50)) + 0.3 * rng.normal(size=(items, 50))) - 70
    present = np.ones(items, dtype=bool)
    present[rng.choice(items, missing, replace=False)] = False
    image[~present] = 1e6  # must not be looked at
    return {
        "text": ArrayFeatures(text.astype(np.float32), np.ones(items, dtype=bool)),
        "image": ArrayFeatures(image.astype(np.float32), present),
    }


def equal_energy(modalities: dict[str, ArrayFeatures]) -> np.ndarray:
    """All items at once, float64 [n, W]."""
    joined = Joined(modalities)
    return joined.read(0, joined.rows)


def test_modalities_have_equal_energy_and_missing_items_sit_at_the_mean():
    modalities = make_modalities()
    joined = equal_energy(modalities)
    present = modalities["image"].present
    text, image = joined[:, :20], joined[:, 20:]
    assert np.square(text).sum() / len(text) == pytest.approx(1)
    assert np.square(image[present]).sum() / present.sum() == pytest.approx(1)
    assert np.all(image[~present] == 0)
    np.testing.assert_allclose(joined.mean(axis=0), 0, atol=1e-12)
    raw = modalities["image"].features[present].astype(np.float64)
    np.testing.assert_allclose(np.corrcoef(image[present][:, 3], raw[:, 3])[0, 1], 1)


def test_blocks_are_the_rows_that_are_present_in_order():
    image = make_modalities()["image"]
    rows, features = zip(*blocks(image, 64), strict=True)
    assert [len(part) for part in rows] == [64, 64, 64, 64, 4]
    np.testing.assert_array_equal(np.concatenate(rows), np.flatnonzero(image.present))
    np.testing.assert_array_equal(np.concatenate(features), image.features[image.present])


def test_pca_equals_scikit_learn():
    modalities = make_modalities()
    fused = pca(modalities, 8)
    reference = PCA(8, svd_solver="full").fit(equal_energy(modalities))
    scores = reference.transform(equal_energy(modalities))
    scores *= np.sqrt(8 / np.square(scores).sum(axis=1).mean())
    np.testing.assert_allclose(np.abs(fused.embedding), np.abs(scores), atol=1e-5)
    assert fused.explained["total"] == pytest.approx(reference.explained_variance_ratio_.sum())
    assert fused.embedding.dtype == np.float32
    assert fused.embedding.var(axis=0).mean() == pytest.approx(1, abs=1e-6)


def test_explained_variance_of_each_modality_is_that_of_the_reconstruction():
    modalities = make_modalities()
    joined = equal_energy(modalities)
    fitted = PCA(3, svd_solver="full").fit(joined)
    rebuilt = fitted.inverse_transform(fitted.transform(joined))
    explained = pca(modalities, 3).explained
    assert explained["text"] == pytest.approx(np.square(rebuilt[:, :20]).sum() / np.square(joined[:, :20]).sum())
    assert explained["image"] == pytest.approx(np.square(rebuilt[:, 20:]).sum() / np.square(joined[:, 20:]).sum())


def test_signs_follow_the_largest_loading():
    modalities = make_modalities()
    joined = equal_energy(modalities)
    loadings = np.linalg.lstsq(pca(modalities, 8).embedding.astype(np.float64), joined, rcond=None)[0]
    largest = np.abs(loadings).argmax(axis=1)
    assert np.all(loadings[np.arange(8), largest] > 0)


def test_an_item_without_any_content_is_exactly_zero():
    modalities = make_modalities()
    for modality in modalities.values():
        modality.present[7] = False
    row = pca(modalities, 8).embedding[7]
    assert np.all(row == 0) and not np.any(np.signbit(row))


def test_one_modality_alone_and_the_same_bytes_twice():
    alone = {"text": make_modalities()["text"]}
    first, second = pca(alone, 20), pca(alone, 20)
    assert first.embedding.tobytes() == second.embedding.tobytes()
    assert first.explained["total"] == pytest.approx(1)


def test_too_many_dimensions_name_the_possible_number():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 30))).astype(np.float64)
    with pytest.raises(UserError, match="choose --emb_dim 4 or less"):
        pca({"text": ArrayFeatures(features, np.ones(50, dtype=bool))}, 5)


def test_a_modality_without_variety_is_refused():
    same = ArrayFeatures(np.ones((50, 30), dtype=np.float32), np.ones(50, dtype=bool))
    with pytest.raises(UserError, match=r"all 50 items are the same.*--image_encoder none"):
        pca({"image": same}, 2)


def test_a_catalogue_of_one_block_has_the_bytes_of_the_whole_form():
    """What `pca` wrote before it streamed: everything in float64 at once."""
    modalities = make_modalities()
    whole = np.zeros((300, 70))
    for columns, modality in ((slice(0, 20), modalities["text"]), (slice(20, 70), modalities["image"])):
        values = modality.features[modality.present].astype(np.float64)
        values -= values.mean(axis=0)
        values /= np.sqrt(np.square(values).sum() / len(values))
        whole[modality.present, columns] = values
    variances, vectors = eigh(whole.T @ whole / 300, subset_by_index=[62, 69])
    variances, vectors = variances[::-1], vectors[:, ::-1]
    signs = np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(8)] < 0, -1.0, 1.0)
    expected = whole @ (vectors * signs * np.sqrt(8 / variances.sum())) + 0.0
    assert pca(modalities, 8).embedding.tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "mean"])
def test_blocks_change_nothing_and_no_more_is_read_at_once(name, monkeypatch):
    modalities = make_modalities()
    whole = FUSIONS[name](modalities, 8, 0)
    read = []

    class Watched(ArrayFeatures):
        def read(self, rows):
            read.append(len(rows))
            return super().read(rows)

    monkeypatch.setattr(joined_module, "BLOCK_ROWS", 64)
    monkeypatch.setattr(joined_module, "blocks", lambda features: features_module.blocks(features, 64))
    watched = {name: Watched(each.features, each.present) for name, each in modalities.items()}
    parts = FUSIONS[name](watched, 8, 0)
    np.testing.assert_allclose(parts.embedding, whole.embedding, atol=1e-5)
    assert parts.explained == pytest.approx(whole.explained)
    assert max(read) == 64


def test_whiten_equals_scikit_learn():
    modalities = make_modalities()
    expected = PCA(8, svd_solver="full", whiten=True).fit_transform(equal_energy(modalities)) * np.sqrt(300 / 299)
    found = whiten(modalities, 8).embedding
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(found.T @ found / 300, np.eye(8), atol=1e-5)


def test_each_modality_has_its_share_of_the_numbers():
    modalities = make_modalities()
    whole, fused = equal_energy(modalities), pca_per_modality(modalities, 7).embedding
    for numbers, columns in ((slice(0, 4), slice(0, 20)), (slice(4, 7), slice(20, 70))):
        width = numbers.stop - numbers.start
        scores = PCA(width, svd_solver="full").fit_transform(whole[:, columns])
        scores *= np.sqrt(width / np.square(scores).sum(axis=1).mean())
        np.testing.assert_allclose(np.abs(fused[:, numbers]), np.abs(scores), atol=1e-5)
    assert np.square(fused).sum(axis=1).mean() == pytest.approx(7, abs=1e-5)


def test_a_narrow_modality_leaves_the_rest_of_its_share():
    modalities = make_modalities()
    modalities["text"] = ArrayFeatures(modalities["text"].features[:, :2], modalities["text"].present)
    fused = pca_per_modality(modalities, 10)
    assert fused.embedding.shape == (300, 10) and fused.explained["text"] == pytest.approx(1)
    with pytest.raises(UserError, match="choose --emb_dim 52 or less"):
        pca_per_modality(modalities, 53)
    with pytest.raises(UserError, match="expected a number for each"):
        pca_per_modality(modalities, 1)


def test_cca_equals_scikit_learn():
    """For two modalities the canonical variates' sums, as large as 1 + their correlation."""
    modalities = make_modalities(missing=0)
    modalities["image"] = ArrayFeatures(modalities["image"].features[:, :5], modalities["image"].present)
    modalities["text"] = ArrayFeatures(modalities["text"].features[:, :6], modalities["text"].present)
    whole = equal_energy(modalities)
    text, image = CCA(4, scale=False, tol=1e-12, max_iter=10000).fit_transform(whole[:, :6], whole[:, 6:])
    text, image = text / text.std(axis=0), image / image.std(axis=0)
    correlations = (text * image).mean(axis=0)
    expected = (text + image) / np.sqrt(2)
    fused = cca(modalities, 6)
    scale = np.sqrt(np.square(fused.embedding).sum() / np.square(expected).sum())
    found = fused.embedding[:, :4]
    relative = found.std(axis=0) / found.std(axis=0)[0]
    np.testing.assert_allclose(relative, expected.std(axis=0) / expected.std(axis=0)[0], rtol=1e-4)
    unit = found / found.std(axis=0)
    np.testing.assert_allclose(np.abs(unit), np.abs(expected / expected.std(axis=0)), atol=1e-3)
    assert fused.facts["largest_canonical_correlation"] == pytest.approx(correlations[0], abs=1e-6) and scale > 0


def test_cca_of_three_modalities_follows_what_they_share():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(500, 1))
    views = {
        name: ArrayFeatures(
            np.hstack([shared + 0.3 * rng.normal(size=(500, 1)), 5 * rng.normal(size=(500, 4))]).astype(np.float32),
            np.ones(500, dtype=bool),
        )
        for name in ("text", "image", "audio")
    }
    first = cca(views, 5).embedding[:, 0]
    assert abs(np.corrcoef(first, shared[:, 0])[0, 1]) > 0.95
    assert abs(np.corrcoef(pca(views, 5).embedding[:, 0], shared[:, 0])[0, 1]) < 0.5
    with pytest.raises(UserError, match="there is text alone, expected two modalities"):
        cca({"text": views["text"]}, 2)


def one_space(items: int = 60) -> dict[str, ArrayFeatures]:
    """Two modalities of 6 numbers; item 4 has no image, item 5 nothing, item 6 a text of zeros."""
    rng = np.random.default_rng(2)
    text, image = (ArrayFeatures(rng.normal(size=(items, 6)).astype(np.float32), np.ones(items, bool)) for _ in "ab")
    image.present[[4, 5]], text.present[5], text.features[6] = False, False, 0
    return {"text": text, "image": ArrayFeatures(image.features * 9, image.present)}


def test_the_mean_of_one_space_is_that_of_unit_vectors():
    views = one_space()
    text, image = (
        each.features / np.maximum(np.linalg.norm(each.features, axis=1)[:, None], 1e-9) for each in views.values()
    )
    expected = (text + image) / 2
    expected[4], expected[5] = text[4], 0
    expected *= np.sqrt(6 / np.square(expected).sum(axis=1).mean())
    np.testing.assert_allclose(mean(views, 6).embedding, expected, atol=1e-5)

    smaller = mean(views, 3)
    scores = PCA(3, svd_solver="full").fit_transform(np.delete(expected, 5, axis=0))
    scores *= np.sqrt(3 * 60 / np.square(scores).sum())
    np.testing.assert_allclose(np.abs(np.delete(smaller.embedding, 5, axis=0)), np.abs(scores), atol=1e-4)
    assert not smaller.embedding[5].any()


def test_other_spaces_have_no_mean():
    with pytest.raises(UserError, match="text has 20 numbers, image has 50 numbers, expected encoders of one space"):
        mean(make_modalities(), 8)
    with pytest.raises(UserError, match="emb_dim is 7, but vectors have 6 numbers"):
        mean(one_space(), 7)


def test_the_registry_holds_every_fusion_by_its_option_name():
    assert {name: fuse.__name__ for name, fuse in FUSIONS.items()} == {name: name for name in FUSIONS}

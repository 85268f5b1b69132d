"""The fusion against scikit-learn's PCA, and what it promises about missing items, scale and signs."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mm_fibinet.errors import UserError
from mm_fibinet.items.features import ArrayFeatures, blocks
from mm_fibinet.items.fusion import FUSIONS, equal_energy, pca


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


def test_the_registry_holds_every_fusion_by_its_option_name():
    assert list(FUSIONS) == ["pca"] and FUSIONS["pca"] is pca

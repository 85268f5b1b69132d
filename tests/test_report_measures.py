"""What the report measures, each against the slow and obvious form, scikit-learn, or an answer that is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import list_column
from scipy.stats import skew
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from user_data import make_forms

from mm_fibinet.errors import UserError
from mm_fibinet.items.report import evidence, geometry, languages, probe, projection
from mm_fibinet.items.report.catalogue import read_tags, read_titles
from mm_fibinet.items.report.evidence import history_cosine, judge_clicks, read_rows, warm_items
from mm_fibinet.items.report.vectors import embedding_columns, read_vectors


def draw(items=60, width=8, seed=0):
    """float32 [items + 1, width] with a mean of their own, row 0 zeros."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(items + 1, width)) + 0.4).astype(np.float32)
    vectors[0] = 0
    return vectors


def slow_neighbours(units, k):
    """Of each row the k others of largest cosine, by sorting Python lists."""
    found = []
    for i, own in enumerate(units):
        others = sorted((j for j in range(len(units)) if j != i), key=lambda j: (-float(own @ units[j]), j))
        found.append(others[:k])
    return np.array(found)


def test_the_mean_cosine_is_that_of_all_pairs():
    units = geometry.unit_rows(draw(), np.arange(1, 61))
    pairs = [float(units[i].astype(float) @ units[j]) for i in range(60) for j in range(60) if i != j]
    assert geometry.mean_cosine(units) == pytest.approx(np.mean(pairs), abs=1e-6) and np.mean(pairs) > 0.05
    one_way = np.tile(units[:1], (9, 1))
    assert geometry.mean_cosine(one_way) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("numbers", [1 << 24, 100])
def test_neighbours_and_hubs_are_those_of_a_loop(numbers, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK_NUMBERS", numbers)
    vectors = draw()
    vectors[7] = 0
    shape = geometry.measure(vectors)
    ids = np.array([item for item in range(1, 61) if item != 7])
    units = vectors[ids].astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    expected = slow_neighbours(units, geometry.K)
    np.testing.assert_array_equal(shape.queries, ids)
    np.testing.assert_array_equal(shape.neighbours, ids[expected])
    times = [sum(row.tolist().count(item) for row in expected) for item in range(len(ids))]
    assert shape.hubness == pytest.approx(skew(times)) and shape.hub[1] == max(times)
    assert shape.hub[0] == ids[np.argmax(times)] and shape.orphans == np.mean(np.array(times) == 0)
    assert (shape.items, shape.missing, shape.width, shape.hubs_among) == (60, 1, 8, 59)
    near, cosines = geometry.neighbours_of(vectors, np.array([3, 60]), 4)
    np.testing.assert_array_equal(near, shape.neighbours[[2, 58]][:, :4])
    np.testing.assert_allclose(cosines[0], units[2] @ units[expected[2, :4]].T, atol=1e-6)


def test_the_largest_are_found_by_groups():
    values = np.random.default_rng(8).normal(size=(5, 33 * geometry.GROUP + 7)).astype(np.float32)
    values[0] = np.sort(values[0])  # all of the largest in one group, and in the rest that makes none
    values[1, :] = 1
    found = geometry._largest(values, 10)
    assert all(len(set(row)) == 10 for row in found.tolist())
    expected = np.sort(values, axis=1)[:, -10:]
    np.testing.assert_array_equal(np.sort(np.take_along_axis(values, found, axis=1), axis=1), expected)


def test_a_star_is_a_hub_and_a_ring_is_not():
    """In a ring each point is in as many lists as any other; around a centre, all name the centre."""
    angles = np.arange(24) * 2 * np.pi / 24
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    shape = geometry.measure(np.vstack([[[0, 0]], ring]).astype(np.float32))
    assert abs(shape.hubness) < 0.6 and shape.orphans == 0
    star = np.vstack([np.zeros((1, 40)), np.ones((1, 40)), np.eye(40)]).astype(np.float32)
    shape = geometry.measure(star)
    assert shape.hub == (1, 40) and shape.hubness > 1


def test_duplicates_norms_and_directions():
    vectors = draw(40)
    vectors[11] = vectors[12] = vectors[10]
    vectors[30] = [0, 1, 2, 3, 4, 5, 6, 7]
    vectors[31] = [-0.0, 1, 2, 3, 4, 5, 6, 7]
    vectors[20] = 3 * vectors[21]  # the same direction, not the same vector
    shape = geometry.measure(vectors)
    assert shape.same == 5 / 40 and shape.nearly_same == 7 / 40
    norms = sorted(float(np.sqrt((row.astype(float) ** 2).sum())) for row in vectors[1:])
    assert shape.norms == pytest.approx(np.quantile(norms, [0.01, 0.5, 0.99]), rel=1e-6)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors[1:].T.astype(float)))
    assert shape.directions == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5)
    line = np.outer(np.arange(9), [1, 2]).astype(np.float32)
    assert geometry.measure(line).directions == pytest.approx(1) and geometry.measure(line).anisotropy > 0.999


def test_large_and_small_numbers_have_directions_too():
    vectors = draw()
    shape, larger = geometry.measure(vectors), geometry.measure(vectors * np.float32(1e30))
    np.testing.assert_array_equal(shape.neighbours, larger.neighbours)
    assert larger.anisotropy == pytest.approx(shape.anisotropy, abs=1e-6)
    assert larger.norms == pytest.approx([1e30 * norm for norm in shape.norms])
    assert geometry.measure(vectors * np.float32(1e-30)).hubness == shape.hubness


def test_large_catalogues_are_sampled_and_come_near_the_whole(monkeypatch):
    vectors = draw(900, 6)
    whole = geometry.measure(vectors)
    monkeypatch.setattr(geometry, "EXACT_ITEMS", 400)
    monkeypatch.setattr(geometry, "QUERIES", 50)
    some = geometry.measure(vectors, seed=3)
    assert some.neighbours.shape == (50, geometry.K) and some.hubs_among == 400
    rows = np.searchsorted(whole.queries, some.queries)
    np.testing.assert_array_equal(some.neighbours, whole.neighbours[rows])  # of all items, not of the sample
    assert some.anisotropy == whole.anisotropy and some.hubness == pytest.approx(whole.hubness, abs=0.6)
    again = geometry.measure(vectors, seed=3)
    assert again.hubness == some.hubness and np.array_equal(again.queries, some.queries)


def test_a_probe_whose_answer_is_known():
    """Tags that are a direction of the vectors are told without a mistake, tags of a coin are not told at all."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(801, 12)).astype(np.float32)
    vectors[0] = 0
    line = vectors[:, 0] - 2 * vectors[:, 5]
    tags = {
        "high": np.flatnonzero(line > 0.5),
        "low": np.flatnonzero(line < -0.5),
        "coin": 1 + np.flatnonzero(rng.random(800) < 0.4),
        "rare": np.array([3, 9]),
    }
    found = probe.probe_tags(vectors, tags)
    assert list(found.auc) == sorted(["high", "low", "coin"], key=lambda tag: (-len(tags[tag]), tag))
    assert found.auc["high"] > 0.98 and found.auc["low"] > 0.98 and abs(found.auc["coin"] - 0.5) < 0.1
    assert found.mean == np.mean(list(found.auc.values())) and found.first > found.first_by_chance
    assert probe.probe_tags(vectors, {"rare": tags["rare"]}) is None and probe.probe_tags(vectors, {}) is None


def test_the_probes_map_is_scikit_learns_ridge_of_the_least_gcv_error():
    rng = np.random.default_rng(2)
    known, asked = rng.normal(size=(90, 7)) + 3, rng.normal(size=(30, 7)) + 3
    values = (known @ rng.normal(size=(7, 3)) + rng.normal(size=(90, 3)) > 5).astype(float)
    centred = known - known.mean(0)
    scale = np.linalg.eigvalsh(centred.T @ centred).mean()
    scores = {}
    for penalty in probe.PENALTIES * scale:
        hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(7), centred.T) + 1 / 90
        left = values - hat @ values
        scores[penalty] = (left**2).sum() / (90 - np.trace(hat)) ** 2
    best = min(scores, key=scores.get)
    assert best not in (min(scores), max(scores))
    expected = Ridge(alpha=best).fit(known, values).predict(asked)
    np.testing.assert_allclose(probe.ridge(known, values, asked), expected, atol=1e-9)


def test_scripts():
    named = {
        "Toy Story (1995)": "Latin", "Ой, мороз": "Cyrillic", "我的猫": "Chinese", "ねこの動画": "Japanese",
        "고양이": "Korean", "قطة cat قطط": "Arabic", "été 猫": "Latin", "12:30 !?": None, "": None,
    }  # fmt: skip
    assert {title: languages.script(title) for title in named} == named


def test_neighbours_of_one_script():
    labels = np.array([-1, 0, 0, 0, 1, 1, -1])
    queries, neighbours = np.array([1, 4, 6]), np.array([[2, 4], [5, 6], [1, 2]])
    near, by_chance = languages.agreement(labels, queries, neighbours)
    assert near == pytest.approx(2 / 3)  # 1-2, 4-5 of 1-2, 1-4, 4-5
    pairs = [labels[i] == labels[j] for i in range(1, 6) for j in range(1, 6) if i != j]
    assert by_chance == pytest.approx(np.mean(pairs))
    assert np.isnan(languages.agreement(np.full(7, -1), queries, neighbours)).all()


def test_the_map_is_that_of_the_principal_components():
    vectors = draw(50) * np.array([5, 3, 1, 1, 1, 1, 1, 1], dtype=np.float32)
    places, share = projection.pca_map(vectors, np.arange(1, 51))
    units = vectors[1:] / np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(units - units.mean(0), full_matrices=False)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-4)
    expected = u[:, :2] * s[:2]
    for axis in range(2):
        assert abs(np.corrcoef(places[:, axis], expected[:, axis])[0, 1]) > 0.99
    assert places.min() >= 0 and places.max() <= projection.GRID
    narrow, share = projection.pca_map(np.arange(5, dtype=np.float32)[:, None], np.arange(1, 5))
    assert narrow.shape == (4, 2) and share == 1


def test_umap_is_used_where_it_is_installed(monkeypatch):
    asked = {}

    class Umap:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, units):
            return units[:, :2]

    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda name: None)
    assert projection.umap_map(draw(), np.arange(1, 61)) is None
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(__import__("sys").modules, "umap", type("Module", (), {"UMAP": Umap}))
    assert projection.umap_map(draw(), np.arange(1, 61), seed=4).shape == (60, 2)
    assert asked["metric"] == "cosine" and asked["random_state"] == 4


@pytest.fixture
def split(tmp_path):
    """A split of 300 rows on 40 items, a third of the targets cold, and the vectors that its clicks follow."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(41, 5)).astype(np.float32)
    vectors[0] = 0
    history = rng.integers(1, 41, (300, 6))
    target = rng.integers(1, 41, 300)
    cosine = history_cosine(vectors, history, target)
    label = (cosine + rng.normal(scale=0.4, size=300) > 0.2).astype(int)
    columns = {"user_id": rng.integers(0, 60, 300), "item_seq": list_column(history), "item_id": target, "label": label}
    pq.write_table(pa.table(columns), tmp_path / "valid.parquet")
    pq.write_table(pa.table({"item_id": np.arange(1, 28)}), tmp_path / "train.parquet")
    return tmp_path, vectors, cosine, label, target


def test_click_evidence_agrees_with_scikit_learn(split):
    folder, vectors, cosine, label, target = split
    rows = read_rows(folder / "valid.parquet", 41)
    other = np.random.default_rng(6).normal(size=vectors.shape)
    cosines = {
        name: history_cosine(table, rows.history, rows.target) for name, table in {"a": vectors, "b": other}.items()
    }
    found = judge_clicks("valid", cosines, rows, warm_items(folder / "train.parquet", 41))
    masks = {"all": target > 0, "warm": target < 28, "cold": target >= 28}
    assert found.rows == {subset: mask.sum() for subset, mask in masks.items()} and found.by_users
    for subset, mask in masks.items():
        one = found.auc["a"][subset]
        assert one.auc == pytest.approx(roc_auc_score(label[mask], cosine[mask]), abs=1e-12)
        assert one.low < one.auc < one.high and one.low > 0.5
        assert found.auc["b"][subset].low < 0.5 < found.auc["b"][subset].high


def test_without_users_the_interval_is_delongs(split):
    folder, vectors, _, label, _ = split
    table = pq.read_table(folder / "valid.parquet").drop_columns("user_id")
    pq.write_table(table, folder / "rows.parquet")
    rows = read_rows(folder / "rows.parquet", 41)
    cosine = history_cosine(vectors, rows.history, rows.target)
    found = judge_clicks("valid", {"a": cosine}, rows)
    wins = (cosine[label == 1][:, None] > cosine[label == 0]).astype(float)
    variance = wins.mean(1).var(ddof=1) / len(wins) + wins.mean(0).var(ddof=1) / wins.shape[1]
    one = found.auc["a"]["all"]
    assert not found.by_users and (one.high - one.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=1e-3)


def test_a_single_click_is_refused(split):
    rows = read_rows(split[0] / "valid.parquet", 41)
    one = evidence.Rows(rows.history, rows.target, np.arange(300) == 5, rows.user, 300)
    cosine = history_cosine(split[1], rows.history, rows.target)
    with pytest.raises(
        UserError, match="valid: 1 of 300 rows with a history have label 1, expected at least 2 of each"
    ):
        judge_clicks("valid", {"a": cosine}, one)


def test_rows_are_drawn_by_the_seed(split):
    folder, *_ = split
    whole = read_rows(folder / "valid.parquet", 41)
    some = [read_rows(folder / "valid.parquet", 41, most=50, seed=seed) for seed in (1, 1, 2)]
    assert all(rows.of == 300 and len(rows.target) == 50 for rows in some)
    np.testing.assert_array_equal(some[0].history, some[1].history)
    assert not np.array_equal(some[0].history, some[2].history)
    pairs = {(*line, item) for line, item in zip(whole.history.tolist(), whole.target.tolist(), strict=True)}
    assert all(
        (*line, item) in pairs for line, item in zip(some[0].history.tolist(), some[0].target.tolist(), strict=True)
    )


@pytest.mark.parametrize("ends", [True, False])
def test_histories_of_user_info_are_those_of_the_rows(tmp_path, ends, monkeypatch):
    make_forms(tmp_path, ends)
    data = {form: tmp_path / form / "TEST_DATA" for form in ("rows", "users")}
    by_row = read_rows(data["rows"] / "valid.parquet", 40)
    users = data["users"] / "user_info.parquet"
    by_user = read_rows(data["users"] / "valid.parquet", 40, users)
    width = by_user.history.shape[1]
    np.testing.assert_array_equal(by_user.history, by_row.history[:, -width:])
    assert not by_row.history[:, :-width].any()
    for name in ("target", "clicked", "user"):
        np.testing.assert_array_equal(getattr(by_user, name), getattr(by_row, name))
    monkeypatch.setattr(evidence, "MOST_POSITIONS", 3)
    some = read_rows(data["users"] / "valid.parquet", 40, users, most=60)
    assert some.history.shape == (60, 3)
    known = {tuple(line) for line in by_row.history[:, -3:].tolist()}
    assert {tuple(line) for line in some.history.tolist()} <= known
    with pytest.raises(UserError, match="column item_seq is there, and user_info has the histories"):
        read_rows(data["rows"] / "valid.parquet", 40, users)


def test_titles_and_tags(tmp_path):
    feature = {"item_id": [2, 1, 3], "Title": ["two", None, " three "], "genres": [["a", "b"], ["b"], None]}
    pq.write_table(pa.table(feature), tmp_path / "f.parquet")
    assert read_titles(tmp_path / "f.parquet", 3) == {2: "two", 3: "three"}
    tags = read_tags(tmp_path / "f.parquet", 3)
    assert {tag: ids.tolist() for tag, ids in tags.items()} == {"b": [1, 2], "a": [2]}
    table = pa.table({"item_tags": list_column(np.array([[0, 0], [0, 7], [7, 2]]))})
    tags = read_tags(None, 2, table)
    assert {tag: ids.tolist() for tag, ids in tags.items()} == {"tag 7": [1, 2], "tag 2": [2]}
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "bare.parquet")
    assert read_titles(tmp_path / "bare.parquet", 3) == {} and read_tags(tmp_path / "bare.parquet", 2) == {}


def test_vectors_of_int8_are_read_where_they_are_named():
    """Their cosines need no scale; tags of small ids, which are int8 too, are no embedding unless that is asked for."""
    vectors = np.array([[0, 0], [3, 4], [-8, 6]], np.int8)
    columns = {"item_id": pa.array(range(3)), "small": pa.array(vectors.tolist(), pa.list_(pa.int8(), 2))}
    table = pa.table(columns)
    with pytest.raises(UserError, match=r"no embedding column, found .*, or name one of int8 \(small\) with --columns"):
        embedding_columns(table, "item_info.parquet")
    assert embedding_columns(table, "item_info.parquet", ["small"]) == ["small"]
    read = read_vectors(table, "item_info.parquet", "small")
    assert read.dtype == np.float32 and (read == vectors).all()
    table = table.append_column("floats", pa.array(vectors.tolist(), pa.list_(pa.float32(), 2)))
    assert embedding_columns(table, "item_info.parquet") == ["floats"]
    with pytest.raises(UserError, match="no embedding column item_id, expected some of floats, small"):
        embedding_columns(table, "item_info.parquet", ["item_id"])

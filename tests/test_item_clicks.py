"""Clicks of the training split: what is read, that leaks are refused, and what item2vec and contrastive learn."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import list_column
from sklearn.linear_model import Ridge

from mm_fibinet import schema, user_info
from mm_fibinet.errors import UserError
from mm_fibinet.items import clicks as clicks_module
from mm_fibinet.items import contrastive as contrastive_module
from mm_fibinet.items import item2vec as item2vec_module
from mm_fibinet.items.clicks import Clicks, pair_batches, read_clicks
from mm_fibinet.items.contrastive import TEMPERATURE, contrastive, info_nce
from mm_fibinet.items.features import ArrayFeatures
from mm_fibinet.items.fusion import CLICK_FUSIONS
from mm_fibinet.items.item2vec import NEGATIVES, PENALTIES, negative_sampling, ridge, skip_gram
from mm_fibinet.items.linear import pca

CPU = torch.device("cpu")
TRAIN = {  # user: rows of (history, target, label)
    7: [([], 1, 1), ([1], 2, 0), ([1], 3, 1), ([1, 3], 4, 1)],
    -5: [([2, 2], 5, 1), ([2, 2, 5], 1, 0)],
    9: [([], 6, 0)],
}
VALID = {7: [([1, 3, 4], 6, 1)], -5: [([2, 2, 5], 3, 1), ([2, 2, 5], 2, 1)], 11: [([1], 4, 1)]}


def write_split(path, rows, width=4, **more):
    """A split of {user: rows}; returns its path."""
    flat = [(user, *row) for user, theirs in rows.items() for row in theirs]
    history = np.array([[0] * (width - len(seen)) + seen for _, seen, _, _ in flat])
    columns = {
        "user_id": [user for user, *_ in flat],
        "item_seq": list_column(history),
        "item_id": [target for *_, target, _ in flat],
        "label": [label for *_, label in flat],
    } | more
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


def baskets(clicks: Clicks) -> list[list[int]]:
    return [part.tolist() for part in np.split(clicks.items, clicks.starts[1:-1])]


def test_a_users_clicks_are_the_histories_and_the_clicked_targets_once_each(tmp_path, monkeypatch):
    train = write_split(tmp_path / "train.parquet", TRAIN)
    clicks = read_clicks(train, 6)
    assert baskets(clicks) == [[2, 5], [1, 3, 4]]  # by user_id; a shown target is no click, user 9 has none
    assert clicks.counts.tolist() == [1, 1, 1, 1, 1, 0]
    monkeypatch.setattr(clicks_module, "MERGE_PAIRS", 1)
    whole = schema.read_slices
    monkeypatch.setattr(schema, "read_slices", lambda path, columns: whole(path, columns, 2))
    assert baskets(read_clicks(train, 6)) == [[2, 5], [1, 3, 4]]
    rows = read_clicks(write_split(tmp_path / "rows.parquet", TRAIN, user_id=None), 6)
    assert baskets(rows) == [[1], [1], [1, 3], [1, 3, 4], [2, 5], [2, 5]]


def test_pairs_are_all_of_a_users_set_a_user_weighing_as_much_as_his_clicks():
    clicks = Clicks(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 2, 5, 6]), 6)
    rng = np.random.default_rng(0)
    seen = np.zeros((7, 7))
    for _ in range(3000):
        first, second = clicks.pairs(rng)
        assert sorted(first) == [1, 2, 3, 4, 5]  # each click once, the user of one click has no pair
        np.add.at(seen, (first, second), 1)
    expected = np.zeros((7, 7))
    expected[1, 2] = expected[2, 1] = 3000
    for item in (3, 4, 5):
        expected[item, [other for other in (3, 4, 5) if other != item]] = 1500
    np.testing.assert_allclose(seen, expected, atol=120)
    drawn = [len(first) for first, _ in pair_batches(clicks, 2, 12, seed=1)]
    assert drawn == [2, 2, 1, 2, 2, 1, 2]


def test_the_validation_or_test_split_is_refused_as_training_split(tmp_path):
    train = write_split(tmp_path / "train.parquet", TRAIN)
    valid = write_split(tmp_path / "valid.parquet", VALID)
    test = write_split(tmp_path / "other.parquet", VALID, label=None)
    with pytest.raises(UserError, match=r"valid.parquet: this is the validation or the test split"):
        read_clicks(valid, 6)
    with pytest.raises(UserError, match=r"other.parquet: has no column label, expected the training split"):
        read_clicks(test, 6)
    empty = write_split(tmp_path / "empty.parquet", VALID, label=pa.array([None] * 4, pa.int64()))
    with pytest.raises(UserError, match=r"empty.parquet: column label"):
        read_clicks(empty, 6)
    copied = tmp_path / "folder" / "train.parquet"
    copied.parent.mkdir()
    shutil.copy(valid, copied)
    for leak in (copied, valid):
        with pytest.raises(UserError, match="answers"):
            read_clicks(leak, 6, valid)
    assert baskets(read_clicks(train, 6, valid)) == [[2, 5], [1, 3, 4]]  # user -5 had item 2 before, too


def test_splits_are_told_apart_by_their_files_not_by_their_names(tmp_path):
    """Names may lack `.parquet`, and a split may be a folder."""
    train = write_split(tmp_path / "train.parquet", TRAIN)
    valid = write_split(tmp_path / "held_out.parquet", VALID)
    read = baskets(read_clicks(train, 6))
    for name, other in ((train, valid), (train.with_suffix(""), valid.with_suffix(""))):
        assert baskets(read_clicks(name, 6, other)) == read
    with pytest.raises(UserError, match="none: no such file"):
        read_clicks(train, 6, tmp_path / "none")
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(train, whole / "part-0.parquet")
    (whole / "part-1.parquet").hardlink_to(valid)
    for leak in (valid.with_suffix(""), whole):
        with pytest.raises(UserError, match="this is the validation or the test split, or has a part of it"):
            read_clicks(leak, 6, valid)


def test_clicks_of_the_validation_rows_are_refused_in_histories_and_in_targets(tmp_path):
    valid = write_split(tmp_path / "valid.parquet", VALID)
    for place, row in enumerate([([1, 3, 4, 6], 5, 0), ([1, 3, 4], 6, 1)]):
        train = write_split(tmp_path / f"leaky_{place}.parquet", TRAIN | {7: [*TRAIN[7], row]})
        for known in (valid, None):  # given, or found beside
            with pytest.raises(UserError, match=r"knows 1 of 3 clicks of .*valid.parquet \(user 7, item 6, for one\)"):
                read_clicks(train, 6, known)
    shown = write_split(tmp_path / "shown.parquet", TRAIN | {7: [*TRAIN[7], ([1, 3, 4], 6, 0)]})
    read_clicks(shown, 6)  # that it was shown is not that it was clicked
    cut = {7: [([1, 3, 4, 5], 2, 1)]}  # the item may have been clicked before what is left of the history
    before = write_split(tmp_path / "before.parquet", TRAIN | {7: [([2], 1, 1), ([2, 1], 3, 1)]})
    read_clicks(before, 6, write_split(tmp_path / "cut.parquet", cut))


def test_validation_rows_are_refused_whose_histories_are_cut(tmp_path):
    write_split(tmp_path / "valid.parquet", {7: [([3, 4, 5, 6], 2, 1), ([3, 4, 5, 6], 1, 0)]})
    for leaks, row in [(True, ([3, 4, 5, 6], 2, 1)), (False, ([2, 4, 5, 6], 2, 1)), (False, ([3, 4, 5, 6], 1, 1))]:
        train = write_split(tmp_path / "train.parquet", TRAIN | {7: [*TRAIN[7], row]})
        if leaks:
            with pytest.raises(UserError, match=r"has 1 clicked rows of .*valid.parquet \(user 7, item 2, for one"):
                read_clicks(train, 6)
        else:
            read_clicks(train, 6)
    write_split(train, TRAIN | {8: [([3, 4, 5, 6], 2, 1)]})  # another user's
    read_clicks(train, 6)


def test_a_few_clicks_may_come_twice(tmp_path):
    """A small log can have the same click in both splits: a user came back to an item."""
    rows = {user: [([3, 4, 5, 6], 2, 1)] for user in range(10, 50)}
    write_split(tmp_path / "valid.parquet", rows)
    for common, refused in [(20, False), (21, True)]:
        again = {user: rows[user] for user in range(10, 10 + common)}
        train = write_split(tmp_path / "train.parquet", TRAIN | again)
        if refused:
            with pytest.raises(UserError, match=r"has 21 clicked rows of .* of 40 whose histories are cut"):
                read_clicks(train, 6)
        else:
            read_clicks(train, 6)


def once_a_user(folder, sequences, rows, name="train"):
    """A split of {user: (history_end, target, label), ...} and its user_info: their paths."""
    flat = [(user, *row) for user, theirs in rows.items() for row in theirs]
    columns = dict(zip(("user_id", "history_end", "item_id", "label"), zip(*flat, strict=True), strict=True))
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    users = {"user_id": range(len(sequences)), "item_seq": pa.array(sequences, pa.list_(pa.int64()))}
    pq.write_table(pa.table(users), folder / "user_info.parquet")
    return folder / f"{name}.parquet", folder / "user_info.parquet"


SEQUENCES = [[2, 2, 5, 3], [], [1, 3, 4, 6], [4, 4], [5, 1]]
USER_ROWS = {2: [(0, 1, 1), (3, 5, 0), (1, 3, 1)], 0: [(2, 5, 1)], 1: [(0, 6, 1)], 3: [(2, 5, 0)]}  # user 4 has none


@pytest.mark.parametrize("slice_values", [1, 1 << 22])
def test_of_user_info_is_read_what_the_rows_look_back_on(slice_values, tmp_path, monkeypatch):
    monkeypatch.setattr(user_info, "SLICE_VALUES", slice_values)  # users at once: 1, or all
    train, users = once_a_user(tmp_path, SEQUENCES, USER_ROWS)
    clicks = read_clicks(train, 6, users=users)
    slow = {}
    for user, rows in USER_ROWS.items():
        for end, target, label in rows:
            slow.setdefault(user, set()).update(SEQUENCES[user][:end], [target] * label)
    assert baskets(clicks) == [sorted(slow[user]) for user in sorted(slow)] == [[2, 5], [6], [1, 3, 4], [4]]
    whole = pq.read_table(train).drop_columns(["history_end"])
    pq.write_table(whole, tmp_path / "whole.parquet")
    assert baskets(read_clicks(tmp_path / "whole.parquet", 6, users=users)) == [[2, 3, 5], [6], [1, 3, 4, 6], [4]]


def test_a_few_clicks_that_valid_repeats_are_told_of_and_left_out(tmp_path, capsys):
    """Where users click an item twice, 1 of 20 clicks of valid may be in train; 2 are more than chance."""
    asked = {user: [([2, 3], 1, 1)] for user in range(20)}
    valid = write_split(tmp_path / "valid.parquet", asked)
    clicks = {user: [([2, 3], 4, 1)] for user in range(20)}
    plain = baskets(read_clicks(write_split(tmp_path / "plain.parquet", clicks), 6, valid))
    assert capsys.readouterr().err == ""
    again = {user: [*rows, ([2, 3], 1, 1)] for user, rows in clicks.items()}
    few = write_split(tmp_path / "few.parquet", clicks | {5: again[5]})
    assert baskets(read_clicks(few, 6, valid)) == plain
    said = capsys.readouterr().err
    assert said.startswith("warning:") and "knows 1 of 20 clicks of" in said and "(user 5, item 1, for one)" in said
    more = write_split(tmp_path / "more.parquet", clicks | {5: again[5], 6: again[6]})
    with pytest.raises(UserError, match="knows 2 of 20 clicks of"):
        read_clicks(more, 6, valid)


@pytest.mark.parametrize("slice_values", [1, 1 << 22])
def test_clicks_of_the_validation_rows_are_refused_in_user_info(slice_values, tmp_path, monkeypatch):
    monkeypatch.setattr(user_info, "SLICE_VALUES", slice_values)
    asked = {2: [(3, 6, 1), (3, 5, 0)], 0: [(3, 3, 1), (3, 2, 1)], 4: [(1, 1, 1)]}  # user 0 had item 2 before
    valid, users = once_a_user(tmp_path, SEQUENCES, asked, "valid")
    train, _ = once_a_user(tmp_path, SEQUENCES, USER_ROWS)
    assert baskets(read_clicks(train, 6, valid, users)) == baskets(read_clicks(train, 6, users=users))
    for user, row in ((2, (4, 5, 0)), (2, (3, 6, 1))):
        leaky, _ = once_a_user(tmp_path, SEQUENCES, USER_ROWS | {user: [*USER_ROWS[user], row]})
        for known in (valid, None):  # given, or found beside
            with pytest.raises(UserError, match=r"knows 1 of 3 clicks of .*valid.parquet \(user 2, item 6, for one\)"):
                read_clicks(leaky, 6, known, users)


def test_rows_that_point_beyond_user_info_are_refused(tmp_path):
    train, users = once_a_user(tmp_path, SEQUENCES, {2: [(5, 1, 1)]})
    with pytest.raises(UserError, match=r"train.parquet.*history_end.*is 5 for user 2 with 4 items"):
        read_clicks(train, 6, users=users)
    with pytest.raises(UserError, match=r"user_info.parquet.*item_seq.*has 6"):
        read_clicks(train, 5, users=users)


def test_what_teaches_nothing_is_refused(tmp_path):
    single = write_split(tmp_path / "single.parquet", {1: [([], 2, 1)], 2: [([], 3, 1)]})
    with pytest.raises(UserError, match="no user clicked two items"):
        read_clicks(single, 6)
    shown = write_split(tmp_path / "shown.parquet", {1: [([], 2, 0)]})
    with pytest.raises(UserError, match="has no clicks"):
        read_clicks(shown, 6)
    with pytest.raises(UserError, match=r"item_id has 6 in row 6, expected 0 to 5"):
        read_clicks(write_split(tmp_path / "train.parquet", TRAIN), 5)


def test_the_losses_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    centres, contexts, negatives = (rng.normal(size=size) for size in ((3, 4), (3, 4), (6, 4)))
    logistic = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    slow = [
        -np.log(logistic(u @ v)) - NEGATIVES * np.mean([np.log(logistic(-u @ w)) for w in negatives])
        for u, v in zip(centres, contexts, strict=True)
    ]
    found = negative_sampling(*(torch.from_numpy(part) for part in (centres, contexts, negatives)))
    assert found.item() == pytest.approx(np.mean(slow))

    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    anchors, others, rows, often = unit(centres), unit(contexts), [4, 9, 4], np.log([0.5, 0.2, 0.5])
    slow = []
    for i in range(3):
        against = [j for j in range(3) if j == i or rows[j] != rows[i]]
        scores = {j: anchors[i] @ others[j] / TEMPERATURE - often[j] for j in against}
        slow.append(np.log(sum(np.exp(list(scores.values())))) - scores[i])
    found = info_nce(torch.from_numpy(anchors), torch.from_numpy(others), torch.tensor(rows), torch.from_numpy(often))
    assert found.item() == pytest.approx(np.mean(slow))


def test_the_student_is_ridge_and_its_error_that_of_items_left_out():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(40, 6)).astype(np.float32)
    targets = (inputs[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(size=(40, 2)) + 4).astype(np.float32)
    taught = np.arange(40) < 30
    x, y = inputs[taught].astype(float), targets[taught].astype(float)
    scale = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
    errors = []
    for penalty in PENALTIES * scale:
        left_out = [
            Ridge(penalty, tol=1e-10).fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1])[0]
            for i in range(30)
        ]
        errors.append(np.square(y - left_out).sum() / np.square(y - y.mean(0)).sum())
    said, error = ridge(inputs, targets, taught)
    assert error == pytest.approx(min(errors), rel=1e-6)
    best = Ridge(PENALTIES[int(np.argmin(errors))] * scale).fit(x, y)
    np.testing.assert_allclose(said, best.predict(inputs.astype(float)) - y.mean(0), atol=1e-5)


@pytest.fixture(scope="module")
def world():
    """Two kinds of items that users do not mix; the image says which, but weakly, among louder things."""
    rng = np.random.default_rng(5)
    kind = rng.integers(0, 2, size=80)
    image = rng.normal(size=(80, 12)) + 2.0 * kind[:, None] * (np.arange(12) == 7)
    text = rng.normal(size=(80, 12)) * np.linspace(4, 0.5, 12)
    everywhere = np.ones(80, dtype=bool)
    features = {
        "text": ArrayFeatures(text.astype(np.float32), everywhere.copy()),
        "image": ArrayFeatures(image.astype(np.float32), everywhere.copy()),
    }
    features["text"].present[79] = features["image"].present[79] = False
    warm = np.arange(80) < 60
    users = [np.sort(rng.choice(np.flatnonzero(warm & (kind == which)), 8, replace=False)) + 1 for which in [0, 1] * 60]
    return features, kind, warm, Clicks(np.concatenate(users), np.arange(0, 961, 8), 80)


def likeness(embedding: np.ndarray, kind: np.ndarray) -> float:
    """Mean cosine within a kind less that across kinds."""
    units = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-9)
    cosines, same = units @ units.T, kind[:, None] == kind
    apart = ~np.eye(len(kind), dtype=bool)
    return float(cosines[same & apart].mean() - cosines[~same].mean())


def learn_little(monkeypatch, pairs: int):
    """A small world needs small steps, and few."""
    for module in (contrastive_module, item2vec_module):
        monkeypatch.setattr(module, "PAIRS", pairs)
        monkeypatch.setattr(module, "BATCH", 64)
    monkeypatch.setattr(contrastive_module, "LEARNING_RATE", 3e-3)


@pytest.mark.parametrize("name", list(CLICK_FUSIONS))
def test_cold_items_come_to_lie_where_the_clicks_put_their_kind(name, world, monkeypatch):
    features, kind, warm, clicks = world
    learn_little(monkeypatch, 30_000)
    cold = np.flatnonzero(~warm)[:-1]
    fused = CLICK_FUSIONS[name](features, 8, 0, clicks, CPU)
    before = likeness(pca(features, 8).embedding[cold], kind[cold])
    assert likeness(fused.embedding[cold], kind[cold]) > before + 0.2
    assert fused.embedding.dtype == np.float32 and fused.embedding.shape == (80, 8)
    assert np.square(fused.embedding).sum(axis=1).mean() == pytest.approx(8, rel=1e-5)
    assert not fused.embedding[79].any() and not np.signbit(fused.embedding[79]).any()


@pytest.mark.parametrize("name", list(CLICK_FUSIONS))
def test_a_seed_gives_the_same_bytes_whatever_else_is_drawn(name, world, monkeypatch):
    features, _, _, clicks = world
    learn_little(monkeypatch, 2_000)
    first = CLICK_FUSIONS[name](features, 8, 1, clicks, CPU).embedding
    torch.rand(3)
    assert CLICK_FUSIONS[name](features, 8, 1, clicks, CPU).embedding.tobytes() == first.tobytes()
    assert not np.allclose(CLICK_FUSIONS[name](features, 8, 2, clicks, CPU).embedding, first, atol=1e-4)


def test_item2vec_puts_co_clicked_items_near(monkeypatch):
    learn_little(monkeypatch, 30_000)
    rng = np.random.default_rng(0)
    kind = np.arange(20) % 2
    users = [np.sort(rng.choice(np.flatnonzero(kind == which), 5, replace=False)) + 1 for which in [0, 1] * 100]
    vectors = skip_gram(Clicks(np.concatenate(users), np.arange(0, 1001, 5), 20), 8, 0, CPU)
    assert likeness(vectors, kind) > 0.5


def test_an_item_that_nobody_can_learn_of_is_named(world):
    features, _, _, clicks = world
    few = {name: ArrayFeatures(each.features, np.arange(80) > 57) for name, each in features.items()}
    with pytest.raises(UserError, match="2 items have content and clicks in --train, expected at least 3"):
        CLICK_FUSIONS["item2vec"](few, 2, 0, clicks, CPU)
    with pytest.raises(UserError, match="independent directions"):
        contrastive(features, 79, 0, clicks, CPU)

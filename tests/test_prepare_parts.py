"""Splits, histories, negatives and levels against slow and obvious forms."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mm_fibinet.errors import UserError
from mm_fibinet.prepare import writing
from mm_fibinet.prepare.histories import before_rows
from mm_fibinet.prepare.levels import counts_and_ratings, levels
from mm_fibinet.prepare.negatives import NegativeSampler
from mm_fibinet.prepare.recipe import Label, parse_label
from mm_fibinet.prepare.splits import TEST, TRAIN, VALID, at_random, by_time, leave_last_out
from mm_fibinet.prepare.vocabulary import Vocabulary


def draw_log(seed, rows=500, users=20, items=30, moments=40):
    """user, time, item, clicked, sorted by user and time; many rows share a moment."""
    rng = np.random.default_rng(seed)
    user, time = rng.integers(0, users, rows).astype(np.int32), rng.integers(0, moments, rows)
    order = np.lexsort((time, user))
    return user[order], time[order], rng.integers(1, items, rows).astype(np.int32), rng.random(rows) < 0.6


@pytest.mark.parametrize("seed", range(3))
def test_a_history_is_the_users_clicks_strictly_before_the_row(seed):
    user, time, item, clicked = draw_log(seed)
    found = before_rows(user, time, item, clicked)
    padded = found.padded(7)
    for row in range(len(user)):
        before = [
            int(item[other])
            for other in range(len(user))
            if clicked[other] and user[other] == user[row] and time[other] < time[row]
        ]
        assert found.items[found.start[row] : found.end[row]].tolist() == before
        assert padded[row].tolist() == ([0] * 7 + before)[-7:]


def test_frozen_histories_end_where_the_rows_split_begins():
    """Those of train before any click that valid or test ask for: a random split has rows of train after them."""
    user, time, item, clicked = draw_log(3)
    split = np.random.default_rng(0).integers(0, 3, len(user)).astype(np.uint8)  # given splits may be in any order
    found = before_rows(user, time, item, clicked, split)
    for row in range(len(user)):
        before = [at for at in range(len(user)) if clicked[at] and user[at] == user[row] and time[at] < time[row]]
        barred = [at for at in before if split[at] >= max(split[row], VALID)]
        kept = before[: before.index(barred[0])] if barred else before
        assert found.items[found.start[row] : found.end[row]].tolist() == item[kept].tolist()


def test_histories_without_any_click():
    user, time, item, _ = draw_log(0)
    found = before_rows(user, time, item, np.zeros(len(user), dtype=bool))
    assert not found.lengths.any() and not found.padded(5).any() and found.padded(5).shape == (len(user), 5)


@pytest.mark.parametrize("seed", range(3))
def test_time_splits_by_shares_and_keeps_a_moment_together(seed):
    time = np.random.default_rng(seed).integers(0, 200, 1000)
    split = by_time(time, 0.1, 0.2)
    ranked = sorted(time.tolist())
    assert time[split == TEST].min() == ranked[800] and time[split == VALID].min() == ranked[700]
    assert time[split == TRAIN].max() < time[split == VALID].min() <= time[split == VALID].max()
    assert time[split == VALID].max() < time[split == TEST].min()


@pytest.mark.parametrize("seed", range(3))
def test_leave_last_out_takes_each_users_last_two_moments(seed):
    user, time, _, _ = draw_log(seed, rows=150, users=40)
    split = leave_last_out(user, time)
    for person in np.unique(user):
        moments = sorted(set(time[user == person].tolist()))
        expected = dict.fromkeys(moments, TRAIN)
        if len(moments) >= 3:
            expected |= {moments[-1]: TEST, moments[-2]: VALID}
        assert split[user == person].tolist() == [expected[moment] for moment in time[user == person].tolist()]
    assert (split == TEST).any() and len(np.unique(user[split == TEST])) < len(np.unique(user))


def test_random_splits_have_their_shares():
    split = at_random(100_000, 0.1, 0.3, np.random.default_rng(0))
    assert np.bincount(split) / 100_000 == pytest.approx([0.6, 0.1, 0.3], abs=0.01)


@pytest.mark.parametrize("popular", [False, True])
def test_negatives_are_drawn_by_weight_from_what_a_user_never_clicked(popular):
    """The share of each item among many draws is its weight among the user's allowed items."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 4, 25).astype(np.int32), rng.integers(1, 12, 25).astype(np.int32)
    weights = np.array([0, 5, 0, 1, 1, 9, 2, 0, 3, 1, 1, 4])  # items 2 and 7 are not in train
    weights = weights if popular else (weights > 0).astype(np.int64)
    sampler = NegativeSampler(user, item, weights)
    for person in range(4):
        allowed = weights.copy()
        allowed[item[user == person]] = 0
        assert allowed.any() and sampler.has_any(np.array([person])).all()
        drawn = np.bincount(sampler.draw(np.full(40_000, person), rng), minlength=len(weights))
        assert not drawn[allowed == 0].any()
        assert drawn / 40_000 == pytest.approx(allowed / allowed.sum(), abs=0.015)


def test_a_user_who_clicked_all_of_trains_items_has_no_negatives():
    weights = np.array([0, 1, 1, 0, 1])
    user, item = np.array([0, 0, 0, 1, 1]), np.array([1, 2, 4, 3, 3])
    sampler = NegativeSampler(user, item, weights)
    assert sampler.has_any(np.array([0, 1])).tolist() == [False, True]
    assert set(sampler.draw(np.ones(200, dtype=np.int64), np.random.default_rng(0)).tolist()) == {1, 2, 4}


def test_levels_are_the_tenths_of_the_ranks_and_equal_values_share_one():
    values = np.random.default_rng(0).integers(0, 50, 300)
    known = values > 3
    found = levels(values, known)
    for value, level in zip(values.tolist(), found.tolist(), strict=True):
        smaller = sum(other < value for other in values[known].tolist())
        assert level == (1 + int(10 * smaller / known.sum()) if value > 3 else 0)
    assert set(found.tolist()) == set(range(11))


def test_counts_and_mean_ratings():
    item, rating = np.array([1, 2, 2, 4, 4]), np.array([5, 1, 4, np.nan, 3], dtype=np.float32)
    counts, means, rated = counts_and_ratings(item, rating, 6)
    assert counts.tolist() == [0, 1, 2, 0, 2, 0]
    assert means[rated].tolist() == [5, 2.5, 3] and rated.tolist() == [False, True, True, False, True, False]


def test_ids_follow_the_texts_and_not_the_order_of_reading():
    texts = ["b", "été", None, "a", "衣服", "b"]
    vocabulary = Vocabulary([pl.Series(texts), pl.Series(["c"], dtype=pl.Categorical)])
    assert vocabulary.names.to_list() == sorted({"a", "b", "c", "été", "衣服"})
    assert vocabulary.ids(pl.Series(texts)).tolist() == [2, 4, 0, 1, 5, 2]
    assert vocabulary.ids(pl.Series(["z", "c", None]).cast(pl.Categorical)).tolist() == [0, 3, 0]
    assert len(Vocabulary([])) == 0 and Vocabulary([]).ids(pl.Series(["a"])).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("clicked", Label("clicked")),
        ("rating >= 4", Label("rating", None, ">=", 4.0)),
        ("rating>-1.5e2", Label("rating", None, ">", -150.0)),
        ("event == 'add to cart'", Label("event", None, "==", "add to cart")),
        ("event != view", Label("event", None, "!=", "view")),
        ("label_0[1]", Label("label_0", 1)),
        ("label_0[1] == 1", Label("label_0", 1, "==", 1.0)),
        ("__import__('os').system('true')", Label("__import__('os').system('true')")),  # a column's name, no more
    ],
)
def test_a_label_is_a_column_an_operator_and_a_value(text, label):
    assert parse_label(text) == label


@pytest.mark.parametrize(
    "text", ["", ">= 4", "rating >=", "rating >= high", "a > b", "rating >= 4 and x", "a[b]", "a = 1"]
)
def test_other_labels_are_refused(text):
    with pytest.raises(UserError, match="label is"):
        parse_label(text)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_users_are_written_in_blocks(monkeypatch, at_once):
    monkeypatch.setattr(writing, "PLACES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    items, lengths = rng.integers(1, 90, 60).astype(np.int32), np.array([0, 3, 0, 12, 1, 0, 20, 4, 0])
    start = rng.integers(0, 40, len(lengths))
    columns = {"age": pa.array(rng.random(len(lengths)))}
    tables = list(writing._user_tables(items, start, lengths, columns))
    assert len(tables) == {1: 6, 7: 3, 1000: 1}[at_once]  # by the items before: 0 3 3 15 16 16 36 40 40
    written = pa.concat_tables(tables)
    assert written["user_id"].to_pylist() == list(range(len(lengths)))
    assert written["age"].to_pylist() == columns["age"].to_pylist()
    assert written["item_seq"].to_pylist() == [items[a : a + n].tolist() for a, n in zip(start, lengths, strict=True)]

"""Data that can be read, and would make wrong figures in silence: refused where it is certain, told where it may be."""

import itertools

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from test_prepare import make, raw_items, raw_log, write_raw

from mm_fibinet.data_check import check_dataset
from mm_fibinet.errors import UserError
from mm_fibinet.items.build import build as embed
from mm_fibinet.items.originals import refuse_original_images
from mm_fibinet.prepare import doubts, giveaways, report
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.recipe import load_recipe
from mm_fibinet.settings import load_dataset_config

CLICKS = {"interactions": "log.csv", "user": "who", "item": "what", "timestamp": "when"}


def clicks(folder, rows=600, items=20, **columns):
    """A log of clicks by chance, and what else its rows have, by the items' numbers: build it with `settings`."""
    rng = np.random.default_rng(3)
    item = rng.integers(0, items, rows)
    log = pl.DataFrame({"who": rng.integers(0, 30, rows), "what": item, "when": np.arange(rows)})
    log = log.with_columns(**{name: pl.Series(of(item, rng)) for name, of in columns.items()})
    log.write_csv(folder / "log.csv")
    return log


def made(folder, out="out", **settings):
    return build(load_recipe(None, {"data_root": str(folder), **CLICKS, **settings}), folder / out)


PRICES = {
    "whole": lambda item, rng: 5 + 3 * item,
    "text": lambda item, rng: [f"shelf {number % 5}" for number in item],
}


@pytest.mark.parametrize("kind", PRICES)
def test_a_feature_that_tells_the_item_is_refused_where_negatives_are_drawn(kind, tmp_path):
    clicks(tmp_path, price=PRICES[kind])
    with pytest.raises(
        UserError, match=r"feature price: clicks of one item have the same price, so that a drawn negat"
    ):
        made(tmp_path, features=["price"])
    assert not (tmp_path / "out").exists()
    made(tmp_path, features=["price"], negatives=0)


def test_how_far_a_feature_tells_the_item_is_told(tmp_path):
    """Half of the rows have the item's own price, the others any: by chance two agree in a twentieth."""
    clicks(tmp_path, price=lambda item, rng: np.where(rng.random(600) < 0.7, item, rng.integers(0, 20, 600)))
    [doubt] = made(tmp_path, features=["price"]).report["doubts"]
    assert doubt.startswith("feature price: two clicks of one item agree in it 4") or "agree in it 5" in doubt
    clicks(tmp_path, price=lambda item, rng: rng.integers(0, 4, 600))
    assert made(tmp_path, "chance", features=["price"]).report["doubts"] == []


def test_the_agreement_is_that_of_pairs_beyond_chance():
    """Worked out over all pairs of clicks of one item by two users."""
    rng = np.random.default_rng(0)
    item, user = rng.integers(0, 9, 900).astype(np.int32), np.sort(rng.integers(0, 400, 900).astype(np.int32))
    values = np.where(rng.random(900) < 0.6, item + 1, rng.integers(0, 5, 900)).astype(np.int32)
    of_users = user // 100 + 1  # users of one country have neighbouring ids
    rare = np.where(rng.random(900) < 0.002, 2, 1).astype(np.int32)  # two clicks differ once in 250 times
    found = giveaways.of_features(
        {"f": values, "country": of_users, "rare": rare}, user, item, np.ones(900, dtype=bool)
    )
    there = np.flatnonzero(values > 0)
    pairs = [(a, b) for a, b in itertools.combinations(there, 2) if item[a] == item[b] and user[a] != user[b]]
    agree = np.mean([values[a] == values[b] for a, b in pairs])
    chance = np.mean(values[there][:, None] == values[there])
    assert found["f"] == pytest.approx((agree - chance) / (1 - chance), abs=0.05)
    assert abs(found["country"]) < 0.1 and found["rare"] == 0


def test_whole_numbers_written_as_floats_in_one_file_are_refused(tmp_path):
    """pandas' to_csv of a column with a gap: one user's 3 would be another's 3.0."""
    log = pl.DataFrame(
        {"who": ["1", "2", "3"] * 20, "what": ["7", "8", "9", "6"] * 15, "when": range(60), "hit": [0, 1] * 30}
    )
    log = log.with_columns(kind=pl.Series(["4", "5"] * 30))
    log.write_csv(tmp_path / "train.csv")
    recipe = {
        "data_root": str(tmp_path), "interactions": {"train": "train.csv", "test": "test.csv"}, "user": "who",
        "item": "what", "timestamp": "when", "label": "hit", "categorical": ["kind"],
    }  # fmt: skip
    for column, what in {
        "who": "users are '1' here and '1.0'",
        "what": "items are '6' here",
        "kind": "values of kind are '4' here",
    }.items():
        log.with_columns(pl.col(column) + ".0").write_csv(tmp_path / "test.csv")
        with pytest.raises(UserError, match=rf"{what}.* programs write floats; write whole numbers"):
            build(load_recipe(None, recipe), tmp_path / "out")
    log.with_columns(pl.format(" {} ", name).alias(name) for name in ("who", "what", "kind")).write_csv(
        tmp_path / "test.csv"
    )
    built = build(load_recipe(None, recipe), tmp_path / "out")
    assert (built.report["users"], built.report["items"], built.report["categories"]) == (3, 4, {"kind": 2})


@pytest.mark.parametrize("odd", ["12,50", "1,299.50", "12.50 €", "$5", "12 EUR", "1'000", "\\N", "-", "#N/A", "free"])
def test_what_is_no_number_among_numbers_is_no_category_in_silence(odd, tmp_path):
    clicks(tmp_path, price=lambda item, rng: [odd if at % 9 == 0 else f" {at / 4} " for at in range(600)])
    with pytest.raises(UserError, match=r"log.csv: column price has .* among its first values, mostly numbers; write"):
        made(tmp_path, features=["price"])
    built = made(tmp_path, interactions={"files": "log.csv", "missing": [odd]}, features=["price"])
    assert built.report["categories"] == {}
    clicks(tmp_path, price=lambda item, rng: [["red", "blue", "12"][at % 3] for at in range(600)])
    assert made(tmp_path, "words", features=["price"]).report["categories"] == {"price": 3}


def test_values_that_train_lacks_are_told(tmp_path):
    clicks(tmp_path, day=lambda item, rng: [f"2026-01-{1 + at // 25:02}" for at in range(600)])
    [doubt] = made(tmp_path, features=["day"]).report["doubts"]
    later = pl.concat(
        [pl.read_parquet(tmp_path / "out" / f"{split}.parquet", columns=["day"]) for split in ("valid", "test")]
    )
    assert doubt.startswith(
        f"feature day: {(later['day'] == 0).mean():.0%} of its values outside train are none of train's"
    )


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"label": "stars >= 4", "features": ["stars"]}, "stars"),
        ({"label": "stars == 4", "categorical": ["stars"], "features": []}, "stars"),
        ({"rating": "hour"}, "hour"),
    ],
)
def test_the_labels_own_column_is_no_feature(settings, name, tmp_path):
    with pytest.raises(UserError, match=rf"has {name}, which the label is made of: the model would read the answer"):
        make(write_raw(tmp_path / "raw"), tmp_path / "out", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "leave_last_out", "valid": 0.2}, {"split": "leave_last_out", "test": 0.2}, {"sampling": "popularity"},
        {"list_separator": ","}, {"user_key": "who"}, {"embedding_scale": 2.0}, {"copy_images": True},
        {"items": "none", "max_tags": 3}, {"items": "none", "all_items": True}, {"items": "none", "tag_separator": ","},
        {"interactions": dict.fromkeys(("train", "valid", "test"), "log.csv"), "split": "random"},
        {"interactions": dict.fromkeys(("train", "test"), "log.csv"), "test": 0.2},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_nothing_reads_is_refused(settings, tmp_path):
    given = {"data_root": str(tmp_path), **CLICKS, "label": "stars >= 4", **settings}
    with pytest.raises(UserError, match=rf"{list(settings)[-1]} is set, which is read .*; leave it out"):
        load_recipe(None, {name: value for name, value in given.items() if value != "none"})
    del given[list(settings)[-1]]
    load_recipe(None, {name: value for name, value in given.items() if value != "none"})


@pytest.mark.parametrize("name", ["type", "store.id", "items"])
def test_a_feature_that_no_training_would_take_is_refused_before_the_build(name, tmp_path):
    folder = write_raw(tmp_path / "raw", raw_log().with_columns(pl.col("country").alias(name)))
    with pytest.raises(
        UserError, match=rf"features: a feature cannot be called '{name}', a name of torch's; rename the column"
    ):
        make(folder, tmp_path / "out", features=[name])


def test_the_check_refuses_what_no_training_would_take(tmp_path):
    make(write_raw(tmp_path / "raw"), tmp_path / "out")
    entry = load_dataset_config(tmp_path / "out", "out_no_emb")
    for split in ("train", "valid", "test"):
        path = tmp_path / "out" / f"{split}.parquet"
        pl.read_parquet(path).rename({"country": "store.id"}).write_parquet(path)
    columns = [{**column, "name": column["name"].replace("country", "store.id")} for column in entry["feature_cols"]]
    rows = check_dataset({**entry, "dataset_id": "out_no_emb", "feature_cols": columns})
    [problem] = [problem for row in rows for problem in row.problems]
    assert problem == "feature_cols: a feature cannot be called 'store.id', a name of torch's; rename the column"


def test_levels_that_hold_their_rows_own_label_are_told(tmp_path):
    """Where an item has one or two rows; not where it has many."""
    for items, told in {700: True, 8: False}.items():
        clicks(tmp_path, 1000, items, stars=lambda item, rng: rng.integers(1, 6, 1000))
        found = made(tmp_path, str(items), label="stars >= 4").report["doubts"]
        train = pl.read_parquet(tmp_path / str(items) / "train.parquet")
        auc = roc_auc_score(train["label"], train["likes_level"])
        assert [f"likes_level: tells train's labels by itself (AUC {auc:.2f})" in doubt for doubt in found] == [
            True
        ] * told
        assert doubts._auc(train["likes_level"].to_numpy(), train["label"].to_numpy()) == pytest.approx(auc)


def test_only_more_and_less_make_a_label_of_ratings(tmp_path):
    folder = write_raw(tmp_path / "raw")
    for label, levels in {"stars > 3": 2, "stars != 3": 1, "stars == 4": 1}.items():
        make(folder, tmp_path / label, label=label)
        columns = pl.read_parquet_schema(tmp_path / label / "item_feature.parquet")
        assert len([name for name in columns if name.endswith("_level")]) == levels, label


def test_histories_that_reach_beyond_their_row_are_told(tmp_path):
    log = raw_log().drop_nulls(["who", "what", "when", "stars"])
    past = log.filter(pl.col("stars") >= 4).group_by("who", maintain_order=True).agg(pl.col("what").alias("past"))
    past.write_parquet(tmp_path / "users.parquet")
    folder = write_raw(tmp_path / "raw", log)
    of_users = {"users": str(tmp_path / "users.parquet"), "user_key": "who", "user_history": "past"}
    found = make(folder, tmp_path / "out", **of_users).report["doubts"]
    had = dict(past.iter_rows())
    train = log.sort("when").with_columns(
        own=pl.struct("who", "what").map_elements(lambda row: row["what"] in had[row["who"]], bool)
    )
    others = train.filter(pl.col("stars") < 4)["own"].mean()
    assert 0.2 < others < 0.8 and ["of 100% of" in doubt for doubt in found if "own history" in doubt] == [True] * 3
    assert not any("own history" in doubt for doubt in make(folder, tmp_path / "log").report["doubts"])


def test_labels_that_one_row_withholds_are_told(tmp_path):
    log = pl.DataFrame(
        {"who": ["1", "2", "3"] * 20, "what": ["7", "8", "9", "6"] * 15, "when": range(60), "hit": [0, 1] * 30}
    )
    log.write_csv(tmp_path / "train.csv")
    log.with_columns(hit=pl.when(pl.col("when") != 7).then("hit")).write_csv(tmp_path / "test.csv")
    recipe = {
        "data_root": str(tmp_path),
        **CLICKS,
        "interactions": {"train": "train.csv", "test": "test.csv"},
        "label": "hit",
    }
    built = build(load_recipe(None, recipe), tmp_path / "out")
    assert any(
        "labels: 1 of the 60 rows of test have none, so those of all are withheld" in told
        for told in built.report["doubts"]
    )
    log.drop("hit").write_csv(tmp_path / "test.csv")
    assert not any("labels" in told for told in build(load_recipe(None, recipe), tmp_path / "none").report["doubts"])


def test_an_id_that_a_program_wrote_for_none_is_told(tmp_path):
    """pandas' astype(str) makes one user, 'nan', of all rows without one."""
    log = raw_log().with_columns(pl.col("who").fill_null("nan"), pl.col("what").fill_null("null"))
    folder = write_raw(tmp_path / "raw", log)
    built = make(folder, tmp_path / "out")
    for kind, word in {"users": "nan", "items": "null"}.items():
        told = f"{kind}: '{word}' among them; if that stands for none, set missing: ['{word}'] beside the table's files"
        assert f"look at     {told}" in report.lines(built.report)
    left_out = make(folder, tmp_path / "again", interactions={"files": "log.csv", "missing": ["nan", "null"]}).report
    assert left_out["users"] == built.report["users"] - 1 and not any(
        "among them" in told for told in left_out["doubts"]
    )


def test_tags_that_were_not_cut_and_tags_that_are_left_out_are_told(tmp_path):
    of_semicolons = raw_items().with_columns(tags=pl.lit("war;tea") + pl.col("sku"))
    found = make(write_raw(tmp_path / "raw", items=of_semicolons), tmp_path / "out").report["doubts"]
    assert any("item_tags: none was cut by '|', and" in doubt and "check tag_separator" in doubt for doubt in found)
    many = raw_items().with_columns(tags=pl.lit("a|b|c|d"))
    found = make(write_raw(tmp_path / "many", items=many), tmp_path / "many_out", max_tags=3).report["doubts"]
    assert any("items have more than max_tags, 3, 4 at most; the first ones are kept" in doubt for doubt in found)


def test_images_that_are_named_by_other_ids_are_refused(tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "covers").mkdir()
    for name in ("cover-1.png", "cover-3.png"):
        (folder / "covers" / name).write_bytes(b"cover")
    with pytest.raises(
        UserError, match=r"covers: none of 2 images is named by an item's id, cover-[13].png for example"
    ):
        make(folder, tmp_path / "out", images="covers")


def test_covers_by_the_logs_own_ids_are_not_encoded_for_other_items(tmp_path):
    """Item 2 is the original 10, whose text comes after that of 1: 2.png would be another item's cover."""
    log = raw_log().with_columns(what=pl.Series([str(at % 12 + 1) for at in range(430)]))
    folder = write_raw(tmp_path / "raw", log, raw_items().with_columns(sku=pl.int_range(1, 48).cast(pl.String)))
    (folder / "covers").mkdir()
    for item in range(1, 13):
        (folder / "covers" / f"{item}.png").write_bytes(b"cover")
    make(folder, tmp_path / "out", images="covers")
    item_info = tmp_path / "out" / "item_info.parquet"
    with pytest.raises(
        UserError, match=r"covers: is named by the log's own ids, .* under these in .*item_images: name that"
    ):
        embed(item_info=item_info, images=folder / "covers", text_encoder="none", output=tmp_path / "item_info.parquet")
    assert not (tmp_path / "item_info.parquet").exists()
    for other in (tmp_path / "out" / "item_images", folder, None):
        refuse_original_images(item_info, other)

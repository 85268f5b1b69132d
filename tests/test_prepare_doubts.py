"""Data that can be read, and would make wrong figures in silence: refused where it is certain, told where it may be."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from test_prepare import make, raw_items, raw_log, write_raw
from torch import nn

from mm_fibinet import module_names
from mm_fibinet.data_check import check_dataset
from mm_fibinet.errors import UserError
from mm_fibinet.items.build import build as embed
from mm_fibinet.items.originals import refuse_original_images
from mm_fibinet.prepare import giveaways, report
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


TELLING = {
    "whole numbers": lambda item, rng: 5 + 3 * item,
    "texts": lambda item, rng: [f"shelf {number % 5}" for number in item],
    "mostly its own": lambda item, rng: np.where(rng.random(len(item)) < 0.9, item, rng.integers(0, 20, len(item))),
}
HARMLESS = {
    "by chance": lambda item, rng: rng.integers(0, 20, len(item)),
    "one value": lambda item, rng: np.full(len(item), 7),
    "rare": lambda item, rng: (rng.random(len(item)) < 0.002).astype(int),
}


@pytest.mark.parametrize("kind", TELLING)
def test_a_feature_that_tells_the_item_is_told_where_negatives_are_drawn(kind, tmp_path):
    clicks(tmp_path, price=TELLING[kind])
    [doubt] = made(tmp_path, features=["price"]).report["doubts"]
    share = int(doubt.removeprefix("feature price: tells the row's item, ").split("%")[0])
    assert share == 100 if kind != "mostly its own" else 70 < share < 90
    assert made(tmp_path, "none_drawn", features=["price"], negatives=0).report["doubts"] == []


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_not_tell_the_item_is_not_told(kind, tmp_path):
    clicks(tmp_path, price=HARMLESS[kind])
    assert made(tmp_path, features=["price"]).report["doubts"] == []


def test_the_agreement_is_that_of_pairs_beyond_that_of_others():
    """Worked out over all pairs of clicks of one item by two users, and of all others."""
    rng = np.random.default_rng(0)
    item, user = rng.integers(0, 9, 900).astype(np.int32), np.sort(rng.integers(0, 400, 900).astype(np.int32))
    values = np.where(rng.random(900) < 0.8, item + 1, rng.integers(0, 5, 900)).astype(np.int32)
    of_users = user // 100 + 1  # users of one country have neighbouring ids
    own_country = (user % 9 + 1).astype(np.int32)
    found = giveaways.of_features({"f": values, "country": of_users}, user, item, np.ones(900, dtype=bool))
    there = np.flatnonzero(values > 0)
    pairs = [(a, b) for a, b in itertools.combinations(there, 2) if item[a] == item[b] and user[a] != user[b]]
    agree = np.mean([values[a] == values[b] for a, b in pairs])
    chance = np.mean(values[there][:, None] == values[there])
    assert found["f"] == pytest.approx((agree - chance) / (1 - chance), abs=0.06)
    assert found["country"] == 0
    of_own_country = np.where(rng.random(900) < 0.95, user % 9, item).astype(np.int32)  # items of the user's country
    found = giveaways.of_features({"country": own_country}, user, of_own_country, np.ones(900, dtype=bool))
    assert found["country"] == 0, "what is the user's own tells nothing that the user does not"


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
    versions = log.with_columns(kind=pl.Series(["1", "1.0", "1.1"] * 20))
    versions.write_csv(tmp_path / "test.csv")
    build(load_recipe(None, recipe), tmp_path / "versions")
    log.with_columns(pl.format(" {} ", name).alias(name) for name in ("who", "what", "kind")).write_csv(
        tmp_path / "test.csv"
    )
    built = build(load_recipe(None, recipe), tmp_path / "out")
    assert (built.report["users"], built.report["items"], built.report["categories"]) == (3, 4, {"kind": 2})


@pytest.mark.parametrize(
    "odd", ["12,50", "1,299.50", "12.50 €", "$5", "12 EUR", "1'000", "30 %", "\\N", "-", "#N/A", "free"]
)
def test_what_is_no_number_among_numbers_is_no_category_in_silence(odd, tmp_path):
    clicks(tmp_path, price=lambda item, rng: [odd if at % 9 == 0 else f" {at / 4} " for at in range(600)])
    with pytest.raises(UserError, match=r"log.csv: column price has .* among its first values, mostly numbers; write"):
        made(tmp_path, features=["price"])
    built = made(tmp_path, interactions={"files": "log.csv", "missing": [odd]}, features=["price"])
    assert built.report["categories"] == {}


WORDS = {
    "words": ["red", "blue", "12"], "sizes": [*range(36, 46), "M"], "ages": ["0+", "6+", "12+", "all"],
    "intervals": [f"({at}.0, {at + 5}.0]" for at in range(40)], "addresses": [f"10.0.0.{at}" for at in range(40)],
    "dates": [f"{1 + at % 28:02}.{1 + at // 28:02}.2026" for at in range(60)],
    "versions": [f"1.0.{at}" for at in range(40)], "models": [f"{at}00mAh" for at in range(40)],
    "minutes": [f"{at} min" for at in range(40)],
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_categories_that_have_digits_are_categories(kind, tmp_path):
    clicks(tmp_path, kind=lambda item, rng: [str(WORDS[kind][at]) for at in rng.integers(0, len(WORDS[kind]), 600)])
    built = made(tmp_path, features=["kind"])
    assert built.report["categories"] == {"kind": len(WORDS[kind])} and built.report["doubts"] == []


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
    ],
)
def test_the_labels_own_column_is_no_feature(settings, name, tmp_path):
    with pytest.raises(UserError, match=rf"has {name}, which the label is made of: the model would read it"):
        make(write_raw(tmp_path / "raw"), tmp_path / "out", **settings)
    with pytest.raises(
        UserError, match="features has hour, the row's rating, which comes after the click; leave it out"
    ):
        make(write_raw(tmp_path / "raw"), tmp_path / "out", rating="hour")


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


def test_settings_that_are_stated_as_they_are_anyway_are_no_mistake(tmp_path):
    """The recipe in a report.json, say, which has them all."""
    built = make(write_raw(tmp_path / "raw"), tmp_path / "out", split="leave_last_out")
    stated = json.loads((tmp_path / "out" / "report.json").read_text())["recipe"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stated))
    assert stated["valid"] == 0.1 and stated["sampling"] == "uniform"
    assert build(load_recipe(tmp_path / "recipe.yaml", {}), tmp_path / "again").report == built.report


def test_an_option_may_make_a_setting_of_the_file_idle(tmp_path):
    """Nobody edits a recipe to try another split."""
    recipe = {**CLICKS, "negatives": 4, "sampling": "popularity", "valid": 0.15, "test": 0.15}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for changed in ({"negatives": 0}, {"split": "leave_last_out"}):
        load_recipe(tmp_path / "recipe.yaml", {**changed, "data_root": str(tmp_path)})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "negatives": 0}))
    with pytest.raises(UserError, match=r"recipe.yaml: sampling is set, which is read where negatives are drawn"):
        load_recipe(tmp_path / "recipe.yaml", {"data_root": str(tmp_path)})


def test_the_names_that_torch_has_are_all_known():
    """Those that other libraries give nn.Module in passing are theirs."""

    def of_torch(name: str) -> bool:
        return getattr(getattr(nn.ModuleDict, name, None), "__module__", "torch").startswith("torch")

    public = {name for name in dir(nn.ModuleDict()) if not name.startswith("_") and of_torch(name)}
    assert public <= module_names.TAKEN and {"type", "keys", "training"} <= public


@pytest.mark.parametrize(
    ("name", "why"),
    [("type", "torch has something of that name"), ("store.id", "torch's names have no dot"), ("items", "torch has")],
)
def test_a_feature_that_no_training_would_take_is_refused_before_the_build(name, why, tmp_path):
    folder = write_raw(tmp_path / "raw", raw_log().with_columns(pl.col("country").alias(name)))
    with pytest.raises(UserError, match=rf"a feature cannot be called '{name}', for {why}"):
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
    assert (
        problem
        == "feature_cols: a feature cannot be called 'store.id', for torch's names have no dot; rename the column"
    )


def test_levels_that_hold_their_rows_own_label_are_told(tmp_path):
    """Where an item has one or two rows; not where it has many."""
    for items, told in {700: True, 300: True, 8: False}.items():
        clicks(tmp_path, 1000, items, stars=lambda item, rng: rng.integers(1, 6, 1000))
        found = made(tmp_path, str(items), label="stars >= 4").report["doubts"]
        train = pl.read_parquet(tmp_path / str(items) / "train.parquet")
        of_item = train.group_by("item_id").agg(pl.len().alias("rows"), pl.col("label").sum().alias("clicks"))
        train = train.join(of_item, on="item_id").with_columns(
            own=pl.col("clicks") / pl.col("rows"),
            others=((pl.col("clicks") - pl.col("label")) / (pl.col("rows") - 1)).fill_nan(pl.col("label").mean()),
        )
        own, others = (roc_auc_score(train["label"], train[name]) for name in ("own", "others"))
        doubt = f"their mean label tells it with AUC {own:.2f}, the mean of their other rows with {others:.2f}"
        assert [doubt in each for each in found if each.startswith("likes_level")] == [True] * told, items


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
    assert ["of 100% of" in doubt for doubt in found if "own history" in doubt] == [True] * 3
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
    of_semicolons = raw_items().with_columns(tags=pl.lit("war; tea; ") + pl.col("sku"))
    found = make(write_raw(tmp_path / "raw", items=of_semicolons), tmp_path / "out").report["doubts"]
    assert any("item_tags: none was cut by '|', and" in doubt and "check tag_separator" in doubt for doubt in found)
    many = raw_items().with_columns(tags=pl.lit("a|b|c|d|e|f"))
    found = make(write_raw(tmp_path / "many", items=many), tmp_path / "many_out").report["doubts"]
    assert make(tmp_path / "many", tmp_path / "stated", max_tags=3).report["doubts"] == []
    assert any("items have more than max_tags, 5, 6 at most; the first ones are kept" in doubt for doubt in found)


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
    log.filter(pl.col("what").str.len_chars() == 1).write_csv(folder / "few.csv")  # 1 to 9, whose new ids are these
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
    (tmp_path / "out" / "ids.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"is named by the log's own ids"):
        refuse_original_images(item_info, folder / "covers")
    make(folder, tmp_path / "same", images="covers", interactions="few.csv")
    refuse_original_images(tmp_path / "same" / "item_info.parquet", folder / "covers")

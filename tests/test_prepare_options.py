"""What build_dataset.py is told: options and YAML as one schema, histories given or once a user, images, bad input."""

import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, run_script
from item_files import rar
from PIL import Image
from test_prepare import CATALOGUE, COLUMNS, make, originals, raw_items, raw_log, rows_of, write_raw

from mm_fibinet import settings
from mm_fibinet.commands.arguments.prepare import RECIPE_OPTIONS
from mm_fibinet.errors import UserError
from mm_fibinet.prepare import report, writing
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.originals import require_originals, write_originals
from mm_fibinet.prepare.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Raw files that no test changes."""
    return write_raw(tmp_path_factory.mktemp("raw"))


def test_every_setting_is_an_option():
    assert list(RECIPE_OPTIONS) == list(Recipe.model_fields)


def test_options_and_yaml_say_the_same_and_options_come_first(tmp_path, folder, capsys):
    recipe = {"data_root": str(folder), "interactions": "log.csv", **COLUMNS, **CATALOGUE, "max_len": 9}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--data_root", folder, "--interactions", "log.csv", "--max_len", 5]
    for name, value in {**COLUMNS, **CATALOGUE}.items():
        options += [f"--{name}", *(value if isinstance(value, list) else [value])]
    for name, given in {"a": options, "b": ["--recipe", tmp_path / "recipe.yaml", "--max_len", 5]}.items():
        code, out, err = run_script("build_dataset", *given, "--out", tmp_path / name, capsys=capsys)
        assert code == 0 and f"--set dataset_id={name} --data_root {tmp_path / name}" in out, err
    for file in ("train", "valid", "test", "test_labels", "item_info", "item_feature", "ids"):
        assert (tmp_path / "a" / f"{file}.parquet").read_bytes() == (tmp_path / "b" / f"{file}.parquet").read_bytes()
    assert pl.read_parquet(tmp_path / "a" / "train.parquet").schema["item_seq"] == pl.Array(pl.Int32, 5)


def test_the_entry_is_found_by_the_data_sets_name(tmp_path, folder, monkeypatch):
    """In data/NAME without a word, elsewhere with --data_root, which also follows a data set that has moved."""
    monkeypatch.chdir(tmp_path)
    make(folder, Path("data") / "shop")
    entry = settings.load_dataset_config(ROOT / "config", "shop")
    assert entry["train_data"] == "data/shop/train.parquet" and entry["item_info"].endswith(
        "embedded/item_info.parquet"
    )
    columns = {column["name"]: column for column in entry["feature_cols"]}
    countries = originals(Path("data/shop"), "country")
    train = pl.read_parquet("data/shop/train.parquet")
    assert columns["country"]["vocab_size"] == train["country"].max() + 1 == len(countries) + 1
    assert columns["hour"]["fill_na"] == pytest.approx(train["hour"].mean())  # of train alone
    with pytest.raises(UserError, match="shop_no_emb: not in"):
        settings.load_dataset_config(ROOT / "config", "shop_no_emb")
    Path("data/shop").rename("elsewhere")
    import model_zoo

    found = settings.load_params(
        str(ROOT / "config"), "DIN_small", model_zoo, ["dataset_id=shop_no_emb"], data_root="elsewhere"
    )
    assert found["train_data"] == "elsewhere/train.parquet" and found["item_info"] == "elsewhere/item_info.parquet"


def test_columns_of_any_name_are_read(tmp_path):
    """Those that the reader has inside, too, as features and in the label."""
    names = ["user", "item", "time", "event", "rating", "split", "row"]
    values = {name: [at % 7 + 1 for at in range(60)] for name in names}
    log = pl.DataFrame({**values, "time": range(60), "event": ["a", "b", "c"] * 20, "split": ["a", "b"] * 30})
    log = log.with_columns(kind=pl.Series(["buy", "view", "view"] * 20))
    log.write_csv(tmp_path / "log.csv")
    recipe = {
        "data_root": str(tmp_path), "interactions": "log.csv", "user": "user", "item": "item", "timestamp": "time",
        "label": "kind == buy", "features": ["time", "event", "rating", "row"], "categorical": ["split"],
    }  # fmt: skip
    build(load_recipe(None, recipe), tmp_path / "out")
    for split, first, last in (("train", 0, 48), ("valid", 48, 54)):
        made = pl.read_parquet(tmp_path / "out" / f"{split}.parquet").sort("time")
        events, letters = (originals(tmp_path / "out", name) for name in ("event", "split"))
        assert made["time"].to_list() == list(range(first, last))
        assert [events[value] for value in made["event"]] == log["event"][first:last].to_list()
        assert [letters[value] for value in made["split"]] == log["split"][first:last].to_list()
        assert made["label"].to_list() == (log["kind"] == "buy").cast(int)[first:last].to_list()


def test_user_info_has_each_history_once(tmp_path, folder):
    """Row = user; a row's history is what item_seq would hold, cut where it ends."""
    make(folder, tmp_path / "rows", max_len=200)
    make(folder, tmp_path / "users", user_info=True)
    info = pl.read_parquet(tmp_path / "users" / "user_info.parquet")
    assert info["user_id"].to_list() == list(range(len(info))) and info.schema["item_seq"] == pl.List(pl.Int32)
    furthest = dict.fromkeys(range(len(info)), 0)
    for split in ("train", "valid", "test"):
        rows, users = (pl.read_parquet(tmp_path / form / f"{split}.parquet") for form in ("rows", "users"))
        assert "item_seq" not in users.columns
        assert rows.drop("item_seq").equals(users.drop("history_end"))
        for user, end, history in zip(users["user_id"], users["history_end"], rows["item_seq"].to_list(), strict=True):
            assert info["item_seq"][user].to_list()[:end] == [item for item in history if item]
            furthest[user] = max(furthest[user], end)
    assert info["item_seq"].list.len().to_list() == list(furthest.values())  # what no row looks back to is not told
    entries = yaml.safe_load((tmp_path / "users" / "dataset_config.yaml").read_text())
    assert entries["users"]["user_info"] == str(tmp_path / "users" / "user_info.parquet")


def test_users_have_a_table_of_their_own(tmp_path):
    """Histories and features once a user, no times, and a label that is one of a list: as Taobao-MM has them."""
    ids = [-7_000_000_000_000_000_001, 12, -5]
    log = {"129_1": ids * 40, "205": [[-9, 4, 77, 8][at % 4] for at in range(120)], "label_0": [[1, 0], [0, 1]] * 60}
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    users = {"129_1": ids[:2], "past": [[-9, 77, 5], []], "130_1": [None, 3]}
    pl.DataFrame(users, schema_overrides={"past": pl.List(pl.Int64)}).write_parquet(tmp_path / "users.parquet")
    recipe = {
        "data_root": str(tmp_path), "interactions": {"train": "log.parquet", "test": "log.parquet"}, "user": "129_1",
        "item": "205", "label": "label_0[1]", "users": "users.parquet", "user_history": "past",
        "user_categorical": "130_1",
    }  # fmt: skip
    build(load_recipe(None, recipe), tmp_path / "rows")
    build(load_recipe(None, {**recipe, "user_info": True}), tmp_path / "users")
    pasts = {str(ids[0]): ("-9", "77", "5"), "12": (), "-5": ()}
    found = rows_of(tmp_path / "rows", "test", ["130_1"])
    assert sum(found.values()) == 120
    for (user, item, label, history, _, (feature,)), _ in found.items():
        assert history == pasts[user] and feature == ("3" if user == "12" else None)
        assert label == next(log["label_0"][at][1] for at in range(120) if str(log["205"][at]) == item)
    info = pl.read_parquet(tmp_path / "users" / "user_info.parquet")
    users, items = originals(tmp_path / "users", "user_id"), originals(tmp_path / "users", "item_id")
    for row in info.iter_rows(named=True):
        assert tuple(items[item] for item in row["item_seq"]) == pasts[users[row["user_id"]]]
    train, valid = (pl.read_parquet(tmp_path / "rows" / f"{split}.parquet") for split in ("train", "valid"))
    assert len(train) + len(valid) == 120 and 2 <= len(valid) <= 25  # without times, valid is drawn from train


def test_a_tests_labels_may_be_withheld(tmp_path, folder):
    """Given splits: every row is kept, nothing is drawn for the test, and no histories come from it."""
    log = raw_log().drop_nulls(["who", "what", "when", "stars"])
    log.head(300).write_csv(tmp_path / "train.csv")
    log.tail(-300).drop("stars").write_csv(tmp_path / "test.csv")
    parts = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    made = make(folder, tmp_path / "out", interactions=parts, negatives=1).report["splits"]
    test = pl.read_parquet(tmp_path / "out" / "test.parquet")
    assert not (tmp_path / "out" / "test_labels.parquet").exists() and "label" not in test.columns
    assert len(test) == len(log) - 300 == made["test"]["rows"] and made["test"]["ctr"] is None
    drawn = made["train"]["negatives_drawn"] + made["valid"]["negatives_drawn"]
    assert made["test"]["negatives_drawn"] == 0 and made["train"]["rows"] + made["valid"]["rows"] == 300 + drawn
    assert drawn == (log.head(300)["stars"] >= 4).sum() - made["train"]["positives_without_negatives"]
    users, items = originals(tmp_path / "out", "user_id"), originals(tmp_path / "out", "item_id")
    clicks = log.head(300).filter(pl.col("stars") >= 4)
    for row in test.iter_rows(named=True):
        known = set(clicks.filter(pl.col("who") == users[row["user_id"]])["what"])
        assert {items[item] for item in row["item_seq"] if item} <= known


@pytest.mark.parametrize("form", ["linked", "copied", "zip", "tar", "tgz", "rar"])
def test_images_get_the_items_new_names(form, tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "covers" / "deep").mkdir(parents=True)
    for name in ("01.png", "deep/商品4.PNG", "nobody.png", "notes.txt"):
        Image.new("RGB", (3, 3), (len(name), 9, 9)).save(folder / "covers" / name, "PNG")
    images = "covers"
    if form == "zip":
        images = "covers.zip"
        with zipfile.ZipFile(folder / images, "w") as archive:
            for path in (folder / "covers").rglob("*.*"):
                archive.write(path, path.relative_to(folder))
            archive.writestr("02.png/", b"")  # a folder
    elif form == "rar":
        images = "covers.RAR"
        (folder / images).write_bytes(
            rar({str(path.relative_to(folder)): path.read_bytes() for path in (folder / "covers").rglob("*.*")})
        )
    elif form in ("tar", "tgz"):
        images = f"covers.{form}"
        with tarfile.open(folder / images, "w:gz" if form == "tgz" else "w") as archive:
            (folder / "covers" / "02.png").symlink_to("01.png")  # a link in an archive has no content
            archive.add(folder / "covers", "covers")
    built = make(folder, tmp_path / "out", images=images, copy_images=form == "copied")
    items = {original: item for item, original in originals(tmp_path / "out", "item_id").items()}
    found = {path.name: path for path in (tmp_path / "out" / "item_images").iterdir()}
    assert set(found) == {f"{items['01']}.png", f"{items['商品4']}.png"}
    assert found[f"{items['01']}.png"].read_bytes() == (folder / "covers" / "01.png").read_bytes()
    assert all(path.is_symlink() == (form == "linked") for path in found.values())
    assert built.report["images"] == {"found": 2, "missing": len(items) - 2, "of no item": 1}


def test_a_data_set_is_replaced_only_where_that_is_asked(tmp_path, folder):
    make(folder, tmp_path / "out")
    before = (tmp_path / "out" / "train.parquet").read_bytes()
    (tmp_path / "out" / "embedded").mkdir()
    (tmp_path / "out" / "embedded" / "item_info.parquet").write_bytes(b"of the old items")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="--force replaces it"):
        make(folder, tmp_path / "out", max_len=5)
    assert (tmp_path / "out" / "train.parquet").read_bytes() == before
    recipe = {"data_root": str(folder), "interactions": "log.csv", **COLUMNS, "max_len": 5}
    build(load_recipe(None, recipe), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "train.parquet").read_bytes() != before
    assert not (tmp_path / "out" / "embedded" / "item_info.parquet").exists()
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["recipe"]["max_len"] == 5


def test_scores_get_the_logs_own_ids(tmp_path, folder):
    make(folder, tmp_path / "out")
    test = tmp_path / "out" / "test.parquet"
    ids = require_originals(tmp_path / "scores.csv", test, [test])
    scores = np.random.default_rng(0).random(len(pl.read_parquet(test)))
    write_originals(tmp_path / "scores.csv", ids, test, scores)
    found = pl.read_csv(tmp_path / "scores.csv", schema_overrides={"item_id": pl.String})
    log = raw_log().with_columns(pl.col("who").is_not_null())
    assert set(found["item_id"]) <= set(log["what"]) and found["score"].to_list() == scores.tolist()
    rows = rows_of(tmp_path / "out", "test")
    assert sorted(zip(found["user_id"], found["item_id"], strict=True)) == sorted((r[0], r[1]) for r in rows.elements())
    with pytest.raises(UserError, match=r"ids.parquet: no such file"):
        require_originals(tmp_path / "scores.csv", folder / "log.csv", [])


TEXT = "who,what,when,stars,country,hour\n"
MISTAKES = {
    "no such file": ({"interactions": "lag.csv"}, None, "lag.csv: no such file or folder"),
    "an empty file": ({}, "", "log.csv: is empty"),
    "no rows": ({}, TEXT, "no interaction is left of 0 rows"),
    "a missing column": ({"user": "whom"}, None, "log.csv: column whom is missing, found who, what"),
    "no timestamp": ({"timestamp": None}, None, "timestamp is not set"),
    "a wrong label": ({"label": "stars >= high"}, None, ">= takes a number, found 'high'"),
    "a label that is none": ({"label": "stars"}, None, "column stars has '5' in row 0, expected 0 or 1"),
    "a word for a number": ({}, TEXT + "a,b,1,5,FR,1\na,c,2,many,FR,2\n", "column stars has 'many' in row 1"),
    "a word for a time": ({}, TEXT + "a,b,1,5,FR,1\n" * 1100 + "a,c,soon,5,FR,2\n", "has 'soon' in row 1100"),
    "two units": ({}, TEXT + "a,b,1700000000,5,FR,1\na,c,1700000000500,5,FR,2\n", "from 1700000000 to 1700000000500"),
    "two units of fractions": ({}, TEXT + "a,b,17e8,5,FR,1\na,c,17e11,5,FR,2\n", "from 1700000000 to 1700000000000"),
    "two units and a zero": (
        {}, TEXT + "a,b,1700000000,5,FR,1\na,c,1700000000500,5,FR,2\na,d,0,5,FR,2\n",
        "from 1700000000 to 1700000000500",
    ),
    "an infinite number": ({}, TEXT + "a,b,1,5,FR,1\na,c,2,5,FR,inf\n", "column hour has 'inf' in row 1, expected a n"),
    "days and months": (
        {}, TEXT + "a,b,01/02/2023,5,FR,1\na,c,03/04/2023,5,FR,2\n",
        "dates as '01/02/2023', and no row tells whether day or month is first, expected dates as 2026-01",
    ),
    "days and months before noon": (
        {}, TEXT + "a,b,01/02/2023 8:30:00 AM,5,FR,1\na,c,03/04/2023 8:30:00 AM,5,FR,2\n",
        "dates as '01/02/2023 8:30:00 AM', and no row tells whether day or month is first",
    ),
    "years of two digits": (
        {}, TEXT + "".join(f"a,b{day},{day}/12/21,5,FR,1\n" for day in range(1, 29)),
        "column when has '1/12/21' in row 0, expected a number, or a date and",
    ),
    "years of two digits and times": ({}, TEXT + "a,b,21/12/05 10:00:00,5,FR,1\n", "has '21/12/05 10:00:00' in row 0"),
    "dates in words": ({}, TEXT + "a,b,3 May 2023,5,FR,1\n", "'3 May 2023' in row 0, expected a number, or a date and"),
    "a feature that changes": ({}, TEXT + "a,b,1,5,FR,1\n" * 1100 + "a,c,9,5,FR,x\n", "name it as categorical"),
    "a name of the contract": ({"features": ["label"]}, None, "feature label: the data set has a column of this name"),
    "a name twice": ({"item_features": ["hour"]}, None, "feature hour: is named for two tables"),
    "shares of more than all": ({"valid": 0.5, "test": 0.6}, None, "expected less than 1 together"),
    "a share of nothing": ({"valid": 0}, None, "--valid is 0, expected a share"),
    "one moment": ({}, TEXT + "a,b,1,5,FR,1\na,c,1,5,FR,2\n", "train and valid would have no rows"),
    "few moments": ({"split": "leave_last_out"}, TEXT + "a,b,1,5,FR,1\na,c,2,5,FR,2\n", "no user has 3 moments"),
    "histories twice": ({"history": "country", "user_info": True}, None, "user_info and history are both set"),
    "a split that is none": ({"split": "country"}, None, "expected one of train, valid, test"),
    "an unknown setting": ({"timestmp": "when"}, None, "timestmp: unknown setting, did you mean timestamp"),
    "an unknown format": ({"interactions": {"files": "log.csv", "format": "xls"}}, None, "format is 'xls'"),
    "a catalogue's column without one": ({"items": None}, None, "expected items, the files that have this column"),
    "too few names": ({"interactions": {"files": "log.csv", "columns": ["a"]}}, None, "has 6 columns, columns names 1"),
    "too few names of a wide separator": (
        {"interactions": {"files": "log.csv", "separator": "::", "columns": ["who", "what", "when"]}},
        "a::b::1\na::b\n\na::c::2::\na::b::5::4\n",
        "log.csv: has 4 fields in row 4, columns names 3: who, what, when; name all of them, or set rest",
    ),
    "another encoding": ({"interactions": {"files": "items.csv", "encoding": "utf-16"}}, None, "is not utf-16 text"),
    "a column twice": ({}, TEXT.replace("hour", "hour,who") + "a,b,1,5,FR,1,c\n", "header has column who more"),
    "one label": ({}, "\n".join([TEXT.strip(), *(f"u{i % 3},03,{i},1,FR,1" for i in range(20))]), "have the label 0"),
    "no images": ({"images": "covers"}, None, "covers: no such file or folder"),
    "a file for images": ({"images": "log.csv"}, None, "expected a folder, a .zip, .tar or .rar"),
    "not parquet": ({"interactions": {"files": "log.csv", "format": "parquet"}}, None, "log.csv: cannot be read"),
    "not JSON": ({"interactions": {"files": "log.csv", "format": "jsonl"}}, None, "log.csv: cannot be read"),
    "an encoding of JSON": (
        {"interactions": {"files": "log.csv", "format": "jsonl", "encoding": "latin-1"}}, None,
        "log.csv: encoding is set, which is of csv and tsv alone, and this is jsonl",
    ),
    "names of parquet's columns": (
        {"items": {"files": "items.csv", "format": "parquet", "columns": ["sku"]}}, None, "items.csv: columns is set",
    ),
    "ragged": ({}, TEXT + "a,b,1,5,FR,1,7,8\n", "log.csv: cannot be read"),
    "a name with a slash": ({"name": "a/b"}, None, "expected a name that files can have"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name, tmp_path):
    change, content, message = MISTAKES[name]
    folder = write_raw(tmp_path / "raw")
    if content is not None:
        (folder / "log.csv").write_text(content)
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(UserError) as caught:
        make(folder, tmp_path / "out", **change)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


CATALOGUES = {
    "none of the log's": (["no1", "no2"], "items.csv: column sku has none of the log's ids, 'A0' for ex"),
    "a word for a number": ([*(f"x{at}" for at in range(1100)), "A1"], "column price has 'free' in row 1100"),
    "a flag that is none": (["A1"], "column flag has 'X' in row 0, expected 0 or 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CATALOGUES)
def test_a_catalogue_that_cannot_be_meant_is_refused(name, tmp_path):
    skus, message = CATALOGUES[name]
    words = ["X" if name == "a flag that is none" else "1"] * len(skus)
    prices = [str(at) for at in range(len(skus) - 1)] + ["free" if name == "a word for a number" else "1"]
    log = pl.DataFrame({"who": ["a", "b"] * 20, "what": [f"A{at % 7}" for at in range(40)], "when": range(40)})
    items = pl.DataFrame({"sku": skus, "name": skus, "price": prices, "flag": words})
    folder = write_raw(tmp_path / "raw", log.with_columns(stars=pl.Series([1, 5, 5, 1] * 10), country=1, hour=1), items)
    change = {
        "tags": [],
        "description": None,
        "item_features": ["price"],
        "tag_flags": ["flag"],
        "item_categorical": [],
    }
    with pytest.raises(UserError) as caught:
        make(folder, tmp_path / "out", **change)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_numbers_with_a_fraction_are_ids_as_others(tmp_path):
    log = pl.DataFrame(
        {"who": [7.0, 7.5, 1e5, 2.0**53 - 1] * 20, "what": ["a", "b", "c"] * 26 + ["a", "b"], "when": range(80)}
    )
    log.with_columns(shelf=pl.col("when") % 4 / 2, hit=pl.col("when") % 5 < 2).write_parquet(tmp_path / "log.parquet")
    columns = {"user": "who", "item": "what", "timestamp": "when", "label": "hit", "categorical": ["shelf"]}
    given = {"data_root": str(tmp_path), "interactions": "log.parquet", **columns}
    built = build(load_recipe(None, given), tmp_path / "out")
    assert built.report["rows_left_out"].get("no user", 0) == 0
    assert set(originals(tmp_path / "out", "user_id").values()) == {"7", "7.5", "100000", "9007199254740991"}
    assert list(originals(tmp_path / "out", "shelf").values()) == ["0", "0.5", "1", "1.5"]


@pytest.mark.parametrize(("kind", "first"), [(pl.Float64, 1_700_000_000_000_000_001), (pl.Float32, 16_777_216)])
def test_ids_that_floats_have_made_one_are_refused(kind, first, tmp_path):
    """Neighbours are the same float, as where pandas reads integers beside an empty field."""
    log = pl.DataFrame({"who": pl.Series([1, None, first, first + 1] * 9).cast(kind), "what": range(36)})
    assert log["who"].n_unique() == 3
    log.write_parquet(tmp_path / "log.parquet")
    given = {"user": "who", "item": "what", "timestamp": "what", "interactions": "log.parquet"}
    with pytest.raises(
        UserError, match=r"log.parquet: column who has 1[.0-9e+]+ in row 2, expected less than .* as integ"
    ):
        build(load_recipe(None, {**given, "data_root": str(tmp_path)}), tmp_path / "out")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "floats", "texts"])
def test_what_stands_for_nothing_does_so_in_every_column_of_every_form(form, tmp_path):
    """Of ids, times, labels and numbers; in a file of floats -1 is -1.0."""
    rows = [
        {"who": f"{at % 4}", "what": at % 7, "when": at, "hit": at % 2, "price": at % 5, "size": at / 2, "kind": at % 3}
        for at in range(100)
    ]
    for name, at in {"who": 50, "what": 51, "when": 52, "hit": 53, "price": 54, "size": 55, "kind": 56}.items():
        rows[at][name] = "-1" if name == "who" else -1
    log = pl.DataFrame(rows, strict=False)
    if form in ("floats", "texts"):
        kind = pl.Float64 if form == "floats" else pl.String
        log = log.with_columns(pl.col("what", "when", "hit", "price", "kind").cast(kind))
    name = f"log.{form if form in ('csv', 'jsonl') else 'parquet'}"
    writers = {"log.csv": log.write_csv, "log.jsonl": log.write_ndjson, "log.parquet": log.write_parquet}
    writers[name](tmp_path / name)
    given = {
        "user": "who", "item": "what", "timestamp": "when", "label": "hit", "features": ["price", "size"],
        "categorical": ["kind"], "interactions": {"files": name, "missing": ["-1", "-1.0"]},
    }  # fmt: skip
    built = build(load_recipe(None, {**given, "data_root": str(tmp_path)}), tmp_path / "out")
    assert built.report["rows_left_out"] == {"no who": 1, "no what": 1, "no when": 1, "no label": 1}
    train = pl.read_parquet(tmp_path / "out" / "train.parquet")
    assert train.null_count().select("price", "size").row(0) == (1, 1) and train["price"].min() == 0
    assert list(originals(tmp_path / "out", "kind").values()) == ["0", "1", "2"]
    assert train["kind"].to_list().count(0) == 1


def given_histories(folder, past, **settings):
    """A log of clicks whose users have a history each; its items are 0 .. 9, user u's last click is (u + 3) % 10."""
    log = pl.DataFrame({"who": [at % 5 for at in range(60)], "what": [at % 10 for at in range(60)]})
    log.write_parquet(folder / "log.parquet")
    pl.DataFrame({"who": range(5), "past": past}).write_parquet(folder / "users.parquet")
    given = {
        "data_root": str(folder), "interactions": "log.parquet", "user": "who", "item": "what", "split": "random",
        "users": "users.parquet", "user_history": "past", **settings,
    }  # fmt: skip
    return build(load_recipe(None, given), folder / "out")


def test_rows_of_users_that_are_left_out_are_told(tmp_path):
    """A history that is spread over several rows is not one: the first row is taken, and the report says so."""
    given_histories(tmp_path, [[1], [2], [3], [4], [5]])
    users = pl.read_parquet(tmp_path / "users.parquet")
    more = pl.DataFrame({"who": [0, 0, None, 77, 78, 79], "past": [[6]] * 6})
    pl.concat([users.head(4), more]).write_parquet(tmp_path / "users.parquet")
    recipe = json.loads((tmp_path / "out" / "report.json").read_text())["recipe"]
    built = build(Recipe.model_validate(recipe), tmp_path / "again")
    assert built.report["users_rows_left_out"] == {"repeated": 2, "without an id": 1, "of users that do not occur": 3}
    assert built.report["users_not_in_their_table"] == 1
    told = (
        "their table 1 users are not in it; rows left out: repeated: 2, without an id: 1, of users that do not occur: 3"
    )
    assert told in report.lines(built.report)
    assert {row[3] for row in rows_of(tmp_path / "again", "train", ()) if row[0] == "0"} == {("1",)}


def test_negatives_are_of_no_given_history(tmp_path):
    past = [[1, 2, 3], [], [0, 8], [3], [0, 1, 2, 3, 5, 6, 7, 8]]
    given_histories(tmp_path, past, negatives=9)
    for split in ("train", "valid", "test"):
        drawn = {row[:2] for row in rows_of(tmp_path / "out", split, ()) if row[2] == 0}
        left = {0: {4, 6, 7, 8, 9}, 1: {0, 2, 3, 4, 5, 7, 8, 9}, 2: {1, 3, 4, 5, 6, 9}, 3: {0, 1, 2, 4, 5, 6, 7, 9}}
        assert {user for user, _ in drawn} <= set("0123")  # user 4 has had all that there is
        assert all(int(item) in left[int(user)] for user, item in drawn) and len(drawn) > 8


def test_histories_of_no_item_of_the_log_are_refused(tmp_path):
    message = r"the histories have none of the log's items, '1,2' for example, but '0' for example; check list_separat"
    with pytest.raises(UserError, match=message):
        given_histories(tmp_path, ["1,2", "3,4", "5,6", "7,8", "9,0"])
    assert not (tmp_path / "out").exists()
    given_histories(tmp_path, ["1,2", "3,4", "5,6", "7,8", "9,0"], list_separator=",")


def test_long_histories_are_written_in_smaller_parts(tmp_path, folder, monkeypatch):
    make(folder, tmp_path / "whole", max_len=50)
    monkeypatch.setattr(writing, "PLACES_AT_ONCE", 50 * 7)
    make(folder, tmp_path / "parts", max_len=50)
    assert pq.ParquetFile(tmp_path / "parts" / "train.parquet").metadata.row_group(0).num_rows == 7
    for split in ("train", "valid", "test"):
        whole, parts = (pl.read_parquet(tmp_path / name / f"{split}.parquet") for name in ("whole", "parts"))
        assert whole.equals(parts)


@pytest.mark.parametrize("name", ["covers.tar", "covers.rar", "covers.zip"])
def test_a_damaged_archive_of_images_is_named_and_leaves_nothing(name, tmp_path):
    folder = write_raw(tmp_path / "raw")
    content = rar({"01.png": bytes(10_000)}) if name == "covers.rar" else bytes(range(256)) * 99
    (folder / name).write_bytes(content[:-200])
    with pytest.raises(UserError, match=rf"{name}: .* pack it again"):
        make(folder, tmp_path / "out", images=name)
    assert not (tmp_path / "out").exists()


def test_a_file_name_that_is_no_text_is_of_no_item(tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "covers").mkdir()
    for name in (b"01.png", b"caf\xe9.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder / "covers"), name))).write_bytes(b"cover")
    built = make(folder, tmp_path / "out", images="covers")
    assert built.report["images"]["found"] == built.report["images"]["of no item"] == 1


def test_original_ids_are_those_of_the_runs_data(tmp_path, folder, monkeypatch, capsys):
    """A data set that was built anew, or another one's test split, has other users and items behind the same ids."""
    monkeypatch.chdir(tmp_path)
    make(folder, Path("data") / "shop")
    make(folder, Path("data") / "other", label="stars >= 2")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dataset_config.yaml").write_text("NONE: {}\n")
    (tmp_path / "config" / "model_config.yaml").write_text(
        "X: {model: FM, dataset_id: shop_no_emb, embedding_dim: 4, batch_size: 64, epochs: 1, verbose: 0}\n"
    )
    given = ["--expid", "X", "--config", "config"]
    code, _, err = run_script("run_expid", *given, "--data_root", "data/shop", capsys=capsys)
    assert code == 0, err

    def predict(*more):
        arguments = ["--expid", "X", "--out", "scores.csv", "--original_ids", "own.csv", *more]
        code, _, err = run_script("prediction", *arguments, capsys=capsys)
        return code, err

    assert predict() == (0, "")
    own = Path("own.csv").read_bytes()
    code, err = predict("--test", "data/other/test.parquet")
    assert code == 2 and "trained on data/shop/train.parquet" in err and "are those of data/other/train.parquet" in err
    assert Path("own.csv").read_bytes() == own
    assert predict("--test", "data/other/test.parquet", "--allow_other_data") == (0, "")
    assert predict("--original_ids", "scores.csv")[1].startswith(
        "error: --original_ids scores.csv: is written by --out"
    )
    ids = pl.read_parquet("data/shop/ids.parquet")
    ids.filter(pl.col("column") != "user_id").write_parquet("data/shop/ids.parquet")
    Path("scores.csv").unlink()
    code, err = predict()
    assert code == 2 and "has no user_id" in err and not Path("scores.csv").exists()  # known before there are scores


def test_a_counter_is_no_mixture_of_units(tmp_path):
    """Whatever numbers it comes to: in equal steps, there are some between seconds and milliseconds."""
    when = np.linspace(0, 10**12, 100).astype(np.int64)
    write_raw(tmp_path / "raw", raw_log(rows=70).with_columns(when=pl.Series(when)))
    assert make(tmp_path / "raw", tmp_path / "out").report


def test_json_ids_may_become_texts_at_any_line(tmp_path):
    """Lists, and columns that the first lines leave empty, too."""
    first = '{"who": 7, "what": 3, "when": 5, "hall": null, "seen": []}\n'
    rows = ['{"who": "x7", "what": "03", "when": 6, "hall": "A", "seen": [3, "03"]}\n'] * 40
    rows += ['{"who": 7, "what": 12345678901234567891, "when": 7, "hall": 2, "seen": []}\n'] * 40
    (tmp_path / "log.jsonl").write_text(first * 10_001 + "".join(rows))
    given = {
        "data_root": str(tmp_path), "interactions": "log.jsonl", "user": "who", "item": "what", "history": "seen",
        "categorical": ["hall"], "split": "random",
    }  # fmt: skip
    build(load_recipe(None, given), tmp_path / "out")
    assert set(originals(tmp_path / "out", "user_id").values()) == {"7", "x7"}
    assert set(originals(tmp_path / "out", "item_id").values()) == {"3", "03", "12345678901234567891"}
    assert set(originals(tmp_path / "out", "hall").values()) <= {"A", "2"}
    train = pl.concat([pl.read_parquet(tmp_path / "out" / f"{split}.parquet") for split in ("train", "valid")])
    items = {item for items in train["item_seq"].to_list() for item in items if item}
    assert {originals(tmp_path / "out", "item_id")[item] for item in items} == {"3", "03"}
    with pytest.raises(
        UserError, match=r"column late is missing in the first 10,000 lines, found who, what.*; if later"
    ):
        build(load_recipe(None, {**given, "features": ["late"]}), tmp_path / "late")


@pytest.mark.parametrize(
    ("first", "later", "said"),
    [
        ("1.5", '"free"', r"\(conversion from .* failed in column 'price' .*free.*\)"),
        ("true", '"yes"', r"\(cannot parse 'yes' .* as Boolean\)"),
    ],
)
def test_what_later_lines_of_json_have_otherwise_is_said(first, later, said, tmp_path):
    line = '{"who": %d, "what": %d, "when": %d, "hit": %d, "price": %s}\n'
    lines = [line % (at % 3, at % 5, at, at % 2, first if at < 10_000 else later) for at in range(10_001)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    columns = {"user": "who", "item": "what", "timestamp": "when", "label": "hit"}
    given = {"data_root": str(tmp_path), "interactions": "log.jsonl", **columns}
    advice = "the first 10,000 lines tell a column's kind: write it the same way in all"
    with pytest.raises(UserError, match=rf"^log.jsonl: cannot be read {said}; {advice}"):
        build(load_recipe(None, {**given, "features": ["price"]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build(load_recipe(None, given), tmp_path / "out")  # of what nobody asked for nothing is read


def test_a_link_to_nothing_is_no_place(tmp_path, folder):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"--out .*out: is a link to .*gone, which is not there; make that folder"):
        make(folder, tmp_path / "out")


@pytest.mark.parametrize("place", ["raw", "raw/covers/in", "raw/log.csv"])
def test_an_input_is_never_an_output(place, tmp_path):
    folder = write_raw(tmp_path / "raw")
    (folder / "covers").mkdir()
    with pytest.raises(UserError, match="--out"):
        make(folder, tmp_path / place, images="covers")
    assert sorted(path.name for path in folder.iterdir()) == ["covers", "items.csv", "log.csv"]
    assert raw_items().equals(pl.read_csv(folder / "items.csv", schema_overrides={"sku": pl.String}))

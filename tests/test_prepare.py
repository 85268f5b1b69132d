"""A raw log and a catalogue to the file contract: every row against a slow form, and that nothing leaks."""

import gzip
import io
import json
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mm_fibinet.data_check import check_folder
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.recipe import load_recipe
from mm_fibinet.prepare.writing import IDS

COLUMNS = {"user": "who", "item": "what", "timestamp": "when", "label": "stars >= 4", "features": ["country", "hour"]}
CATALOGUE = {
    "items": "items.csv", "item_key": "sku", "title": "name", "tags": "tags", "description": "text",
    "item_features": ["brand", "price"],
}  # fmt: skip


def raw_log(rows=400, seed=0):
    """Rows as a shop would log them: many share a moment, some are repeated, some lack a field."""
    rng = np.random.default_rng(seed)
    countries, hours = ["FR", "CN", None, "São Tomé"], rng.integers(0, 24, rows)
    log = {
        "who": [f"user-{number}" for number in rng.integers(0, 12, rows)],
        "what": [f"0{number}" if number % 2 else f"商品{number}" for number in rng.integers(0, 40, rows)],
        "when": rng.integers(1_700_000_000, 1_700_000_060, rows).tolist(),
        "stars": rng.integers(1, 6, rows).tolist(),
        "country": [countries[at] for at in rng.integers(0, 4, rows)],
        "hour": [None if hour == 5 else int(hour) for hour in hours],
    }
    for name in ("who", "what", "when", "stars"):
        log[name][int(rng.integers(rows))] = None
    frame = pl.DataFrame(log, schema_overrides={"when": pl.Int64, "hour": pl.Int64})
    return pl.concat([frame, frame.head(30)])  # logged twice


def raw_items():
    """A catalogue that lacks some items, and has others."""
    names = [f"0{number}" if number % 2 else f"商品{number}" for number in range(3, 50)]
    columns = {
        "sku": names, "name": [f"titre {name}" for name in names], "text": [None, "long"] * 23 + [None],
        "tags": [["livre|été", "tea | 茶||livre", None][at % 3] for at in range(len(names))],
        "brand": [["x", None, "é"][at % 3] for at in range(len(names))],
        "price": [None if at == 7 else at / 4 for at in range(len(names))],
    }  # fmt: skip
    return pl.DataFrame(columns)


def write_raw(folder, log=None, items=None):
    folder.mkdir(parents=True, exist_ok=True)
    (raw_log() if log is None else log).write_csv(folder / "log.csv")
    (raw_items() if items is None else items).write_csv(folder / "items.csv")
    return folder


def make(folder, out, **settings):
    settings = {"data_root": str(folder), "interactions": "log.csv", **COLUMNS, **CATALOGUE, **settings}
    return build(load_recipe(None, settings), out)


def originals(out, column):
    ids = pl.read_parquet(out / IDS).filter(pl.col("column") == column)
    return dict(zip(ids["id"].to_list(), ids["original"].to_list(), strict=True))


def rows_of(out, split, features=("country", "hour")):
    """The rows of a split in original ids: Counter of (user, item, label, history, levels, features)."""
    frame = pl.read_parquet(out / f"{split}.parquet")
    if split == "test":
        frame = frame.join(pl.read_parquet(out / "test_labels.parquet"), on="ID")
    users, items = originals(out, "user_id"), originals(out, "item_id")
    values = {name: originals(out, name) for name in features}
    found = Counter()
    for row in frame.iter_rows(named=True):
        history = tuple(items[item] for item in row["item_seq"] if item)
        assert (
            row["item_seq"]
            == [0] * (len(row["item_seq"]) - len(history)) + list(row["item_seq"])[-len(history) or 99 :]
        )
        context = tuple(values[name].get(row[name]) if values[name] else row[name] for name in features)
        levels = tuple(row.get(name) for name in ("likes_level", "views_level"))
        found[users[row["user_id"]], items[row["item_id"]], row["label"], history, levels, context] += 1
    return found


def slow_rows(log, max_len=64, valid=0.1, test=0.1):
    """What the splits must hold, worked out row by row."""
    rows, same = [], defaultdict(list)
    for row in log.iter_rows(named=True):
        key = row["who"], row["what"], row["when"]
        if None not in (*key, row["stars"]):
            rows.append(row)
            same[key].append(row)
    logged_once = [next((row for row in logged if row["stars"] >= 4), logged[0]) for logged in same.values()]
    rows = [row for row in rows if any(row is one for one in logged_once)]
    times = sorted(row["when"] for row in rows)
    valid_from, test_from = times[int(len(rows) * (1 - test - valid))], times[int(len(rows) * (1 - test))]
    train = [row for row in rows if row["when"] < valid_from]
    ratings, countries = defaultdict(list), {row["country"] for row in train}
    for row in train:
        ratings[row["what"]].append(row["stars"])

    def level(item, measure):
        if item not in ratings:
            return 0
        smaller = sum(measure(other) < measure(ratings[item]) for other in ratings.values())
        return 1 + 10 * smaller // len(ratings)

    found = {"train": Counter(), "valid": Counter(), "test": Counter()}
    for row in rows:
        split = "test" if row["when"] >= test_from else "valid" if row["when"] >= valid_from else "train"
        past = [o for o in rows if o["who"] == row["who"] and o["when"] < row["when"] and o["stars"] >= 4]
        history = tuple(o["what"] for o in sorted(past, key=lambda o: o["when"]))[-max_len:]
        levels = level(row["what"], lambda r: sum(r) / len(r)), level(row["what"], len)
        context = row["country"] if row["country"] in countries else None, row["hour"]
        found[split][row["who"], row["what"], int(row["stars"] >= 4), history, levels, context] += 1
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A data set that no test changes: (raw folder, data set)."""
    folder = write_raw(tmp_path_factory.mktemp("raw"))
    out = tmp_path_factory.mktemp("made") / "shop"
    make(folder, out)
    return folder, out


def test_every_row_is_as_the_slow_form_has_it(shop):
    _, out = shop
    expected = slow_rows(raw_log())
    for split in ("train", "valid", "test"):
        assert rows_of(out, split) == expected[split] and expected[split], split


def test_what_was_shown_and_clicked_in_one_moment_is_clicked(tmp_path):
    """Whichever of the two was logged first; a log of days has them as one user, item and time."""
    log = raw_log(120).with_columns(pl.col("when") // 30 * 30)
    other = log.head(60).with_columns(stars=6 - pl.col("stars"))
    folder = write_raw(tmp_path / "raw", pl.concat([other.head(30), log, other.tail(30)]))
    make(folder, tmp_path / "out", test=0.3)
    expected = slow_rows(pl.read_csv(folder / "log.csv", infer_schema_length=None), test=0.3)
    for split in ("train", "valid", "test"):
        assert rows_of(tmp_path / "out", split) == expected[split] and expected[split], split


def test_a_short_history_keeps_the_last_items(tmp_path, shop):
    folder, _ = shop
    make(folder, tmp_path / "out", max_len=3)
    assert rows_of(tmp_path / "out", "test") == slow_rows(raw_log(), max_len=3)["test"]


def test_the_check_of_the_contract_passes(shop):
    for row in check_folder(shop[1]):
        assert not row.problems, row


def test_items_are_the_catalogues_and_the_padding_item_is_zero(shop):
    _, out = shop
    info, feature = pl.read_parquet(out / "item_info.parquet"), pl.read_parquet(out / "item_feature.parquet")
    names, tags, brands = (originals(out, name) for name in ("item_id", "item_tags", "brand"))
    catalogue = {row["sku"]: row for row in raw_items().iter_rows(named=True)}
    used = {name for name in raw_log()["what"] if name is not None}
    assert set(names.values()) == used and info["item_id"].to_list() == list(range(len(used) + 1))
    assert info.row(0) == (0, [0] * 5, 0, 0.0)
    for row, texts in zip(info.slice(1).iter_rows(named=True), feature.iter_rows(named=True), strict=True):
        known = catalogue.get(names[row["item_id"]], dict.fromkeys(("name", "text", "tags", "brand", "price")))
        words = list(dict.fromkeys(word.strip() for word in (known["tags"] or "").split("|") if word.strip()))
        assert [tags[tag] for tag in row["item_tags"] if tag] == words and row["item_tags"][: 5 - len(words)].count(
            0
        ) == 5 - len(words)
        assert brands.get(row["brand"]) == known["brand"] and row["price"] == known["price"]
        assert (texts["item_title"], texts["item_description"]) == (known["name"], known["text"])
        assert texts["item_tags"] == (words or (None if known["name"] is None else []))


def test_the_report_counts_what_was_left_out(shop):
    found = json.loads((shop[1] / "report.json").read_text())
    log = raw_log()
    gaps = log.select(pl.any_horizontal(pl.col("who", "what", "when", "stars").is_null()).sum()).item()
    left_out = found["rows_left_out"]
    assert found["rows_read"] == len(log) and sum(left_out.values()) == len(log) - sum(
        sum(rows.values()) for rows in slow_rows(log).values()
    )
    assert sum(count for reason, count in left_out.items() if reason.startswith("no ")) == gaps
    train = {row[1] for row in slow_rows(log)["train"]}
    test = slow_rows(log)["test"]
    cold = sum(count for row, count in test.items() if row[1] not in train) / sum(test.values())
    assert found["splits"]["test"]["cold"] == pytest.approx(cold)
    for split, rows in slow_rows(log).items():
        rows = list(rows.elements())
        lengths = [len(row[3]) for row in rows]
        told = {
            "rows": len(rows), "users": len({row[0] for row in rows}), "items": len({row[1] for row in rows}),
            "ctr": np.mean([row[2] for row in rows]), "history_mean": np.mean(lengths),
            "history_median": np.median(lengths), "history_longest": max(lengths),
            "empty_histories": np.mean([length == 0 for length in lengths]),
        }  # fmt: skip
        assert {name: found["splits"][split][name] for name in told} == pytest.approx(told), split
    everyone = [row for rows in slow_rows(log).values() for row in rows]
    assert found["users"] == len({row[0] for row in everyone}) and found["items"] == len({row[1] for row in everyone})
    assert found["items_not_in_catalogue"] == len(set(log["what"].drop_nulls()) - set(raw_items()["sku"]))


def test_a_column_may_give_the_split(tmp_path):
    """In letters of any case; its rows are those of the splits, whatever their times and however often they occur."""
    log = raw_log().drop_nulls(["who", "what", "when", "stars"])
    names = ["Train", "valid", "TEST"]
    log = log.with_columns(part=pl.Series([names[at] for at in np.random.default_rng(1).integers(0, 3, len(log))]))
    make(write_raw(tmp_path / "raw", log), tmp_path / "out", split="part")
    for name in names:
        expected = Counter(log.filter(pl.col("part") == name).select("who", "what", pl.col("stars") >= 4).iter_rows())
        found = Counter()
        for row, count in rows_of(tmp_path / "out", name.lower()).items():
            found[row[:3]] += count
        assert found == expected, name


# What has happened later changes nothing in train


def changed_future(log, cut):
    """The log with other times, labels, contexts and items from the first cut on."""
    later = pl.col("when") >= cut
    return log.with_columns(
        when=pl.when(later).then(pl.col("when") * 2 - cut).otherwise(pl.col("when")),
        stars=pl.when(later).then(6 - pl.col("stars")).otherwise(pl.col("stars")),
        country=pl.when(later).then(pl.lit("ZZ")).otherwise(pl.col("country")),
        what=pl.when(later & (pl.col("hour") > 11)).then("new-" + pl.col("what")).otherwise(pl.col("what")),
    )


def test_train_rows_do_not_depend_on_what_comes_later(tmp_path, shop):
    log = raw_log()
    kept = log.drop_nulls(["who", "what", "when", "stars"]).unique(["who", "what", "when"])["when"].sort()
    changed = changed_future(log, cut=kept[int(len(kept) * 0.8)])
    make(write_raw(tmp_path / "raw", changed), tmp_path / "out")
    before, after = rows_of(shop[1], "train"), rows_of(tmp_path / "out", "train")
    assert before == after == slow_rows(changed)["train"]
    assert rows_of(shop[1], "test") != rows_of(tmp_path / "out", "test") == slow_rows(changed)["test"]


def test_negatives_are_of_trains_items_and_never_clicked_at_any_time(tmp_path):
    """Of the whole log: an item that the user clicks in the test is no negative of his in train."""
    log, late = raw_log().filter(pl.col("stars") >= 4), pl.col("when") >= 1_700_000_050
    log = log.with_columns(
        pl.when(late & (pl.col("hour") > 5)).then("new-" + pl.col("what")).otherwise("what").alias("what")
    )
    folder, out = write_raw(tmp_path / "raw", log), tmp_path / "out"
    make(folder, out, label=None, negatives=3, sampling="popularity")
    clicks = log.drop_nulls(["who", "what", "when"])
    positive = set(clicks.select("who", "what").iter_rows())
    rows = {split: rows_of(out, split) for split in ("train", "valid", "test")}
    train_items = {row[1] for row in rows["train"] if row[2] == 1}
    assert any(row[1] not in train_items for row in rows["test"])
    for split, found in rows.items():
        clicked, drawn = (Counter({row: n for row, n in found.items() if row[2] == label}) for label in (1, 0))
        assert drawn.total() == 3 * clicked.total(), split
        assert all((row[0], row[1]) not in positive and row[1] in train_items for row in drawn)
        moments = Counter(), Counter()
        for rows_, count in ((clicked, moments[0]), (drawn, moments[1])):
            for row, n in rows_.items():
                count[row[0], row[3], row[5]] += n  # the same user, history and context
        assert moments[1] == Counter({key: 3 * n for key, n in moments[0].items()})


def test_negatives_of_train_do_not_depend_on_later_contexts_and_labels(tmp_path):
    log = raw_log().filter(pl.col("stars") >= 4)
    later = log.with_columns(
        pl.when(pl.col("when") >= 1_700_000_050).then(pl.lit("ZZ")).otherwise("country").alias("country")
    )
    for name, rows in {"a": log, "b": later}.items():
        make(write_raw(tmp_path / name, rows), tmp_path / name / "out", label=None, negatives=2)
    assert rows_of(tmp_path / "a" / "out", "train") == rows_of(tmp_path / "b" / "out", "train")


def test_the_order_of_a_splits_rows_tells_no_label(tmp_path):
    """Positives and their negatives are ordered by user, time and item, whatever was drawn first."""
    folder = write_raw(tmp_path / "raw", raw_log().filter(pl.col("stars") >= 4))
    make(folder, tmp_path / "out", label=None, negatives=3)
    test = pl.read_parquet(tmp_path / "out" / "test.parquet")
    moments = test.select(pl.struct("user_id", "item_seq").rle_id()).to_series()
    ordered = test.with_columns(moments.alias("m")).group_by("m", maintain_order=True).agg("item_id")["item_id"]
    assert "label" not in test.columns
    assert sum(len(items) > 4 or sorted(items) == list(items) for items in ordered.to_list()) == len(ordered)


# The same from other forms of the files


def as_double_colon(frame):
    lines = ["::".join("" if value is None else str(value) for value in row) for row in frame.iter_rows()]
    return ("\n".join(lines) + "\n").encode()


def as_bytes(write):
    def of(frame):
        buffer = io.BytesIO()
        write(frame, buffer)
        return buffer.getvalue()

    return of


as_csv = as_bytes(lambda frame, buffer: frame.write_csv(buffer))
as_jsonl = as_bytes(lambda frame, buffer: frame.write_ndjson(buffer))
as_parquet = as_bytes(lambda frame, buffer: frame.write_parquet(buffer))
MARK = "\ufeff".encode()  # the byte order mark
FORMS = {
    "log.tsv": (as_bytes(lambda frame, buffer: frame.write_csv(buffer, separator="\t")), {}),
    "log.jsonl": (as_jsonl, {}),
    "log.parquet": (as_parquet, {}),
    "log.csv.gz": (lambda frame: gzip.compress(as_csv(frame)), {}),
    "log.csv.zst": (lambda frame: pa.compress(as_csv(frame), codec="zstd", asbytes=True), {}),
    "log.jsonl.zst": (lambda frame: pa.compress(as_jsonl(frame), codec="zstd", asbytes=True), {}),
    "log.jsonl.gz": (lambda frame: gzip.compress(as_jsonl(frame)), {}),
    "mark.jsonl": (lambda frame: MARK + as_jsonl(frame), {}),
    "mark.jsonl.gz": (lambda frame: gzip.compress(MARK + as_jsonl(frame)), {}),
    "mark.csv": (lambda frame: MARK + as_csv(frame), {}),
    "decimals.parquet": (
        lambda frame: as_parquet(
            frame.with_columns(pl.col("when", "stars").cast(pl.Decimal(38, 0)), pl.col("hour").cast(pl.Decimal(9, 2)))
        ),
        {},
    ),
    "nan.csv": (lambda frame: as_csv(frame.with_columns(pl.col("hour").cast(pl.String).fill_null("NaN"))), {}),
    "no_header.csv": (
        as_bytes(lambda frame, buffer: frame.write_csv(buffer, include_header=False)),
        {"columns": raw_log().columns},
    ),
    "utf16.csv": (lambda frame: as_csv(frame).decode().encode("utf-16"), {"encoding": "utf-16"}),
    "log.dat": (as_double_colon, {"format": "csv", "separator": "::", "columns": raw_log().columns}),
    "missing.csv": (
        as_bytes(lambda frame, buffer: frame.write_csv(buffer, null_value="\\N")),
        {"missing": ["\\N"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_the_files_changes_nothing(name, tmp_path, shop):
    folder, out = shop
    write, options = FORMS[name]
    (tmp_path / name).write_bytes(write(raw_log()))
    table = {"files": str(tmp_path / name), **options}
    make(folder, tmp_path / "out", interactions=table)
    for file in ("train", "valid", "test", "item_info", "ids"):
        assert (tmp_path / "out" / f"{file}.parquet").read_bytes() == (out / f"{file}.parquet").read_bytes(), file


def test_a_folder_of_files_is_one_log(tmp_path, shop):
    folder, out = shop
    log = raw_log()
    (tmp_path / "parts").mkdir()
    for at in range(3):
        log.slice(at * 150, 150).write_csv(tmp_path / "parts" / f"{at}.csv")
    make(folder, tmp_path / "out", interactions=str(tmp_path / "parts"))
    assert (tmp_path / "out" / "train.parquet").read_bytes() == (out / "train.parquet").read_bytes()


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%.3f+00:00", "%Y-%m-%d %H:%M:%S UTC",
        "%Y-%m-%d %H:%M:%S%.3f UTC", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %I:%M:%S %p",
        "%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %H:%M:%S", "parquet", "ms",
        "fraction", "float_us", "float_ns", "text_us",
    ],
)  # fmt: skip
def test_times_are_numbers_or_dates(form, tmp_path, shop):
    folder, out = shop
    log, name = raw_log(), "log.parquet" if form in ("parquet", "float_us", "float_ns") else "log.csv"
    seconds = pl.from_epoch("when", time_unit="s")
    when = {"parquet": seconds, "ms": pl.col("when") * 1000, "fraction": pl.col("when") + 0.25}
    when |= {"float_us": pl.col("when") * 1e6, "float_ns": pl.col("when") * 1e9, "text_us": pl.col("when") * 1e6 + 0.5}
    log = log.with_columns((when[form] if form in when else seconds.dt.strftime(form)).alias("when"))
    (log.write_parquet if name == "log.parquet" else log.write_csv)(tmp_path / name)
    make(folder, tmp_path / "out", interactions=str(tmp_path / name))
    assert (tmp_path / "out" / "train.parquet").read_bytes() == (out / "train.parquet").read_bytes()


# Where the log has more, or less


def test_impressions_become_rows_and_given_histories_are_taken(tmp_path):
    """As MIND has them: items with labels in one field, and the clicks before it in another."""
    (tmp_path / "log.tsv").write_text(
        "1\tU1\t11/13/2019 8:36:57 AM\tN1 N2\tN3-1 N-4-0\n"
        "2\tU2\t11/13/2019 1:00:00 PM\t\tN1-0 N3-0\n"
        "3\tU1\t11/14/2019 9:00:00 PM\tN1 N2 N3\tN5-1 N1-0\n"
    )
    table = {"files": "log.tsv", "columns": ["id", "user", "time", "past", "shown"]}
    settings = {
        "impressions": "shown",
        "history": "past",
        "timestamp": "time",
        "user": "user",
    }
    recipe = {"data_root": str(tmp_path), "interactions": dict.fromkeys(("train", "valid", "test"), table), **settings}
    build(load_recipe(None, recipe), tmp_path / "out")
    rows = Counter()
    for (user, item, label, history, *_), count in rows_of(tmp_path / "out", "train", ()).items():
        rows[user, item, label, history] += count
    assert rows == Counter(
        {
            ("U1", "N3", 1, ("N1", "N2")): 1,
            ("U1", "N-4", 0, ("N1", "N2")): 1,
            ("U2", "N1", 0, ()): 1,
            ("U2", "N3", 0, ()): 1,
            ("U1", "N5", 1, ("N1", "N2", "N3")): 1,
            ("U1", "N1", 0, ("N1", "N2", "N3")): 1,
        }
    )

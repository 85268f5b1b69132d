"""Every shipped recipe on files of its data set's shape, with the traps of the real ones, against a slow form."""

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from mm_fibinet.data_check import check_folder
from mm_fibinet.errors import UserError
from mm_fibinet.prepare.build import build
from mm_fibinet.prepare.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "config" / "recipes"
START = 1_573_430_000


def make(name, folder, out, **options):
    return build(load_recipe(RECIPES / f"{name}.yaml", {"data_root": str(folder), **options}), out)


def clicks(rows=240, users=9, items=30, seed=0):
    """(user, item, seconds, rating) out of order: some share a moment, and the first ones are logged twice."""
    rng = np.random.default_rng(seed)
    found = [
        (int(rng.integers(users)), int(rng.integers(items)), START + int(rng.integers(90)), int(rng.integers(1, 6)))
        for _ in range(rows)
    ]
    found = list({row[:3]: row for row in found}.values())  # one rating for a user, item and moment
    return found + found[:5]


def originals(out, column):
    ids = pl.read_parquet(out / "ids.parquet").filter(pl.col("column") == column)
    return dict(zip(ids["id"].to_list(), ids["original"].to_list(), strict=True))


def rows_of(out):
    """{split: Counter of (user, item, label, history)} in original ids."""
    users, items, found = originals(out, "user_id"), originals(out, "item_id"), {}
    for split in ("train", "valid", "test"):
        frame = pl.read_parquet(out / f"{split}.parquet")
        if split == "test":
            frame = frame.join(pl.read_parquet(out / "test_labels.parquet"), on="ID")
        found[split] = Counter(
            (users[row["user_id"]], items[row["item_id"]], row["label"], tuple(items[i] for i in row["item_seq"] if i))
            for row in frame.iter_rows(named=True)
        )
    return found


def slow_histories(rows):
    """(user, item, label, history) of each (user, item, time, label), repeats left out."""
    rows = list(dict.fromkeys(rows))
    found = []
    for user, item, time, label in rows:
        past = sorted((t, at, i) for at, (u, i, t, clicked) in enumerate(rows) if u == user and clicked and t < time)
        found.append((time, (user, item, label, tuple(i for _, _, i in past)[-64:])))
    return found


def slow_splits(rows):
    """The same as {split: Counter}, split by time."""
    found, splits = slow_histories(rows), defaultdict(Counter)
    times = sorted(time for time, _ in found)
    valid_from, test_from = times[int(len(times) * 0.8)], times[int(len(times) * 0.9)]
    for time, row in found:
        splits["test" if time >= test_from else "valid" if time >= valid_from else "train"][row] += 1
    return splits


def without_order(splits):
    """Rows with their histories as sets of counts: clicks of one moment have no order."""
    return {
        split: Counter((u, i, label, tuple(sorted(past))) for (u, i, label, past), n in rows.items() for _ in range(n))
        for split, rows in splits.items()
    }


def catalogue_of(out):
    """{original item: (title, tags)}."""
    items, feature = originals(out, "item_id"), pl.read_parquet(out / "item_feature.parquet")
    return {
        items[row["item_id"]]: (row.get("item_title"), sorted(row.get("item_tags") or ()))
        for row in feature.iter_rows(named=True)
    }


def values_of(out, column, split="train"):
    """{(user, item): original value of a column} of a split."""
    users, items, names = originals(out, "user_id"), originals(out, "item_id"), originals(out, column)
    rows = pl.read_parquet(out / f"{split}.parquet").iter_rows(named=True)
    return {(users[r["user_id"]], items[r["item_id"]]): names.get(r[column], r[column]) for r in rows}


def item_values_of(out, column):
    """{original item: original value of a column of item_info}."""
    items, names = originals(out, "item_id"), originals(out, column)
    rows = pl.read_parquet(out / "item_info.parquet").iter_rows(named=True)
    return {items[r["item_id"]]: names.get(r[column], r[column]) for r in rows if r["item_id"]}


def require_contract(out):
    """The check takes all files."""
    assert not [fault for row in check_folder(out) for fault in row.problems]


FILMS = {
    **{f"{n}": (f"Film {n} (19{n + 40})", ["Drama", "Sci-Fi"]) for n in range(27)},
    "3": ("Misérables, Les (1995)", ["Children's"]),
    "4": ('Say "Aliens", again (1986)', []),
    "5": ("L'été meurtrier (1983)", ["Crime", "Drama", "Thriller"]),
}  # of the 30 films, three lack a line


def rated(seed=0):
    """Ratings as MovieLens has them, and the rows that a data set of them has."""
    log = clicks(seed=seed)
    return log, [(str(user), str(item), time, int(rating >= 4)) for user, item, time, rating in log]


def write_movielens(folder):
    log, rows = rated()
    with open(folder / "ratings.csv", "w", newline="") as file:
        csv.writer(file).writerows([("userId", "movieId", "rating", "timestamp")])
        csv.writer(file).writerows((u, i, f"{rating}.0" if rating > 3 else rating - 0.5, t) for u, i, t, rating in log)
    with open(folder / "movies.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("movieId", "title", "genres")])
        csv.writer(file).writerows(
            (item, title, "|".join(tags) or "(no genres listed)") for item, (title, tags) in FILMS.items()
        )
    return rows


def write_movielens_1m(folder):
    log, rows = rated(seed=1)
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{rating}::{t}\n" for u, i, t, rating in log))
    films = "".join(f"{item}::{title}::{'|'.join(tags)}\n" for item, (title, tags) in FILMS.items())
    (folder / "movies.dat").write_bytes(films.encode("latin-1"))
    (folder / "users.dat").write_text("".join(f"{u}::{'MF'[u % 2]}::{25 + u}::{u}::0{u}067-12\n" for u in range(8)))
    return rows


def write_movielens_100k(folder):
    genres = load_recipe(RECIPES / "movielens_100k.yaml", {}).tag_flags
    log, rows = rated(seed=2)
    (folder / "u.data").write_text("".join(f"{u}\t{i}\t{rating}\t{t}\n" for u, i, t, rating in log))
    films = ""
    for item, (title, tags) in FILMS.items():
        flags = "|".join([str(int(not tags)), *(str(int(genre in tags)) for genre in genres)])
        films += f"{item}|{title}|01-Jan-1995||http://us.imdb.com/M/title-exact?{item}|{flags}\n"
    (folder / "u.item").write_bytes(films.encode("latin-1"))
    (folder / "u.user").write_text("".join(f"{u}|{20 + u}|{'MF'[u % 2]}|writer|0{u}067\n" for u in range(9)))
    return rows


MOVIELENS = {
    "movielens": write_movielens, "movielens_1m": write_movielens_1m, "movielens_100k": write_movielens_100k,
}  # fmt: skip


@pytest.mark.parametrize("name", MOVIELENS)
def test_movielens(name, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = MOVIELENS[name](raw)
    make(name, raw, out)
    assert without_order(rows_of(out)) == without_order(slow_splits(rows))
    assert catalogue_of(out) == {item: FILMS.get(item, (None, [])) for item in {row[1] for row in rows}}
    require_contract(out)
    if name != "movielens":
        assert all(value == ("MF"[int(user) % 2] if user != "8" or name == "movielens_100k" else 0)
                   for (user, _), value in values_of(out, "gender").items())  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_amazon_2023(compressed, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    log = clicks(seed=3)
    user, item = (lambda number: f"AE{number}Q"), (lambda number: f"B00{number}")
    reviews = [
        {
            "rating": float(rating), "title": "good, \"very\"\n", "text": "…", "images": [], "asin": f"V{i}{u}",
            "parent_asin": item(i), "user_id": user(u), "timestamp": t * 1000 + 7, "helpful_vote": 0,
            "verified_purchase": True,
        }
        for u, i, t, rating in log
    ]  # fmt: skip
    meta = [
        {
            "main_category": "Books" if i % 2 else None, "title": f"Café {i}, the book", "average_rating": 4.5,
            "features": [], "description": ["first", "second"] if i % 3 else [],
            "price": [None, 3.99, "from 14.99"][i % 3],
            "images": [{"thumb": "https://x/t.jpg", "large": "https://x/l.jpg", "variant": "MAIN", "hi_res": None}],
            "videos": [], "store": f"store {i % 4}", "categories": ["Books", f"shelf {i % 5}"] if i % 4 else [],
            "details": {f"Detail {i}": "x"}, "parent_asin": item(i), "bought_together": None,
        }
        for i in range(26)
    ]  # fmt: skip
    meta.append(meta[3] | {"title": "a second line of one product"})
    for name, lines in (("All_Beauty.jsonl", reviews), ("meta_All_Beauty.jsonl", meta)):
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        (raw / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    make("amazon_2023", raw, out)
    rows = [(user(u), item(i), t, int(rating >= 4)) for u, i, t, rating in log]
    assert without_order(rows_of(out)) == without_order(slow_splits(rows))
    told = {item(i): (f"Café {i}, the book", ["Books", f"shelf {i % 5}"] if i % 4 else []) for i in range(26)}
    assert catalogue_of(out) == {row[1]: told.get(row[1], (None, [])) for row in rows}
    described = pl.read_parquet(out / "item_feature.parquet")["item_description"]
    assert set(described) == {None, "first second"}
    stores = item_values_of(out, "store")
    assert all(value == (f"store {int(i[3:]) % 4}" if i in told else 0) for i, value in stores.items())
    require_contract(out)


def image_of(number):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def write_hm(folder):
    """Purchases by day, quotation marks and line ends in descriptions, a folder of folders of covers."""
    log = clicks(rows=300, users=6, items=40, seed=4)
    day = [
        (f"{u:064x}", f"0{108775000 + i}", (datetime(2018, 9, 20) + timedelta(t - START)).date()) for u, i, t, _ in log
    ]
    with open(folder / "transactions_train.csv", "w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        writer.writerow(["t_dat", "customer_id", "article_id", "price", "sales_channel_id"])
        writer.writerows([date, user, item, 0.050830508, 1 + at % 2] for at, (user, item, date) in enumerate(day))
    columns = load_recipe(RECIPES / "hm.yaml", {})
    names = ["article_id", "product_code", "prod_name", *columns.tags, *columns.item_categorical, "detail_desc"]
    with open(folder / "articles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(36):
            kinds = ["Vest top", "Garment Upper body", "Solid", f"Colour {i % 3}", "Jersey Basic"]
            text = 'Top with "narrow", adjustable\nstraps' if i % 4 else ""
            writer.writerow(
                [f"0{108775000 + i}", 108775, f"Strap top, {i}", *kinds, "Jersey", "Ladieswear", "Basics", text]
            )
    with open(folder / "customers.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["customer_id", "FN", "Active", "club_member_status", "fashion_news_frequency", "age", "postal_code"]
        )
        writer.writerows([f"{u:064x}", "", "", "ACTIVE", "NONE", 20 + u if u else "", "abc"] for u in range(6))
    for i in range(0, 40, 2):
        place = folder / "images" / "010"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"0{108775000 + i}.jpg").write_bytes(image_of(i))
    return [(user, item, date.toordinal(), 1) for user, item, date in day]


def require_negatives(out, rows, number):
    """Drawn rows are of train's items and never a user's own; returns {split: Counter} of the others."""
    made = rows_of(out)
    bought = {(user, item) for user, item, *_ in rows}
    known = {item for _, item, label, _ in made["train"] if label}
    for split, counts in made.items():
        drawn = Counter({row: count for row, count in counts.items() if not row[2]})
        clicked = sum(count for row, count in counts.items() if row[2])
        assert drawn.total() == number * clicked and clicked, split
        assert all((user, item) not in bought and item in known for user, item, *_ in drawn)
    return {split: Counter({r: n for r, n in counts.items() if r[2]}) for split, counts in made.items()}


def test_hm(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = write_hm(raw)
    built = make("hm", raw, out)
    assert without_order(require_negatives(out, rows, 4)) == without_order(slow_splits(rows))
    known = {f"0{108775000 + i}": f"Strap top, {i}" for i in range(36)}
    items = originals(out, "item_id")
    assert {item: title for item, (title, _) in catalogue_of(out).items()} == {i: known.get(i) for i in items.values()}
    covers = {items[int(path.stem)]: path.read_bytes() for path in (out / "item_images").iterdir()}
    assert covers == {
        f"0{108775000 + i}": image_of(i) for i in range(0, 40, 2) if f"0{108775000 + i}" in items.values()
    }
    assert built.report["images"]["found"] == len(covers)
    ages = values_of(out, "age")
    assert {user: age for (user, _), age in ages.items()} == {f"{u:064x}": 20.0 + u if u else None for u in range(6)}
    require_contract(out)


def test_hm_without_images_and_customers(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_hm(raw)
    shutil.rmtree(raw / "images")
    (raw / "customers.csv").unlink()
    with pytest.raises(UserError, match="no such file or folder"):
        make("hm", raw, tmp_path / "out")
    make("hm", raw, tmp_path / "out", images="none", users=["none"])
    assert "age" not in pl.read_parquet(tmp_path / "out" / "train.parquet").columns


def write_microlens(folder, size):
    log = clicks(rows=200, users=8, items=40, seed=5)
    with open(folder / f"MicroLens-{size}_pairs.csv", "w") as file:
        file.write("user,item,timestamp\n")
        file.writelines(f"{u},{i},{t * 1000}\n" for u, i, t, _ in log)
    name = {"100k": "MicroLens-100k_title_en.csv", "1M": "MicroLens-1M_title.csv"}[size]
    lines = ["item,title\n"] if size == "100k" else []
    lines += [f'{i},一起, "open {i}\n' for i in range(37)]
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return [(str(u), str(i), t, 1) for u, i, t, _ in log]


@pytest.mark.parametrize("size", ["100k", "1M"])
def test_microlens(size, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    rows = write_microlens(raw, size)
    (raw / "covers").mkdir()
    for i in range(20):
        (raw / "covers" / f"{i}.jpg").write_bytes(image_of(i))
    make("microlens", raw, out, images="covers")
    moments = defaultdict(set)
    for user, _, time, _ in rows:
        moments[user].add(time)
    expected = defaultdict(Counter)
    for time, row in slow_histories(rows):
        later = sum(moment > time for moment in moments[row[0]])
        expected[("test", "valid")[later] if later < 2 else "train"][row] += 1
    assert without_order(require_negatives(out, rows, 4)) == without_order(expected)
    told = {item: title for item, (title, _) in catalogue_of(out).items()}
    assert told == {item: f'一起, "open {item}' if int(item) < 37 else None for _, item, *_ in rows}
    items = originals(out, "item_id")
    assert {items[int(path.stem)] for path in (out / "item_images").iterdir()} == {
        item for item in told if int(item) < 20
    }
    require_contract(out)


def test_kuairand(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    log = clicks(seed=6)
    header = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,play_time_ms,duration_ms,is_rand,tab\n"
    line = "{0},{1},20220408,{4},{2},{3},1,{3},9000,0,{5}\n".format
    lines = [line(u, i, t * 1000, int(rating > 2), 100 * (t % 24), i % 3) for u, i, t, rating in log]
    for name, part in (
        ("log_standard_4_22_to_5_08_1k.csv", lines[:100]),
        ("log_standard_4_08_to_4_21_1k.csv", lines[100:]),
    ):
        (raw / name).write_text(header + "".join(part))
    (raw / "log_random_4_22_to_5_08_1k.csv").write_text(header + line(99, 99, START * 1000, 1, 0, 1))
    tag_fields, lengths = ["39", '"20,43"', ""], ["" if i % 5 else f"{8000.0 + i}" for i in range(28)]
    video = "{0},{1},NORMAL,2022-04-01,ShortImport,{2},7,{3},{4}\n".format
    videos = [video(i, i % 4, lengths[i], i % 3 or "", tag_fields[i % 3]) for i in range(28)]
    (raw / "video_features_basic_1k.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,video_duration,music_id,music_type,tag\n" + "".join(videos)
    )
    (raw / "video_features_statistic_1k.csv").write_text("video_id,show_cnt\n1,2\n")
    names = load_recipe(RECIPES / "kuairand.yaml", {}).user_categorical
    people = "".join(f"{u},{','.join(str(u % 3) for _ in names)}\n" for u in range(9))
    (raw / "user_features_1k.csv").write_text(f"user_id,{','.join(names)}\n{people}")
    make("kuairand", raw, out)
    rows = [(str(u), str(i), t, int(rating > 2)) for u, i, t, rating in log]
    assert without_order(rows_of(out)) == without_order(slow_splits(rows))
    tags = {str(i): [["39"], ["20", "43"], []][i % 3] if i < 28 else [] for i in range(30)}
    assert {item: found for item, (_, found) in catalogue_of(out).items()} == {row[1]: tags[row[1]] for row in rows}
    lengths = item_values_of(out, "video_duration")
    assert lengths == {
        row[1]: 8000.0 + int(row[1]) if int(row[1]) % 5 == 0 and int(row[1]) < 28 else None for row in rows
    }
    shown = pl.read_parquet(out / "train.parquet").columns
    assert {"hourmin", "tab"} <= set(shown) and not {"is_like", "play_time_ms", "is_rand"} & set(shown)
    require_contract(out)


def test_mind(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    rng, expected = np.random.default_rng(7), defaultdict(Counter)
    times = {}
    for part, events in (("train", 60), ("dev", 20)):
        (raw / f"MINDsmall_{part}").mkdir(parents=True)
        lines = []
        for event in range(events):
            user = f"U{rng.integers(7)}"
            day = 9 + event % 6 if part == "train" else 15  # as MIND's; after the 12th it is clear what is the month
            time = datetime(2019, 11, day, 0, 0) + timedelta(minutes=int(rng.integers(1440)))
            past = [] if user == "U0" else [f"N{i}" for i in rng.integers(30, size=int(rng.integers(1, 5)))]
            shown = [(f"N{i}", int(rng.integers(2))) for i in rng.choice(40, size=4, replace=False)]
            text = " ".join(f"{item}-{label}" for item, label in shown)
            clock = f"{time.month}/{time.day}/{time.year} {time.hour % 12 or 12}:{time:%M:%S} {time:%p}"
            lines.append(f"{event + 1}\t{user}\t{clock}\t{' '.join(past)}\t{text}\n")
            for item, label in shown:
                expected[part][user, item, label, tuple(past)] += 1
                times.setdefault(part, []).append((time, (user, item, label, tuple(past))))
        (raw / f"MINDsmall_{part}" / "behaviors.tsv").write_text("".join(lines))
        news = "".join(
            f'N{i}\tsports\tkind {i % 3}\tThe "open {i}\tSaid: \'it\'\thttps://x/{i}\t[{{"Label": "x"}}]\t[]\n'
            for i in range(0 if part == "train" else 10, 33)
        )
        (raw / f"MINDsmall_{part}" / "news.tsv").write_text(news)
    make("mind", raw, out)
    made = rows_of(out)
    assert made["test"] == expected["dev"]
    valid_from = sorted(time for time, _ in times["train"])[int(len(times["train"]) * 0.9)]
    assert made["valid"] == Counter(row for time, row in times["train"] if time >= valid_from)
    assert made["train"] == Counter(row for time, row in times["train"] if time < valid_from)
    told = catalogue_of(out)
    assert told["N12"] == ('The "open 12', ["kind 0", "sports"])
    assert all(told[item] == (None, []) for item in told if int(item[1:]) >= 33)
    require_contract(out)


def write_taobao_mm(folder, users=24, items=300, rows=400, length=1000):
    """Its raw files: hashed ids, negative ones too, 0 for nothing, lists of one-hot labels and int8 vectors.

    Returns:
        users' ids; {(split, user): history}; {split: [(user, item, label)]}; {item: int8 [128]}.
    """
    rng = np.random.default_rng(8)
    (folder / "raw").mkdir(parents=True)
    user_ids, item_ids = (rng.integers(-(2**63), 2**63 - 1, n, dtype=np.int64) for n in (users, items))
    taste = rng.normal(size=(users, 8)).astype(np.float32)
    topics = rng.normal(size=(items, 8)).astype(np.float32)
    vectors = np.clip(topics @ rng.normal(size=(8, 128)) * 30, -127, 127).astype(np.int8)
    histories, samples = {}, {}
    for split, n, known in (("train", rows, users - 4), ("test", rows // 4, users)):
        owner, shown = rng.integers(known, size=n), rng.integers(items, size=n)
        odds = 1 / (1 + np.exp(-(taste[owner] * topics[shown]).sum(1)))
        label = (rng.random(n) < odds).astype(int)
        samples[split] = list(zip(user_ids[owner].tolist(), item_ids[shown].tolist(), label.tolist(), strict=True))
        columns = {
            "label_0": [[1 - each, each] for each in label.tolist()],
            "129_1": user_ids[owner],
            "205": item_ids[shown],
        }
        frame = pl.DataFrame(columns, schema_overrides={"label_0": pl.List(pl.Int8)})
        frame.write_parquet(folder / "raw" / f"{split}_samples.parquet")
        lists = [item_ids[rng.integers(items, size=length if at % 5 else 3)].tolist() for at in range(known)]
        lists[1] = [0]  # of none
        first = 0 if split == "train" else users // 2  # half of train's users are in test's file again
        for at in range(first, known):
            histories[split, int(user_ids[at])] = tuple(item for item in lists[at] if item)
        people = {"129_1": user_ids[first:known], "150_2_180": lists[first:known], "151_2_180": lists[first:known]}
        people |= {f"130_{k}": np.arange(first, known) % (k + 1) for k in range(1, 6)}
        pl.DataFrame(people).write_parquet(folder / "raw" / f"{split}_user_features.parquet")
    described = item_ids[: items * 2 // 3]
    features = {
        "205": described,
        **{name: np.arange(len(described)) % k for name, k in (("206", 9), ("213", 4), ("214", 5))},
    }
    pl.DataFrame(features).write_parquet(folder / "raw" / "item_features.parquet")
    with_vector = np.append(item_ids[5:], [17])  # five have none, and one is of no item
    lists = [*vectors[5:].tolist(), [1] * 128]
    frame = pl.DataFrame({"205": with_vector, "205_c": lists}, schema_overrides={"205_c": pl.List(pl.Int8)})
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(folder / "raw" / "scl_embedding_int8_p90.parquet")
    return histories, samples, dict(zip(item_ids[5:].tolist(), vectors[5:], strict=True))


@pytest.fixture(scope="module")
def taobao_mm(tmp_path_factory):
    """(histories, samples, vectors, data set) of the recipe, made by the script and the recipe's name."""
    folder = tmp_path_factory.mktemp("taobao_mm")
    made = write_taobao_mm(folder / "raw")
    command = [sys.executable, ROOT / "build_dataset.py", "--recipe", "taobao_mm", "--out", folder / "data" / "taobao"]
    done = subprocess.run([*command, "--data_root", folder / "raw"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (*made, folder / "data" / "taobao")


def test_taobao_mm(taobao_mm):
    """Rows have the history of their own split's file, also those of users whom both files have."""
    histories, samples, _, out = taobao_mm
    users, items = originals(out, "user_id"), originals(out, "item_id")
    info = pl.read_parquet(out / "user_info.parquet")
    assert info["user_id"].to_list() == list(range(len(users)))
    lists = [tuple(int(items[item]) for item in each) for each in info["item_seq"]]
    made = {split: pl.read_parquet(out / f"{split}.parquet") for split in ("train", "valid", "test")}
    made["test"] = made["test"].join(pl.read_parquet(out / "test_labels.parquet"), on="ID")
    made["train"] = pl.concat([made["train"], made.pop("valid")])
    for split, frame in made.items():
        found = Counter(
            (int(users[user]), int(items[item]), label, lists[user][:end])
            for user, item, label, end in frame.select("user_id", "item_id", "label", "history_end").iter_rows()
        )
        expected = [(user, item, label, histories.get((split, user), ())) for user, item, label in samples[split]]
        assert found == Counter(expected)
    assert {len(history) for history in lists} == {0, 3, 1000}
    both = [user for user, n in Counter(users.values()).items() if n == 2]
    assert any(histories["train", int(user)] != histories.get(("test", int(user))) for user in both)


def test_taobao_mm_embedding(taobao_mm):
    _, _, vectors, out = taobao_mm
    info, items = pl.read_parquet(out / "item_info.parquet"), originals(out, "item_id")
    assert info["item_emb_d128"].dtype.shape == (128,)
    assert info["item_emb_d128"].dtype.inner == pl.Int8
    entry = yaml.safe_load((out / "dataset_config.yaml").read_text())["taobao"]
    (column,) = [each for each in entry["feature_cols"] if each["name"] == "item_emb_d128"]
    assert column == {"name": "item_emb_d128", "type": "embedding", "source": "item", "scale": pytest.approx(1 / 127)}
    for at, vector in enumerate(info["item_emb_d128"].to_numpy()):
        expected = vectors.get(int(items[at])) if at else None
        np.testing.assert_array_equal(vector, np.zeros(128) if expected is None else expected)
    assert json.loads((out / "report.json").read_text())["items_without_embedding"] == sum(
        int(original) not in vectors for original in items.values()
    )
    categories = item_values_of(out, "206")
    assert set(categories.values()) == {*map(str, range(1, 9)), 0}  # 0 stands for nothing


def test_taobao_mm_passes_the_check(taobao_mm):
    require_contract(taobao_mm[-1])


@pytest.mark.slow
def test_a_model_trains_on_taobao_mm(taobao_mm, tmp_path):
    out = taobao_mm[-1]
    command = [
        sys.executable, ROOT / "run_expid.py", "--expid", "FiBiNET_demo", "--gpu", "-1", "--data_root", out,
        "--model_root", tmp_path, "--set", "dataset_id=taobao", "epochs=1", "batch_size=64", "max_len=1000",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "taobao" / "FiBiNET_demo"
    assert "item_emb_d128" in (run / "feature_map.json").read_text()
    scores = pl.read_parquet(run / "valid_scores.parquet")
    assert scores["label"].to_list() == pl.read_parquet(out / "valid.parquet")["label"].to_list()
    assert 0 < json.loads((run / "result.json").read_text())["metrics"]["AUC"] < 1


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_files_that_are_missing_are_named(recipe, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        make(recipe, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_csv(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


LOG = ["user_id,item_id,time", *(f"u{at % 3},i{at % 5},{at}" for at in range(30))]
SMALL = {"timestamp": "time", "negatives": 0}


def small(folder, out, **settings):
    return build(load_recipe(None, {"data_root": str(folder), "interactions": ["log*.csv"], **SMALL, **settings}), out)


def test_a_pattern_stands_for_the_files_in_the_names_order(tmp_path):
    root = tmp_path / "a [folder] of mine"  # of the root nothing is a pattern
    write_csv(root / "log_2.csv", LOG[0], *LOG[16:])
    write_csv(root / "log_1.csv", *LOG[:16])
    write_csv(root / ".log.csv", "hidden")
    write_csv(root / "day*" / "x.csv", *LOG)
    write_csv(root / "day1" / "x.csv", "another")
    write_csv(tmp_path / "one" / "log.csv", *LOG)
    for name, folder, pattern in (
        ("two", root, "log_*.csv"),
        ("literal", root, "day*/x.csv"),
        ("one", tmp_path, "o?e/*.csv"),
    ):
        small(folder, tmp_path / f"out_{name}", interactions=[pattern])
    absolute = [str(tmp_path / "[m-p]ne" / "log.csv")]
    small(root, tmp_path / "out_absolute", interactions=absolute)
    for split in ("train", "valid", "test"):
        frames = [
            pl.read_parquet(tmp_path / f"out_{n}" / f"{split}.parquet") for n in ("two", "literal", "one", "absolute")
        ]
        assert all(frame.equals(frames[0]) for frame in frames)


def test_an_embedding_is_scaled_and_taken_by_item(tmp_path):
    write_csv(tmp_path / "log.csv", *LOG)
    columns = {"item_id": ["i0", "i1", "i1", "i9", None], "vector": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 9]]}
    pl.DataFrame(columns).write_parquet(tmp_path / "vectors.parquet")
    small(tmp_path, tmp_path / "out", embeddings=["vectors.parquet"], embedding="vector", embedding_scale=0.5)
    found = pl.read_parquet(tmp_path / "out" / "item_info.parquet")["item_emb_d2"]
    assert found.to_list() == [[0, 0], [0.5, 1], [1.5, 2], [0, 0], [0, 0], [0, 0]]
    entry = (tmp_path / "out" / "dataset_config.yaml").read_text()
    assert "{name: item_emb_d2, type: embedding, source: item}" in entry


WRONG = {
    "lists of 1 to 2 numbers": {"lists": [[1.0, 2.0], [3.0], [5.0], [7.0], [9.0]]},
    "expected numbers": {"lists": [[1.0], [float("nan")], [5.0], [7.0], [9.0]]},
    "expected a list of numbers": {"lists": ["1 2", "3", "4", "5", "6"]},
    "none of the log's items": {"lists": [[1.0]] * 5, "item_key": "vector_of"},
    "set both or neither": {"lists": [[1.0]] * 5, "embedding": None},
    "embedding_scale is -1": {"lists": [[1.0]] * 5, "embedding_scale": -1},
    "no file has such a name": {"lists": [[1.0]] * 5, "interactions": ["clicks_*.csv"]},
    "column nothing is missing": {"lists": [[1.0]] * 5, "embedding": "nothing"},
    "test_users are set": {"lists": [[1.0]] * 5, "test_users": ["log.csv"]},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_left(said, tmp_path):
    settings = {"embeddings": ["vectors.parquet"], "embedding": "vector", **WRONG[said]}
    lists = settings.pop("lists")
    write_csv(tmp_path / "log.csv", *LOG)
    columns = {"item_id": ["i0", "i1", "i1", "i9", None], "vector": lists, "vector_of": ["x0", "x1", "x2", "x3", "x4"]}
    pl.DataFrame(columns).write_parquet(tmp_path / "vectors.parquet")
    with pytest.raises(UserError, match=said):
        small(tmp_path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_rest_is_the_last_column_and_needs_names(tmp_path):
    write_csv(tmp_path / "log.csv", *LOG)
    write_csv(tmp_path / "items.csv", 'i0,a, "b,c', "i1", "i2,", "i3,plain")
    items = {"files": "items.csv", "columns": ["item_id", "text"], "rest": True}
    small(tmp_path, tmp_path / "out", items=items, title="text")
    assert {item: title for item, (title, _) in catalogue_of(tmp_path / "out").items()} == {
        "i0": 'a, "b,c', "i1": None, "i2": None, "i3": "plain", "i4": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="need columns"):
        small(tmp_path, tmp_path / "other", items={"files": "items.csv", "rest": True}, title="text")


def test_an_unknown_recipe_is_refused_with_the_shipped_names(tmp_path):
    command = [sys.executable, ROOT / "build_dataset.py", "--recipe", "movielens_10m", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "movielens_100k" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_where_its_layout_is_described_and_is_in_the_docs(path):
    assert "# Layout: https://" in path.read_text(encoding="utf-8")
    assert f"`{path.stem}`" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

"""The report's page and command: what it says is what was measured, it asks for nothing, and it works in a browser."""

import base64
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import contrast, pages_of
from conftest import list_column, run_script
from PIL import Image
from user_data import make_forms

from mm_fibinet.items.report import Sources, write_report
from mm_fibinet.items.report.page import as_text

ITEMS, WIDTH = 90, 6
EVIL = "</script><img src=x onerror=alert(1)> {{data}} \x1b[2J"
COLUMNS = ["item_emb_d6", "txt_emb_d6"]


def make_files(folder: Path, items: int = ITEMS, covers: bool = True) -> Path:
    """item_info with two embeddings, of which the first alone tells topics and clicks; splits, titles and covers."""
    rng = np.random.default_rng(9)
    topic = rng.integers(0, 3, items + 1)
    vectors = rng.normal(size=(items + 1, WIDTH)) + 2 * np.eye(3, WIDTH)[topic]
    noise = rng.normal(size=(items + 1, WIDTH))
    vectors[0] = noise[0] = vectors[4] = 0
    info = {"item_id": np.arange(items + 1), COLUMNS[0]: list_column(vectors), COLUMNS[1]: list_column(noise)}
    pq.write_table(pa.table(info), folder / "item_info.parquet")
    titles = [f"video {item} of topic {topic[item]}" for item in range(1, items + 1)]
    titles[:3] = [EVIL, "שלום עולם", "我的猫 " * 80]
    feature = {
        "item_id": np.arange(1, items + 1),
        "item_title": titles,
        "item_tags": [
            [f"topic {topic[item]}", *(["<b>rare</b>"] if item % 4 == 0 else [])] for item in range(1, items + 1)
        ],
    }
    pq.write_table(pa.table(feature), folder / "item_feature.parquet")
    data = folder / "data"
    data.mkdir()
    for name, rows, targets in (("train", 400, items // 2), ("valid", 600, items)):
        history, target = rng.integers(1, items + 1, (rows, 5)), rng.integers(1, targets + 1, rows)
        same = (topic[history] == topic[target][:, None]).mean(axis=1)
        split = {
            "user_id": rng.integers(0, 80, rows),
            "item_seq": list_column(history),
            "item_id": target,
            "label": (same + rng.normal(scale=0.2, size=rows) > 0.45).astype(int),
        }
        pq.write_table(pa.table(split), data / f"{name}.parquet")
    if covers:
        (folder / "item_images").mkdir()
        for item in range(1, items + 1):
            picture = Image.new("RGB", (90 + item, 140), tuple(int(c) for c in rng.integers(0, 255, 3)))
            picture.save(folder / "item_images" / f"{item}.jpg")
        (folder / "item_images" / "9.jpg").write_bytes(b"not a picture")
    config = folder / "config"
    config.mkdir()
    (config / "dataset_config.yaml").write_text(f"""
SHOP:
    data_root: {folder}
    train_data: {data}/train.parquet
    valid_data: {data}/valid.parquet
    item_info: {folder}/item_info.parquet
    item_feature: {folder}/item_feature.parquet
    feature_cols: []
""")
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def written(shop, tmp_path_factory):
    """(page, contents) of everything."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    data = shop / "data"
    sources = Sources(
        shop / "item_info.parquet", data / "valid.parquet", data / "train.parquet", None,
        shop / "item_feature.parquet", shop / "item_images",
    )  # fmt: skip
    return page, write_report(sources, page)


def report(*arguments, capsys):
    return run_script("mm_fibinet.items.report.__main__", *arguments, capsys=capsys)


def test_the_page_asks_for_nothing_and_strangers_text_stays_text(written):
    page = written[0].read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<b>rare" not in page and "\x1b" not in page
    left = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not [mark for mark in ("http:", "https:", "@import", "url(") if mark in left]
    assert "{{" not in left.replace("{{data}}", "")  # the one of a title
    sources = {part.split('"')[0][:23] for part in page.split('src="')[1:]}
    assert sources == {"data:image/jpeg;base64,"}
    json.loads(page.split('type="application/json">')[1].split("</script>")[0])


def test_column_names_are_printed_as_a_terminal_shows_them(written):
    columns = {f"emb\x1b[2J{number}": figures for number, figures in enumerate(written[1].columns.values())}
    contents = dataclasses.replace(written[1], columns=columns, clicks=None)
    lines = as_text(contents).split("\n")
    assert lines[0].split()[:2] == [r"emb\x1b[2J0", r"emb\x1b[2J1"] and all(line.isprintable() for line in lines)


def test_the_page_says_what_was_measured(written):
    path, contents = written
    page = path.read_text(encoding="utf-8")
    clicks = contents.clicks
    first, second = (clicks.auc[name]["all"] for name in COLUMNS)
    assert first.low > 0.55 and second.low < 0.5 < second.high
    assert f"<strong>{COLUMNS[0]}</strong> tells clicks best of 2: AUC {first.auc:.3f}" in page
    for subset, rows in clicks.rows.items():
        assert f"AUC, {subset if subset != 'all' else 'all rows'} ({rows:,} rows)" in page
        auc, low, high = clicks.auc[COLUMNS[1]][subset]
        assert f'">{auc:.3f}<small dir="auto">{low:.3f} to {high:.3f}</small>' in page
    figures = contents.columns[COLUMNS[0]]
    assert figures.probe.mean > 0.8 > contents.columns[COLUMNS[1]].probe.mean
    assert f"{figures.geometry.hubness:.2f}" in page
    assert '>1<small dir="auto">1.1%</small>' in page  # item 4 has no vector
    assert [contents.warm[item] for item in contents.shown] == [True] * 4 + [False] * 4
    assert page.count('class="chip cold"') == 4
    text = as_text(contents)
    assert (
        text.splitlines()[0].split() == [*COLUMNS, "chance", "or", "ideal"]
        and f"{figures.geometry.anisotropy:.3f}" in text
    )


def test_covers_are_small_jpegs_of_the_items(written, shop):
    contents = written[1]
    shown = set(contents.shown) | {
        i for each in contents.columns.values() for n in each.shown.values() for i in n.item_ids
    }
    assert set(contents.covers) == shown - {9}
    item, (uri, ratio) = next(iter(contents.covers.items()))
    small = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    whole = Image.open(shop / "item_images" / f"{item}.jpg")
    assert max(small.size) <= 192 and ratio == small.width / small.height
    assert ratio == pytest.approx(whole.width / whole.height, rel=0.02)
    difference = np.abs(np.asarray(small, dtype=int)[5, 5] - np.asarray(whole, dtype=int)[5, 5])
    assert difference.max() < 12


def test_the_command_finds_the_data_sets_files_and_writes_the_same_bytes(shop, written, tmp_path, capsys):
    out = tmp_path / "new" / "r.html"
    arguments = [shop / "item_info.parquet", "--data", "SHOP", "--config", shop / "config"]
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    code, printed, error = report(*arguments, "--out", out, capsys=capsys)
    assert code == 0, error
    assert out.read_bytes() == written[0].read_bytes()
    assert str(out) in printed and as_text(written[1]) in printed
    assert {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()} == before
    code, _, _ = run_script(
        "mm_fibinet.__main__", "report", *arguments, "--out", out, "--columns", COLUMNS[1], capsys=capsys
    )
    assert (
        code == 0
        and "No column tells clicks by its cosine alone" in out.read_text()
        and COLUMNS[0] not in out.read_text()
    )
    code, _, error = report(*arguments, "--out", out, "--seed", "1", capsys=capsys)
    assert code == 0 and out.read_bytes() != written[0].read_bytes(), error


def test_covers_of_an_archive(shop, written, tmp_path, capsys):
    archive = shutil.make_archive(tmp_path / "covers", "zip", shop / "item_images")
    out = tmp_path / "r.html"
    arguments = [shop / "item_info.parquet", "--data", "SHOP", "--config", shop / "config", "--images", archive]
    code, _, error = report(*arguments, "--out", out, capsys=capsys)
    assert code == 0 and out.read_bytes() == written[0].read_bytes(), error


def test_what_is_not_there_is_left_out_and_said(shop, tmp_path, capsys):
    out = tmp_path / "r.html"
    code, printed, error = report(shop / "item_info.parquet", "--out", out, capsys=capsys)
    assert code == 0 and "AUC" not in printed, error
    page = out.read_text()
    for said in ("no click evidence", "not told apart", "have no titles", "no covers: --images", "no tags"):
        assert said in page
    assert "item 17" in page and "<h2>Does it" not in page


def test_user_info(tmp_path, capsys):
    configs = make_forms(tmp_path)
    pages = {}
    for form, config in configs.items():
        data = tmp_path / form / "TEST_DATA"
        out = tmp_path / f"{form}.html"
        code, printed, error = report(
            data / "item_info.parquet", "--data", "TEST_DATA", "--config", config, "--out", out, capsys=capsys
        )
        assert code == 0, error
        pages[form] = printed.splitlines()[:-1]
    assert pages["rows"] == pages["users"] and any(line.startswith("AUC, all rows") for line in pages["rows"])


def zeros(folder):
    table = pq.read_table(folder / "item_info.parquet")
    place = table.column_names.index(COLUMNS[1])
    table = table.set_column(place, COLUMNS[1], list_column(np.zeros((table.num_rows, WIDTH))))
    pq.write_table(table, folder / "zeros.parquet")


def unclicked(folder):
    table = pq.read_table(folder / "data" / "valid.parquet")
    pq.write_table(table.set_column(3, "label", pa.array([0] * table.num_rows)), folder / "zero_labels.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.parquet"], "nowhere.parquet: no such file"),
        (["item_info.parquet", "--columns", "emb"], "has no embedding column emb, expected some of item_emb_d6, txt_"),
        (["item_feature.parquet"], "item_feature.parquet: item_id is 1 in row 0, expected 0"),
        (["zeros.parquet"], "column txt_emb_d6 is zero but in 0 rows, expected vectors of at least 3 items"),
        (["item_info.parquet", "--data", "SHIP"], "dataset_id SHIP: not in"),
        (["item_info.parquet", "--valid", "zero_labels.parquet"], "expected some with label 0 and some with label 1"),
        (["item_info.parquet", "--valid", "data/train"], "train"),
        (["item_info.parquet", "--images", "nothing"], "nothing: no such file or folder"),
        (["item_info.parquet", "--titles", "nothing"], "nothing: no such file"),
        (["item_info.parquet", "--data_root", "."], "--data_root goes with --data"),
        (["item_info.parquet", "--out", "item_info.parquet"], "--out item_info.parquet is an input"),
        (["item_info.parquet", "--out", "mine.html"], "--out mine.html: there is a file that is no html"),
        (["item_info.parquet", "--seed", "-1"], "--seed -1: expected 0"),
        (["item_info.parquet", "--user_info", "u.parquet"], "--user_info u.parquet: there is no validation split"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    make_files(tmp_path, covers=False)
    zeros(tmp_path)
    unclicked(tmp_path)
    (tmp_path / "mine.html").write_text("my diary")
    monkeypatch.chdir(tmp_path)
    if "data/train" in arguments:  # a split without histories
        pq.write_table(pq.read_table("data/train.parquet").drop_columns("item_seq"), "data/train.parquet")
        message = "column item_seq is missing"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, error = report(*arguments, "--config", tmp_path / "config", capsys=capsys)
    said = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1 and message in said[0] and "Traceback" not in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def open_page(browser, written):
    with pages_of(browser, written[0]) as open_at:
        yield open_at


def test_the_map(open_page, written):
    page, contents = open_page(), written[1]
    dots = page.locator("#map circle")
    assert dots.count() == len(contents.points) == ITEMS - 1
    frame = page.locator("#map svg").bounding_box()
    places = dots.evaluate_all("dots => dots.map(dot => dot.getBoundingClientRect())")
    assert all(frame["x"] <= place["left"] and place["right"] <= frame["x"] + frame["width"] for place in places)
    assert all(frame["y"] <= place["top"] and place["bottom"] <= frame["y"] + frame["height"] for place in places)
    before = dots.evaluate_all("dots => dots.map(dot => dot.getAttribute('cx'))")
    page.locator("#column").select_option(COLUMNS[1])
    assert dots.evaluate_all("dots => dots.map(dot => dot.getAttribute('cx'))") != before
    assert page.locator("#method").is_hidden()  # without UMAP there is one
    tag = page.locator(".legend button").first
    others = dots.count() - page.locator("#map circle[fill='var(--c0)']").count()
    assert 0 < others < dots.count()
    tag.click()
    assert tag.get_attribute("aria-pressed") == "false" and dots.count() == others
    dots.last.hover()
    assert "video" in page.locator("#tip").inner_text()
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_covers_and_intervals_are_shown(open_page, written):
    page, contents = open_page(), written[1]
    loaded = page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert loaded and all(loaded)
    assert page.locator(".item").count() == 8 and page.locator(".tiles figure").count() == 8 * 2 * 6
    dots = page.locator(".track").evaluate_all(
        "tracks => tracks.map(t => ['.chance', '.bar', '.dot'].map(s => t.querySelector(s).getBoundingClientRect())"
        ".map(b => [b.left, b.right]))"
    )
    intervals = [contents.clicks.auc[name][subset] for subset in contents.clicks.rows for name in COLUMNS]
    assert len(dots) == len(intervals)
    (chance, _), _, (left, right) = dots[0]
    unit = ((left + right) / 2 - chance) / (intervals[0].auc - 0.5)  # pixels to one of AUC
    for (chance, _), (low, high), (left, right) in dots:
        interval = intervals.pop(0)
        found = [low - chance, high - chance, (left + right) / 2 - chance]
        wanted = [unit * (value - 0.5) for value in (interval.low, interval.high, interval.auc)]
        assert found == pytest.approx(wanted, abs=2.5)


def test_light_and_dark(open_page):
    grounds = []
    for scheme in ("light", "dark"):
        page = open_page(scheme=scheme)
        for selector in (".figures td", "td.best", ".figures small", ".group th", ".item header p", ".notes", ".ends",
                         ".chip.cold", ".chip.warm"):  # fmt: skip
            assert contrast(page, selector, ".card") >= 4.5, (scheme, selector)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_a_phone(open_page):
    page = open_page(width=390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    cells = page.locator(".figures td:visible").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert cells and max(cells) <= 390  # all figures are in sight
    label = page.locator(".figures td").first.evaluate("cell => getComputedStyle(cell, '::before').content")
    assert label == f'"{COLUMNS[0]}"'
    tiles = page.locator(".tiles").first
    assert tiles.evaluate("element => element.scrollWidth > element.clientWidth")
    assert page.locator(".tiles img").first.bounding_box()["width"] >= 84
    page.locator("#map circle").last.tap(force=True)
    tip = page.locator("#tip").bounding_box()
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= 390


def test_without_a_script_all_but_the_map_is_there(browser, written):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written[0].as_uri())
    assert (
        page.locator(".figures tbody tr").count() > 15 and "needs JavaScript" in page.locator("noscript").inner_text()
    )
    context.close()

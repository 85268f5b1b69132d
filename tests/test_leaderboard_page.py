"""The leaderboard's page in a real browser: comparison with any row, folding columns, zoomed axes, details, studies."""

import base64
import json

import numpy as np
import pytest
from browsing import contrast, pages_of
from test_leaderboard import make_outcomes, order

from mm_fibinet.compare import leaderboard
from mm_fibinet.compare.section import Figure, Section
from mm_fibinet.significance import P_FLOOR, Pairs

EVIL = "</script><b>\u202e"
LONG = "FiBiNET_ablation_embedding_field_dropped"
NAMES = ["far", "base", "good", "middle", "near", LONG]


def manifest_of(expid):
    """What a run's manifest says, as far as the page reads it."""
    return {
        "config": {"model_id": expid, "seed": 1, "learning_rate": 0.1 if expid == "good" else 0.2, "note": EVIL,
                   "train_data": "/secret/place/train.parquet", "model_root": "/secret/runs", "epochs": 3},
        "data": {"train_data": {"path": "/secret/place/train.parquet", "bytes": 7, "sha256": "ab" * 32}},
        "versions": {"torch": "2.9"},
        "command": ["/secret/run_expid.py"],
    }  # fmt: skip


def make_sections():
    """One of each kind of figure."""
    points = {name: [(x, 0.6 + 0.01 * x + 0.01 * at, None, None) for x in (0, 1, 2)] for at, name in enumerate(NAMES)}
    with_ends = {name: [(x, y, y - 0.02, y + 0.02) for x, y, _, _ in line] for name, line in points.items()}
    ticks = [(0, "0"), (1, "1-3"), (2, "4+")]
    scale = {name: [(10 ** (x + 2), y, None, None) for x, y, _, _ in line] for name, line in points.items()}
    curve = [(x / 4, x / 5, None, None) for x in (0, 1, 2)]
    kinds = {
        "cold": Figure("rows of train", "AUC", {"": with_ends}, ticks),
        "modality": Figure("share", "AUC", {"text": points, "both": points}),
        "scale": Figure("rows", "AUC", {"": scale}, log=True),
        "calibration": Figure("mean score", "share of clicks", {"": dict.fromkeys(NAMES, curve)}, diagonal=True),
    }
    rows = [[name, "0.6000 (0.5800-0.6200)", "0.7"] for name in NAMES]
    records = [{"expid": name, "auc": 0.6} for name in NAMES]
    return [Section(name, name, "of </script><b>", ["Experiment", "1-3", "4+"], rows, records, figure)
            for name, figure in kinds.items()]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes():
    """Six experiments on the same rows, two seeds each; one is far below the others."""
    made = [one for one in make_outcomes() if one.result]
    label, base = made[0].scores["label"].to_numpy(), made[0]
    rng, found = np.random.default_rng(5), []
    for at, expid in enumerate(NAMES):
        for seed in (1, 2):
            signal = 0.02 if expid == "far" else 2 + 0.1 * at
            score = 1 / (1 + np.exp(-(signal * label + rng.normal(size=len(label)))))
            scores = base.scores.with_columns(score=score)
            auc = Pairs(label, scores["user_id"].to_numpy(), {"a": score[None]})._auc[0]
            curve = [{"epoch": e, "seconds": 10.0 * e, "AUC": float(auc) - 0.2 / e} for e in (1, 2, 3)]
            gpu = {
                "peak_gpu_memory_mb": 12345,
                "train_seconds": 4321.0,
                "rows_per_second": 123456.0,
                "parameters": 123456789,
            }
            result = {**base.result, **gpu, "metrics": {**base.result["metrics"], "AUC": float(auc)}, "curve": curve}
            found.append(
                leaderboard.Outcome(
                    expid, seed, result, scores, None, leaderboard.Tuned(32, 1234.5), manifest_of(expid)
                )
            )
    return found


@pytest.fixture(scope="module")
def written(outcomes, tmp_path_factory):
    board = leaderboard.build(outcomes, "base")
    board.sections = make_sections()
    return leaderboard.write(board, tmp_path_factory.mktemp("page"))


def cells(page, expid):
    """{column: text} of a row as it is shown."""
    heads = page.locator("#board thead th").evaluate_all("all => all.map(one => one.dataset.key)")
    texts = page.locator(f"#rows tr[data-expid={expid}] > *").evaluate_all("all => all.map(one => one.textContent)")
    return dict(zip(heads, texts, strict=True))


def test_a_click_compares_with_any_row(open_page, outcomes):
    """What is shown is what the library says with that experiment as the baseline, and what a page of its own shows."""
    page = open_page()
    page.locator("#rows tr[data-expid=middle] .vs").click()
    label, user = (outcomes[0].scores[name].to_numpy() for name in ("label", "user_id"))
    scores = {
        name: np.stack([one.scores["score"].to_numpy() for one in outcomes if one.expid == name]) for name in NAMES
    }
    pairs = Pairs(label, user, scores)
    expected = {name: pairs.compare(name, "middle") for name in NAMES if name != "middle"}
    rows = {row["expid"]: row for row in leaderboard.build(outcomes, "middle").rows}
    columns = {column.key: column for column in leaderboard.COLUMNS}
    for name in NAMES:
        shown = cells(page, name)
        for key in ("difference", "low", "p_delong", "p_bootstrap"):
            assert shown[key] == leaderboard._shown(columns[key], rows[name])
        if name != "middle":
            assert shown["difference"].startswith(f"{expected[name].difference:+.4f}")
    assert "against middle" in page.locator("#verdict").inner_text()
    assert page.locator("#forest h2").inner_text() == "Difference to middle"
    assert page.locator("#forest .mark").count() == len(NAMES) - 1
    assert page.locator("#forest [data-expid=middle]").count() == 0
    assert page.locator(".facts dd").nth(-2).inner_text() == "middle"
    pressed = page.locator(".vs[aria-pressed=true]")
    assert pressed.count() == 1 and pressed.inner_text() == "baseline"
    page.locator("th[data-key=difference] button").click()  # sorted by the new differences
    assert order(page) == sorted(
        NAMES, key=lambda name: (name == "middle", -getattr(expected.get(name), "difference", 0))
    )
    page.locator("#rows tr[data-expid=base] .vs").click()
    before = next(row for row in leaderboard.build(outcomes, "base").rows if row["expid"] == "good")
    assert cells(page, "good")["difference"] == leaderboard._shown(columns["difference"], before)


def test_p_values_at_the_floor(open_page, outcomes):
    assert pytest.approx(2 / 1001) == P_FLOOR
    row = next(row for row in leaderboard.build(outcomes, "base").rows if row["expid"] == "far")
    assert row["p_bootstrap"] == pytest.approx(P_FLOOR)
    page = open_page()
    assert cells(page, "far")["p_bootstrap"] == "<= 0.002"
    assert "| <= 0.002 |" in leaderboard.as_markdown(leaderboard.build(outcomes, "base")).replace("&lt;", "<")
    page.locator("#forest [data-expid=far]").hover()
    assert "p users <= 0.002" in page.locator("#tip").inner_text()


def visible_columns(page):
    return page.locator("#board thead th").evaluate_all("all => all.filter(one => one.offsetWidth > 0).length")


def test_columns_fold_where_there_is_no_room(open_page):
    wide = open_page(width=1400)
    total = wide.locator("#board thead th").count()
    assert visible_columns(wide) == total >= 20 and wide.locator("#unfold").is_hidden()
    frame = wide.locator(".scroll")
    assert frame.evaluate("one => one.scrollWidth <= one.clientWidth")
    phone = open_page(width=390, has_touch=True, is_mobile=True)
    assert visible_columns(phone) == 3
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert phone.locator(".scroll").evaluate("one => one.scrollWidth <= one.clientWidth")
    toggle = phone.locator("#unfold")
    assert toggle.inner_text() == f"{total - 3} more columns" and toggle.get_attribute("aria-expanded") == "false"
    toggle.tap()
    assert visible_columns(phone) == total and toggle.inner_text() == "Fewer columns"
    assert toggle.get_attribute("aria-expanded") == "true"
    toggle.tap()
    assert visible_columns(phone) == 3
    tablet = open_page(width=800)
    assert 3 < visible_columns(tablet) < total
    assert tablet.locator(".scroll").evaluate("one => one.scrollWidth <= one.clientWidth")


@pytest.mark.parametrize("name", ["{} with similarity", "Mixer_{}", "FinalMLP_small_{}"])
@pytest.mark.parametrize("width", [1000, 1200, 1400])
def test_buttons_stay_in_the_cell_of_a_name_of_several_words(browser, outcomes, tmp_path, width, name):
    named = [one._replace(expid=name.format(one.expid)) for one in outcomes]
    leaderboard.write(leaderboard.build(named, named[0].expid), tmp_path)
    with pages_of(browser, tmp_path / "leaderboard.html") as open_named:
        beyond = """all => all.filter(one => one.getBoundingClientRect().right
                                             > one.closest("th").getBoundingClientRect().right)"""
        page = open_named(width=width)
        assert page.locator("#board tbody th button").count() >= 2 * len(NAMES)
        assert page.locator("#board tbody th button").evaluate_all(f"{beyond}.length") == 0


def test_a_phone_shows_names_whole_and_auc_beside_them(browser, outcomes, tmp_path):
    """Two lines of one model differ by the end of their names; several data sets take no room from the AUC."""
    named = [
        one._replace(expid=f"FiBiNET_{one.expid}{tail}", result={**one.result, "dataset_id": f"DATA{tail}"})
        for one, tail in zip(outcomes, ["", " with similarity"] * len(NAMES), strict=True)
    ]
    leaderboard.write(leaderboard.build(named, named[0].expid), tmp_path)
    with pages_of(browser, tmp_path / "leaderboard.html") as open_named:
        page = open_named(width=390, has_touch=True, is_mobile=True)
        names = page.locator("#rows .name")
        assert sorted(name.strip() for name in names.all_text_contents()) == sorted(one.expid for one in named)
        cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"
        assert names.evaluate_all(cut) == []
        heads = page.locator("#board thead th").evaluate_all("all => all.map(one => one.dataset.key)")
        assert heads[1] == "auc" and heads[-1] == "dataset"


def axis(page, chart):
    """The numbers at the vertical axis."""
    texts = page.locator(f"{chart} svg text[text-anchor=end]:not(.beyond)").all_text_contents()
    return [float(text) for text in texts if text[0] in "01"]


def test_axes_zoom_to_the_contenders(open_page, outcomes):
    page = open_page()
    aucs = sorted({row["expid"]: row["auc"] for row in leaderboard.build(outcomes, "base").rows}.values())
    assert aucs[0] < 0.55 and aucs[-3] > 0.9  # far, and the upper half
    assert min(axis(page, "#cost")) > aucs[-3] - 0.05
    assert page.locator("#forest .beyond").count() == 1 and page.locator("#cost .beyond").count() >= 1
    assert min(axis(page, "#curves")) > 0.6
    below = page.locator("#cost [data-expid=far] .beyond")
    assert below.count() == 1 and below.evaluate("one => one.getBoundingClientRect().bottom") < page.locator(
        "#cost > svg"
    ).evaluate("one => one.getBoundingClientRect().bottom")
    page.locator("#zoom").uncheck()
    assert min(axis(page, "#cost")) <= 0.6 and min(axis(page, "#curves")) < 0.5
    assert page.locator(".beyond").count() == 0
    assert "0" in page.locator("#forest svg text").all_text_contents()


def test_settings_and_manifest_are_a_click_away(open_page, written):
    page = open_page()
    page.locator("#rows tr[data-expid=good] .buttons button").nth(1).click()
    dialog = page.locator("#details")
    assert dialog.is_visible() and dialog.locator("h2").inner_text() == "good"
    names, values = (dialog.locator("dl").nth(0).locator(tag).all_inner_texts() for tag in ("dt", "dd"))
    differing = dict(zip(names, values, strict=True))
    assert differing == {"learning_rate": "0.1 (base: 0.2)"}
    assert "epochs" in dialog.locator("dl").nth(1).inner_text()
    manifest = json.loads(dialog.locator("pre").inner_text())
    assert manifest["versions"] == {"torch": "2.9"}
    assert manifest["data"]["train_data"] == {"file": "train.parquet", "bytes": 7, "sha256": "ab" * 32}
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    page.locator("#rows tr[data-expid=base] .buttons button").nth(1).click()
    assert dialog.locator("dl").nth(0).is_hidden()  # nothing differs from itself
    dialog.locator("button").click()
    assert dialog.is_hidden()
    assert "/secret" not in written["html"].read_text() and "\u202e" not in written["html"].read_text()


def test_the_page_gives_the_csv(open_page, written, tmp_path):
    page = open_page()
    for name, path in {"leaderboard": written["csv"], "study_cold": written["cold"]}.items():
        link = page.locator(f"a[download='{name}.csv']")
        with page.expect_download() as downloaded:
            link.click()
        assert downloaded.value.suggested_filename == f"{name}.csv"
        content = base64.b64decode(link.get_attribute("href").split("base64,")[1])
        assert content == path.read_bytes()


def test_warm_and_cold_are_defined(open_page):
    text = open_page().locator(".hint").first.inner_text()
    assert "A row is warm if its item is the target of a training row, cold if of none" in text


def test_figures_of_studies(open_page):
    page = open_page(width=1400)
    for name, panels in {"cold": 1, "modality": 2, "scale": 1, "calibration": 1}.items():
        figure = page.locator(f"#study-{name} .panel")
        assert figure.count() == panels, name
        assert page.locator(f"#study-{name} .panel > svg > svg polyline").count() == panels * len(NAMES), name
    assert page.locator("#study-cold .x-tick").all_text_contents() == ["0", "1-3", "4+"]
    assert page.locator("#study-scale .x-tick").all_text_contents()[0] == "100"
    assert page.locator("#study-calibration .zero").count() == 1
    lines = page.locator("#study-modality .panel polyline[data-expid=good]").all()
    heights = [[point.split(",")[1] for point in line.get_attribute("points").split()] for line in lines]
    assert heights[0] == heights[1]  # the same values at the same heights: one axis for all panels
    xs = page.locator("#study-scale polyline[data-expid=good]").get_attribute("points")
    at = [float(point.split(",")[0]) for point in xs.split()]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.01)  # 100, 1000, 10000
    page.locator("#study-cold [data-expid=good] circle").first.hover()
    assert page.locator("#tip").inner_text().startswith("good\nrows of train: 0\nAUC 0.62")
    before = page.locator(f"#study-cold polyline[data-expid={LONG}]").get_attribute("stroke")
    page.locator(f"#study-cold tr[data-expid={LONG}]").click()
    page.mouse.move(2, 2)
    assert page.locator(f"#study-cold polyline[data-expid={LONG}]").get_attribute("stroke") != before


@pytest.mark.parametrize("width", [1400, 390])
def test_studies_are_readable_in_both_themes(open_page, width):
    for scheme in ("light", "dark"):
        page = open_page(width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for selector in (".study td", ".study small", ".study p", ".study summary", ".vs", ".study a.plain"):
            assert contrast(page, selector, ".charts .card") >= 4.5, (scheme, selector)
        boxes = page.locator(".panel > svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        assert max(boxes) <= width


def test_few_experiments_need_no_zoom(browser, outcomes, tmp_path):
    board = leaderboard.build([one for one in outcomes if one.expid in ("far", "base", "good")], "far")
    with pages_of(browser, leaderboard.write(board, tmp_path)["html"]) as open_at:
        page = open_at()
        assert page.locator("#zoom").is_hidden() and page.locator(".beyond").count() == 0
        assert min(axis(page, "#cost")) <= 0.6


def test_the_cost_of_tuning_is_drawn(open_page):
    page = open_page()
    page.locator("#cost select").select_option("tuning_seconds")
    ticks = page.locator("#cost .cost-tick").all_text_contents()
    assert ticks and all(text.endswith(" min") for text in ticks)  # 1234.5 s, of all alike

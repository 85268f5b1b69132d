"""The leaderboard's files hold the runs' numbers; the page works in a real browser, offline."""

import csv
import itertools
import json
import re
import statistics

import numpy as np
import polars as pl
import pytest
from browsing import contrast, pages_of
from conftest import make_dataset, run_script
from sklearn.metrics import roc_auc_score

from mm_fibinet.compare import leaderboard
from mm_fibinet.compare.leaderboard import Outcome
from mm_fibinet.metrics import METRICS, evaluate_metrics
from mm_fibinet.significance import Pairs

ROWS = 400
EVIL = "loss is nan </script><b>{{data}}</b>"


def make_outcomes():
    """Three experiments with two seeds (good, middle, base), one of them with a failed seed, and one that failed."""
    rng = np.random.default_rng(0)
    label, user = (rng.random(ROWS) < 0.3).astype(np.int8), rng.integers(0, 60, ROWS)
    cold = rng.random(ROWS) < 0.25
    outcomes = []
    for expid, signal in {"base": 0.5, "good": 2.0, "middle": 1.0}.items():
        for seed in (1, 2):
            if (expid, seed) == ("middle", 2):
                outcomes.append(Outcome(expid, seed, None, None, "ended by SIGKILL"))
                continue
            score = 1 / (1 + np.exp(-(signal * label + rng.normal(size=ROWS))))
            result = {
                "dataset_id": "TEST",
                "device": "CPU",
                "threads": 2,
                "metrics": evaluate_metrics(label, score, METRICS, user),
                "warm": {"rows": int((~cold).sum()), "AUC": roc_auc_score(label[~cold], score[~cold])},
                "cold": {"rows": int(cold.sum()), "AUC": roc_auc_score(label[cold], score[cold])},
                "parameters": int(1000 * signal),
                "rows_per_second": 5000 / signal + seed,
                "peak_memory_mb": 900 + seed,
                "peak_gpu_memory_mb": 0,
                "seconds_to_best": {0.5: 6.3, 1.0: 30.0, 2.0: 210.0}[signal],
                "train_seconds": 300.0,
                "curve": [{"epoch": e, "seconds": 10.0 * e, "AUC": 0.5 + 0.1 * signal * e / 3} for e in (1, 2, 3)],
            }
            scores = pl.DataFrame({"label": label, "score": score, "user_id": user, "cold": cold})
            outcomes.append(Outcome(expid, seed, result, scores, None))
    return [*outcomes, Outcome("broken", 1, None, None, EVIL)]


@pytest.fixture(scope="module")
def outcomes():
    return make_outcomes()


@pytest.fixture(scope="module")
def written(outcomes, tmp_path_factory):
    """The paths of the three files."""
    return leaderboard.write(leaderboard.build(outcomes, "base"), tmp_path_factory.mktemp("board"))


def test_csv(outcomes, written):
    with open(written["csv"], newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["expid"] for row in rows] == ["good", "middle", "base", "middle", "broken"]
    good = rows[0]
    runs = [outcome for outcome in outcomes if outcome.expid == "good"]
    aucs = [roc_auc_score(run.scores["label"], run.scores["score"]) for run in runs]
    assert float(good["auc"]) == pytest.approx(np.mean(aucs), abs=1e-6)
    assert float(good["auc_std"]) == pytest.approx(statistics.stdev(aucs), rel=1e-4)
    assert float(good["rows_per_second"]) == pytest.approx(2501.5)
    assert (good["runs"], good["peak_memory_mb"], good["peak_gpu_memory_mb"]) == ("2", "902", "")
    assert (rows[1]["runs"], rows[1]["auc_std"], rows[2]["p_delong"]) == ("1", "", "")
    assert (rows[3]["seed"], rows[3]["error"], rows[4]["error"]) == ("2", "ended by SIGKILL", EVIL)

    def scores(expid):
        return np.stack([run.scores["score"] for run in outcomes if run.expid == expid and run.result])

    label, user = runs[0].scores["label"].to_numpy(), runs[0].scores["user_id"].to_numpy()
    every = {expid: scores(expid) for expid in ("base", "good", "middle")}
    expected = Pairs(label, user, every).compare("good", "base")
    for name, value in expected._asdict().items():
        assert float(good[name]) == pytest.approx(value, rel=1e-5)


def test_markdown(written):
    lines = written["md"].read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == ["| Experiment", "| good", "| middle", "| base"]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "- middle, seed 2: ended by SIGKILL" in lines


def test_what_cannot_be_compared_is_left_empty(outcomes):
    board = leaderboard.build(outcomes, "broken")
    assert all(row["p_delong"] is None for row in board.rows)
    assert board.facts["Baseline"] == "broken (no finished run)"
    other_rows = [o._replace(scores=o.scores.reverse()) if o.expid == "middle" and o.scores is not None else o
                  for o in outcomes]  # fmt: skip
    compared = {row["expid"]: row["p_delong"] for row in leaderboard.build(other_rows, "base").rows}
    assert compared["middle"] is None and compared["good"] is not None


def test_runs_of_several_data_sets_and_versions_are_told_of(outcomes):
    """A finished run is not repeated for a new version, nor is one figure of rows that of all data sets."""
    versions = {"mm-fibinet": "0.2.0", "torch": "2.9.0"}
    runs = [run._replace(manifest={"versions": versions, "config": {}, "data": {}}) for run in outcomes[:3]]
    alike = leaderboard.build(runs, "base").facts
    cold = int(outcomes[0].scores["cold"].sum())
    assert alike["Validation rows"] == f"400 ({cold / 4:.0f} % cold)" and "Versions" not in alike
    result = {**runs[0].result, "dataset_id": "OTHER", "warm": {"rows": 900, "AUC": 0.5}, "cold": {"rows": 100}}
    manifest = {"versions": {**versions, "mm-fibinet": "0.1.0\x1b"}, "config": {}, "data": {}}
    result["cold"]["AUC"] = None
    mixed = leaderboard.build([*runs, runs[0]._replace(expid="old", result=result, manifest=manifest)], "base").facts
    assert mixed["Data"] == "TEST, OTHER"
    assert mixed["Validation rows"] == f"400 ({cold / 4:.0f} % cold), 1,000 (10 % cold)"
    assert mixed["Versions"] == "mm-fibinet 0.2.0, torch 2.9.0; mm-fibinet 0.1.0\\x1b, torch 2.9.0"


def test_a_board_of_failures_only(tmp_path):
    board = leaderboard.build([Outcome("a", 1, None, None, "no data")], "a")
    paths = leaderboard.write(board, tmp_path)
    assert "no data" in paths["html"].read_text() and "no data" in leaderboard.as_text(board)


def test_the_page_asks_for_nothing_and_escapes(written):
    page = written["html"].read_text()
    assert EVIL not in page and "&lt;/script&gt;&lt;b&gt;{{data}}" in page
    page = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not [mark for mark in ("http:", "https:", "src=", "@import", "url(") if mark in page]
    json.loads(page.split('type="application/json">')[1].split("</script>")[0])


HOSTILE = [
    *('=HYPERLINK("http://x","y")', "+1|2", "-a`b`", "@SUM(A1)", "\t=1", "\r=1", "a\n| b <img src=x onerror=y>"),
    *("![x](http://y)", "\x1b[2J", "\u202eabc", "*b* ~s~ \\", "__proto__"),
]


def test_names_and_errors_of_strangers_stay_text(outcomes, tmp_path):
    good = next(outcome for outcome in outcomes if outcome.expid == "good")
    result = {**good.result, "dataset_id": "=cmd|' /C calc'!A1"}
    hostile = [Outcome(name, 1, result, good.scores, None) for name in HOSTILE]
    hostile += [Outcome(name, 2, None, None, name) for name in HOSTILE]
    board = leaderboard.build(hostile, HOSTILE[0])
    paths = leaderboard.write(board, tmp_path)

    with open(paths["csv"], newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 2 * len(HOSTILE)
    texts = [row[key] for row in rows for key in ("expid", "dataset", "error") if row[key]]
    assert texts and not [text for text in texts if text[0] in "=+-@\t\r" or not text.isprintable()]
    assert rows[0]["expid"] == "'" + HOSTILE[0] and rows[0]["dataset"] == "'=cmd|' /C calc'!A1"
    assert all(float(row["difference"]) == 0 for row in rows if row["difference"])

    lines = paths["md"].read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line) for line in table]
    assert len(table) == len(HOSTILE) + 2 and len({len(row) for row in cells}) == 1
    assert not re.search(r"<\w|(?<!\\)[`*\[\]~]", paths["md"].read_text())
    assert leaderboard.as_text(board).replace("\n", "").isprintable()
    assert paths["html"].read_text().replace("\n", "").isprintable()
    assert "<img" not in paths["html"].read_text()


def test_a_board_is_not_written_over_an_input(tmp_path, capsys):
    config = make_dataset(tmp_path, rows=60)
    data = tmp_path / "TEST_DATA"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "studies").write_text("mine")
    (data / "valid.parquet").rename(data / "leaderboard.csv")
    dataset_config = config / "dataset_config.yaml"
    dataset_config.write_text(dataset_config.read_text().replace("valid.parquet", "leaderboard.csv"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, message in (
        (tmp_path / "file", "this is a file, expected a folder"),
        (config, "leaderboard.csv is inside the input folder"),
        (data, "leaderboard.csv is an input"),
        (tmp_path / "taken", "its studies is a file, expected nothing"),
    ):
        code, _, error = run_script(
            "run_benchmark", "--config", config, "--expids", "FiBiNET_test", "--out", out, capsys=capsys
        )
        assert code == 2 and message in error and error.startswith(f"error: --out {out}") and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def order(page):
    return page.locator("#rows tr").evaluate_all("rows => rows.map(row => row.dataset.expid)")


def test_sorting_by_mouse_and_keyboard(open_page):
    page = open_page()
    assert order(page) == ["good", "middle", "base"]
    head = page.locator("th[data-key=parameters]")
    head.locator("button").click()
    assert order(page) == ["base", "middle", "good"] and head.get_attribute("aria-sort") == "ascending"
    assert page.locator("th[data-key=auc]").get_attribute("aria-sort") == "none"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert order(page) == ["good", "middle", "base"] and head.get_attribute("aria-sort") == "descending"
    page.locator("th[data-key=expid] button").click()
    assert order(page) == ["base", "good", "middle"]
    for _ in range(2):  # an empty cell stays last in both orders
        page.locator("th[data-key=p_delong] button").click()
        assert order(page)[-1] == "base"
    assert page.locator("tbody.failed tr").count() == 2


def test_tooltips(open_page):
    page = open_page()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("th[data-key=gauc] button").hover()
    assert "within each user's rows" in tip.inner_text()
    page.locator("#forest [data-expid=good]").hover()
    assert tip.inner_text().startswith("good\nAUC 0.") and "p DeLong" in tip.inner_text()
    page.locator("#cost [data-expid=base]").hover()
    assert "500 parameters, 10,002 rows/s\nbest after 6.3 s, 902 MiB" in tip.inner_text()
    page.locator("#curves > svg").hover()
    assert "of training\nAUC 0." in tip.inner_text()
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    page.locator("#theme").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # the table, then its first heading
    assert tip.inner_text() == "Experiment ID of the config"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_charts(open_page):
    page = open_page()
    assert page.locator("#forest .mark").count() == 2  # the baseline has no difference to itself
    assert page.locator("#cost .mark").count() == 3
    assert page.locator("#curves polyline").count() == 5  # one a finished run
    before = page.locator("#cost [data-expid=good] circle").last.get_attribute("cx")
    page.locator("#cost select").select_option("rows_per_second")
    assert page.locator("#cost [data-expid=good] circle").last.get_attribute("cx") != before
    assert "peak_gpu_memory_mb" not in page.locator("#cost option").evaluate_all("all => all.map(one => one.value)")
    good = page.locator("#cost [data-expid=good]")
    assert good.get_attribute("aria-pressed") == "true"
    good.focus()
    page.keyboard.press("Enter")
    assert good.get_attribute("aria-pressed") == "false"
    assert good.locator("circle").last.get_attribute("fill") == "var(--muted)"


@pytest.mark.parametrize(("epochs", "marks"), [(1, "1"), (3, "1 2 3"), (20, "5 10 15 20")])
def test_epochs_are_whole_numbers(browser, outcomes, tmp_path, epochs, marks):
    curve = [{"epoch": e, "seconds": 10.0 * e, "AUC": 0.5 + 0.01 * e} for e in range(1, epochs + 1)]
    kept = [each._replace(result={**each.result, "curve": curve}) for each in outcomes if each.result]
    with pages_of(browser, leaderboard.write(leaderboard.build(kept, "base"), tmp_path)["html"]) as open_at:
        texts = open_at().locator("#curves svg text:not([text-anchor=end])").all_text_contents()
    assert texts == marks.split()


def test_dark_and_light(open_page):
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(scheme=scheme)
        for selector in ("#rows td", "thead button", ".failed strong", ".hint"):
            assert contrast(page, selector, ".charts .card") >= 4.5, (scheme, selector)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        grounds[f"from {scheme}"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert grounds["light"] == grounds["from dark"] != grounds["dark"] == grounds["from light"]


def test_a_phone(open_page):
    page = open_page(width=390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#curves > svg").bounding_box()["width"] <= 390
    table = page.locator(".scroll")
    page.locator("#unfold").tap()
    assert table.evaluate("element => element.scrollWidth > element.clientWidth")
    table.evaluate("element => element.scrollLeft = 400")
    assert page.locator("#rows th").first.bounding_box()["x"] < 30  # the experiment's name stays in sight
    page.locator("#forest [data-expid=good]").tap()
    tip = page.locator("#tip").bounding_box()
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= 390
    ticks = page.locator("#cost .cost-tick").evaluate_all("ticks => ticks.map(tick => tick.getBoundingClientRect())")
    assert len(ticks) >= 3
    assert all(left["right"] + 5 < right["left"] for left, right in itertools.pairwise(ticks))


def test_what_the_tuning_has_cost(outcomes):
    shown = {column.key for column in leaderboard._columns(leaderboard.build(outcomes, "base"))}
    assert not {"trials", "tuning_seconds"} & shown and "train_seconds" in shown
    tuned = [o._replace(tuned=leaderboard.Tuned(7, 1230.0)) if o.expid == "good" else o for o in outcomes]
    board = leaderboard.build(tuned, "base")
    good, base = (next(row for row in board.rows if row["expid"] == name) for name in ("good", "base"))
    assert (good["trials"], good["tuning_seconds"], good["train_seconds"]) == (7, 1230.0, 300.0)
    assert base["trials"] is None and base["tuning_seconds"] is None
    (line,) = (line for line in leaderboard.as_markdown(board).splitlines() if line.startswith("| good"))
    assert "| 5.0 min | 7 | 20.5 min |" in line

"""benchmarks/pictures.py: every picture of docs/ has what draws it."""

import json
import sys

import pytest
from browsing import browser_of
from conftest import ROOT
from PIL import Image

from benchmarks import latency_picture, pictures
from mm_fibinet.errors import UserError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pictures.py", *map(str, arguments)])
    pictures.main()


def test_every_picture_of_the_documentation_is_known():
    known = pictures.pictures(ROOT, ROOT, ROOT)
    assert {path.stem for path in (ROOT / "docs").rglob("*.png")} == set(known)


def test_what_has_no_data_is_left_and_said(tmp_path, monkeypatch, capsys):
    nowhere = ("--data", tmp_path, "--speed", tmp_path / "no.json", "--leaderboard", tmp_path / "no.html")
    run(monkeypatch, *nowhere, "--out", tmp_path)
    out = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["latency.png", "quality.png"]
    for name, reason in {"report": "make demo", "speed": "make bench", "leaderboard": "run_benchmark.py"}.items():
        assert f"{name}.png: left as it is" in out and reason in out
    with pytest.raises(UserError, match=r"no.json: no such file, and speed.png is drawn from it: make bench"):
        run(monkeypatch, *nowhere, "--out", tmp_path, "--only", "speed")
    with pytest.raises(UserError, match="--only map: unknown, expected some of quality, latency, report"):
        run(monkeypatch, "--only", "map")


def test_a_speed_run_is_drawn_again_from_its_numbers(tmp_path, monkeypatch):
    line = {"what": "loader", "unit": "rows/s", "reference": 10.0, "ours": 50.0, "ratio": 5.0, "note": ""}
    content = {"machine": {"cpu": "one", "cores": 2}, "results": [line], "curves": []}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    run(monkeypatch, "--only", "speed", "--speed", tmp_path / "speed.json", "--out", tmp_path)
    assert Image.open(tmp_path / "speed.png").size[0] == 1500  # 10 inches of 150 dots


def test_the_waiting_times_are_those_of_the_page(tmp_path):
    page = tmp_path / "serving.md"
    page.write_text(
        f"# Serving\n\n{latency_picture.HEAD}\n|---|---:|---:|---:|---:|---:|---:|---:|\n"
        "| FiBiNET (10 fields of 64, MLP 1024-512-256) | 64 | 100 | 117 | 22.9 | 17.3 | 27.3 | 6.8 |\n"
        "| FiBiNET, the same | 1,000 | 1,200 | - | - | 7,700 | - | - |\n\nMore.\n| DIN | 1 | 1 | 1 | 1 | 1 | 1 |\n"
    )
    read = latency_picture.read_table(page)
    assert read == [
        ("FiBiNET", 64, 100, (117.0, 22.9, 17.3), "6.8"),
        ("FiBiNET", 1000, 1200, (None, None, 7700.0), "-"),
    ]
    page.write_text("# Serving\n")
    with pytest.raises(UserError, match=r"serving.md: has no table that begins with \| model"):
        latency_picture.read_table(page)


def test_a_leaderboards_head_is_drawn(tmp_path, monkeypatch):
    with browser_of():  # or this test is skipped
        pass
    blue, red = (
        f"<div style='height:{height}px;background:{colour}'></div>"
        for height, colour in ((900, "#00f"), (2000, "#f00"))
    )
    (tmp_path / "page.html").write_text(f"<body style='margin:0'>{blue}{red}</body>")
    run(monkeypatch, "--only", "leaderboard", "--leaderboard", tmp_path / "page.html", "--out", tmp_path)
    picture = Image.open(tmp_path / "leaderboard.png").convert("RGB")
    assert picture.size == Image.open(ROOT / "docs" / "leaderboard.png").size == (1400, 960)
    assert picture.getpixel((1399, 899)) == (0, 0, 255) and picture.getpixel((1399, 900)) == (255, 0, 0)

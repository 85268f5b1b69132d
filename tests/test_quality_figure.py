"""benchmarks/quality.py: the figure of the README from a leaderboard."""

import sys

import polars as pl
import pytest
from conftest import ROOT
from PIL import Image

from benchmarks import quality
from mm_fibinet.errors import UserError


def draw(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, arguments)])
    quality.main()


def test_the_readmes_figure_is_drawn_from_its_table(tmp_path, monkeypatch, capsys):
    draw(monkeypatch, "--out", tmp_path / "q.png")
    assert Image.open(tmp_path / "q.png").size[0] > 1000
    table = pl.read_csv(ROOT / "benchmarks" / "quality.csv")
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for row in table.iter_rows(named=True):  # the same figures in both places
        line = next(line for line in results.splitlines() if f"| {row['expid']} |" in line.replace("**", ""))
        assert f"| {row['auc']:.4f} |" in line and f"| {row['rows_per_second']:,} |" in line


def test_experiments_of_a_kind():
    assert quality.kind("FiBiNET_recommended", "FiBiNET")[1] == "this project's"
    assert quality.kind("DIN_att6_small", "FiBiNET")[1] == "the challenge's"
    assert quality.kind("DCNv2_small", "FiBiNET")[1] == "FuxiCTR's classics"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("expid,auc\na,0.5\n", "column auc_std is missing"),
        ("expid,auc,auc_std,seconds_to_best\na,,,\n", "no experiment in it has finished"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_leaderboard_is_said(tmp_path, monkeypatch, text, reason):
    path = tmp_path / "board.csv"
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match=reason):
        draw(monkeypatch, path, "--out", tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


def test_the_table_is_no_output(tmp_path, monkeypatch):
    path = tmp_path / "board.csv"
    path.write_text("expid,auc,auc_std,seconds_to_best\na,0.5,,3\n")
    with pytest.raises(UserError, match="is an input"):
        draw(monkeypatch, path, "--out", path)

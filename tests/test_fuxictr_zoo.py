"""benchmarks/fuxictr_zoo.py: what runs and what does not, with the reason, in a table between two marks of a page."""

import pytest
import user_models
from conftest import ROOT

import model_zoo
from benchmarks import fuxictr_zoo
from benchmarks.fuxictr_zoo import END, START, Row
from mm_fibinet import settings
from mm_fibinet.errors import UserError
from mm_fibinet.model_source import with_checkout


def test_a_class_that_runs_and_one_that_does_not(dataset, working_folder, monkeypatch):
    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__))
    monkeypatch.setattr(fuxictr_zoo, "COMMON", {**fuxictr_zoo.COMMON, "batch_size": 50, "max_len": 10})
    source = working_folder / "FuxiCTR" / "model_zoo" / "Zoo" / "src"
    source.mkdir(parents=True)
    (source / "Zoo.py").write_text(user_models.MODULE)
    models = with_checkout(model_zoo, working_folder / "FuxiCTR")
    entry = settings.load_dataset_config(dataset, "TEST_DATA")
    rows = [Row(name, f"model_zoo.Zoo.src.Zoo:{name}") for name in ("Broken", "Mine")]
    for row in rows:
        fuxictr_zoo.train(row, models, entry, working_folder)
    broken, mine = rows
    assert mine.batches == "flat" and 0.5 < mine.auc < 1 and mine.note == ""
    assert broken.auc is None and "KeyError: 'no_such_column' (model_zoo/Zoo/src/Zoo.py, line" in broken.note


def test_the_table_has_what_runs_first_and_keeps_its_columns():
    rows = [Row("B", "m:B", "flat", None, 0.0, "a | b"), Row("C", "m:C", "triple", 0.75, 1.0, "with `x`")]
    assert fuxictr_zoo.markdown(rows).splitlines()[-2:] == [
        "| C | `m:C` | triple | 0.750 | with `x` |", "| B | `m:B` | flat | - | a \\| b |"
    ]  # fmt: skip


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    fuxictr_zoo.write_between(page, "new")
    assert page.read_text() == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    page.write_text(f"{END}\n{START}\n")
    with pytest.raises(UserError, match="expected one line <!-- table"):
        fuxictr_zoo.write_between(page, "new")


def test_the_page_has_the_table_of_every_class():
    page = (ROOT / "docs" / "fuxictr-models.md").read_text(encoding="utf-8")
    table = page.split(START)[1].split(END)[0]
    for name in ("MaskNet", "WuKong", "DLRM", "EulerNet", "PNN", "LongCTR SIM"):
        assert f"\n| {name} | `model_zoo." in table

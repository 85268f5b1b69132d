"""Data of Taobao-MM's shape keep the contract, and every experiment of Taobao-MM trains on them."""

import numpy as np
import polars as pl
import pytest
import yaml

from benchmarks import taobao_shape
from benchmarks.taobao_shape import CONFIG, EMB_DIM, Shape, Side, write_data
from mm_fibinet import data_check, memory, table_optimizer

SHAPE = Shape(users=40, items=500, positions=60, rows=(900,))
EXPIDS = sorted(yaml.safe_load((CONFIG / "model_config" / "taobao_mm.yaml").read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape") / "taobao_mm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taobao_shape, "SPLITS", {"valid": 50, "test": 50})
        patch.setattr(taobao_shape, "VALUES_AT_ONCE", 1_200)  # several parts
        write_data(folder, SHAPE, threads=1)
        write_data(folder.with_name("again"), SHAPE, threads=3)
    return folder


def test_any_number_of_threads_draws_the_same(folder):
    again = folder.with_name("again")
    parts = [path.relative_to(folder) for path in folder.rglob("*.parquet") if path.is_file()]
    assert len(parts) == 3 + 2 + 56  # splits, parts of 20 users, of 9 items
    for part in parts:
        assert (folder / part).read_bytes() == (again / part).read_bytes()


def test_the_shape_is_what_was_asked_for(folder):
    entry = data_check.load_entry(folder, "taobao_mm", None)
    assert [problem for row in data_check.check_dataset(entry) for problem in row.problems] == []
    users = pl.read_parquet(folder / "user_info.parquet")
    lengths = users["item_seq"].list.len().to_numpy()
    assert len(users) == SHAPE.users and lengths.max() == SHAPE.positions
    assert 0.5 < (lengths == SHAPE.positions).mean() < 1 and lengths.min() >= taobao_shape.SHORTEST
    items = pl.read_parquet(folder / "item_info.parquet")
    assert items[f"item_emb_d{EMB_DIM}"].dtype == pl.Array(pl.Int8, EMB_DIM)
    assert not items[0].select(pl.exclude("item_id")).select(pl.col(f"item_emb_d{EMB_DIM}").arr.max()).item()
    rows = pl.read_parquet(folder / "train_900.parquet")
    assert np.array_equal(rows["history_end"], lengths[rows["user_id"]])  # all of the user's items


@pytest.mark.parametrize("expid", EXPIDS)
def test_each_experiment_trains(folder, expid, monkeypatch):
    monkeypatch.setenv(memory.SWITCH, "0")
    monkeypatch.setattr(table_optimizer, "MIN_ROWS", 400)  # of items, as at full size
    side = Side(expid, folder, 900, -1, ["batch_size=200"])
    taken = side.train(None)
    assert taken["rows"] == 2 * 200 - 100  # an epoch of five batches, without those that warm up
    assert side.measured()["items, MB"] * 1e6 >= SHAPE.items * (EMB_DIM if "recent" not in expid else 4)
    of_tables = side.trainer.optimizer.param_groups[1]
    assert (side.trainer.optimizer.param_groups[0]["lr"], of_tables["lr"]) in ((2e-4, 2e-3), (2e-4, 2e-2))
    assert set(side.trainer.tables.parameters.values()) <= set(of_tables["params"]) and side.trainer.tables.parameters

"""The loader's batches equal the challenge's row-by-row loader; shuffling, sharding and positions are exact."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_dataset

import model_zoo
from mm_fibinet import dataloader
from mm_fibinet.dataloader import MMCTRDataLoader
from mm_fibinet.errors import UserError
from mm_fibinet.feature_map import build_feature_map
from mm_fibinet.settings import load_params


@pytest.fixture(scope="module")
def setup(dataset):
    params = load_params(dataset, "FiBiNET_test", model_zoo)
    return build_feature_map(params), params


def reference_batch(params: dict, rows: list[int], max_len: int):
    """The challenge's triple of these training rows, one row at a time, items looked up in pandas."""
    frame = pd.read_parquet(params["train_data"]).iloc[rows]
    items = pd.read_parquet(params["item_info"])
    ids = [[*row.item_seq[-max_len:], row.item_id] for row in frame.itertuples()]
    looked_up = items.iloc[np.array(ids).ravel()]
    item_dict = {name: np.array(looked_up[name].to_list()) for name in items.columns}
    batch_dict = {name: frame[name].to_numpy() for name in ("user_id", "likes_level", "views_level", "label")}
    return batch_dict, item_dict, (np.array(ids)[:, :-1] > 0).astype(np.float32)


def assert_same_triple(batch, expected):
    for got, want in zip(batch[:2], expected[:2], strict=True):
        assert set(got) >= set(want)
        for name, values in want.items():
            np.testing.assert_allclose(got[name].numpy(), values, err_msg=name)
    np.testing.assert_array_equal(batch[2].numpy(), expected[2])


@pytest.mark.parametrize("max_len", [5, 12, 100])
def test_triple_equals_the_row_wise_loader(setup, max_len):
    feature_map, params = setup
    loader = MMCTRDataLoader(
        feature_map, params["train_data"], batch_size=256, item_info=params["item_info"], max_len=max_len
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert_same_triple(batches[1], reference_batch(params, list(range(256, 512)), max_len))
    assert_same_triple(batches[2], reference_batch(params, list(range(512, 600)), max_len))


def test_indices_lead_to_the_triple(setup):
    feature_map, params = setup
    arguments = {"batch_size": 100, "item_info": params["item_info"], "max_len": 6, "shuffle": True, "seed": 3}
    triples = MMCTRDataLoader(feature_map, params["train_data"], **arguments)
    indices = MMCTRDataLoader(feature_map, params["train_data"], batch_format="indices", **arguments)
    for triple, batch in zip(triples, indices, strict=True):
        assert_same_triple(batch.triple(), [{k: v.numpy() for k, v in d.items()} for d in triple[:2]] + [triple[2]])


def test_read_buffers_are_given_back_when_none_is_in_use(setup, monkeypatch):
    feature_map, params = setup
    in_use, before = [], pa.total_allocated_bytes()
    monkeypatch.setattr(dataloader, "give_back_read_buffers", lambda: in_use.append(pa.total_allocated_bytes()))
    MMCTRDataLoader(feature_map, params["train_data"], item_info=params["item_info"])
    assert in_use == [before]


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_an_epoch_is_a_permutation_and_depends_on_seed_and_epoch(setup, storage):
    feature_map, params = setup

    def users(loader):
        return torch.cat([batch[0]["row"] for batch in loader]).tolist()

    def make(seed):
        loader = MMCTRDataLoader(
            feature_map,
            params["train_data"],
            batch_size=64,
            shuffle=True,
            seed=seed,
            storage=storage,
            item_info=params["item_info"],
        )
        loader.data.integers[:, loader.data.layout["user_id"][0]] = torch.arange(600, dtype=torch.int32)
        loader.data.layout["row"] = loader.data.layout["user_id"]
        return loader

    loader = make(1)
    first, second = users(loader), users(loader)
    assert sorted(first) == sorted(second) == list(range(600))
    assert first != second
    again = make(1)
    again.set_position(1)
    assert users(again) == second
    again.set_position(1, first_batch=4)
    assert users(again) == second[4 * 64 :]
    assert users(make(2)) != first


def test_ranks_share_every_batch(setup):
    feature_map, params = setup
    arguments = {"batch_size": 50, "shuffle": True, "item_info": params["item_info"], "batch_format": "indices"}
    whole = MMCTRDataLoader(feature_map, params["train_data"], **arguments)
    shares = [MMCTRDataLoader(feature_map, params["train_data"], rank=r, world_size=3, **arguments) for r in range(3)]
    for index, (batch, *parts) in enumerate(zip(whole, *shares, strict=True)):
        assert torch.equal(torch.cat([part.item_index for part in parts]), batch.item_index)
        assert {len(part.item_index) for part in parts} <= {16, 17}
        assert whole.rows_in_batch(index) == len(batch.item_index)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("world_size", "batch_size", "last"), [(1, 599, 600), (1, 598, 2), (2, 597, 600), (2, 596, 4)])
def test_a_last_batch_too_small_for_batch_norm_goes_with_the_one_before(setup, world_size, batch_size, last, shuffle):
    feature_map, params = setup
    arguments = {"batch_size": batch_size, "item_info": params["item_info"], "batch_format": "indices"}
    arguments["world_size"] = world_size
    loader = MMCTRDataLoader(feature_map, params["train_data"], shuffle=shuffle, **arguments)
    sizes = [len(batch.item_index) for batch in loader]
    assert len(sizes) == len(loader) and min(sizes) >= 2
    assert loader.rows_in_batch(len(loader) - 1) == last
    scored = MMCTRDataLoader(feature_map, params["train_data"], split="valid", **arguments)
    assert scored.rows_in_batch(len(scored) - 1) == 600 - batch_size


def test_gathering_for_another_device_equals_gathering_here(setup):
    """`meta` stands for a GPU: the shapes and types that arrive there."""
    feature_map, params = setup
    data = MMCTRDataLoader(feature_map, params["train_data"], item_info=params["item_info"]).data
    rows, there = torch.tensor([5, 0, 599]), torch.device("meta")
    pairs = [
        (data.gather(rows, torch.device("cpu")), data.gather(rows, there)),
        (data.slice(3, 9, torch.device("cpu")), data.slice(3, 9, there)),
    ]
    for (columns, item_index), (far_columns, far_index) in pairs:
        assert (far_index.shape, far_index.dtype, far_index.device) == (item_index.shape, torch.int32, there)
        assert {name: (v.shape, v.dtype) for name, v in columns.items()} == {
            name: (v.shape, v.dtype) for name, v in far_columns.items()
        }
        assert {v.device for v in far_columns.values()} == {there}
    assert torch.equal(pairs[0][0][1], data.integers[rows][:, : data.item_columns])


def test_scoring_shards_are_whole_batches_in_order(setup):
    feature_map, params = setup
    loader = MMCTRDataLoader(
        feature_map, params["valid_data"], batch_size=64, item_info=params["item_info"], batch_format="indices"
    )
    whole = [batch.item_index for batch in loader]
    for rank in range(2):
        for index, batch in loader.shard_batches(rank, 2):
            assert index % 2 == rank
            assert torch.equal(batch.item_index, whole[index])


def test_test_split_needs_no_label(setup):
    feature_map, params = setup
    loader = MMCTRDataLoader(
        feature_map, params["test_data"].removesuffix(".parquet"), split="test", item_info=params["item_info"]
    )
    batch_dict, _, _ = next(iter(loader))
    assert "label" not in batch_dict
    assert loader.num_samples == 150


def test_history_levels_are_joined_to_the_items(setup):
    feature_map, params = setup
    loader = MMCTRDataLoader(
        feature_map,
        params["train_data"],
        batch_size=32,
        item_info=params["item_info"],
        max_len=7,
        history_levels=True,
        item_feature=params["item_feature"],
    )
    _, item_dict, mask = next(iter(loader))
    levels = pd.read_parquet(params["item_feature"]).set_index("item_id")["likes_level"]
    ids = item_dict["item_id"].numpy()
    assert np.array_equal(item_dict["likes_level"].numpy(), levels.reindex(ids, fill_value=0).to_numpy())
    assert mask.shape == (32, 7)


def test_inputs_are_not_modified(tmp_path):
    config = make_dataset(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    params = load_params(config, "FiBiNET_test", model_zoo)
    loader = MMCTRDataLoader(build_feature_map(params), params["train_data"], item_info=params["item_info"])
    list(loader)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}


def test_fuxictr_accepts_the_loader(setup, tmp_path):
    rank_data_loader = pytest.importorskip("fuxictr.pytorch.dataloaders").RankDataLoader
    feature_map, params = setup
    params = {**params, "data_loader": MMCTRDataLoader, "data_format": "parquet"}
    train, valid = rank_data_loader(feature_map, stage="train", **params)
    batch_dict, item_dict, mask = next(iter(train))
    assert mask.shape == (64, 10)
    assert item_dict["item_emb_d16"].shape == (64 * 11, 16)
    assert len(valid) == 4
    assert set(batch_dict) == {"user_id", "likes_level", "views_level", "label"}


def test_ids_out_of_range_are_named(tmp_path):
    config = make_dataset(tmp_path)
    params = load_params(config, "FiBiNET_test", model_zoo)
    feature_map = build_feature_map(params)
    table = pq.read_table(params["train_data"])
    items = np.array(table["item_id"]).copy()
    items[30] = 40
    bad = table.set_column(table.column_names.index("item_id"), "item_id", [items])
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"item_id has 40 in row 30, expected 0 to 39 \(items in item_info 40\)"):
        MMCTRDataLoader(feature_map, tmp_path / "bad.parquet", item_info=params["item_info"])

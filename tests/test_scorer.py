"""The scorer needs no torch, takes whatever ids come, and says what is wrong with a request before it scores."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import served_models
import torch
from conftest import NUM_ITEMS, ROOT, list_column, run_script

from mm_fibinet import new_items, onnx_export
from mm_fibinet.errors import UserError
from mm_fibinet.new_items import append_items, differences
from mm_fibinet.scorer import Request, Scorer, open_graph, score_split
from mm_fibinet.served_files import CARD, GRAPH, IDS, ROWS, Card, ItemRows
from model_zoo import served

HISTORY, CANDIDATES = [3, 9, 14, 2], [7, 1, 30]
LEVELS = {"likes_level": [3, 0, 10], "views_level": [1, 1, 5]}


@pytest.fixture(scope="module")
def scorer(exported):
    return Scorer(exported.folder)


def scores_of(path):
    return pl.read_csv(path)["Task1&2"].to_numpy()


def test_the_submission_is_that_of_prediction(exported, tmp_path, capsys):
    run = ["--config", exported.config, "--expid", exported.expid, "--model_root", exported.root]
    assert run_script("prediction", *run[2:], "--out", tmp_path / "torch.csv")[0] == 0
    code, out, err = run_script(
        "mm_fibinet.scorer", exported.folder, "--test", exported.test, "--out", tmp_path / "onnx.zip",
        tmp_path / "onnx.csv", capsys=capsys,
    )  # fmt: skip
    assert code == 0 and f"{tmp_path / 'onnx.zip'}: accepted: 150 rows" in out, err
    expected = scores_of(tmp_path / "torch.csv")
    np.testing.assert_allclose(scores_of(tmp_path / "onnx.csv"), expected, atol=1e-5)
    assert np.ptp(expected) > 0.05


def test_links_that_go_in_a_circle_are_one_line(exported, tmp_path, capsys):
    (tmp_path / "test.parquet").symlink_to("test.parquet")
    run, out = ["--expid", exported.expid, "--model_root", exported.root], ["--out", tmp_path / "scores.zip"]
    code, _, err = run_script("prediction", *run, "--test", tmp_path / "test.parquet", *out, capsys=capsys)
    assert code == 2 and err == f"error: cannot read {tmp_path / 'test.parquet'}: its symbolic links go in a circle\n"


@pytest.mark.parametrize("column", ["item_id", "item_seq"])
def test_a_split_of_other_items_is_refused_as_by_prediction(exported, tmp_path, capsys, column):
    table, run = pq.read_table(exported.test), ["--expid", exported.expid, "--model_root", exported.root]
    values = np.stack(table[column].to_numpy())
    values[3, ...] = NUM_ITEMS
    values = list_column(values) if values.ndim == 2 else pa.array(values)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), tmp_path / "test.parquet")
    out = ["--test", tmp_path / "test.parquet", "--out", tmp_path / "scores.zip"]
    for script, given in (("prediction", run), ("mm_fibinet.scorer", [exported.folder])):
        code, _, err = run_script(script, *given, *out, capsys=capsys)
        assert code == 2 and f"column {column} has {NUM_ITEMS} in row 3, expected 0 to {NUM_ITEMS - 1} (items in" in err
    assert not (tmp_path / "scores.zip").exists()


def test_scoring_needs_neither_torch_nor_a_data_frame(exported):
    code = (
        "import sys\n"
        "from mm_fibinet.scorer import Scorer\n"
        f"scores = Scorer({str(exported.folder)!r}).score({HISTORY}, {CANDIDATES}, context={LEVELS})\n"
        "print(*scores.tolist())\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "pandas", "polars", "fuxictr", "pyarrow", "onnx", "yaml", "model_zoo"}
    assert [float(each) for each in done.stdout.split()] == Scorer(exported.folder).score(
        HISTORY, CANDIDATES, context=LEVELS
    ).tolist()


def test_an_item_that_is_not_known_counts_as_padding(scorer):
    for each, kind in ((NUM_ITEMS, int), (10**15, int), (-1, np.int32), (2**64 - 1, np.uint64)):
        strange = scorer.score(HISTORY, np.array([7, each, 30], dtype=kind), context=LEVELS)
        np.testing.assert_array_equal(strange, scorer.score(HISTORY, [7, 0, 30], context=LEVELS))
        inside = scorer.score(np.array([3, each, 14, 2], dtype=kind), CANDIDATES, context=LEVELS)
        np.testing.assert_array_equal(inside, scorer.score([3, 0, 14, 2], CANDIDATES, context=LEVELS))
    assert not np.allclose(scorer.score([3, 14, 2], CANDIDATES, context=LEVELS), inside)  # its place stays


def test_levels_of_the_candidates_are_their_items_unless_they_are_given(scorer):
    own = {name: scorer.items.ids[CANDIDATES, place] for place, name in enumerate(LEVELS)}
    without = scorer.score(HISTORY, CANDIDATES)
    np.testing.assert_array_equal(without, scorer.score(HISTORY, CANDIDATES, context=own))
    assert not np.allclose(without, scorer.score(HISTORY, CANDIDATES, context=LEVELS))


def test_a_value_of_the_user_is_that_of_all_candidates(scorer):
    likes = {"likes_level": 4}
    expected = scorer.score(HISTORY, CANDIDATES, context={"likes_level": [4, 4, 4]})
    np.testing.assert_array_equal(scorer.score(HISTORY, CANDIDATES, user=likes), expected)
    unknown = scorer.score(HISTORY, CANDIDATES, user={"likes_level": 11})  # beyond the vocabulary
    np.testing.assert_array_equal(unknown, scorer.score(HISTORY, CANDIDATES, user={"likes_level": 0}))
    np.testing.assert_array_equal(unknown, scorer.score(HISTORY, CANDIDATES, user={"likes_level": None}))


def test_requests_of_a_batch_are_scored_as_one_by_one(scorer):
    requests = [Request(HISTORY, CANDIDATES), Request([], [5]), Request(HISTORY, []), Request([1], list(range(40)))]
    found = scorer.score_all(requests)
    assert [len(each) for each in found] == [3, 1, 0, 40]
    for request, scores in zip(requests, found, strict=True):
        np.testing.assert_array_equal(scores, scorer.score(request.history_ids, request.candidate_ids))


def test_many_candidates_are_scored_in_parts(scorer, monkeypatch):
    whole = scorer.score(HISTORY, range(1, 40))
    parts = Scorer.__new__(Scorer)
    parts.__dict__.update(scorer.__dict__, card=dataclasses.replace(scorer.card, pairs_at_once=10))
    np.testing.assert_allclose(parts.score(HISTORY, range(1, 40)), whole, atol=1e-6)


def test_a_score_that_is_no_number_is_no_score(exported, tmp_path):
    """The item whose row overflows is named; others of the table have their scores."""
    shutil.copytree(exported.folder, tmp_path / "served")
    rows = np.load(tmp_path / "served" / ROWS)
    rows[7] = 1e30
    np.save(tmp_path / "served" / ROWS, rows)
    scorer = Scorer(tmp_path / "served")
    assert np.isfinite(
        scorer.score(HISTORY, [30, 9], context={name: values[:2] for name, values in LEVELS.items()})
    ).all()
    with pytest.raises(
        UserError, match="candidate 1, item 7, scores nan: a number of the request or of an item is too"
    ):
        scorer.score(HISTORY, [30, 7])


def test_threads_share_a_scorer(scorer):
    expected = [scorer.score(HISTORY, [i, i + 1]) for i in range(1, 30)]
    found = [None] * 29

    def work(first):
        for i in range(first, 29, 4):
            found[i] = scorer.score(HISTORY, [i + 1, i + 2])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


BAD_REQUESTS = {
    "ids of another shape": ((HISTORY, [[1, 2]]), {}, r"candidate_ids is int64 \[1, 2\], expected integers \[n\]"),
    "lists of several lengths": ((HISTORY, [[1], [1, 2]]), {}, "candidate_ids is no array of numbers"),
    "ids of text": ((["a"], [1]), {}, r"history_ids is <U1 \[1\], expected integers \[n\]"),
    "ids as floats": (([1.5], [1]), {}, r"history_ids is float64 \[1\]"),
    "a feature nobody reads": ((HISTORY, [1]), {"user": {"age": 3}}, "user has 'age', expected the features .*: likes"),
    "a feature twice": (
        (HISTORY, [1]), {"user": {"likes_level": 1}, "context": {"likes_level": [1]}},
        "likes_level is in user and in context",
    ),
    "too few values": (
        (HISTORY, [1, 2]), {"context": {"likes_level": [1]}}, r"likes_level has shape \[1\], expected \[2\]",
    ),
    "a list for a value": ((HISTORY, [1]), {"user": {"likes_level": [1]}}, r"shape \[1\], expected one value"),
    "no features": ((HISTORY, [1]), {"user": None}, "user is a NoneType, expected {feature: value}, {} for none"),
    "names of features alone": ((HISTORY, [1]), {"context": ["likes_level"]}, "context is a list, expected {feature"),
    "a fraction for an id": (
        (HISTORY, [1]), {"user": {"likes_level": 1.5}}, "likes_level is float64, expected integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_what_is_wrong_with_a_request(scorer, name):
    arguments, given, message = BAD_REQUESTS[name]
    with pytest.raises(UserError, match=message):
        scorer.score(*arguments, **given)


@pytest.mark.parametrize("requests", [None, Request(HISTORY, [1]), [(HISTORY, [1])]])
def test_a_batch_is_of_requests(scorer, requests):
    with pytest.raises(UserError, match=r"expected a (list of )?Request"):
        scorer.score_all(requests)


def test_no_request_of_a_batch_is_scored_when_one_is_wrong(scorer, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(Scorer, "_run", fail)
    with pytest.raises(UserError, match="candidate_ids"):
        scorer.score_all([Request(HISTORY, CANDIDATES), Request(HISTORY, ["x"])])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def _replace(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _same_size(path):
    path.write_bytes(bytes(path.stat().st_size))


def _spec(path, **changes):
    specs = json.loads(path.read_text())["row_features"]
    _replace(path, row_features=specs | {"likes_level": changes or "a level"})


DAMAGES = {
    "no card": (lambda f: (f / CARD).unlink(), "no exported model .*card.json is not there"),
    "a card that is cut": (lambda f: _cut(f / CARD), "card.json: not an exported model's card .damaged JSON"),
    "a card of another format": (lambda f: _replace(f / CARD, format=9), "not an exported model's card of format 1"),
    "a card without parts": (lambda f: _replace(f / CARD, parts=3), "card.json: .*: parts is damaged"),
    "a card with a width of text": (lambda f: _replace(f / CARD, parts={"a": "2"}), "card.json: .*: parts is damaged"),
    "a card that reads no history": (lambda f: _replace(f / CARD, max_len=0), "card.json: .*: max_len is damaged"),
    "a card that scores nothing": (lambda f: _replace(f / CARD, pairs_at_once=0), "card.json: .*pairs_at_once"),
    "a card with a truth for a number": (lambda f: _replace(f / CARD, min_len=True), "card.json: .*: min_len is"),
    "a card without the row's features": (
        lambda f: _replace(f / CARD, row_features={}), f"{GRAPH} reads likes_level, which card.json does not have",
    ),
    "a card without an end": (lambda f: (f / CARD).write_text("[" * 200_000), "card.json: .*card .damaged JSON"),
    "a feature that is text": (lambda f: _spec(f / CARD), "card.json: .*: row_features is damaged"),
    "a feature of no type": (lambda f: _spec(f / CARD, type="odd", vocab_size=9), "card.json: .*: row_features is"),
    "a feature of no size": (lambda f: _spec(f / CARD, type="categorical"), "card.json: .*: row_features is damaged"),
    "a feature with a scale of text": (
        lambda f: _spec(f / CARD, type="numeric", scale="2"), "card.json: .*: row_features is damaged",
    ),
    "a card of more items": (
        lambda f: _replace(f / CARD, num_items=99), rf"{ROWS}: is float32 \[40, .*card.json says float32 \[99",
    ),
    "rows that are cut": (lambda f: _cut(f / ROWS), rf"{ROWS}: has .* bytes, expected .*; copy or export it again"),
    "no rows": (lambda f: (f / ROWS).unlink(), f"{ROWS}: is not there, expected"),
    "a graph that is cut": (lambda f: _cut(f / GRAPH), f"{GRAPH}: has .* bytes, expected"),
    "a graph of zeros": (lambda f: _same_size(f / GRAPH), f"{GRAPH}: onnxruntime cannot load it"),
    "ids of zeros": (lambda f: _same_size(f / IDS), f"{IDS}: not an array of numpy"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_clear_error(exported, tmp_path, capsys, name):
    damage, message = DAMAGES[name]
    shutil.copytree(exported.folder, tmp_path / "served")
    damage(tmp_path / "served")
    with pytest.raises(UserError, match=message):
        Scorer(tmp_path / "served")
    given = [tmp_path / "served", "--test", exported.test, "--out", tmp_path / "s.zip"]
    code, _, err = run_script("mm_fibinet.scorer", *given, capsys=capsys)
    assert code == 2 and len(err.splitlines()) == 1 and not (tmp_path / "s.zip").exists()


def test_a_card_that_is_another_graphs_is_one_clear_error(exported, tmp_path):
    """Of more levels than the graph has: such a level is no row of its table."""
    shutil.copytree(exported.folder, tmp_path / "served")
    _spec(tmp_path / "served" / CARD, type="categorical", vocab_size=5_000)
    scorer = Scorer(tmp_path / "served")
    assert len(scorer.score(HISTORY, CANDIDATES, context=LEVELS)) == 3
    with pytest.raises(UserError, match=rf"{GRAPH} cannot score what {CARD} has it read .*out of data bounds"):
        scorer.score(HISTORY, CANDIDATES, user={"likes_level": 4_000})


def test_a_split_that_breaks_the_contract_writes_nothing(exported, tmp_path, capsys):
    table = pq.read_table(exported.test).drop_columns("likes_level")
    pq.write_table(table, tmp_path / "test.parquet")
    given = [exported.folder, "--test", tmp_path / "test.parquet", "--out", tmp_path / "s.zip"]
    code, _, err = run_script("mm_fibinet.scorer", *given, capsys=capsys)
    assert code == 2 and "likes_level" in err and not (tmp_path / "s.zip").exists()
    pq.write_table(pq.read_table(exported.test).drop_columns("item_seq"), tmp_path / "users.parquet")
    with pytest.raises(UserError, match=r"users.parquet: has no column item_seq.*user_info, prediction.py scores it"):
        score_split(Scorer(exported.folder), tmp_path / "users.parquet")
    given = [exported.folder, "--test", exported.test, "--out", exported.folder / "s.zip"]
    code, _, err = run_script("mm_fibinet.scorer", *given, capsys=capsys)
    assert code == 2 and "is inside the input folder" in err


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, 257])
def test_threads_are_a_number(exported, threads):
    with pytest.raises(UserError, match="threads is"):
        Scorer(exported.folder, threads)


def test_rows_that_are_packed():
    """Against the definition, number by number: the largest of a part is 127 steps, the rest is rounded to steps."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 5)).astype(np.float32) * np.float32([1, 1, 1, 100, 0.01])
    rows[3, :2] = 0
    parts = {"a": 2, "b": 1, "c": 2}
    ids = np.zeros((20, 0), np.int32)
    packed = ItemRows.pack(rows, ids, parts, "int8")
    for row in range(20):
        for part, places in enumerate(([0, 1], [2], [3, 4])):
            step = max(abs(float(rows[row, place])) for place in places) / 127
            assert packed.scales[row, part] == pytest.approx(step, rel=1e-6)
            for place in places:
                expected = 0 if step == 0 else round(float(rows[row, place]) / step)
                assert packed.values[row, place] == expected
    taken = packed.take(np.array([3, 19, 3]))
    np.testing.assert_allclose(taken[1], packed.values[19] * packed.scales[19].repeat([2, 1, 2]), rtol=1e-6)
    np.testing.assert_allclose(taken[:, 2], rows[[3, 19, 3], 2], rtol=1e-6)  # alone in its part: kept
    assert not taken[0, :2].any()
    half = ItemRows.pack(rows, ids, parts, "fp16")
    np.testing.assert_array_equal(half.take(np.arange(20)), rows.astype(np.float16).astype(np.float32))
    with pytest.raises(UserError, match="beyond fp16; take fp32 or int8"):
        ItemRows.pack(rows * 1e6, ids, parts, "fp16")


def grow(exported, path, more=3, change=None):
    """item_info of the run's data set with further items; `change` alters the columns of all, {name: matrix}."""
    table = pq.read_table(exported.test.parent / "item_info.parquet")
    columns = {name: np.stack(table[name].to_numpy()) for name in table.column_names}
    new = {name: values[1 : more + 1] for name, values in columns.items()}
    new["item_id"] = np.arange(len(table), len(table) + more)
    new["item_emb_d16"] = new["item_emb_d16"][::-1]
    columns = {name: np.concatenate([values, new[name]]) for name, values in columns.items()}
    columns.update(change(columns) if change else {})
    lists = {name: list_column(values) if values.ndim == 2 else values for name, values in columns.items()}
    pq.write_table(pa.table(lists), path)
    return columns


def test_items_are_added_without_an_export(exported, tmp_path, capsys):
    """A new item is scored as the model scores it when its rows are in the model's own item table, without an id."""
    columns = grow(exported, tmp_path / "item_info.parquet")
    features = exported.config.parent / "item_feature.parquet"
    given = [exported.folder, "--item_info", tmp_path / "item_info.parquet", "--item_feature", features]
    code, out, err = run_script("mm_fibinet.new_items", *given, "--out", tmp_path / "grown", capsys=capsys)
    assert code == 0 and out == f"{tmp_path / 'grown'}: 3 items more, {NUM_ITEMS} to {NUM_ITEMS + 2}\n", err
    before, after = Scorer(exported.folder), Scorer(tmp_path / "grown")
    np.testing.assert_array_equal(after.score(HISTORY, CANDIDATES), before.score(HISTORY, CANDIDATES))
    new, row = [NUM_ITEMS, NUM_ITEMS + 2], {"likes_level": [4, 5], "views_level": [1, 2]}
    found = after.score([*HISTORY, NUM_ITEMS + 1], new, context=row)

    model, table = exported.model()
    more = {"item_id": [0] * 3, "likes_level": [0] * 3, "views_level": [0] * 3}
    more.update({name: columns[name][NUM_ITEMS:] for name in ("item_tags", "item_emb_d16")})
    grown = {name: torch.cat([table[name], torch.tensor(np.array(more[name])).to(table[name])]) for name in more}
    places = [*HISTORY, NUM_ITEMS + 1]
    index = torch.tensor([[*places, item] for item in new]).int()
    levels = {name: torch.tensor(values) for name, values in row.items()}
    items = {name: values[index.flatten().long()] for name, values in grown.items()}
    with torch.no_grad():  # the triple, in which an item may have the id 0 and yet be there
        expected = model((levels, items, torch.ones(2, len(places))))["y_pred"].flatten().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_item_without_tags_is_encoded_as_at_export(exported, tmp_path):
    """Empty lists are zeros in onnxruntime as in torch, and not 0 / 0."""

    def without_tags(columns):
        columns["item_tags"][-1] = 0
        return {}

    grow(exported, tmp_path / "item_info.parquet", change=without_tags)
    features = exported.config.parent / "item_feature.parquet"
    append_items(exported.folder, tmp_path / "item_info.parquet", tmp_path / "grown", features)
    scorer, first = Scorer(tmp_path / "grown"), 0
    row = scorer.items.take(np.array([NUM_ITEMS + 2]))[0]
    for name, width in scorer.card.parts.items():
        if name == "item_tags":
            assert not row[first : first + width].any()
        first += width
    assert np.isfinite(row).all() and np.isfinite(scorer.score([NUM_ITEMS + 2], [NUM_ITEMS + 2])).all()


BAD_GROWTH = {
    "no new items": ({"more": 0}, "has 40 items, .* has 40, expected more of them"),
    "another embedding": (
        {"change": lambda c: {"item_emb_d16": c["item_emb_d16"][:, ::-1].copy()}},
        "item 1 has another item_emb_d16 than at export, 39 of 39 items have",
    ),
    "another embedding by little": (
        {"change": lambda c: {"item_emb_d16": c["item_emb_d16"] * np.linspace(1, 1.01, 16, dtype=np.float32)}},
        "has another item_emb_d16 than at export",
    ),
    "an embedding beyond all others": (
        {"change": lambda c: c["item_emb_d16"].__setitem__((-1, 3), 3e38) or {}},
        r"item 42 has \d.*e\+3\d, expected at most 1e\+12; scale",
    ),
    "other tags": ({"change": lambda c: {"item_tags": np.roll(c["item_tags"], 1, axis=1)[:, :4]}}, "item_tags"),
}


@pytest.mark.parametrize("name", BAD_GROWTH)
def test_items_that_cannot_be_added(exported, tmp_path, name):
    settings, message = BAD_GROWTH[name]
    grow(exported, tmp_path / "item_info.parquet", **settings)
    features = exported.config.parent / "item_feature.parquet"
    with pytest.raises(UserError, match=message):
        append_items(exported.folder, tmp_path / "item_info.parquet", tmp_path / "grown", features)
    assert [path.name for path in tmp_path.iterdir()] == ["item_info.parquet"]


def test_old_items_are_compared_whatever_is_stored_of_them(exported):
    """Each item is looked at, in content and in what is compared as integers, and rounding is no change."""
    card = Card.read(exported.folder)
    items = ItemRows.read(exported.folder, card)
    rows, ends = np.array(items.values), np.cumsum(list(card.ids.values()))
    columns = dict(zip(card.ids, np.split(np.array(items.ids), ends[:-1], axis=1), strict=True))

    def differ(stored, now=rows, columns=columns):
        kept = ItemRows.pack(rows, items.ids, card.parts, stored)
        found = differences(
            kept, dataclasses.replace(card, item_table=stored), now[1:], columns, np.arange(1, NUM_ITEMS)
        )
        return {name: np.flatnonzero(which) + 1 for name, which in found if which.any()}

    last = {name: values.copy() for name, values in columns.items()}
    last["likes_level"][-1] += 1
    one = rows.copy()
    one[5] *= 1.1
    for stored in ("fp32", "fp16", "int8"):
        assert not differ(stored)
        assert {name: which.tolist() for name, which in differ(stored, columns=last).items()} == {
            "likes_level": [NUM_ITEMS - 1]
        }
        assert all(which.tolist() == [5] for which in differ(stored, one).values()) and differ(stored, one)


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
def test_what_a_gate_has_scaled_by_the_items_id_is_compared_too(stored):
    model = served_models.make_model("FiBiNET with modality_gating")
    table, card = served_models.make_table(), served_models.make_card(model, stored)
    assert "item_tags" in card.of_content and "item_emb_d128" not in card.of_content
    encoder = served.NewItemEncoder(model)
    rows = onnx_export.encode_items(served.ItemEncoder(model), table)
    items = ItemRows.pack(rows, onnx_export.item_ids(table, card.ids), card.parts, stored)
    old = np.arange(1, card.num_items)

    def differ(**changed) -> dict[str, list[int]]:
        columns = {name: torch.as_tensor(changed.get(name, table[name]))[1:] for name in encoder.asked}
        with torch.no_grad():
            now = encoder(*columns.values()).numpy()
        found = differences(items, card, now, {}, old)
        return {name: old[which].tolist() for name, which in found if which.any()}

    assert not differ()
    embedding, tags = table["item_emb_d128"].numpy(), table["item_tags"].numpy()
    one = embedding.copy()
    one[5] = np.random.default_rng(0).normal(size=one.shape[1])
    one[8] = 0
    assert differ(item_emb_d128=one) == {"item_emb_d128": [5, 8]}
    there = np.flatnonzero(embedding.any(axis=1))
    assert set(there[there > 0]) >= set(differ(item_emb_d128=embedding[:, ::-1].copy())["item_emb_d128"])
    assert len(differ(item_emb_d128=embedding[:, ::-1].copy())["item_emb_d128"]) > 0.9 * (len(there) - 1)
    others = tags.copy()
    others[7, -1] = others[7, -1] % 3 + 1
    assert differ(item_tags=others) == {"item_tags": [7]}


def test_an_encoder_that_makes_nan_of_an_old_item_is_exported_again(exported, tmp_path, monkeypatch):
    """As encoders did whose export was not tried: the items are what they were, it is the encoder that is wrong."""

    class Session:
        def __init__(self, session):
            self.get_inputs, self.session = session.get_inputs, session

        def run(self, names, fed):
            [rows] = self.session.run(names, fed)
            rows[4, 0] = np.nan
            return [rows]

    grow(exported, tmp_path / "item_info.parquet")
    monkeypatch.setattr(new_items, "open_graph", lambda *given, **more: Session(open_graph(*given, **more)))
    features = exported.config.parent / "item_feature.parquet"
    with pytest.raises(
        UserError, match=r"^item_encoder.onnx makes no finite numbers of item 5; export the model again"
    ):
        append_items(exported.folder, tmp_path / "item_info.parquet", tmp_path / "grown", features)
    assert [path.name for path in tmp_path.iterdir()] == ["item_info.parquet"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tags": np.zeros((4, 2), np.int32)}, "^item_encoder.onnx reads item_emb_d16, which card.json does not have"),
        ({"item_emb_d16": np.zeros((4, 9))}, r"^item_encoder.onnx cannot encode what card.json has it read \(.*9.*16"),
    ],
)
def test_an_encoder_of_another_card_is_one_line(columns, message):
    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="item_emb_d16")]

        def run(self, names, fed):
            raise RuntimeError(f"Got: {fed['item_emb_d16'].shape[1]} Expected: 16\nat a node")

    with pytest.raises(UserError, match=message):
        new_items.encode(Session(), columns, np.arange(4))


def test_levels_that_are_nowhere_are_asked_for(exported, tmp_path):
    grow(exported, tmp_path / "item_info.parquet")
    with pytest.raises(UserError, match=r"likes_level is missing.*--item_feature"):
        append_items(exported.folder, tmp_path / "item_info.parquet", tmp_path / "grown")
    features = exported.config.parent / "item_feature.parquet"
    with pytest.raises(UserError, match="is an input"):
        append_items(exported.folder, tmp_path / "item_info.parquet", exported.folder, features)

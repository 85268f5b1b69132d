"""An exported model scores as its torch model does, whatever the request."""

import re

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import served_models
import torch
from conftest import list_column, make_feature_map
from served_models import CASES, ITEMS, MAX_LEN
from test_model_contract import FEATURES, SIZES
from torch import nn
from torch.export import Dim

import model_zoo
from mm_fibinet import onnx_export
from mm_fibinet.errors import UserError
from mm_fibinet.item_table import load_item_table
from mm_fibinet.new_items import append_items
from mm_fibinet.scorer import Scorer, score_split
from mm_fibinet.served_files import ENCODER, GRAPH, ItemRows
from model_zoo import served


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """(model, folder)."""
    model = served_models.make_model(request.param)
    return model, served_models.export(tmp_path_factory.mktemp("export") / "model", model)


REQUESTS = {  # history, candidates
    "usual": ([5, 9, 13, 40, 2, 77], [3, 299, 9, 120]),
    "padded": ([0, 0, 0, 5, 9], [3, 4]),
    "no history": ([], [3, 4, 5]),
    "padding alone": ([0] * 12, [3, 4, 5]),
    "one candidate": ([5, 9, 13], [8]),
    "all cold": ([ITEMS + 5, 10**12, -3], [ITEMS, 2**40, -1]),
    "some cold": ([5, ITEMS + 5, 9], [ITEMS, 7, 0]),
    "longer than max_len": (list(range(1, 3 * MAX_LEN)), [100, 101]),
    "many candidates": ([5, 9, 13, 40], list(range(1, ITEMS))),
}


def test_scores_are_those_of_torch(exported):
    model, folder = exported
    scorer, table = Scorer(folder), served_models.make_table()
    for name, (history, candidates) in REQUESTS.items():
        row = served_models.make_row(model, len(candidates))
        known = lambda ids: [each if 0 < each < ITEMS else 0 for each in ids]  # noqa: E731
        positions = [0] * MAX_LEN + known(history)
        expected = served_models.score_rows(model, table, positions[-MAX_LEN:], known(candidates), row)
        found = scorer.score(history, candidates, context=row)
        assert found.dtype == np.float32 and found.shape == (len(candidates),)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    assert np.ptp(found) > 0.01


@pytest.mark.parametrize("exported", ["DeepFM"], indirect=True)
def test_a_split_is_scored_as_its_rows_are(exported, tmp_path):
    """Numbers of a file are scaled once; a null is what fill_na says."""
    (model, folder), table, rows = exported, served_models.make_table(), 9
    rng = np.random.default_rng(0)
    histories, items = rng.integers(1, ITEMS, (3, MAX_LEN))[[0, 1, 2, 1, 0, 0, 2, 1, 1]], rng.integers(1, ITEMS, rows)
    row = served_models.make_row(model, rows)
    row["age"][4] = np.nan
    columns = {"item_seq": list_column(histories), "item_id": items, **row}
    pq.write_table(pa.table({**columns, "age": pa.array(row["age"], from_pandas=True)}), tmp_path / "test.parquet")
    row["age"][4] = served_models.USER["age"]["fill_na"]
    alone = [{name: values[[i]] for name, values in row.items()} for i in range(rows)]
    expected = [served_models.score_rows(model, table, histories[i], items[[i]], alone[i])[0] for i in range(rows)]
    np.testing.assert_allclose(score_split(Scorer(folder), tmp_path / "test.parquet"), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_items_are_added_to_vectors_of_int8_that_are_only_compared(tmp_path):
    """The table keeps them as int8, a file that is read for new items gives float32."""
    model, table, more = served_models.make_model("DCNv2 with embedding compared"), served_models.make_table(), 3
    whole = {name: table[name].numpy() for name in ("item_tags", "item_emb_d128")}
    whole["item_emb_d128"] = (whole["item_emb_d128"] * 30).clip(-127, 127).astype(np.int8)
    for name, count in (("old", ITEMS), ("grown", ITEMS + more)):
        chosen = np.concatenate([np.arange(ITEMS), np.arange(7, 7 + more)])[:count]
        columns = {each: list_column(values[chosen]) for each, values in whole.items()}
        pq.write_table(pa.table({"item_id": np.arange(count), **columns}), tmp_path / f"{name}.parquet")
    table = load_item_table(tmp_path / "old.parquet", model.item_side_features())
    assert table["item_emb_d128"].dtype == torch.int8
    folder, modules = (
        tmp_path / "served",
        (served.served(model), served.ItemEncoder(model), served.NewItemEncoder(model)),
    )
    folder.mkdir()
    onnx_export.write_model(folder, *modules, table, served_models.make_card(model))
    assert append_items(folder, tmp_path / "grown.parquet", tmp_path / "more") == range(ITEMS, ITEMS + more)
    rows, first = Scorer(tmp_path / "more").items.take(np.arange(ITEMS, ITEMS + more)), 0
    for name, width in Scorer(folder).card.parts.items():
        if name == "unit item_emb_d128":
            vectors = whole["item_emb_d128"][7 : 7 + more].astype(float)
            lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            np.testing.assert_allclose(rows[:, first : first + width], vectors / lengths, atol=1e-6)
        first += width


@pytest.mark.parametrize("exported", ["QIN"], indirect=True)
def test_the_same_model_gives_the_same_bytes(exported, tmp_path):
    model, first = exported
    second = served_models.export(tmp_path / "again", model)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def require_plain_graph(path):
    content = path.read_bytes()
    assert b".py" not in content and b"stack_trace" not in content
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert graph.ir_version <= 10 and [each.version for each in graph.opset_import if not each.domain] == [18]
    assert not {"Loop", "Trilu"} & {node.op_type for node in graph.graph.node}  # slow; not for bool in 1.18


def test_graphs_say_nothing_of_this_machine_and_are_for_runtimes_of_2024(exported):
    _, folder = exported
    require_plain_graph(folder / GRAPH)


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    layer, x = nn.Linear(3, 2).eval(), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    right = (x @ layer.weight.T + layer.bias).detach().numpy()

    def write(expected):
        shapes = ({0: Dim("rows", min=2, max=9)},)
        onnx_export.write_graph(tmp_path / "layer.onnx", layer, [((x,), right), ((x,), expected)], shapes, ["x"], "y")

    largest = np.maximum(np.abs(right).max(axis=1, keepdims=True), 1)
    write(right + 0.9e-4 * largest)
    for wrong, message in (
        (right + 1.1e-4 * largest, f"computes {right[0, 0]:.6g} where torch computes "),
        (np.float32([right[0], [np.nan, 0]]), f"computes {right[1, 0]:.6g} where torch computes nan; export it with"),
        (right[:1], "makes [2, 2] numbers where torch makes [1, 2]; export it with other releases"),
    ):
        with pytest.raises(UserError, match=rf"^layer.onnx of torch .* with onnxscript .* {re.escape(message)}"):
            write(wrong)


def test_a_graph_that_does_not_run_is_refused(tmp_path):
    layer, x = nn.Linear(3, 2).eval(), torch.ones(2, 3)
    tried = [((x,), layer(x).detach().numpy()), ((torch.ones(2, 4),), np.zeros((2, 2), np.float32))]
    with pytest.raises(UserError, match=r"^layer.onnx of .* does not run in onnxruntime \(.*\); export it with other"):
        onnx_export.write_graph(tmp_path / "layer.onnx", layer, tried, ({0: Dim("rows", min=2)},), ["x"], "y")


def test_an_encoder_that_does_not_make_the_rows_of_the_table_is_refused(tmp_path, monkeypatch):
    encode_items, model = onnx_export.encode_items, served_models.make_model("QIN")
    monkeypatch.setattr(onnx_export, "encode_items", lambda *given: encode_items(*given) * np.float32(1.01))
    modules = served.served(model), served.ItemEncoder(model), served.NewItemEncoder(model)
    with pytest.raises(UserError, match=f"^{ENCODER} of torch .* computes .* where torch computes"):
        onnx_export.write_model(tmp_path, *modules, served_models.make_table(), served_models.make_card(model))


def test_a_model_of_ids_alone_is_exported_and_takes_no_new_items(tmp_path):
    features = {name: spec for name, spec in FEATURES.items() if name not in ("item_tags", "item_emb_d128")}
    model = model_zoo.QIN(make_feature_map(features), **SIZES["QIN"]).eval()
    modules = served.served(model), served.ItemEncoder(model), served.NewItemEncoder(model)
    table, folder = served_models.make_table(), tmp_path / "served"
    folder.mkdir()
    onnx_export.write_model(folder, *modules, table, served_models.make_card(model))
    row = served_models.make_row(model, 2)
    expected = served_models.score_rows(model, table, [5, 9], [3, 4], row)
    np.testing.assert_allclose(Scorer(folder).score([5, 9], [3, 4], context=row), expected, atol=1e-5)
    with pytest.raises(UserError, match="its model reads nothing of an item but its id"):
        append_items(folder, tmp_path / "item_info.parquet", tmp_path / "grown")


def test_graphs_are_tried_with_what_is_special():
    model = served_models.make_model("FiBiNET with user's lists")
    card, rows = served_models.make_card(model), np.random.default_rng(0).random((ITEMS, 1), np.float32)
    packed = ItemRows(rows, None, np.zeros((ITEMS, 0), np.int32), {"all": 1})
    requests = onnx_export._requests(card, packed)
    lengths = [int(real.sum()) for _, real, *_ in requests]
    assert min(lengths) == 0 and max(lengths) == MAX_LEN == len(requests[lengths.index(MAX_LEN)][0])
    assert {len(candidates) for _, _, candidates, *_ in requests} == {1, 5}
    for history, real, candidates, *_, row in requests:
        assert np.isin(history, rows).all() and np.isin(candidates, rows).all()
        assert ((history[:, 0] == rows[0, 0]) == (real == 0)).all()
        lists = dict(zip(card.row_features, row, strict=True))["user_tags"]
        assert not lists[0].any() and (len(lists) == 1 or lists[1:].any())
    assert all(rows[0, 0] in candidates for _, _, candidates, *_ in requests if len(candidates) > 1)

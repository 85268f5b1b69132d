"""A graph that torch compiled scores as the model does, whatever the request, and says what it lacks."""

import os

import numpy as np
import pytest
import served_models
import torch
import torch._inductor.config
from test_onnx_export import ITEMS, MAX_LEN, REQUESTS

from mm_fibinet import compiled_graph, onnx_export
from mm_fibinet.errors import UserError
from mm_fibinet.scorer import Scorer
from mm_fibinet.served_files import COMPILED, GRAPH

HISTORY, CANDIDATES = [5, 9, 13], [3, 4]


def has_compiler():
    try:
        compiled_graph.require_compiler()
    except UserError:
        return False
    return True


@pytest.fixture
def one_process():
    """The compiler's helpers are not started for one small graph."""
    with torch._inductor.config.patch(compile_threads=1):
        yield


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["FiBiNET recommended", "DIN"])
def test_scores_are_those_of_torch(case, tmp_path, one_process):
    model, table = served_models.make_model(case), served_models.make_table()
    folder = served_models.export(tmp_path / "model", model, form="pt2")
    assert COMPILED in os.listdir(folder) and GRAPH not in os.listdir(folder)
    scorer = Scorer(folder)
    for name, (history, candidates) in REQUESTS.items():
        row = served_models.make_row(model, len(candidates))
        positions = [0] * MAX_LEN + [each if 0 < each < ITEMS else 0 for each in history]
        known = [each if 0 < each < ITEMS else 0 for each in candidates]
        expected = served_models.score_rows(model, table, positions[-MAX_LEN:], known, row)
        np.testing.assert_allclose(scorer.score(history, candidates, context=row), expected, atol=1e-5, err_msg=name)
    assert np.ptp(expected) > 0.01
    (folder / COMPILED).write_bytes(bytes((folder / COMPILED).stat().st_size))
    with pytest.raises(UserError, match=rf"{COMPILED}: torch .* cannot load it .* or export with --format onnx"):
        Scorer(folder)


def test_a_compiled_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    """By the scores that torch makes of the same requests; here a graph that gives all zeros."""

    class Zeros:
        def get_inputs(self):
            return []

        def run(self, _, fed):
            return [np.zeros(5, np.float32)]

    monkeypatch.setattr(compiled_graph, "compile_graph", lambda *_: None)
    monkeypatch.setattr(onnx_export, "open_compiled", lambda *_, **__: Zeros())
    with pytest.raises(
        UserError,
        match=r"^model.pt2 of torch [\w.+]+ computes 0 where torch .*; export with --format onnx, which needs no",
    ):
        served_models.export(tmp_path / "model", served_models.make_model("DIN"), form="pt2")


def test_without_a_compiler_one_line_says_so(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none_found():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    with pytest.raises(
        UserError, match=r"--format pt2: no C\+\+ compiler found; install g\+\+, or export with --format onnx"
    ):
        compiled_graph.require_compiler()

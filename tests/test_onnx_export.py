"""An exported model scores as its torch model does, whatever the request."""

import numpy as np
import onnx
import pytest
import served_models
from served_models import CASES, ITEMS, MAX_LEN

from mm_fibinet.scorer import Scorer
from mm_fibinet.served_files import GRAPH


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

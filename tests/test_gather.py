"""Rows gathered in one thread, or shared by several, are those of torch's index_select to the bit."""

import multiprocessing
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT

from mm_fibinet import gather
from mm_fibinet.gather import flat_index, real_positions, take_rows


@pytest.fixture(params=["one thread", "shared", "shared, one row a part"])
def threads(request, monkeypatch):
    """How many threads gather, and parts of what size."""
    if request.param != "one thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(gather, "BYTES_A_PART", 1 if "row" in request.param else 1000)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("shape", [(50, 7), (50, 1), (50,), (50, 3, 2)])
@pytest.mark.usefixtures("threads")
def test_rows_equal_index_select(dtype, shape):
    values = torch.randint(-9, 9, shape).to(dtype)
    for index in (torch.randint(0, 50, (1003,)), torch.randint(0, 50, (1003,), dtype=torch.int32), torch.tensor([49])):
        taken = take_rows(values, index)
        assert torch.equal(taken, values.index_select(0, index)) and taken.dtype == dtype
    assert take_rows(values, torch.empty(0, dtype=torch.int64)).shape == (0, *shape[1:])


@pytest.mark.usefixtures("threads")
def test_not_a_number_and_the_sign_of_zero_stay_as_they_are():
    values = torch.tensor([[float("nan"), -0.0], [float("inf"), 0.0]])
    taken = take_rows(values, torch.tensor([1, 0, 0]))
    assert torch.equal(taken.view(torch.int32), values.view(torch.int32)[[1, 0, 0]])


@pytest.mark.usefixtures("threads")
def test_parts_of_wider_tensors_are_read_where_they_are():
    table, index = torch.randn(80, 12), torch.randint(0, 80, (60, 9))
    values, some = table[::2, 3:8], index[:, 4] // 2
    assert torch.equal(take_rows(values, some), values.contiguous().index_select(0, some.contiguous()))
    out = torch.full((60, 5), 7.0)
    assert take_rows(values, some, out=out) is out and torch.equal(out, values[some])


@pytest.mark.parametrize("index", [[0, 3], [-1, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_an_index_out_of_range_is_refused_and_nothing_is_written(index, dtype):
    out = torch.full((2, 4), 7, dtype=dtype)
    with pytest.raises(IndexError):
        take_rows(torch.zeros(3, 4, dtype=dtype), torch.tensor(index), out=out)
    assert (out == 7).all() or dtype == torch.bfloat16  # that one is torch's own


def test_gradients_flow_through():
    values = torch.randn(5, 3, requires_grad=True)
    take_rows(values, torch.tensor([4, 1, 4])).sum().backward()
    assert values.grad[:, 0].tolist() == [0, 1, 0, 0, 2]


def test_positions_become_a_flat_index_and_a_mask():
    matrix = torch.tensor([[0, 0, 5, 6, 99], [0, 2, 0, 9, 99]], dtype=torch.int32)
    for index in (matrix[:, :4], matrix[:, :4].to(torch.int16)):  # numpy's, and torch's
        assert flat_index(index).tolist() == [0, 0, 5, 6, 0, 2, 0, 9]
        assert real_positions(index[:, :-1]).tolist() == [[0, 0, 1], [0, 1, 0]]
        assert real_positions(index).dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the threads of a process")
def test_a_batch_of_indices_starts_no_openmp_threads():
    """In a process of its own, where none have been started; a gather of torch's shows that the count can tell."""
    code = """
    import os, threading, numpy, torch
    from mm_fibinet.dataloader import IndexBatch
    from mm_fibinet.item_table import ItemTable
    from mm_fibinet.split import PointingSplit, Split
    from mm_fibinet.user_table import UserTable
    from model_zoo.base import distinct_items
    def threads():  # but Python's own
        return len(os.listdir("/proc/self/task")) - threading.active_count()
    torch.set_num_threads(2)
    items = torch.from_numpy(numpy.arange(6000 * 65, dtype=numpy.int32))  # torch's would start the threads
    matrix = items.reshape(6000, 65)
    split = Split(matrix, None, {}, {}, 64)
    table = ItemTable({"item_id": items})
    rows = torch.randperm(6000)[:4096]
    users = UserTable(items, torch.from_numpy(numpy.arange(1, 6002) * 64), {}, 32, 32)
    pointing = PointingSplit(Split(matrix[:, :2] // 65, None, {}, {}, 0), users, 32, False)
    before = threads()
    columns, item_index = split.gather(rows, torch.device("cpu"))
    IndexBatch(columns, item_index, table).triple()
    distinct_items(item_index, table.num_items)
    pointing.gather(rows, torch.device("cpu"))
    after = threads()
    matrix.index_select(0, rows)
    print(after - before, threads() - after)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1"], done.stdout + done.stderr


def _gather_in_child(values, index, answer):
    answer.put(bool(torch.equal(take_rows(values, index), values[index])))


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_gathers_with_helpers_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(gather, "BYTES_A_PART", 1000)
    values, index = torch.randn(50, 64), torch.randint(0, 50, (500,))
    take_rows(values, index)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_gather_in_child, args=(values, index, answer))
    child.start()
    try:
        assert answer.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("path", ["numpy", "torch"])
@pytest.mark.parametrize(("width", "run"), [(1, 32), (31, 32), (32, 32), (33, 32), (100, 8), (100, 128)])
def test_tails_are_the_last_numbers_behind_zeros(monkeypatch, path, width, run):
    """Parts of all lengths, from none to more than is wanted; each worked out by slices of a list."""
    monkeypatch.setattr(gather, "_is_plain", {"numpy": gather._is_plain, "torch": lambda values: False}[path])
    parts = [torch.randint(1, 2**31 - 1, (length,), dtype=torch.int32) for length in [*range(150), 0, 200]]
    pieces = [piece for part in parts for piece in (torch.zeros(run, dtype=torch.int32), part)]
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    starts, stops = ends[0::2], ends[1::2]
    tails = gather.take_tails(torch.cat(pieces), starts, stops, width, run, torch.device("cpu"))
    assert tails.shape[1] >= width and tails.dtype == torch.int32
    for row, part in zip(tails[:, -width:].tolist(), parts, strict=True):
        tail = part.tolist()[-width:]
        assert row == [0] * (width - len(tail)) + tail
    assert len(gather.take_tails(torch.cat(pieces), starts[:0], stops[:0], width, run, torch.device("cpu"))) == 0


@pytest.mark.parametrize(("start", "stop"), [(31, 40), (32, 101)])
def test_a_part_beyond_the_values_is_refused(start, stop):
    starts, stops = torch.tensor([32, start]), torch.tensor([40, stop])
    with pytest.raises(IndexError, match=f"parts from {start} to {stop}, expected 32 to 100"):
        gather.take_tails(torch.zeros(100, dtype=torch.int32), starts, stops, 7, 32, torch.device("cpu"))

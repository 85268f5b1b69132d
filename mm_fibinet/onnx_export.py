"""A trained model as files that score without torch (see mm_fibinet.served_files).

The modules that are exported come from the models' side: one that scores a request's candidates from items' rows, and
two that encode items, one for the table and one, small enough to ship, for items that are added later. What is written
depends on weights and items alone: neither times, nor paths, nor names of this machine are in it.

torch's exporter rewrites what it writes and is not always right (it took x + 1e-12 for x, and 0 / 0 for a mean of
nothing), so onnxruntime computes a few requests and items of each graph, and what torch does not compute is refused.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from mm_fibinet import compiled_graph, extras
from mm_fibinet.errors import UserError, first_line
from mm_fibinet.item_table import ItemTable
from mm_fibinet.options import FORMATS
from mm_fibinet.scorer import INPUTS, open_compiled, open_graph
from mm_fibinet.served_files import COMPILED, ENCODER, GRAPH, Card, ItemRows

TESTED = "2.14"  # torch; that of 2.6 cannot translate batch norm with today's onnxscript
OPSET = 18  # onnxruntime has read it since 1.14
LARGEST_GRAPH = 2_000_000_000  # bytes that one ONNX file holds
LARGEST_SIZE = 2**31 - 1  # of an input; torch 2.6 does not export sizes without a bound
ITEMS_AT_ONCE = 1 << 16
CLOSE = 1e-4  # of 1, or of a row's largest number where that is more; the order of sums changes far less
LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def require_libraries(form: str = FORMATS[0]) -> None:
    """Find what exporting to one of FORMATS needs before the work."""
    for module in extras.EXTRAS["serve"]:
        extras.require(module)  # new items are encoded by onnxruntime, whatever scores
    if form == "pt2":
        compiled_graph.require_compiler()


def write_model(
    folder: Path,
    served: nn.Module,
    encoder: nn.Module,
    added: nn.Module | None,
    table: ItemTable,
    card: Card,
    form: str = FORMATS[0],
) -> None:
    """Write a folder's files.

    Args:
        folder: an empty one.
        served: scores a request, see model_zoo.served.
        encoder: encodes the items of the table; its `features` are columns of it.
        added: the same for items that come later, of the columns that it has `asked` for; None where none may come. Of
            a model that reads nothing of an item but its id it asks for none, and is not written.
        table: the items.
        card: what the folder is to hold.
        form: one of FORMATS, of the graph that scores.

    Raises:
        UserError: the graph is larger than an ONNX file may be, a number too large for the table's type, or what a
            graph computes is not what torch computes.
    """
    rows, ids = encode_items(encoder, table), item_ids(table, card.ids)
    packed = ItemRows.pack(rows, ids, card.parts, card.item_table)
    packed.write(folder)
    requests = [(each, _computed(served, each)) for each in _requests(card, packed)]
    shapes, names = _request_shapes(card), [*INPUTS, *card.row_features]
    if form == "pt2":
        with _quiet():
            compiled_graph.compile_graph(folder / COMPILED, served, requests[0][0], shapes)
        _require_same(folder / COMPILED, open_compiled(folder / COMPILED, card, threads=1), requests, names)
    else:
        write_graph(folder / GRAPH, served, requests, shapes, names, "scores")
    if added is not None and added.asked:
        few = _few_items(card, 5)
        columns = _item_columns(added, table, few, card)
        expected = _computed(added, columns)
        content = np.repeat([name in card.of_content for name in card.parts], list(card.parts.values()))
        expected[:, content] = rows[few][:, content]
        write_graph(folder / ENCODER, added, [(columns, expected)], _item_shapes(columns), list(added.asked), "rows")
    card.write(folder)


@torch.inference_mode()
def encode_items(encoder: nn.Module, table: ItemTable) -> np.ndarray:
    """float32 [N, width], the rows of all items."""
    encoder.eval()
    parts = (table.rows(part) for part in torch.arange(table.num_items).split(ITEMS_AT_ONCE))
    return torch.cat([encoder(*(rows[name] for name in encoder.features)) for rows in parts]).numpy()


def item_ids(table: ItemTable, ids: dict[str, int]) -> np.ndarray:
    """int32 [N, width], the integers beside the rows."""
    columns = [table[name].reshape(table.num_items, -1).numpy() for name in ids]
    return np.concatenate([np.zeros((table.num_items, 0), np.int32), *columns], axis=1).astype(np.int32)


def write_graph(
    path: Path, module: nn.Module, tried: list[tuple[tuple, np.ndarray]], shapes: tuple, names: list[str], output: str
) -> None:
    """Write a module as ONNX.

    Args:
        path: the file.
        module: in evaluation mode.
        tried: arguments of its forward, and what torch makes of them; the graph is tried with all.
        shapes: of the arguments, for torch.export.
        names: of the inputs, those of lists one by one.
        output: the output's name.

    Raises:
        UserError: it is too large, torch cannot export it, or the graph computes something else.
    """
    import onnx

    size = sum(each.numel() * each.element_size() for each in {id(p): p for p in module.parameters()}.values())
    if size > LARGEST_GRAPH:
        raise UserError(
            f"the tables of the row's own features have {size:,} bytes, an ONNX file holds {LARGEST_GRAPH:,}; train "
            "with a smaller embedding_dim or fewer ids"
        )
    with _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(module.eval(), tried[0][0], dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, input_names=names, output_names=[output], opset_version=OPSET, verbose=False
            )
        except Exception as error:  # of any kind: torch's exporter fits some releases of onnxscript, and not others
            raise UserError(
                f"{_exporter()} cannot export this model ({type(error).__name__}); export it where a newer torch is, "
                f"{TESTED} is tested: the run's folder may be copied there, and what is exported runs anywhere"
            ) from error
        program.save(str(path), external_data=False)
    graph = onnx.load(str(path))
    del graph.metadata_props[:]
    _forget_sources(graph.graph)
    onnx.save(graph, str(path))
    _require_same(path, open_graph(path, threads=1), tried, names)


def _require_same(path: Path, session, tried: list[tuple[tuple, np.ndarray]], names: list[str]) -> None:
    """Refuse a graph that its session cannot run, or finds other numbers with than torch."""
    read = {each.name for each in session.get_inputs()}
    if path.name == COMPILED:
        what, runtime, advice = f"{path.name} of torch {torch.__version__}", "torch", compiled_graph.ADVICE
    else:
        what, runtime = f"{path.name} of {_exporter()}", "onnxruntime"
        advice = f"export it with other releases of them, torch {TESTED} is tested"
    for arguments, expected in tried:
        values = [one for each in arguments for one in (each if isinstance(each, list) else [each])]
        fed = {name: value.numpy() for name, value in zip(names, values, strict=True) if name in read}
        try:
            [found] = session.run(None, fed)
        except Exception as error:  # of the runtime's own kinds
            raise UserError(f"{what} does not run in {runtime} ({first_line(error)}); {advice}") from error
        if found.shape != expected.shape:
            sizes = f"{list(found.shape)} numbers where torch makes {list(expected.shape)}"
            raise UserError(f"{what} makes {sizes}; {advice}")
        largest = np.abs(expected).max(axis=-1, keepdims=True, initial=1)
        wrong = ~(np.abs(found - expected) <= CLOSE * largest)  # NaN too
        if wrong.any():
            numbers = f"{found[wrong][0]:.6g} where torch computes {expected[wrong][0]:.6g}"
            raise UserError(f"{what} computes {numbers}; {advice}")


@torch.inference_mode()
def _computed(module: nn.Module, arguments: tuple) -> np.ndarray:
    """What torch makes of a forward's arguments."""
    with _quiet():
        return module.eval()(*arguments).numpy()


def _exporter() -> str:
    return f"torch {torch.__version__} with onnxscript {metadata.version('onnxscript')}"


def _requests(card: Card, items: ItemRows) -> list[tuple]:
    """Requests of real items, with what is special: a short history, none, a full one; an item that has nothing."""
    shortest = np.zeros(max(card.min_len, card.padded_len), np.int64)
    short = np.concatenate([shortest, _few_items(card, 4)[1:]])
    full = _few_items(card, max(card.max_len, len(shortest)) + 1)[1:]
    one, five = _few_items(card, 2)[1:], _few_items(card, 5)
    return [_request(card, items, *each) for each in ((short, five), (shortest, five), (full, five), (full, one))]


def _request(card: Card, items: ItemRows, history: np.ndarray, candidates: np.ndarray) -> tuple:
    """A request of items [L] and [C], as arguments of what scores it."""
    real = torch.from_numpy((history > 0).astype(np.float32))
    rows = [torch.from_numpy(items.take(each)) for each in (history, candidates)]
    ids = [torch.from_numpy(items.ids.take(each, axis=0)) for each in (history, candidates)]
    row = [_values(spec, len(candidates)) for spec in card.row_features.values()]
    return rows[0], real, rows[1], *ids, row


def _request_shapes(card: Card) -> tuple:
    """What varies of a request, for torch.export."""
    positions = {0: Dim("positions", min=max(card.min_len, 2), max=LARGEST_SIZE)}
    candidates = {0: Dim("candidates", min=2, max=LARGEST_SIZE)}
    return positions, positions, candidates, positions, candidates, [candidates for _ in card.row_features]


def _few_items(card: Card, count: int) -> np.ndarray:
    """integers [count]: the item 0, which has nothing, and others of the whole table."""
    last = card.num_items - 1
    return np.concatenate([[0], np.linspace(min(1, last), last, count - 1).astype(np.int64)])


def _item_columns(added: nn.Module, table: ItemTable, items: np.ndarray, card: Card) -> tuple[Tensor, ...]:
    """Columns of items [M], as arguments of what encodes them: of the types that they are read from files in.

    The table may have an embedding as int8, which a file's is as float32.
    """
    rows = table.rows(torch.from_numpy(items))
    numbers = [name for name, spec in card.item_features.items() if spec["type"] in ("numeric", "embedding")]
    return tuple(rows[name].float() if name in numbers else rows[name].int() for name in added.asked)


def _item_shapes(columns: tuple[Tensor, ...]) -> tuple:
    """What varies of them, for torch.export."""
    items = Dim("items", min=2, max=LARGEST_SIZE)
    return (tuple({0: items} for _ in columns),)


def _values(spec: dict, count: int) -> Tensor:
    """Values of a feature, the first of which say nothing: [count] or [count, width]."""
    width = {"sequence": "max_len", "embedding": "pretrain_dim"}.get(spec["type"])
    shape = (count, spec[width]) if width else (count,)
    values = torch.arange(math.prod(shape)).reshape(shape)
    values[:1] = 0
    if spec["type"] in ("numeric", "embedding"):
        return torch.sin(values.float())
    return (values % spec["vocab_size"]).int()


def _forget_sources(graph) -> None:
    """Drop what the exporter notes of the code that a graph and its parts come from, with its paths."""
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _forget_sources(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves, and without the fused encoder layer that ONNX does not have."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

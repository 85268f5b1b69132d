"""A trained model as files that score without torch (see mm_fibinet.served_files).

The modules that are exported come from the models' side: one that scores a request's candidates from items' rows, and
two that encode items, one for the table and one, small enough to ship, for items that are added later. What is written
depends on weights and items alone: neither times, nor paths, nor names of this machine are in it.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from mm_fibinet import extras
from mm_fibinet.errors import UserError
from mm_fibinet.item_table import ItemTable
from mm_fibinet.served_files import ENCODER, GRAPH, Card, ItemRows

TESTED = "2.14"  # torch; that of 2.6 cannot translate batch norm with today's onnxscript
OPSET = 18  # onnxruntime has read it since 1.14
LARGEST_GRAPH = 2_000_000_000  # bytes that one ONNX file holds
LARGEST_SIZE = 2**31 - 1  # of an input; torch 2.6 does not export sizes without a bound
ITEMS_AT_ONCE = 1 << 16
LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def require_libraries() -> None:
    """Find what exporting needs before the work."""
    for module in extras.EXTRAS["serve"]:
        extras.require(module)


def write_model(
    folder: Path, served: nn.Module, encoder: nn.Module, added: nn.Module | None, table: ItemTable, card: Card
) -> None:
    """Write a folder's files.

    Args:
        folder: an empty one.
        served: scores a request, see model_zoo.served.
        encoder: encodes the items of the table; its `features` are columns of it.
        added: the same for items that come later, of the columns that it has `asked` for; None where none may come.
        table: the items.
        card: what the folder is to hold.

    Raises:
        UserError: the graph is larger than an ONNX file may be, or a number too large for the table's type.
    """
    rows, ids = encode_items(encoder, table), item_ids(table, card.ids)
    packed = ItemRows.pack(rows, ids, card.parts, card.item_table)
    packed.write(folder)
    write_graph(folder / GRAPH, served, *_request(served, card))
    if added is not None:
        write_graph(folder / ENCODER, added, *_new_items(added, card))
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


def write_graph(path: Path, module: nn.Module, arguments: tuple, shapes: tuple, names: list[str], output: str) -> None:
    """Write a module as ONNX.

    Args:
        path: the file.
        module: in evaluation mode.
        arguments: an example of its forward's.
        shapes: of them, for torch.export.
        names: of the inputs, those of lists one by one.
        output: the output's name.

    Raises:
        UserError: it is too large, or torch cannot export it.
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
            exported = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, input_names=names, output_names=[output], opset_version=OPSET, verbose=False
            )
        except Exception as error:  # of any kind: torch's exporter fits some releases of onnxscript, and not others
            raise UserError(
                f"torch {torch.__version__} with onnxscript {metadata.version('onnxscript')} cannot export this model "
                f"({type(error).__name__}); export it where a newer torch is, {TESTED} is tested: the run's folder may "
                "be copied there, and what is exported runs anywhere"
            ) from error
        program.save(str(path), external_data=False)
    graph = onnx.load(str(path))
    del graph.metadata_props[:]
    _forget_sources(graph.graph)
    onnx.save(graph, str(path))


def _request(served: nn.Module, card: Card) -> tuple[tuple, tuple, list[str], str]:
    """An example of a request, its shapes and names."""
    positions = Dim("positions", min=max(card.min_len, 2), max=LARGEST_SIZE)
    candidates = Dim("candidates", min=2, max=LARGEST_SIZE)
    length, count, width = max(card.min_len, 2) + 3, 5, sum(card.parts.values())
    num_ids = sum(card.ids.values())
    row = [_example(spec, count) for spec in card.row_features.values()]
    arguments = (
        torch.rand(length, width), torch.ones(length), torch.rand(count, width),
        torch.ones(length, num_ids, dtype=torch.int32), torch.ones(count, num_ids, dtype=torch.int32), row,
    )  # fmt: skip
    of_positions, of_candidates = {0: positions}, {0: candidates}
    shapes = (of_positions, of_positions, of_candidates, of_positions, of_candidates, [of_candidates for _ in row])
    names = ["history", "real", "candidates", "history_ids", "candidate_ids", *card.row_features]
    return arguments, shapes, names, "scores"


def _new_items(added: nn.Module, card: Card) -> tuple[tuple, tuple, list[str], str]:
    """The same of items that are added."""
    items = Dim("items", min=2, max=LARGEST_SIZE)
    arguments = tuple(_example(card.item_features[name], 5) for name in added.asked)
    return arguments, (tuple({0: items} for _ in arguments),), list(added.asked), "rows"


def _example(spec: dict, count: int) -> Tensor:
    """Values of a feature: [count] or [count, width]."""
    if spec["type"] == "numeric":
        return torch.rand(count)
    if spec["type"] == "embedding":
        return torch.rand(count, spec["pretrain_dim"])
    shape = (count, spec["max_len"]) if spec["type"] == "sequence" else (count,)
    return torch.ones(shape, dtype=torch.int32)


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

"""What a training step asks of a GPU, counted without one: `python benchmarks/step_cost.py`.

Tensors without data ("meta") take the branches that a GPU's take, so the step of the official sizes runs anywhere:
operations dispatched from Python, those of them that start a kernel, bytes kept for the backward pass, and the most
bytes alive at a time. Without autocast: in 16 bits activations are half as large. Dropout is counted as the three
operations of a CPU, a GPU has one; what a kernel takes for itself while it runs is not seen.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import model_zoo
from benchmarks.contenders import OFFICIAL
from benchmarks.synthetic import TAG_WIDTH, Sizes, feature_map
from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.item_table import ItemTable
from mm_fibinet.objective import Objective

META = torch.device("meta")
# Operations that start no kernel: views, and memory that is not filled.
FREE = {
    *("view", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "lift_fresh", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


@dataclass(frozen=True)
class Cost:
    """Of one step.

    Attributes:
        operations: by name.
        kept: bytes that autograd keeps between forward and backward, parameters and inputs not counted.
        peak: the most bytes alive at a time, parameters and inputs not counted.
    """

    operations: Counter
    kept: int
    peak: int

    @property
    def dispatched(self) -> int:
        """Operations that Python or autograd asked for."""
        return self.operations.total()

    @property
    def kernels(self) -> int:
        """Those that start one kernel or more."""
        return sum(count for name, count in self.operations.items() if name not in FREE)


class Watch(TorchDispatchMode):
    """Counts operations, and the bytes that are alive after each.

    Args:
        known: tensors that are not counted.
    """

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.operations: Counter = Counter()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Called by torch with each operation."""
        result = function(*args, **(kwargs or {}))
        self.operations[str(function.overloadpacket).rpartition(".")[2]] += 1
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def step_cost(name: str, batch_size: int = 8192, sizes: Sizes | None = None, **settings) -> Cost:
    """The cost of one step of a model of the benchmark.

    Args:
        name: of the model.
        batch_size: rows.
        sizes: of the data.
        settings: of the model, other than the official ones.
    """
    sizes = sizes or Sizes()
    columns = feature_map(sizes, sizes.emb_dim if name == "DIN" else None)
    model = getattr(model_zoo, name)(columns, **{**OFFICIAL[name], **settings, "gpu": -1}).train()
    model.to(META)
    model.device = META
    batch = _batch(batch_size, sizes)
    inputs = [*batch.batch_dict.values(), batch.item_index, *batch.item_table.columns.values()]
    known = [*model.parameters(), *model.buffers(), *inputs]
    objective, kept = Objective(model), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    with Watch(known) as watch:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective(model, batch, model.get_labels(batch), contextlib.nullcontext())
        size = sum(storage.nbytes() for number, storage in kept.items() if number not in watch.known)
        kept.clear()
        loss.backward()
    return Cost(watch.operations, size, watch.peak)


def _batch(rows: int, sizes: Sizes) -> IndexBatch:
    """A batch without data."""
    ids = {"item_id": (), "item_tags": (TAG_WIDTH,), "likes_level": (), "views_level": ()}
    table = {name: torch.empty(sizes.items, *width, dtype=torch.int32, device=META) for name, width in ids.items()}
    table[sizes.embedding] = torch.empty(sizes.items, sizes.emb_dim, device=META)
    row = {
        name: torch.empty(rows, dtype=torch.int32, device=META)
        for name in ("likes_level", "views_level", "user_id", "label")
    }
    return IndexBatch(row, torch.empty(rows, sizes.max_len + 1, dtype=torch.int32, device=META), ItemTable(table))


def main() -> None:
    """Print a table."""
    cases = {
        "FiBiNET": ("FiBiNET", {"id_dropout": 0.3}),
        "DIN": ("DIN", {}),
        "DIN with Dice": ("DIN", {"attention_hidden_activations": "Dice"}),
    }
    print("batch 8192, fp32           dispatched  kernels  kept for backward      peak")
    for title, (name, settings) in cases.items():
        cost = step_cost(name, **settings)
        memory = f"{cost.kept / 1e9:>15.2f} GB {cost.peak / 1e9:>6.2f} GB"
        print(f"{title:<26} {cost.dispatched:>10} {cost.kernels:>8} {memory}")


if __name__ == "__main__":
    main()

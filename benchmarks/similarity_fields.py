"""What FiBiNET_recommended computes beside an MLP, against the same written plainly: two minutes on one core.

python benchmarks/similarity_fields.py          1,682 items, batch 1024, and the challenge's 91,718, batch 4096

Cosines of the target with its history, tags in common, and one number for each pair of fields with its gradients. The
plain forms gather all vectors at once, compare all tags at once, and leave the gradients to autograd; both sides are
compared before the clock starts, and taken in turns.
"""

# ruff: noqa: E402 (the repository must be on sys.path before its modules are imported)

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # before site-packages, where FuxiCTR's wheel has a model_zoo of its own

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import in_turns, machine, median, now, spread
from mm_fibinet.memory import keep_freed_memory
from mm_fibinet.similarity import cosines, history_weights, tag_features
from model_zoo.plus_layers import BilinearPlus

NUM_TAGS, TAG_WIDTH = 20, 5
FIELDS, DIM, NUMBERS = 11, 32, 50  # of FiBiNET_recommended: fields, their width, what bilinear+ gives


@dataclass(frozen=True)
class Shape:
    """How large a batch is."""

    items: int
    batch: int
    length: int = 64
    width: int = 128


SHAPES = (Shape(1_682, 1024), Shape(91_718, 4096))
QUICK = (Shape(40, 8, 6, 4), Shape(300, 8, 6, 4))


def plain_cosines(items: Tensor, target: Tensor, history: Tensor) -> Tensor:
    """`cosines`: all vectors gathered at once."""
    unit = F.normalize(items, dim=-1)
    return torch.bmm(F.embedding(history, unit), unit[target].unsqueeze(-1)).squeeze(-1)


def plain_tags(tags: Tensor, target: Tensor, history: Tensor, weights: Tensor) -> Tensor:
    """`tag_features`: every tag of every history item with every tag of the target."""
    theirs, own = tags[history.long()], tags[target]
    same = (theirs.unsqueeze(-1) == own[:, None, None, :]) & (own != 0)[:, None, None, :]
    common = same.any(dim=-1).sum(dim=-1).float()
    either = (theirs != 0).sum(dim=-1) + (own != 0).sum(dim=-1, keepdim=True) - common
    means = torch.bmm(weights, torch.stack([(common > 0).float(), common / either.clamp(min=1)], dim=-1))
    return torch.stack([means[:, 0, 0], means[:, 0, 1], means[:, 1, 1]], dim=1)


def plain_pairs(layer: BilinearPlus, fields: Tensor) -> Tensor:
    """A bilinear+ layer by the operations that autograd knows."""
    return layer.low_rank(layer.products_by_field(fields, layer.bilinear_W))


def sides(shape: Shape) -> dict[str, tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]]:
    """{what: (plainly, ours)}, of random data; each returns what it computed."""
    torch.manual_seed(0)
    items = torch.randn(shape.items, shape.width)
    tags = torch.argsort(torch.rand(shape.items, NUM_TAGS), dim=1)[:, :TAG_WIDTH].int()  # 0, padding, is among them
    drawn = torch.randint(shape.items, (shape.batch, shape.length + 1))
    _, places = drawn.unique(return_inverse=True)
    kept = drawn.unique()  # as in training, the batch's distinct items
    items, tags = items[kept], tags[kept]
    target, history = places[:, -1], places[:, :-1].int()
    weights = history_weights(torch.rand(history.shape) < 0.7)
    fields = torch.randn(shape.batch, FIELDS, DIM, requires_grad=True)
    layer = BilinearPlus(FIELDS, DIM, "field_interaction", NUMBERS)

    def step(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        output = forward(fields)
        return [output.detach(), *torch.autograd.grad(output.square().mean(), [fields, layer.bilinear_W])]

    return {
        "cosines with the history": (
            lambda: [plain_cosines(items, target, history)],
            lambda: [cosines(items, target, history)],
        ),
        "tags in common": (
            lambda: [plain_tags(tags, target, history, weights)],
            lambda: [tag_features(tags, target, history, weights)],
        ),
        "bilinear+, forward and backward": (lambda: step(lambda x: plain_pairs(layer, x)), lambda: step(layer)),
    }


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = now(torch.device("cpu"))
    work()
    return 1000 * (now(torch.device("cpu")) - started)


def main() -> None:
    """Compare, measure, tell."""
    parser = argparse.ArgumentParser(description="Similarity fields and bilinear+ against the same written plainly.")
    parser.add_argument("--repeats", type=int, default=15, help="of each measurement (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs; the ratios mean nothing")
    args = parser.parse_args()
    keep_freed_memory()  # as run_expid.py does
    torch.set_num_threads(1)
    on = machine(torch.device("cpu"))
    print(f"{on['cpu']}, torch {on['torch']}, one thread\n")
    print("| items, batch | what | plainly, ms | ours, ms | ratio | repeats apart |\n|---|---|---:|---:|---:|---:|")
    for shape in QUICK if args.quick else SHAPES:
        for what, (plainly, ours) in sides(shape).items():
            for expected, found in zip(plainly(), ours(), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            times = in_turns(
                args.repeats, lambda work=plainly: milliseconds(work), lambda work=ours: milliseconds(work)
            )
            slow, fast = map(median, times)
            apart = max(map(spread, times))
            cells = (f"{shape.items:,}, {shape.batch:,}", what, f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}")
            print(f"| {' | '.join(cells)} | {apart:.0%} |", flush=True)


if __name__ == "__main__":
    main()

"""torchrun or our launcher in, ranks and reductions out; models and loops know of one process.

Models and loaders see a rank and a world size; without other processes these are 0 and 1 and nothing here communicates.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mm_fibinet import ranks
from mm_fibinet.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class World:
    """Who this process is among the processes of a run.

    Attributes:
        rank: 0 .. size - 1; rank 0 writes files.
        size: number of processes.
        local_rank: rank on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def start(gpu: int) -> World:
    """Join the process group that torchrun or `launcher` describes in the environment; alone without either.

    Args:
        gpu: this process's; below 0 means CPU, and gloo instead of nccl.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
    if gpu >= 0:
        torch.cuda.set_device(gpu)
    if not dist.is_initialized():
        backend = "nccl" if gpu >= 0 else "gloo"
        dist.init_process_group(backend, store=_store(world), rank=world.rank, world_size=world.size)
    return world


def _store(world: World) -> dist.Store | None:
    """Where ranks of `launcher` find each other: a file, which needs no free port; None for torchrun's way."""
    folder = os.environ.get(ranks.SHARED)
    return dist.FileStore(os.path.join(folder, "store"), world.size) if folder else None


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave() -> NoReturn:
    """Leave the group and end this process at once: it has no more to do, while another one goes on.

    Such a rank has aborted, now and then, as the interpreter took down torch's threads; torchrun then ends the others.
    """
    stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def current() -> World:
    """The world `start` joined; alone before it."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def draw_apart() -> None:
    """From now on each rank draws random numbers of its own, as dropout does; the first goes on as it is.

    All ranks begin with the same seed, and the rows of one would lose the same units as those of another.
    """
    rank = current().rank
    if rank:
        torch.manual_seed((torch.initial_seed() * 1_000_003 + rank) % 2**63)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum over all ranks, in place; the same on every rank."""
    if current().size > 1:
        dist.all_reduce(values)
    return values


def share_buffers(model: nn.Module) -> None:
    """Give every rank the first one's buffers (batch norm's running statistics), which are those that are saved."""
    if current().size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; the same answer on every rank."""
    if current().size == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


def once_a_machine(compute: Callable[[], T]) -> T:
    """What the first rank of each machine computes, on all ranks of that machine.

    Args:
        compute: reads what the machine has; returns something that pickle takes.

    Raises:
        UserError: what it raised on this machine, or on another one.
    """
    world, value, error = current(), None, None
    if world.local_rank == 0:
        try:
            value = compute()
        except UserError as refused:
            error = refused
    found = gather_objects((value, error))
    mine = found[world.rank - world.local_rank]  # torchrun numbers a machine's ranks one after the other
    for _, raised in (mine, *found):
        if raised:
            raise raised
    return mine[0]


def gather_rows(values: list[Tensor]) -> list[Tensor]:
    """The rows of all ranks, one rank's after the other's; how many each has is asked of the device.

    Args:
        values: tensors [N, ...]; each rank's N may be another.

    Returns:
        for each of them, [sum of N, ...], the same on every rank.
    """
    world = current()
    if world.size == 1 or not values:
        return values
    own = torch.tensor([len(rows) for rows in values], device=values[0].device)
    counts = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(counts, own)
    gathered = []
    for rows, numbers in zip(values, torch.stack(counts, dim=1).tolist(), strict=True):
        padded = rows.new_zeros(max(numbers), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in numbers]
        if len(padded):
            dist.all_gather(parts, padded)
        gathered.append(torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)]))
    return gathered


def parallel(model: nn.Module, own: Iterable[Tensor] = ()) -> nn.Module:
    """The model, its gradients averaged over the ranks by backward; itself in a run of one process.

    Args:
        model: on its device.
        own: parameters whose gradients the caller exchanges.
    """
    world = current()
    if world.size == 1:
        return model
    left_out = {id(parameter) for parameter in own}
    names = {name: value for name, value in model.named_parameters(remove_duplicate=False) if id(value) in left_out}
    for parameter in names.values():
        dist.broadcast(parameter.detach(), 0)  # as DistributedDataParallel does with the others
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(names))
    device = next(model.parameters()).device
    device_ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def require_gradients(model: nn.Module) -> None:
    """After the first backward of several processes: a `UserError` that names parameters without a gradient.

    DistributedDataParallel waits for every gradient, and would only say so a step later, by numbers.
    """
    unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    if unused and current().size > 1:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise UserError(
            f"{type(model).__name__}: the loss does not depend on {', '.join(unused[:3])}{more}, so several processes "
            "would wait for gradients that never come; remove what forward does not use, set its requires_grad to "
            "False, or train in one process, without torchrun"
        )


def gather_objects(value: object) -> list:
    """Every rank's value, by rank; on every rank."""
    world = current()
    if world.size == 1:
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Wait for all ranks, however much longer than this one's their work takes; of CPU groups (gloo)."""
    if current().size > 1:
        dist.monitored_barrier(timeout=PATIENCE)


def barrier() -> None:
    """Wait for all ranks."""
    if current().size > 1:
        dist.barrier()

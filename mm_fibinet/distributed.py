"""torchrun or our launcher in, ranks and reductions out; models and loops know of one process.

Models and loaders see a rank and a world size; without other processes these are 0 and 1 and nothing here communicates.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mm_fibinet import ranks


@dataclass(frozen=True)
class World:
    """Who this process is among the processes of a run.

    Attributes:
        rank: 0 .. size - 1; rank 0 writes files.
        size: number of processes.
        local_rank: rank on this machine, which is its GPU.
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
        gpu: the user's --gpu; below 0 means CPU, and gloo instead of nccl.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
    if gpu >= 0:
        torch.cuda.set_device(world.local_rank)
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


def current() -> World:
    """The world `start` joined; alone before it."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


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


def gather_objects(value: object) -> list:
    """Every rank's value, by rank; on every rank."""
    world = current()
    if world.size == 1:
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if current().size > 1:
        dist.barrier()

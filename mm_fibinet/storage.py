"""Where large tensors are kept: on the device, in (page-locked) main memory, or in a file of the temporary folder.

Splits, the users' histories and the items are each read once into tensors of a size that is known before. The reader
asks an `Allocate` for their arrays, so that it need not know whether they are in memory, in a file that the system
pages in and out, or in memory that all processes of a machine share.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from mm_fibinet import distributed

STORAGES = ("auto", "device", "memory", "memmap")
MEMORY_SHARE = 0.5  # what is kept may take this share of the free memory of its place
Allocate = Callable[[tuple[int, ...], type], np.ndarray]  # (shape, type of number) to an array that is not yet filled
S = TypeVar("S", bound="Stored")


class Stored:
    """Tensors that are read together, and kept in one place."""

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        raise NotImplementedError

    def holding(self: S, tensors: dict[str, Tensor]) -> S:
        """The same with other tensors of these names."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(values.nbytes for values in self.tensors().values())

    def to(self: S, device: torch.device | str) -> S:
        """The same on another device."""
        return self.holding({name: values.to(device) for name, values in self.tensors().items()})

    def pin(self: S) -> S:
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return self.holding({name: values.pin_memory() for name, values in self.tensors().items()})


def in_memory(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array in main memory."""
    return np.empty(shape, dtype=dtype)


def in_a_file(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array in an unnamed file of the temporary folder, freed with the process."""
    with _unnamed_file() as opened:
        return np.memmap(opened, dtype=dtype, mode="w+", shape=shape)


def choose_storage(needed: int, device: torch.device) -> str:
    """One of STORAGES for so many bytes: the device, else main memory, else a memory map."""
    if device.type == "cuda" and needed < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if needed < MEMORY_SHARE * _free_memory() else "memmap"


def read_stored(read: Callable[[Allocate], S], storage: str, device: torch.device, shared: bool) -> S:
    """Read tensors and put them where they are to be.

    Args:
        read: makes them of arrays from an `Allocate`.
        storage: one of STORAGES but "auto"; on a CPU the device is main memory.
        device: of the model.
        shared: all ranks call this at the same time, and a machine's share what its first one reads.
    """
    place = in_a_file if storage == "memmap" else in_memory
    stored = read_once_a_machine(read, place) if shared else read(place)
    if device.type != "cuda" or storage == "memmap":
        return stored
    return stored.to(device) if storage == "device" else stored.pin()


def read_once_a_machine(read: Callable[[Allocate], S], allocate: Allocate) -> S:
    """What the first process of a machine reads and checks, and its others see in the same memory.

    A rank needs all rows of a split: its share of a shuffled batch is of any of them. So what can be saved is not rows
    but copies, and the time in which each process would make its own.

    Args:
        read: makes it of arrays from an `Allocate`, each array a tensor from its first number on; called once a
            machine, on Linux.
        allocate: `in_memory` or `in_a_file`: of what kind the shared memory is, and where each process keeps its own,
            alone or on a system where none can open another's memory.

    Raises:
        UserError: of `read`, on all ranks.
    """
    if distributed.current().size == 1 or not hasattr(os, "memfd_create") or not Path("/proc/self/fd").exists():
        return read(allocate)
    own: list[S] = []
    paths: dict[int, str] = {}  # {address: where another process opens what is there}
    with contextlib.ExitStack() as files:

        def shareable(shape: tuple[int, ...], dtype: type) -> np.ndarray:
            """Memory of the kind that `allocate` gives, which other processes can open at its path in `paths`."""
            file = _unnamed_file() if allocate is in_a_file else os.fdopen(os.memfd_create("mm-fibinet"), "r+b")
            values = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
            paths[values.ctypes.data] = f"/proc/{os.getpid()}/fd/{files.enter_context(file).fileno()}"
            return values

        def describe() -> tuple[dict[str, str], S]:
            """Read, in the one process that does; returns where the others find the tensors, and their shapes."""
            own.append(read(shareable))
            places = {name: paths[values.data_ptr()] for name, values in own[0].tensors().items()}
            return places, own[0].to("meta")  # shapes and types, no numbers

        places, described = distributed.once_a_machine(describe)
        if not own:
            try:
                own.append(_mapped(places, described))
            except OSError:  # a container may keep its processes apart
                own.append(read(allocate))
        distributed.barrier()  # until all have opened the files, which have no name to be opened by later
    return own[0]


def _mapped(places: dict[str, str], described: S) -> S:
    """What another process has at these paths."""
    found = {}
    for name, values in described.tensors().items():
        dtype = torch.empty(0, dtype=values.dtype).numpy().dtype
        found[name] = torch.from_numpy(np.memmap(places[name], dtype, "r+", shape=tuple(values.shape)))
    return described.holding(found)


def _unnamed_file() -> IO:
    return tempfile.TemporaryFile(prefix="mm-fibinet-")


def _free_memory() -> int:
    """Bytes of main memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30

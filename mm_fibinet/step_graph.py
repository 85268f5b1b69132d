"""A training step as one CUDA graph: its kernels are launched together, not one by one from Python.

Forward and backward of a full batch are the same kernels in the same order every time, some hundreds of them, and a
fast GPU is done with one before Python has asked for the next. So they are captured once, reading their batch from
fixed buffers and leaving their gradients in others, and from then on a batch is copied in and the graph replayed.
Penalties, clipping and the optimizer stay outside: they are a handful of kernels over lists, and so the learning rate,
averaging, saving and resuming need to know nothing of graphs. The price is memory: a graph keeps what one step needs.

A graph repeats what it has seen, whatever Python would have done by then. It is therefore used for what it fits alone
(`plan`), and only after it has proved itself: a plain step must not have waited for the device, and the graph's
first result must be that of a plain step on the same batch, another than the one it was captured on. A batch of
another shape goes the plain way, and where anything does not fit, all of them do and the log says why.
"""

import gc
import logging
import math
import warnings
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mm_fibinet.dataloader import IndexBatch
from mm_fibinet.errors import UserError, first_line

CudaGraphs = Literal["auto", True, False]
Gradients = Callable[[IndexBatch, Tensor], Tensor]

WARM_UP_STEPS = 3  # plain ones, in which libraries choose their kernels and make their workspaces
TOLERANCE = 0.01  # of the gradients' norm: sums in another order stay far below it, another batch or mask far above
MEMORY_SHARE = 0.9  # of what is free before capturing: a graph and a plain step beside it must fit into it


class NotCapturable(Exception):
    """A step cannot be a graph; the message says why."""


class Recorder(Protocol):
    """What makes a graph of a step: a GPU's in training, a stand-in in tests on the CPU."""

    def rehearse(self, step: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
        """Do a step plainly, where it will be captured: its loss, and why it cannot be captured, if that was seen."""

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture a step without doing it: a function that does it, and the loss that it writes then.

        Raises:
            NotCapturable: it did not work, or would take too much memory.
        """

    def random_state(self) -> Tensor:
        """The state of the generator that the step draws from."""

    def set_random_state(self, state: Tensor) -> None:
        """Go back to a state."""


class StepGraph:
    """Forward and backward of a batch: plainly at first, then by replaying a graph of them.

    Args:
        gradients: of (batch, labels): leaves the gradients in `.grad`, which are empty before, and returns the loss,
            detached.
        model: whose parameters get them.
        recorder: makes the graph.
        required: raise where there can be no graph, instead of going on plainly.

    Attributes:
        captured: the step, once it has proved itself; else None.
        reason: why there will be no graph; None while there may be.
    """

    def __init__(self, gradients: Gradients, model: nn.Module, recorder: Recorder, required: bool = False):
        self.gradients, self.model, self.recorder, self.required = gradients, model, recorder, required
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.captured: _Captured | None = None
        self.reason: str | None = None
        self._candidate: _Captured | None = None
        self._signature: tuple | None = None
        self._rows = self._steps = 0

    def __call__(self, batch, labels: Tensor) -> Tensor:
        """Forward and backward of a batch.

        Args:
            batch: what the loader yields.
            labels: float [B, 1].

        Returns:
            the loss, a scalar, until the next call; the gradients are in `.grad`.

        Raises:
            UserError: there can be no graph, and it is required.
        """
        if self.reason is None and not isinstance(batch, IndexBatch):
            self._give_up("the batches are no indices; set batch_format: indices")
        if self.reason is not None:
            return self.gradients(batch, labels)
        signature = _signature(batch, labels)
        if self.captured is not None and signature == self._signature:
            if self.captured.is_in_place():
                return self.captured.replay(batch, labels)
            self._start(signature, len(labels))  # the weights were moved, the graph would read where they were
        if self.captured is None and len(labels) > self._rows:
            self._start(signature, len(labels))  # a short batch came first
        if self.captured is not None or signature != self._signature:
            return self.gradients(batch, labels)
        return self._warm_up(batch, labels) if self._candidate is None else self._prove(batch, labels)

    def _start(self, signature: tuple, rows: int) -> None:
        self.captured = self._candidate = None
        self._signature, self._rows, self._steps = signature, rows, 0

    def _give_up(self, reason: str) -> None:
        self.captured = self._candidate = None
        self.reason = reason
        if self.required:
            raise UserError(f"cuda_graphs is True, but {reason}; or set cuda_graphs: auto, which then trains without")
        logging.info("CUDA graphs: not used, %s", reason)

    def _warm_up(self, batch: IndexBatch, labels: Tensor) -> Tensor:
        """A plain step; after the last of them the next one is captured."""
        loss, obstacle = self.recorder.rehearse(lambda: self.gradients(batch, labels))
        self._steps += 1
        if self._steps < WARM_UP_STEPS:
            return loss
        if any(p.grad is not None and p.grad.layout != torch.strided for p in self.parameters):
            obstacle = "a table has sparse gradients"
        plain = _take_gradients(self.parameters)
        try:
            if obstacle:
                raise NotCapturable(obstacle)
            self._candidate = _Captured(self, batch, labels)
        except NotCapturable as found:
            self._give_up(str(found))
        finally:
            _set_gradients(self.parameters, plain)
        return loss

    def _prove(self, batch: IndexBatch, labels: Tensor) -> Tensor:
        """A plain step, and the same by the graph from the same state: they must agree. The plain one counts."""
        candidate, buffers, recorder = self._candidate, list(self.model.buffers()), self.recorder
        assert candidate is not None
        before, state_before = [buffer.clone() for buffer in buffers], recorder.random_state()
        loss = self.gradients(batch, labels)
        after, state_after = [buffer.clone() for buffer in buffers], recorder.random_state()
        plain = _take_gradients(self.parameters)

        _restore(buffers, before)
        recorder.set_random_state(state_before)
        replayed_loss = candidate.replay(batch, labels)
        replayed = _take_gradients(self.parameters)
        errors = _relative_error([replayed_loss], [loss]), _relative_error(replayed, plain)

        _restore(buffers, after)
        recorder.set_random_state(state_after)
        _set_gradients(self.parameters, plain)
        if any(math.isnan(error) for error in errors):
            return loss  # an overflow, as fp16 has them at the start, proves nothing: the next batch shall
        if all(error <= TOLERANCE for error in errors):
            self.captured, self._candidate = candidate, None
            logging.info("CUDA graphs: used for batches of %d rows", len(labels))
        else:
            by = "its loss by {:.1%}, its gradients by {:.1%}".format(*errors)
            self._give_up(f"a replayed step differs from a plain one: {by}")
        return loss


class _Captured:
    """A captured step: its buffers for a batch, its gradients and its loss.

    Args:
        owner: whose step it is.
        batch, labels: whose shapes it takes.
    """

    def __init__(self, owner: StepGraph, batch: IndexBatch, labels: Tensor):
        columns = {name: torch.empty_like(values) for name, values in batch.batch_dict.items()}
        self.batch = IndexBatch(columns, torch.empty_like(batch.item_index), batch.item_table)
        self.labels = torch.empty_like(labels)
        self.parameters = owner.parameters
        self.tensors = [*owner.model.parameters(), *owner.model.buffers()]
        self.places = [tensor.data_ptr() for tensor in self.tensors]
        self._fill(batch, labels)
        self._run, self.loss = owner.recorder.record(lambda: owner.gradients(self.batch, self.labels))
        self.gradients = _take_gradients(self.parameters)

    def replay(self, batch: IndexBatch, labels: Tensor) -> Tensor:
        """Do the step on a batch; its loss, until the next one."""
        self._fill(batch, labels)
        self._run()
        _set_gradients(self.parameters, self.gradients)
        return self.loss

    def is_in_place(self) -> bool:
        """Whether all weights and buffers are where they were captured."""
        return [tensor.data_ptr() for tensor in self.tensors] == self.places

    def _fill(self, batch: IndexBatch, labels: Tensor) -> None:
        columns = self.batch.batch_dict
        given = [*(batch.batch_dict[name] for name in columns), batch.item_index, labels]
        torch._foreach_copy_([*columns.values(), self.batch.item_index, self.labels], given)


class CudaRecorder:
    """Captures on a GPU, on a stream of its own, where the steps before are done too.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def rehearse(self, step: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
        """See Recorder; torch itself tells of operations that wait for the device."""
        current, mode = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.stream.wait_stream(current)
                with torch.cuda.stream(self.stream):
                    loss = step()
                current.wait_stream(self.stream)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        waits = [entry for entry in caught if "synchronizing CUDA operation" in str(entry.message)]
        for entry in caught:
            if entry not in waits and "Synchronization debug mode" not in str(entry.message):
                warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
        return loss, f"a step of {waits[0].filename}:{waits[0].lineno} waits for the GPU" if waits else None

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See Recorder."""
        gc.collect()  # what is freed while capturing could not be captured
        self._require_memory()
        graph, state = torch.cuda.CUDAGraph(), self.random_state()
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
                loss = step()
        except RuntimeError as error:  # torch's generator may be left in the capture: the next step would say so
            self.set_random_state(state)
            raise NotCapturable(f"capturing a step failed: {first_line(error)}") from error
        return graph.replay, loss

    def random_state(self) -> Tensor:
        """The GPU's generator."""
        return torch.cuda.get_rng_state(self.device)

    def set_random_state(self, state: Tensor) -> None:
        """The GPU's generator."""
        torch.cuda.set_rng_state(state, self.device)

    def _require_memory(self) -> None:
        """A graph keeps a step's memory for itself; short batches and evaluations need theirs beside it."""
        needed = torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        if 2 * needed > MEMORY_SHARE * free:
            raise NotCapturable(
                f"a step takes {needed >> 20:,} MiB and a graph as much again, but {free >> 20:,} MiB are free"
            )


def plan(
    wanted: CudaGraphs, gradients: Gradients, model: nn.Module, world_size: int, accumulation_steps: int, compiled: bool
) -> StepGraph | None:
    """The graph of a training's steps; None where there can be none.

    Args:
        wanted: "auto", True, or False for none.
        gradients: see StepGraph.
        model: on its device.
        world_size: processes; gradients of several are exchanged while they are computed.
        accumulation_steps: batches a step of the optimizer; a replay overwrites the gradients.
        compiled: whether torch.compile runs the model; its random numbers could not be captured (torch 2.11 on an H200:
            "Offset increment outside graph capture").

    Raises:
        UserError: wanted is True and there can be none.
    """
    if wanted is False:
        return None
    obstacles = {
        "the model is on the CPU": not can_capture(model.device),
        f"there are {world_size} processes": world_size > 1,
        f"accumulation_steps is {accumulation_steps}": accumulation_steps > 1,
        "compile is True": compiled,
    }
    found = next((reason for reason, holds in obstacles.items() if holds), None)
    if found is None:
        return StepGraph(gradients, model, CudaRecorder(model.device), required=wanted is True)
    if wanted is True:
        raise UserError(f"cuda_graphs is True, but {found}; or set cuda_graphs: auto, which then trains without")
    if can_capture(model.device):
        logging.info("CUDA graphs: not used, %s", found)
    return None


def can_capture(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def _signature(batch: IndexBatch, labels: Tensor) -> tuple:
    """What two batches share when one graph does both: the item table, and each column's shape, type and device."""
    tensors = {**batch.batch_dict, "": batch.item_index, " ": labels}
    return id(batch.item_table), *((n, t.shape, t.dtype, t.device) for n, t in tensors.items())


def _take_gradients(parameters: list[Tensor]) -> list[Tensor | None]:
    """The parameters' gradients, which they have no longer."""
    gradients = [p.grad for p in parameters]
    _set_gradients(parameters, [None] * len(parameters))
    return gradients


def _set_gradients(parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


@torch.no_grad()
def _restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _relative_error(found: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """The norm of all differences, as a share of the norm of what is expected; NaN where that is not finite."""
    if [value is None for value in found] != [value is None for value in expected]:
        return math.inf
    wanted = [value.float() for value in expected if value is not None]
    errors = torch._foreach_sub([value.float() for value in found if value is not None], wanted)
    norms = [torch.stack(torch._foreach_norm(values)).norm() for values in (errors, wanted)]
    error, size = torch.stack(norms).tolist()
    if not math.isfinite(size):
        return math.nan
    return error / max(size, 1e-30) if math.isfinite(error) else math.inf

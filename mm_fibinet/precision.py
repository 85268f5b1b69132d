"""What a model computes in: fp32, tf32, bf16 or fp16, what a device has of these, and what fp16 needs besides.

Weights, optimizer and losses are fp32 whatever the precision; it is the products of the forward and the backward pass
that get cheaper. bf16 has the range of fp32 and needs nothing more. fp16 ends at 65,504 and loses what is below 6e-8,
so the loss is multiplied by a scale before the backward pass and the gradients divided by it afterwards; a step whose
gradients overflowed all the same is skipped, and the scale is halved. All of that happens on the device: nothing waits
for it.

A precision that a GPU only imitates is refused: torch takes a T4 for able to do bf16, and it is slower there than fp32.
A CPU may imitate bf16 and fp16, which is how both are tried out without a GPU; the log says so.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm_fibinet.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "auto")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU_INFO = Path("/proc/cpuinfo")  # torch has no public question for this in 2.6
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's
FIRST_SCALE = 2.0**16  # torch's own start and pace
STEPS_UNTIL_DOUBLED = 2000

# Devices whose products torch can take in 16 bits; "meta", of tensors without data, is none.
AUTOCAST_DEVICES = {kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(kind)}


@dataclass(frozen=True)
class Precision:
    """A precision on a device.

    Attributes:
        asked: the setting, one of PRECISIONS.
        name: what it comes to on this device; never "auto".
        device: where the model is.
        reason: why it is this one, for people.
    """

    asked: str
    name: str
    device: torch.device
    reason: str

    @classmethod
    def on(cls, asked: str, device: torch.device) -> "Precision":
        """What a setting comes to on a device.

        Raises:
            UserError: it is none of PRECISIONS, or the device does not have it.
        """
        if asked not in PRECISIONS:
            raise UserError(f"precision is {asked!r}, expected one of {', '.join(PRECISIONS)}")
        where, native = _hardware(device)
        if asked == "auto":
            return cls(asked, native[0], device, f"auto, on {where}")
        if asked in native:
            return cls(asked, asked, device, f"as set, on {where}")
        if device.type == "cpu" and asked in HALVES:
            return cls(asked, asked, device, f"as set, on {where}: it may be slower than fp32")
        possible = ("fp32", *HALVES) if device.type == "cpu" else native
        imitated = " (torch imitates it on older ones, slower than fp32)" if asked == "bf16" else ""
        raise UserError(
            f"precision is {asked}, which GPUs have from compute capability 8.0 on{imitated}; found {where}, expected "
            f"one of {', '.join(sorted(possible))}, auto"
        )

    @classmethod
    def for_scores(cls, trained: dict | None, setting: str, device: torch.device) -> "Precision":
        """What a run's test split is scored in: what its validation was, unless the device lacks or imitates that.

        Then fp32, the most exact one, stands in. A CPU goes on imitating what a run on a CPU imitated.

        Args:
            trained: the manifest's record of the precision; None for weights without one.
            setting: the config's precision, for these.
            device: where the model is now.

        Raises:
            UserError: there is no record, and the device does not have what is set.
        """
        if not trained:
            return cls.on(setting, device)
        where, native = _hardware(device)
        name = trained["used"]
        if name in native or (device.type == "cpu" and trained.get("device") == "cpu"):
            return cls(setting, name, device, "as the run's validation")
        return cls(setting, "fp32", device, f"the run's {name} is not to be had on {where}")

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"

    @property
    def is_half(self) -> bool:
        """Whether the forward pass is in bf16 or fp16."""
        return self.name in HALVES

    def record(self) -> dict[str, str]:
        """What a run's manifest says of it."""
        return {"asked": self.asked, "used": self.name, "device": self.device.type, "reason": self.reason}

    def resumed(self, used: str) -> "Precision":
        """This one, where a saved state was computed in `used`; "auto" follows the state, on another device too.

        Raises:
            UserError: the setting is another one, or the device does not have what the state was computed in.
        """
        if used == self.name:
            return self
        if self.asked != "auto":
            raise UserError(f"--resume: the run's state is of precision {used}, precision is {self.asked}; set {used}")
        try:
            return Precision("auto", Precision.on(used, self.device).name, self.device, "auto, as the run began")
        except UserError as error:
            raise UserError(f"--resume: the run began in {used}: {error}; resume it on such a device") from None

    def autocast(self) -> torch.autocast:
        """A context for one forward pass: products are taken in bf16 or fp16."""
        return torch.autocast(self.device.type, HALVES.get(self.name), enabled=self.is_half)

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """A context for whole steps, backward included: with tf32, fp32 products are taken in tf32; only inside.

        Convolutions (xDeepFM's) follow, which torch takes in tf32 unless it is told not to. Both are settings of the
        process, so that what computes elsewhere or later, the encoders of items above all, is kept out of them by
        their end. Whoever has turned tf32 on for the matrix products of all of the process keeps it.
        """
        matmul = torch.backends.cuda.matmul
        before = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
        with _convolutions(in_tf32=self.name == "tf32"):
            if self.name != "tf32" or before in ("tf32", True):
                yield
                return
            matmul.allow_tf32 = True  # moves torch's older and its newer setting; torch.compile reads either
            try:
                yield
            finally:
                matmul.allow_tf32 = False
                if isinstance(before, str):
                    matmul.fp32_precision = before  # "none" and "ieee" are one to the older


@contextlib.contextmanager
def _convolutions(in_tf32: bool) -> Iterator[None]:
    """A context in which convolutions in fp32 are taken in tf32, or are not."""
    cudnn = torch.backends.cudnn
    kinds = [getattr(cudnn, kind) for kind in ("conv", "rnn") if hasattr(cudnn, kind)]  # torch 2.9 and up
    before = [kind.fp32_precision for kind in kinds]
    allowed = "tf32" in before if before else cudnn.allow_tf32
    cudnn.allow_tf32 = in_tf32
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


class Scaling:
    """A training step in any precision: with fp16 the loss is scaled, and a step that overflows is skipped.

    A skipped step leaves the weights and the optimizer's state as they were. It counts as a step for everything else:
    the learning rate's schedule, evaluations and checkpoints, and the weights' average, which moves towards weights
    that did not. Its loss counts where it is a number; where the forward pass itself overflowed it is left out of the
    mean. Several processes have the same gradients, hence the same scale.

    Args:
        precision: of the model.

    Attributes:
        lost: float64 scalar on the device, how many steps' losses are left out; a share of one where processes share a
            batch.
    """

    def __init__(self, precision: Precision):
        self._scaler = torch.amp.GradScaler(
            precision.device.type,
            init_scale=FIRST_SCALE,
            growth_interval=STEPS_UNTIL_DOUBLED,
            enabled=precision.name == "fp16",
        )
        self.lost = torch.zeros((), dtype=torch.float64, device=precision.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, a scalar; scaled until `unscale`. With fp16 a loss that is none makes them NaN."""
        if self._scaler.is_enabled():
            loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their own size, for what is added to them or measures them, and look for overflow."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless the gradients overflowed; then the scale of the next one.

        torch's fused optimizers decide that on the device; the others make the loop wait for the answer.
        """
        self._scaler.step(optimizer)
        self._scaler.update()

    def counted(self, loss: Tensor, share: float) -> Tensor:
        """What a loss adds to the sum of losses; nothing where it is lost.

        Args:
            loss: scalar, detached.
            share: of the batch's rows that it is the mean of.
        """
        if not self._scaler.is_enabled():
            return loss * share
        self.lost += (~loss.isfinite()).double() * share
        return loss.nan_to_num(0.0, 0.0, 0.0) * share

    def require_room(self) -> None:
        """A `UserError` when gradients overflow even unscaled, so that no step is taken any more. Waits for the GPU."""
        if self._scaler.get_scale() < 1:
            raise UserError(
                "precision is fp16, and the gradients overflow at any scale: no step is taken any more; set precision "
                "to bf16 or fp32, lower learning_rate, or check the embeddings' scale"
            )

    def state(self) -> dict[str, float]:
        """What `load` goes on from; empty unless fp16. Waits for the GPU."""
        return self._scaler.state_dict()

    def load(self, state: dict[str, float]) -> None:
        """Go on from a saved `state`."""
        self._scaler.load_state_dict(state)


def _hardware(device: torch.device) -> tuple[str, tuple[str, ...]]:
    """What a device is called, and what it has instructions for, that first which `auto` takes."""
    if device.type != "cuda":
        found = _cpu_has_bf16()
        return f"a CPU {'with' if found else 'without'} bf16 instructions", ("bf16", "fp32") if found else ("fp32",)
    major, minor = torch.cuda.get_device_capability(device)
    where = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    if major >= 8:
        return where, ("bf16", "tf32", "fp16", "fp32")
    return where, ("fp16", "fp32") if major == 7 else ("fp32", "fp16")


@functools.cache
def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own, as Linux tells; False where nobody does."""
    try:
        return not CPU_BF16_FLAGS.isdisjoint(CPU_INFO.read_text(errors="replace").split())
    except OSError:
        return False


def autocast_dtype(values: Tensor) -> torch.dtype:
    """The type that autocast would give a matrix product of these."""
    kind = values.device.type
    if kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return values.dtype


def without_autocast(kind: str) -> contextlib.AbstractContextManager:
    """What is computed inside is of its inputs' types, on a type of device that may have no autocast at all."""
    return torch.autocast(kind, enabled=False) if kind in AUTOCAST_DEVICES else contextlib.nullcontext()

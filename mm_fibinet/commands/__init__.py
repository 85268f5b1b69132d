"""The commands: what the scripts at the repository's top and `mm-fibinet COMMAND` run.

A command is its line, in `arguments`, which loads nothing heavy, and a module of its name here with `run`, which is
imported once the command line is known to be right: help and mistakes are answered without waiting for torch. Commands
bring wings and models together, so everything may be imported here, and nothing imports this package but scripts. The
models are a `Home`'s: the library itself never imports them.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mm_fibinet import ranks
from mm_fibinet.commands import arguments
from mm_fibinet.errors import UserError

SCRIPTS = ("run_expid.py", "prediction.py", "build_item_emb.py")  # what Home's commands are in a clone


@dataclass(frozen=True)
class Home:
    """Where the commands find models and configs.

    Attributes:
        models: the module with the models.
        config: the config folder that is taken when none is named.
        train, predict, embed: the command that does so in a process of its own, to which arguments are added.
    """

    models: str
    config: Path
    train: tuple[str, ...]
    predict: tuple[str, ...]
    embed: tuple[str, ...]

    @classmethod
    def repository(cls, folder: Path) -> "Home":
        """That of the scripts in a clone."""
        scripts = ((sys.executable, str(folder / name)) for name in SCRIPTS)
        return cls("model_zoo", folder / "config", *scripts)

    @classmethod
    def installed(cls) -> "Home":
        """That of pip's installation, wherever the command is called; FuxiCTR's `model_zoo` stays importable beside."""
        package = Path(__file__).resolve().parent.parent
        inside = package / "config"
        config = inside if inside.is_dir() else package.parent / "config"  # a clone installed with pip install -e
        # None where a clone is on PYTHONPATH alone; another clone's, where that one is installed by pip install -e.
        found = importlib.util.find_spec("mm_fibinet.model_zoo")
        beside = (package / "model_zoo", package.parent / "model_zoo")
        inside_too = found is not None and Path(found.origin or "").resolve().parent in beside
        processes = ((sys.executable, "-m", "mm_fibinet", name) for name in ("train", "predict", "embed"))
        return cls("mm_fibinet.model_zoo" if inside_too else "model_zoo", config, *processes)

    def import_models(self, models_from: str | None = None) -> ModuleType:
        """The models' module, with those of a FuxiCTR checkout beside its own where one is named."""
        models = importlib.import_module(self.models)
        if not models_from:
            return models
        from mm_fibinet.model_source import with_checkout  # which help does not need

        return with_checkout(models, models_from)


def wait_without_spinning() -> None:
    """Let this process's threads sleep while they wait for one another, unless the user has said otherwise.

    On cores shared with other work a thread that spins keeps the one it waits for from running: a small model's step
    beside one busy process then takes several times as long; on a quiet machine spinning is no faster. OpenMP reads the
    variable when torch is first imported; processes that are started later inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse(name: str, home: Home, given: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line of one command; see `main`."""
    command = arguments.COMMANDS[name]
    parser = _Parser(prog=prog, description=command.description, epilog=command.epilog)
    command.add_arguments(parser, home.config)
    parsed = parser.parse_args(given)
    if command.check:
        command.check(parser, parsed)
    return parsed


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong once, however many processes torchrun gave the same command line."""

    def error(self, message: str):
        """Exit code 2, with usage and message on stderr where this process is the one that tells."""
        first = ranks.fails_first(ranks.shared_folder())
        ranks.tell_torchrun(message, first)
        if not first:
            self.exit(2)
        super().error(message)


def main(name: str, home: Home, given: list[str] | None = None, prog: str | None = None) -> int | None:
    """Parse the command line of one command, then run it.

    Args:
        name: one of `arguments.COMMANDS`.
        home: where models and configs are.
        given: the command line without the program's name; None for the process's own.
        prog: the program's name in its help.

    Returns:
        the exit code, None for success.
    """
    parsed = parse(name, home, given, prog)
    wait_without_spinning()
    option, places = _places(parsed)
    if len(places) > 1 and ranks.SHARED not in os.environ:
        if ranks.is_rank():
            found = f"{option} has {len(places)} {'GPUs' if option == '--gpu' else 'devices'} under torchrun"
            raise UserError(f"{found}, which starts the processes: give it one")
        from mm_fibinet.launcher import launch  # which few commands need, and help does not

        given = sys.argv[1:] if given is None else given
        return launch([*getattr(home, name), *given], places, option)
    if "rank_gpus" in parsed:
        parsed.gpu = ranks.own_gpu(parsed.rank_gpus)
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")  # rank 0 is warned of the same
    return importlib.import_module(f"mm_fibinet.commands.{name}").run(parsed, home)


def _places(parsed: argparse.Namespace) -> tuple[str, Sequence[object]]:
    """Where a command runs, a process on each, and the option that says so; nothing for other commands."""
    if "rank_devices" in parsed:
        return "--device", parsed.rank_devices
    return "--gpu", parsed.rank_gpus if "rank_gpus" in parsed else ()

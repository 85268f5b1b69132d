"""The commands: what the scripts at the repository's top and `mm-fibinet COMMAND` run.

A command is a parser (`arguments`), which loads nothing heavy, and a module of the same name here with `run`, which is
imported once the command line is known to be right: help and mistakes are answered without waiting for torch. Commands
bring wings and models together, so everything may be imported here, and nothing imports this package but scripts. The
models are a `Home`'s: the library itself never imports them.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mm_fibinet.commands import arguments

# Threads that wait must not spin: on cores shared with other work, spinning makes a step several times slower.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}  # read once, when torch is first imported


@dataclass(frozen=True)
class Home:
    """Where the commands find models and configs.

    Attributes:
        models: the module with the models.
        config: the config folder that is taken when none is named.
        train: the command that trains one experiment in a process of its own, to which arguments are added.
    """

    models: str
    config: Path
    train: tuple[str, ...]

    @classmethod
    def repository(cls, folder: Path) -> "Home":
        """That of the scripts in a clone."""
        return cls("model_zoo", folder / "config", (sys.executable, str(folder / "run_expid.py")))

    @classmethod
    def installed(cls) -> "Home":
        """That of pip's installation, wherever the command is called; FuxiCTR's `model_zoo` stays importable beside."""
        package = Path(__file__).resolve().parent.parent
        inside = package / "config"
        config = inside if inside.is_dir() else package.parent / "config"  # a clone installed with pip install -e
        models = (
            "mm_fibinet.model_zoo" if importlib.util.find_spec("mm_fibinet.model_zoo") else "model_zoo"
        )  # on PYTHONPATH
        return cls(models, config, (sys.executable, "-m", "mm_fibinet", "train"))

    def import_models(self) -> ModuleType:
        """The models' module."""
        return importlib.import_module(self.models)


def parse(name: str, home: Home, given: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line of one command; see `main`."""
    command = arguments.COMMANDS[name]
    parser = argparse.ArgumentParser(prog=prog, description=command.description, epilog=command.epilog)
    command.add_arguments(parser, home.config)
    parsed = parser.parse_args(given)
    if command.check:
        command.check(parser, parsed)
    return parsed


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
    for variable, value in WAITING.items():
        os.environ.setdefault(variable, value)
    return importlib.import_module(f"mm_fibinet.commands.{name}").run(parsed, home)

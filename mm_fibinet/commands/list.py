"""The experiment IDs of a config folder and the models, a line each, the models of a checkout, and what can be set."""

import argparse
import inspect
import textwrap
from types import ModuleType

from mm_fibinet import setting_docs, settings
from mm_fibinet.commands import Home
from mm_fibinet.errors import printable
from mm_fibinet.model_source import Checkout


def run(args: argparse.Namespace, home: Home) -> None:
    """Print one line an experiment: its ID, model and data set; then one a model, and those that --models_from adds.

    With --settings, a paragraph for each setting instead.
    """
    if args.settings is not None:
        _print_settings(args.settings, home.import_models(args.models_from))
    else:
        print_experiments(args.config, args.models_from, home)


def print_experiments(config: str, models_from: str | None, home: Home) -> None:
    """Print the experiments and the models.

    Args:
        config: folder.
        models_from: a checkout of FuxiCTR whose models are named too, or None.
        home: whose models.
    """
    rows: list[tuple[str, ...]] = [("experiment", "model", "data set")]
    for expid, experiment in settings.load_model_configs(config).items():
        rows.append((expid, str(experiment.get("model")), str(experiment["dataset_id"])))
    print_table(rows)
    print()
    print_table([("model", "what it is"), *described(home.import_models())])
    if models_from:
        checkout = Checkout.at(models_from)
        print(printable(f"models of {checkout.folder}: {', '.join(checkout.classes)}"))


def described(models: ModuleType) -> list[tuple[str, str]]:
    """(name, first line of its docstring) of each model, by name without regard to case; another name says of which."""
    found = {name: getattr(models, name) for name in models.__all__}
    lines = {}
    for name, model in found.items():
        what = (inspect.getdoc(model) or "").partition("\n")[0]
        lines[name] = what if model.__name__ == name else f"another name of {model.__name__}"
    return sorted(lines.items(), key=lambda line: line[0].lower())


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows with columns that begin below one another."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        print(printable("".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True)) + last))


def _print_settings(name: str, models: ModuleType) -> None:
    """The settings of every run, of data and of a model: name, default, what is expected, what it does."""
    model = settings.find_model(models, name, "--settings")
    for group in [*setting_docs.of_runs(), *setting_docs.of_data(), *setting_docs.of_models([model])]:
        if not group.settings:
            continue
        print(f"\n{group.title}")
        for setting in group.settings:
            print(f"  {setting.name} ({setting.default or 'left out'}): {setting.expected}")
            print(textwrap.fill(setting.does, 110, initial_indent="      ", subsequent_indent="      "))

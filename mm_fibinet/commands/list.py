"""The experiment IDs of a config folder and the models, a line each, and the models of a FuxiCTR checkout."""

import argparse
import inspect
from types import ModuleType

from mm_fibinet import settings
from mm_fibinet.commands import Home
from mm_fibinet.errors import printable
from mm_fibinet.model_source import Checkout


def run(args: argparse.Namespace, home: Home) -> None:
    """Print one line an experiment: its ID, model and data set; then one a model, and those that --models_from adds."""
    rows = [("experiment", "model", "data set")]
    for expid, experiment in settings.load_model_configs(args.config).items():
        rows.append((expid, str(experiment.get("model")), str(experiment["dataset_id"])))
    print_table(rows)
    print()
    print_table([("model", "what it is"), *described(home.import_models())])
    if args.models_from:
        checkout = Checkout.at(args.models_from)
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

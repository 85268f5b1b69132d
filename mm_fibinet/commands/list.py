"""The experiment IDs of a config folder, the models of a FuxiCTR checkout, and what can be set."""

import argparse
import textwrap
from types import ModuleType

from mm_fibinet import settings
from mm_fibinet.commands import Home
from mm_fibinet.errors import printable
from mm_fibinet.model_source import Checkout


def run(args: argparse.Namespace, home: Home) -> None:
    """Print one line an experiment: its ID, model and data set; then the models that --models_from adds.

    With --settings, a paragraph for each setting instead.
    """
    if args.settings:
        _print_settings(args.settings, home.import_models(args.models_from))
        return
    rows = [("experiment", "model", "data set")]
    for expid, experiment in settings.load_model_configs(args.config).items():
        rows.append((expid, str(experiment.get("model")), str(experiment["dataset_id"])))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for expid, model, dataset in rows:
        print(printable(f"{expid:<{widths[0]}}  {model:<{widths[1]}}  {dataset}"))
    if args.models_from:
        checkout = Checkout.at(args.models_from)
        print(printable(f"models of {checkout.folder}: {', '.join(checkout.classes)}"))


def _print_settings(name: str, models: ModuleType) -> None:
    """The settings of every run, of data and of a model: name, default, what is expected, what it does."""
    from mm_fibinet import setting_docs  # it brings torch, which a list of experiments does not need

    model = settings.find_model(models, name, "--settings")
    for group in [*setting_docs.of_runs(), *setting_docs.of_data(), *setting_docs.of_models([model])]:
        if not group.settings:
            continue
        print(f"\n{group.title}")
        for setting in group.settings:
            print(f"  {setting.name} ({setting.default or 'left out'}): {setting.expected}")
            print(textwrap.fill(setting.does, 110, initial_indent="      ", subsequent_indent="      "))

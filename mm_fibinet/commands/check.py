"""Is the data as the file contract wants it? The command line of `mm_fibinet.data_check`."""

import argparse
from pathlib import Path

from mm_fibinet import data_check, settings
from mm_fibinet.commands import Home
from mm_fibinet.settings_schema import constructor_arguments


def run(args: argparse.Namespace, home: Home) -> int:
    """Print the table of the check; exit code 2 when something is wrong."""
    return data_check.report(args, defaults_of_model(args, home) if args.expid else {})


def defaults_of_model(args: argparse.Namespace, home: Home) -> dict[str, object]:
    """What an experiment's model reads of the data unless the experiment says otherwise.

    Raises:
        UserError: the model cannot be found.
    """
    experiment = settings.load_model_config(Path(args.config), args.expid)
    if "model" not in experiment:
        return {}
    where = f"experiment {args.expid}"
    model_class = settings.find_model(home.import_models(args.models_from), experiment["model"], where)
    levels = constructor_arguments(model_class).get("history_levels")
    return {"history_levels": levels.default} if levels else {}

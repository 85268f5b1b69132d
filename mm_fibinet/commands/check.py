"""Is the data as the file contract wants it? The command line of `mm_fibinet.data_check`."""

import argparse
from pathlib import Path

from mm_fibinet import data_check, settings
from mm_fibinet.commands import Home


def run(args: argparse.Namespace, home: Home) -> int:
    """Print the table of the check; exit code 2 when something is wrong."""
    if args.expid:
        require_model(args, home)
    return data_check.report(args)


def require_model(args: argparse.Namespace, home: Home) -> None:
    """A `UserError` when the experiment's model cannot be found."""
    experiment = settings.load_model_config(Path(args.config), args.expid)
    if "model" in experiment:
        settings.find_model(home.import_models(args.models_from), experiment["model"], f"experiment {args.expid}")

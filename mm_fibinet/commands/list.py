"""The experiment IDs of a config folder, and the models of a FuxiCTR checkout."""

import argparse

from mm_fibinet import settings
from mm_fibinet.commands import Home
from mm_fibinet.errors import printable
from mm_fibinet.model_source import Checkout


def run(args: argparse.Namespace, _: Home) -> None:
    """Print one line an experiment: its ID, model and data set; then the models that --models_from adds."""
    rows = [("experiment", "model", "data set")]
    for expid, experiment in settings.load_model_configs(args.config).items():
        rows.append((expid, str(experiment.get("model")), str(experiment["dataset_id"])))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for expid, model, dataset in rows:
        print(printable(f"{expid:<{widths[0]}}  {model:<{widths[1]}}  {dataset}"))
    if args.models_from:
        checkout = Checkout.at(args.models_from)
        print(printable(f"models of {checkout.folder}: {', '.join(checkout.classes)}"))

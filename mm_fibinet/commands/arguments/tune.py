"""The command line of `tune`."""

from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser, add_data_root, add_models_from, add_set


def add(parser: Parser, _: Path) -> None:
    """Its arguments."""
    parser.add_argument("--config", required=True, metavar="TUNER.yaml", help="base_expid, tuner_space, ...")
    parser.add_argument("--gpu", nargs="+", type=int, default=[-1], help="GPU indices, -1 for CPU (default)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="runs at a time on each of them (default: 1)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--tag", help="run only the experiment IDs that contain it, for example 001")
    how.add_argument("--optuna", type=int, metavar="N", help="N trials of Optuna instead of the grid")
    parser.add_argument("--out", help="folder of the results and the runs (default: tuner/NAME or tuner/NAME_optuna)")
    add_data_root(parser)
    add_models_from(parser)
    parser.add_argument("--seed", type=int, help="of all experiments and of Optuna (default: the config's)")
    add_set(parser, "all experiments")

"""The command line of `export`."""

from pathlib import Path

from mm_fibinet.commands.arguments.shared import Parser, add_config, add_data_root, add_models_from, add_set
from mm_fibinet.options import FORMATS, ITEM_TABLES


def add(parser: Parser, config: Path) -> None:
    """Its arguments; `config` as of `predict`."""
    add_config(parser, config, f"the run's settings, else {config}")
    parser.add_argument("--expid", required=True, help="experiment ID of the run")
    parser.add_argument("--checkpoint", help="weights to export (default: the experiment's best)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument(
        "--item_table", choices=ITEM_TABLES, default=ITEM_TABLES[0], help="how items are stored (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="onnx runs anywhere; pt2 needs a C++ compiler here, and torch where it scores (default: %(default)s)",
    )
    add_data_root(parser)
    add_models_from(parser)
    parser.add_argument("--model_root", help="where runs are kept (default: model_root of the config)")
    add_set(parser, "the experiment")
    parser.add_argument(
        "--allow_other_data", action="store_true", help="export with other settings and items than those trained on"
    )
    parser.set_defaults(config=None)

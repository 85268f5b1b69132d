"""`mm-fibinet COMMAND`, also as `python -m mm_fibinet COMMAND`: the scripts of the repository for those without one."""

import argparse
import sys

from mm_fibinet import __version__, commands
from mm_fibinet.commands.arguments import COMMANDS
from mm_fibinet.errors import run_cli

PROG = "mm-fibinet"


def main() -> int | None:
    """Find the command; the rest of the line is its own."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Multimodal click-through-rate prediction for FuxiCTR users.",
        epilog=f"{PROG} COMMAND --help says what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    found = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        found.add_parser(name, help=command.description, add_help=False)
    name = parser.parse_args(sys.argv[1:2]).command
    return commands.main(name, commands.Home.installed(), sys.argv[2:], f"{PROG} {name}")


def entry_point() -> None:
    """What pip installs as `mm-fibinet`."""
    run_cli(main)


if __name__ == "__main__":
    entry_point()

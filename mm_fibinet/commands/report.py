"""Is an item embedding any good? The command line of `mm_fibinet.items.report`."""

import argparse

from mm_fibinet.commands import Home
from mm_fibinet.items.report import command


def run(args: argparse.Namespace, _: Home) -> None:
    """Write the page, and print its figures."""
    command.run(args)

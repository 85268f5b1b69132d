"""Is the data as the file contract wants it? The command line of `mm_fibinet.data_check`."""

import argparse

from mm_fibinet import data_check
from mm_fibinet.commands import Home


def run(args: argparse.Namespace, _: Home) -> int:
    """Print the table of the check; exit code 2 when something is wrong."""
    return data_check.report(args)

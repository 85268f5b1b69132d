"""`python -m mm_fibinet.items.report`: the command line of the report."""

import argparse

from mm_fibinet.errors import run_cli
from mm_fibinet.options import add_report_arguments


def main() -> None:
    """Parse, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m mm_fibinet.items.report", description="Say how good item embeddings are, on one HTML page."
    )
    add_report_arguments(parser)
    args = parser.parse_args()
    from mm_fibinet.items.report.command import run  # which help does without

    run(args)


if __name__ == "__main__":
    run_cli(main)

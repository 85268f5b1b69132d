"""A folder of wheels to install from without the internet: this project, and what of its needs is not here yet.

    python -m mm_fibinet.wheelhouse --output wheelhouse

Run in a clone, in the place that will be offline while it is still online (a Kaggle notebook, say) or in a copy of it:
what is installed there, torch first of all, is not packed. There, later:

    pip install --no-index --find-links wheelhouse "mm-fibinet[encoders]"
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mm_fibinet.errors import UserError, printable, run_cli

CLONE = Path(__file__).resolve().parent.parent
OURS = "mm-fibinet"


def pack(output: Path, extras: str) -> list[Path]:
    """Write the wheels.

    Args:
        output: the folder; what is there stays.
        extras: of pyproject.toml, separated by commas.

    Returns:
        the wheels in the folder.

    Raises:
        UserError: pip found no way, and has said why; or this is no clone.
    """
    if not (CLONE / "pyproject.toml").is_file():
        raise UserError(f"{CLONE}: no pyproject.toml there; run this in a clone of the repository")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        _pip("install", "--dry-run", "--report", str(report), f"{CLONE}[{extras}]")
        needed = missing(json.loads(report.read_text(encoding="utf-8")))
    _pip("wheel", "--no-deps", "--wheel-dir", str(output), str(CLONE), *needed)
    return sorted(output.glob("*.whl"))


def missing(report: dict) -> list[str]:
    """The requirements of an installation that pip planned, but for this project: `name==version` each.

    Args:
        report: of `pip install --dry-run --report`.
    """
    planned = [entry["metadata"] for entry in report["install"]]
    return [f"{entry['name']}=={entry['version']}" for entry in planned if entry["name"] != OURS]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet"]
    if subprocess.run(command).returncode:
        raise UserError(f"pip {arguments[0]} failed; what it says is above")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mm_fibinet.wheelhouse", description="Pack what is not installed here, to install it offline."
    )
    parser.add_argument("--output", type=Path, default=Path("wheelhouse"), help="folder (default: %(default)s)")
    parser.add_argument("--extras", default="encoders", help="separated by commas (default: %(default)s)")
    args = parser.parse_args()
    wheels = pack(args.output, args.extras)
    print(
        printable(f"{args.output}: {len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:,.0f} MB")
    )
    print(printable(f'install   pip install --no-index --find-links {args.output} "{OURS}[{args.extras}]"'))


if __name__ == "__main__":
    run_cli(main)

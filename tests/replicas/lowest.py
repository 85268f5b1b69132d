"""Resolve the lowest releases that pyproject.toml admits, and see that they are those that server.txt pins.

    python tests/replicas/lowest.py

uv resolves what the library and all extras require, each direct requirement at its lowest, for Python 3.10 on Linux. A
release that cannot be installed beside the others, or that the replica does not try, ends it with exit code 1.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from mm_fibinet.extras import EXTRAS  # noqa: E402 (of this clone)

PIN = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.]+)")


def pins(text: str) -> dict[str, str]:
    """{package: version} of a file of requirements."""
    found = (PIN.match(line) for line in text.splitlines())
    return {re.sub(r"[-_.]+", "-", each[1]).lower(): each[2] for each in found if each}


def resolved(uv: str) -> dict[str, str]:
    """{package: version} of all that would be installed."""
    command = [uv, "pip", "compile", "pyproject.toml", "--resolution", "lowest-direct", "--python-version", "3.10"]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--no-annotate", "--no-header"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"uv finds no releases that fit: {done.stderr}")
    return pins(done.stdout)


def main() -> None:
    """Print what is lowest, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uv", default="uv", help="the command (default: %(default)s)")
    args = parser.parse_args()
    lowest, tried = resolved(args.uv), pins((HERE / "server.txt").read_text(encoding="utf-8"))
    stated = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("dev = [")[0]
    direct = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r'"([\w.-]+)(?:\[\w+\])?[=>]=', stated)}
    for name in sorted(direct & lowest.keys()):
        print(f"{name:<36} {lowest[name]:<10} server.txt: {tried.get(name, '-')}")
    print(f"{len(lowest)} packages fit each other")
    other = {name: (lowest[name], tried[name]) for name in direct & lowest.keys() & tried.keys()}
    other = {name: both for name, both in other.items() if both[0] != both[1]}
    if other:
        sys.exit(f"server.txt pins others than the lowest: {other}")


if __name__ == "__main__":
    main()

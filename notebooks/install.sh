#!/usr/bin/env bash
# Installs this project into a notebook's Python and replaces nothing of the image: torch above all is built for its GPUs.
#
#   bash notebooks/install.sh [FOLDER]     FOLDER is searched for a wheelhouse (default: /kaggle/input)
#
# With a wheelhouse (a folder of wheels, fuxictr's among them) nothing is asked of the network.
set -euo pipefail
python=${PYTHON:-python}
input=${1:-/kaggle/input}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if $python -c 'import mm_fibinet' 2>/dev/null; then
    echo "mm_fibinet is installed"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$source" "$work/source" # building writes beside the sources, and attached copies are read-only
chmod -R u+w "$work/source"
$python -m pip list --format=freeze --disable-pip-version-check >"$work/image.txt"
options=(--quiet --disable-pip-version-check --no-build-isolation --constraint "$work/image.txt")
wheel=$(find "$input" -name 'fuxictr-*.whl' -print -quit 2>/dev/null || true)
if [ -n "$wheel" ]; then
    options+=(--no-index --find-links "$(dirname "$wheel")")
    echo "installing from $(dirname "$wheel"), without the network"
fi
$python -m pip install "${options[@]}" "$work/source[encoders,rar]"
$python -c 'import mm_fibinet, torch; print("mm_fibinet", mm_fibinet.__version__, "with torch", torch.__version__)'

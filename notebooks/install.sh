#!/usr/bin/env bash
# Installs this project into a notebook's Python and replaces nothing of the image: torch above all is built for its GPUs.
#
#   bash notebooks/install.sh [FOLDER]
#
# FOLDER (default: /kaggle/input) is searched for a wheelhouse, as `python -m mm_fibinet.wheelhouse` makes one: with it,
# nothing is asked of the network.
set -euo pipefail
python=${PYTHON:-python}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if $python -c 'import mm_fibinet' 2>/dev/null; then
    echo "mm_fibinet is installed"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What builds packages may be renewed; whatever a package in use may import stays as it is.
$python -m pip list --format=freeze --disable-pip-version-check | grep -Ev '^(pip|setuptools|wheel)==' >"$work/image.txt"
options=(--quiet --disable-pip-version-check --constraint "$work/image.txt")

ours=$(find "${1:-/kaggle/input}" -name 'mm_fibinet-*.whl' -print -quit 2>/dev/null || true)
if [ -n "$ours" ]; then
    wheels=$(dirname "$ours")
    extras=encoders$(compgen -G "$wheels/libarchive_c-*.whl" >/dev/null && echo ,rar || true)
    echo "installing from $wheels, without the network"
    $python -m pip install "${options[@]}" --no-index --find-links "$wheels" "mm-fibinet[$extras]"
else
    cp -r "$source" "$work/source" # building writes beside the sources, and attached copies are read-only
    chmod -R u+w "$work/source"
    $python -m pip install "${options[@]}" "$work/source[encoders,rar]"
fi
$python -c 'import mm_fibinet, torch; print("mm_fibinet", mm_fibinet.__version__, "with torch", torch.__version__)'

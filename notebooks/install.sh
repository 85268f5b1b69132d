#!/usr/bin/env bash
# Installs this project into a notebook's Python and replaces nothing of the image: torch above all is built for its GPUs.
#
#   bash notebooks/install.sh [FOLDER]          FOLDER is searched for a wheelhouse (default: /kaggle/input)
#   bash notebooks/install.sh --wheels FOLDER   installs nothing: fetches a wheelhouse, what the image lacks, into FOLDER
#
# With a wheelhouse (a folder of wheels, fuxictr's among them) nothing is asked of the network.
set -euo pipefail
python=${PYTHON:-python}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ "${1:-}" = --wheels ]; then wheels=$2 input=; else wheels= input=${1:-/kaggle/input}; fi

if [ -n "$input" ] && $python -c 'import mm_fibinet' 2>/dev/null; then
    echo "mm_fibinet is installed"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$source" "$work/source" # building writes beside the sources, and attached copies are read-only
chmod -R u+w "$work/source"
# What builds packages may be renewed; whatever a package in use may import stays as it is.
$python -m pip list --format=freeze --disable-pip-version-check | grep -Ev '^(pip|setuptools|wheel)==' >"$work/image.txt"
options=(--quiet --disable-pip-version-check --constraint "$work/image.txt" "$work/source[encoders,rar]")

if [ -n "$wheels" ]; then
    $python -m pip install --dry-run --report "$work/report.json" "${options[@]}"
    lacking=$($python - "$work/report.json" <<'END'
import json, sys

found = [entry["metadata"] for entry in json.load(open(sys.argv[1]))["install"]]
print(*(f"{each['name']}=={each['version']}" for each in found if each["name"] != "mm-fibinet"))
END
    )
    $python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" setuptools $lacking
    echo "in $wheels: $(ls "$wheels" | wc -l) wheels, $(du -sh "$wheels" | cut -f1)"
    exit 0
fi
wheel=$(find "$input" -name 'fuxictr-*.whl' -print -quit 2>/dev/null || true)
if [ -n "$wheel" ]; then
    options+=(--no-index --find-links "$(dirname "$wheel")")
    echo "installing from $(dirname "$wheel"), without the network"
fi
$python -m pip install "${options[@]}"
$python -c 'import mm_fibinet, torch; print("mm_fibinet", mm_fibinet.__version__, "with torch", torch.__version__)'

#!/usr/bin/env bash
# Builds the sdist, installs it into a clean environment outside of the checkout, and
# runs the demo there.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${LIGHTNING_VENV:-.venv}")/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q build
"$work/build/bin/python" -m build --sdist --outdir "$work" . > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$python" -m venv "$work/clean"
"$work/clean/bin/pip" install -q --no-binary bittensor-lightning "$work"/bittensor_lightning-*.tar.gz
cp examples/demo.py "$work"
cd "$work"
clean/bin/python -W error demo.py

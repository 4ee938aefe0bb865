#!/usr/bin/env bash
# Runs the peer's own Python tests against Lightning: `btlightning` is made an alias of
# `lightning`. The tests come from the peer's source distribution and are not kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${LIGHTNING_VENV:-.venv}")/bin/python
version=0.2.15
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip download -q --disable-pip-version-check --no-deps \
    --no-binary btlightning "btlightning==$version" -d "$work"
tar -xzf "$work"/btlightning-*.tar.gz -C "$work"
tests=$(dirname "$(find "$work" -name test_roundtrip.py -print -quit)")

mkdir "$work/alias"
cat > "$work/alias/btlightning.py" <<'PYTHON'
"""The peer's name for this package."""

import sys

import lightning

sys.modules["btlightning"] = lightning
PYTHON
echo "The peer's $version tests, on Lightning:"
cd "$tests"
PYTHONPATH="$work/alias" "$python" -W error -m pytest -q -c /dev/null --rootdir "$tests" \
    -p no:cacheprovider -p no:asyncio .

#!/usr/bin/env bash
# Runs the peer's own Python tests against Lightning: `btlightning` is made an alias of
# `lightning`. The tests come from the peer's source distribution and are not kept.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${LIGHTNING_VENV:-.venv}")/bin/python
version=0.2.15
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pip asks the sdist's build backend for its name and version; this one stands in, so
# that no Rust is needed to look at Python files.
mkdir "$work/backend"
cat > "$work/backend/maturin.py" <<PYTHON
from pathlib import Path


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = Path(directory, "btlightning-$version.dist-info")
    info.mkdir()
    text = "Metadata-Version: 2.1\nName: btlightning\nVersion: $version\n"
    info.joinpath("METADATA").write_text(text)
    return info.name
PYTHON
PYTHONPATH="$work/backend" "$python" -m pip download -q --disable-pip-version-check \
    --no-deps --no-build-isolation --no-binary btlightning "btlightning==$version" -d "$work"
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

#!/usr/bin/env bash
# Builds a copy of the tree in build/NAME with other switches, so that the extensions in
# place stay as they are, and runs a command there. Usage: variant.sh NAME COMMAND...
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
PY=$(realpath -s "${LIGHTNING_VENV:-.venv}")/bin/python
export PY
mkdir -p "build/$name"
# Only what changed is copied, so that only that is built again.
git ls-files -z --cached --others --exclude-standard |
    xargs -0 "$PY" tools/copy_changed.py "build/$name"
# The tests of interop look for the peer beside the checkout.
cd "build/$name"
"$PY" setup.py -q build_ext --inplace -j 2
exec "$@"

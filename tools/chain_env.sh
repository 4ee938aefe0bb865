#!/usr/bin/env bash
# Makes build/chain-venv: substrate-interface, beside what the tests' environment has.
# It cannot be in that one: its scalecodec and bittensor 10's cyscale are one module.
# Run again, it does only what changed.
set -euo pipefail
cd "$(dirname "$0")/.."

base=${LIGHTNING_VENV:-.venv}
venv=${LIGHTNING_CHAIN_VENV:-build/chain-venv}
pinned="substrate-interface==1.8.1 scalecodec==1.2.12 websocket-client==1.9.2"

wanted=$({ echo "$pinned"; "$base/bin/python" -c 'import sys; print(sys.version)'; } | sha256sum)
if [ "$(cat "$venv/.wanted" 2>/dev/null)" != "$wanted" ]; then
    "$base/bin/python" -m venv --clear "$venv"
    # shellcheck disable=SC2086 # a list of names
    "$venv/bin/python" -m pip install -q --disable-pip-version-check $pinned
    echo "$wanted" > "$venv/.wanted"
fi

# The checkout first, then what the tests need and this environment has not.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
others=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n%s\n' "$PWD" "$(realpath "$others")" > "$site/lightning-checkout.pth"

#!/usr/bin/env bash
# Makes .venv with the package built in place; run again, it does only what changed.
# Missing system packages are installed when this is root on Debian or Ubuntu, and
# otherwise named in one line to paste.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${LIGHTNING_VENV:-.venv}

find_python() {
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do
        command -v "$name" >/dev/null || continue
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

missing_packages() {
    local python=$1
    command -v cc >/dev/null && command -v c++ >/dev/null || echo build-essential
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists libcrypto 2>/dev/null || echo libssl-dev
    if [ -z "$python" ]; then
        echo python3-dev python3-venv
        return
    fi
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        echo "python$version-dev"
    "$python" -c 'import ensurepip' 2>/dev/null || echo "python$version-venv"
}

python=$(find_python)
packages=$(missing_packages "$python" | tr '\n' ' ')
if [ -n "${packages// /}" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing: $packages"
        apt-get update -qq
        # shellcheck disable=SC2086 # a list of names
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
        python=$(find_python)
    else
        echo "Some system packages are missing. Install them with:" >&2
        echo "  sudo apt-get install -y $packages" >&2
        exit 1
    fi
fi
if [ -z "$python" ]; then
    echo "Lightning needs Python 3.11 to 3.14; set PYTHON to the one to use." >&2
    exit 1
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# The stamp holds what the environment was made from.
wanted=$({ cat pyproject.toml; echo "$*"; } | sha256sum)
if [ "$(cat "$venv/.wanted" 2>/dev/null)" != "$wanted" ]; then
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -U "pip>=25.1" "setuptools>=77" "cython==3.3.1"
    groups=()
    for group in "$@"; do groups+=(--group "$group"); done
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${groups[@]}" -r <(
        "$venv/bin/python" -c 'import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"]))'
    )
    # The peer takes part in the tests: its wheel where this machine can run it,
    # else its source distribution, if pip finds a way.
    wheel=$(ls ../shared/wheels/btlightning-*.whl 2>/dev/null | head -n 1 || true)
    if [[ " $* " == *" test "* || " $* " == *" dev "* ]]; then
        if [ -n "$wheel" ] && "$venv/bin/python" -m pip install -q --disable-pip-version-check "$wheel" 2>/dev/null; then
            :
        elif [ "${LIGHTNING_PEER:-}" = 1 ]; then
            "$venv/bin/python" -m pip install -q --disable-pip-version-check btlightning==0.2.15
        fi
    fi
    echo "$wanted" > "$venv/.wanted"
fi

# Build the extensions beside their sources, and put the checkout on the path.
"$venv/bin/python" setup.py -q build_ext --inplace -j 2 2>&1 | grep -vE '^(performance hint|Compiling|\[[0-9/]+\])' || [ "${PIPESTATUS[0]}" = 0 ]
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pwd > "$site/lightning-checkout.pth"

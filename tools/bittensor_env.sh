#!/usr/bin/env bash
# Makes environments that have bittensor and this checkout, for the tests that run the
# same calls through both; prints their directories. Run again, it does only what changed.
#
#   .venv-bittensor    10.5.0, the last with a dendrite and an axon; another place by
#                      LIGHTNING_BITTENSOR_VENV
#   .venv-bittensor11  11.3.0, for its wallets and keys; another by LIGHTNING_BITTENSOR11_VENV
#
# With arguments, only those: tools/bittensor_env.sh 10
set -euo pipefail
cd "$(dirname "$0")/.."

# The extensions are built for this Python, so the environments have the same.
python=$("${LIGHTNING_VENV:-.venv}/bin/python" -c 'import sys; print(sys._base_executable)')

make_environment() {
    local venv=$1 bittensor=$2 wanted site
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # The stamp holds what the environment was made from.
    wanted=$({ cat pyproject.toml; echo "$bittensor"; } | sha256sum)
    if [ "$(cat "$venv/.wanted" 2>/dev/null)" != "$wanted" ]; then
        "$venv/bin/python" -m pip install -q --disable-pip-version-check \
            "bittensor==$bittensor" -r <("$python" - <<'PYTHON'
import tomllib

told = tomllib.load(open("pyproject.toml", "rb"))
needed = ("aiohttp", "hypothesis", "msgpack", "numpy", "pytest", "pytest-asyncio", "pytest-timeout")
print("\n".join(told["project"]["dependencies"]))
for line in told["dependency-groups"]["test"]:
    if line.partition("==")[0].partition(">=")[0] in needed:
        print(line)
PYTHON
            ) >&2
        echo "$wanted" > "$venv/.wanted"
    fi
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pwd > "$site/lightning-checkout.pth"
    echo "$venv"
}

for version in "${@:-10 11}"; do
    for one in $version; do
        case $one in
            10) make_environment "${LIGHTNING_BITTENSOR_VENV:-.venv-bittensor}" 10.5.0 ;;
            11) make_environment "${LIGHTNING_BITTENSOR11_VENV:-.venv-bittensor11}" 11.3.0 ;;
            *) echo "bittensor_env.sh: there is no environment $one" >&2; exit 2 ;;
        esac
    done
done

#!/usr/bin/env bash
# The test suite with every extension under AddressSanitizer and
# UndefinedBehaviorSanitizer. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export LIGHTNING_SANITIZE=1
exec tools/variant.sh sanitize bash -c '
    # CPython itself leaks at exit; its allocator would hide overruns.
    export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    export PYTHONMALLOC=malloc
    export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
    exec "$PY" -m pytest -q -p no:cacheprovider --timeout 300 -m "not interop and not soak and not fuzz" "$@"
' sanitize "$@"

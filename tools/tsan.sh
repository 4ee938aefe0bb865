#!/usr/bin/env bash
# The tests of threads with every extension under ThreadSanitizer. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export LIGHTNING_TSAN=1
if [ $# -eq 0 ]; then
    set -- tests/unit/quic/test_threads.py \
        tests/unit/test_driver.py::test_an_owner_and_the_thread_take_turns \
        tests/unit/test_turns.py tests/unit/test_desk.py tests/unit/test_inbox.py
fi
exec tools/variant.sh tsan bash -c '
    # The interpreter is not instrumented, so what is reported is ours; the C library
    # recycles the memory of threads that ended in its own way.
    printf "race:_dl_deallocate_tls\n" > tsan.supp
    export TSAN_OPTIONS="suppressions=$PWD/tsan.supp:halt_on_error=0:exitcode=66:history_size=4:second_deadlock_stack=1:log_path=$PWD/tsan.log"
    export LIGHTNING_STRESS_SECONDS="${LIGHTNING_STRESS_SECONDS:-60}"
    rm -f tsan.log.*
    status=0
    # ThreadSanitizer cannot place its shadow memory if the layout is too random.
    LD_PRELOAD="$(gcc -print-file-name=libtsan.so)" setarch -R "$PY" -m pytest -q \
        -p no:cacheprovider --timeout 900 "$@" || status=$?
    cat tsan.log.* 2>/dev/null || true
    exit $status
' tsan "$@"

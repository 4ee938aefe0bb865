#!/usr/bin/env bash
# Fuzzes one target of tests/fuzz for some time, guided by the coverage of the compiled
# code, under AddressSanitizer. What is found is left in build/fuzz, and the command
# fails. With KEEP=1 the corpus is minimised at the end and replaces the kept one; with
# BUILD=0 the build of the last time is used. Usage: fuzz.sh TARGET [SECONDS].
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?one of the modules in tests/fuzz with a function check}
seconds=${2:-600}
top=$PWD
kept=$top/tests/fuzz/corpus/$target.zip
command -v clang >/dev/null || {
    echo "clang was not found; on Debian: apt-get install -y clang libclang-rt-14-dev" >&2
    exit 1
}
PY=$(realpath -s "${LIGHTNING_VENV:-.venv}")/bin/python
atheris=$top/build/atheris
[ -d "$atheris" ] || "$PY" -m pip install -q --no-deps --target "$atheris" atheris==3.0.0

if [ "${BUILD:-1}" = 1 ]; then
    LIGHTNING_FUZZ=1 tools/variant.sh fuzz true
fi
cd build/fuzz
found=found/$target
corpus=grown/$target
mkdir -p "$found" "$corpus"
# libFuzzer looks for a mutator among what is loaded when it is.
preload="$atheris/asan_with_fuzzer.so $(ls "$atheris"/atheris/custom_mutator.*.so)"
# CPython itself leaks at exit; its allocator would hide overruns.
py() {
    PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$atheris \
        LD_PRELOAD=$preload "$PY" -m "$@"
}
run() {
    py tests.fuzz.run "$target" -timeout=20 -rss_limit_mb=3000 \
        -artifact_prefix="$found/" -max_len=4096 "$@"
}
py tests.fuzz.corpus unpack "$target" "$corpus"
run -max_total_time="$seconds" -print_final_stats=1 "$corpus"
if [ "${KEEP:-0}" = 1 ]; then
    rm -rf "small/$target"
    mkdir -p "small/$target"
    run -merge=1 "small/$target" "$corpus"
    py tests.fuzz.corpus pack "$target" "small/$target"
    cp "tests/fuzz/corpus/$target.zip" "$kept"
fi

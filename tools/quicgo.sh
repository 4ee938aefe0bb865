#!/usr/bin/env bash
# Builds quic-go's end of the interop tests; prints where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$PWD/build/quicgo/quicgo
cd tests/interop/quicgo
go build -mod=readonly -o "$program" . >&2
echo "$program"

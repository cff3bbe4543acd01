#!/usr/bin/env bash
# Fuzzes what reads bytes from strangers (src/lib.rs says what) with libFuzzer, on a stable toolchain.
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# SECONDS is the time for each target, 30 if not said. The targets begin with corpus/ and with what earlier runs grew
# from it under ${XDG_CACHE_HOME:-~/.cache}/thermocline, where the build is kept as well. An input that fails is named;
# once the fault is mended, the input goes into corpus/<target>/ as found-<what it was>, where `cargo test` replays it.
set -euo pipefail
cd "$(dirname "$0")"
. ../installed.sh

seconds=${1:-30}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(frame request batch coordinator)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/thermocline"
# Seconds for one input, and MiB for the process: an input takes far less than either.
input_seconds=10
memory_mib=1024

installed c++ g++

# Coverage as libFuzzer counts it. Build scripts are not to have it, hence --target.
coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4)
coverage+=(-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table)
coverage+=(-Cllvm-args=-sanitizer-coverage-trace-compares)
host=$(rustc -vV | sed -n 's/^host: //p')
# The versions that are shipped; cargo adds the fuzzer's own.
cp ../../Cargo.lock Cargo.lock
CARGO_TARGET_DIR="$cache/target-fuzz" RUSTFLAGS="${coverage[*]}" cargo build --quiet --bins --target "$host"

mkdir -p "$cache/fuzz-failures"
for target in "${targets[@]}"; do
    echo "== $target"
    grown="$cache/fuzz-corpus/$target"
    mkdir -p "$grown"
    # Errors of the decoders would each carry a backtrace.
    RUST_LIB_BACKTRACE=0 "$cache/target-fuzz/$host/debug/$target" \
        -max_total_time="$seconds" -timeout=$input_seconds -rss_limit_mb=$memory_mib \
        -print_final_stats=1 -artifact_prefix="$cache/fuzz-failures/$target-" \
        "$grown" "corpus/$target" >"$cache/fuzz-failures/$target.log" 2>&1 || {
        tail -n 100 "$cache/fuzz-failures/$target.log"
        exit 1
    }
    grep '^stat::' "$cache/fuzz-failures/$target.log"
done

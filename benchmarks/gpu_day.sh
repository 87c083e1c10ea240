#!/usr/bin/env bash
# Measure everything that docs/performance.md reports about one GPU, with random weights at full size.
#
#     benchmarks/gpu_day.sh                        # results in build/gpu-day, at most 8 minutes
#     benchmarks/gpu_day.sh --output DIR --seconds 480 --only card,sd3.5-tdm
#     benchmarks/gpu_day.sh --toy                  # on a CPU: tiny networks, to test the script (chosen without a GPU)
#
# Each part has its own time limit and writes DIR/PART.json. The same command again skips finished parts and measures
# what is missing of the others, so that two calls complete what one call has no time for. A part that fails, or for
# which no time is left, is named, and the exit code is 1. At the end the tables are printed, and written to
# DIR/tables.md. PYTHON is the interpreter (default: .venv/bin/python, else python3).
set -u
cd "$(dirname "$0")/.."
OUTPUT=build/gpu-day SECONDS_IN_TOTAL=480 ONLY="" TOY=""
while [ $# -gt 0 ]; do
    case "$1" in
        --output) OUTPUT=$2; shift 2 ;;
        --seconds) SECONDS_IN_TOTAL=$2; shift 2 ;;
        --only) ONLY=$2; shift 2 ;;
        --toy) TOY=--toy; shift ;;
        *) echo "usage: $0 [--output DIR] [--seconds N] [--only PART,PART] [--toy]" >&2; exit 2 ;;
    esac
done
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
if [ -z "$TOY" ] && ! nvidia-smi -L >/dev/null 2>&1; then
    echo "no GPU here: tiny networks on the CPU, to test the script (--toy)" >&2
    TOY=--toy
fi
mkdir -p "$OUTPUT"
OUTPUT=$(cd "$OUTPUT" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR="$OUTPUT/inductor"   # a second call does not compile again what is compiled
[ -n "$TOY" ] && export TORCH_COMPILE_DISABLE=1
MISSING=""

# The seconds of the whole script that are left.
left() { echo $((SECONDS_IN_TOTAL - SECONDS)); }

wanted() { [ -z "$ONLY" ] || case ",$ONLY," in *",$1,"*) true ;; *) false ;; esac; }

finished() { grep -qs '"finished": true' "$OUTPUT/$1.json"; }

# run PART LIMIT: measure a part, with a time limit in seconds.
run() {
    local part=$1 limit=$2
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    echo "== $part (at most $limit s)" >&2
    local began=$SECONDS code=0
    timeout -k 5 "$limit" "$PYTHON" benchmarks/gpu_day.py "$part" --output "$OUTPUT" $TOY \
        >"$OUTPUT/$part.log" 2>&1 || code=$?
    echo "== $part: $((SECONDS - began)) s, exit code $code" >&2
    [ "$code" -eq 0 ] || tail -n 3 "$OUTPUT/$part.log" >&2
    return "$code"
}

# parts PART:LIMIT …: measure parts at the same time, and skip those that are finished or not wanted.
parts() {
    local waiting="" each part pid
    for each in "$@"; do
        part=${each%:*}
        wanted "$part" || continue
        if finished "$part"; then echo "== $part is finished" >&2; continue; fi
        if [ "$(left)" -lt 10 ]; then MISSING="$MISSING $part"; echo "== $part: no time left" >&2; continue; fi
        run "$part" "${each#*:}" &
        waiting="$waiting $part:$!"
    done
    for each in $waiting; do
        part=${each%:*} pid=${each#*:}
        wait "$pid" || MISSING="$MISSING $part"
    done
}

# The most valuable parts come first. Parts in one line are not timed against each other.
parts card:60
parts sd3.5-tdm:130
parts z-image-turbo:110
parts flux2-klein-4b:90
parts paired:60
parts tests:150 precision:150
parts quantized:90
parts compile:240
"$PYTHON" benchmarks/gpu_day_tables.py "$OUTPUT" | tee "$OUTPUT/tables.md" || MISSING="$MISSING tables"
if [ -n "$MISSING" ]; then
    echo "not complete:$MISSING (logs in $OUTPUT; the same command continues)" >&2
    exit 1
fi

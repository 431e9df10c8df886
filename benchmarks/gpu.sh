#!/usr/bin/env bash
# Measures on the first CUDA device what docs/benchmarks.md lacks for want of one, and writes a JSON
# file for each part into a folder:
#   bash benchmarks/gpu.sh OUT [SECONDS]
# A part whose file is there already is left out, so that a run that was cut off goes on, and a part
# that fails doesn't keep the others from running. SECONDS (60) is the time of each comparison; the
# whole takes about 30 minutes. PYTHON names the interpreter (.venv/bin/python where there is one).
set -uo pipefail
if [ $# -lt 1 ]; then
    echo "usage: bash benchmarks/gpu.sh OUT [SECONDS]" >&2
    exit 2
fi
mkdir -p "$1" || exit 1
out=$(cd "$1" && pwd)
seconds=${2:-60}
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
failed=0

# measure NAME OPTION...: one `liquid bench` into OUT/NAME.json, whole or not at all.
measure() {
    local file=$out/$1.json
    shift
    if [ -s "$file" ]; then
        echo "gpu: $file is there already" >&2
        return
    fi
    echo "gpu: $file" >&2
    if PYTHONPATH=src "$python" -m liquidmm bench "$@" --device cuda --seconds "$seconds" --json \
        >"$file.part"; then
        mv "$file.part" "$file"
        echo "$file"
    else
        rm -f "$file.part"
        failed=1
    fi
}

measure train-loss train --only loss --timed-tokens 8192
measure train-135m train --only sizes --sizes 135m
measure train-1b train --only sizes --sizes 1b
measure train-7b train --only sizes --sizes 7b
measure data-encoding data --only encoding --precisions float32,tf32,bfloat16
# Each side of a comparison holds the weights: four times those of the 7b shape are 54 GB.
measure generate-135m generate --only speed --models 135m --batches 1,64 --codes 256
measure generate-1b generate --only speed --models 1b --batches 1,64 --codes 256
measure generate-7b generate --only speed --models 7b --batches 1,16 --codes 64
measure generate-7b-64 generate --only speed --models 7b --batches 64 --codes 64
measure generate-default generate --only speed,memory --models default --batches 1,64
if [ -d data/shards ]; then
    measure train-icons train --only efficiency,speed
else
    echo "gpu: data/shards isn't here, so the default model's training isn't compared" >&2
fi
exit "$failed"

#!/usr/bin/env bash
# Runs the GPU benchmarks in parts of at most 8 minutes, the most telling ones first:
#   bash benchmarks/gpu.sh              all parts
#   bash benchmarks/gpu.sh PART...      some of them
#   bash benchmarks/gpu.sh --list       the parts and their expected time
# Each part writes OUT/PART.json (OUT is an environment variable, outputs/gpu by default). A part whose
# file exists is skipped, so the same command resumes an interrupted run. A part that fails or takes
# longer than 8 minutes does not stop the others; what it measured is kept in OUT/PART.partial.json.
# Each part compares its results with float32 and reports that together with the speed.
#
# Needs one CUDA device, Python 3.11 or later, PyTorch and transformers; no network. PYTHON names the
# interpreter (.venv/bin/python if it exists, else python3). Packages on PYTHONPATH are found as well.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

# NAME | expected minutes | what it measures | script and options
parts() {
    cat <<'PARTS'
train-135m | 6 | training of a 135M model: tokens/s, MFU, memory, against Trainer | train.py --only sizes --sizes 135m --seconds 40
generate-135m | 4 | generation with a 135M model, batch sizes 1 and 64 | generate.py --only speed --models 135m --batches 1,64 --codes 256 --seconds 30
encode | 4 | encoding of images in float32, tf32 and bfloat16 | data.py --only encoding --precisions float32,tf32,bfloat16 --seconds 40
train-1b | 5 | training of a 1B model: tokens/s, MFU, memory | train.py --only sizes --sizes 1b --seconds 60
generate-1b | 5 | generation with a 1B model, batch sizes 1 and 64 | generate.py --only speed --models 1b --batches 1,64 --codes 256 --seconds 30
loss | 2 | the loss over 264,192 rows: time and memory | train.py --only loss --timed-tokens 8192 --seconds 30
generate-7b | 6 | generation with a 7B model, batch sizes 1 and 16 (54 GB) | generate.py --only speed --models 7b --batches 1,16 --codes 64 --seconds 30
generate-default | 4 | generation with the included model, and memory | generate.py --only speed,memory --models default --batches 1,64 --seconds 20
train-7b | 6 | training of a 7B model (needs more than 110 GB) | train.py --only sizes --sizes 7b --seconds 60
generate-7b-64 | 5 | generation with a 7B model, batch size 64 | generate.py --only speed --models 7b --batches 64 --codes 64 --seconds 30
train-icons | 6 | training of the included model on data/shards (make icons) | train.py --only efficiency,speed --seconds 60
PARTS
}

field() { # PART NUMBER: a field of a part, without spaces around it
    parts | awk -F' [|] ' -v part="$1" -v number="$2" '$1 == part { print $number }'
}

names=$(parts | awk -F' [|] ' '{ print $1 }')
if [ "${1:-}" = --list ]; then
    parts | awk -F' [|] ' '{ printf "%-17s %s min  %s\n", $1, $2, $3 }'
    exit 0
fi
for part in "$@"; do
    if [ -z "$(field "$part" 1)" ]; then
        echo "gpu.sh: unknown part '$part'. Choose from: $(echo $names)" >&2
        exit 2
    fi
done

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu.sh: no CUDA device, or $python has no PyTorch; nothing was measured." >&2
    exit 1
fi
if ! "$python" -c 'import annotated_types' 2>/dev/null; then
    export PYTHONPATH="benchmarks/stand_ins:$PYTHONPATH"
fi
out=${OUT:-outputs/gpu}
mkdir -p "$out" || exit 1

failed=0
for part in ${*:-$names}; do
    file=$out/$part.json
    if [ -s "$file" ]; then
        echo "gpu.sh: $part: $file exists, skipped" >&2
        continue
    fi
    if [ "$part" = train-icons ] && ! [ -d data/shards ]; then
        echo "gpu.sh: $part: data/shards does not exist, skipped" >&2
        continue
    fi
    echo "gpu.sh: $part, about $(field "$part" 2) minutes" >&2
    read -r script options <<<"$(field "$part" 4)"
    # shellcheck disable=SC2086 - the options are separate words
    if timeout -k 20 460 "$python" "benchmarks/$script" $options --device cuda --json >"$file.new"; then
        mv "$file.new" "$file"
        rm -f "$out/$part.partial.json"
        echo "$file"
    else
        echo "gpu.sh: $part failed or took longer than 8 minutes" >&2
        failed=1
        if [ -s "$file.new" ]; then
            mv "$file.new" "$out/$part.partial.json"
        else
            rm -f "$file.new"
        fi
    fi
done
exit "$failed"

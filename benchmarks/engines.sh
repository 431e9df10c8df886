#!/usr/bin/env bash
# Compares what other engines make of an exported checkpoint with transformers and with this package,
# and prints one table:
#   bash benchmarks/engines.sh OUT
# VLLM_PYTHON and LLAMA_PYTHON name the interpreters of environments that hold vLLM and this package,
# and llama-cpp-python; docs/engines.md says how to make them. An engine without one is left out, and
# so is a part whose result is in OUT already. PYTHON is this package's own (.venv/bin/python).
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: bash benchmarks/engines.sh OUT" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
scripts=benchmarks/engines

if ! [ -s "$out/reference.json" ]; then
    echo "engines: reference" >&2
    PYTHONPATH=src "$python" "$scripts/reference.py" "$out"
fi
if [ -n "${LLAMA_PYTHON:-}" ] && ! [ -s "$out/llama.json" ]; then
    echo "engines: llama.cpp" >&2
    "$LLAMA_PYTHON" "$scripts/on_llama.py" "$out"
fi
if [ -n "${VLLM_PYTHON:-}" ]; then
    for part in newer_runner in_process own_scheduler http; do
        if ! grep -qs "\"$part\"" "$out/vllm.json"; then
            echo "engines: vLLM, $part" >&2
            "$VLLM_PYTHON" "$scripts/on_vllm.py" "$out" "$part"
        fi
    done
fi
"$python" "$scripts/table.py" "$out"

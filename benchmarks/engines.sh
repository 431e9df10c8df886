#!/usr/bin/env bash
# Compares what other engines generate from an exported checkpoint with transformers and this package,
# and prints one table:
#   bash benchmarks/engines.sh OUT
# VLLM_PYTHON and LLAMA_PYTHON are the Python interpreters of environments with vLLM and this package,
# and with llama-cpp-python; docs/benchmarks.md describes how to make them. An engine without one is
# skipped, and so is a part whose result is in OUT already. PYTHON is this package's own interpreter
# (.venv/bin/python).
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
    echo "engines.sh: reference" >&2
    PYTHONPATH=src "$python" "$scripts/reference.py" "$out"
fi
if [ -n "${LLAMA_PYTHON:-}" ] && ! [ -s "$out/llama.json" ]; then
    echo "engines.sh: llama.cpp" >&2
    "$LLAMA_PYTHON" "$scripts/on_llama.py" "$out"
fi
if [ -n "${VLLM_PYTHON:-}" ]; then
    for part in newer_runner in_process own_scheduler http; do
        if ! grep -qs "\"$part\"" "$out/vllm.json"; then
            echo "engines.sh: vLLM, $part" >&2
            "$VLLM_PYTHON" "$scripts/on_vllm.py" "$out" "$part"
        fi
    done
fi
"$python" "$scripts/table.py" "$out"

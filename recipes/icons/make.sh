#!/usr/bin/env bash
# Build the default model from the icon tarballs: about five hours on two cores. Completed steps are
# skipped, interrupted ones are resumed. `make icons` downloads the tarballs first.
set -euo pipefail
cd "$(dirname "$0")/../.."

encode() { # SOURCE NAME [SPLITS]
    # Existing shards are kept; an existing folder may be incomplete.
    liquid encode recipes/icons/encode.toml --set "source.path=$1" \
        --out "data/shards/$2" --set "source.splits=${3:-[\"train\"]}"
}

liquid icons build data -o data

# The folder of the tokenizer exists after its first checkpoint; the expanded base needs the last one.
if [ ! -d runs/icons/base-liquid ]; then
    if [ -e runs/icons/tokenizer/checkpoint.safetensors ]; then
        liquid train-tokenizer recipes/icons/tokenizer.toml --resume
    else
        liquid train-tokenizer recipes/icons/tokenizer.toml
    fi
fi
[ -d runs/icons/base ] || liquid init recipes/icons/base.toml
[ -d runs/icons/base-liquid ] || liquid expand runs/icons/base runs/icons/base-liquid \
    --init codebook --image-tokenizer runs/icons/tokenizer/tokenizer --codebook-size 2048

encode data/icons/records.jsonl icons
encode data/icons/records.jsonl icons-held-out '["held_out_pairs"]'
encode data/scenes/captions.jsonl scenes
encode data/scenes/chat.jsonl scenes-chat
encode data/text/text.jsonl text
encode data/text/text.jsonl text-held-out '["held_out"]'
encode data/text/chat.jsonl text-chat

liquid train recipes/icons/model.toml
liquid train recipes/icons/more.toml
liquid train recipes/icons/answers.toml
liquid train recipes/icons/cooldown.toml
python scripts/choose_sampling.py runs/icons/cooldown/final

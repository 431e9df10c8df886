#!/usr/bin/env bash
# The default model from the icon tarballs to the evaluated checkpoint: about four hours on two cores.
# Every step that was done already is skipped, one that was broken off goes on. `make icons` fetches
# the tarballs first.
set -euo pipefail
cd "$(dirname "$0")/../.."

encode() { # SOURCE NAME [SPLITS]
    # Finished shards are kept; a folder alone does not mean that they are all there.
    liquid encode recipes/icons/encode.toml --set "source.path=$1" \
        --out "data/shards/$2" --set "source.splits=${3:-[\"train\"]}"
}

liquid icons build data -o data

# The tokenizer's folder is there from the first checkpoint on; the expanded base needs the last one.
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
liquid train recipes/icons/settle.toml
python scripts/choose_sampling.py runs/icons/settled/final

#!/usr/bin/env bash
# The main job with the default model: draws, describes, answers and chats; files in outputs/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=outputs/demo
liquid=.venv/bin/liquid
rm -rf "$out"
mkdir -p "$out"

# Shows a command the way a user would type it, runs it, and keeps its output.
show() {
    local word line="liquid"
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./-]*) line+=" \"$word\"" ;;
        *) line+=" $word" ;;
        esac
    done
    printf '\n$ %s\n' "$line"
    "$liquid" "$@" | tee -a "$out/output.txt"
}

# The first three were picked because they come out well; how often others do is in MODEL_CARD.md.
show generate "a kangaroo, twemoji style" -o "$out/kangaroo.png"
show generate "an atom symbol, emojione style" -o "$out/atom.png"
show generate "a video camera, noto style" -o "$out/video-camera.png"
show generate "a whale, twemoji style" -n 4 --grid -o "$out/whale-four-seeds.png"

show describe examples/video-camera.png
show ask examples/scene.png "Is there a dog?"

printf '\n$ liquid chat --out %s\n' "$out"
cat >"$out/chat-input.txt" <<'END'
Hello! Who are you?
/image examples/video-camera.png
What does this picture show?
/generate a kangaroo, twemoji style
END
sed 's/^/> /' "$out/chat-input.txt"
"$liquid" chat --out "$out" <"$out/chat-input.txt" | tee "$out/chat-answers.txt"

printf '\nThe first three prompts were picked because they come out well; MODEL_CARD.md has the success rates.\n'
printf 'The images and the text are in %s/:\n' "$out"
ls -1 "$out"

#!/usr/bin/env bash
# The main job with the default model: draws, describes, answers and chats; files in outputs/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=outputs/demo
liquid=.venv/bin/liquid
rm -rf "$out"
mkdir -p "$out"

# Shows a command the way a user would type it, runs it, and keeps what it says.
show() {
    local word line="liquid"
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./-]*) line+=" \"$word\"" ;;
        *) line+=" $word" ;;
        esac
    done
    printf '\n$ %s\n' "$line"
    "$liquid" "$@" | tee -a "$out/said.txt"
}

show generate "a red apple, noto style" -o "$out/apple.png"
show generate "a sailboat, twemoji style" -o "$out/sailboat.png"
show generate "an octopus, fluent flat style" -o "$out/octopus.png"
show generate "a cactus, noto style" -n 4 --grid -o "$out/cactus-four-seeds.png"

show describe examples/octopus.png
show ask examples/octopus.png "What is this?"

printf '\n$ liquid chat --out %s\n' "$out"
cat >"$out/chat-input.txt" <<'END'
Hello! Who are you?
/image examples/octopus.png
What does this picture show?
/draw a sun, noto style
END
sed 's/^/> /' "$out/chat-input.txt"
"$liquid" chat --out "$out" <"$out/chat-input.txt" | tee "$out/chat-answers.txt"

printf '\nThe pictures and the texts are in %s/:\n' "$out"
ls -1 "$out"

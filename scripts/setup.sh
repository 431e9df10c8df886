#!/usr/bin/env bash
# Makes .venv with the pinned packages and this package in editable form. Called by the Makefile.
# PYTHON chooses the interpreter; otherwise the first of python3.11, python3.12, python3 that fits.
set -euo pipefail
cd "$(dirname "$0")/.."

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
}

python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    if command -v "$candidate" >/dev/null && fits "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: found no Python 3.11 or 3.12. Install one, or name it: make venv PYTHON=/path/to/python3.11" >&2
    exit 1
fi

# Debian and Ubuntu ship Python without ensurepip; python3-venv brings it.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing python$version-venv" >&2
        apt-get update -qq
        apt-get install -y -qq "python$version-venv" || apt-get install -y -qq python3-venv
    else
        echo "setup: this Python cannot make virtual environments. Run: sudo apt-get install python$version-venv" >&2
        exit 1
    fi
fi

# The decoder for CPUs is compiled; without a compiler everything works, more slowly.
if ! command -v cc >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing a C compiler" >&2
        apt-get update -qq
        apt-get install -y -qq gcc libc6-dev
    else
        echo "setup: found no C compiler, so generation on a CPU will be slow. Install one: sudo apt-get install gcc libc6-dev" >&2
    fi
fi

if ! [ -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear .venv
fi

install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"
}
echo "setup: installing the pinned packages into .venv (a few minutes the first time)" >&2
# torch by its exact version first: a range would make pip look at builds that are far larger.
install torch==2.13.0
install setuptools
CC="${CC:-cc}" install --no-build-isolation --editable ".[dev,icons,gguf]"

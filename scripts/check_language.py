"""Look for words this project avoids in docs, help texts, messages and docstrings.

Usage: python scripts/check_language.py [FILE...]. Prints `file:line: 'found': write ...` for each
hit and exits with 1 if there is one. The words are in `scripts/wordlist.txt`. Code in Markdown is
not checked, and neither are templates and captions that models are trained on (`DATA`).
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDLIST = Path(__file__).with_name("wordlist.txt")
FILES = (
    "*.md",
    "docs/*.md",
    "recipes/**/*.md",
    "examples/*.md",
    "benchmarks/**/*.md",
    "benchmarks/**/*.py",
    "scripts/*.py",
    "src/**/*.py",
)
DATA = (
    "src/liquidmm/icons/",
    "src/liquidmm/prompts.py",
    "src/liquidmm/data/examples.py",
    "benchmarks/engines/reference.py",
)
"""Files whose string literals are training data; only their docstrings are checked."""
GENERATED = ("docs/chats.md",)
"""Pages that quote what a model wrote."""


def read_words() -> list[tuple[re.Pattern[str], str]]:
    """Read the word list."""
    lines = WORDLIST.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" => ") for line in lines if line and not line.startswith("#"))
    return [(re.compile(pattern), better) for pattern, better in pairs]


def prose_of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of a page without code blocks, code spans and link targets."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def prose_of_python(text: str, *, docstrings_only: bool) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of the strings of a module that read like a sentence."""
    tree = ast.parse(text)
    # Docstrings of modules, functions and attributes are expressions of their own.
    alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            if docstrings_only and node not in alone:
                continue
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, re.sub(r"`+[^`]*`+", "", line)


def check(path: Path, words: list[tuple[re.Pattern[str], str]]) -> Iterator[str]:
    """Yield a line for each hit in a file."""
    name = Path(os.path.relpath(path, ROOT)).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        prose = prose_of_markdown(text)
    else:
        prose = prose_of_python(text, docstrings_only=name.startswith(DATA))
    for number, line in prose:
        for pattern, better in words:
            if found := pattern.search(line):
                yield f"{name}:{number}: '{found[0]}': write {better}"


def main(names: list[str]) -> int:
    """Check the given files, or all of `FILES`."""
    paths = [Path(name) for name in names] or [
        path
        for pattern in FILES
        for path in sorted(ROOT.glob(pattern))
        if path.relative_to(ROOT).as_posix() not in GENERATED
    ]
    words = read_words()
    hits = [hit for path in paths for hit in check(path, words)]
    sys.stdout.writelines(f"{hit}\n" for hit in hits)
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Look for words this project avoids in docs, help texts, messages and docstrings.

Usage: python scripts/check_language.py [FILE...]. Prints `file:line: 'found': write ...` for each hit
and exits with 1 if there is one. The words are in `scripts/wordlist.txt`. Code in Markdown is not
checked, and neither are templates and captions that models are trained on (`DATA`).
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDLIST = Path(__file__).with_name("wordlist.txt")
DATA = ("src/liquidmm/icons/", "src/liquidmm/prompts.py")
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
    alone = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # docstrings and attribute docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            if docstrings_only and node not in alone:
                continue
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, re.sub(r"`+[^`]*`+", "", line)


def check(path: Path, words: list[tuple[re.Pattern[str], str]]) -> Iterator[str]:
    """Yield a line for each hit in a file."""
    name = path.resolve().relative_to(ROOT).as_posix()
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
    """Check the given files, or all that are tracked."""
    if not names:
        patterns = ["*.md", "src/*.py", "benchmarks/*.py", "scripts/*.py", "examples/*.py"]
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        names = [name for name in listed.stdout.splitlines() if name not in GENERATED]
    words = read_words()
    paths = [ROOT / name for name in names]
    hits = [hit for path in paths if path.is_file() for hit in check(path, words)]
    sys.stdout.writelines(f"{hit}\n" for hit in hits)
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

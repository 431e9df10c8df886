"""The documentation: generated pages are current, links resolve, and the language is plain."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")})


@pytest.mark.parametrize("name", ["cli", "config"])
def test_generated_page_equals_file(name):
    command = [sys.executable, f"scripts/{name}_page.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == done.stdout, "make docs"


def test_readme_fits_in_500_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, target


def test_language_check_finds_nothing():
    done = subprocess.run(
        [sys.executable, "scripts/check_language.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_language_check_reports_listed_words(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("A picture is no image.\n\n```\na picture\n```\n", encoding="utf-8")
    script = ROOT / "scripts" / "check_language.py"
    done = subprocess.run(
        [sys.executable, script, page], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert [line.split(":")[1] for line in done.stdout.splitlines()] == ["1", "1"]


def _anchor(heading: str) -> str:
    """Return the anchor of a heading as GitHub builds it."""
    words = re.sub(r"[`*]|\]\([^)]*\)", "", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")

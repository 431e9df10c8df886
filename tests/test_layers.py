"""The layers of docs/design.md, checked on the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_follow_the_layers():
    # in its own process: import-linter configures logging, which would end that of this process
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_design_page_names_every_package():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "liquidmm"
    packages = [file.parent.relative_to(source) for file in source.rglob("*/__init__.py")]
    assert [name for name in map(str, packages) if f"{name}/`" not in page] == []

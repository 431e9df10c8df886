"""The picture of the layers in docs/design.md, checked on the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_layers():
    # In a process of its own: import-linter sets up logging anew, and ends that of this one.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_file_is_in_the_table():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "liquidmm"
    files = [file for file in package.rglob("*.py") if file.parent.name != "cli"]
    missing = [
        file.relative_to(package).as_posix()
        for file in files
        if file.name != "__init__.py" and f"{file.name}`" not in page
    ]
    assert not missing, "Say in docs/design.md what lives there."

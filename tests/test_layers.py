"""The picture of the layers in docs/design.md, checked on the code."""

from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_layers(capsys):
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


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

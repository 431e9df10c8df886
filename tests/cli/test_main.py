import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from liquidmm import __version__, cli
from liquidmm.cli import COMMANDS, main
from liquidmm.errors import DataError

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(main, list(arguments), prog_name="liquid")


@pytest.fixture
def raising(monkeypatch):
    """Register a command `boom` that raises what it is told to."""

    def register(error):
        def raise_it():
            raise error

        monkeypatch.setattr(cli, "boom", click.Command("boom", callback=raise_it), raising=False)
        monkeypatch.setitem(COMMANDS, "boom", ("liquidmm.cli:boom", "Fail."))

    return register


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert name in result.output
        assert " ".join(text.split()) in " ".join(result.output.split())


def test_help_imports_no_command():
    script = (
        "import sys; from liquidmm.cli import COMMANDS, main\n"
        "main(['--help'], standalone_mode=False)\n"
        "bad = [m for m, _ in (t.split(':') for t, _ in COMMANDS.values()) if m in sys.modules]\n"
        "assert not bad and 'torch' not in sys.modules, bad\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_table_agrees_with_the_command(name):
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1]
    assert len(COMMANDS[name][1]) <= 70


def test_version():
    result = run("--version")
    assert result.output == f"liquid, version {__version__}\n"


def test_unknown_command_suggests():
    result = run("inof")
    assert result.exit_code == 2
    assert "No such command 'inof'. Did you mean 'info'?" in result.stderr
    assert run("--nonsense").exit_code == 2


def test_users_mistake_is_one_line(raising):
    raising(DataError("a.jsonl:3: has no image.\nAdd one."))
    result = run("boom")
    assert result.exit_code == 1
    assert result.stderr == "error: a.jsonl:3: has no image. Add one.\n"
    assert result.stdout == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interruption(raising, error):
    raising(error)
    assert run("boom").exit_code == 130


def test_a_bug_keeps_its_traceback(raising):
    raising(ZeroDivisionError("bug"))
    assert isinstance(run("boom").exception, ZeroDivisionError)

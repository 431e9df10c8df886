import subprocess
import sys

import pytest

import liquidmm

HEAVY = ("torch", "transformers", "numpy", "PIL", "click", "pyarrow")


def loaded_after(statement):
    script = f"import sys\n{statement}\nprint(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import liquidmm",
        "import liquidmm; liquidmm.LiquidError",
        "import liquidmm.config, liquidmm.errors, liquidmm.prompts, liquidmm.runtime",
    ],
)
def test_light_modules_import_nothing_heavy(statement):
    assert loaded_after(statement) == set()


def test_data_imports_no_torch():
    modules = "liquidmm.data.stream, liquidmm.data.shard_writer, liquidmm.data.readers"
    assert loaded_after(f"import {modules}") <= {"numpy", "pyarrow"}


def test_command_line_imports_only_click():
    assert loaded_after("import liquidmm.cli") == {"click"}


def test_public_names_exist():
    assert set(liquidmm.__all__) <= set(dir(liquidmm))
    for name in liquidmm.__all__:
        assert getattr(liquidmm, name) is not None
    assert liquidmm.load is liquidmm.load


def test_unknown_public_name_rejected():
    with pytest.raises(AttributeError, match="module 'liquidmm' has no attribute 'lode'"):
        liquidmm.lode  # noqa: B018

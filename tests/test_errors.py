import pytest

from liquidmm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LiquidError,
    MissingExtraError,
    suggest,
)


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("lerning_rate", ["learning_rate", "steps"], " Did you mean 'learning_rate'?"),
        ("STEPS", ["learning_rate", "steps"], " Did you mean 'steps'?"),
        ("steps", ["Steps", "warmup"], " Did you mean 'Steps'?"),
        ("zzz", ["b", "a", "b"], " Known: a, b."),
        ("zzz", [], ""),
    ],
)
def test_suggest_close_name_or_all_choices(name, choices, expected):
    assert suggest(name, iter(choices)) == expected


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (ConfigError, ValueError),
        (DataError, ValueError),
        (CheckpointError, Exception),
        (MissingExtraError, ImportError),
    ],
)
def test_errors_are_liquid_errors_and_standard_ones(kind, standard):
    error = kind("here: what. Do that.")
    assert isinstance(error, LiquidError)
    assert isinstance(error, standard)
    assert str(error) == "here: what. Do that."

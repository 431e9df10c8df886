import pytest

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.training.config import TrainTokenizerConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"resolution": 15}}, r"data\.resolution.*factor 2.*15"),
        ({"codebook": {"warmup_steps": 0}}, r"codebook\.warmup_steps.*at least 1.*0"),
        ({"codebook": {"warmup_steps": 4}}, r"codebook\.warmup_steps.*4"),
        ({"codebook": {"decay": 1.0}}, "decay.*below 1.*1.0"),
        ({"freeze": ("encoder",)}, "freeze.*encoder.*init_from"),
        ({"train": {"steps": 0}}, "steps.*at least 1.*0"),
        ({"train": {"ema": 1.0}}, "ema.*below 1.*1.0"),
        ({"train": {"lr": 0.0}}, "lr.*above 0.*0.0"),
        ({"data": {"shift": 16}}, "shift.*16"),
        ({"loss": {"l1": -1.0}}, "l1.*at least 0.*-1.0"),
    ],
)
def test_invalid_setting_names_field_and_value(run, change, changes, words):
    with pytest.raises(ConfigError, match=words):
        change(run, **changes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("storage", "save_dtype"),
        ("data.prepare", "resize"),
        ("data.size", "resolution"),
        ("data.validation_splits", "eval_splits"),
        ("data.validation_fraction", "eval_fraction"),
        ("data.validation_images", "eval_samples"),
        ("train.learning_rate", "lr"),
        ("train.clip", "grad_clip"),
        ("train.validate_every", "eval_every"),
        ("train.checkpoint_every", "save_every"),
    ],
)
def test_old_key_names_the_new_one(run, old, new):
    data = to_dict(run)
    table, _, key = old.rpartition(".")
    (data[table] if table else data)[key] = 1
    with pytest.raises(ConfigError, match=f"^run: {old}: unknown key.*'{new}'"):
        from_dict(TrainTokenizerConfig, data, "run")

"""All tasks together, with a real checkpoint and with missing data."""

import json
from pathlib import Path
from typing import Any

import pytest

from liquidmm.cli.evaluate import tasks
from liquidmm.errors import DataError
from liquidmm.evaluate.runner import EvaluateConfig, run
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.model.init_model import InitConfig, create_base_model


def test_real_checkpoint_goes_through_every_task(
    quick: None, checkpoint: Path, icons: Path, tmp_path: Path
) -> None:
    """A tiny untrained Liquid goes through every task that asks the model."""
    shape = InitConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
    )
    base = create_base_model(["a red apple, noto style"], tmp_path / "base", shape)
    images = checkpoint / "image_tokenizer"
    expand(base, tmp_path / "liquid", ExpandConfig(image_tokenizer=images, sizes=((32, 32),)))
    options: Any = {"checkpoint": tmp_path / "liquid", "device": "cpu", "batch_size": 2}
    for name in ("icons", "captions"):
        config = EvaluateConfig(data=icons, limit=2, out=tmp_path / "out", **options)
        report = run(name, tasks(), config)
        assert report.counts["trained"].n == 2
        assert run(name, tasks(), config) == report
    chat = {
        "messages": [
            {"role": "user", "content": "<image>\nIs there a dog?"},
            {"role": "assistant", "content": "yes"},
        ],
        "images": ["images/noto/apple.png"],
        "tasks": ["presence"],
        "split": "held_out",
    }
    (icons / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    report = run("scenes", tasks(), EvaluateConfig(data=icons, **options))
    assert report.counts["all"].n == 1
    config = EvaluateConfig(data=icons, out=tmp_path / "docs", limit=2, **options)
    run("contact-sheet", tasks(), config)
    assert (tmp_path / "docs" / "contact-sheet.png").is_file()


@pytest.mark.parametrize("name", [*tasks()])
def test_missing_data_names_the_command(evaluate: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`liquid icons build`"):
        evaluate(name, data=tmp_path / "nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

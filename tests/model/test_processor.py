import json

import pytest
from transformers.processing_utils import ProcessorMixin

from liquidmm.errors import CheckpointError
from liquidmm.model.processor import LiquidProcessor, load_tokenizer


def test_processor_round_trip(checkpoint, tmp_path):
    before = LiquidProcessor(
        checkpoint.processor.tokenizer, checkpoint.vocabulary, ((16, 8), (8, 16)), "pad"
    )
    before.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    after = LiquidProcessor.from_pretrained(tmp_path)
    assert isinstance(after, ProcessorMixin)
    assert after.to_dict() == before.to_dict()
    assert after.sizes == ((16, 8), (8, 16))
    assert after.sequences.text("a cat") == before.sequences.text("a cat")
    assert after.chat_template == before.tokenizer.chat_template


def test_processor_tokenizes_and_decodes(checkpoint):
    processor = checkpoint.processor
    ids = processor(text="a red apple")["input_ids"]
    assert processor.decode(ids) == "a red apple"


def test_tokenizer_of_another_model_is_rejected(checkpoint, family_base):
    with pytest.raises(CheckpointError, match=r"tokenizer.*processor_config\.json"):
        LiquidProcessor(load_tokenizer(family_base("mistral")), checkpoint.vocabulary)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"prepare": "pad"}, "pad"), ({"prepare": "crop", "resize": "pad"}, "pad"), ({}, "crop")],
)
def test_resize_is_read_from_old_key(checkpoint, tmp_path, keys, expected):
    checkpoint.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "processor_config.json"
    data = json.loads(path.read_text())
    del data["resize"]
    path.write_text(json.dumps({**data, **keys}))
    assert LiquidProcessor.from_pretrained(tmp_path).resize == expected

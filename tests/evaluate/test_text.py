import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from liquidmm.errors import DataError
from liquidmm.evaluate.runner import EvaluateConfig, run
from liquidmm.evaluate.text import PASSAGE, read_passages, score
from liquidmm.evaluate.text import TEXT as TASK
from liquidmm.model.checkpoint import load_language_model
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.model.init_model import InitConfig, create_base_model

TEXT = "The quick brown fox jumps over the lazy dog. Ünïcode, too."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = InitConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return create_base_model([TEXT] * 4, tmp_path_factory.mktemp("text") / "base", config)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"text": "trained", "split": "train"},
        {"text": TEXT, "split": "held_out"},
        {"text": "b" * (PASSAGE + 1), "split": "held_out"},
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_passages_held_out_seeded_and_split(data: Path) -> None:
    everything = read_passages(data, 100, seed=0)
    assert sorted(everything) == sorted([TEXT, "b" * PASSAGE, "b"])
    assert read_passages(data, 2, seed=1) == read_passages(data, 100, seed=1)[:2]


def test_passages_none_held_out_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a", "split": "train"}\n')
    with pytest.raises(DataError, match="text.jsonl.*'held_out'"):
        read_passages(tmp_path, 1, seed=0)


def test_score_of_uniform_model(base: Path) -> None:
    model = load_language_model(base, torch.float32)
    for weight in model.parameters():
        weight.data.zero_()
    tokenizer = AutoTokenizer.from_pretrained(base)
    nats, tokens = score(model, tokenizer, [TEXT, TEXT])
    assert tokens == 2 * len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert nats == pytest.approx(tokens * math.log(model.config.vocab_size), rel=1e-6)


def test_score_of_long_passage_sums_its_windows(base: Path) -> None:
    model = load_language_model(base, torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    text = "fox dog " * 20
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > model.config.max_position_embeddings
    expected = 0.0
    for first in range(0, len(ids), 31):
        row = torch.tensor([[tokenizer.bos_token_id, *ids[first : first + 31]]])
        chances = model(row).logits.detach().log_softmax(-1)[0, :-1]
        expected -= float(chances.gather(1, row[0, 1:, None]).sum())
    nats, tokens = score(model, tokenizer, [text])
    assert tokens == len(ids)
    assert nats == pytest.approx(expected, rel=1e-5)


def test_score_reads_special_tokens_as_text(base: Path) -> None:
    model = load_language_model(base, torch.float32).eval()
    _, tokens = score(model, AutoTokenizer.from_pretrained(base), ["<|eos|>"])
    assert tokens > 1


def test_task_compares_checkpoint_with_baseline(base: Path, data: Path, tmp_path: Path) -> None:
    expand(base, tmp_path / "liquid", ExpandConfig(codebook_size=16, sizes=((32, 32),)))
    config = EvaluateConfig(checkpoint=tmp_path / "liquid", baseline=base, data=data, device="cpu")
    metrics = run("text", {"text": TASK}, config).metrics
    assert metrics["n"].value == 3
    assert metrics["bytes"].value == len(TEXT.encode()) + PASSAGE + 1
    assert metrics["tokens"] == metrics["baseline_tokens"]
    # The image tokens take some probability; nothing else has changed.
    assert metrics["perplexity"].value >= metrics["baseline_perplexity"].value
    assert metrics["bits_per_byte"].unit == "bits/byte"

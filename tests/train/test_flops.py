from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MixtralConfig,
)

from liquidmm.train.flops import count_matrices, flops_per_token, mfu, peak_flops, peak_of

# Gemma 7B with Liquid's 8192 codes.
GEMMA_7B = GemmaConfig(
    vocab_size=256_000 + 8192,
    hidden_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    intermediate_size=24576,
    max_position_embeddings=8192,
)


def tiny(**changes) -> LlamaConfig:
    shape = {
        "vocab_size": 100,
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 20,
    }
    return LlamaConfig(**(shape | changes))


def test_flops_of_a_tiny_decoder():
    # A block: queries and output 8 x 24 each, keys and values 8 x 12 each, three of 8 x 20.
    blocks = 3 * (2 * 192 + 2 * 96 + 3 * 160)
    assert blocks == 3168
    matrices = count_matrices(tiny())
    assert (matrices.blocks, matrices.head) == (3168, 800)
    # Attention: 12 times 3 layers, a width of 4 heads of 6, and 5 of 10 tokens attended.
    assert flops_per_token(tiny(), 10) == 6 * 3168 + 6 * 800 + 12 * 3 * 24 * 5
    assert flops_per_token(tiny(), 10, target_fraction=0.25) == 6 * 3168 + 1200 + 4320
    assert flops_per_token(tiny(), 10, trained_fraction=0.0) == 4 * 3168 + 4800 + 4320


def test_tied_head_counts_the_same():
    tied, untied = (flops_per_token(tiny(tie_word_embeddings=tie), 10) for tie in (True, False))
    assert tied == untied


def test_grouped_keys_save_weights_only():
    more = flops_per_token(tiny(num_key_value_heads=4), 10)
    assert more - flops_per_token(tiny(), 10) == 6 * 3 * 2 * 8 * 12


def test_sliding_window_limits_attention():
    config = Gemma3TextConfig(
        vocab_size=100,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=20,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    # In the window of 4, the first 4 of 10 tokens attend to 2 on average and the other 6 to 4.
    seen = (4 * 2 + 6 * 4) / 10 + 5
    matrices = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 20) + 800
    assert flops_per_token(config, 10) == pytest.approx(6 * matrices + 12 * 8 * seen)


def test_only_selected_experts_count():
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=20,
        num_local_experts=5,
        num_experts_per_tok=2,
    )
    # attention, the choice among 5 experts, and 2 experts of three matrices
    assert count_matrices(config).blocks == 4 * 8 * 8 + 5 * 8 + 2 * 3 * 8 * 20


def test_count_equals_that_of_the_module(checkpoint_folder, checkpoint):
    config = AutoConfig.from_pretrained(checkpoint_folder)
    weights = dict(checkpoint.model.named_parameters())
    blocks = sum(w.numel() for name, w in weights.items() if ".layers." in name and w.dim() == 2)
    matrices = count_matrices(config)
    assert (matrices.blocks, matrices.head) == (blocks, 376 * 32) == (15360, 12032)


def test_gemma_7b_has_its_published_size():
    attention = 4 * 3072 * 16 * 256
    feed_forward = 3 * 3072 * 24576
    blocks = 28 * (attention + feed_forward)
    head = (256_000 + 8192) * 3072
    norms = 28 * 2 * 3072 + 3072
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GEMMA_7B)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == blocks + head + norms == 8_562_846_720
    # Table 2 of arXiv:2403.08295: 786 825 216 of embeddings, 7 751 248 896 of the rest.
    assert count - 8192 * 3072 == 786_432_000 + 7_751_248_896
    assert flops_per_token(GEMMA_7B, 2048) == 6 * (blocks + head) + 12 * 28 * 4096 * 1024


@pytest.mark.parametrize(
    ("name", "tflops", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
        ("NVIDIA B200", 2250, 75),
    ],
)
def test_peak_of_known_gpus(name, tflops, single):
    assert peak_of(name, torch.bfloat16) == tflops * 1e12
    assert peak_of(name, torch.float32) == single * 1e12
    assert peak_of(name, torch.float64) is None


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Abacus"]
)
def test_unknown_gpu_has_no_peak(name):
    assert peak_of(name, torch.bfloat16) is None


def test_peak_of_device_uses_its_name(monkeypatch):
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda:0"), torch.bfloat16) == 989e12


def test_mfu():
    # 10 000 tokens a second of 40 GFLOPs each are 400 TFLOP/s.
    assert mfu(10_000, 40e9, 1000e12) == pytest.approx(0.4)

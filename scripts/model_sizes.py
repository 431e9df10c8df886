"""Print memory and time of training by model size as a Markdown table; no weights are loaded.

Memory is the estimate of `liquid train --dry-run` for one GPU: bfloat16 products, one sequence of
2,048 tokens at a time, activation checkpointing. Time is for a billion tokens (about a million
images of 1,024 tokens) on one H100 at 40 % MFU. Both are computed, not measured.
"""

from pathlib import Path

import click
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig

from liquidmm.data.mixture import Source
from liquidmm.train.config import DataConfig, LoopConfig, TrainConfig
from liquidmm.train.estimate import estimate_memory
from liquidmm.train.flops import flops_per_token, peak_of
from liquidmm.train.lora import LoraConfig, add_adapters
from liquidmm.train.model import ModelConfig
from liquidmm.vocabulary import Vocabulary

CODES = 8192
SHAPES = {
    "SmolLM2-135M": (49_152, 576, 30, 9, 3, 1536, True),
    "Qwen2.5-0.5B": (151_936, 896, 24, 14, 2, 4864, True),
    "Llama-3.2-1B": (128_256, 2048, 16, 32, 8, 8192, True),
    "Llama-3.2-3B": (128_256, 3072, 28, 24, 8, 8192, True),
    "Llama-2-7B": (32_000, 4096, 32, 32, 32, 11_008, False),
    "Llama-3.1-8B": (128_256, 4096, 32, 32, 8, 14_336, False),
}
"""Vocabulary, hidden size, layers, heads, key and value heads, feed-forward width, tied head."""


def run_file(lora: LoraConfig | None) -> TrainConfig:
    """Return the settings of the estimate."""
    return TrainConfig(
        checkpoint=Path("a"),
        out=Path("b"),
        data=DataConfig(sources=(Source(path=Path("c"), task="text"),), seq_len=2048),
        train=LoopConfig(
            steps=1, global_batch_size=1, eval_samples=1, micro_batch_size=1, precision="bfloat16"
        ),
        model=ModelConfig(activation_checkpointing=True, lora=lora),
    )


def main() -> None:
    """Print the table."""
    import torch

    peak = peak_of("NVIDIA H100", torch.bfloat16)
    assert peak is not None
    click.echo("| model | parameters | full fine-tuning | LoRA (rank 16) | hours per 1B tokens |")
    click.echo("|---|---|---|---|---|")
    for name, (vocabulary, hidden, layers, heads, groups, width, tied) in SHAPES.items():
        config = LlamaConfig(
            vocab_size=vocabulary + CODES,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            intermediate_size=width,
            tie_word_embeddings=tied,
        )
        layout = Vocabulary(
            text_size=vocabulary,
            image_offset=vocabulary,
            codebook_size=CODES,
            boi=4,
            eoi=5,
            unconditional=6,
        )
        sizes = []
        for lora in (None, LoraConfig(rank=16)):
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.tie_weights()
            if lora is not None:
                with init_empty_weights(include_buffers=False):
                    add_adapters(model, layout, lora)
            sizes.append(f"{estimate_memory(model, run_file(lora), 1).total / 2**30:.1f} GiB")
            if lora is None:
                parameters = sum(weight.numel() for weight in model.parameters())
        hours = 1e9 * flops_per_token(config, 2048) / (0.4 * peak) / 3600
        click.echo(f"| {name} | {parameters / 1e9:.2f} B | {sizes[0]} | {sizes[1]} | {hours:.1f} |")


if __name__ == "__main__":
    main()

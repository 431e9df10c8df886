"""FLOPs of training a decoder, and the peak FLOP/s of known GPUs.

Counts the operations that the model needs, by the convention of PaLM (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B) after Kaplan et al. 2020 (arXiv:2001.08361): 2 operations per token
and matrix weight in the forward pass, 4 in the backward pass (gradients of the input and of the
weight), and the products of attention. Norms, activation functions, softmax, embedding lookups, the
optimizer and recomputed activations do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from liquidmm.train.lora import decoder_blocks

# Dense TFLOP/s from NVIDIA's data sheets: bfloat16 products with float32 sums, then float32 without
# TF32, which is off in PyTorch by default. Longer names first.
_PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "GH200": (989.0, 67.0),
    "H200 NVL": (835.0, 60.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),  # SXM
    "A100": (312.0, 19.5),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}
# Partitions of a GPU, and smaller chips with the same name.
_OTHER = re.compile(r"\b(MIG|Laptop)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrices:
    """Number of matrix weights of a decoder."""

    blocks: int
    """Weights of the blocks that each token uses; only the selected experts count."""
    head: int
    """Weights of the output layer, (V, D), tied or not."""


def count_matrices(config: PreTrainedConfig) -> Matrices:
    """Count the matrix weights of any causal language model of transformers, without loading it."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config
        )
    selected = getattr(config.get_text_config(), "num_experts_per_tok", None)
    blocks = 0
    for name, weight in decoder_blocks(model).named_parameters():
        if weight.dim() == 3 and selected and "expert" in name:
            blocks += weight.numel() // len(weight) * selected  # a stack of all experts
        elif weight.dim() >= 2:
            blocks += weight.numel()
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return Matrices(blocks=blocks, head=head.weight.numel())


def flops_per_token(
    config: PreTrainedConfig,
    document_tokens: float,
    *,
    target_fraction: float = 1.0,
    trained_fraction: float = 1.0,
) -> float:
    """Return the number of operations to train on one token.

    Args:
        config: Configuration of any causal language model of transformers.
        document_tokens: Tokens per document. Attention is causal, so a token attends to half of
            them on average; for documents of different lengths, pass twice that mean.
        target_fraction: Fraction of the tokens with a target, 0 to 1; the loss computes the head
            only for these.
        trained_fraction: Fraction of the matrix weights of the blocks that is trained; a frozen
            weight needs 4 operations instead of 6.

    Returns:
        6 (or 4) per weight of the blocks, 6 per weight of the head times ``target_fraction``, and
        12 per unit of total query width and attended token, in every layer.
    """
    matrices = count_matrices(config)
    text = config.get_text_config()
    width: int = text.num_attention_heads * head_size(text)
    attended = sum(_mean_attended(document_tokens, window) for window in _windows(text))
    blocks = (4 + 2 * trained_fraction) * matrices.blocks
    return blocks + 6 * target_fraction * matrices.head + 12 * width * attended


def head_size(config: PreTrainedConfig) -> int:
    """Return the width of one attention head of a text model."""
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the dense peak of a device in FLOP/s; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype)


def peak_of(name: str, dtype: torch.dtype) -> float | None:
    """Return the dense peak in FLOP/s of a GPU with a name such as "NVIDIA H100 80GB HBM3".

    None if the GPU or the dtype is unknown.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if _OTHER.search(name) or not (half or dtype == torch.float32):
        return None
    for known, peaks in _PEAKS.items():
        if re.search(rf"\b{known}\b", name):
            return peaks[0 if half else 1] * 1e12
    return None


def mfu(tokens_per_second: float, flops: float, peak: float) -> float:
    """Return the model FLOPs utilization; 0.3 to 0.5 is typical for large models.

    Speed and ``peak`` (in FLOP/s) are those of all devices together, ``flops`` those of one token.
    """
    return tokens_per_second * flops / peak


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Return the sliding window of each layer, None for full attention."""
    window: int | None = getattr(config, "sliding_window", None)
    every = ["sliding_attention"] * config.num_hidden_layers
    kinds: list[str] = getattr(config, "layer_types", None) or every
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _mean_attended(document_tokens: float, window: int | None) -> float:
    """Return how many tokens a token of a document attends to on average."""
    if window is None or document_tokens <= window:
        return document_tokens / 2
    return (window**2 / 2 + (document_tokens - window) * window) / document_tokens

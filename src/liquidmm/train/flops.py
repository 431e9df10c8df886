"""The work of training a decoder, in floating point operations, and the peak of known GPUs.

Contract: pure functions of shapes and names; nothing is measured here. What counts is what the
model needs, by the convention of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) after
Kaplan et al. 2020 (arXiv:2001.08361): 2 operations per id and matrix weight forward and 4 backward
(gradients by the input and by the weight), and the products of attention. Norms, activation
functions, softmax, the embedding table (a lookup), the optimizer and whatever is computed a second
time (`activation_checkpointing`) don't count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from liquidmm.train.lora import blocks_of

# TFLOP/s without sparsity: bfloat16 products with float32 sums, then float32 (without TF32, which
# PyTorch leaves off). From NVIDIA's data sheets; where these give rates "with sparsity", half of
# them. Longer names first.
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
# A slice of a GPU, or a smaller chip of the same name.
_OTHER = re.compile(r"\b(MIG|Laptop)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrices:
    """The matrices of a decoder, in weights."""

    blocks: int
    """Weights of the blocks that every id passes through; of experts only the chosen ones."""
    head: int
    """Weights of the output layer, (V, D); a tied one counts as well."""


def count_matrices(config: PreTrainedConfig) -> Matrices:
    """Count the matrices of a decoder.

    Args:
        config: Configuration of any causal language model of transformers.

    Returns:
        The counts; the model is built without weights, so any size takes a moment.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config
        )
    chosen = getattr(config.get_text_config(), "num_experts_per_tok", None)
    blocks = 0
    for name, weight in blocks_of(model).named_parameters():
        if weight.dim() == 3 and chosen and "expert" in name:
            blocks += weight.numel() // len(weight) * chosen  # a stack of all experts
        elif weight.dim() >= 2:
            blocks += weight.numel()
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return Matrices(blocks=blocks, head=head.weight.numel())


def flops_per_token(
    config: PreTrainedConfig,
    length: float,
    *,
    labelled_share: float = 1.0,
    trained_share: float = 1.0,
) -> float:
    """Give the operations that training needs for one id.

    Args:
        config: Configuration of any causal language model of transformers.
        length: Ids of a document. Attention is causal, so on average an id sees half of them. Where
            documents differ, twice the mean that their ids see.
        labelled_share: Share of the ids that carry a label, 0 to 1; the loss computes the head for
            these alone.
        trained_share: Share of the blocks' matrix weights that are trained; a frozen one has no
            gradient of its own and costs 4 operations in place of 6.

    Returns:
        6 (or 4) per weight of the blocks, 6 per weight of the head times ``labelled_share``, and
        12 per unit of all heads' width and id seen, in every layer. The width is that of the
        queries, whatever heads of keys and values they share.
    """
    matrices = count_matrices(config)
    text = config.get_text_config()
    width: int = text.num_attention_heads * head_size(text)
    seen = sum(_mean_seen(length, window) for window in _windows(text))
    blocks = (4 + 2 * trained_share) * matrices.blocks
    return blocks + 6 * labelled_share * matrices.head + 12 * width * seen


def head_size(config: PreTrainedConfig) -> int:
    """Give the width of one attention head of a text model."""
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Give the dense peak of a device.

    Args:
        device: The device.
        dtype: Type of the products.

    Returns:
        Operations a second; None for a CPU and for a GPU that isn't in the table.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype)


def peak_of(name: str, dtype: torch.dtype) -> float | None:
    """Give the dense peak of a GPU by its name, such as "NVIDIA H100 80GB HBM3".

    Args:
        name: As the driver tells it.
        dtype: Type of the products.

    Returns:
        Operations a second; None where the table has no such name or type.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if _OTHER.search(name) or not (half or dtype == torch.float32):
        return None
    for known, peaks in _PEAKS.items():
        if re.search(rf"\b{known}\b", name):
            return peaks[0 if half else 1] * 1e12
    return None


def mfu(tokens_per_second: float, flops: float, peak: float) -> float:
    """Give the model FLOPs utilization: the share of the peak that went into needed work.

    Args:
        tokens_per_second: Ids trained in a second, by all devices.
        flops: Operations per id, from `flops_per_token`.
        peak: Operations a second that all devices could do.

    Returns:
        The share; 0.3 to 0.5 is usual for large models.
    """
    return tokens_per_second * flops / peak


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Give the window of each layer, None where it sees everything before it."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds: list[str] = getattr(config, "layer_types", None) or []
    if not kinds:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _mean_seen(length: float, window: int | None) -> float:
    """Give the ids that an id of a document sees on average."""
    if window is None or length <= window:
        return length / 2
    return (window**2 / 2 + (length - window) * window) / length

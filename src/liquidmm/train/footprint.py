"""The memory of one rank in training, estimated from shapes.

Contract: a pure function of a run and its model without weights. Weights, gradients and optimizer
are counted. Activations are what PyTorch keeps for the backward pass of a block like Llama's: exact
for Llama, Mistral and Qwen2, within a fifth for Qwen3, Gemma, OLMo 2 and Phi 3. All parts are added
up, although they don't peak at once. Not counted: the CUDA context and NCCL (1 to 2 GiB), and what
the allocator loses to gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from liquidmm.train.config import TrainConfig
from liquidmm.train.flops import head_size
from liquidmm.train.lora import blocks_of
from liquidmm.train.loss import LossConfig
from liquidmm.train.model import Attention
from liquidmm.train.optim import build_optimizers

# NF4 with doubly quantized scales, in bytes a weight: 4 bits, 8 bits for each 64 weights, and 32
# bits for each 64 * 256 (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes of one rank."""

    parameters: int
    """Its part of the float32 weights."""
    gradients: int
    """Its part of the float32 gradients; several micro-batches add them up whole."""
    optimizer: int
    """Its part of the averages: two of each weight for AdamW, one for Muon."""
    gathered: int
    """Weights as the products take them. Sharded: what lies outside the blocks, two blocks (all
    without `reshard_after_forward`), and the gradients of one. On one rank: autocast's copies."""
    activations: int
    """What a micro-batch keeps for its backward pass."""
    loss: int
    """A chunk of logits, hidden states with their gradient, and the gradient of the head."""
    host: int
    """What `parallel.cpu_offload` keeps in the CPU's memory instead."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        kept = (self.parameters, self.gradients, self.optimizer, self.gathered)
        return sum(kept) + self.activations + self.loss


def footprint(model: PreTrainedModel, run: TrainConfig, ranks: int) -> Footprint:
    """Estimate the memory of one rank.

    Args:
        model: The decoder, without weights; what is trained of it requires a gradient.
        run: The run.
        ranks: Number of ranks.

    Returns:
        The estimate.

    Raises:
        ConfigError: The rows or the model can't be shared by so many ranks.
    """
    shards = run.parallel.shards(ranks)
    rows = run.rows_of_rank(ranks)
    micro = run.train.micro_batch_size or rows
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    parameters, optimizer = _weights(model, run) // shards, _states(model, run) // shards
    gradients = 4 * trained // shards
    # FSDP adds the gradients of micro-batches up before it exchanges them.
    added_up = ranks > 1 and micro < rows and run.parallel.grad_accumulation == "full"
    whole = 4 * trained if added_up else 0
    cpu_offload = run.parallel.cpu_offload and ranks > 1
    return Footprint(
        parameters=0 if cpu_offload else parameters,
        gradients=whole if cpu_offload else max(whole, gradients),
        optimizer=0 if cpu_offload else optimizer,
        gathered=_gathered(model, run, sharded=ranks > 1),
        activations=_activations(model, run, micro, sharded=ranks > 1),
        loss=_loss(model, run, micro, sharded=ranks > 1),
        host=parameters + gradients + optimizer if cpu_offload else 0,
    )


def block_activations(
    block: nn.Module,
    config: PreTrainedConfig,
    length: int,
    precision: torch.dtype,
    attention: Attention,
    *,
    sharded: bool,
) -> int:
    """Give the bytes that one block keeps of each id for its backward pass.

    Args:
        block: A decoder block; its norms are counted.
        config: Configuration of the text model.
        length: Ids in a row.
        precision: Type of the products.
        attention: Kernel of the attention; "auto" counts as sdpa.
        sharded: Whether weights come in ``precision``, so that the residual stream has it too;
            with one rank it is float32 and autocast copies the input of every product.

    Returns:
        Norms (input in float32, and what the weight is multiplied with), inputs of the products,
        queries, keys, values and result of the attention with its mask or scores, and four times
        the width of the feed-forward layer.
    """
    size = precision.itemsize
    residual = size if sharded else 4
    heads: int = config.num_attention_heads
    hidden: int = config.hidden_size
    queries = heads * head_size(config)
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head_size(config)
    inner: int = config.intermediate_size * (getattr(config, "num_experts_per_tok", None) or 1)
    kept: int = 0
    for name, _ in block.named_parameters():
        if "norm" in name and name.endswith("weight"):
            width = queries if "q_norm" in name else keys if "k_norm" in name else hidden
            kept += (4 + residual) * width + 4
    copies = 5 if size < residual else 2  # q, k, v and gate, up; or one each
    kept += copies * size * hidden + 4 * size * inner
    if attention in ("flex_attention", "flash_attention_2"):
        return kept + size * 2 * (queries + keys) + 4 * heads
    kept += size * 4 * queries  # a mask makes keys and values be repeated for their heads
    if attention == "eager":
        return kept + heads * length * (4 + (size if size < 4 else 0))
    return kept + size * length + 4 * heads  # the mask as numbers


def _weights(model: PreTrainedModel, run: TrainConfig) -> int:
    lora = run.model.lora
    small = 0
    if lora is not None and lora.load_in_4bit:
        blocks = blocks_of(model).parameters()
        small = sum(w.numel() for w in blocks if w.dim() == 2 and not w.requires_grad)
    every = sum(weight.numel() for weight in model.parameters())
    return 4 * (every - small) + round(_FOUR_BITS * small)


def _states(model: PreTrainedModel, run: TrainConfig) -> int:
    total = 0
    for optimizer in build_optimizers(model, run.optim):
        averages = 1 if isinstance(optimizer, torch.optim.Muon) else 2
        for group in optimizer.param_groups:
            total += 4 * averages * sum(weight.numel() for weight in group["params"])
    return total


def _gathered(model: PreTrainedModel, run: TrainConfig, *, sharded: bool) -> int:
    size = _precision(run).itemsize
    blocks = [list(block.parameters()) for block in blocks_of(model)]
    counts = [sum(weight.numel() for weight in block) for block in blocks]
    if not sharded:
        lora = run.model.lora
        if size == 4 or (lora is not None and lora.load_in_4bit):
            return 0
        return size * sum(w.numel() for block in blocks for w in block if w.dim() > 1)
    outside = sum(weight.numel() for weight in model.parameters()) - sum(counts)
    held = min(2, len(counts)) * max(counts) if run.parallel.reshard_after_forward else sum(counts)
    learnt = max(sum(w.numel() for w in block if w.requires_grad) for block in blocks)
    return size * (outside + held) + (size + 4) * learnt


def _activations(model: PreTrainedModel, run: TrainConfig, rows: int, *, sharded: bool) -> int:
    config = model.config.get_text_config()
    precision = _precision(run)
    blocks = blocks_of(model)
    block = block_activations(
        blocks[0],
        config,
        run.data.seq_len,
        precision,
        run.model.attn_implementation,
        sharded=sharded,
    )
    hidden: int = config.hidden_size
    residual = hidden * (precision.itemsize if sharded else 4)
    kept = len(blocks) * block
    if run.model.activation_checkpointing:
        kept = len(blocks) * residual + block
    last_norm = 4 * hidden + residual
    return rows * run.data.seq_len * (kept + last_norm)


def _loss(model: PreTrainedModel, run: TrainConfig, rows: int, *, sharded: bool) -> int:
    size = _precision(run).itemsize
    head = cast("nn.Linear", model.get_output_embeddings())  # type: ignore[no-untyped-call]
    config = model.config.get_text_config()
    hidden: int = config.hidden_size
    vocabulary: int = config.vocab_size
    table = vocabulary * hidden
    device = torch.device(run.device or "cuda")
    positions = min(rows * run.data.seq_len, LossConfig().positions(vocabulary, device))
    chunk = positions * vocabulary
    total = 2 * 4 * chunk + 2 * size * rows * run.data.seq_len * hidden
    if head.weight.requires_grad or run.model.lora is not None:
        total += (4 + size) * table  # added up in float32, and what a chunk adds
    if run.model.lora is not None:
        total += 4 * table  # with the new rows put in
    if size < 4 and not sharded:
        total += size * table  # autocast's copy
    return total


def _precision(run: TrainConfig) -> torch.dtype:
    return cast("torch.dtype", getattr(torch, run.train.precision))

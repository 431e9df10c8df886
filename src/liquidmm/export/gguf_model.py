"""What a GGUF file says of a model: its numbers, and its weights under llama.cpp's names.

Contract: a model of a family below is written such that llama.cpp computes what transformers
computes, or it is refused; nothing that llama.cpp would leave out is passed over. The names are
those of the `gguf` package. llama.cpp wants two things in another form: the query and key rows of
Llama's heads (its rotary embedding turns neighbours, that of transformers turns halves), and
Gemma's norms (plus 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liquidmm.errors import CheckpointError
from liquidmm.runtime import require_extra

_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How the models of one type of transformers are written."""

    architecture: str
    """llama.cpp's name."""
    activation: str = "silu"
    """The activation that llama.cpp computes."""
    turns_neighbours: bool = False
    """Whether the rotary embedding turns neighbours."""
    adds_one: bool = False
    """Whether norms are stored plus 1."""
    full_every: int = 1
    """Each n-th layer attends to everything, the others to a sliding window."""
    wide_layers: int = 0
    """With that many layers llama.cpp scales scores by hidden size / heads, not by head size."""


FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="llama", turns_neighbours=True),
    "mistral": Family(architecture="llama", turns_neighbours=True),
    "qwen2": Family(architecture="qwen2"),
    "qwen3": Family(architecture="qwen3"),
    "gemma": Family(architecture="gemma", activation=_TANH, adds_one=True),
    "gemma2": Family(
        architecture="gemma2", activation=_TANH, adds_one=True, full_every=2, wide_layers=46
    ),
    "gemma3_text": Family(
        architecture="gemma3", activation=_TANH, adds_one=True, full_every=6, wide_layers=62
    ),
}
"""The model types that were compared with llama.cpp (`benchmarks/engines.sh`)."""


class ModelFile:
    """A model as llama.cpp wants it."""

    def __init__(self, model: Any) -> None:
        """Check the model and find its weights' names.

        Args:
            model: A causal language model of transformers.

        Raises:
            CheckpointError: llama.cpp computes something else, or has no place for a weight.
        """
        self.config = model.config
        self.family = check_family(self.config)
        self._weights: dict[str, tuple[str, Tensor]] = {}
        gguf = require_extra("gguf", "gguf")
        architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[
            self.family.architecture
        ]
        names = gguf.get_tensor_name_map(architecture, self.config.num_hidden_layers)
        for name, weight in model.state_dict().items():
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise _refusal(f"its {self.family.architecture} has no place for {name}")
            self._weights[found] = (name, weight)
        factors = rope_factors(self.config)
        if factors is not None:
            self._weights["rope_freqs.weight"] = ("rope_freqs.weight", factors)

    def shapes(self) -> Iterator[tuple[str, torch.Size]]:
        """Yield name and shape of each weight, in the order of `weights`."""
        for name, (_, weight) in self._weights.items():
            yield name, weight.shape

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and weight, float32, one after the other: a file may be larger than memory."""
        for name, (own_name, weight) in self._weights.items():
            yield name, self._converted(own_name, weight.float())

    def write_numbers(self, writer: Any) -> None:
        """Add everything but weights and tokens to a `gguf.GGUFWriter`."""
        config = self.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_size(config))
        full, window = _ropes(config)
        writer.add_rope_freq_base(full["rope_theta"])
        if full["rope_type"] == "linear":
            writer.add_rope_scaling_type(require_extra("gguf", "gguf").RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(full["factor"])
        if self.family.full_every > 1:
            writer.add_sliding_window(config.sliding_window)
            writer.add_rope_freq_base_swa(window["rope_theta"])
            if config.attn_logit_softcapping:
                writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            if config.final_logit_softcapping:
                writer.add_final_logit_softcapping(config.final_logit_softcapping)

    def _converted(self, name: str, weight: Tensor) -> Tensor:
        if self.family.adds_one and name.endswith("norm.weight"):
            return weight + 1
        if self.family.turns_neighbours and name.endswith("q_proj.weight"):
            return neighbours(weight, self.config.num_attention_heads)
        if self.family.turns_neighbours and name.endswith("k_proj.weight"):
            return neighbours(weight, self.config.num_key_value_heads)
        return weight


def check_family(config: Any) -> Family:
    """Find a model's family and refuse what its llama.cpp counterpart doesn't compute.

    Raises:
        CheckpointError: It is none of `FAMILIES`, or differs from them in what is named.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise _refusal(f"{config.model_type} is none of {', '.join(FAMILIES)}")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        raise _refusal(f"it computes {family.activation}, the model {activation}")
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if getattr(config, name, False):
            raise _refusal(f"{name} is set")
    _check_attention(config, family)
    full, window = _ropes(config)
    known = ("default", "linear", "llama3") if family.turns_neighbours else ("default", "linear")
    for rope, kinds in ((full, known), (window, known if window is full else ("default",))):
        if rope["rope_type"] not in kinds or rope.get("partial_rotary_factor", 1) != 1:
            raise _refusal(f"its rotary embedding is {rope['rope_type']}, not {' or '.join(kinds)}")
    return family


def head_size(config: Any) -> int:
    """Return the size of one attention head."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head such that what was half a head apart stands side by side.

    Args:
        weight: Query or key rows, (heads x size, D).
        heads: Number of heads.
    """
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def rope_factors(config: Any) -> Tensor | None:
    """Give what llama.cpp divides the frequencies of Llama 3's rotary embedding by.

    Returns:
        Factors, (head size / 2,), float32; None where the embedding isn't Llama 3's.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = _ropes(config)[0]
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    factors: Tensor = plain / scaled
    return factors


def _check_attention(config: Any, family: Family) -> None:
    """Refuse another reach, scale or size of attention than llama.cpp's."""
    size, heads, hidden = head_size(config), config.num_attention_heads, config.hidden_size
    every, layers = family.full_every, config.num_hidden_layers
    expected = [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)
    ]
    if (getattr(config, "layer_types", None) or expected) != expected:
        raise _refusal(f"its layers attend as {config.layer_types}, not as {expected}")
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < config.max_position_embeddings:
        raise _refusal(
            f"sliding_window is {window} in a context of {config.max_position_embeddings}"
        )
    if config.model_type == "qwen2" and size * heads != hidden:
        raise _refusal(f"{heads} heads of {size} don't make its hidden size {hidden}")
    scale = getattr(config, "query_pre_attn_scalar", None)
    taken = hidden // heads if layers == family.wide_layers else size
    if scale is not None and scale != taken:
        raise _refusal(f"query_pre_attn_scalar is {scale}, not {taken}")


def _ropes(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the rotary embeddings of full layers and of those with a window."""
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        return parameters["full_attention"], parameters["sliding_attention"]
    return parameters, parameters


def _refusal(reason: str) -> CheckpointError:
    return CheckpointError(
        f"model: llama.cpp can't compute it: {reason}. Serve this model with vLLM."
    )

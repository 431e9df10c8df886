"""The metadata and weights of a model in a GGUF file, under llama.cpp's names.

For the families below, llama.cpp computes the same results as transformers; all other models are
rejected, as are weights that llama.cpp would ignore. The names are those of the `gguf` package. Two
kinds of weights are converted: the query and key rows of Llama's heads are reordered (llama.cpp's
rotary embedding rotates adjacent elements, and that of transformers rotates halves), and Gemma's
norms are stored plus 1.
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
    """How llama.cpp stores and computes one model type of transformers."""

    architecture: str
    """llama.cpp's name."""
    activation: str = "silu"
    """The activation that llama.cpp computes."""
    rotates_adjacent: bool = False
    """Whether the rotary embedding rotates adjacent elements."""
    norm_plus_one: bool = False
    """Whether norms are stored plus 1."""
    full_every: int = 1
    """Every n-th layer uses full attention, the others a sliding window."""
    wide_layers: int = 0
    """At this many layers, llama.cpp scales scores by hidden size / heads, not head size."""


FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="llama", rotates_adjacent=True),
    "mistral": Family(architecture="llama", rotates_adjacent=True),
    "qwen2": Family(architecture="qwen2"),
    "qwen3": Family(architecture="qwen3"),
    "gemma": Family(architecture="gemma", activation=_TANH, norm_plus_one=True),
    "gemma2": Family(
        architecture="gemma2", activation=_TANH, norm_plus_one=True, full_every=2, wide_layers=46
    ),
    "gemma3_text": Family(
        architecture="gemma3", activation=_TANH, norm_plus_one=True, full_every=6, wide_layers=62
    ),
}
"""Model types whose results were verified against llama.cpp (`benchmarks/engines.sh`)."""


class ModelFile:
    """A model in the form that llama.cpp expects."""

    def __init__(self, model: Any) -> None:
        """Check a causal language model of transformers and look up the names of its weights.

        Raises:
            CheckpointError: llama.cpp computes something different, or has no name for a weight.
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
                raise _unsupported(f"its {self.family.architecture} has no name for {name}")
            self._weights[found] = (name, weight)
        factors = rope_factors(self.config)
        if factors is not None:
            self._weights["rope_freqs.weight"] = ("rope_freqs.weight", factors)

    def shapes(self) -> Iterator[tuple[str, torch.Size]]:
        """Yield the name and shape of each weight, in the order of `weights`."""
        for name, (_, weight) in self._weights.items():
            yield name, weight.shape

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and float32 value of each weight, one at a time to limit memory use."""
        for name, (own_name, weight) in self._weights.items():
            yield name, self._converted(own_name, weight.float())

    def write_metadata(self, writer: Any) -> None:
        """Add everything except weights and tokens to a `gguf.GGUFWriter`."""
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
        if self.family.norm_plus_one and name.endswith("norm.weight"):
            return weight + 1
        if self.family.rotates_adjacent and name.endswith("q_proj.weight"):
            return interleave_halves(weight, self.config.num_attention_heads)
        if self.family.rotates_adjacent and name.endswith("k_proj.weight"):
            return interleave_halves(weight, self.config.num_key_value_heads)
        return weight


def check_family(config: Any) -> Family:
    """Return a model's family; raise a `CheckpointError` if llama.cpp computes it differently."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise _unsupported(f"model type {config.model_type} is not one of {', '.join(FAMILIES)}")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        raise _unsupported(f"expected the activation {family.activation}, got {activation}")
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if getattr(config, name, False):
            raise _unsupported(f"{name} is set")
    _check_attention(config, family)
    full, window = _ropes(config)
    known = ("default", "linear", "llama3") if family.rotates_adjacent else ("default", "linear")
    for rope, kinds in ((full, known), (window, known if window is full else ("default",))):
        if rope["rope_type"] not in kinds or rope.get("partial_rotary_factor", 1) != 1:
            raise _unsupported(f"expected rope_type {' or '.join(kinds)}, got {rope['rope_type']}")
    return family


def head_size(config: Any) -> int:
    """Return the size of one attention head."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def interleave_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder query or key rows, (heads x size, D), in each head: 0, size/2, 1, size/2 + 1, ..."""
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def rope_factors(config: Any) -> Tensor | None:
    """Return the divisors of the rotary frequencies of Llama 3, (head size / 2,), float32.

    None if the rotary embedding is not Llama 3's.
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
    """Reject attention whose window, scale or size differs from llama.cpp's."""
    size, heads, hidden = head_size(config), config.num_attention_heads, config.hidden_size
    every, layers = family.full_every, config.num_hidden_layers
    expected = [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)
    ]
    if (getattr(config, "layer_types", None) or expected) != expected:
        raise _unsupported(f"expected layer_types {expected}, got {config.layer_types}")
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < config.max_position_embeddings:
        raise _unsupported(
            f"sliding_window is {window} in a context of {config.max_position_embeddings}"
        )
    if config.model_type == "qwen2" and size * heads != hidden:
        raise _unsupported(f"{heads} heads of size {size} do not match hidden_size {hidden}")
    scale = getattr(config, "query_pre_attn_scalar", None)
    taken = hidden // heads if layers == family.wide_layers else size
    if scale is not None and scale != taken:
        raise _unsupported(f"expected query_pre_attn_scalar {taken}, got {scale}")


def _ropes(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rotary parameters of full-attention and of sliding-window layers."""
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        return parameters["full_attention"], parameters["sliding_attention"]
    return parameters, parameters


def _unsupported(reason: str) -> CheckpointError:
    return CheckpointError(
        f"model: not supported by llama.cpp: {reason}. Serve this model with vLLM."
    )

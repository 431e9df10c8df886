"""The model for training: loaded, frozen or adapted, compiled and sharded.

`LiquidForTraining` computes the loss in its forward pass because a sharded head is complete only
there. With several ranks, each rank reads only its own shards of the safetensors, so no machine
needs memory for the whole model. Adapters are the exception: every rank reads the frozen weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.model.checkpoint import empty_language_model, load_language_model
from liquidmm.train.batch import Batch
from liquidmm.train.distributed import Distributed, ParallelConfig, full_tensor
from liquidmm.train.lora import (
    LoraConfig,
    add_adapters,
    decoder_blocks,
    effective_weight,
    four_bit_config,
    keep_four_bit_layout,
    merge_adapters,
    unwrap,
)
from liquidmm.train.loss import Head, LossConfig, LossResult, next_token_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquidmm.vocabulary import Vocabulary

Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which parameters to train, and how to compute the model."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "attention": "attn_implementation",
        "checkpoint_activations": "activation_checkpointing",
    }

    attn_implementation: Attention = "auto"
    """Attention kernel of transformers; "auto" uses its default for the model. On a GPU,
    flex_attention and flash_attention_2 are fastest because they skip pairs of tokens from
    different documents."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and recompute the rest in the backward pass. This takes
    about a third more computation and a fraction of the memory."""
    compile: bool = False
    """Compile the decoder blocks; takes about a minute and makes steps faster on a GPU."""
    freeze: tuple[str, ...] = ()
    """Parameters to freeze, as patterns such as "model.layers.*" for the names in the
    safetensors."""
    lora: LoraConfig | None = None
    """Train only adapters and the new embedding rows."""

    def __post_init__(self) -> None:
        if self.lora is not None and self.freeze:
            raise ConfigError(
                "freeze: cannot be combined with lora, which freezes all but the adapters "
                "and the new rows. Remove one of them."
            )


class LiquidForTraining(nn.Module):
    """A causal language model with its loss; created by `load_for_training` or `prepare`."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        lora: LoraConfig | None,
        loss: LossConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self.autocast: torch.dtype | None = None
        """Dtype of the matrix products of float32 weights; None without autocast."""
        self._vocabulary = vocabulary
        self._lora = lora

    def forward(self, batch: Batch, tasks: int, num_targets: int | None = None) -> LossResult:
        """Compute the loss of a batch, whose task ids are below ``tasks``.

        ``num_targets`` counts those of the whole step on all ranks; None uses the number in the
        batch.
        """
        kind = batch.input_ids.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            return next_token_loss(
                hidden_states(self.model, batch),
                head_of(self.model),
                batch.targets,
                batch.task_ids,
                self._loss,
                tasks=tasks,
                num_targets=num_targets,
            )

    def compute_on(self, device: torch.device, precision: torch.dtype) -> None:
        """Move to one device; matrix products use ``precision``, weights stay in float32."""
        self.to(device)
        self.autocast = None if precision == torch.float32 else precision

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name in the language model, a tied head once."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def to_pretrained(
        self, folder: Path, world: Distributed, dtype: torch.dtype
    ) -> PreTrainedModel | None:
        """Return the trained model as a stock model on the first rank; all ranks must call this.

        It is the live model if there is one rank and no adapters, otherwise a copy in ``dtype`` on
        the CPU; None on the other ranks. ``folder`` is the checkpoint that was loaded.
        """
        if self._lora is None and world.size == 1:
            return self.model
        # With adapters, all other weights are on disk.
        named = self.model.state_dict() if self._lora is None else self.trainable()
        state: dict[str, Tensor] = {}
        for name, tensor in named.items():
            full = full_tensor(tensor.detach())
            if world.is_main:
                state[name] = full.to("cpu", dtype if full.is_floating_point() else full.dtype)
        if not world.is_main:
            return None
        if self._lora is not None:
            # Adding the update needs full precision, even if the sum is rounded later.
            dense = load_language_model(folder, torch.float32)
            return merge_adapters(add_adapters(dense, self._vocabulary, self._lora), state)
        model = empty_language_model(folder)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the last hidden states, (B, T, D); documents do not attend to each other.

    The model gets position ids that restart in each document but no mask or cache: with either,
    transformers would silently mix the documents.
    """
    ids, positions = batch.input_ids, batch.position_ids
    if model.config._attn_implementation.startswith("flash_attention"):
        # Its kernels separate documents by position ids only within a single sequence.
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
    output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    states: Tensor = output.last_hidden_state
    return states.reshape(*batch.input_ids.shape, -1)


def head_of(model: PreTrainedModel) -> Head:
    """Return the output layer of a causal language model; the weight is the live parameter.

    Raises:
        CheckpointError: The head is not a linear layer without bias.
    """
    layer: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    plain = unwrap(layer)
    if not isinstance(plain, nn.Linear) or cast("Tensor | None", plain.bias) is not None:
        raise CheckpointError(
            f"{type(model).__name__}: unsupported output head ({type(plain).__name__}): expected a "
            "linear layer without bias. Use another model."
        )
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(weight=effective_weight(layer), scale=scale, softcap=softcap)


def load_for_training(
    folder: Path,
    vocabulary: Vocabulary,
    config: ModelConfig,
    loss: LossConfig,
    *,
    world: Distributed,
    parallel: ParallelConfig,
    precision: torch.dtype,
) -> LiquidForTraining:
    """Load the language model of a local checkpoint folder onto its device, in training mode.

    ``precision`` is the dtype of the matrix products; weights, gradients and optimizer state stay
    in float32.

    Raises:
        CheckpointError: Weights are missing or damaged.
        ConfigError: A name in the settings matches nothing.
    """
    lora = config.lora
    options: dict[str, Any] = {}
    if config.attn_implementation != "auto":
        options["attn_implementation"] = config.attn_implementation
    if world.size > 1 and lora is None:
        model = empty_language_model(folder, **options)
    else:
        if lora is not None and lora.load_in_4bit:
            options["quantization_config"] = four_bit_config(precision)
        model = load_language_model(folder, torch.float32, **options)
        keep_four_bit_layout(model)
    wrapped = prepare(model, vocabulary, config, loss)
    if world.size > 1:
        world.shard(wrapped, decoder_blocks(model), parallel, precision)
        # Offloaded shards stay in CPU memory; FSDP moves them to the device.
        target = torch.device("cpu") if parallel.cpu_offload else world.device
        _read_shards(wrapped, folder, target)
    else:
        wrapped.compute_on(world.device, precision)
    return wrapped.train()


def prepare(
    model: PreTrainedModel, vocabulary: Vocabulary, config: ModelConfig, loss: LossConfig
) -> LiquidForTraining:
    """Wrap a language model, with or without weights, and change it as `select_trainable` does."""
    select_trainable(model, vocabulary, config)
    if config.activation_checkpointing:
        # The name in transformers 5.23 and later, then the one in earlier versions.
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.compile:
        for block in decoder_blocks(model):
            block.compile()
    return LiquidForTraining(model, vocabulary, config.lora, loss)


def select_trainable(model: PreTrainedModel, vocabulary: Vocabulary, config: ModelConfig) -> None:
    """Add adapters or freeze parameters so that only trained parameters require gradients.

    Raises:
        ConfigError: A name in the settings matches nothing, or no parameter is left to train.
        MissingExtraError: PEFT is not installed.
    """
    if config.lora is not None:
        add_adapters(model, vocabulary, config.lora)
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"model.freeze: '{pattern}' matches no parameter. Names look like {names[0]} and "
                f"{names[-1]}."
            )
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in config.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.freeze: freezes every parameter. Leave some to train.")


def trained_fraction(model: PreTrainedModel) -> float:
    """Return the fraction of the matrix weights of the blocks that is trained."""
    matrices = [weight for weight in decoder_blocks(model).parameters() if weight.dim() > 1]
    trained = sum(weight.numel() for weight in matrices if weight.requires_grad)
    return trained / sum(weight.numel() for weight in matrices)


def _read_shards(wrapped: LiquidForTraining, folder: Path, device: torch.device) -> None:
    """Allocate every parameter, and read the shards of this rank from the files."""
    empty = {name for name, parameter in wrapped.model.named_parameters() if parameter.is_meta}
    wrapped._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    if not empty:  # with adapters, every rank has already read the frozen weights
        return
    wrapped.model.tie_weights()
    wanted = {
        name: parameter.detach()
        for name, parameter in wrapped.model.named_parameters()
        if name in empty
    }
    reader = HuggingFaceStorageReader(str(folder))
    missing = sorted(wanted.keys() - reader.read_metadata().state_dict_metadata.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}. Copy it again."
        )
    load(wanted, storage_reader=reader)

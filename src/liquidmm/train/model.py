"""The model as it is trained: loaded, frozen or adapted, compiled, spread over the ranks.

Contract: `LiquidForTraining` is one module whose forward pass gives the loss, because under sharding the head
is whole only inside it. With several ranks each reads only its own part of the safetensors, so that
no machine has to hold the model; adapters are the exception (each rank reads the frozen weights
once). `to_pretrained` gives the trained model back as a stock one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.model.checkpoint import empty_language_model, load_language_model
from liquidmm.train.batch import Batch, hidden_states
from liquidmm.train.distributed import Distributed, ParallelConfig, whole
from liquidmm.train.lora import (
    LoraConfig,
    add_adapters,
    blocks_of,
    four_bits,
    keep_four_bits,
    merge,
)
from liquidmm.train.loss import LossConfig, LossResult, head_of, next_token_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquidmm.vocabulary import Vocabulary

Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
"""Kernels of transformers; "auto" is its own choice for the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """How a model is prepared for training."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "attention": "attn_implementation",
        "checkpoint_activations": "activation_checkpointing",
    }

    attn_implementation: Attention = "auto"
    """Kernel of the attention. On a GPU, packed rows are fastest with flex_attention or
    flash_attention_2, which skip what documents can't see of each other."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the rest again in the backward pass: about a third
    more work, a fraction of the memory."""
    compile: bool = False
    """Compile the decoder blocks: a start of a minute, then faster on a GPU."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: patterns such as "model.layers.*" over the names in the
    safetensors."""
    lora: LoraConfig | None = None
    """Train adapters and the new rows only."""

    def __post_init__(self) -> None:
        """Check what excludes each other."""
        if self.lora is not None and self.freeze:
            raise ConfigError(
                "freeze: can't be combined with lora, which freezes all but the adapters and the "
                "new rows. Leave one of them out."
            )


class LiquidForTraining(nn.Module):
    """A causal language model together with its loss; made by `load_for_training` or `prepare`."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        lora: LoraConfig | None,
        loss: LossConfig,
    ) -> None:
        """Take a prepared model; with ``lora`` it has adapters in it."""
        super().__init__()
        self.model = model
        self._loss = loss
        self.autocast: torch.dtype | None = None
        """Type of the products where weights stay in float32; None where they are cast before."""
        self._vocabulary = vocabulary
        self._lora = lora

    def forward(self, batch: Batch, tasks: int, labels: int | None = None) -> LossResult:
        """Compute the loss of some rows.

        Args:
            batch: The rows.
            tasks: Number of tasks.
            labels: Labelled positions of the whole step, on all ranks; None for those of the rows.

        Returns:
            The loss and its parts.
        """
        kind = batch.input_ids.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            return next_token_loss(
                hidden_states(self.model, batch),
                head_of(self.model),
                batch.target,
                batch.task_ids,
                self._loss,
                tasks=tasks,
                denominator=labels,
            )

    def compute_on(self, device: torch.device, precision: torch.dtype) -> None:
        """Move to one device; products are in ``precision``, weights stay in float32."""
        self.to(device)
        self.autocast = None if precision == torch.float32 else precision

    def trainable(self) -> dict[str, nn.Parameter]:
        """Give what is learnt, by its name in the language model; a tied head appears once."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def to_pretrained(
        self, folder: Path, world: Distributed, dtype: torch.dtype
    ) -> PreTrainedModel | None:
        """Give the trained model as a stock one, on the first rank; all ranks must call it.

        Args:
            folder: The checkpoint it was loaded from.
            world: The ranks.
            dtype: Type of its weights, where it is a copy.

        Returns:
            The live model where that is a stock one already, else a copy on the CPU; None on the
            other ranks.
        """
        if self._lora is None and world.size == 1:
            return self.model
        state: dict[str, Tensor] = {}
        for name, tensor in self._kept().items():
            full = whole(tensor.detach())
            if world.is_main:
                state[name] = full.to("cpu", dtype if full.is_floating_point() else full.dtype)
        if not world.is_main:
            return None
        if self._lora is not None:
            # The sum of weight and update wants all digits, whatever it is rounded to later.
            dense = load_language_model(folder, torch.float32)
            return merge(add_adapters(dense, self._vocabulary, self._lora), state)
        model = empty_language_model(folder)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model

    def _kept(self) -> Mapping[str, Tensor]:
        """What a stock model is made of; with adapters, beside the weights on disk."""
        return self.model.state_dict() if self._lora is None else self.trainable()


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
    """Load a checkpoint's language model for training.

    Args:
        folder: A local checkpoint folder.
        vocabulary: Its id layout.
        config: What is trained, and how it is computed.
        loss: Stabilizers.
        world: The ranks.
        parallel: How they share the model.
        precision: Type of the products; weights, gradients and optimizer stay in float32.

    Returns:
        The model on its device, in training mode.

    Raises:
        CheckpointError: Weights are missing or broken.
        ConfigError: A name in the settings fits nothing.
    """
    model = _load(folder, config, precision, empty=world.size > 1 and config.lora is None)
    trainee = prepare(model, vocabulary, config, loss)
    if world.size > 1:
        world.shard(trainee, blocks_of(model), parallel, precision)
        # Offloaded shards live in the CPU's memory; FSDP brings them to the device.
        _read_shards(trainee, folder, torch.device("cpu") if parallel.cpu_offload else world.device)
    else:
        trainee.compute_on(world.device, precision)
    return trainee.train()


def prepare(
    model: PreTrainedModel, vocabulary: Vocabulary, config: ModelConfig, loss: LossConfig
) -> LiquidForTraining:
    """Make a trainee of a language model.

    Args:
        model: The decoder, with or without weights; changed in place.
        vocabulary: Its id layout.
        config: What is trained, and how it is computed.
        loss: Stabilizers.

    Returns:
        The trainee, wherever the model is.

    Raises:
        ConfigError: A name in the settings fits nothing.
    """
    choose_trained(model, vocabulary, config)
    if config.activation_checkpointing:
        _checkpoint_activations(model)
    if config.compile:
        for block in blocks_of(model):
            block.compile()
    return LiquidForTraining(model, vocabulary, config.lora, loss)


def choose_trained(model: PreTrainedModel, vocabulary: Vocabulary, config: ModelConfig) -> None:
    """Put adapters in, or freeze, so that only what is to be trained requires a gradient.

    Args:
        model: The decoder, with or without weights; changed in place.
        vocabulary: Its id layout.
        config: What is trained.

    Raises:
        ConfigError: A name in the settings fits nothing, or nothing is left to train.
        MissingExtraError: PEFT isn't installed.
    """
    if config.lora is not None:
        add_adapters(model, vocabulary, config.lora)
    _freeze(model, config.freeze)


def trained_share(model: PreTrainedModel) -> float:
    """Give the share of the weights of the blocks' matrices that are trained."""
    matrices = [weight for weight in blocks_of(model).parameters() if weight.dim() > 1]
    trained = sum(weight.numel() for weight in matrices if weight.requires_grad)
    return trained / sum(weight.numel() for weight in matrices)


def _load(
    folder: Path, config: ModelConfig, precision: torch.dtype, *, empty: bool
) -> PreTrainedModel:
    options: dict[str, Any] = {}
    if config.attn_implementation != "auto":
        options["attn_implementation"] = config.attn_implementation
    if empty:
        return empty_language_model(folder, **options)
    if config.lora is not None and config.lora.load_in_4bit:
        options["quantization_config"] = four_bits(precision)
    model = load_language_model(folder, torch.float32, **options)
    keep_four_bits(model)
    return model


def _freeze(model: PreTrainedModel, patterns: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"model.freeze: no parameter fits '{pattern}'. Their names are like {names[0]} "
                f"and {names[-1]}."
            )
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.freeze: freezes everything. Leave something to learn.")


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # The name of transformers 5.23 and later; before, it was the other one.
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _read_shards(trainee: LiquidForTraining, folder: Path, device: torch.device) -> None:
    """Give every parameter memory, and let this rank read its part of the files."""
    empty = {name for name, parameter in trainee.model.named_parameters() if parameter.is_meta}
    trainee._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    if not empty:  # with adapters, every rank has read the frozen weights already
        return
    trainee.model.tie_weights()
    wanted = {
        name: parameter.detach()
        for name, parameter in trainee.model.named_parameters()
        if name in empty
    }
    reader = HuggingFaceStorageReader(str(folder))
    missing = sorted(wanted.keys() - reader.read_metadata().state_dict_metadata.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}. Copy it again."
        )
    load(wanted, storage_reader=reader)

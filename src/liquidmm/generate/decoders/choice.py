"""Which decoder runs a model: the fastest that can, unless one is named."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from liquidmm.errors import ConfigError, suggest
from liquidmm.generate.decoders.by_hand import why_not
from liquidmm.generate.decoders.decoder import Decoder, Weights
from liquidmm.generate.decoders.family import FamilyDecoder
from liquidmm.generate.decoders.native import NativeDecoder, why_not_native
from liquidmm.generate.decoders.packed import PackedDecoder

Kind = Literal["native", "packed", "family"]
"""Decoders, the fastest first."""


def choose_decoder(
    model: PreTrainedModel, weights: Weights | None = None, kind: Kind | None = None
) -> Kind:
    """Choose.

    Args:
        model: The model, where it will compute.
        weights: How its weights are wanted; None is the type they are in.
        kind: The decoder that is wanted, or None for the fastest that can run the model.

    Returns:
        The decoder for `make_decoder`.

    Raises:
        ConfigError: The decoder or the weights are unknown or impossible with this model.
    """
    for option, value, known in (
        ("weights", weights, get_args(Weights)),
        ("decoder", kind, get_args(Kind)),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{option}: '{value}' is unknown.{suggest(value, known)}")
    kinds: tuple[Kind, ...] = (kind,) if kind else get_args(Kind)
    reasons = [(one, _why_not(one, model, weights)) for one in kinds]
    for one, reason in reasons:
        if reason is None:
            return one
    given = f"decoder: {kind}" if weights is None else f"weights: {weights}"
    why = "; ".join(f"{one}: {reason}" for one, reason in reasons)
    raise ConfigError(f"{given} is impossible with this model ({why}). Leave the setting out.")


def make_decoder(model: PreTrainedModel, weights: Weights | None, kind: Kind) -> Decoder:
    """Make what `choose_decoder` chose."""
    if kind == "family":
        return FamilyDecoder(model)
    wanted = weights or _own(model)
    if kind == "native":
        return NativeDecoder(model, wanted)
    return PackedDecoder(model, torch.float32 if wanted == "float32" else torch.bfloat16)


def _own(model: PreTrainedModel) -> Weights:
    return "float32" if model.dtype == torch.float32 else "bfloat16"


def _why_not(kind: Kind, model: PreTrainedModel, weights: Weights | None) -> str | None:
    """Say why a decoder can't run a model with such weights, or return None."""
    if kind == "family":
        own = str(model.dtype).removeprefix("torch.")
        if weights not in (None, own):
            return f"transformers' code takes the weights as they are, {own}"
        return None
    if kind == "packed" and weights == "int8":
        return "it takes float32 and bfloat16"
    return why_not(model) or (why_not_native(model) if kind == "native" else None)

"""The image tokenizer as the rest of the package sees it: pictures to codes and back.

Contract: ``ImageTokenizer`` is all that other layers know. ``load_image_tokenizer`` opens every
supported kind of file. Inputs are checked here, once, and never repaired: a wrong size, range or
code is an error. A saved tokenizer is a folder with ``config.json`` and ``model.safetensors``.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import CheckpointError
from liquidmm.files import atomic_folder
from liquidmm.image_tokenizer import pretrained as weights
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

FORMAT = "liquidmm.vqgan.1"
"""Value of ``format`` in the ``config.json`` of a saved tokenizer."""

StorageType = Literal["float32", "bfloat16"]
Precision = Literal["float32", "tf32", "bfloat16"]
"""Type that the encoder computes in; `tf32`: float32 with the inputs of convolutions rounded to 10
bits, on CUDA."""


@runtime_checkable
class ImageTokenizer(Protocol):
    """What an image tokenizer must offer."""

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""

    @property
    def downsample_factor(self) -> int:
        """Pixels of a side per code."""

    @property
    def device(self) -> torch.device:
        """Where it computes; inputs are moved there."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever the same picture may get other codes."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W), in [-1, 1] or uint8, to codes, (B, h, w), int64."""

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to pixels, (B, 3, H, W), float32 in [-1, 1]."""

    def save(self, folder: Path) -> None:
        """Write a folder that ``load_image_tokenizer`` reads."""


class VQGANTokenizer:
    """A VQGAN behind the ``ImageTokenizer`` interface.

    The search for the nearest codebook vector and the decoder are float32 throughout.
    """

    def __init__(self, model: VQGAN, storage: StorageType = "float32") -> None:
        """Take over a model.

        Args:
            model: The VQGAN; it is put into evaluation mode and its gradients are switched off.
            storage: Number type that ``save`` writes. Weights that were read from a bfloat16 file
                lose nothing when they are written as bfloat16 again.
        """
        self.model = model.float().eval().requires_grad_(False)
        self.storage: StorageType = storage
        self.precision: Precision = "float32"
        """Type that the encoder computes in; codes of others than float32 differ here and there."""
        self._half: nn.Module | None = None
        self._fingerprint: str | None = None

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""
        return self.model.config.codebook_size

    @property
    def downsample_factor(self) -> int:
        """Pixels of a side per code."""
        return self.model.config.downsample_factor

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures it was made for; other sizes work too."""
        return self.model.config.resolution

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there, results stay there."""
        return self.model.quantize.embedding.weight.device

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the shape and all weights that decide the codes.

        The decoder is left out on purpose: it may be improved later without making encoded data
        invalid.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(to_dict(self.model.config), sort_keys=True).encode())
            for name, value in sorted(self.model.state_dict().items()):
                if name.startswith(("encoder.", "quant_conv.", "quantize.")):
                    digest.update(name.encode())
                    digest.update(value.float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def to(self, device: torch.device) -> Self:
        """Move the weights and return itself."""
        self.model.to(device)
        self._half = None
        return self

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Map pictures to codes.

        Args:
            pixels: (B, 3, H, W), floating point in [-1, 1], or uint8 in 0..255, which is scaled on
                the device; ``factor`` divides H and W.

        Returns:
            Codes, (B, H / factor, W / factor), int64.

        Raises:
            ValueError: Wrong shape, size, number type or range.
        """
        self._check(pixels)
        scaled = pixels.to(self.device).float()
        if pixels.dtype == torch.uint8:
            scaled = scaled.div_(127.5).sub_(1.0)
        # Convolutions are a fifth faster on this layout of the channels, on a CPU too.
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        if self.precision == "bfloat16":
            latents = self._half_encoder()(scaled.bfloat16())
            return self.model.nearest(self.model.quant_conv(latents.float()))
        # PyTorch's own default is tf32 for convolutions.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision == "tf32"):
            return self.model.encode(scaled)

    def agreement(self, pixels: Tensor) -> float:
        """Measure how many codes are those of float32.

        Args:
            pixels: As for ``encode``.

        Returns:
            The share, 0 to 1.
        """
        codes, chosen = self.encode(pixels), self.precision
        self.precision = "float32"
        try:
            exact = self.encode(pixels)
        finally:
            self.precision = chosen
        return (codes == exact).float().mean().item()

    def _half_encoder(self) -> nn.Module:
        if self._half is None:
            self._half = copy.deepcopy(self.model.encoder).bfloat16()
        return self._half

    def _check(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != self.model.config.in_channels:
            raise ValueError(f"pixels: shape {tuple(pixels.shape)}. Pass (B, 3, H, W).")
        whole = pixels.dtype == torch.uint8
        if not (whole or pixels.is_floating_point()):
            raise ValueError(f"pixels: {pixels.dtype}. Pass floating point in [-1, 1], or uint8.")
        height, width = pixels.shape[2:]
        if height % self.downsample_factor or width % self.downsample_factor or not height or not width:
            raise ValueError(
                f"pixels: {width} x {height} is not divisible by the factor {self.downsample_factor}. "
                "Crop or pad the picture first."
            )
        if not whole and not bool((pixels.abs() <= 1.0 + 1e-4).all()):
            raise ValueError("pixels: values outside [-1, 1] or NaN. Scale the picture first.")

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Map codes to pictures.

        Args:
            codes: (B, h, w), an integer type, each in 0..codebook_size-1.

        Returns:
            Pixels, (B, 3, h * factor, w * factor), float32; the decoder's overshoot beyond [-1, 1]
            is cut off.

        Raises:
            ValueError: Wrong shape or number type, or a code outside the codebook.
            CheckpointError: The weights came without a decoder.
        """
        if self.model.decoder is None:
            raise CheckpointError(
                "image tokenizer: these weights have no decoder, so they can encode only. "
                "Load vqgan.ckpt with vqgan.yaml to get pictures."
            )
        if codes.ndim != 3 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(
                f"codes: {codes.dtype} of shape {tuple(codes.shape)}. Pass integers (B, h, w)."
            )
        codes = codes.to(self.device, torch.int64)
        wrong = codes[(codes < 0) | (codes >= self.codebook_size)]
        if wrong.numel():
            raise ValueError(
                f"codes: {int(wrong[0])} is outside the codebook 0..{self.codebook_size - 1}. "
                "Was the picture made with another tokenizer?"
            )
        return self.model.decode(codes).clamp(-1.0, 1.0)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; an existing tokenizer is replaced."""
        with atomic_folder(Path(folder), overwrite=_is_own(Path(folder))) as target:
            self.write(target)

    def write(self, folder: Path) -> None:
        """Write the two files into an existing folder, for callers that make the folder whole."""
        description = {
            "format": FORMAT,
            "storage": self.storage,
            "decoder": self.model.decoder is not None,
            "vqgan": to_dict(self.model.config),
        }
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        dtype = torch.bfloat16 if self.storage == "bfloat16" else torch.float32
        state = {
            name: value.to("cpu", dtype).contiguous()
            for name, value in self.model.state_dict().items()
        }
        file = folder / "model.safetensors"
        file.touch(0o644)  # safetensors alone would make it readable by its owner only
        save_file(state, file, metadata={"format": "pt"})


def load_image_tokenizer(path: Path | str) -> VQGANTokenizer:
    """Open an image tokenizer of any supported kind.

    Args:
        path: A folder written by ``save``; a taming-style ``vqgan.ckpt`` with its ``.yaml`` beside
            it, or the folder of both; a Chameleon checkpoint of transformers (folder or one
            ``.safetensors`` file), which can only encode.

    Returns:
        The tokenizer, on the CPU.

    Raises:
        CheckpointError: Nothing of these kinds is there, or the files are broken or do not fit.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. Check the path.")
    if _is_own(path):
        return _load_own(path)
    if path.suffix in (".ckpt", ".pt", ".pth"):
        return VQGANTokenizer(weights.read_taming(path))
    if path.is_dir() and (path / "vqgan.ckpt").is_file():
        return VQGANTokenizer(weights.read_taming(path / "vqgan.ckpt"))
    if path.suffix == ".safetensors" or (path.is_dir() and weights.is_chameleon(path)):
        return VQGANTokenizer(weights.read_chameleon(path))
    raise CheckpointError(
        f"{path}: no image tokenizer. Give a tokenizer folder (config.json with format {FORMAT}), "
        "a vqgan.ckpt with vqgan.yaml, or a Chameleon checkpoint."
    )


def _description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_own(folder: Path) -> bool:
    return str(_description(folder).get("format", "")).startswith("liquidmm.vqgan.")


def _load_own(folder: Path) -> VQGANTokenizer:
    description = _description(folder)
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"{folder}: format {description['format']}, this version reads {FORMAT}. "
            "Update liquidmm."
        )
    storage = description.get("storage", "float32")
    if storage not in ("float32", "bfloat16"):
        raise CheckpointError(f"{folder}: storage '{storage}'. Known: float32, bfloat16.")
    config = from_dict(
        VQGANConfig, description.get("vqgan", {}), f"{folder / 'config.json'}: vqgan"
    )
    model = VQGAN(config, decoder=bool(description.get("decoder", True)))
    file = folder / "model.safetensors"
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}). Copy the folder again.") from None
    weights.load_state(model, state, file)
    return VQGANTokenizer(model, storage)

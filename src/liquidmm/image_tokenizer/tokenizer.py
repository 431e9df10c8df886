"""The image tokenizer: images to codes and back.

``ImageTokenizer`` is the interface that the rest of the package uses, and ``load_image_tokenizer``
opens every supported kind of file. Inputs are checked and never corrected: a wrong size, range or
code is an error. A saved tokenizer is a folder with ``config.json`` and ``model.safetensors``.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liquidmm.config import from_dict, to_dict
from liquidmm.errors import CheckpointError
from liquidmm.files import atomic_folder
from liquidmm.image_tokenizer import pretrained
from liquidmm.image_tokenizer.images import to_float
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig

FORMAT = "liquidmm.vqgan.1"
"""Value of ``format`` in the ``config.json`` of a saved tokenizer."""

SaveDtype = Literal["float32", "bfloat16"]
Precision = Literal["float32", "tf32", "bfloat16"]
"""Precision of the encoder; `tf32` is float32 with the inputs of convolutions rounded to 10 bits
(CUDA only)."""


@runtime_checkable
class ImageTokenizer(Protocol):
    """The interface of an image tokenizer."""

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""

    @property
    def downsample_factor(self) -> int:
        """Pixels per code along each side."""

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs are moved there."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever an image could get different codes."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W), in [-1, 1] or uint8, to codes, (B, h, w), int64."""

    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to pixels, (B, 3, H, W), float32 in [-1, 1]."""

    def save(self, folder: Path) -> None:
        """Write a folder that ``load_image_tokenizer`` reads."""


class VQGANTokenizer:
    """A VQGAN with the ``ImageTokenizer`` interface.

    The decoder and the search for the nearest codebook vector always use float32.
    """

    def __init__(self, model: VQGAN, save_dtype: SaveDtype = "float32") -> None:
        """Wrap a model, which is set to evaluation mode without gradients.

        Weights that were read from a bfloat16 file can be saved as bfloat16 without loss.
        """
        self.model = model.float().eval().requires_grad_(False)
        self.save_dtype: SaveDtype = save_dtype
        self.precision: Precision = "float32"
        """Precision of the encoder; if it is not float32, some codes differ."""
        self._bfloat16_encoder: nn.Module | None = None
        self._fingerprint: str | None = None

    @property
    def codebook_size(self) -> int:
        """Number of different codes."""
        return self.model.config.codebook_size

    @property
    def downsample_factor(self) -> int:
        """Pixels per code along each side."""
        return self.model.config.downsample_factor

    @property
    def resolution(self) -> int:
        """Width and height of the training images in pixels; other sizes work too."""
        return self.model.config.resolution

    @property
    def device(self) -> torch.device:
        """Device of the weights; inputs are moved there, results stay there."""
        return self.model.quantize.embedding.weight.device

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the configuration and the encoding weights.

        The decoder is excluded, so it can be improved without invalidating encoded data.
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
        """Move the weights and return ``self``."""
        self.model.to(device)
        self._bfloat16_encoder = None
        return self

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Map images to codes.

        Args:
            pixels: (B, 3, H, W), floating point in [-1, 1], or uint8 in 0..255, which is scaled on
                the device; H and W are multiples of ``downsample_factor``.

        Returns:
            Codes, (B, H / downsample_factor, W / downsample_factor), int64.

        Raises:
            ValueError: The shape, size, dtype or range is wrong.
        """
        self._check_pixels(pixels)
        pixels = pixels.to(self.device)
        scaled = to_float(pixels) if pixels.dtype == torch.uint8 else pixels.float()
        # channels_last makes convolutions 20% faster, even on a CPU.
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        if self.precision == "bfloat16":
            if self._bfloat16_encoder is None:
                self._bfloat16_encoder = copy.deepcopy(self.model.encoder).bfloat16()
            latents = self._bfloat16_encoder(scaled.bfloat16())
            return self.model.nearest(self.model.quant_conv(latents.float()))
        # By default, PyTorch uses tf32 for convolutions.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision == "tf32"):
            return self.model.encode(scaled)

    def code_match(self, pixels: Tensor) -> float:
        """Return the fraction of an image's codes, 0 to 1, that equal those of float32."""
        codes, chosen = self.encode(pixels), self.precision
        self.precision = "float32"
        try:
            exact = self.encode(pixels)
        finally:
            self.precision = chosen
        return (codes == exact).float().mean().item()

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != self.model.config.in_channels:
            raise ValueError(f"pixels: expected shape (B, 3, H, W), got {tuple(pixels.shape)}.")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise ValueError(
                f"pixels: expected floating point in [-1, 1] or uint8, got {pixels.dtype}."
            )
        (height, width), factor = pixels.shape[2:], self.downsample_factor
        if height % factor or width % factor or not height or not width:
            raise ValueError(
                f"pixels: expected multiples of the downsampling factor {factor}, got {width} x "
                f"{height}. Crop or pad the image first."
            )
        if pixels.dtype != torch.uint8 and not bool((pixels.abs() <= 1.0 + 1e-4).all()):
            raise ValueError("pixels: values outside [-1, 1] or NaN. Scale the image first.")

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Map codes to images.

        Args:
            codes: (B, h, w), an integer dtype, each in 0..codebook_size-1.

        Returns:
            Pixels, (B, 3, h * downsample_factor, w * downsample_factor), float32, clamped to
            [-1, 1].

        Raises:
            ValueError: The shape or dtype is wrong, or a code is outside the codebook.
            CheckpointError: The weights have no decoder.
        """
        if self.model.decoder is None:
            raise CheckpointError(
                "image tokenizer: these weights have no decoder and can only encode. "
                "Load vqgan.ckpt with vqgan.yaml to decode."
            )
        if codes.ndim != 3 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(
                f"codes: expected integers (B, h, w), got {codes.dtype} {tuple(codes.shape)}."
            )
        codes = codes.to(self.device, torch.int64)
        outside = codes[(codes < 0) | (codes >= self.codebook_size)]
        if outside.numel():
            raise ValueError(
                f"codes: expected codes in 0..{self.codebook_size - 1}, got {int(outside[0])}. "
                "Use the image tokenizer that encoded the image."
            )
        return self.model.decode(codes).clamp(-1.0, 1.0)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, replacing an existing tokenizer."""
        folder = Path(folder)
        description = {
            "format": FORMAT,
            "storage": self.save_dtype,
            "decoder": self.model.decoder is not None,
            "vqgan": to_dict(self.model.config),
        }
        dtype = torch.bfloat16 if self.save_dtype == "bfloat16" else torch.float32
        state = {
            name: value.to("cpu", dtype).contiguous()
            for name, value in self.model.state_dict().items()
        }
        with atomic_folder(folder, overwrite=_is_own(folder)) as target:
            text = json.dumps(description, indent=2) + "\n"
            (target / "config.json").write_text(text, "utf-8")
            file = target / "model.safetensors"
            file.touch(0o644)  # safetensors would make it readable only by its owner
            save_file(state, file, metadata={"format": "pt"})


def load_image_tokenizer(path: Path | str) -> VQGANTokenizer:
    """Open an image tokenizer of any supported kind, on the CPU.

    Args:
        path: A folder written by ``save``; a taming-style ``vqgan.ckpt`` with its ``.yaml`` next to
            it, or the folder of both; a Chameleon checkpoint of transformers (folder or one
            ``.safetensors`` file), which can only encode.

    Raises:
        CheckpointError: The path is none of these, or the files are broken or do not match.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. Check the path.")
    if _is_own(path):
        return _load_own(path)
    if path.suffix in (".ckpt", ".pt", ".pth"):
        return VQGANTokenizer(pretrained.read_taming(path))
    if path.is_dir() and (path / "vqgan.ckpt").is_file():
        return VQGANTokenizer(pretrained.read_taming(path / "vqgan.ckpt"))
    model_type = pretrained.read_json_or_empty(path / "config.json").get("model_type")
    if path.suffix == ".safetensors" or model_type in ("chameleon", "chameleon_vqgan"):
        return VQGANTokenizer(pretrained.read_chameleon(path))
    raise CheckpointError(
        f"{path}: not an image tokenizer. Use a tokenizer folder (config.json with format "
        f"{FORMAT}), a vqgan.ckpt with vqgan.yaml, or a Chameleon checkpoint."
    )


def _is_own(folder: Path) -> bool:
    format_name = pretrained.read_json_or_empty(folder / "config.json").get("format", "")
    return str(format_name).startswith("liquidmm.vqgan.")


def _load_own(folder: Path) -> VQGANTokenizer:
    file = folder / "config.json"
    description: dict[str, Any] = pretrained.read_json_or_empty(file)
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"{file}: format: expected {FORMAT}, got {description['format']}. Update liquidmm."
        )
    save_dtype = description.get("storage", "float32")
    known = get_args(SaveDtype)
    if save_dtype not in known:
        raise CheckpointError(
            f"{file}: storage: expected one of {', '.join(known)}, got '{save_dtype}'."
        )
    config = from_dict(VQGANConfig, description.get("vqgan", {}), f"{file}: vqgan")
    model = VQGAN(config, decoder=bool(description.get("decoder", True)))
    file = folder / "model.safetensors"
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}). Copy the folder again.") from None
    pretrained.load_state(model, state, file)
    return VQGANTokenizer(model, save_dtype)

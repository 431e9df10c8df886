"""A Liquid checkpoint: language model, processor and image tokenizer.

The folder is a stock Hugging Face causal language model (`config.json`, safetensors, tokenizer
files, `chat_template.jinja`) that loads without this package, plus `processor_config.json` and
`image_tokenizer/`. Saving is atomic and writes safetensors only. Loading never runs code from a
folder, and a missing weight is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from liquidmm.errors import CheckpointError, ConfigError, first_line
from liquidmm.files import atomic_folder
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.model.processor import LiquidProcessor, read_config, read_json
from liquidmm.runtime import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquidmm.image_tokenizer.tokenizer import ImageTokenizer
    from liquidmm.vocabulary import Vocabulary

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The three parts of a Liquid model, which are checked for compatibility."""

    model: PreTrainedModel
    """A stock causal language model with at least `vocabulary.size` embedding rows."""
    processor: LiquidProcessor
    """Tokenizer, vocabulary layout and image sizes."""
    image_tokenizer: ImageTokenizer | None
    """The image tokenizer, or None if the folder has none; see `require_image_tokenizer`."""

    def __post_init__(self) -> None:
        rows = embedding_weight(self.model).shape[0]
        if rows < self.vocabulary.size:
            raise CheckpointError(
                f"model: expected at least {self.vocabulary.size} embedding rows, got {rows}. "
                "Use the model and the processor from the same checkpoint."
            )
        check_codebook(self.image_tokenizer, self.vocabulary.codebook_size)
        factor = 1 if self.image_tokenizer is None else self.image_tokenizer.downsample_factor
        for width, height in self.processor.sizes:
            if min(width, height) <= 0 or width % factor or height % factor:
                raise CheckpointError(
                    f"sizes: expected multiples of the image tokenizer's downsampling factor "
                    f"{factor}, got {width} x {height}."
                )

    @property
    def vocabulary(self) -> Vocabulary:
        """Id ranges of text tokens, image tokens and special tokens."""
        return self.processor.vocabulary

    def require_image_tokenizer(self) -> ImageTokenizer:
        """Return the image tokenizer, or raise a `CheckpointError`."""
        if self.image_tokenizer is None:
            raise CheckpointError(
                f"checkpoint: has no image tokenizer (no {IMAGE_TOKENIZER_FOLDER}/). Pass the "
                "folder of the image tokenizer that it was trained with."
            )
        return self.image_tokenizer

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: str = "auto",
        image_tokenizer: Path | None = None,
    ) -> Checkpoint:
        """Load a checkpoint for inference.

        Args:
            folder: A folder, or owner/name on the Hugging Face hub.
            device: Device of the model and the image tokenizer; None chooses the fastest.
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU.
            image_tokenizer: Other image tokenizer to use; None loads the folder's own, if any.

        Raises:
            CheckpointError: The folder is not a Liquid checkpoint, its parts do not match, or a
                file in it is broken.
            ConfigError: The device or dtype is unknown.
        """
        path = local_folder(folder)
        target = resolve_device(device)
        processor, tokenizer = load_parts(path, target, image_tokenizer)
        model = load_language_model(path, resolve_dtype(dtype, target))
        cast("torch.nn.Module", model).to(target).eval()
        return cls(model=model, processor=processor, image_tokenizer=tokenizer)

    def save(
        self,
        folder: Path,
        dtype: str | None = None,
        *,
        max_shard_size: str = "5GB",
        overwrite: bool = False,
    ) -> Path:
        """Write the checkpoint as one folder, completely or not at all.

        Args:
            folder: Where to write; must be missing or empty unless `overwrite`.
            dtype: dtype of the language model's weights on disk; None keeps the model's own.
            max_shard_size: Maximum size of a weight file, such as "40MB".
            overwrite: Replace an existing folder.

        Returns:
            ``folder``.

        Raises:
            ConfigError: The dtype is unknown.
            LiquidError: The folder exists or cannot be written.
        """
        chosen = self.model.dtype
        if dtype is not None:
            if dtype == "auto":
                raise ConfigError("dtype: expected float32, bfloat16 or float16, got 'auto'.")
            chosen = resolve_dtype(dtype, torch.device("cpu"))
        with atomic_folder(folder, overwrite=overwrite) as temporary, quiet():
            self.model.save_pretrained(
                temporary,
                state_dict=_cast(self.model.state_dict(), chosen),
                max_shard_size=max_shard_size,
            )
            config = read_json(temporary / "config.json")
            config["dtype"] = str(chosen).removeprefix("torch.")
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            self.processor.save_pretrained(temporary)
            if self.image_tokenizer is not None:
                self.image_tokenizer.save(temporary / IMAGE_TOKENIZER_FOLDER)
        return folder


def embedding_weight(model: PreTrainedModel) -> torch.Tensor:
    """Return the weight of the input embedding, (rows, D)."""
    return cast("torch.nn.Embedding", model.get_input_embeddings()).weight


def check_codebook(image_tokenizer: ImageTokenizer | None, codebook_size: int) -> None:
    """Raise a `CheckpointError` unless there are as many codes as image tokens."""
    if image_tokenizer is not None and image_tokenizer.codebook_size != codebook_size:
        found = image_tokenizer.codebook_size
        raise CheckpointError(
            f"image tokenizer: expected {codebook_size} codes, as in the language model, got "
            f"{found}. Expand with --codebook-size {found}, or use the model's image tokenizer."
        )


def load_parts(
    folder: Path, device: torch.device, image_tokenizer: Path | None = None
) -> tuple[LiquidProcessor, ImageTokenizer | None]:
    """Load a local folder's processor, and its image tokenizer or another one.

    Raises:
        CheckpointError: The folder is not a Liquid checkpoint, or a file in it is broken.
    """
    processor = LiquidProcessor.from_pretrained(folder)
    own = folder / IMAGE_TOKENIZER_FOLDER
    source = image_tokenizer or (own if own.is_dir() else None)
    return processor, None if source is None else load_image_tokenizer(source).to(device)


def load_language_model(
    folder: Path, dtype: torch.dtype, gguf_file: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load the causal language model of a local folder and check that no weight is missing.

    Args:
        folder: A local model folder.
        dtype: dtype of the weights in memory.
        gguf_file: Name of a GGUF file in the folder to read instead of safetensors.
        **options: Further options of `from_pretrained`, such as `attn_implementation`.

    Raises:
        CheckpointError: A file is missing or broken, or the weights do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    options |= _gguf_options(gguf_file) if gguf_file else {"use_safetensors": True}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, **options
            )
            model, report = loaded
    # Broken files raise a dozen error types; safetensors' own has no public base class.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the weights cannot be read ({first_line(error)}). "
            "Copy or convert the model again, as safetensors."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}. Copy it again."
        )
    return cast("PreTrainedModel", model)


def empty_language_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Build the language model of a local folder in float32, with parameters on the meta device.

    Buffers are real because they are computed and not stored in any file. Further options of
    `from_config`, such as `attn_implementation`, are passed on.

    Raises:
        CheckpointError: The configuration cannot be read.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32, **options
            )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: no model can be built from its config.json ({first_line(error)}). "
            "Copy it again."
        ) from error
    model.tie_weights()
    return cast("PreTrainedModel", model)


def _gguf_options(gguf_file: str) -> dict[str, Any]:
    """Request plain dense weights, which transformers before 5.23 always returns."""
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf_file}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def local_folder(name: str | Path) -> Path:
    """Return a local folder, or download owner/name from the hub and return its cached folder.

    Raises:
        CheckpointError: Neither exists.
    """
    path = Path(name)
    if path.exists() or not isinstance(name, str) or not _HUB_NAME.fullmatch(name):
        read_config(path)
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"{name}: not a local folder, and it could not be loaded from the hub. "
            "Check the name, the network and your access."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars inside the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert floating-point weights; weights that share memory keep sharing it."""
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in converted:
            converted[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: converted[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}

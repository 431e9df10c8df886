"""A Liquid model on disk and in memory: language model, processor and image tokenizer.

Contract: the folder is a stock Hugging Face causal language model (`config.json`, safetensors,
tokenizer files, `chat_template.jinja`) that loads without this package; `processor_config.json` and
`image_tokenizer/` stand beside it. Saving is whole or not at all and writes safetensors only.
Loading never runs code from a folder, and a weight that is missing is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.files import atomic_folder
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.model.processor import LiquidProcessor, read_config, read_json, read_vocabulary
from liquidmm.runtime import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from liquidmm.image_tokenizer.tokenizer import ImageTokenizer
    from liquidmm.model.processor import Prepare
    from liquidmm.vocabulary import Vocabulary

__all__ = ["Checkpoint", "load_language_model", "local_folder", "quiet", "read_vocabulary"]

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The three parts of a Liquid model; they fit each other."""

    model: PreTrainedModel
    """A stock causal language model with at least `vocabulary.size` rows."""
    processor: LiquidProcessor
    """Tokenizer, id layout and picture sizes."""
    images: ImageTokenizer | None
    """The image tokenizer, or None where the folder has none; `image_tokenizer` insists."""

    def __post_init__(self) -> None:
        rows = table_of(self.model).shape[0]
        if rows < self.vocabulary.size:
            raise CheckpointError(
                f"model: has {rows} rows, the vocabulary needs {self.vocabulary.size}. "
                "Take both from the same checkpoint."
            )
        check_codebook(self.images, self.vocabulary.codebook_size)
        factor = 1 if self.images is None else self.images.factor
        for width, height in self.processor.sizes:
            if min(width, height) <= 0 or width % factor or height % factor:
                raise CheckpointError(
                    f"sizes: {width} x {height} is no multiple of the image tokenizer's factor "
                    f"{factor}. Choose multiples."
                )

    @property
    def vocabulary(self) -> Vocabulary:
        """Where text, codes and markers lie."""
        return self.processor.vocabulary

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The image tokenizer.

        Raises:
            CheckpointError: This checkpoint has none.
        """
        if self.images is None:
            raise CheckpointError(
                f"checkpoint: has no image tokenizer (no {IMAGE_TOKENIZER_FOLDER}/). "
                "Name the folder of the one it was trained with."
            )
        return self.images

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: str = "auto",
        image_tokenizer: Path | None = None,
    ) -> Checkpoint:
        """Load a checkpoint, ready for inference.

        Args:
            folder: A folder, or the name of one on the Hugging Face hub (owner/name).
            device: Where to put model and image tokenizer; None takes the best there is.
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is float32 on a CPU.
            image_tokenizer: Another image tokenizer; None takes the folder's own, if it has one.

        Raises:
            CheckpointError: The folder is no Liquid checkpoint, its parts don't fit, or a file in
                it is broken.
            ConfigError: The device or dtype is unknown.
        """
        path = local_folder(folder)
        target = resolve_device(device)
        processor, images = load_parts(path, target, image_tokenizer)
        model = load_language_model(path, resolve_dtype(dtype, target))
        cast("torch.nn.Module", model).to(target).eval()
        return cls(model=model, processor=processor, images=images)

    def save(
        self,
        folder: Path,
        dtype: str | None = None,
        *,
        max_shard_size: str = "5GB",
        overwrite: bool = False,
    ) -> Path:
        """Write the checkpoint as one folder, whole or not at all.

        Args:
            folder: Where to write; must be missing or empty unless `overwrite`.
            dtype: Number type of the language model's weights on disk; None keeps the model's own.
            max_shard_size: Largest weight file, such as "40MB".
            overwrite: Replace what is there.

        Returns:
            ``folder``.

        Raises:
            ConfigError: The dtype is unknown.
            LiquidError: The folder exists or can't be written.
        """
        chosen = self.model.dtype
        if dtype is not None:
            if dtype == "auto":
                raise ConfigError(
                    "dtype: 'auto' can't be saved. Name float32, bfloat16 or float16."
                )
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
            if self.images is not None:
                self.images.save(temporary / IMAGE_TOKENIZER_FOLDER)
        return folder

    def with_pictures(
        self,
        images: ImageTokenizer,
        sizes: tuple[tuple[int, int], ...],
        prepare: Prepare = "crop",
    ) -> Checkpoint:
        """Return this checkpoint with another image tokenizer and other trained picture sizes.

        Args:
            images: Its codebook must have as many codes as the vocabulary.
            sizes: Width and height in pixels; multiples of the tokenizer's factor.
            prepare: How a picture of another shape was fitted in training.

        Raises:
            CheckpointError: The codebook differs, or a size is no multiple of the factor.
        """
        processor = LiquidProcessor(self.processor.tokenizer, self.vocabulary, sizes, prepare)
        return replace(self, images=images, processor=processor)


def table_of(model: PreTrainedModel) -> torch.Tensor:
    """Return the input embedding's weight, (rows, D)."""
    return cast("torch.nn.Embedding", model.get_input_embeddings()).weight


def check_codebook(images: ImageTokenizer | None, codebook_size: int) -> None:
    """Refuse an image tokenizer whose codebook has another size.

    Raises:
        CheckpointError: The sizes differ.
    """
    if images is not None and images.codebook_size != codebook_size:
        raise CheckpointError(
            f"image tokenizer: its codebook has {images.codebook_size} codes, the language model "
            f"{codebook_size}. Expand with --codebook-size {images.codebook_size}, "
            "or use the tokenizer that belongs to the model."
        )


def load_parts(
    folder: Path, device: torch.device, image_tokenizer: Path | None = None
) -> tuple[LiquidProcessor, ImageTokenizer | None]:
    """Load what stands beside the language model.

    Args:
        folder: A local checkpoint folder.
        device: Where to put the image tokenizer.
        image_tokenizer: Another image tokenizer; None takes the folder's own, if it has one.

    Returns:
        The processor, and the image tokenizer where there is one.

    Raises:
        CheckpointError: The folder is no Liquid checkpoint, or a file in it is broken.
    """
    processor = LiquidProcessor.from_pretrained(folder)
    own = folder / IMAGE_TOKENIZER_FOLDER
    source = image_tokenizer or (own if own.is_dir() else None)
    return processor, None if source is None else load_image_tokenizer(source).to(device)


def load_language_model(
    folder: Path, dtype: torch.dtype, gguf_file: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load a causal language model and insist that no weight is missing.

    Args:
        folder: A local model folder.
        dtype: Number type of the weights in memory.
        gguf_file: Name of a GGUF file in the folder to read instead of safetensors.
        **options: What else transformers shall know, such as `attn_implementation`.

    Raises:
        CheckpointError: A file is missing or broken, or the weights don't fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    options |= _gguf_options(gguf_file) if gguf_file else {"use_safetensors": True}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, **options
            )
            model, report = loaded
    # Broken files raise a dozen kinds, safetensors' own among them, which has no public base.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{folder}: the weights can't be read ({reason}). "
            "Copy or convert the model again, as safetensors."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}. Copy it again."
        )
    return cast("PreTrainedModel", model)


def empty_language_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Build a causal language model of a folder's shape without any weight.

    Args:
        folder: A local model folder.
        **options: What else transformers shall know, such as `attn_implementation`.

    Returns:
        The model, float32, its parameters on the meta device; buffers are real, since they are
        computed and in no file.

    Raises:
        CheckpointError: The configuration can't be read.
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{folder}: no model can be made of its config.json ({reason}). Copy it again."
        ) from error
    model.tie_weights()
    return cast("PreTrainedModel", model)


def _gguf_options(gguf_file: str) -> dict[str, Any]:
    """Ask for plain dense weights; transformers before 5.23 gives nothing else."""
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf_file}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def local_folder(name: str | Path) -> Path:
    """Give the local folder of a path or of a model on the hub.

    Args:
        name: A path; or owner/name, which is downloaded (safetensors and JSON only) or taken from
            the local cache.

    Raises:
        CheckpointError: There is neither such a folder nor such a model.
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
            f"{name}: is neither a folder here nor a model that the hub gives. "
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
    """Convert floating weights; weights that share memory still do afterwards."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            done[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: done[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}

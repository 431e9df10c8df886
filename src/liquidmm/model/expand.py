"""Expansion of a Hugging Face decoder language model into a Liquid checkpoint.

The base model's embedding and head rows are never changed, so the logits of its tokens stay the
same; rows are only added:

1. Special tokens are added to the tokenizer (`liquidmm.model.special_tokens`). A tokenizer only
   keeps ids that it assigned itself, so the special tokens never come after the image tokens.
2. Image tokens start after the base's embedding (``config.vocab_size`` rows, including padding)
   and after every special token. `processor_config.json` stores the offset.
3. New rows start from the mean of the trained rows (default), a sample from their normal
   distribution, or projected codebook vectors. An untied head uses its own statistics, a tied head
   stays tied, and a bias of the head starts from its mean.

Sources: mean start as in the published Liquid checkpoint; why the mean is a good start:
https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import torch
from annotated_types import Ge
from torch import Tensor

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.model.checkpoint import (
    Checkpoint,
    check_codebook,
    embedding_weight,
    load_language_model,
    local_folder,
    quiet,
)
from liquidmm.model.processor import PROCESSOR_FILE, LiquidProcessor, load_tokenizer, read_config
from liquidmm.model.special_tokens import add_special_tokens
from liquidmm.ranges import check_ranges
from liquidmm.runtime import generator, require_extra
from liquidmm.vocabulary import SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_CODEBOOK_SIZE = 8192
InitMethod = Literal["mean", "normal", "codebook"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpandConfig:
    """What to add to a language model, and how to initialize the new rows."""

    codebook_size: Annotated[int, Ge(1)] | None = None
    """Number of image tokens; None uses the image tokenizer's, or 8192 without one."""
    init: InitMethod = "mean"
    """Initial values of the new rows: the mean of the old rows; samples from their normal
    distribution; or the image tokenizer's vectors, randomly projected around that mean."""
    init_std: Annotated[float, Ge(0)] = 1.0
    """Standard deviation for `normal` and `codebook`, relative to the old rows. transformers' own
    resizing corresponds to 3.2e-5."""
    image_tokenizer: Path | None = None
    """Image tokenizer to include in the checkpoint; None includes none."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels of the images to train on; empty if not yet known."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """dtype of the saved weights; None keeps that of the base model."""
    seed: int = 0
    """Seed for random initial values."""

    def __post_init__(self) -> None:
        check_ranges(self)
        methods = get_args(InitMethod)
        if self.init not in methods:
            raise ConfigError(f"init: unknown method '{self.init}'.{suggest(self.init, methods)}")
        if self.init == "codebook" and self.image_tokenizer is None:
            raise ConfigError("init: 'codebook' needs an image tokenizer. Set image_tokenizer.")


def expand(base: str | Path, out: str | Path, config: ExpandConfig | None = None) -> Checkpoint:
    """Turn a decoder language model into a Liquid checkpoint and save it.

    Args:
        base: Folder of a Hugging Face causal language model, a .gguf file, or owner/name on the
            hub.
        out: Folder to write; must be missing or empty.
        config: Codebook size and initialization of the new rows; None uses the defaults.

    Returns:
        The checkpoint as written, on the CPU.

    Raises:
        CheckpointError: The base is missing, not a decoder, without a tokenizer, or already
            expanded; or the image tokenizer has another codebook size.
        LiquidError: ``out`` exists already or cannot be written.
    """
    config = config or ExpandConfig()
    images = load_image_tokenizer(config.image_tokenizer) if config.image_tokenizer else None
    default_size = images.codebook_size if images else DEFAULT_CODEBOOK_SIZE
    codebook_size = config.codebook_size or default_size
    check_codebook(images, codebook_size)
    check_output_folder(Path(out))
    model, tokenizer = load_base(base)

    old_rows = embedding_weight(model).shape[0]
    trained = min(len(tokenizer), old_rows)
    tokenizer = add_special_tokens(tokenizer, old_rows)
    boi, eoi, unconditional = cast(
        "list[int]", tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    )
    vocabulary = Vocabulary(
        text_size=max(len(tokenizer), boi + 1, eoi + 1, unconditional + 1),
        image_offset=max(old_rows, len(tokenizer)),
        codebook_size=codebook_size,
        boi=boi,
        eoi=eoi,
        unconditional=unconditional,
    )
    codebook = images.model.quantize.embedding.weight if images is not None else None
    add_rows(model, vocabulary, trained, config, codebook)
    processor = LiquidProcessor(tokenizer, vocabulary, config.sizes)
    checkpoint = Checkpoint(model=model, processor=processor, image_tokenizer=images)
    checkpoint.save(Path(out), config.dtype)
    return checkpoint


def load_base(base: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model in its own dtype, and its tokenizer.

    Raises:
        CheckpointError: The base is missing, broken, not a decoder, or already expanded.
    """
    if str(base).endswith(".gguf"):
        return _load_gguf(Path(base))
    folder = local_folder(base)
    path = folder / PROCESSOR_FILE
    if path.is_file() and "vocabulary" in path.read_text("utf-8"):
        raise CheckpointError(f"{folder}: is already a Liquid checkpoint. Use it as it is.")
    check_decoder(folder)
    tokenizer = load_tokenizer(folder)
    if all(token in tokenizer.get_vocab() for token in SPECIAL_TOKENS):
        raise CheckpointError(
            f"{folder}: the tokenizer contains {SPECIAL_TOKENS[0]}, so the model is already "
            "expanded. Use it as it is, or start from its base model."
        )
    named = read_config(folder).get("dtype") or read_config(folder).get("torch_dtype")
    dtype = getattr(torch, named) if isinstance(named, str) else torch.float32
    return load_language_model(folder, dtype), tokenizer


def _load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and tokenizer of a GGUF file, dequantized to float32."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Check the path.")
    for module in ("gguf", "accelerate"):
        require_extra(module, "gguf")
    from transformers import AutoTokenizer

    model = load_language_model(path.parent, torch.float32, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, cast("PreTrainedTokenizerBase", tokenizer)


def check_decoder(folder: Path) -> None:
    """Raise a `CheckpointError` unless a folder's `config.json` describes a decoder-only model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = read_config(folder).get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{folder}: transformers does not know the model type {kind!r}. "
            "Use a decoder language model."
        ) from error
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    named = getattr(config, "architectures", None) or [kind]
    if causal is None or config.is_encoder_decoder or named[0] != causal.__name__:
        raise CheckpointError(
            f"{folder}: {named[0]} is not a decoder language model. "
            "Use one that AutoModelForCausalLM loads, such as a LlamaForCausalLM."
        )


def check_output_folder(out: Path) -> None:
    """Raise a `CheckpointError` unless a folder is missing or empty, before long work starts."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already and is not empty. Choose another folder.")


def add_rows(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    trained: int,
    config: ExpandConfig,
    codebook: Tensor | None = None,
) -> None:
    """Grow embedding and head in place to ``vocabulary.size`` rows.

    The statistics use only the first ``trained`` rows, which belong to tokens. The `codebook`
    initialization requires the vectors of the image codes, (K, d).
    """
    old_rows = embedding_weight(model).shape[0]
    # The rows that transformers samples here are overwritten below, so preserve the global state.
    with torch.random.fork_rng(devices=[]), quiet():
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    random = generator(config.seed, torch.device("cpu"))
    start = _initializer(config, random, codebook)
    embedding = embedding_weight(model)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weights = [embedding]
    if head is not None and head.weight.data_ptr() != embedding.data_ptr():
        weights.append(head.weight)
    with torch.no_grad():
        for weight in weights:
            old = weight[:trained].float()
            weight[old_rows : vocabulary.image_offset] = old.mean(0).to(weight.dtype)
            weight[vocabulary.image_slice] = start(old, vocabulary.codebook_size).to(weight.dtype)
        bias = getattr(head, "bias", None)
        if isinstance(bias, Tensor):
            bias[old_rows:] = bias[:trained].float().mean()


def _initializer(
    config: ExpandConfig, random: torch.Generator, codebook: Tensor | None
) -> Callable[[Tensor, int], Tensor]:
    """Return the function that maps old rows (n, D) and K to new rows (K, D)."""

    def mean(old: Tensor, count: int) -> Tensor:
        return old.mean(0).expand(count, -1)

    def normal(old: Tensor, count: int) -> Tensor:
        centered = (old - old.mean(0)).double()
        values, vectors = torch.linalg.eigh(centered.T @ centered / old.shape[0])
        root: Tensor = vectors * values.clamp(min=0).sqrt()  # (D, D), root @ root.T = covariance
        noise = torch.randn(count, old.shape[1], generator=random, dtype=torch.float64)
        offsets: Tensor = (noise @ root.T).float()
        return old.mean(0) + config.init_std * offsets

    def projected(old: Tensor, count: int) -> Tensor:
        assert codebook is not None
        vectors = codebook.detach().float()
        vectors = (vectors - vectors.mean(0)) / vectors.std().clamp(min=1e-12)
        width = vectors.shape[1]
        projection = torch.randn(width, old.shape[1], generator=random) / width**0.5
        offsets: Tensor = old.std(0, correction=0) * (vectors[:count] @ projection)
        return old.mean(0) + config.init_std * offsets

    return {"mean": mean, "normal": normal, "codebook": projected}[config.init]

"""Any Hugging Face decoder language model -> a Liquid checkpoint.

Contract: the rows of the base's embedding table and head are never changed, so the logits of the
old ids stay what they were; only rows are added. In order:

1. Markers. `<boi>`, `<eoi>` and `<unconditional>` take the place of three unused tokens of the
   tokenizer (Gemma's `<unused0>`, Llama 3's `<|reserved_special_token_0|>` and their like), which
   are renamed as in the published checkpoint. Without such tokens they are added to the tokenizer,
   which gives them the ids from ``len(tokenizer)`` on: rows of the table's padding where it has
   some, else new rows. An id that a tokenizer assigns itself is the only kind that survives its
   saving, therefore markers never stand behind the codes.
2. Codes. The image slice starts after the base's table (``config.vocab_size`` rows, padding
   included) and after every marker. It is stored in `processor_config.json`.
3. Start. New rows get the mean of the tokenizer's rows (the default), a draw from their normal
   distribution, or projected codebook vectors; a head of its own is treated by its own statistics,
   a tied head stays tied, a head's bias gets its mean.

Sources: mean start as in the published Liquid release; why the mean is a good start:
https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from liquidmm.errors import CheckpointError, ConfigError, suggest
from liquidmm.image_tokenizer.tokenizer import load_image_tokenizer
from liquidmm.model.checkpoint import (
    Checkpoint,
    check_codebook,
    load_language_model,
    local_folder,
    quiet,
    table_of,
)
from liquidmm.model.markers import add_special_tokens_to
from liquidmm.model.processor import PROCESSOR_FILE, LiquidProcessor, load_tokenizer, read_config
from liquidmm.runtime import generator, require_extra
from liquidmm.vocabulary import SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INITS = ("mean", "normal", "codebook")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpandConfig:
    """What to add to a language model, and how the new rows start."""

    codebook_size: int | None = None
    """Number of image codes; None takes the image tokenizer's, or 8192 without one."""
    init: Literal["mean", "normal", "codebook"] = "mean"
    """Start of the new rows: the old rows' mean; a draw from their normal distribution (mean and
    covariance); or the image tokenizer's vectors, randomly projected around that mean."""
    spread: float = 1.0
    """Deviation of `normal` and `codebook` starts, relative to the old rows; transformers'
    own resizing amounts to 3.2e-5."""
    image_tokenizer: Path | None = None
    """Image tokenizer to put into the checkpoint; None leaves it out."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels the model will be trained on; empty if not yet known."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number type of the saved weights; None keeps the base's."""
    seed: int = 0
    """Seed of the random starts."""

    def __post_init__(self) -> None:
        if self.codebook_size is not None and self.codebook_size <= 0:
            raise ConfigError(
                f"codebook_size: {self.codebook_size} is not positive. Give the number of codes."
            )
        if self.init not in INITS:
            raise ConfigError(f"init: '{self.init}' is unknown.{suggest(self.init, INITS)}")
        if self.init == "codebook" and self.image_tokenizer is None:
            raise ConfigError("init: 'codebook' needs an image tokenizer. Name its folder.")
        if self.spread < 0:
            raise ConfigError(f"spread: {self.spread} is negative. Give 0 or more.")


def expand(base: str | Path, out: str | Path, config: ExpandConfig | None = None) -> Checkpoint:
    """Turn a decoder language model into a Liquid checkpoint and save it.

    Args:
        base: Folder of a Hugging Face causal language model, a .gguf file, or owner/name on the
            hub.
        out: Folder to write; must be missing or empty.
        config: Codebook size and start of the new rows; None takes the defaults.

    Returns:
        The checkpoint as it was written, on the CPU.

    Raises:
        CheckpointError: The base is missing, no decoder, without a tokenizer, or expanded already;
            or the image tokenizer has another codebook.
        LiquidError: ``out`` exists already or can't be written.
    """
    config = config or ExpandConfig()
    images = load_image_tokenizer(config.image_tokenizer) if config.image_tokenizer else None
    codebook_size = config.codebook_size or (images.codebook_size if images else 8192)
    check_codebook(images, codebook_size)
    check_free(Path(out))
    model, tokenizer = load_base(base)

    table = table_of(model)
    old_rows, known = table.shape[0], min(len(tokenizer), table.shape[0])
    tokenizer = add_special_tokens_to(tokenizer, old_rows)
    boi, eoi, unconditional = cast(
        "list[int]", tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    )
    offset = max(old_rows, len(tokenizer))
    vocabulary = Vocabulary(
        text_size=max(len(tokenizer), boi + 1, eoi + 1, unconditional + 1),
        image_offset=offset,
        codebook_size=codebook_size,
        boi=boi,
        eoi=eoi,
        unconditional=unconditional,
    )
    codebook = images.model.quantize.embedding.weight if images is not None else None
    add_rows(model, vocabulary, known, config, codebook)
    processor = LiquidProcessor(tokenizer, vocabulary, config.sizes)
    checkpoint = Checkpoint(model=model, processor=processor, images=images)
    checkpoint.save(Path(out), config.dtype)
    return checkpoint


def load_base(base: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model as it was saved, and its tokenizer.

    Raises:
        CheckpointError: It is missing, broken, no decoder, or a Liquid checkpoint already.
    """
    if str(base).endswith(".gguf"):
        return _load_gguf(Path(base))
    folder = local_folder(base)
    if (folder / PROCESSOR_FILE).is_file() and "vocabulary" in (folder / PROCESSOR_FILE).read_text(
        "utf-8"
    ):
        raise CheckpointError(f"{folder}: is a Liquid checkpoint already. Use it as it is.")
    check_decoder(folder)
    tokenizer = load_tokenizer(folder)
    if all(marker in tokenizer.get_vocab() for marker in SPECIAL_TOKENS):
        raise CheckpointError(
            f"{folder}: its tokenizer knows {SPECIAL_TOKENS[0]}, so it is expanded already. "
            "Use it as it is, or start from its base model."
        )
    named = read_config(folder).get("dtype") or read_config(folder).get("torch_dtype")
    dtype = getattr(torch, named) if isinstance(named, str) else torch.float32
    return load_language_model(folder, dtype), tokenizer


def check_decoder(folder: Path) -> None:
    """Refuse a folder whose `config.json` isn't that of a decoder-only language model.

    Raises:
        CheckpointError: The architecture is unknown or is none that writes text from left to right.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = read_config(folder).get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{folder}: model type {kind!r} is not known to transformers. "
            "Give a decoder language model."
        ) from error
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    named = getattr(config, "architectures", None) or [kind]
    if causal is None or config.is_encoder_decoder or named[0] != causal.__name__:
        raise CheckpointError(
            f"{folder}: {named[0]} is no decoder language model. "
            "Give one that AutoModelForCausalLM loads, such as a LlamaForCausalLM."
        )


def check_free(out: Path) -> None:
    """Refuse an output folder that holds something, before the long work starts.

    Raises:
        CheckpointError: It does.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already and isn't empty. Choose another folder.")


def add_rows(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    known: int,
    config: ExpandConfig,
    codebook: Tensor | None = None,
) -> None:
    """Grow embedding and head in place to ``vocabulary.size`` rows.

    Args:
        model: The base model.
        vocabulary: The layout to reach.
        known: Rows that have a token, so that were trained; their statistics count.
        config: How the rows start.
        codebook: Vectors of the image codes, (K, d); needed for the `codebook` start.
    """
    old_rows = table_of(model).shape[0]
    # Rows that are overwritten below: what transformers draws for them must not move global state.
    with torch.random.fork_rng(devices=[]), quiet():
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    random = generator(config.seed, torch.device("cpu"))
    start = _starts(config, random, codebook)
    table = table_of(model)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        _fill(table, old_rows, known, vocabulary, start)
        if head is None:
            return
        if head.weight.data_ptr() != table.data_ptr():
            _fill(head.weight, old_rows, known, vocabulary, start)
        bias = getattr(head, "bias", None)
        if isinstance(bias, Tensor):
            bias[old_rows:] = bias[:known].float().mean()


def _fill(
    weight: Tensor,
    old_rows: int,
    known: int,
    vocabulary: Vocabulary,
    start: Callable[[Tensor, int], Tensor],
) -> None:
    """Write the new rows: the mean for markers, ``start`` for the codes."""
    old = weight[:known].float()
    weight[old_rows : vocabulary.image_offset] = old.mean(0).to(weight.dtype)
    weight[vocabulary.image_slice] = start(old, vocabulary.codebook_size).to(weight.dtype)


def _starts(
    config: ExpandConfig, random: torch.Generator, codebook: Tensor | None
) -> Callable[[Tensor, int], Tensor]:
    """Choose the function (old rows (n, D), K) -> new rows (K, D)."""

    def mean(old: Tensor, count: int) -> Tensor:
        return old.mean(0).expand(count, -1)

    def normal(old: Tensor, count: int) -> Tensor:
        centred = (old - old.mean(0)).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / old.shape[0])
        root: Tensor = vectors * values.clamp(min=0).sqrt()  # (D, D), root @ root.T = covariance
        noise = torch.randn(count, old.shape[1], generator=random, dtype=torch.float64)
        offsets: Tensor = (noise @ root.T).float()
        return old.mean(0) + config.spread * offsets

    def projected(old: Tensor, count: int) -> Tensor:
        assert codebook is not None
        vectors = codebook.detach().float()
        vectors = (vectors - vectors.mean(0)) / vectors.std().clamp(min=1e-12)
        width = vectors.shape[1]
        projection = torch.randn(width, old.shape[1], generator=random) / width**0.5
        offsets: Tensor = old.std(0, correction=0) * (vectors[:count] @ projection)
        return old.mean(0) + config.spread * offsets

    return {"mean": mean, "normal": normal, "codebook": projected}[config.init]


def _load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a GGUF file, dequantized to float32."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    for module in ("gguf", "accelerate"):
        require_extra(module, "gguf")
    from transformers import AutoTokenizer

    model = load_language_model(path.parent, torch.float32, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, cast("PreTrainedTokenizerBase", tokenizer)

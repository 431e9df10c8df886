"""The text side of a checkpoint: tokenizer, vocabulary layout and image sizes.

They are stored in `processor_config.json` next to the tokenizer's own files::

    {"processor_class": "LiquidProcessor",
     "vocabulary": {"text_size": ..., "image_offset": ..., "codebook_size": ...,
                    "boi": ..., "eoi": ..., "unconditional": ...},
     "sizes": [[width, height], ...],
     "resize": "crop" | "pad",
     "sampling": {"guidance": ..., ...}}      only if defaults were measured for the model

A folder without this file is accepted if it has the layout of the published Liquid checkpoint
(https://huggingface.co/Junfeng5/Liquid_V1_7B): the tokenizer contains `<boi>`, `<eoi>` and
`<unconditional>`, the embedding has 8192 more rows than the tokenizer has tokens, code 0 has the id
``len(tokenizer)``, and images are 512 x 512.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from transformers.processing_utils import ProcessorMixin

from liquidmm.errors import CheckpointError, first_line
from liquidmm.sequences import Sequences
from liquidmm.vocabulary import SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESSOR_FILE = "processor_config.json"
PUBLISHED_CODEBOOK = 8192
PUBLISHED_SIZES = ((512, 512),)

ResizeMode = Literal["crop", "pad"]
"""How to fit an image with another aspect ratio: crop the center, or pad to a square."""


class LiquidProcessor(ProcessorMixin):
    """Tokenizer, vocabulary and image sizes of one checkpoint; `sequences` builds token ids."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        sizes: tuple[tuple[int, int], ...] = (),
        resize: ResizeMode = "crop",
        sampling: dict[str, Any] | None = None,
    ) -> None:
        """Check and combine the parts.

        Args:
            tokenizer: The tokenizer, including the three image special tokens.
            vocabulary: The layout of its ids.
            sizes: Width and height in pixels of the training images; empty if there were none.
            resize: How training images were fitted to ``sizes``.
            sampling: The model's defaults in `liquidmm.generate.sampling.SamplingConfig`.

        Raises:
            CheckpointError: The tokenizer has other ids for the special tokens.
        """
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.sizes = sizes
        self.resize: ResizeMode = resize
        self.sampling = sampling
        self.sequences = Sequences(tokenizer, vocabulary)
        found = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        expected = [vocabulary.boi, vocabulary.eoi, vocabulary.unconditional]
        if found != expected:
            raise CheckpointError(
                f"tokenizer: expected the ids {expected} for {', '.join(SPECIAL_TOKENS)}, got "
                f"{found}. Use the tokenizer and {PROCESSOR_FILE} from the same checkpoint."
            )

    def to_dict(self, **_: Any) -> dict[str, Any]:
        """Return the content of `processor_config.json`."""
        fields: dict[str, Any] = {
            "processor_class": type(self).__name__,
            "vocabulary": self.vocabulary.to_dict(),
            "sizes": [list(size) for size in self.sizes],
            "resize": self.resize,
        }
        return fields if self.sampling is None else {**fields, "sampling": self.sampling}

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write the tokenizer's files and `processor_config.json` into a folder."""
        del push_to_hub, kwargs
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        files = self.tokenizer.save_pretrained(folder)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / PROCESSOR_FILE).write_text(text, encoding="utf-8")
        return [*map(str, files), str(folder / PROCESSOR_FILE)]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> LiquidProcessor:
        """Load the processor of a checkpoint folder; other options are ignored.

        Raises:
            CheckpointError: The folder is not a Liquid checkpoint, or a file in it is broken.
        """
        del kwargs
        folder = Path(pretrained_model_name_or_path)
        vocabulary = read_vocabulary(folder)
        return cls(load_tokenizer(folder), vocabulary, **_read_options(folder))


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary layout of a checkpoint folder from its JSON files.

    Raises:
        CheckpointError: The folder is missing or broken, is not a model, or has no image tokens.
    """
    folder = Path(folder)
    rows = read_config(folder).get("vocab_size")
    path = folder / PROCESSOR_FILE
    data = read_json(path).get("vocabulary") if path.is_file() else None
    if isinstance(data, dict):
        vocabulary = Vocabulary.from_dict(data, str(path))
        if rows is not None and rows < vocabulary.size:
            raise CheckpointError(
                f"{folder}: vocab_size: expected at least {vocabulary.size} ({PROCESSOR_FILE}), "
                f"got {rows} (config.json). Use both files from the same checkpoint."
            )
        return vocabulary
    published = _published_vocabulary(folder, rows)
    if published is None:
        raise CheckpointError(
            f"{folder}: is a language model without image tokens. "
            f"Create a checkpoint from it first: liquid expand {folder} OUT"
        )
    return published


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder.

    Raises:
        CheckpointError: The tokenizer is missing or broken.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{folder}: has no tokenizer ({', '.join(names)}). Copy the model's tokenizer there."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # tokenizers raises a plain Exception for a file it cannot parse.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be read ({first_line(error)}). Copy its files again."
        ) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        CheckpointError: The folder or the file is missing, or the file is broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder. Check the path.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a model folder (no config.json). Check the path.")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        CheckpointError: The file cannot be read or contains something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Copy the file again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object. Copy the file again.")
    return data


def _read_options(folder: Path) -> dict[str, Any]:
    """Read sizes, resize mode and sampling defaults."""
    path = folder / PROCESSOR_FILE
    if not path.is_file():
        return {"sizes": PUBLISHED_SIZES}
    data = read_json(path)
    # Older checkpoints call it "prepare".
    resize = data.get("resize", data.get("prepare", "crop"))
    sampling = data.get("sampling")
    try:
        sizes = tuple((int(width), int(height)) for width, height in data.get("sizes", []))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: sizes: expected pairs of width and height in pixels, got {data['sizes']!r}."
        ) from error
    if resize not in ("crop", "pad"):
        raise CheckpointError(f"{path}: resize: expected 'crop' or 'pad', got {resize!r}.")
    if sampling is not None and not isinstance(sampling, dict):
        raise CheckpointError(f"{path}: sampling: expected an object, got {sampling!r}.")
    return {"sizes": sizes, "resize": resize, "sampling": sampling}


def _published_vocabulary(folder: Path, rows: int | None) -> Vocabulary | None:
    """Recognize the published layout, or return None."""
    if rows is None or not (folder / "tokenizer.json").is_file():
        return None
    data = read_json(folder / "tokenizer.json")
    pieces = data.get("model", {}).get("vocab", {})
    if isinstance(pieces, list):
        pieces = {piece[0]: index for index, piece in enumerate(pieces)}
    added = {token["content"]: token["id"] for token in data.get("added_tokens", ())}
    tokens = {**pieces, **added}
    if not tokens.keys() >= set(SPECIAL_TOKENS):
        return None
    text_size = len(tokens)
    if rows != text_size + PUBLISHED_CODEBOOK:
        raise CheckpointError(
            f"{folder}: the tokenizer contains {SPECIAL_TOKENS[0]}, but {PROCESSOR_FILE} is "
            f"missing and the layout is not the published one (vocab_size {rows}, {text_size} "
            f"tokens). Copy {PROCESSOR_FILE} from the original model."
        )
    boi, eoi, unconditional = (tokens[token] for token in SPECIAL_TOKENS)
    return Vocabulary(
        text_size=text_size,
        image_offset=text_size,
        codebook_size=PUBLISHED_CODEBOOK,
        boi=boi,
        eoi=eoi,
        unconditional=unconditional,
    )

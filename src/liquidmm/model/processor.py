"""The text side of a checkpoint: tokenizer, id layout and the pictures the model was trained on.

Contract: one `processor_config.json` beside the tokenizer's own files, read and written here only::

    {"processor_class": "LiquidProcessor",
     "vocabulary": {"text_size": ..., "image_offset": ..., "codebook_size": ...,
                    "boi": ..., "eoi": ..., "unconditional": ...},
     "sizes": [[width, height], ...],
     "prepare": "crop" | "pad",
     "sampling": {"guidance": ..., ...}}      only where defaults were measured for the model

A folder without it is still understood when it has the layout of the published Liquid checkpoint
(https://huggingface.co/Junfeng5/Liquid_V1_7B): the tokens `<boi>`, `<eoi>` and `<unconditional>`
are in the tokenizer, and the table has 8192 rows more than the tokenizer has tokens; code 0 then
has the id ``len(tokenizer)``, and pictures are 512 x 512.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from transformers.processing_utils import ProcessorMixin

from liquidmm.errors import CheckpointError
from liquidmm.sequences import Sequences
from liquidmm.vocabulary import SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESSOR_FILE = "processor_config.json"
PUBLISHED_CODEBOOK = 8192
PUBLISHED_SIZES = ((512, 512),)

Prepare = Literal["crop", "pad"]


class LiquidProcessor(ProcessorMixin):
    """Tokenizer, vocabulary and picture sizes of one checkpoint; `sequences` lays ids out."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        sizes: tuple[tuple[int, int], ...] = (),
        prepare: Prepare = "crop",
        sampling: dict[str, Any] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            tokenizer: The Hugging Face tokenizer, which knows the three markers.
            vocabulary: Where text, codes and markers lie.
            sizes: Width and height in pixels of the pictures trained on; empty where the model was
                never trained on pictures.
            prepare: How a picture of another shape was fitted in training.
            sampling: Fields of `liquidmm.generate.sampling.SamplingConfig` that this model draws
                best with; None where nobody measured them.

        Raises:
            CheckpointError: The tokenizer's markers have other ids than the vocabulary says.
        """
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.sizes = sizes
        self.prepare: Prepare = prepare
        self.sampling = sampling
        self.sequences = Sequences(tokenizer, vocabulary)
        found = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        expected = [vocabulary.boi, vocabulary.eoi, vocabulary.unconditional]
        if found != expected:
            raise CheckpointError(
                f"tokenizer: {', '.join(SPECIAL_TOKENS)} have the ids {found}, the vocabulary says "
                f"{expected}. Take tokenizer and {PROCESSOR_FILE} from the same checkpoint."
            )

    def to_dict(self, **_: Any) -> dict[str, Any]:
        """Return what `processor_config.json` holds."""
        fields: dict[str, Any] = {
            "processor_class": type(self).__name__,
            "vocabulary": self.vocabulary.to_dict(),
            "sizes": [list(size) for size in self.sizes],
            "prepare": self.prepare,
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
        """Read a checkpoint folder's tokenizer and layout; other options are ignored.

        Raises:
            CheckpointError: The folder is no Liquid checkpoint, or a file in it is broken.
        """
        del kwargs
        folder = Path(pretrained_model_name_or_path)
        vocabulary = read_vocabulary(folder)
        sizes, prepare = _pictures(folder)
        return cls(load_tokenizer(folder), vocabulary, sizes, prepare, _sampling(folder))


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the id layout of a checkpoint folder from its JSON files alone.

    Raises:
        CheckpointError: The folder is missing, is no model, has no image codes, or is broken.
    """
    folder = Path(folder)
    rows = read_config(folder).get("vocab_size")
    if (folder / PROCESSOR_FILE).is_file():
        data = read_json(folder / PROCESSOR_FILE).get("vocabulary")
        if isinstance(data, dict):
            vocabulary = Vocabulary.from_dict(data, str(folder / PROCESSOR_FILE))
            if rows is not None and rows < vocabulary.size:
                raise CheckpointError(
                    f"{folder}: the model has {rows} rows, {PROCESSOR_FILE} needs "
                    f"{vocabulary.size}. Take both from the same checkpoint."
                )
            return vocabulary
    published = _published_vocabulary(folder, rows)
    if published is None:
        raise CheckpointError(
            f"{folder}: is a language model without image codes. "
            f"Make a checkpoint of it first: liquid expand {folder} OUT"
        )
    return published


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder.

    Raises:
        CheckpointError: The folder has none, or it is broken.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(
            f"{folder}: has no tokenizer ({', '.join(names)}). Copy the model's tokenizer there."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # tokenizers raises plain Exception for a file it can't parse.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the tokenizer can't be read ({_first_line(error)}). Copy its files again."
        ) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`, which every model folder has.

    Raises:
        CheckpointError: There is no such folder or file, or it is broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder. Check the path.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: is no model folder (no config.json). Check the path.")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        CheckpointError: The file can't be read or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}). Copy the file again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds no JSON object. Copy the file again.")
    return data


def _pictures(folder: Path) -> tuple[tuple[tuple[int, int], ...], Prepare]:
    path = folder / PROCESSOR_FILE
    if not path.is_file():
        return PUBLISHED_SIZES, "crop"
    data = read_json(path)
    prepare = data.get("prepare", "crop")
    try:
        sizes = tuple((int(width), int(height)) for width, height in data.get("sizes", []))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: sizes is {data['sizes']!r}. Give pairs of width and height in pixels."
        ) from error
    if prepare not in ("crop", "pad"):
        raise CheckpointError(f"{path}: prepare is {prepare!r}. Give 'crop' or 'pad'.")
    return sizes, cast("Prepare", prepare)


def _sampling(folder: Path) -> dict[str, Any] | None:
    path = folder / PROCESSOR_FILE
    found = read_json(path).get("sampling") if path.is_file() else None
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{path}: sampling is {found!r}. Give an object, or leave it out.")
    return found


def _published_vocabulary(folder: Path, rows: int | None) -> Vocabulary | None:
    """Recognise the published layout, or return None."""
    if rows is None or not (folder / "tokenizer.json").is_file():
        return None
    data = read_json(folder / "tokenizer.json")
    pieces = data.get("model", {}).get("vocab", {})
    if isinstance(pieces, list):
        pieces = {piece[0]: index for index, piece in enumerate(pieces)}
    added = {token["content"]: token["id"] for token in data.get("added_tokens", ())}
    tokens = {**pieces, **added}
    if not all(marker in tokens for marker in SPECIAL_TOKENS):
        return None
    text_size = len(tokens)
    if rows != text_size + PUBLISHED_CODEBOOK:
        raise CheckpointError(
            f"{folder}: knows {SPECIAL_TOKENS[0]} but has neither {PROCESSOR_FILE} nor the published "
            f"layout ({rows} rows for {text_size} tokens). Copy {PROCESSOR_FILE} from its source."
        )
    boi, eoi, unconditional = (tokens[marker] for marker in SPECIAL_TOKENS)
    return Vocabulary(
        text_size=text_size,
        image_offset=text_size,
        codebook_size=PUBLISHED_CODEBOOK,
        boi=boi,
        eoi=eoi,
        unconditional=unconditional,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

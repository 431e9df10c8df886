"""A tokenizer of whole words, so that tests can write ids out."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from liquidmm.sequences import Sequences
from liquidmm.vocabulary import Vocabulary

SPECIAL = ["<bos>", "<eos>", "<boi>", "<eoi>", "<unconditional>", "<|im_start|>", "<|im_end|>"]
WORDS = ["[unk]", "a", "red", "cat", "user", "assistant", "The", "caption", "of", "this", "image"]
MORE = ["is", ":", "Draw", ".", "what", "?", "blue", "noto"]
OFFSET = len(SPECIAL + WORDS + MORE)  # 26: code c has id 26 + c


def make_sequences(bos: str | None = "<bos>", eos: str | None = "<eos>") -> Sequences:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS + MORE)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=SPECIAL,
    )
    layout = Vocabulary(
        text_size=OFFSET, image_offset=OFFSET, codebook_size=64, boi=2, eoi=3, unconditional=4
    )
    return Sequences(tokenizer, layout)


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    return make_sequences()


@pytest.fixture(scope="session")
def bare_sequences() -> Sequences:
    """A tokenizer with neither bos nor eos."""
    return make_sequences(None, None)

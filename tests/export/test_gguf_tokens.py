"""Vocabularies for llama.cpp; benchmarks/engines.sh compares them with llama.cpp itself."""

import json
from itertools import pairwise

import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers.tokenization_utils_base import generate_merges

from liquidmm.errors import CheckpointError
from liquidmm.export import gguf_tokens
from liquidmm.export.gguf_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from liquidmm.vocabulary import Vocabulary

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(*steps, ignore_merges=False, normalizer=None):
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    backend.normalizer = normalizer
    return json.loads(backend.to_str())


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (byte_level(GPT2), "gpt-2"),
        (byte_level(pre_tokenizers.Digits(individual_digits=True), GPT2), "smollm"),
        (byte_level(split(QWEN2), BYTES, normalizer=normalizers.NFC()), "qwen2"),
        (byte_level(split(LLAMA3), BYTES, ignore_merges=True), "llama-bpe"),
    ],
)
def test_pre_tokenizer_known_splitting_named(state, name):
    assert gguf_tokens.pre_tokenizer(state) == name


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (byte_level(), "(none)"),
        (byte_level(pre_tokenizers.Whitespace(), BYTES), "(Whitespace, ByteLevel)"),
        (byte_level(split(LLAMA3), BYTES), "(Split, ByteLevel)"),
        (byte_level(GPT2, ignore_merges=True), "(ByteLevel)"),
        (byte_level(split("a|b"), BYTES), "(Split, ByteLevel)"),
        (byte_level(pre_tokenizers.Digits(), GPT2), "(Digits, ByteLevel)"),
        (byte_level(pre_tokenizers.ByteLevel()), "(ByteLevel)"),
        (byte_level(GPT2, normalizer=normalizers.Lowercase()), "got Lowercase"),
    ],
)
def test_pre_tokenizer_unknown_splitting_raises(state, words):
    with pytest.raises(CheckpointError) as caught:
        gguf_tokens.pre_tokenizer(state)
    assert words in str(caught.value)
    assert "Serve this model with vLLM" in str(caught.value)


def test_token_table_names_every_row(checkpoint):
    layout = checkpoint.vocabulary
    tokenizer = checkpoint.processor.tokenizer
    table = gguf_tokens.token_table(tokenizer, layout, layout.size + 2)
    assert (table.model, table.pre, table.scores) == ("gpt2", "smollm", None)
    assert table.tokens[: layout.text_size] == tokenizer.convert_ids_to_tokens(
        range(layout.text_size)
    )
    codes = table.tokens[layout.image_offset : layout.size]
    assert codes == [f"<|image_{code}|>" for code in range(layout.codebook_size)]
    assert table.tokens[layout.size :] == [
        f"<|unused_{layout.size}|>",
        f"<|unused_{layout.size + 1}|>",
    ]
    assert table.types[layout.image_slice] == [CONTROL] * layout.codebook_size
    assert table.types[layout.size :] == [UNUSED] * 2
    markers = (layout.boi, layout.eoi, layout.unconditional)
    assert [table.types[index] for index in markers] == [CONTROL] * 3
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert table.merges == [" ".join(pair) for pair in state["model"]["merges"]]
    special = {token["id"] for token in state["added_tokens"]}
    assert {index for index, kind in enumerate(table.types) if kind == NORMAL} == (
        set(range(layout.text_size)) - special
    )


def test_token_table_padding_rows_unused(family_base):
    tokenizer = transformers.AutoTokenizer.from_pretrained(family_base("qwen2"))
    size = len(tokenizer)
    tokenizer.add_tokens(["<think>"])
    layout = Vocabulary(
        text_size=size + 1,
        image_offset=size + 9,
        codebook_size=4,
        boi=size - 1,
        eoi=size - 2,
        unconditional=size - 3,
    )
    table = gguf_tokens.token_table(tokenizer, layout, layout.size)
    assert table.pre == "qwen2"
    assert table.types[size:] == [USER_DEFINED] + [UNUSED] * 8 + [CONTROL] * 4


def sentencepiece_tokenizer(kind=transformers.GemmaTokenizer):
    """A vocabulary in the order of merging, as Gemma's; runs of spaces are added tokens."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>", "<unconditional>"]
    pieces = ["▁▁", "▁▁▁▁", "th", "he", "the", "▁t", "▁the", "▁th", "ap", "app", "le", "▁ap"]
    pieces += ["ple", "apple", "▁apple", "in", "er", "▁a", "es", "s▁", "ed"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,0123456789"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocab, {token: -index for token, index in vocab.items()})
    tokenizer = kind(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": specials[4:]})
    tokenizer.add_tokens(["▁▁", "▁▁▁▁"])
    layout = Vocabulary(
        text_size=len(tokenizer),
        image_offset=len(tokenizer),
        codebook_size=4,
        boi=4,
        eoi=5,
        unconditional=6,
    )
    return tokenizer, layout


def by_scores(table, text):
    """Tokenize as llama.cpp does with a SentencePiece vocabulary.

    The adjacent pieces that form the piece of the highest score are merged first, leftmost first;
    a piece that is not a token falls back to its bytes.
    """
    ids = {token: index for index, token in enumerate(table.tokens)}
    pieces = list(("▁" if table.space_prefix else "") + text.replace(" ", "▁"))
    while True:
        found = [
            (-table.scores[ids[left + right]], place)
            for place, (left, right) in enumerate(pairwise(pieces))
            if left + right in ids
        ]
        if not found:
            break
        place = min(found)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    result = []
    for piece in pieces:
        if piece in ids:
            result.append(ids[piece])
        else:
            result += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return result


@pytest.mark.parametrize("kind", ["Gemma", "Llama"])
def test_token_table_scores_equal_merges(kind):
    tokenizer, layout = sentencepiece_tokenizer(getattr(transformers, f"{kind}Tokenizer"))
    table = gguf_tokens.token_table(tokenizer, layout, layout.size)
    assert (table.model, table.merges, table.space_prefix) == ("llama", None, kind == "Llama")
    assert table.types[7 : 7 + 256] == [BYTE] * 256
    assert table.types[3] == UNKNOWN
    assert table.types[263] == NORMAL  # a run of spaces is merged, not user-defined
    for text in (
        "the apple in the tree",
        "then there are    apples, 12 of the other",
        *(["  leading and trailing  "] if kind == "Gemma" else []),
        "thethetheapple applied",
        "Ünï ☃ é",
        "<eoi> <boi>",
        "x",
    ):
        expected = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert by_scores(table, text) == expected, text


def test_token_table_space_prefix_before_space_differs():
    """The one known difference: text that begins with a space where the tokenizer adds one."""
    tokenizer, layout = sentencepiece_tokenizer(transformers.LlamaTokenizer)
    table = gguf_tokens.token_table(tokenizer, layout, layout.size)
    theirs = [table.tokens[index] for index in by_scores(table, " the")]
    ours = tokenizer.convert_ids_to_tokens(tokenizer.encode(" the", add_special_tokens=False))
    assert (theirs, ours) == (["▁▁", "the"], ["▁the"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["merges"].append(m["merges"][0]), "form '▁▁' at two ranks"),
        (lambda m: m["merges"].remove(["t", "he"]), "do not form 'the'"),
        (lambda m: m["vocab"].pop("<0x41>"), "must have a token for each byte"),
        (lambda m: m.update(type="Unigram", vocab=[["a", 0.0]], unk_id=0), "got Unigram"),
    ],
)
def test_token_table_unsupported_merges_raise(change, words):
    tokenizer, layout = sentencepiece_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state["model"])

    class Changed:
        unk_token_id = None

        class backend_tokenizer:  # noqa: N801
            @staticmethod
            def to_str():
                return json.dumps(state)

    with pytest.raises(CheckpointError) as caught:
        gguf_tokens.token_table(Changed(), layout, layout.size)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "step Lowercase"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"}},
            "step Replace",
        ),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "step Whitespace"),
    ],
)
def test_space_prefix_unknown_step_raises(part, words):
    tokenizer, _ = sentencepiece_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | part
    with pytest.raises(CheckpointError, match=words):
        gguf_tokens.space_prefix(state)


def test_token_table_conflicting_names_raise():
    tokenizer, layout = sentencepiece_tokenizer()
    tokenizer.add_tokens(["<|image_2|>"])
    with pytest.raises(CheckpointError, match=r"<\|image_2\|>"):
        gguf_tokens.token_table(tokenizer, layout, layout.size)
    fields = layout.to_dict() | {"text_size": layout.text_size + 1}
    wider = Vocabulary(**fields | {"image_offset": layout.text_size + 1})
    with pytest.raises(CheckpointError, match="two tokens have the same name"):
        gguf_tokens.token_table(tokenizer, wider, wider.size)
    with pytest.raises(CheckpointError, match=r"a dict has no tokenizer\.json"):
        gguf_tokens.token_table({}, layout, layout.size)

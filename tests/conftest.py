"""Tiny real models, built once per run by the code they test: nothing is downloaded."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from liquidmm.data.manifest import Provenance
from liquidmm.data.samples import Sample
from liquidmm.data.shard_writer import begin, finish, write_shard
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.model.checkpoint import Checkpoint, quiet
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.model.init_model import InitConfig, create_base_model
from liquidmm.prompts import CHATML_TEMPLATE, GEMMA_TEMPLATE

TEXTS = [
    "a red apple on a table, noto style",
    "two blue whales and a small green tree",
    "a yellow star left of a cup of tea, fluent 3d style",
    "How many cats are there? There are 3 cats.",
    "What is this? This is a house with a garden.",
]
CODEBOOK_SIZE = 16
PICTURE = (16, 16)
"""Width and height in pixels of the tiny checkpoint's pictures: a grid of 4 x 4 codes."""

GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
GEMMA_TURNS = ["<start_of_turn>", "<end_of_turn>"]
LLAMA3_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{index}|>" for index in range(4)),
    "<|eot_id|>",
]
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_GEMMA = {"head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

# name -> model class, what its configuration adds, special tokens, rows behind the last token
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str], int]] = {
    "llama": ("LlamaForCausalLM", {}, LLAMA3_SPECIALS, 0),
    "mistral": ("MistralForCausalLM", {"sliding_window": 64}, ["<s>", "</s>"], 0),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}, [], 13),
    "qwen2-tight": ("Qwen2ForCausalLM", {"tie_word_embeddings": False}, [], 1),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}, [], 5),
    "gemma": ("GemmaForCausalLM", _GEMMA, GEMMA_SPECIALS, 0),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**_GEMMA, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        GEMMA_SPECIALS,
        0,
    ),
    "gemma3": ("Gemma3ForCausalLM", {**_GEMMA, "sliding_window": 32}, GEMMA_SPECIALS, 0),
    "phi": ("PhiForCausalLM", {"num_key_value_heads": 2}, ["<s>", "</s>"], 7),
    "phi3": (
        "Phi3ForCausalLM",
        {"pad_token_id": 1},
        ["<s>", "</s>", "<|end|>", *(f"<|placeholder{index}|>" for index in range(1, 7))],
        2,
    ),
    "olmo2": ("Olmo2ForCausalLM", {"pad_token_id": 0}, ["<|endoftext|>"], 0),
}


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tied head, made from scratch; its tokenizer has reserved tokens."""
    shape = InitConfig(
        vocab_size=360,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=256,
    )
    return create_base_model(TEXTS, tmp_path_factory.mktemp("llama") / "base", shape)


@pytest.fixture(scope="session")
def image_tokenizer() -> VQGANTokenizer:
    """A VQGAN with random weights: factor 4, 16 codes."""
    config = VQGANConfig(
        resolution=PICTURE[0],
        base_channels=8,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        codebook_size=CODEBOOK_SIZE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQGANTokenizer(VQGAN(config))


@pytest.fixture(scope="session")
def image_tokenizer_folder(
    tmp_path_factory: pytest.TempPathFactory, image_tokenizer: VQGANTokenizer
) -> Path:
    """The same as a folder."""
    folder = tmp_path_factory.mktemp("vqgan") / "image_tokenizer"
    image_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(
    tmp_path_factory: pytest.TempPathFactory, base_folder: Path, image_tokenizer_folder: Path
) -> Path:
    """A whole Liquid checkpoint: tiny Llama, 16 codes, 16 x 16 pixels. Never write into it."""
    folder = tmp_path_factory.mktemp("liquid") / "checkpoint"
    config = ExpandConfig(init="normal", image_tokenizer=image_tokenizer_folder, sizes=(PICTURE,))
    expand(base_folder, folder, config)
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    """The same, loaded on the CPU in float32. Never change it."""
    return Checkpoint.load(checkpoint_folder, device="cpu")


@pytest.fixture(scope="session")
def family_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny base of one of the model families."""
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            _save_family(name, path)
        return path

    return make


def _save_family(name: str, folder: Path) -> None:
    class_name, extra, specials, padding = FAMILIES[name]
    makers = {"gem": gemma_tokenizer, "qwe": qwen_tokenizer}
    tokenizer = makers.get(name[:3], bpe_tokenizer)(specials)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        **{**_SHAPE, "vocab_size": len(tokenizer) + padding, "initializer_range": 0.3, **extra}
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            torch.nn.init.normal_(head.bias)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bpe_tokenizer(specials: list[str]) -> Any:
    """A byte-level tokenizer with the given special tokens, bos and eos first."""
    backend = trained_bpe(["<|endoftext|>", *specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        eos_token=specials[min(1, len(specials) - 1)],
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def qwen_tokenizer(_: list[str]) -> Any:
    """As Qwen's: no bos, special tokens behind the BPE tokens."""
    model = trained_bpe([]).model
    vocab, merges = _saved(model)
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    turns = [AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"extra_special_tokens": turns})
    tokenizer.chat_template = CHATML_TEMPLATE.replace("{{ bos_token }}", "")
    return tokenizer


def gemma_tokenizer(specials: list[str], unused: Iterable[str] | None = None) -> Any:
    """As Gemma's: `<unused0>` has the id 7, the turn markers follow, and every byte is a token."""
    names = [f"<unused{index}>" for index in range(5)] if unused is None else list(unused)
    tokens = [*specials, *names, *GEMMA_TURNS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz.:?0123456789"]
    tokenizer = transformers.GemmaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[]
    )
    tokenizer.add_tokens([AddedToken(name, special=False) for name in names])
    turns = [AddedToken(turn, special=True) for turn in GEMMA_TURNS]
    tokenizer.add_special_tokens({"extra_special_tokens": turns})
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def trained_bpe(specials: list[str]) -> Tokenizer:
    """Train a byte-level BPE on `TEXTS`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def _saved(model: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    state = json.loads(Tokenizer(model).to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


@pytest.fixture(scope="session")
def write_folder() -> Callable[..., Path]:
    """Write lists of rows as the shards of a finished folder."""

    def write(
        folder: Path,
        *shards: list[Sample],
        fingerprint: str = "f00d",
        codebook_size: int = CODEBOOK_SIZE,
        downsample_factor: int = 4,
    ) -> Path:
        provenance = Provenance(
            fingerprint=fingerprint,
            codebook_size=codebook_size,
            downsample_factor=downsample_factor,
            source="s",
            source_digest="d",
            settings={},
        )
        begin(folder, provenance, len(shards))
        for number, samples in enumerate(shards):
            write_shard(folder, number, f"chunk {number}", samples, [], codebook_size)
        finish(folder, provenance, len(shards))
        return folder

    return write

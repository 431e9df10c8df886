"""The reference for other engines: tokens by transformers alone, and the exported files.

    python benchmarks/engines/reference.py OUT

Writes OUT/reference.json, OUT/vllm and OUT/gguf-* for the included model, and OUT/families/*: tiny
random models of every family that GGUF export supports, with the scores of transformers, all in
float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.tokenization_utils_base import generate_merges

import liquidmm
from liquidmm.export.export import export_checkpoint
from liquidmm.export.gguf_model import FAMILIES
from liquidmm.generate.detokenize import stop_tokens
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.model.checkpoint import Checkpoint, quiet
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.prompts import CHATML_TEMPLATE

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "src" / "liquidmm" / "default_model"
PROMPTS = [
    "dog",
    "a kangaroo, twemoji style",
    "a red apple to the left of a yellow star and above two green trees, noto style",
    "a cup of tea",
]
GUIDANCE = 3.0
QUESTIONS = ["Is there a dog?", "What is this?", "How many cats are there?"]
TEXTS = ["What is a dog?", "Hello! Who are you?", "What is a kangaroo?", "Say something."]
TEXT_IDS = 48
SAMPLINGS = {
    "guidance 3": SamplingConfig(guidance=3.0, top_k=0, top_p=1.0),
    "guidance 3, top-k 64, top-p 0.9": SamplingConfig(guidance=3.0, top_k=64, top_p=0.9),
    "guidance 1": SamplingConfig(guidance=1.0, temperature=0.8, top_k=0, top_p=1.0),
}


@torch.inference_mode()
def guided(model: Any, prompt: list[int], other: list[int], layout: Any, steps: int) -> list[int]:
    """Generate a guided image greedily, computing the whole sequence in every step."""
    tokens: list[int] = []
    for _ in range(steps):
        rows = [model(torch.tensor([ids + tokens])).logits[0, -1] for ids in (prompt, other)]
        with_prompt, without = (row[layout.image_slice] for row in rows)
        scores = without + GUIDANCE * (with_prompt - without)
        tokens.append(layout.image_offset + int(scores.argmax()))
    return tokens


def greedy(model: Any, prompt: list[int], layout: Any, stop: set[int]) -> list[int]:
    """Generate text greedily with transformers' `generate`, without special tokens."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=TEXT_IDS,
        do_sample=False,
        suppress_tokens=[layout.boi, layout.eoi, layout.unconditional],
        eos_token_id=sorted(stop),
        pad_token_id=layout.unconditional,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def default_model(out: Path) -> dict[str, Any]:
    """Export the included model, and generate images and text with it."""
    for name, dtype in (("vllm", "float32"), ("gguf", "float32"), ("gguf", "q8_0")):
        export_checkpoint(MODEL, out / (name if name == "vllm" else f"{name}-{dtype}"), name, dtype)
    checkpoint = Checkpoint.load(MODEL, device="cpu", dtype="float32")
    liquid = liquidmm.Liquid(checkpoint)
    sequences = checkpoint.processor.sequences
    grid = liquid.encode(liquid.generate_image("a kangaroo, twemoji style"))
    prompts = [sequences.text_to_image_prompt(prompt) for prompt in PROMPTS]
    other, seeds = sequences.unconditional_prompt(), list(range(10, 10 + len(PROMPTS)))
    return {
        "layout": checkpoint.vocabulary.to_dict(),
        "prompts": PROMPTS,
        "prompt_ids": prompts,
        "unconditional": other,
        "guidance": GUIDANCE,
        "greedy": [
            guided(checkpoint.model, prompt, other, checkpoint.vocabulary, grid.numel())
            for prompt in prompts
        ],
        "seeds": seeds,
        "sampled": {name: sampled(liquid, seeds, config) for name, config in SAMPLINGS.items()},
        "image": grid.tolist(),
        **texts(checkpoint, grid),
        "tokenized": [{"text": text, "ids": sequences.encode(text)} for text in strange_texts()],
    }


def sampled(liquid: Any, seeds: list[int], config: SamplingConfig) -> dict[str, Any]:
    """Return the codes of sampled images, and the settings."""
    names = ("guidance", "temperature", "top_k", "top_p")
    images = liquid.generate_codes(PROMPTS, seeds=seeds, sampling=config)
    return {
        "config": {name: getattr(config, name) for name in names},
        "codes": [codes.flatten().tolist() for codes in images],
    }


def texts(checkpoint: Checkpoint, grid: torch.Tensor) -> dict[str, Any]:
    """Return a caption, answers and chats."""
    model, sequences = checkpoint.model, checkpoint.processor.sequences
    stop = stop_tokens(model, sequences)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = [[{"role": "user", "content": "<image>" + text}] for text in QUESTIONS]
    prompts = {
        "describe": [sequences.image_to_text_prompt(grid)],
        "ask": [sequences.chat(turns, [grid], add_generation_prompt=True)[0] for turns in asked],
        "chat": [sequences.chat(turns, [], add_generation_prompt=True)[0] for turns in chats],
    }
    return {
        "questions": QUESTIONS,
        "texts": TEXTS,
        "text_ids": TEXT_IDS,
        "stop": sorted(stop),
        "text": {
            mode: [
                {"prompt": ids, "ids": greedy(model, ids, checkpoint.vocabulary, stop)}
                for ids in prompts[mode]
            ]
            for mode in prompts
        },
    }


def strange_texts() -> list[str]:
    """Return texts that are hard for tokenizers, and a long plain one."""
    texts = [
        "a red apple 123, it's  two\n\n x",
        "<|im_start|>user\nhi<|im_end|><boi><|image_3|>",
        "Ünï ☃ 🦘 日本語 العربية",
        "  leading and trailing  ",
        "\tTabs\r\nand CRLF\n\n\n",
        "I'LL don't WE'VE 3.14159 2²",
        "a" * 300,
    ]
    return [*texts, (ROOT / "LICENSE").read_text("utf-8")]


NAMED = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"]
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(splits: list[Any], *, whole_words: bool = False) -> Any:
    """Train a byte-level tokenizer that splits text in a given way."""
    backend = Tokenizer(models.BPE(ignore_merges=whole_words))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(strange_texts(), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def sentencepiece(kind: Any) -> Any:
    """Train a SentencePiece tokenizer: all ways to form a piece are merges, in its order."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=pieces, show_progress=False, limit_alphabet=90
    )
    lines = [line for text in strange_texts() for line in text.splitlines()]
    backend.train_from_iterator(lines, trainer)
    vocab = backend.get_vocab()
    merges = generate_merges(vocab, {token: -index for token, index in vocab.items()})
    return kind(vocab=vocab, merges=merges, **NAMED)


def tokenizer_of(family: str) -> Any:
    """Return a tokenizer of another kind for each family."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "qwen3":
        tokenizer = byte_level([plain])
    elif family == "mistral":
        tokenizer = sentencepiece(transformers.LlamaTokenizer)
    elif family.startswith("gemma"):
        tokenizer = sentencepiece(transformers.GemmaTokenizer)
    else:
        digits = r"\p{N}{1,3}" if family == "llama" else r"\p{N}"
        split = pre_tokenizers.Split(Regex(_WORDS + digits + _REST), behavior="isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = byte_level([split, rest], whole_words=family == "llama")
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIALS[4:]})
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def tiny(family: str, folder: Path) -> Path:
    """Create a tiny checkpoint of a family with random weights."""
    tokenizer = tokenizer_of(family)
    config_class: Any = transformers.CONFIG_MAPPING[family]
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "mistral":
        shape["sliding_window"] = None
    elif family == "llama":
        shape["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    if family != "qwen2":
        shape["head_dim"] = 32
    if family.startswith("gemma"):
        shape |= {"sliding_window": 24, "query_pre_attn_scalar": 32}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config_class(**shape))
        with torch.no_grad():  # norms and biases start constant, which would hide errors
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(torch.randn(weight.shape) * 0.1)
        model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    expand(folder / "base", folder / "checkpoint", ExpandConfig(codebook_size=64, init="normal"))
    return folder / "checkpoint"


@torch.inference_mode()
def tiny_family(family: str, folder: Path) -> dict[str, Any]:
    """Return the scores of a tiny model after random tokens, both text and codes."""
    export_checkpoint(tiny(family, folder), folder / "gguf", "gguf", "float32")
    checkpoint = Checkpoint.load(folder / "checkpoint", device="cpu", dtype="float32")
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, checkpoint.vocabulary.size, (200,), generator=random)
    scores: Any = checkpoint.model(ids[None]).logits[0]
    # Text that begins with a space is the known difference if the tokenizer adds one.
    texts = [text for text in strange_texts() if family != "mistral" or text[0] != " "]
    encode = checkpoint.processor.sequences.encode
    return {
        "ids": ids.tolist(),
        "scores": scores.tolist(),
        "tokenized": [{"text": text, "ids": encode(text)} for text in texts],
    }


def main(out: Path) -> None:
    """Write everything."""
    out.mkdir(parents=True, exist_ok=True)
    found = default_model(out)
    found["families"] = {
        family: tiny_family(family, out / "families" / family) for family in FAMILIES
    }
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    (out / "reference.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

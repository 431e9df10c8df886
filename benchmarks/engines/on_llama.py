"""llama.cpp against transformers: tokens of text, of guided images and of every model family.

    LLAMA_PYTHON benchmarks/engines/on_llama.py OUT

Reads the output of reference.py and writes OUT/llama.json. Needs llama-cpp-python and numpy, and
nothing of this package: an image is two sequences whose scores are combined here, as anyone could
who only has the GGUF file, which contains the token ids of the codes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import Llama

F32 = 0  # ggml's code of float32, for an exact key-value cache


def load(path: Path, *, exact: bool = True) -> Llama:
    """Load a file; ``exact`` keeps the cache in float32."""
    kind = {"type_k": F32, "type_v": F32} if exact else {}
    return Llama(
        str(path), n_ctx=256, n_batch=256, logits_all=True, n_threads=2, verbose=False, **kind
    )


def scores(model: Llama, ids: list[int]) -> Any:
    """Append tokens and return the scores of the next one, (V,)."""
    model.eval(ids)
    return model.scores[model.n_tokens - 1]


def generate_text(
    model: Llama, prompt: list[int], steps: int, forbidden: list[int], stop: list[int]
) -> Any:
    """Continue greedily."""
    model.reset()
    ids, new = [], prompt
    while len(ids) < steps:
        row = scores(model, new).copy()
        row[forbidden] = -np.inf
        ids.append(int(row.argmax()))
        new = ids[-1:]
        if ids[-1] in stop:
            break
    return ids


def generate_image(
    pair: tuple[Llama, Llama], prompts: tuple[list[int], list[int]], found: Any
) -> list[int]:
    """Generate the tokens of a guided image greedily: two contexts, one token."""
    layout, scale = found["layout"], found["guidance"]
    first, last = layout["image_offset"], layout["image_offset"] + layout["codebook_size"]
    ids: list[int] = []
    for model in pair:
        model.reset()
    new = prompts
    for _ in found["greedy"][0]:
        conditional, other = (
            scores(model, part)[first:last] for model, part in zip(pair, new, strict=True)
        )
        ids.append(first + int((other + scale * (conditional - other)).argmax()))
        new = (ids[-1:], ids[-1:])
    return ids


def agreement(runs: list[tuple[list[int], list[int]]]) -> dict[str, int]:
    """Count the tokens before the first difference, and all."""
    equal = 0
    for got, expected in runs:
        same = [a == b for a, b in zip(got, expected, strict=False)] + [False]
        equal += same.index(False)
    whole = sum(got == expected for got, expected in runs)
    return {
        "ids": sum(len(expected) for _, expected in runs),
        "equal_ids": equal,
        "sequences": len(runs),
        "equal_sequences": whole,
    }


def tokenize(model: Llama, found: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Tokenize without special tokens; return the actual and the expected ids."""
    return [
        (model.tokenize(case["text"].encode(), add_bos=False, special=False), case["ids"])
        for case in found["tokenized"]
    ]


def compare_default_model(path: Path, found: dict[str, Any], *, exact: bool) -> dict[str, Any]:
    """Compare text, images and the tokenizer."""
    layout = found["layout"]
    specials = [layout[name] for name in ("boi", "eoi", "unconditional")]
    model, other = load(path, exact=exact), load(path, exact=exact)
    result: dict[str, Any] = {}
    for mode, runs in found["text"].items():
        result[mode] = agreement(
            [
                (
                    generate_text(model, run["prompt"], found["text_ids"], specials, found["stop"]),
                    run["ids"],
                )
                for run in runs
            ]
        )
    start = time.perf_counter()
    images = [
        generate_image((model, other), (prompt, found["unconditional"]), found)
        for prompt in found["prompt_ids"]
    ]
    result["seconds_per_image"] = (time.perf_counter() - start) / len(images)
    result["image"] = agreement(list(zip(images, found["greedy"], strict=True)))
    tokenized = tokenize(model, found)
    result["tokenizer"] = agreement(tokenized)
    named = [layout["boi"], layout["eoi"], layout["image_offset"], layout["image_offset"] + 7]
    result["codes_as_text"] = model.detokenize(named).decode()
    result["special_tokens_in_text"] = sum(
        token in specials or token >= layout["text_size"] for ids, _ in tokenized for token in ids
    )
    return result


def compare_family(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Compare the scores and the tokenizer of a tiny model."""
    model = load(folder / "gguf" / "model.gguf")
    model.eval(case["ids"])
    got, expected = np.array(model.scores[: model.n_tokens]), np.array(case["scores"])
    return {
        "ids": len(expected),
        "equal_ids": int((got.argmax(-1) == expected.argmax(-1)).sum()),
        "largest_difference": float(np.abs(got - expected).max() / expected.std()),
        "tokenizer": agreement(tokenize(model, case)),
        "splits_as": model.metadata["tokenizer.ggml.pre"],
    }


def main(out: Path) -> None:
    """Compare everything."""
    found = json.loads((out / "reference.json").read_text("utf-8"))
    result: dict[str, Any] = {"version": llama_cpp.__version__}
    result["float32"] = compare_default_model(
        out / "gguf-float32" / "model.gguf", found, exact=True
    )
    result["q8_0"] = compare_default_model(out / "gguf-q8_0" / "model.gguf", found, exact=False)
    result["families"] = {
        family: compare_family(out / "families" / family, case)
        for family, case in found["families"].items()
    }
    (out / "llama.json").write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The results of the engines as one table.

python benchmarks/engines/table.py OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = tuple[str, str, str]


def share(found: dict[str, Any]) -> str:
    """Return how many tokens are equal."""
    return f"{found['equal_ids']} of {found['ids']} tokens"


def vllm_lines(result: dict[str, Any]) -> Iterator[Line]:
    """Yield the lines of vLLM."""
    engine = f"vLLM {result['version']}"
    for part, where in (("in_process", "in this process"), ("http", "over HTTP")):
        if part in result:
            for test, outcome in part_outcomes(result[part]):
                yield engine, f"{test}, {where}", outcome
    if "own_scheduler" in result:
        found = result["own_scheduler"]
        outcome = f"{found['images']} requested: {found['stopped']} stopped, {found['wrong']} wrong"
        yield engine, "images without our scheduler", outcome
    if "newer_runner" in result:
        plugins = ", ".join(result["newer_runner"]["plugins"])
        yield engine, "plugins loaded by the V2 runner", plugins


def part_outcomes(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was tested with one backend, and the outcome."""
    yield "guided images, greedy", share(found["greedy"])
    for name, sampled in found["sampled"].items():
        yield f"sampled images ({name})", share(sampled)
    yield "24 sampled images at once", share(found["many"])
    for name, test in (
        ("text", "captions, answers, chat"),
        ("stock_chat", "chat through vLLM's own API"),
    ):
        if name in found:
            text = found[name]
            yield test, f"{text['equal_texts']} of {text['texts']} texts"
    conditional, unconditional = found["single"]
    yield "a conditional request alone", conditional
    yield "an unconditional request alone", unconditional
    yield "an invalid argument", "rejected" + found["rejected"].partition("rejected")[2]
    if "abandoned" in found:
        yield "a request whose client disconnects while it waits", found["abandoned"]
    yield "guided images afterwards", share(found["after"])


def llama_lines(result: dict[str, Any]) -> Iterator[Line]:
    """Yield the lines of llama.cpp."""
    for dtype in ("float32", "q8_0"):
        found, engine = result[dtype], f"llama-cpp-python {result['version']}, {dtype}"
        for mode in ("describe", "ask", "chat", "image"):
            yield engine, f"{mode}, greedy", share(found[mode])
        yield engine, "tokenizer", share(found["tokenizer"])
        yield engine, "special tokens and codes shown as text", repr(found["codes_as_text"])
        found_in_text = str(found["special_tokens_in_text"])
        yield engine, "special tokens and codes found in text", found_in_text
    for family, found in result["families"].items():
        engine = f"llama-cpp-python {result['version']}"
        difference = f"largest difference {found['largest_difference']:.0e} standard deviations"
        yield engine, f"scores of a tiny {family}", f"{share(found)} most likely; {difference}"
        yield engine, f"its tokenizer ({found['splits_as']})", share(found["tokenizer"])


def main(out: Path) -> None:
    """Print the table."""
    lines: list[Line] = []
    for name, make in (("vllm", vllm_lines), ("llama", llama_lines)):
        file = out / f"{name}.json"
        if file.exists():
            lines += make(json.loads(file.read_text("utf-8")))
    rows = ["| engine | test | equal to transformers |", "|---|---|---|"]
    rows += ["| " + " | ".join(line) + " |" for line in lines]
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

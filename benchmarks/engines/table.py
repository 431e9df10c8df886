"""What the engines gave, as one table.

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
    """Write how many ids are equal."""
    return f"{found['equal_ids']} of {found['ids']} ids"


def of_vllm(result: dict[str, Any]) -> Iterator[Line]:
    """Yield the lines of vLLM."""
    engine = f"vLLM {result['version']}"
    for part, where in (("in_process", "in this process"), ("http", "over HTTP")):
        found = result.get(part)
        if found is None:
            continue
        text = found["text"]
        yield engine, f"guided pictures, greedy, {where}", share(found["greedy"])
        for name, sampled in found["sampled"].items():
            yield engine, f"sampled pictures ({name}), {where}", share(sampled)
        yield engine, f"24 sampled pictures at once, {where}", share(found["many"])
        yield (
            engine,
            f"captions, answers, chat, {where}",
            f"{text['equal_texts']} of {text['texts']} texts",
        )
        if "stock_chat" in found:
            stock = found["stock_chat"]
            told = f"{stock['equal_texts']} of {stock['texts']} texts"
            yield engine, f"chat through vLLM's own API, {where}", told
        conditional, unconditional = found["lone"]
        yield engine, f"a conditional half alone, {where}", conditional
        yield engine, f"an unconditional half alone, {where}", unconditional
        yield (
            engine,
            f"a bad argument, {where}",
            "refused" + found["refused"].partition("refused")[2],
        )
        if "abandoned" in found:
            yield engine, "a half whose client goes away while it waits", found["abandoned"]
        yield engine, f"guided pictures afterwards, {where}", share(found["after"])
    if "own_scheduler" in result:
        found = result["own_scheduler"]
        told = f"{found['pictures']} asked for: {found['stopped']} stopped, {found['wrong']} wrong"
        yield engine, "pictures without our scheduler", told
    if "newer_runner" in result:
        yield (
            engine,
            "plugins that the V2 runner's loader takes",
            ", ".join(result["newer_runner"]["takes"]),
        )


def of_llama(result: dict[str, Any]) -> Iterator[Line]:
    """Yield the lines of llama.cpp."""
    for dtype in ("float32", "q8_0"):
        found, engine = result[dtype], f"llama-cpp-python {result['version']}, {dtype}"
        for mode in ("describe", "ask", "chat", "picture"):
            yield engine, f"{mode}, greedy", share(found[mode])
        yield engine, "tokenizer", share(found["tokenizer"])
        yield engine, "markers and codes shown as text", repr(found["codes_as_text"])
        yield engine, "markers and codes found in text", str(found["forged_markers"])
    for family, found in result["families"].items():
        told = (
            f"{share(found)} likeliest; largest difference {found['largest_difference']:.0e} "
            "deviations"
        )
        engine = f"llama-cpp-python {result['version']}"
        yield engine, f"scores of a tiny {family}", told
        kind = f"its tokenizer ({found['splits_as']})"
        yield engine, kind, share(found["tokenizer"])


def main(out: Path) -> None:
    """Print the table."""
    lines: list[Line] = []
    for name, make in (("vllm", of_vllm), ("llama", of_llama)):
        file = out / f"{name}.json"
        if file.exists():
            lines += make(json.loads(file.read_text("utf-8")))
    rows = ["| engine | what | equal to transformers |", "|---|---|---|"]
    rows += ["| " + " | ".join(line) + " |" for line in lines]
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

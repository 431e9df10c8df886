"""vLLM beside transformers and this package: pictures by pairs of requests, and text.

    VLLM_PYTHON benchmarks/engines/on_vllm.py OUT

Reads what reference.py wrote and writes OUT/vllm.json. Needs vLLM and this package in one
environment. Runs an engine in this process (a small cache and a small step, so that pairs must wait
for room), one without our scheduler, and a server.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm

from liquidmm.errors import LiquidError
from liquidmm.export.vllm_backends import Backend, CompletionRequest, InProcess, Server
from liquidmm.export.vllm_client import VLLMClient
from liquidmm.export.vllm_pairs import CODES, GUIDANCE, PAIR, ROLE, SEED
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.vocabulary import Vocabulary

SCHEDULER = "liquidmm.export.vllm_scheduler.PairScheduler"
ENGINE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 16}
SMALL = {"max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 32}
MANY = 24


class Comparison:
    """One backend, compared with the reference."""

    def __init__(self, folder: Path, found: dict[str, Any], backend: Backend) -> None:
        """Read the folder that the backend serves."""
        self.found = found
        self.backend = backend
        self.client = VLLMClient.load(folder, backend)
        self.layout = Vocabulary.from_dict(found["layout"])
        self.grid = torch.tensor(found["picture"])

    def greedy(self) -> dict[str, int]:
        """Guided pictures beside transformers."""
        config = SamplingConfig(greedy=True, guidance=self.found["guidance"])
        drawn = self.client.generate_codes(self.found["prompts"], sampling=config)
        first = self.layout.image_offset
        expected = [torch.tensor(ids) - first for ids in self.found["greedy"]]
        return agreement(drawn, expected)

    def sampled(self, name: str) -> dict[str, int]:
        """Sampled pictures beside those that this package draws by itself."""
        case = self.found["sampled"][name]
        drawn = self.client.generate_codes(
            self.found["prompts"],
            seeds=self.found["seeds"],
            sampling=SamplingConfig(**case["config"]),
        )
        return agreement(drawn, [torch.tensor(codes) for codes in case["codes"]])

    def many(self) -> dict[str, Any]:
        """More pictures at once than fit into a step or into the cache."""
        case = self.found["sampled"]["guidance 3"]
        count = len(self.found["prompts"])
        start = time.perf_counter()
        drawn = self.client.generate_codes(
            [self.found["prompts"][index % count] for index in range(MANY)],
            seeds=[self.found["seeds"][index % count] for index in range(MANY)],
            sampling=SamplingConfig(**case["config"]),
        )
        seconds = time.perf_counter() - start
        expected = [torch.tensor(case["codes"][index % count]) for index in range(MANY)]
        return {**agreement(drawn, expected), "seconds": round(seconds, 1)}

    def text(self) -> dict[str, int]:
        """Captions, answers and chat beside transformers."""
        from transformers import AutoTokenizer

        from liquidmm.generate.detokenize import detokenize

        client, found = self.client, self.found
        written = [client.describe(self.grid, max_tokens=found["text_ids"])]
        written += [
            client.ask(self.grid, question, max_tokens=found["text_ids"])
            for question in found["questions"]
        ]
        written += [
            client.chat([{"role": "user", "content": text}], max_tokens=found["text_ids"])
            for text in found["texts"]
        ]
        tokenizer = AutoTokenizer.from_pretrained(found["folder"])
        runs = [run for mode in ("describe", "ask", "chat") for run in found["text"][mode]]
        expected = [detokenize(tokenizer, run["ids"]).strip() for run in runs]
        same = sum(got == text for got, text in zip(written, expected, strict=True))
        return {"texts": len(expected), "equal_texts": same}

    def halves(self, **changes: Any) -> list[CompletionRequest]:
        """Make the two requests of a picture by hand."""
        extra = {PAIR: str(time.time_ns()), SEED: 1, GUIDANCE: 3.0, CODES: self.grid.numel()}
        extra |= changes
        prompts = {
            "conditional": self.found["prompt_ids"][0],
            "unconditional": self.found["unconditional"],
        }
        return [
            CompletionRequest(
                prompt=tuple(ids),
                max_tokens=self.grid.numel() + 1,
                sampling=SamplingConfig(guidance=3.0, top_k=0),
                stop=(self.layout.eoi, self.layout.unconditional),
                extra={**extra, ROLE: role},
            )
            for role, ids in prompts.items()
        ]

    def lone(self, half: int) -> str:
        """Send one half only."""
        (answer,) = self.backend.complete([self.halves()[half]])
        ids = list(answer.ids)
        return "stopped, no code" if ids == [self.layout.unconditional] else f"ids {ids}"

    def refused(self) -> str:
        """Send a half with a bad argument."""
        try:
            self.backend.complete(self.halves(**{CODES: -1})[:1])
        except LiquidError as error:
            return str(error)
        return "taken"


def agreement(drawn: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, int]:
    """Count equal codes."""
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(drawn, expected, strict=True)]
    return {
        "ids": sum(len(b) for _, b in pairs),
        "equal_ids": sum(int((a == b).sum()) for a, b in pairs),
    }


def with_scheduler(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Compare an engine in this process, with little room."""
    llm = vllm.LLM(str(folder), enforce_eager=True, scheduler_cls=SCHEDULER, **ENGINE, **SMALL)
    case = Comparison(folder, found, InProcess(llm))
    result = {
        "runner": "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1",
        "greedy": case.greedy(),
        "sampled": {name: case.sampled(name) for name in found["sampled"]},
        "many": case.many(),
        "text": case.text(),
        "lone": [case.lone(0), case.lone(1)],
        "refused": case.refused(),
        "after": case.greedy(),
    }
    stop(llm)
    return result


def without_scheduler(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Draw with vLLM's own scheduler: pictures may be stopped, never wrong."""
    llm = vllm.LLM(str(folder), enforce_eager=True, **ENGINE)
    case = Comparison(folder, found, InProcess(llm))
    config = SamplingConfig(greedy=True, guidance=found["guidance"])
    result = {"pictures": 0, "stopped": 0, "wrong": 0}
    for _ in range(4):
        for prompt, ids in zip(found["prompts"], found["greedy"], strict=True):
            result["pictures"] += 1
            try:
                codes = case.client.generate_codes([prompt], sampling=config)[0]
            except LiquidError:
                result["stopped"] += 1
            else:
                expected = torch.tensor(ids) - case.layout.image_offset
                result["wrong"] += not torch.equal(codes.flatten(), expected)
    stop(llm)
    return result


def over_http(folder: Path, found: dict[str, Any], log: Path) -> dict[str, Any]:
    """Compare a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items()]
    # What `vllm serve` starts; that command itself needs a distribution that is called vllm.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={folder}",
        f"--scheduler-cls={SCHEDULER}",
        "--enforce-eager",
        "--host=127.0.0.1",
        f"--port={port}",
        *options,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
        try:
            backend = Server(f"http://127.0.0.1:{port}")
            wait(backend, process)
            case = Comparison(folder, found, backend)
            with ThreadPoolExecutor() as pool:  # text and pictures at once
                running = pool.submit(case.text), pool.submit(case.many), pool.submit(case.greedy)
                text, many, greedy = (task.result() for task in running)
            return {
                "greedy": greedy,
                "sampled": {name: case.sampled(name) for name in found["sampled"]},
                "many": many,
                "text": text,
                "lone": [case.lone(0), case.lone(1)],
                "refused": case.refused(),
                "stock_chat": stock_chat(folder, found, backend.url),
                "abandoned": abandon(case.halves()[:1], backend.url),
                "after": case.greedy(),
            }
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def wait(backend: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended; read its log")
        try:
            backend.models()
        except LiquidError:
            time.sleep(1)
        else:
            return
    raise SystemExit("the server gave no answer in ten minutes")


def stock_chat(folder: Path, found: dict[str, Any], url: str) -> dict[str, int]:
    """Chat in words through vLLM's own chat API, which applies the folder's template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    same = 0
    for text, run in zip(found["texts"], found["text"]["chat"], strict=True):
        body = {
            "model": str(folder),
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": found["text_ids"],
        }
        request = Request(  # noqa: S310 (a server of our own)
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=600) as answer:  # noqa: S310
            written = json.load(answer)["choices"][0]["message"]["content"]
        same += written == tokenizer.decode(run["ids"], skip_special_tokens=True)
    return {"texts": len(found["texts"]), "equal_texts": same}


def abandon(half: Sequence[CompletionRequest], url: str) -> str:
    """Send one half and go away while it waits for the other."""
    try:
        Server(url, timeout=1).complete(half)
    except LiquidError as error:
        return "timed out" if "timed out" in str(error) else str(error)
    return "answered"


def newer_runner() -> dict[str, Any]:
    """Ask the V2 model runner's loader for the plugins; running it needs Triton."""
    from vllm.v1.worker.gpu.sample.logits_processor import loader

    found = [kind.__name__ for kind in loader._load_v2_logitsprocs_plugins()]
    return {"takes": found}


def stop(llm: Any) -> None:
    """End an engine."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def main(out: Path, parts: Sequence[str]) -> None:
    """Compare everything, or only some parts."""
    found = json.loads((out / "reference.json").read_text("utf-8"))
    folder, file = out / "vllm", out / "vllm.json"
    found["folder"] = str(folder)
    result = json.loads(file.read_text("utf-8")) if file.exists() else {}
    result["version"] = vllm.__version__
    todo: dict[str, Callable[[], Any]] = {
        "newer_runner": newer_runner,
        "in_process": lambda: with_scheduler(folder, found),
        "own_scheduler": lambda: without_scheduler(folder, found),
        "http": lambda: over_http(folder, found, out / "serve.log"),
    }
    for name in parts or todo:
        result[name] = todo[name]()
        file.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""vLLM against transformers and this package: images as pairs of requests, and text.

    VLLM_PYTHON benchmarks/engines/on_vllm.py OUT [PART...]

Reads the output of reference.py and writes OUT/vllm.json. Needs vLLM and this package in one
environment. Runs an engine in this process (with a small cache and small steps, so that pairs must
wait), one without our scheduler, and a server.
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
        """Load the client for the folder that the backend serves."""
        self.found = found
        self.backend = backend
        self.client = VLLMClient.load(folder, backend)
        self.layout = Vocabulary.from_dict(found["layout"])
        self.grid = torch.tensor(found["image"])

    def greedy(self) -> dict[str, int]:
        """Compare guided images with transformers."""
        config = SamplingConfig(greedy=True, guidance=self.found["guidance"])
        codes = self.client.generate_codes(self.found["prompts"], sampling=config)
        first = self.layout.image_offset
        expected = [torch.tensor(ids) - first for ids in self.found["greedy"]]
        return agreement(codes, expected)

    def sampled(self, name: str) -> dict[str, int]:
        """Compare sampled images with those of this package."""
        case = self.found["sampled"][name]
        codes = self.client.generate_codes(
            self.found["prompts"],
            seeds=self.found["seeds"],
            sampling=SamplingConfig(**case["config"]),
        )
        return agreement(codes, [torch.tensor(codes) for codes in case["codes"]])

    def many(self) -> dict[str, Any]:
        """Compare more images at once than fit into a step or into the cache."""
        case = self.found["sampled"]["guidance 3"]
        count = len(self.found["prompts"])
        start = time.perf_counter()
        codes = self.client.generate_codes(
            [self.found["prompts"][index % count] for index in range(MANY)],
            seeds=[self.found["seeds"][index % count] for index in range(MANY)],
            sampling=SamplingConfig(**case["config"]),
        )
        seconds = time.perf_counter() - start
        expected = [torch.tensor(case["codes"][index % count]) for index in range(MANY)]
        return {**agreement(codes, expected), "seconds": round(seconds, 1)}

    def text(self) -> dict[str, int]:
        """Compare captions, answers and chat with transformers."""
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

    def pair(self, **changes: Any) -> list[CompletionRequest]:
        """Build the two requests of an image."""
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

    def single(self, index: int) -> str:
        """Send one request of a pair only."""
        (completion,) = self.backend.complete([self.pair()[index]])
        ids = list(completion)
        return "stopped, no code" if ids == [self.layout.unconditional] else f"ids {ids}"

    def rejected(self) -> str:
        """Send a request with an invalid argument."""
        try:
            self.backend.complete(self.pair(**{CODES: -1})[:1])
        except LiquidError as error:
            return str(error)
        return "accepted"

    def results(self) -> dict[str, Any]:
        """Return all comparisons but those with many requests."""
        return {
            "sampled": {name: self.sampled(name) for name in self.found["sampled"]},
            "single": [self.single(0), self.single(1)],
            "rejected": self.rejected(),
            "after": self.greedy(),
        }


def agreement(codes: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, int]:
    """Count equal codes."""
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(codes, expected, strict=True)]
    return {
        "ids": sum(len(b) for _, b in pairs),
        "equal_ids": sum(int((a == b).sum()) for a, b in pairs),
    }


def with_scheduler(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Compare an engine in this process, with little capacity."""
    llm = vllm.LLM(str(folder), enforce_eager=True, scheduler_cls=SCHEDULER, **ENGINE, **SMALL)
    case = Comparison(folder, found, InProcess(llm))
    result = {
        "runner": "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1",
        "greedy": case.greedy(),
        "many": case.many(),
        "text": case.text(),
        **case.results(),
    }
    stop(llm)
    return result


def without_scheduler(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Use vLLM's own scheduler: images may be stopped, but never wrong."""
    llm = vllm.LLM(str(folder), enforce_eager=True, **ENGINE)
    case = Comparison(folder, found, InProcess(llm))
    config = SamplingConfig(greedy=True, guidance=found["guidance"])
    result = {"images": 0, "stopped": 0, "wrong": 0}
    for _ in range(4):
        for prompt, ids in zip(found["prompts"], found["greedy"], strict=True):
            result["images"] += 1
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
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603
            server_command(folder, port), stdout=output, stderr=output, start_new_session=True
        )
        try:
            backend = Server(f"http://127.0.0.1:{port}")
            wait(backend, process)
            return compare_server(Comparison(folder, found, backend), folder, backend.url)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def server_command(folder: Path, port: int) -> list[str]:
    """Return what `vllm serve` runs; that command itself needs a distribution named vllm."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items()]
    return [
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


def compare_server(case: Comparison, folder: Path, url: str) -> dict[str, Any]:
    """Compare text and images at once, then everything else."""
    with ThreadPoolExecutor() as pool:
        running = pool.submit(case.text), pool.submit(case.many), pool.submit(case.greedy)
        text, many, greedy = (task.result() for task in running)
    return {
        "greedy": greedy,
        "many": many,
        "text": text,
        "stock_chat": stock_chat(folder, case.found, url),
        "abandoned": abandon(case.pair()[:1], url),
        **case.results(),
    }


def wait(backend: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server ended; see its log")
        try:
            backend.models()
        except LiquidError:
            time.sleep(1)
        else:
            return
    raise SystemExit("the server did not answer within ten minutes")


def stock_chat(folder: Path, found: dict[str, Any], url: str) -> dict[str, int]:
    """Compare text chat through vLLM's own API, which applies the folder's template."""
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


def abandon(request: Sequence[CompletionRequest], url: str) -> str:
    """Send one request of a pair and disconnect while it waits for the other."""
    try:
        Server(url, timeout=1).complete(request)
    except LiquidError as error:
        return "timed out" if "timed out" in str(error) else str(error)
    return "answered"


def newer_runner() -> dict[str, Any]:
    """Return the plugins that the loader of the V2 model runner finds; running it needs Triton."""
    from vllm.v1.worker.gpu.sample.logits_processor import loader

    found = [kind.__name__ for kind in loader._load_v2_logitsprocs_plugins()]
    return {"plugins": found}


def stop(llm: Any) -> None:
    """Shut an engine down."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def main(out: Path, parts: Sequence[str]) -> None:
    """Compare all parts, or the given ones."""
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

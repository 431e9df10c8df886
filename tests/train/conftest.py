"""Data, run files and processes for the tests of training."""

import multiprocessing
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidmm.data.records import Message
from liquidmm.data.samples import Sample

WORDS = ("red apple", "blue whale", "green tree", "yellow star", "small house")
SCRIPT = Path(__file__).with_name("one_rank.py")

# Processes are forked from one that has imported what takes long.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["liquidmm.train.trainer", "liquidmm.cli", "transformers"])


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Samples of all kinds."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 16, (4, 4)).astype(np.uint16) for _ in WORDS]
    asked = (
        Message(role="user", content="<image>What is this?"),
        Message(role="assistant", content="a cup of tea"),
    )
    return [
        *[
            Sample(kind="image_text", key=word, captions=(f"a {word}",), image_codes=(image,))
            for word, image in zip(WORDS, images, strict=True)
        ],
        *[Sample(kind="text", key=f"text {word}", text=f"there is a {word}") for word in WORDS],
        Sample(kind="chat", key="chat", messages=asked, image_codes=(images[0],)),
    ]


@pytest.fixture(scope="session")
def write_shards(checkpoint, write_folder) -> Callable[..., Path]:
    """Write samples to a new folder, encoded by the tiny checkpoint's tokenizer or another."""

    def write(folder: Path, samples: list[Sample], fingerprint: str | None = None) -> Path:
        return write_folder(
            folder, samples, fingerprint=fingerprint or checkpoint.image_tokenizer.fingerprint
        )

    return write


@pytest.fixture(scope="module")
def shards(tmp_path_factory, write_shards, samples) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "all", samples)


@pytest.fixture
def plan(tmp_path, shards, checkpoint_folder) -> dict[str, Any]:
    """A short run of all four tasks, as a parsed run file."""
    path = str(shards)
    return {
        "checkpoint": str(checkpoint_folder),
        "out": str(tmp_path / "out"),
        "data": {
            "sources": [
                {"path": path, "task": "text_to_image", "weight": 3},
                {"path": path, "task": "image_to_text"},
                {"path": path, "task": "chat"},
                {"path": path, "task": "text"},
            ],
            "eval": [
                {"path": path, "task": "text_to_image"},
                {"path": path, "task": "text"},
            ],
            "seq_len": 96,
        },
        "train": {
            "steps": 4,
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "log_every": 1,
            "eval_every": 2,
            "eval_samples": 2,
            "save_every": 2,
            "sample_every": 2,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 1},
    }


class Launcher:
    """Starts the ranks of runs and collects their errors."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __call__(
        self, plan: dict[str, Any], ranks: int = 1, *, resume: bool = False, patch: str = ""
    ) -> list[int]:
        """Run all ranks to the end and return their exit codes.

        ``patch`` is code that runs first; it may define the hooks on_step and on_sample.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(ranks):
            environment = {
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            names = {"ENVIRONMENT": environment, "PLAN": plan, "RESUME": resume, "PATCH": patch}
            names["LOG"] = str(self._log)
            process = _CONTEXT.Process(target=runpy.run_path, args=(str(SCRIPT), names))
            process.start()
            processes.append(process)
        for process in processes:
            process.join(180)
        return [process.exitcode for process in processes]

    def errors(self) -> list[str]:
        """Return the errors so far."""
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def launch(tmp_path) -> Launcher:
    return Launcher(tmp_path / "errors.txt")

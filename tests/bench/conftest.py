"""Shards and run files of the tests of benchmarks."""

from pathlib import Path

import numpy as np
import pytest

from liquidmm.bench.train import TrainBench
from liquidmm.data.records import Message
from liquidmm.data.samples import Sample

WORDS = ("red apple", "blue whale", "green tree", "yellow star", "small house")


@pytest.fixture(scope="session")
def shards(tmp_path_factory, checkpoint, write_folder) -> Path:
    """A folder with two folders of shards, as the tiny checkpoint's tokenizer would encode them."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 16, (4, 4)).astype(np.uint16) for _ in WORDS]
    asked = (
        Message(role="user", content="<image>What is this?"),
        Message(role="assistant", content="a cup of tea"),
    )
    drawn = [
        Sample(kind="image_text", key=word, captions=(f"a {word}",), image_codes=(picture,))
        for word, picture in zip(WORDS, pictures, strict=True)
    ]
    told = [
        *[Sample(kind="text", key=f"text {word}", text=f"there is a {word}") for word in WORDS],
        Sample(kind="chat", key="chat", messages=asked, image_codes=(pictures[0],)),
    ]
    for name, rows in (("drawn", drawn), ("told", told)):
        write_folder(folder / name, rows, fingerprint=checkpoint.image_tokenizer.fingerprint)
    return folder


@pytest.fixture(scope="session")
def run_file(shards) -> Path:
    """A run over them; its folders lie elsewhere."""
    path = shards / "run.toml"
    sources = [("drawn", "text_to_image"), ("drawn", "image_to_text"), ("told", "chat")]
    sources.append(("told", "text"))
    tables = [
        f'[[data.sources]]\npath = "elsewhere/{name}"\ntask = "{task}"' for name, task in sources
    ]
    head = 'checkpoint = "none"\nout = "nowhere"\n[data]\nlength = 96\n'
    tail = "[train]\nsteps = 1\nbatch_rows = 4\nmicro_batch_rows = 2\n"
    path.write_text(head + "\n".join(tables) + "\n" + tail, encoding="utf-8")
    return path


@pytest.fixture
def config(shards, run_file, checkpoint_folder) -> TrainBench:
    """The smallest comparison."""
    return TrainBench(
        run=run_file,
        data=shards,
        checkpoint=checkpoint_folder,
        device="cpu",
        seconds=0.5,
        steps=3,
        sequences=2,
    )

"""Scripts as modules, and the smallest data for training benchmarks."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from liquidmm.data.records import Message
from liquidmm.data.samples import Sample

FOLDER = Path(__file__).parents[2] / "benchmarks"
WORDS = ("red apple", "blue whale", "green tree", "yellow star", "small house")

sys.path.insert(0, str(FOLDER))  # the scripts import each other as siblings


@pytest.fixture(scope="session")
def run_script() -> Callable[..., dict[str, Any]]:
    """Run a script with --json in this process and return its result."""

    def run(name: str, *arguments: Any) -> dict[str, Any]:
        main = import_module(name).main
        done = CliRunner().invoke(main, ["--json", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert set(found) == {"bench", "figures", "notes", "missing", "settings"}
        assert all(set(figure) == {"value", "unit"} for figure in found["figures"].values())
        return found

    return run


@pytest.fixture(scope="session")
def shards(tmp_path_factory, checkpoint, write_folder) -> Path:
    """A folder with two folders of shards, as encoded with the tiny checkpoint's tokenizer."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 16, (4, 4)).astype(np.uint16) for _ in WORDS]
    messages = (
        Message(role="user", content="<image>What is this?"),
        Message(role="assistant", content="a cup of tea"),
    )
    captions = [
        Sample(kind="image_text", key=word, captions=(f"a {word}",), image_codes=(image,))
        for word, image in zip(WORDS, images, strict=True)
    ]
    others = [
        *[Sample(kind="text", key=f"text {word}", text=f"there is a {word}") for word in WORDS],
        Sample(kind="chat", key="chat", messages=messages, image_codes=(images[0],)),
    ]
    for name, samples in (("captions", captions), ("others", others)):
        write_folder(folder / name, samples, fingerprint=checkpoint.image_tokenizer.fingerprint)
    return folder


@pytest.fixture(scope="session")
def run_file(shards) -> Path:
    """A run on them; its folders have another parent."""
    path = shards / "run.toml"
    sources = [
        ("captions", "text_to_image"),
        ("captions", "image_to_text"),
        ("others", "chat"),
        ("others", "text"),
    ]
    tables = [
        f'[[data.sources]]\npath = "elsewhere/{name}"\ntask = "{task}"' for name, task in sources
    ]
    head = 'checkpoint = "none"\nout = "nowhere"\n[data]\nseq_len = 96\n'
    tail = "[train]\nsteps = 1\nglobal_batch_size = 4\nmicro_batch_size = 2\n"
    path.write_text(head + "\n".join(tables) + "\n" + tail, encoding="utf-8")
    return path

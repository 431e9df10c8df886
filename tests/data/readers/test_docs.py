"""The run files in the docs, each on a small source of the form it is written for."""

import io
import json
import re
import tarfile
import tomllib
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.config import from_dict
from liquidmm.data.readers import SourceConfig, list_chunks, read_chunk
from liquidmm.data.records import ChatRecord, ImageTextRecord, TextRecord, images_of

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
EXAMPLES = [
    block
    for block in re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if re.search(r"^\[source\]", block, re.MULTILINE)
]

SPEAKERS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
ROLES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
PAIR = {"image": "a.jpg", "caption": "a cat"}
NAMED = {"file": "a.jpg", "blip": {"caption": "a cat"}, "alt": "cat", "part": "train"}
CODE = {"id": "1", "content": "import os", "max_stars_repo_name": "a/b", "max_stars_count": 1}
JOURNEYDB = {"img_path": "./000/a.jpg", "prompt": "cat --v 4", "Task2": {"Caption": "A cat."}}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as compressed:
        compressed.write(content)
    return stream.getvalue().to_pybytes()


def parquet(*rows):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def tar(**members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


SHARD = tar(**{"0.jpg": b"J", "0.txt": b"a cat", "0.json": b'{"license": "MIT"}'})
CLASSES = tar(**{"0.jpg": b"J", "0.cls": b"1"})
SOURCES = {
    "data/records.jsonl": (
        {"data/records.jsonl": jsonl(PAIR, {"text": "x"}, {"messages": ROLES})},
        [ImageTextRecord, TextRecord, ChatRecord],
    ),
    "s3://bucket/pairs/{0000..0003}.jsonl": (
        {f"s3://bucket/pairs/000{n}.jsonl": jsonl(PAIR) for n in range(4)},
        [ImageTextRecord] * 4,
    ),
    "data/pairs.jsonl": (
        {"data/pairs.jsonl": jsonl(NAMED | {"meta": {"site": "x"}}, NAMED | {"part": "val"})},
        [ImageTextRecord],
    ),
    "data/llava/llava_v1_5_mix665k.json": (
        {
            "data/llava/llava_v1_5_mix665k.json": json.dumps(
                [{"id": "1", "image": "coco/a.jpg", "conversations": SPEAKERS}]
            ).encode(),
            "data/llava/images/coco/a.jpg": b"J",
        },
        [ChatRecord],
    ),
    "data/lmsys-chat-1m/data/*.parquet": (
        {
            "data/lmsys-chat-1m/data/train-00000-of-00006.parquet": parquet(
                {"conversation_id": "a", "model": "x", "conversation": ROLES}
            )
        },
        [ChatRecord],
    ),
    "data/dclm/**/*.jsonl.zst": (
        {
            f"data/dclm/global-shard_0{n}_of_10/shard_0_processed.jsonl.zst": zstd(
                jsonl({"text": "words", "url": "http://x", "metadata": {}, "warcinfo": ""})
            )
            for n in (1, 2)
        },
        [TextRecord] * 2,
    ),
    "data/SlimPajama-627B/train/chunk*/*.jsonl.zst": (
        {
            "data/SlimPajama-627B/train/chunk1/example_train_0.jsonl.zst": zstd(
                jsonl({"text": "words", "meta": {"redpajama_set_name": "RedPajamaC4"}})
            )
        },
        [TextRecord],
    ),
    "data/starcoderdata/python/*.parquet": (
        {"data/starcoderdata/python/train-00000-of-00059.parquet": parquet(CODE)},
        [TextRecord],
    ),
    "data/JourneyDB/data/train/train_anno_realease_repath.jsonl": (
        {
            "data/JourneyDB/data/train/train_anno_realease_repath.jsonl": jsonl(JOURNEYDB),
            "data/JourneyDB/data/train/imgs/000/a.jpg": b"J",
        },
        [ImageTextRecord],
    ),
    "data/images": (
        {"data/images/cats/a.jpg": b"J", "data/images/cats/a.txt": b"a cat"},
        [ImageTextRecord],
    ),
    "data/imagefolder": (
        {
            "data/imagefolder/train/metadata.csv": b"file_name,text\na.jpg,a cat\n",
            "data/imagefolder/test/metadata.csv": b"file_name,text\nb.jpg,a dog\n",
            "data/imagefolder/train/a.jpg": b"J",
            "data/imagefolder/test/b.jpg": b"J",
        },
        [ImageTextRecord] * 2,
    ),
    "data/captions.tsv": (
        {"data/captions.tsv": b"file\tsentence\na.jpg\ta cat\n", "data/images/a.jpg": b"J"},
        [ImageTextRecord],
    ),
    "data/images-parquet/data/train-*.parquet": (
        {
            "data/images-parquet/data/train-00000-of-00001.parquet": parquet(
                {"jpg": {"bytes": b"J", "path": "a.jpg"}, "caption_llm": "a cat"}
            )
        },
        [ImageTextRecord],
    ),
    "data/laion/{00000..00002}.tar": (
        {f"data/laion/0000{n}.tar": SHARD for n in range(3)},
        [ImageTextRecord] * 3,
    ),
    "data/imagenet-train-{0000..0001}.tar": (
        {
            "data/imagenet-train-0000.tar": CLASSES,
            "data/imagenet-train-0001.tar": CLASSES,
            "data/imagenet-classes.txt": b"tench\ngoldfish\n",
        },
        [ImageTextRecord] * 2,
    ),
    "data/saved": ({}, [ImageTextRecord]),
    "owner/name": ({}, [ImageTextRecord]),
}


def saved_images():
    rows = {"image": [b"J"], "text": ["a cat"], "label": [0]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat"]),
        }
    )
    one = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(train=one, test=one)


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_in_docs_reads_its_source(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = text.replace("data/pictures", "data/images")
    run = tomllib.loads(text)
    path = run["source"]["path"]
    assert path in SOURCES, f"add what {path} needs to SOURCES"
    files, kinds = SOURCES[path]
    for name, content in files.items():
        if name.startswith("s3://"):
            fsspec.filesystem("memory").pipe_file(name.removeprefix("s3:/"), content)
            continue
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    if path == "data/saved":
        saved_images().save_to_disk("data/saved")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: saved_images())
    # the server of the example is this process
    run = tomllib.loads(text.replace("s3://", "memory://"))
    config = from_dict(SourceConfig, run["source"], "run.toml")
    chunks = list_chunks(config, 2)
    found = [record for chunk in chunks for record in read_chunk(config, chunk)]
    assert [record.problem for record in found] == [""] * len(kinds)
    assert [type(record.record) for record in found] == kinds
    if any(name.endswith(".jpg") for name in files):
        shown = [image for record in found for image in images_of(record.record)]
        assert all(str(image) in files for image in shown)


def test_docs_have_examples():
    assert EXAMPLES

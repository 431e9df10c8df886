import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from liquidmm.data.manifest import read_manifest
from liquidmm.data.readers import SourceConfig
from liquidmm.data.shards import read_shards
from liquidmm.encode import (
    BucketConfig,
    EncoderConfig,
    TokenizerFile,
    WorkerConfig,
    encode,
    encode_task,
)
from liquidmm.encode import run as run_module
from liquidmm.encode.run import num_decode_threads, num_workers
from liquidmm.encode.setup import open_task
from liquidmm.errors import ConfigError, DataError

SIZE = (16, 16)
RED, BLUE = (255, 0, 0), (0, 0, 255)
CONFIG = EncoderConfig(resolution=16, batch_size=2, samples_per_shard=3, max_error_rate=0.5)
LENIENT = replace(CONFIG, max_error_rate=1.0)


def run(path, tokenizer, out, config=CONFIG, **source):
    return encode(SourceConfig(path=str(path), **source), tokenizer, out, config)


def rejected(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_encode_writes_samples_and_rejected_records(source, tokenizer, tmp_path):
    manifest = run(source, tokenizer, tmp_path / "out")
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["b", "a", "c", "d", "i"]
    assert [row.kind for row in rows] == ["text", "image_text", "chat", "image_text", "image_text"]
    assert rows[1].license == "MIT"
    assert rows[1].image_codes[0].tolist() == [[15, 15], [15, 15]]
    assert rows[3].captions == ("blue", "azure")
    assert rows[3].image_codes[0].tolist() == [[0, 0], [0, 0]]
    assert tokenizer.images == 3  # red is shared within its shard, blue is in two shards
    assert manifest.complete
    assert (manifest.totals.records, manifest.totals.rejected) == (5, 4)
    assert [item["line"] for item in rejected(tmp_path / "out")] == [5, 6, 7, 8]
    words = ["40 x 10", "broken.png", "none.png", "h"]
    for item, word in zip(rejected(tmp_path / "out"), words, strict=True):
        assert word in item["reason"]
        assert item["reason"].startswith(f"{source}:{item['line']}: ")
        assert item["source"] == str(source)


@pytest.fixture
def llava(tmp_path):
    """Images at the start, at the end and without a placeholder; text only; two bad records."""
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", SIZE, RED).save(tmp_path / "train2017/1.png")
    Image.new("RGB", SIZE, BLUE).save(tmp_path / "train2017/2.png")
    turns = [
        ("train2017/1.png", "<image>\nWhat is this?"),
        ("train2017/2.png", "What is this?\n<image>"),
        ("train2017/1.png", "What is this?"),
        (None, "What is this?"),
        (None, "What is <image>?"),
        ("train2017/3.png", "<image>\nWhat is this?"),
    ]
    items = [
        {
            "id": f"{number:03d}",
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "a red cat"},
            ],
        }
        | ({} if image is None else {"image": image})
        for number, (image, question) in enumerate(turns)
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(items, indent=2))
    return path


def test_encode_reads_a_published_llava_file(llava, tmp_path, image_tokenizer_folder, checkpoint):
    config = EncoderConfig(resolution=SIZE[0], samples_per_shard=4, max_error_rate=0.5)
    tokenizer = TokenizerFile(path=image_tokenizer_folder, device="cpu")
    source = SourceConfig(path=str(llava))
    manifest = encode(source, tokenizer, tmp_path / "out", config, WorkerConfig(num=1))
    assert manifest.totals.kinds == {"chat": 4}
    assert (manifest.totals.images, manifest.totals.rejected) == (3, 2)
    rows = list(read_shards(tmp_path / "out"))
    assert [row.key for row in rows] == ["000", "001", "002", "003"]
    assert [row.messages[0].content for row in rows] == [
        "<image>\nWhat is this?",
        "What is this?\n<image>",
        "<image>\nWhat is this?",
        "What is this?",
    ]
    assert [len(row.image_codes) for row in rows] == [1, 1, 1, 0]
    red, blue, again = (row.image_codes[0] for row in rows[:3])
    assert red.shape == (4, 4)
    assert (red == again).all()
    assert (red != blue).any()
    # an image without a placeholder is laid out as one before the question
    sequences = checkpoint.processor.sequences
    token_ids = [sequences.chat(row.messages, row.image_codes)[0] for row in rows]
    assert token_ids[2] == token_ids[0]
    assert [sequence.count(sequences.vocabulary.boi) for sequence in token_ids] == [1, 1, 1, 0]
    first, second = rejected(tmp_path / "out")
    assert first.pop("reason").startswith(f"{llava}[4]: ")
    assert first == {"source": str(llava), "line": 4, "where": f"{llava}[4]"}
    assert second.pop("reason").startswith(f"{llava}[5]: {tmp_path}/train2017/3.png: ")
    assert second == {"source": str(llava), "line": 5, "where": f"{llava}[5]"}


def test_image_root_may_be_another_folder(llava, tokenizer, tmp_path):
    (tmp_path / "lists").mkdir()
    moved = llava.rename(tmp_path / "lists/llava.json")
    manifest = run(moved, tokenizer, tmp_path / "out", image_root=str(tmp_path))
    assert (manifest.totals.images, manifest.totals.rejected) == (3, 2)
    assert manifest.provenance.settings["image_root"] == str(tmp_path)
    with pytest.raises(DataError, match=r"settings\.image_root.*None"):
        run(moved, tokenizer, tmp_path / "out")
    with pytest.raises(ConfigError, match="image_root: .*x"):
        run(moved, tokenizer, tmp_path / "new", image_root=str(tmp_path / "x"))
    plain = run(moved, tokenizer, tmp_path / "none", LENIENT)
    assert "image_root" not in plain.provenance.settings


def test_rest_of_a_damaged_array_is_one_rejected_record(llava, tokenizer, tmp_path):
    llava.write_text(llava.read_text()[:-30])
    manifest = run(llava, tokenizer, tmp_path / "out")
    assert (manifest.totals.records, manifest.totals.rejected) == (4, 2)
    last = rejected(tmp_path / "out")[-1]
    assert (last["where"], last["line"]) == (f"{llava}[5]", 5)
    assert f"{llava}[5]: the file ends before the array" in last["reason"]


def test_changed_source_rejected(llava, tokenizer, tmp_path):
    run(llava, tokenizer, tmp_path / "out")
    llava.write_text(llava.read_text().replace("a red cat", "a cat"))
    with pytest.raises(DataError, match="source_digest"):
        run(llava, tokenizer, tmp_path / "out")


def test_second_run_does_nothing(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    assert len(before) == 5  # three shards, the manifest, the rejected records; no log files
    encoded = tokenizer.images
    run(source, tokenizer, tmp_path / "out")
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").iterdir()}
    assert tokenizer.images == encoded
    assert after == before


def test_interrupted_run_is_resumed(source, tokenizer, tmp_path):
    class Stops(type(tokenizer)):
        def encode(self, pixels):
            if self.images:
                raise KeyboardInterrupt
            return super().encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(source, Stops(), tmp_path / "out")
    kept = (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns
    run(source, tokenizer, tmp_path / "out")
    run(source, tokenizer, tmp_path / "whole")
    assert (tmp_path / "out/shard-00000.arrow").stat().st_mtime_ns == kept
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_splits_select_records(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out", splits=("test",))
    assert [row.key for row in read_shards(tmp_path / "out")] == ["d"]


def test_empty_source_rejected(source, tokenizer, tmp_path):
    source.write_text('{"text": "x", "split": "train"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl: no records of the splits val"):
        run(source, tokenizer, tmp_path / "out", splits=("val",))
    assert not (tmp_path / "out").exists()
    source.write_text("")
    with pytest.raises(DataError, match=r"records\.jsonl"):
        run(source, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_rejected_records_stop_the_run(source, tokenizer, tmp_path):
    words = r"out/rejected\.jsonl: 4 of 9 records.* max_error_rate = 0\.3"
    config = EncoderConfig(resolution=16, max_error_rate=0.3)
    for _ in range(2):  # another run reports it again
        with pytest.raises(DataError, match=words):
            run(source, tokenizer, tmp_path / "out", config)
    assert len(rejected(tmp_path / "out")) == 4
    with pytest.raises(DataError, match="out"):
        read_shards(tmp_path / "out")
    assert run(source, tokenizer, tmp_path / "out", LENIENT_ONE_SHARD).complete


LENIENT_ONE_SHARD = EncoderConfig(resolution=16, max_error_rate=1.0)


def test_too_many_rejected_records_stop_the_run_early(source, tokenizer, tmp_path):
    good = json.dumps({"text": "fine"}) + "\n"
    source.write_text(good * 400 + "{\n" * 700 + good * 1000)
    config = EncoderConfig(resolution=16, samples_per_shard=300, max_error_rate=0.5)
    words = "700 of 1200 records.*records.jsonl:401: "
    with pytest.raises(DataError, match=words):
        run(source, tokenizer, tmp_path / "out", config)
    assert len(list((tmp_path / "out").glob("shard-*"))) == 4


def test_other_tokenizer_rejected(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    tokenizer.fingerprint = "other"
    with pytest.raises(DataError, match="fingerprint 'patches'.*'other'"):
        run(source, tokenizer, tmp_path / "out")


def test_buckets_keep_sizes_and_batches_have_one_size(source, tokenizer, tmp_path):
    lines = []
    for number, size in enumerate([(32, 32), (64, 32), (33, 31), (30, 66), (48, 24), (32, 33)]):
        name = f"{number}.png"
        Image.new("RGB", size, RED).save(source.parent / name)
        lines.append(json.dumps({"key": str(number), "image": name, "caption": "red"}) + "\n")
    source.write_text("".join(lines))
    buckets = BucketConfig(areas=(16 * 16, 32 * 32), ratios=("1:1", "2:1", "1:2"))
    config = EncoderConfig(buckets=buckets, batch_size=2)
    manifest = run(source, tokenizer, tmp_path / "out", config)
    grids = [row.image_codes[0].shape for row in read_shards(tmp_path / "out")]
    # 48 x 24 would be enlarged to 48 x 24 (rounded: 48 x 24), 33 x 31 to 32 x 32
    assert grids == [(4, 4), (3, 6), (2, 2), (6, 3), (3, 6), (4, 4)]
    assert tokenizer.batches == [(2, 3, 24, 48), (2, 3, 32, 32), (1, 3, 16, 16), (1, 3, 48, 24)]
    assert manifest.totals.sizes == {"4 x 4": 2, "6 x 3": 2, "2 x 2": 1, "3 x 6": 1}
    settings = manifest.provenance.settings
    assert settings["buckets.ratios"] == ["1:1", "2:1", "1:2"]
    assert "resolution" not in settings


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EncoderConfig(resolution=20), "resolution: .*8.*20.*16"),
        (
            EncoderConfig(buckets=BucketConfig(areas=(100,), ratios=("8:1",))),
            "buckets: 100 pixels at 8:1.*8",
        ),
    ],
)
def test_sizes_must_fit_the_downsample_factor(source, tokenizer, tmp_path, config, words):
    with pytest.raises(ConfigError, match=words):
        run(source, tokenizer, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_images_stored_as_bytes(source, tokenizer, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = source.parent / "p"
    names = ["red.png", "broken.png", "blue.png", "red.png"]
    table = {"image": [(folder / n).read_bytes() for n in names], "caption": names}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    run(tmp_path / "rows.parquet", tokenizer, tmp_path / "out")
    rows = list(read_shards(tmp_path / "out"))
    assert [row.captions[0] for row in rows] == ["red.png", "blue.png", "red.png"]
    reason = rejected(tmp_path / "out")[0]["reason"]
    assert reason.startswith(f"{tmp_path}/rows.parquet[1]: image: ")


def test_torch_threads_are_restored(source, tokenizer, tmp_path):
    torch.set_num_threads(1)
    run(source, tokenizer, tmp_path / "out")
    assert torch.get_num_threads() == 1


CPU, GPU, SECOND = torch.device("cpu"), torch.device("cuda"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("config", "device", "workers", "decode_threads"),
    [
        ({}, CPU, 16, 1),
        ({"threads": 4}, CPU, 4, 1),
        ({"num": 3, "decode_threads": 2}, CPU, 3, 2),
        ({"num": 99}, CPU, 40, 1),
        ({}, GPU, 4, 4),
        ({"num": 8}, GPU, 8, 2),
        ({}, SECOND, 1, 16),
    ],
)
def test_worker_defaults_fit_the_machine(monkeypatch, config, device, workers, decode_threads):
    """A machine with 16 cores and 4 GPUs, and 40 shards to write."""
    monkeypatch.setattr(run_module, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    given = WorkerConfig(**config)
    assert num_workers(given, device, 40) == workers
    assert num_decode_threads(given, device, workers) == decode_threads


def test_precision_below_min_code_match_rejected(whole, tmp_path):
    fast = EncoderConfig(
        resolution=96, samples_per_shard=30, precision="bfloat16", min_code_match=0.2
    )
    one = WorkerConfig(num=1)
    manifest = encode(whole.source, whole.tokenizer, tmp_path / "out", fast, one)
    assert manifest.provenance.settings["precision"] == "bfloat16"
    strict = replace(fast, min_code_match=1.0)
    message = r"^precision: \d\d\.\d+% .*bfloat16.*min_code_match = 1"
    with pytest.raises(ConfigError, match=message):
        encode(whole.source, whole.tokenizer, tmp_path / "strict", strict)
    assert not (tmp_path / "strict").exists()
    exact = encode(
        whole.source, whole.tokenizer, tmp_path / "exact", EncoderConfig(resolution=96), one
    )
    assert "precision" not in exact.provenance.settings


def test_tf32_needs_a_gpu_here_but_not_elsewhere(whole, tmp_path):
    config = EncoderConfig(resolution=96, precision="tf32")
    arguments = (whole.source, whole.tokenizer, tmp_path / "out", config, WorkerConfig())
    with pytest.raises(ConfigError, match=r"^precision: tf32"):
        open_task(*arguments)
    task, _ = open_task(*arguments, elsewhere=True)
    assert task.tokenizer.precision == "tf32"


def task(whole, out, index, num_tasks, config=None):
    source, tokenizer, _, usual, _ = whole.arguments(out)
    return encode_task(source, tokenizer, out, index, num_tasks, config or usual)


def test_tasks_write_what_one_run_writes(whole, tmp_path):
    out = tmp_path / "out"
    for index in (3, 0, 3, 2):  # any order, and repeated
        assert not task(whole, out, index, 4).complete
    names = {path.name for path in out.glob("shard-*")}
    assert names == {f"shard-{number:05d}.arrow" for number in range(30) if number % 4 != 1}
    assert task(whole, out, 1, 4).complete
    whole.assert_same(out)
    assert task(whole, out, 0, 4).complete  # nothing left to do
    whole.assert_same(out)


def test_tasks_finish_a_run_of_another_kind(whole, tmp_path):
    out = tmp_path / "out"
    task(whole, out, 1, 5)
    task(whole, out, 0, 2)
    encode(*whole.arguments(out, num=1))
    whole.assert_same(out)


@pytest.mark.parametrize("index", [-1, 2, 3])
def test_task_index_out_of_range_rejected(whole, tmp_path, index):
    with pytest.raises(ConfigError, match=rf"^task: .*0 to 1.*{index}"):
        task(whole, tmp_path / "out", index, 2)
    assert not (tmp_path / "out").exists()


def test_tasks_share_one_error_budget(source, tokenizer, tmp_path):
    good = json.dumps({"text": "fine"}) + "\n"
    source.write_text(good * 600 + "{\n" * 1200)
    config = EncoderConfig(resolution=16, samples_per_shard=600, max_error_rate=0.5)
    given = (SourceConfig(path=str(source)), tokenizer, tmp_path / "out")
    assert not encode_task(*given, 0, 3, config).complete
    with pytest.raises(DataError, match="600 of 1200 records") as caught:
        encode_task(*given, 1, 3, replace(config, max_error_rate=0.4))
    assert "max_error_rate = 0.4" in str(caught.value)
    assert (tmp_path / "out/rejected.jsonl").exists()
    lenient = replace(config, max_error_rate=1.0)
    assert not encode_task(*given, 1, 3, lenient).complete  # the error is not remembered
    with pytest.raises(DataError, match="1200 of 1800 records"):
        encode_task(*given, 2, 3, config)
    assert not read_manifest(tmp_path / "out").complete
    assert encode_task(*given, 2, 3, lenient).complete


def test_tasks_of_an_empty_source_leave_nothing(source, tokenizer, tmp_path):
    source.write_text('{"text": "x", "split": "train"}\n')
    config = SourceConfig(path=str(source), splits=("val",))
    with pytest.raises(DataError, match=r"records\.jsonl: no records of the splits val"):
        encode_task(config, tokenizer, tmp_path / "out", 0, 1)
    assert not (tmp_path / "out").exists()

"""`liquid bench data`: the parts in one result; made-up shards."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from liquidmm.bench.data import DataBench, bench_data
from liquidmm.bench.loading import LoadingSizes
from liquidmm.bench.synthetic import pictures, texts, write_synthetic
from liquidmm.cli import main
from liquidmm.data.shards import read_shards, verify
from liquidmm.errors import ConfigError, LiquidError

SMALL = LoadingSizes(
    seconds=0.05,
    workers=0,
    pictures=50,
    texts=20,
    samples=(120,),
    shard_records=40,
    window=8,
    draws=50,
)


def test_every_part_has_its_figures(tmp_path):
    told = []
    config = DataBench(parts=("loading", "formats"), loading=SMALL, scratch=tmp_path)
    result = bench_data(config, told.append).to_dict()
    json.dumps(result)
    figures = result["figures"]
    for name, unit in {
        "read_rows_per_s": "rows/s",
        "load_tokens_per_s": "ids/s",
        "load_rows_per_s": "rows/s",
        "load_megabytes_per_s": "MB/s",
        "load_small_tokens_per_s": "ids/s",
        "load_memory_120": "MiB",
        "load_mapped_120": "MiB",
    }.items():
        assert figures[name]["unit"] == unit
        assert figures[name]["value"] > 0
    # codes, caption and about 75 bytes
    assert 2048 < figures["bytes_per_picture"]["value"] < 2600
    assert 80 < figures["load_fill"]["value"] <= 100
    assert 0 < figures["load_padded_fill"]["value"] < figures["load_fill"]["value"]
    ids, rows = (figures[f"load_{name}_per_s"]["value"] for name in ("tokens", "rows"))
    assert ids / rows / 2048 == pytest.approx(figures["load_fill"]["value"] / 100, rel=1e-3)
    assert result["settings"]["loading"]["workers"] == 0
    for name in ("shard", "parquet_16", "parquet_128", "array_record"):
        assert figures[f"format_{name}_rows_per_s"]["value"] > 0
        assert 1400 < figures[f"format_{name}_bytes_per_row"]["value"] < 4000
    assert told[-2:] == ["memory with 120 records", "the same rows in other formats"]
    assert list(tmp_path.iterdir()) == []


def test_made_up_shards(tmp_path):
    rows = [*pictures(30, 8, 4), *texts(10, 20)]
    folder = write_synthetic(tmp_path / "out", rows, copies=3)
    shards = read_shards(folder)
    assert len(shards) == 120
    assert [row.key for row in shards.of_kind("text")] == [f"{n:08d}" for n in range(10)] * 3
    assert all(not problem for _, problem in verify(folder))
    assert shards.of_kind("image_text")[0].image_codes[0].shape == (8, 8)
    again = pictures(30, 8, 4)
    assert all(
        np.array_equal(a.image_codes, b.image_codes) for a, b in zip(rows, again, strict=False)
    )
    lengths = [len(row.text.split()) for row in texts(3000, 100)]
    assert np.mean(lengths) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "loadin"], "--only: 'loadin' is unknown. Did you mean 'loading'?"),
        (["--seconds", "0"], "seconds: must be above 0"),
        (["--workers", "-1"], "workers: must be 0 or more"),
        (["--models", "larg"], "--models: 'larg' is unknown. Did you mean 'large'?"),
        (["--precisions", "float8"], "--precisions: 'float8' is unknown. Did you mean 'float32'"),
        (["--samples", "many"], "--samples: 'many' are no numbers"),
        (["--samples", "5"], "samples: must be multiples of shard_records, 100000 (5)"),
    ],
)
def test_bad_input(arguments, words):
    result = CliRunner().invoke(main, ["bench", "data", *arguments])
    assert result.exit_code == 1
    assert words in result.stderr


def test_no_room(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(LiquidError, match=r"needs 1\.0 GiB, 0\.0 are free.*--scratch"):
        bench_data(DataBench(parts=("loading", "formats"), loading=SMALL, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_config_is_checked():
    with pytest.raises(ConfigError, match="samples: must be multiples"):
        LoadingSizes(samples=(150,), shard_records=100)

import pytest

from liquidmm.config import from_dict
from liquidmm.encode import BucketConfig, EncodeConfig, EncoderConfig, RayConfig, WorkerConfig
from liquidmm.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(resolution=0), r"^resolution: .*1.*0"),
        (lambda: EncoderConfig(max_error_rate=2.0), r"^max_error_rate: .*at most 1.*2\.0"),
        (lambda: EncoderConfig(min_code_match=-1.0), r"^min_code_match: .*at least 0.*-1\.0"),
        (lambda: EncoderConfig(max_aspect=0.5), r"^max_aspect: .*above 1.*0\.5"),
        (lambda: EncoderConfig(max_aspect=float("nan")), r"^max_aspect: .*nan"),
        (lambda: EncoderConfig(buckets=BucketConfig(), resize="pad"), r"^buckets: .*'crop'"),
        (lambda: BucketConfig(areas=()), r"^areas: .*empty"),
        (lambda: BucketConfig(areas=(4, 4)), r"^areas: .*\(4, 4\)"),
        (lambda: BucketConfig(areas=(0,)), r"^areas: .*1.*0"),
        (lambda: BucketConfig(ratios=("square",)), r"^ratios: .*3:2.*'square'"),
        (lambda: BucketConfig(ratios=("1:0",)), r"^ratios: .*3:2.*'1:0'"),
        (lambda: BucketConfig(ratios=("-1:2",)), r"^ratios: .*100:1.*'-1:2'"),
        (lambda: BucketConfig(ratios=("nan:1",)), r"^ratios: .*100:1.*'nan:1'"),
        (lambda: BucketConfig(max_upscale=-1.0), r"^max_upscale: .*0.*-1\.0"),
        (lambda: WorkerConfig(num=-1), r"^num: .*0.*-1"),
        (lambda: WorkerConfig(threads=0), r"^threads: .*1.*0"),
        (lambda: RayConfig(gpus=2), r"^gpus: .*1.*2"),
    ],
)
def test_config_invalid_value_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


RUN = {"source": {"path": "a.jsonl"}, "tokenizer": "t", "out": "o"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"workers": 1}}, "engine: .*'workers'"),
        ({"workers": {"workers": 1}}, r"workers\.workers: .*'num'"),
        ({"workers": {"decoders": 1}}, r"workers\.decoders: .*'decode_threads'"),
        ({"encode": {"size": 8}}, r"encode\.size: .*'resolution'"),
        ({"encode": {"prepare": "pad"}}, r"encode\.prepare: .*'resize'"),
        ({"encode": {"max_failures": 1.0}}, r"encode\.max_failures: .*'max_error_rate'"),
        ({"encode": {"agreement": 1.0}}, r"encode\.agreement: .*'min_code_match'"),
        ({"encode": {"shard_records": 8}}, r"encode\.shard_records: .*'samples_per_shard'"),
        ({"encode": {"precision": "auto"}}, r"encode\.precision: .*'bfloat16'.*'auto'"),
        ({"slurm": {}}, r"slurm\.num_tasks: missing"),
        ({"ray": {}, "slurm": {"num_tasks": 1}}, r"slurm: .*\[ray\]"),
        ({"ray": {}}, r"workers\.num: .*0"),
    ],
)
def test_run_file_invalid_key_is_named(change, message):
    with pytest.raises(ConfigError, match=f"^run.toml: {message}"):
        from_dict(EncodeConfig, RUN | change, "run.toml")

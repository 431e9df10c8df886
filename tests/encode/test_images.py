import numpy as np
import pytest
from PIL import Image

from liquidmm.encode import BucketConfig, EncodeConfig, EngineConfig, Preparation
from liquidmm.errors import ConfigError, DataError

RED = (255, 0, 0)
WIDE = BucketConfig(areas=(64 * 64, 128 * 128), ratios=("1:1", "2:1", "1:2", "4:1"))


def buckets(**values):
    given = {"areas": WIDE.areas, "ratios": WIDE.ratios} | values
    return Preparation(EncodeConfig(buckets=BucketConfig(**given), max_aspect=1.9), 16)


def test_pad_shows_all_of_the_picture():
    preparation = Preparation(EncodeConfig(size=16, prepare="pad"), 8)
    image = preparation(Image.new("RGB", (40, 10), RED))
    assert image.size == (16, 16)
    pixels = np.asarray(image)
    assert tuple(pixels[0, 8]) == (122, 116, 104)
    assert tuple(pixels[8, 8]) == RED


def test_sizes_are_multiples_of_the_factor_near_the_area():
    # sqrt(4096 * 2) = 90.5 and sqrt(16384 / 2) = 90.5
    assert buckets().sizes == [
        (64, 64),
        (128, 128),
        (96, 48),
        (176, 96),
        (48, 96),
        (96, 176),
        (128, 32),
        (256, 64),
    ]


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        ((64, 64), (64, 64)),
        ((127, 127), (64, 64)),  # not enlarged
        ((128, 128), (128, 128)),
        ((4000, 4100), (128, 128)),  # the nearest area
        ((90, 64), (64, 64)),  # 1.406: nearer to 1 than to 2, in factors
        ((182, 128), (176, 96)),  # 1.42: nearer to 2
        ((352, 192), (176, 96)),
        ((192, 352), (96, 176)),
        ((512, 128), (256, 64)),
    ],
)
def test_the_nearest_ratio_and_area(size, chosen):
    preparation = buckets()
    assert preparation.size_for(size) == chosen
    assert preparation(Image.new("RGB", size)).size == chosen


def test_enlarging_is_limited():
    assert buckets(max_upscale=2.0).size_for((100, 100)) == (128, 128)
    assert buckets(max_upscale=2.0).size_for((40, 40)) == (64, 64)
    assert buckets(max_upscale=0.0).size_for((2, 2)) == (64, 64)
    with pytest.raises(DataError) as error:
        buckets().size_for((40, 50), "a.png")
    assert str(error.value) == (
        "a.png: 40 x 50 would be enlarged 1.6 times to 64 x 64. Take a larger picture, raise "
        "max_upscale or add a smaller area."
    )


def test_pictures_longer_than_all_ratios():
    with pytest.raises(DataError, match=r"^a\.png: 1 x 300 is 1\.9 times longer than the nearest"):
        buckets().size_for((1, 300), "a.png")
    with pytest.raises(DataError, match="16 x 8 is 2 to 1 or longer"):
        Preparation(EncodeConfig(size=16), 8).size_for((16, 8))
    assert Preparation(EncodeConfig(size=16, max_aspect=0.0), 8).size_for((16, 2)) == (16, 16)


def test_the_middle_is_cut_out():
    image = Image.new("RGB", (90, 64), (0, 0, 255))
    image.paste(RED, (13, 0, 77, 64))
    assert buckets()(image).getcolors() == [(64 * 64, RED)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EncodeConfig(size=0), "size: is 0"),
        (lambda: EncodeConfig(max_failures=2.0), "max_failures: is 2.0"),
        (lambda: EncodeConfig(agreement=-1.0), "agreement: is -1.0"),
        (lambda: EncodeConfig(max_aspect=0.5), "max_aspect: is 0.5"),
        (lambda: EncodeConfig(max_aspect=float("nan")), "max_aspect: is nan"),
        (lambda: EncodeConfig(buckets=BucketConfig(), prepare="pad"), "buckets: need prepare"),
        (lambda: BucketConfig(areas=()), "areas: is empty"),
        (lambda: BucketConfig(areas=(4, 4)), "names one twice"),
        (lambda: BucketConfig(areas=(0,)), "areas: is 0. Give pixels"),
        (lambda: BucketConfig(ratios=("square",)), "ratios: 'square'. Write width:height"),
        (lambda: BucketConfig(ratios=("1:0",)), "ratios: '1:0'. Write width:height"),
        (lambda: BucketConfig(ratios=("-1:2",)), "ratios: '-1:2'. Give one from 1:100 to 100:1"),
        (lambda: BucketConfig(ratios=("nan:1",)), "ratios: 'nan:1'. Give one from 1:100 to 100:1"),
        (lambda: BucketConfig(max_upscale=-1.0), "max_upscale: is -1.0"),
        (lambda: EngineConfig(workers=-1), "workers: is -1"),
        (lambda: EngineConfig(threads=0), "threads: is 0"),
        (lambda: EngineConfig(gpus=2), "gpus: is 2. A worker uses one GPU or none"),
        (lambda: EngineConfig(kind="slurm"), "workers: say how many when the kind is slurm"),
    ],
)
def test_config_is_checked(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)

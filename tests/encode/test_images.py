import numpy as np
import pytest
from PIL import Image

from liquidmm.encode import BucketConfig, EncoderConfig, ImageTransform
from liquidmm.errors import DataError

RED = (255, 0, 0)
WIDE = BucketConfig(areas=(64 * 64, 128 * 128), ratios=("1:1", "2:1", "1:2", "4:1"))


def buckets(**values):
    given = {"areas": WIDE.areas, "ratios": WIDE.ratios} | values
    return ImageTransform(EncoderConfig(buckets=BucketConfig(**given), max_aspect=1.9), 16)


def test_pad_shows_the_whole_image():
    transform = ImageTransform(EncoderConfig(resolution=16, resize="pad"), 8)
    image = transform(Image.new("RGB", (40, 10), RED))
    assert image.size == (16, 16)
    pixels = np.asarray(image)
    assert tuple(pixels[0, 8]) == (122, 116, 104)
    assert tuple(pixels[8, 8]) == RED


def test_bucket_sizes_are_multiples_of_the_factor():
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
def test_choose_size_takes_nearest_ratio_and_area(size, chosen):
    transform = buckets()
    assert transform.choose_size(size) == chosen
    assert transform(Image.new("RGB", size)).size == chosen


def test_choose_size_limits_upscaling():
    assert buckets(max_upscale=2.0).choose_size((100, 100)) == (128, 128)
    assert buckets(max_upscale=2.0).choose_size((40, 40)) == (64, 64)
    assert buckets(max_upscale=0.0).choose_size((2, 2)) == (64, 64)
    with pytest.raises(DataError, match=r"^a\.png: 40 x 50 .* 1\.6 times to 64 x 64.*max_upscale"):
        buckets().choose_size((40, 50), "a.png")


def test_choose_size_rejects_long_images():
    with pytest.raises(DataError, match=r"^a\.png: 1 x 300 .*1\.9 times longer .*max_aspect"):
        buckets().choose_size((1, 300), "a.png")
    with pytest.raises(DataError, match="16 x 8 .*2 to 1 or more.*max_aspect"):
        ImageTransform(EncoderConfig(resolution=16), 8).choose_size((16, 8))
    unlimited = ImageTransform(EncoderConfig(resolution=16, max_aspect=0.0), 8)
    assert unlimited.choose_size((16, 2)) == (16, 16)


def test_crop_takes_the_center():
    image = Image.new("RGB", (90, 64), (0, 0, 255))
    image.paste(RED, (13, 0, 77, 64))
    assert buckets()(image).getcolors() == [(64 * 64, RED)]

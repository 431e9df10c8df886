from pathlib import Path

import pytest
import torch
from PIL import Image

from liquidmm.errors import DataError
from liquidmm.icons.benchmark.gallery import Gallery, concept_names, read_icons, sample, shrink
from liquidmm.image_tokenizer.images import open_image

LINE = (
    '{"key": "a", "image": "a", "concept": "a", "style": "a", "captions": ["a"], "split": "train"}'
)


def test_read_icons_reads_all_fields(icons: Path) -> None:
    found = read_icons(icons)
    assert len(found) == 12
    first = found[0]
    assert (first.key, first.concept, first.style, first.split) == (
        "noto/apple",
        "apple",
        "noto",
        "train",
    )
    assert first.image == icons / "images/noto/apple.png"
    assert first.captions[0] == "a apple, noto style"


def test_read_icons_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="records.jsonl.*`liquid icons build`"):
        read_icons(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "records.jsonl:1: "),
        ("[]", "records.jsonl:1.*object"),
        ('{"key": "a"}', "'image'"),
        (LINE.replace("train", "x"), "split 'x'"),
        (LINE.replace('["a"]', "[]"), "0 captions"),
        ("\n", "contains no icons"),
    ],
)
def test_read_icons_bad_record_rejected(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "records.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_icons(tmp_path)


def test_sample_is_seeded_without_repetition(icons: Path) -> None:
    found = read_icons(icons)
    first = sample(found, "train", 5, seed=3)
    assert first == sample(found, "train", 5, seed=3)
    assert first != sample(found, "train", 5, seed=4)
    assert len({icon.key for icon in first}) == 5
    assert len(sample(found, "train", 100, seed=3)) == 9
    assert [icon.key for icon in sample(found, "held_out_pairs", 5, seed=0)] == [
        "fluent-emoji/star"
    ]


def test_sample_of_empty_split_rejected(icons: Path) -> None:
    with pytest.raises(DataError, match="split 'held_out_pairs'"):
        sample(read_icons(icons)[:2], "held_out_pairs", 1, seed=0)


def test_nearest_concept_of_each_icon_is_its_own(icons: Path) -> None:
    found = read_icons(icons)
    gallery = Gallery(found)
    images = [open_image(icon.image) for icon in found]
    assert gallery.nearest_concepts(images, [i.style for i in found]) == [i.concept for i in found]
    assert gallery.chance("noto") == pytest.approx(1 / 6)


def test_nearest_concept_searches_the_requested_style(icons: Path) -> None:
    found = read_icons(icons)
    gallery = Gallery(found, ["noto"])
    other = [icon for icon in found if icon.style == "fluent-emoji"]
    hits = gallery.nearest_concepts([open_image(i.image) for i in other], ["noto"] * 6)
    # Another color, the same pattern.
    assert hits == [icon.concept for icon in other]
    assert {icon.style for icon in gallery.icons} == {"noto"}


def test_nearest_concept_by_features(icons: Path) -> None:
    gallery = Gallery(read_icons(icons), ["noto"])
    white = [Image.new("RGB", (8, 8), "white")]
    assert gallery.nearest_concepts(white, ["noto"], lambda small: torch.zeros(len(small), 1)) == [
        "apple"
    ]


def test_shrink_resizes_and_scales() -> None:
    small = shrink([Image.new("RGB", (64, 64), (255, 255, 255)), Image.new("RGB", (16, 16))])
    assert small.shape == (2, 3, 32, 32)
    assert small[0].eq(1).all()
    assert small[1].eq(-1).all()
    assert shrink([]).shape == (0, 3, 32, 32)


def test_concept_names_are_split_into_words(icons: Path) -> None:
    names = concept_names(read_icons(icons))
    assert names["green-apple"] == ("green", "apple")
    assert names["cup-of-tea"] == ("cup", "of", "tea")

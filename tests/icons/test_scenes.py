import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import ChatRecord, ImageTextRecord
from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.scenes import OBJECTS, ScenesConfig, build_scenes


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    rng = random.Random(0)
    lines = []
    for style in ("noto", "twemoji"):
        for number, concept in enumerate(OBJECTS[:14]):
            image = f"{style}-{concept}.png"
            color = tuple(rng.randrange(200) for _ in range(3))
            Image.new("RGB", (64, 64), color).save(folder / image)
            record = {
                "key": f"{style}/{concept}",
                "image": image,
                "concept": concept,
                "style": style,
                "name": concept.replace("-", " "),
                "source": "A set by Somebody",
                "license": "Apache-2.0",
                "split": "held_out_concepts" if number == 3 else "train",
            }
            lines.append(json.dumps(record) + "\n")
    (folder / "records.jsonl").write_text("".join(lines))
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_build_scenes_writes_readable_records(icons: Path, tmp_path: Path) -> None:
    summary = build_scenes(icons, tmp_path / "scenes", ScenesConfig(count=120))
    captions = list(read_jsonl(tmp_path / "scenes/captions.jsonl"))
    chats = list(read_jsonl(tmp_path / "scenes/chat.jsonl"))
    assert (len(captions), len(chats)) == (120, summary["conversations"])
    for record in captions:
        assert isinstance(record, ImageTextRecord)
        assert isinstance(record.image, Path)
        with Image.open(record.image) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))
    for chat, row in zip(chats, rows(tmp_path / "scenes/chat.jsonl"), strict=True):
        assert isinstance(chat, ChatRecord)
        assert len(chat.messages) == 2 * len(row["tasks"])
        assert chat.messages[0].content.startswith("<image>\n")
        assert all(isinstance(image, Path) and image.is_file() for image in chat.images)


def test_build_scenes_same_seed_gives_same_bytes(icons: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_scenes(icons, tmp_path / name, ScenesConfig(count=40))
    build_scenes(icons, tmp_path / "c", ScenesConfig(count=40, seed=1))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert (tmp_path / "a/chat.jsonl").read_bytes() != (tmp_path / "c/chat.jsonl").read_bytes()


def test_held_out_scenes_new_and_without_held_out_icons(icons: Path, tmp_path: Path) -> None:
    build_scenes(icons, tmp_path / "scenes", ScenesConfig(count=300, held_out=0.3))
    records = rows(tmp_path / "scenes/captions.jsonl")
    text = (tmp_path / "scenes/chat.jsonl").read_text()
    assert OBJECTS[3] not in text
    images: dict[str, list[bytes]] = {"train": [], "held_out": []}
    for record in records:
        images[record["split"]].append((tmp_path / "scenes" / record["image"]).read_bytes())
    assert len({p for found in images.values() for p in found}) == 300
    assert 0.15 < len(images["held_out"]) / 300 < 0.45
    chats = {row["key"]: row["split"] for row in rows(tmp_path / "scenes/chat.jsonl")}
    assert all(chats[record["key"]] == record["split"] for record in records)


def test_build_scenes_with_few_icons_stops_early(icons: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    lines = (icons / "records.jsonl").read_text().splitlines()[:9]
    (world / "records.jsonl").write_text(
        "\n".join(lines).replace('"image": "', f'"image": "{icons}/')
    )
    summary = build_scenes(world, tmp_path / "scenes", ScenesConfig(count=20, icon_questions=0))
    assert (summary["scenes"], summary["conversations"]) == (20, 20)


@pytest.mark.parametrize("options", [{"count": 0}, {"size": 50}, {"held_out": 2.0}])
def test_config_out_of_range_rejected(options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ConfigError, match=f"{name}.*{value}"):
        ScenesConfig(**options)


def test_missing_icons_or_images_leave_nothing_behind(icons: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="records.jsonl.*`liquid icons build`"):
        build_scenes(tmp_path, tmp_path / "scenes", ScenesConfig(count=1))
    (tmp_path / "records.jsonl").write_text((icons / "records.jsonl").read_text().splitlines()[0])
    with pytest.raises(DataError, match="noto-red-apple.png: cannot be read"):
        build_scenes(tmp_path, tmp_path / "scenes", ScenesConfig(count=1))
    assert not (tmp_path / "scenes").exists()

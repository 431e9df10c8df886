import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli.data import command
from liquidmm.data.readers import read_jsonl
from liquidmm.data.records import ChatRecord, ImageTextRecord
from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.scene_colors import dominant_color
from liquidmm.icons.scene_language import (
    Question,
    Scene,
    Thing,
    scene_captions,
    scene_questions,
    spoken,
    verdict,
)
from liquidmm.icons.scenes import OBJECTS, ScenesConfig, build_scenes

DOG = Thing(concept="dog", name="dog")
CAR = Thing(concept="car", name="car", colour="red")
APPLE = Thing(concept="red-apple", name="red apple", colour="red")


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    rng = random.Random(0)
    lines = []
    for style in ("noto", "twemoji"):
        for number, concept in enumerate(OBJECTS[:14]):
            image = f"{style}-{concept}.png"
            colour = tuple(rng.randrange(200) for _ in range(3))
            Image.new("RGB", (64, 64), colour).save(folder / image)
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


def test_captions() -> None:
    scene = Scene(style="noto", things=((0, APPLE), (1, DOG), (2, APPLE)))
    assert scene_captions(scene) == (
        "two red apples and a dog, noto style",
        "noto emoji of two red apples and a dog",
        (
            "a red apple at the top left, a dog at the top right and a red apple at the bottom "
            "left, noto style"
        ),
    )
    assert scene_captions(Scene(style="noto", things=((1, CAR), (3, DOG)))) == (
        "a car and a dog, noto style",
        "noto emoji of a car and a dog",
        "a car at the top right and a dog at the bottom right, noto style",
        "a car above a dog, noto style",
        "a dog below a car, noto style",
    )


def ask(scene: Scene, tries: int = 200) -> set[tuple[str, str, str]]:
    names = ["dog", "car", "red apple", "owl"]
    asked: list[Question] = []
    for seed in range(tries):
        asked.extend(scene_questions(scene, names, 9, random.Random(seed)))
    return {(question.task, question.text, question.answer) for question in asked}


def test_questions_have_exactly_the_right_answers() -> None:
    scene = Scene(style="noto", things=((0, DOG), (1, APPLE), (3, APPLE)))
    found = {item for item in ask(scene) if item[0] != "presence"}
    plain = {(task, text.replace("do you see", "are there"), known) for task, text, known in found}
    seen = "a dog at the top left, a red apple at the top right and a red apple at the bottom right"
    assert plain == {
        ("count", "How many dogs are there?", "one"),
        ("count", "How many red apples are there?", "two"),
        ("count", "How many things are there?", "three"),
        ("which", "What is to the right of the dog?", "a red apple"),
        ("place", "Where is the dog?", "the dog at the top left: top left"),
        ("comparison", "Are there more red apples than dogs?", "two red apples, a dog: yes"),
        ("comparison", "Are there more dogs than red apples?", "a dog, two red apples: no"),
        ("colour", "What color are the apples?", "red"),
        ("list", "What is in the picture?", seen),
        ("list", "What are there?", seen),
        ("list", "Which things are where?", seen),
    }


def test_relations() -> None:
    scene = Scene(style="noto", things=((0, DOG), (3, CAR)))
    relations = {item[1:] for item in ask(scene) if item[0] == "relation"}
    dog = "the dog at the top left, the car at the bottom right"
    car = "the car at the bottom right, the dog at the top left"
    assert relations == {
        ("Is the dog to the left of the car?", f"{dog}: yes"),
        ("Is the dog to the right of the car?", f"{dog}: no"),
        ("Is the dog above the car?", f"{dog}: yes"),
        ("Is the dog below the car?", f"{dog}: no"),
        ("Is the car to the right of the dog?", f"{car}: yes"),
        ("Is the car to the left of the dog?", f"{car}: no"),
        ("Is the car below the dog?", f"{car}: yes"),
        ("Is the car above the dog?", f"{car}: no"),
    }


def test_the_first_step_by_step_answer_tells_all_that_is_seen() -> None:
    scene = Scene(style="noto", things=((0, DOG), (3, CAR)))
    count = Question(task="count", text="How many cars are there?", answer="one")
    place = Question(task="place", text="Where is the dog?", answer="the dog at x: x")
    seen = "a dog at the top left and a car at the bottom right"
    listed = Question(task="list", text="What do you see?", answer=seen)
    assert spoken(scene, [count, place, place]) == ("one", f"{seen}; {place.answer}", place.answer)
    assert spoken(scene, [listed, place]) == (seen, place.answer)


def test_the_verdict_of_an_answer() -> None:
    assert verdict("the dog at the top left, the car at the bottom right: no") == "no"
    assert verdict("a dog") == "a dog"


def test_presence_is_balanced_and_true() -> None:
    scene = Scene(style="noto", things=((2, DOG),))
    answers = []
    for seed in range(400):
        for question in scene_questions(scene, ["dog", "car", "owl"], 9, random.Random(seed)):
            if question.task == "presence" and "a dog" in question.text:
                assert question.answer == "a dog at the bottom left: yes"
            elif question.task == "presence":
                thing = "a car" if "a car" in question.text else "an owl"
                assert question.answer == f"{thing} nowhere: no"
            if question.task == "presence":
                answers.append(verdict(question.answer))
    assert 0.4 < answers.count("no") / len(answers) < 0.6


def test_no_question_is_asked_twice_and_no_task_four_times() -> None:
    scene = Scene(style="noto", things=((0, DOG), (3, CAR)))
    for seed in range(50):
        asked = scene_questions(scene, ["dog", "car", "owl"], 6, random.Random(seed))
        plain = {q.text.replace("are there", "do you see") for q in asked}
        assert len(asked) == len(plain) == 6
        assert max(Counter(q.task for q in asked).values()) <= 3


def test_no_answer_is_more_frequent_than_there_are_things() -> None:
    scene = Scene(style="noto", things=((0, DOG), (1, DOG)))
    names = ["dog", *(f"thing {number}" for number in range(30))]
    asked = scene_questions(scene, names, 9, random.Random(0))
    verdicts = [verdict(q.answer) for q in asked if q.task == "presence"]
    assert sorted(verdicts) == ["no", "yes"]


def test_the_folder_is_well_formed(icons: Path, tmp_path: Path) -> None:
    summary = build_scenes(icons, tmp_path / "scenes", ScenesConfig(count=120))
    captions = list(read_jsonl(tmp_path / "scenes/captions.jsonl"))
    chats = list(read_jsonl(tmp_path / "scenes/chat.jsonl"))
    assert (len(captions), len(chats)) == (120, summary["conversations"])
    for record in captions:
        assert isinstance(record, ImageTextRecord)
        assert isinstance(record.image, Path)
        with Image.open(record.image) as picture:
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
    for chat, row in zip(chats, rows(tmp_path / "scenes/chat.jsonl"), strict=True):
        assert isinstance(chat, ChatRecord)
        assert len(chat.messages) == 2 * len(row["tasks"])
        assert chat.messages[0].content.startswith("<image>\n")
        assert all(isinstance(image, Path) and image.is_file() for image in chat.images)


def test_the_same_seed_gives_the_same_bytes(icons: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_scenes(icons, tmp_path / name, ScenesConfig(count=40))
    build_scenes(icons, tmp_path / "c", ScenesConfig(count=40, seed=1))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert (tmp_path / "a/chat.jsonl").read_bytes() != (tmp_path / "c/chat.jsonl").read_bytes()


def test_held_out_scenes_are_new_and_no_held_out_icon_is_used(icons: Path, tmp_path: Path) -> None:
    build_scenes(icons, tmp_path / "scenes", ScenesConfig(count=300, held_out=0.3))
    records = rows(tmp_path / "scenes/captions.jsonl")
    text = (tmp_path / "scenes/chat.jsonl").read_text()
    assert OBJECTS[3] not in text
    pictures: dict[str, list[bytes]] = {"train": [], "held_out": []}
    for record in records:
        pictures[record["split"]].append((tmp_path / "scenes" / record["image"]).read_bytes())
    assert len({p for found in pictures.values() for p in found}) == 300
    assert 0.15 < len(pictures["held_out"]) / 300 < 0.45
    chats = {row["key"]: row["split"] for row in rows(tmp_path / "scenes/chat.jsonl")}
    assert all(chats[record["key"]] == record["split"] for record in records)


def test_a_small_world_ends_early(icons: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    lines = (icons / "records.jsonl").read_text().splitlines()[:9]
    (world / "records.jsonl").write_text(
        "\n".join(lines).replace('"image": "', f'"image": "{icons}/')
    )
    summary = build_scenes(world, tmp_path / "scenes", ScenesConfig(count=20, icon_questions=0))
    assert (summary["scenes"], summary["conversations"]) == (20, 20)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((200, 30, 30), "red"),
        ((230, 130, 20), "orange"),
        ((240, 210, 40), "yellow"),
        ((60, 160, 60), "green"),
        ((40, 90, 220), "blue"),
        ((150, 60, 210), "purple"),
        ((130, 80, 30), "brown"),
        ((250, 150, 170), "pink"),
        ((140, 140, 145), "gray"),
        ((255, 255, 255), ""),
    ],
)
def test_colours(colour: tuple[int, int, int], name: str) -> None:
    picture = Image.new("RGB", (30, 30), "white")
    picture.paste(colour, (5, 5, 25, 25))
    assert dominant_color(picture) == name


def test_a_colourful_thing_has_no_one_colour() -> None:
    picture = Image.new("RGB", (30, 30), (200, 30, 30))
    picture.paste((40, 90, 220), (0, 0, 15, 30))
    assert dominant_color(picture) == ""


def test_bad_input(icons: Path, tmp_path: Path) -> None:
    for options in ({"count": 0}, {"size": 50}, {"held_out": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ScenesConfig(**options)
    with pytest.raises(DataError, match="Make it with `liquid data icons`"):
        build_scenes(tmp_path, tmp_path / "scenes", ScenesConfig(count=1))
    (tmp_path / "records.jsonl").write_text((icons / "records.jsonl").read_text().splitlines()[0])
    with pytest.raises(DataError, match="can't be read"):
        build_scenes(tmp_path, tmp_path / "scenes", ScenesConfig(count=1))
    assert not (tmp_path / "scenes").exists()


def test_command(icons: Path, tmp_path: Path) -> None:
    arguments = ["scenes", str(icons), "-o", str(tmp_path / "scenes"), "--count", "10"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scenes"] == 10

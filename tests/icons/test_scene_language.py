import random
from collections import Counter

import pytest
from PIL import Image

from liquidmm.icons.scene_language import (
    Question,
    Scene,
    Thing,
    chain_answers,
    dominant_color,
    scene_captions,
    scene_questions,
    verdict,
)

DOG = Thing(concept="dog", name="dog")
CAR = Thing(concept="car", name="car", color="red")
APPLE = Thing(concept="red-apple", name="red apple", color="red")


def test_captions_count_place_and_relate_things() -> None:
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


def test_relation_questions_have_reasons_and_verdicts() -> None:
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


def test_first_chain_of_thought_lists_the_scene() -> None:
    scene = Scene(style="noto", things=((0, DOG), (3, CAR)))
    count = Question(task="count", text="How many cars are there?", answer="one")
    place = Question(task="place", text="Where is the dog?", answer="the dog at x: x")
    seen = "a dog at the top left and a car at the bottom right"
    listed = Question(task="list", text="What do you see?", answer=seen)
    assert chain_answers(scene, [count, place, place]) == (
        "one",
        f"{seen}; {place.answer}",
        place.answer,
    )
    assert chain_answers(scene, [listed, place]) == (seen, place.answer)


def test_verdict_is_the_part_after_the_colon() -> None:
    assert verdict("the dog at the top left, the car at the bottom right: no") == "no"
    assert verdict("a dog") == "a dog"


def test_presence_questions_balanced_and_true() -> None:
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


def test_no_question_twice_and_no_task_four_times() -> None:
    scene = Scene(style="noto", things=((0, DOG), (3, CAR)))
    for seed in range(50):
        asked = scene_questions(scene, ["dog", "car", "owl"], 6, random.Random(seed))
        plain = {q.text.replace("are there", "do you see") for q in asked}
        assert len(asked) == len(plain) == 6
        assert max(Counter(q.task for q in asked).values()) <= 3


def test_no_answer_more_frequent_than_things() -> None:
    scene = Scene(style="noto", things=((0, DOG), (1, DOG)))
    names = ["dog", *(f"thing {number}" for number in range(30))]
    asked = scene_questions(scene, names, 9, random.Random(0))
    verdicts = [verdict(q.answer) for q in asked if q.task == "presence"]
    assert sorted(verdicts) == ["no", "yes"]


@pytest.mark.parametrize(
    ("color", "name"),
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
def test_dominant_color_named(color: tuple[int, int, int], name: str) -> None:
    image = Image.new("RGB", (30, 30), "white")
    image.paste(color, (5, 5, 25, 25))
    assert dominant_color(image) == name


def test_dominant_color_of_two_colors_empty() -> None:
    image = Image.new("RGB", (30, 30), (200, 30, 30))
    image.paste((40, 90, 220), (0, 0, 15, 30))
    assert dominant_color(image) == ""

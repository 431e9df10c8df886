"""Captions, questions and answers about a scene of a few things on a 2 x 2 grid.

Every caption and answer is true by construction. Answers are short and lowercase: "two", "a dog",
"red". A yes/no or location answer is a short chain of thought that ends with the verdict after a
colon ("a dog at the top left: yes") because a small model learns to look first and then decide, but
can hardly learn the reverse. Yes and no are about equally likely.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from liquidmm.icons.captions import plural, style_words, with_article

NUMBERS = ("no", "one", "two", "three", "four")
"""Words for counts."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
"""Words for the cells of the grid, in reading order."""
# Upper limits in degrees. Hues that people disagree about have no name.
_HUES = (
    (14, "red"), (17, ""), (35, "orange"), (44, ""), (66, "yellow"), (70, ""), (165, "green"),
    (185, ""), (250, "blue"), (260, ""), (292, "purple"), (310, ""), (340, "pink"), (361, "red"),
)  # fmt: skip
_COLOR_SHARE = 0.6
"""Minimum fraction of the vivid pixels that must have the same color."""
_SIDES = {(0, -1): "to the left of", (0, 1): "to the right of", (-1, 0): "above", (1, 0): "below"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A kind of object in one style."""

    concept: str
    """Concept id: ``red-apple``."""
    name: str
    """Plain name: ``red apple``."""
    color: str = ""
    """Its single color, such as ``red``; empty if it has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One to four things, each in its own cell."""

    style: str
    """Prefix of the icon set that contains all of them."""
    things: tuple[tuple[int, Thing], ...]
    """(cell, thing), by cell; cells 0 to 3 in reading order."""

    def counts(self) -> dict[str, int]:
        """Count each name, in reading order."""
        found: dict[str, int] = {}
        for _, thing in self.things:
            found[thing.name] = found.get(thing.name, 0) + 1
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with its only correct answer."""

    task: str
    """Skill that it tests: presence, count, relation, which, place, comparison, list or `colour`
    (the name in the published data)."""
    text: str
    """The question."""
    answer: str
    """The answer."""


def verdict(answer: str) -> str:
    """Return the verdict of an answer: "yes" for "a dog at the top left: yes", or all of it."""
    return answer.rpartition(": ")[2]


def chain_answers(scene: Scene, questions: Sequence[Question]) -> tuple[str, ...]:
    """Return the answers of one conversation.

    The first answer with a chain of thought starts with everything in the scene; later answers can
    refer to it.
    """
    seen = _join(_placed(scene))
    answers: list[str] = []
    listed = False
    for question in questions:
        has_steps = verdict(question.answer) != question.answer
        answers.append(
            f"{seen}; {question.answer}" if has_steps and not listed else question.answer
        )
        listed = listed or has_steps or question.task == "list"
    return tuple(answers)


def dominant_color(sprite: Image.Image) -> str:
    """Return the name of the dominant color of an RGB image on white.

    Returns:
        red, orange, yellow, green, blue, purple, pink or brown if most vivid pixels have that
        color, gray if almost none are vivid, and "" if the image has no single color.
    """
    pixels = np.asarray(sprite, dtype=np.float32).reshape(-1, 3)
    pixels = pixels[pixels.min(axis=1) < 225]
    spread = pixels.max(axis=1) - pixels.min(axis=1)
    vivid = pixels[spread > 0.3 * pixels.max(axis=1)]
    if not len(pixels) or 0.1 * len(pixels) < len(vivid) < 0.5 * len(pixels):
        return ""
    if len(vivid) < 0.5 * len(pixels):
        return "gray" if (abs(pixels.mean(axis=1) - 150) < 60).mean() > _COLOR_SHARE else ""
    found = Counter(_color_name(*pixel) for pixel in vivid.tolist())
    color, count = max(found.items(), key=lambda item: (item[1], item[0]))
    return color if count >= _COLOR_SHARE * len(vivid) else ""


def scene_captions(scene: Scene) -> tuple[str, ...]:
    """Describe a scene.

    Returns:
        Two to five captions; the first is canonical: "two red apples and a dog, noto style".
    """
    words = style_words(scene.style)
    listed = _join([_counted(name, count) for name, count in scene.counts().items()])
    found = [f"{listed}, {words} style", f"{words} emoji of {listed}"]
    if len(scene.things) <= 3:
        found.append(f"{_join(_placed(scene))}, {words} style")
    for first, second in permutations(_single(scene), 2):
        if len(scene.things) == 2 and (side := _side(first[0], second[0])):
            found.append(
                f"{with_article(first[1].name)} {side} {with_article(second[1].name)}, {words} "
                f"style"
            )
    return tuple(found)


def scene_questions(
    scene: Scene, names: Sequence[str], count: int, rng: random.Random
) -> tuple[Question, ...]:
    """Ask about a scene: at most three questions per task, without duplicates, even reworded ones.

    Args:
        scene: The scene.
        names: Names of all things that could be in the scene, for questions whose answer is no.
        count: Number of questions to ask.
        rng: Random state.

    Returns:
        Up to ``count`` questions in random order.
    """
    presence = rng.choice(("Is there {}?", "Do you see {}?", "Is there {} in the picture?"))
    count_form = rng.choice(("How many {} are there?", "How many {} do you see?"))
    listing = rng.choice(("What is in the picture?", "What do you see?", "Which things are where?"))
    makers: list[tuple[float, Callable[[], Question | None]]] = [
        (3.0, lambda: _presence(scene, names, presence, rng)),
        (3.0, lambda: _count(scene, count_form, rng)),
        (5.0, lambda: _relation(scene, rng)),
        (2.0, lambda: _which(scene, rng)),
        (1.5, lambda: _place(scene, rng)),
        (2.0, lambda: _comparison(scene, rng)),
        (2.0, lambda: _color(scene, rng)),
        (2.0, lambda: _list(scene, listing)),
    ]
    weights, asks = zip(*makers, strict=True)
    found: dict[str, Question] = {}
    answers: Counter[tuple[str, str]] = Counter()
    for make in rng.choices(asks, weights, k=100):
        question = make()
        if question is None or question.text in found or len(found) == count:
            continue
        # More things are absent than present: without a limit, most answers would be no.
        answer = question.task, verdict(question.answer)
        answers[answer] += 1
        asked = [known.task for known in found.values()].count(question.task)
        if answers[answer] <= len(scene.counts()) and asked < 3:
            found[question.text] = question
    return tuple(found.values())


def _presence(scene: Scene, names: Sequence[str], form: str, rng: random.Random) -> Question:
    counts = scene.counts()
    yes = rng.random() < 0.5
    name = rng.choice([name for name in ([*counts] if yes else names) if yes or name not in counts])
    named = with_article(name)
    cells = [cell for cell, thing in scene.things if thing.name == name]
    answer = f"{named} at the {PLACES[cells[0]]}: yes" if yes else f"{named} nowhere: no"
    return Question(task="presence", text=form.format(named), answer=answer)


def _count(scene: Scene, form: str, rng: random.Random) -> Question:
    if rng.random() < 0.2:
        return Question(task="count", text=form.format("things"), answer=NUMBERS[len(scene.things)])
    counts = scene.counts()
    several = [name for name, count in counts.items() if count > 1]
    name = rng.choice(several if several and rng.random() < 0.7 else list(counts))
    return Question(task="count", text=form.format(plural(name)), answer=NUMBERS[counts[name]])


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    pairs = list(permutations(_single(scene), 2))
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    axes = [axis for axis in (0, 1) if divmod(first[0], 2)[axis] != divmod(second[0], 2)[axis]]
    axis = rng.choice(axes)
    towards = divmod(first[0], 2)[axis] - divmod(second[0], 2)[axis]
    yes = rng.random() < 0.5
    step = towards if yes else -towards
    side = _SIDES[(step, 0) if axis == 0 else (0, step)]
    text = f"Is the {first[1].name} {side} the {second[1].name}?"
    places = [f"the {thing.name} at the {PLACES[cell]}" for cell, thing in (first, second)]
    answer = f"{places[0]}, {places[1]}: {'yes' if yes else 'no'}"
    return Question(task="relation", text=text, answer=answer)


def _which(scene: Scene, rng: random.Random) -> Question | None:
    single = _single(scene)
    pairs = [
        (a, b, side) for a in scene.things for b in single if a != b and (side := _side(a[0], b[0]))
    ]
    if not pairs:
        return None
    first, second, side = rng.choice(pairs)
    return Question(
        task="which",
        text=f"What is {side} the {second[1].name}?",
        answer=with_article(first[1].name),
    )


def _place(scene: Scene, rng: random.Random) -> Question | None:
    single = _single(scene)
    if not single:
        return None
    cell, thing = rng.choice(single)
    answer = f"the {thing.name} at the {PLACES[cell]}: {PLACES[cell]}"
    return Question(task="place", text=f"Where is the {thing.name}?", answer=answer)


def _comparison(scene: Scene, rng: random.Random) -> Question | None:
    counts = scene.counts()
    pairs = [(a, b) for a, b in permutations(counts, 2) if counts[a] > counts[b]]
    if not pairs:
        return None
    more, fewer = rng.choice(pairs)
    yes = rng.random() < 0.5
    first, second = (more, fewer) if yes else (fewer, more)
    text = f"Are there more {plural(first)} than {plural(second)}?"
    found = f"{_counted(first, counts[first])}, {_counted(second, counts[second])}"
    return Question(task="comparison", text=text, answer=f"{found}: {'yes' if yes else 'no'}")


def _list(scene: Scene, text: str) -> Question:
    return Question(task="list", text=text, answer=_join(_placed(scene)))


def _placed(scene: Scene) -> list[str]:
    return [f"{with_article(thing.name)} at the {PLACES[cell]}" for cell, thing in scene.things]


def _color(scene: Scene, rng: random.Random) -> Question | None:
    things = [thing for _, thing in scene.things if thing.color]
    if not things:
        return None
    thing = rng.choice(things)
    name = thing.name.removeprefix(f"{thing.color} ")
    several = scene.counts()[thing.name] > 1
    text = f"What color are the {plural(name)}?" if several else f"What color is the {name}?"
    return Question(task="colour", text=text, answer=thing.color)


def _single(scene: Scene) -> list[tuple[int, Thing]]:
    counts = scene.counts()
    return [(cell, thing) for cell, thing in scene.things if counts[thing.name] == 1]


def _side(first: int, second: int) -> str:
    """Return where ``first`` is relative to ``second``; empty if they share no row or column."""
    (row, column), (other_row, other_column) = divmod(first, 2), divmod(second, 2)
    return _SIDES.get((row - other_row, column - other_column), "")


def _counted(name: str, count: int) -> str:
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _color_name(red: float, green: float, blue: float) -> str:
    high, low = max(red, green, blue), min(red, green, blue)
    spread = high - low
    if high == red:
        hue = 60 * (green - blue) / spread % 360
    elif high == green:
        hue = 60 * (blue - red) / spread + 120
    else:
        hue = 60 * (red - green) / spread + 240
    if 10 <= hue < 40 and high < 205:
        return "brown"
    if high > 200 and ((low > 85 and (hue < 12 or hue >= 342)) or (low > 140 and hue < 40)):
        return "pink"
    return next(name for limit, name in _HUES if hue < limit)

"""Scenes of a few icons with exactly known captions and answers.

`build_scenes` reads the folder of `build_icons` and writes another folder::

    images/scenes/<number>.png   one to four icons of one style on a 2 x 2 grid, on white
    images/icons/<style>-<concept>.png   single icons with questions
    captions.jsonl               one image-text record per scene
    chat.jsonl                   conversations of one to five questions about a scene or an icon;
                                 `tasks` names what each question tests
    summary.json                 counts per split, task and answer

The same input and seed give the same bytes. Only icons of the train split are used. Held-out scenes
show combinations of things (or layouts, for one kind of thing) that no training scene contains; a
hash chooses them.
"""

import io
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.captions import with_article
from liquidmm.icons.icons import Progress
from liquidmm.icons.io import REBUILD, hash_share, read_rows, write_jsonl, write_summary
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
from liquidmm.ranges import check_ranges

OBJECTS = (
    "red-apple", "banana", "pear", "strawberry", "carrot", "mushroom", "pizza", "doughnut", "dog",
    "cat", "pig", "elephant", "panda", "frog", "octopus", "fish", "butterfly", "bee", "penguin",
    "car", "bus", "bicycle", "rocket", "sailboat", "house", "evergreen-tree", "cactus",
    "sunflower", "rose", "star", "cloud", "umbrella", "snowman", "balloon", "guitar",
    "soccer-ball", "basketball", "key", "crown", "red-heart",
)  # fmt: skip
"""Concepts that can be recognized at 28 pixels."""

_COLORED = frozenset({
    "red-apple", "pear", "strawberry", "carrot", "pig", "frog", "fish", "octopus", "elephant",
    "cactus", "evergreen-tree", "rose", "star", "balloon", "umbrella", "basketball", "car",
    "guitar", "butterfly", "crown",
})  # fmt: skip
"""Objects with questions about their color, which is measured in each style."""
_OPEN = {"name", "which", "list"}
"""Tasks with too many different answers to count."""
_COMPOSITIONS = {
    (1,): 2, (2,): 2, (1, 1): 6, (3,): 2, (2, 1): 4, (1, 1, 1): 4, (4,): 2, (3, 1): 3, (2, 2): 2,
    (2, 1, 1): 3,
}  # fmt: skip
"""Number of things of each kind in a scene, and the weight of such scenes."""
_MAX_QUESTIONS = {1: 5, 2: 5, 3: 4, 4: 4}
"""By number of things: more things need longer answers, which must fit in 256 tokens."""
_MIN_OBJECTS = 8
"""Minimum number of objects that a style needs for scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """Number and kind of scenes."""

    count: Annotated[int, Ge(1)] = 12_000
    """Total number of scenes in both splits."""
    seed: int = 0
    """Random seed."""
    size: Annotated[int, Ge(32)] = 64
    """Width and height in pixels; a multiple of 16, which aligns cells with 8 x 8 codes."""
    held_out: Annotated[float, Ge(0), Le(0.5)] = 0.1
    """Fraction of combinations that are held out."""
    icon_questions: Annotated[float, Ge(0), Le(10)] = 0.1
    """Conversations about single icons, per scene."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_ranges(self)
        if self.size % 16:
            raise ConfigError(f"size: expected a multiple of 16, got {self.size}. Use 64.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sprites:
    """The objects used in scenes, by (style, concept)."""

    records: Mapping[tuple[str, str], Mapping[str, Any]]
    images: Mapping[tuple[str, str], Image.Image]
    styles: Mapping[str, Sequence[Thing]]


def build_scenes(
    icons: Path,
    out: Path,
    config: ScenesConfig,
    *,
    overwrite: bool = False,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Compose scenes of icons of the train split.

    Args:
        icons: Folder with ``records.jsonl`` and images.
        out: Folder to write.
        config: Number and kind of scenes.
        overwrite: Replace ``out`` if it exists.
        progress: Wraps the numbers of the scenes.

    Returns:
        The content of ``summary.json``.

    Raises:
        DataError: The icons are missing, or too few of ``OBJECTS`` are in the train split.
        LiquidError: ``out`` exists, or cannot be written.
    """
    trained = [row for _, row in read_rows(icons / "records.jsonl") if row["split"] == "train"]
    sprites = _load_sprites(icons, trained, config)
    captions: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    with atomic_folder(out, overwrite=overwrite) as folder:
        (folder / "images" / "scenes").mkdir(parents=True)
        (folder / "images" / "icons").mkdir()
        numbers = progress(range(config.count))
        for number, scene in zip(numbers, _scenes(sprites.styles, config), strict=False):
            path = folder / f"images/scenes/{number:05d}.png"
            path.write_bytes(draw_scene(scene, sprites.images, config.size))
            caption, chat = _scene_records(number, scene, sprites, config)
            captions.append(caption)
            chats.append(chat)
        chats.extend(_icon_chats(icons, folder, trained, config))
        write_jsonl(folder / "captions.jsonl", captions)
        write_jsonl(folder / "chat.jsonl", chats)
        summary = _summary(captions, chats, config)
        write_summary(folder, summary)
    return summary


def draw_scene(scene: Scene, sprites: Mapping[tuple[str, str], Image.Image], size: int) -> bytes:
    """Paste the things of a scene into their cells.

    Args:
        scene: The scene.
        sprites: (style, concept) -> an RGB image at most ``size // 2`` wide.
        size: Width and height of the image in pixels.

    Returns:
        A PNG file, RGB.
    """
    canvas = Image.new("RGB", (size, size), "white")
    half = size // 2
    for cell, thing in scene.things:
        sprite = sprites[scene.style, thing.concept]
        row, column = divmod(cell, 2)
        edge = (half - sprite.width) // 2
        canvas.paste(sprite, (column * half + edge, row * half + edge))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def _load_sprites(
    icons: Path, trained: Sequence[Mapping[str, Any]], config: ScenesConfig
) -> _Sprites:
    records = {(r["style"], r["concept"]): r for r in trained if r["concept"] in OBJECTS}
    images: dict[tuple[str, str], Image.Image] = {}
    styles: dict[str, list[Thing]] = {}
    for (style, concept), record in sorted(records.items(), key=lambda item: item[0]):
        image = _open_sprite(icons / record["image"], config.size // 2 - 2)
        color = dominant_color(image) if concept in _COLORED else ""
        images[style, concept] = image
        styles.setdefault(style, []).append(
            Thing(concept=concept, name=str(record["name"]), color=color)
        )
    styles = {style: things for style, things in styles.items() if len(things) >= _MIN_OBJECTS}
    if not styles:
        raise DataError(
            f"{icons}: no style contains {_MIN_OBJECTS} of the objects that scenes are made of. "
            f"{REBUILD}"
        )
    return _Sprites(records=records, images=images, styles=styles)


def _open_sprite(path: Path, size: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). {REBUILD}") from error


def _scenes(styles: Mapping[str, Sequence[Thing]], config: ScenesConfig) -> Iterable[Scene]:
    """Yield different scenes; stop early if there are no more."""
    rng = _rng(config, "scenes")
    seen: set[tuple[Any, ...]] = set()
    failures = 0
    while failures < 1000:
        style = rng.choice(sorted(styles))
        counts = rng.choices(list(_COMPOSITIONS), weights=list(_COMPOSITIONS.values()))[0]
        kinds = rng.sample(styles[style], len(counts))
        things = [thing for thing, count in zip(kinds, counts, strict=True) for _ in range(count)]
        cells = rng.sample(range(4), len(things))
        placed = tuple(sorted(zip(cells, things, strict=True), key=lambda item: item[0]))
        identity = (style, *((cell, thing.concept) for cell, thing in placed))
        if identity in seen:
            failures += 1
            continue
        failures = 0
        seen.add(identity)
        yield Scene(style=style, things=placed)


def _is_held_out(scene: Scene, config: ScenesConfig) -> bool:
    """Decide by the combination of things, or by the layout if all things are the same."""
    kinds = sorted({thing.concept for _, thing in scene.things})
    layout = [] if len(kinds) > 1 else [scene.style, *(str(cell) for cell, _ in scene.things)]
    return hash_share("/".join([str(config.seed), *kinds, *layout])) < config.held_out


def _scene_records(
    number: int, scene: Scene, sprites: _Sprites, config: ScenesConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the image-text record and the conversation of one scene."""
    image = f"images/scenes/{number:05d}.png"
    icon = sprites.records[scene.style, scene.things[0][1].concept]
    common = {
        "key": f"scene/{number:05d}",
        "style": scene.style,
        "source": f"scene of icons of {icon['source']}",
        "license": icon["license"],
        "split": "held_out" if _is_held_out(scene, config) else "train",
    }
    rng = _rng(config, f"questions/{number}")
    names = [thing.name for thing in sprites.styles[scene.style]]
    count = rng.randint(3, _MAX_QUESTIONS[len(scene.things)])
    questions = scene_questions(scene, names, count, rng)
    return (
        {**common, "image": image, "captions": list(scene_captions(scene))},
        {**common, **_conversation(image, questions, chain_answers(scene, questions))},
    )


def _conversation(
    image: str, questions: Sequence[Question], answers: Sequence[str]
) -> dict[str, Any]:
    messages = []
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        image_mark = "" if turn else "<image>\n"
        messages.append({"role": "user", "content": f"{image_mark}{question.text}"})
        messages.append({"role": "assistant", "content": answer})
    return {
        "messages": messages,
        "images": [image],
        "tasks": [question.task for question in questions],
    }


def _icon_chats(
    icons: Path, folder: Path, trained: Sequence[Mapping[str, Any]], config: ScenesConfig
) -> list[dict[str, Any]]:
    """Ask what each single icon shows, and copy the images."""
    rng = _rng(config, "icons")
    chats = []
    for icon in rng.sample(trained, min(len(trained), round(config.count * config.icon_questions))):
        image = f"images/icons/{icon['style']}-{icon['concept']}.png"
        shutil.copyfile(icons / icon["image"], folder / image)
        named = with_article(icon["name"])
        asked = rng.choice(("What is this?", "What does the picture show?", "Which emoji is this?"))
        other = rng.choice(trained)
        same = rng.random() < 0.5 or other["concept"] == icon["concept"]
        question = Question(task="name", text=asked, answer=named)
        if rng.random() < 0.3:
            question = Question(
                task="is it",
                text=f"Is this {named if same else with_article(other['name'])}?",
                answer="yes" if same else "no",
            )
        chats.append(
            {
                "key": f"icon/{icon['key']}",
                "style": icon["style"],
                "source": icon["source"],
                "license": icon["license"],
                "split": "train",
                **_conversation(image, [question], [question.answer]),
            }
        )
    return chats


def _summary(
    captions: Sequence[Mapping[str, Any]], chats: Sequence[Mapping[str, Any]], config: ScenesConfig
) -> dict[str, Any]:
    tasks: dict[str, Counter[str]] = {}
    for chat in chats:
        answers = [
            message["content"] for message in chat["messages"] if message["role"] == "assistant"
        ]
        for task, answer in zip(chat["tasks"], answers, strict=True):
            counted = "other" if task in _OPEN else verdict(answer)
            tasks.setdefault(task, Counter())[counted] += 1
    return {
        "scenes": len(captions),
        "splits": dict(sorted(Counter(str(r["split"]) for r in captions).items())),
        "styles": dict(sorted(Counter(str(r["style"]) for r in captions).items())),
        "conversations": len(chats),
        "tasks": {task: dict(sorted(found.items())) for task, found in sorted(tasks.items())},
        "config": asdict(config),
    }


def _rng(config: ScenesConfig, purpose: str) -> random.Random:
    return random.Random(f"{config.seed}/{purpose}")  # noqa: S311 (repeatable, not secret)

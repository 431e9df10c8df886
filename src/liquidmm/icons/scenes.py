"""Scenes of a few icons with exactly known captions and answers.

Contract: ``build_scenes`` reads the folder ``build_icons`` wrote and writes another one::

    images/scenes/<number>.png   one to four trained icons of one style on a 2 x 2 grid, on white
    images/icons/<style>-<concept>.png   single icons that are asked about
    captions.jsonl               one image-text record per scene
    chat.jsonl                   conversations of one to five questions about a scene or an icon;
                                 ``tasks`` names what each question tests
    summary.json                 counts per split, task and answer

The same input and seed give the same bytes. Only icons of the train split are used. Held-out
scenes show combinations of things (of one kind of thing: layouts) that no training scene has,
which a hash decides.
"""

import hashlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.captions import with_article
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

OBJECTS = (
    "red-apple", "banana", "pear", "strawberry", "carrot", "mushroom", "pizza", "doughnut", "dog",
    "cat", "pig", "elephant", "panda", "frog", "octopus", "fish", "butterfly", "bee", "penguin",
    "car", "bus", "bicycle", "rocket", "sailboat", "house", "evergreen-tree", "cactus",
    "sunflower", "rose", "star", "cloud", "umbrella", "snowman", "balloon", "guitar",
    "soccer-ball", "basketball", "key", "crown", "red-heart",
)  # fmt: skip
"""Concepts that are recognised at 28 pixels."""

_COLOURED = frozenset({
    "red-apple", "pear", "strawberry", "carrot", "pig", "frog", "fish", "octopus", "elephant",
    "cactus", "evergreen-tree", "rose", "star", "balloon", "umbrella", "basketball", "car",
    "guitar", "butterfly", "crown",
})  # fmt: skip
"""Objects that may be asked for their colour; the answer is measured in each style."""
_OPEN = {"name", "which", "list"}
"""Questions with too many answers to count."""
# How many things of each kind a scene shows, with the weight of that kind of scene.
_COMPOSITIONS = {
    (1,): 2,
    (2,): 2,
    (1, 1): 6,
    (3,): 2,
    (2, 1): 4,
    (1, 1, 1): 4,
    (4,): 2,
    (3, 1): 3,
    (2, 2): 2,
    (2, 1, 1): 3,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """How many scenes, and of what."""

    count: int = 12_000
    """Number of scenes, both splits together."""
    seed: int = 0
    """Another seed is another set."""
    size: int = 64
    """Side of the pictures in pixels; a multiple of 16: then a cell is whole codes of factor 8."""
    held_out: float = 0.1
    """Share of combinations that are kept out of training."""
    icon_questions: float = 0.1
    """Conversations about single icons, for each scene."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A number is out of range.
        """
        if self.count < 1:
            raise ConfigError(f"count: {self.count} scenes. Ask for at least one.")
        if self.size < 32 or self.size % 16:
            raise ConfigError(f"size: {self.size} is no multiple of 16 from 32 up. Use 64.")
        if not 0 <= self.held_out <= 0.5 or not 0 <= self.icon_questions <= 10:
            raise ConfigError(
                f"held_out: {self.held_out}, icon_questions: {self.icon_questions}. Use 0 to "
                f"0.5, and 0 to 10."
            )


def build_scenes(
    icons: Path,
    out: Path,
    config: ScenesConfig,
    *,
    overwrite: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Compose scenes out of trained icons.

    Args:
        icons: Folder with ``records.jsonl`` and pictures.
        out: Folder to write.
        config: How many and of what.
        overwrite: Replace ``out`` when it exists.
        progress: Wraps the numbers of the scenes, to show a bar.

    Returns:
        What is in ``summary.json``.

    Raises:
        DataError: The icons are missing, or too few of ``OBJECTS`` are among the trained ones.
        LiquidError: ``out`` is in the way, or the disk is full.
    """
    trained = [record for record in _read_icons(icons) if record["split"] == "train"]
    records = {(r["style"], r["concept"]): r for r in trained if r["concept"] in OBJECTS}
    sprites = {
        key: _sprite(icons / record["image"], config.size // 2 - 2)
        for key, record in records.items()
    }
    styles: dict[str, list[Thing]] = {}
    for (style, concept), sprite in sorted(sprites.items()):
        name = str(records[style, concept]["name"])
        colour = dominant_color(sprite) if concept in _COLOURED else ""
        styles.setdefault(style, []).append(Thing(concept=concept, name=name, colour=colour))
    styles = {style: things for style, things in styles.items() if len(things) >= 8}
    if not styles:
        raise DataError(
            f"{icons}: no style has 8 of the objects scenes are made of. Make the icons again."
        )
    captions: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    with atomic_folder(out, overwrite=overwrite) as folder:
        (folder / "images" / "scenes").mkdir(parents=True)
        (folder / "images" / "icons").mkdir()
        for number, scene in zip(
            progress(range(config.count)), _scenes(styles, config), strict=False
        ):
            image = f"images/scenes/{number:05d}.png"
            (folder / image).write_bytes(draw_scene(scene, sprites, config.size))
            common = _common(
                f"scene/{number:05d}",
                records[scene.style, scene.things[0][1].concept],
                scene,
                config,
            )
            captions.append({**common, "image": image, "captions": list(scene_captions(scene))})
            rng = _state(config, f"questions/{number}")
            names = [thing.name for thing in styles[scene.style]]
            # With more things the answers are longer; a conversation has to fit 256 ids.
            most = {1: 5, 2: 5, 3: 4, 4: 4}[len(scene.things)]
            questions = scene_questions(scene, names, rng.randint(3, most), rng)
            answers = spoken(scene, questions)
            chats.append({**common, **_conversation(image, questions, answers)})
        chats.extend(_icon_chats(icons, folder, trained, config))
        _write_lines(folder / "captions.jsonl", captions)
        _write_lines(folder / "chat.jsonl", chats)
        summary = _summary(captions, chats, config)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def draw_scene(scene: Scene, sprites: Mapping[tuple[str, str], Image.Image], size: int) -> bytes:
    """Paste the things of a scene into their cells.

    Args:
        scene: What to draw.
        sprites: (style, concept) to an RGB picture at most ``size // 2`` wide.
        size: Side of the picture in pixels.

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


def _read_icons(folder: Path) -> list[dict[str, Any]]:
    path = folder / "records.jsonl"
    try:
        return [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").split("\n")
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: can't be read ({error}). Make it with `liquid data icons`."
        ) from error


def _sprite(path: Path, size: int) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error}). Make the icons again.") from error


def _scenes(styles: Mapping[str, Sequence[Thing]], config: ScenesConfig) -> Iterable[Scene]:
    """Yield different scenes; ends early when there are no more."""
    rng = _state(config, "scenes")
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
    """Decide by the combination of things, or by the layout when they are all alike."""
    kinds = sorted({thing.concept for _, thing in scene.things})
    layout = [] if len(kinds) > 1 else [scene.style, *(str(cell) for cell, _ in scene.things)]
    digest = hashlib.sha256("/".join([str(config.seed), *kinds, *layout]).encode()).hexdigest()
    return int(digest[:13], 16) / 16**13 < config.held_out


def _common(
    key: str, icon: Mapping[str, Any], scene: Scene, config: ScenesConfig
) -> dict[str, Any]:
    return {
        "key": key,
        "style": scene.style,
        "source": f"scene of icons of {icon['source']}",
        "license": icon["license"],
        "split": "held_out" if _is_held_out(scene, config) else "train",
    }


def _conversation(
    image: str, questions: Sequence[Question], answers: Sequence[str]
) -> dict[str, Any]:
    messages = []
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        picture = "" if turn else "<image>\n"
        messages.append({"role": "user", "content": f"{picture}{question.text}"})
        messages.append({"role": "assistant", "content": answer})
    return {
        "messages": messages,
        "images": [image],
        "tasks": [question.task for question in questions],
    }


def _icon_chats(
    icons: Path, folder: Path, trained: Sequence[Mapping[str, Any]], config: ScenesConfig
) -> list[dict[str, Any]]:
    """Ask what single trained icons are; their pictures are copied to here."""
    rng = _state(config, "icons")
    chats = []
    for icon in rng.sample(trained, min(len(trained), round(config.count * config.icon_questions))):
        image = f"images/icons/{icon['style']}-{icon['concept']}.png"
        shutil.copyfile(icons / icon["image"], folder / image)
        named = with_article(icon["name"])
        asked = rng.choice(("What is this?", "What does the picture show?", "Which emoji is this?"))
        other = rng.choice(trained)
        same = rng.random() < 0.5 or other["concept"] == icon["concept"]
        shown = Question(
            task="is it",
            text=f"Is this {named if same else with_article(other['name'])}?",
            answer="yes" if same else "no",
        )
        questions = [Question(task="name", text=asked, answer=named)]
        if rng.random() < 0.3:
            questions = [shown]
        chats.append(
            {
                "key": f"icon/{icon['key']}",
                "style": icon["style"],
                "source": icon["source"],
                "license": icon["license"],
                "split": "train",
                **_conversation(image, questions, [question.answer for question in questions]),
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


def _state(config: ScenesConfig, purpose: str) -> random.Random:
    return random.Random(f"{config.seed}/{purpose}")  # noqa: S311 (repeatable, not secret)


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
    )

"""Captions of real icons, and exact answers to questions about unseen scenes.

Rule for captions: case, punctuation, articles, the word "style" and everything up to a colon ("a
bird: duck") are ignored. The longest known concept name that occurs in the caption as whole,
consecutive words counts (the first one in a tie). The caption is correct if this is the name of the
icon's concept. So "a green apple" does not name "apple", and a synonym is wrong. The same rule,
applied to the names of the styles, judges the style.

Rule for scenes: an answer is correct if its verdict, the part after the last colon, equals the
known one except for case, punctuation and articles. Each accuracy is reported with a baseline,
which always gives the most frequent answer to questions of this kind.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidmm.data.records import ChatRecord, parse_record
from liquidmm.errors import DataError
from liquidmm.evaluate.metrics import Accuracy, named, words
from liquidmm.evaluate.runner import Context, Task
from liquidmm.icons.benchmark.gallery import Icon, concept_names, read_icons, sample
from liquidmm.icons.captions import style_words
from liquidmm.icons.io import REBUILD, read_rows
from liquidmm.icons.scene_language import verdict
from liquidmm.image_tokenizer.images import open_image
from liquidmm.prompts import IMAGE_PLACEHOLDER


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one image."""

    key: str
    """Key that is unique in the dataset."""
    kind: str
    """Subject of the question, such as "count"."""
    image: Path
    """Image file."""
    text: str
    """The question."""
    answer: str
    """The known answer."""


def captions(context: Context) -> None:
    """Describe trained and held-out icons; count correct concepts and styles.

    Raises:
        DataError: The icons are missing, a split is empty, or an image is damaged.
    """
    icons = read_icons(context.data)
    names = concept_names(icons)
    styles = {icon.style: words(style_words(icon.style)) for icon in icons}
    for split, part in (("train", "trained"), ("held_out_pairs", "held_out_pairs")):
        chosen = sample(icons, split, context.limit, context.config.seed)
        concept_hits, style_hits = [], []
        for _, chunk in context.chunks(part, chosen):

            def make(missing: list[int], chunk: Sequence[Icon] = chunk) -> list[str]:
                return context.model().describe_many([open_image(chunk[i].image) for i in missing])

            answers = context.journal.texts([icon.key for icon in chunk], make)
            for icon, caption in zip(chunk, answers, strict=True):
                found = named(caption.rpartition(":")[2], names)
                concept_hits.append(found is not None and names[found] == words(icon.name))
                style_hits.append(named(caption, styles) == icon.style)
        context.report.add_accuracy(part, Accuracy.of(concept_hits))
        context.report.add_accuracy(f"{part}_style", Accuracy.of(style_hits))
    context.report.add("chance", 100 / len(names), "%")
    context.report.add("chance_style", 100 / len(styles), "%")


def scenes(context: Context) -> None:
    """Ask questions about unseen scenes; count correct answers by kind of question.

    Raises:
        DataError: The scenes are missing, or none are held out.
    """
    questions = read_questions(context.data)
    order = np.random.default_rng(context.config.seed).permutation(len(questions))
    chosen = [questions[place] for place in order[: context.limit]]
    hits: dict[str, list[bool]] = {}
    for _, chunk in context.chunks("scenes", chosen):

        def make(missing: list[int], chunk: Sequence[Question] = chunk) -> list[str]:
            return context.model().ask_many(
                [(open_image(chunk[i].image), chunk[i].text) for i in missing]
            )

        answers = context.journal.texts([question.key for question in chunk], make)
        for question, answer in zip(chunk, answers, strict=True):
            hits.setdefault(question.kind, []).append(
                words(verdict(answer)) == words(verdict(question.answer))
            )
    context.report.add_accuracy("all", Accuracy.of(hit for kind in hits.values() for hit in kind))
    for kind in sorted(hits):
        context.report.add_accuracy(kind, Accuracy.of(hits[kind]))
        context.report.add_accuracy(f"{kind}_chance", most_frequent(chosen, kind))


CAPTIONS = Task(run=captions, data=Path("data/icons"), limit=300)
"""Accuracy of captions."""
SCENES = Task(run=scenes, data=Path("data/scenes"), limit=1000)
"""Accuracy of answers about scenes."""


def most_frequent(questions: Sequence[Question], kind: str) -> Accuracy:
    """Return the accuracy of always giving the most frequent answer of a kind."""
    counts = Counter(
        words(verdict(question.answer)) for question in questions if question.kind == kind
    )
    return Accuracy(right=max(counts.values()), n=counts.total())


def read_questions(folder: Path) -> list[Question]:
    """Read the questions of held-out scenes, in file order; each turn counts separately.

    Raises:
        DataError: There are no scenes, a line is damaged, or no scene is held out.
    """
    path = folder / "chat.jsonl"
    questions = [
        question for where, row in read_rows(path) for question in _questions(row, where, folder)
    ]
    if not questions:
        raise DataError(f"{path}: contains no held-out questions. {REBUILD}")
    return questions


def _questions(row: Mapping[str, Any], where: str, folder: Path) -> list[Question]:
    """Return the questions of one line, or none if the line is for training."""
    record = parse_record(row, where, folder)
    if not isinstance(record, ChatRecord) or not record.split.startswith("held_out"):
        return []
    if len(record.images) != 1 or not isinstance(record.images[0], Path):
        return []
    tasks = row.get("tasks")
    asked, answered = record.messages[::2], record.messages[1::2]
    if not isinstance(tasks, list) or not len(tasks) == len(asked) == len(answered):
        raise DataError(
            f"{where}: 'tasks': expected a list of {len(asked)} names, one per question, got "
            f"{tasks!r}. {REBUILD}"
        )
    turns = enumerate(zip(tasks, asked, answered, strict=True))
    return [
        Question(
            key=f"{record.key}#{turn}",
            kind=_kind(str(task), question.content),
            image=record.images[0],
            text=question.content.replace(IMAGE_PLACEHOLDER, "").strip(),
            answer=answer.content,
        )
        for turn, (task, question, answer) in turns
    ]


def _kind(task: str, question: str) -> str:
    """Return the task of a question, with relations split by axis."""
    if task != "relation":
        return task
    return "left_right" if {"left", "right"} & set(words(question)) else "above_below"

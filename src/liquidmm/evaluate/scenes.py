"""Scenes: exact answers to questions about unseen composed pictures, by kind of question.

An answer is right if what it comes to equals the known one after lower-casing, dropping punctuation
and articles; what stands before a colon is what the model says it sees, and doesn't count.
Beside each share stands what the most frequent answer of that kind alone would score on the same
questions.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidmm.data.records import ChatRecord, parse_record
from liquidmm.errors import DataError
from liquidmm.evaluate.gallery import need
from liquidmm.evaluate.metrics import Tally, words
from liquidmm.evaluate.report import Context
from liquidmm.icons.scene_language import verdict
from liquidmm.image_tokenizer import images as pixels
from liquidmm.prompts import IMAGE_PLACEHOLDER


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one picture."""

    key: str
    """Unique in the data set."""
    kind: str
    """What is asked for, for example "count"."""
    image: Path
    """Picture file."""
    text: str
    """The question."""
    answer: str
    """The known answer."""


def scenes(context: Context) -> None:
    """Ask a seeded sample of questions about unseen scenes; count exact answers for each kind.

    Raises:
        DataError: The scenes are missing, or none is held out.
    """
    questions = read_questions(context.data)
    order = np.random.default_rng(context.seed).permutation(len(questions))
    chosen = [questions[place] for place in order[: context.n]]
    hits: dict[str, list[bool]] = {}
    for _, chunk in context.chunks("scenes", chosen):

        def make(missing: list[int], chunk: Sequence[Question] = chunk) -> list[str]:
            return context.model().ask_many(
                [(pixels.open_image(chunk[i].image), chunk[i].text) for i in missing]
            )

        answers = context.journal.texts([question.key for question in chunk], make)
        for question, answer in zip(chunk, answers, strict=True):
            hits.setdefault(question.kind, []).append(is_right(answer, question.answer))
    context.report.share("all", Tally.of(hit for kind in hits.values() for hit in kind))
    for kind in sorted(hits):
        context.report.share(kind, Tally.of(hits[kind]))
        context.report.share(f"{kind}_chance", most_frequent(chosen, kind))


def is_right(answer: str, known: str) -> bool:
    """Compare an answer with the known one; of "a dog at the top left: yes" only the yes counts."""
    return words(verdict(answer)) == words(verdict(known))


def most_frequent(questions: Sequence[Question], kind: str) -> Tally:
    """What always giving the most frequent answer of a kind scores."""
    counts = Counter(
        words(verdict(question.answer)) for question in questions if question.kind == kind
    )
    return Tally(right=max(counts.values()), n=counts.total())


def read_questions(folder: Path) -> list[Question]:
    """Questions of the held-out scenes, in file order; each turn counts on its own.

    Raises:
        DataError: There are no scenes, a line is broken, or none is held out.
    """
    path = need(folder, "chat.jsonl", "liquid data scenes")
    questions: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            questions += _questions(line, f"{path}:{number}", folder)
    if not questions:
        raise DataError(
            f"{path}: no held-out question in it. Make it again with `liquid data scenes`."
        )
    return questions


def _questions(line: str, where: str, folder: Path) -> list[Question]:
    """Questions of one line; none if it was trained on."""
    try:
        row: Mapping[str, Any] = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}). Correct the line.") from error
    record = parse_record(row, where, folder)
    if not isinstance(record, ChatRecord) or not record.split.startswith("held_out"):
        return []
    if len(record.images) != 1 or not isinstance(record.images[0], Path):
        return []
    tasks = row.get("tasks")
    asked, answered = record.messages[::2], record.messages[1::2]
    if not isinstance(tasks, list) or not len(tasks) == len(asked) == len(answered):
        raise DataError(
            f"{where}: 'tasks' must name what each of {len(asked)} questions tests ({tasks!r}). "
            "Make the scenes again with `liquid data scenes`."
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
    """What is counted together: the data's task, with the relations told apart by axis."""
    if task != "relation":
        return task
    return "left_right" if {"left", "right"} & set(words(question)) else "above_below"

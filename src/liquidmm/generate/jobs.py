"""Requests in words: what to do, from what, and how.

Contract: a `Job` holds all that its answers depend on; `RequestBuilder` turns it into requests of ids,
one for each sample, or says what is wrong with it in one line that names the field. Defaults: a
picture is drawn with the checkpoint's own settings; a caption is greedy; chats sample as `DEFAULT_CHAT_SAMPLING`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.generate.pictures import ImageLike, Pictures
from liquidmm.generate.requests import ImageRequest, Request, TextRequest
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.prompts import IMAGE_PLACEHOLDER
from liquidmm.sequences import Sequences, Turn

GREEDY_SAMPLING = SamplingConfig(greedy=True)
"""How captions and answers to questions are written."""

DEFAULT_CHAT_SAMPLING = SamplingConfig(temperature=0.7, top_k=50, top_p=0.9)
"""How chats are written."""

MODES = ("picture", "caption", "text", "interleaved")
"""A picture of a text, or of what a conversation asks for; the caption of a picture; an answer in
words; an answer in which the model may draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One thing to do."""

    mode: str = "picture"
    """One of `MODES`."""
    prompt: str = ""
    """What to draw or to answer; with `images`, they stand before it."""
    messages: tuple[Mapping[str, str], ...] = ()
    """A conversation in place of a prompt, turns of `role` and `content`; each `<image>` in it
    stands for the next picture."""
    images: tuple[ImageLike, ...] = ()
    """Pictures that go in, where the checkpoint was trained on such requests."""
    size: tuple[int, int] | None = None
    """Width and height in pixels of a picture to draw, a trained size; None takes the first."""
    n: int = 1
    """Answers, each with a seed of its own: sample i has ``seed + i``."""
    seed: int = 0
    """Seed of the first answer."""
    guidance: float | None = None
    """How closely a picture follows its prompt, at least 0; None takes the checkpoint's."""
    temperature: float | None = None
    """As in `SamplingConfig`, of what the mode writes: codes or text; None takes the default."""
    top_k: int | None = None
    """As in `SamplingConfig`."""
    top_p: float | None = None
    """As in `SamplingConfig`."""
    greedy: bool | None = None
    """As in `SamplingConfig`."""
    max_tokens: int = 512
    """Length of the text at most."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are left out."""
    preview_rows: int = 0
    """Rows of codes between two previews of a picture; 0 gives none."""


def one_seed_each(prompts: Sequence[str], seeds: Sequence[int] | None) -> Sequence[int]:
    """Return a seed for each prompt; None gives 0, 1, 2, ...

    Raises:
        ConfigError: Seeds and prompts differ in number.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ConfigError(
            f"seeds: {len(seeds)} for {len(prompts)} prompts. Give one for each prompt."
        )
    return seeds


class RequestBuilder:
    """Turns jobs into requests for one checkpoint."""

    def __init__(self, sequences: Sequences, pictures: Pictures, sampling: SamplingConfig) -> None:
        """Keep what is needed of the checkpoint.

        Args:
            sequences: Lays ids out.
            pictures: Its image side.
            sampling: How it draws pictures unless told otherwise.
        """
        self._sequences = sequences
        self._pictures = pictures
        self._sampling = sampling

    def read(self, job: Job) -> list[Request]:
        """Turn a job into one request for each sample.

        Raises:
            ConfigError: A field is out of range.
            DataError: The prompt is missing, or a picture can't be read.
            CheckpointError: The checkpoint was not trained on pictures.
        """
        if job.mode not in MODES:
            raise ConfigError(f"mode: '{job.mode}' is unknown.{suggest(job.mode, MODES)}")
        if not all(job.stop):
            raise ConfigError("stop: holds an empty string. Give strings that may occur.")
        if job.n < 1:
            raise ConfigError(f"n: must be at least 1 ({job.n}). Ask for one answer or more.")
        if job.prompt and job.messages:
            raise DataError("prompt: stands beside messages. Give one of them.")
        for name in ("guidance", "size") if job.mode in ("caption", "text") else ():
            if getattr(job, name) is not None:
                raise ConfigError(
                    f"{name}: has no effect in the mode '{job.mode}', which draws nothing. "
                    "Leave it out, or choose 'picture' or 'interleaved'."
                )
        make = self._picture if job.mode == "picture" else self._text
        return [make(job, job.seed + number) for number in range(job.n)]

    def picture_prompt(self, prompt: str, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the ids that ask for a picture of a text, up to boi."""
        # A checkpoint of one size never saw a size hint.
        hint = size if len(self._pictures.sizes) > 1 else None
        return tuple(self._sequences.text_to_image_prompt(prompt, size=hint))

    def question_prompt(self, images: Sequence[ImageLike], question: str) -> tuple[int, ...]:
        """Return the ids of a question about pictures up to the start of the answer.

        Raises:
            DataError: The question is empty, or a picture can't be read.
        """
        if not question.strip():
            raise DataError("question: is empty. Ask something about the picture.")
        content = IMAGE_PLACEHOLDER * len(images) + question.strip()
        return self.chat_prompt([{"role": "user", "content": content}], images)

    def caption_prompt(self, image: ImageLike) -> tuple[int, ...]:
        """Return the ids that ask for the caption of a picture."""
        return tuple(self._sequences.image_to_text_prompt(self._pictures.encode(image)))

    def chat_prompt(
        self, messages: Sequence[Turn | Mapping[str, str]], images: Sequence[ImageLike]
    ) -> tuple[int, ...]:
        """Return the ids of a conversation up to the start of the answer.

        Raises:
            DataError: There is no message, or placeholders and pictures differ in number.
        """
        if not messages:
            raise DataError("chat: there is no message. Say something.")
        grids = [self._pictures.encode(image) for image in images]
        return tuple(self._sequences.chat(messages, grids, add_generation_prompt=True)[0])

    def _picture(self, job: Job, seed: int) -> ImageRequest:
        size = self._pictures.size(job.size)
        if job.messages or job.images:
            prompt = (*self._conversation(job), self._sequences.vocabulary.boi)
        else:
            prompt = self.picture_prompt(job.prompt, size)
        return ImageRequest(
            prompt=prompt,
            grid=self._pictures.grid(size),
            sampling=_changed(self._sampling, job, guided=True),
            seed=seed,
            preview_rows=job.preview_rows,
        )

    def _text(self, job: Job, seed: int) -> TextRequest:
        drawing = self._sampling
        grid = None
        if job.mode == "interleaved" and (job.size is not None or self._pictures.possible):
            grid = self._pictures.grid(self._pictures.size(job.size))
            if job.guidance is not None:
                drawing = dataclasses.replace(drawing, guidance=job.guidance)
        return TextRequest(
            prompt=self._caption(job) if job.mode == "caption" else self._conversation(job),
            max_tokens=job.max_tokens,
            sampling=_changed(
                GREEDY_SAMPLING if job.mode == "caption" else DEFAULT_CHAT_SAMPLING,
                job,
                guided=False,
            ),
            picture_sampling=drawing,
            seed=seed,
            grid=grid,
            preview_rows=job.preview_rows,
        )

    def _caption(self, job: Job) -> tuple[int, ...]:
        if len(job.images) != 1 or job.prompt or job.messages:
            raise DataError(
                f"images: a caption is that of one picture alone ({len(job.images)} given). "
                "Ask about several, or with words, in the mode 'text'."
            )
        return self.caption_prompt(job.images[0])

    def _conversation(self, job: Job) -> tuple[int, ...]:
        messages = job.messages
        if not messages:
            if not job.prompt.strip():
                raise DataError("prompt: is empty. Say what to answer.")
            content = IMAGE_PLACEHOLDER * len(job.images) + job.prompt.strip()
            messages = ({"role": "user", "content": content},)
        return self.chat_prompt(messages, job.images)


def _changed(sampling: SamplingConfig, job: Job, *, guided: bool) -> SamplingConfig:
    """Return settings with what a job says of them."""
    names = ["temperature", "top_k", "top_p", "greedy", *(["guidance"] if guided else [])]
    given: dict[str, Any] = {name: getattr(job, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given and "greedy" not in given and set(given) - {"guidance"}:
        given["greedy"] = False  # who sets a temperature wants to draw
    return dataclasses.replace(sampling, **given)

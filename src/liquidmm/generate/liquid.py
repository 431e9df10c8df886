"""What users hold: words and pictures in, words and pictures out.

Contract: each method does one thing and always returns the same type. The
same seed gives the same picture. Pictures are PIL images, RGB; wherever one is taken, a path or the
codes that `encode` returned are as good. A picture that goes in is fitted to a trained size the way
the checkpoint was trained; a size to draw must be a trained one. Pictures are drawn with the
checkpoint's own sampling defaults, or the release's where it has none; `describe` and `ask` are
greedy, `chat` samples. What these methods do in many variants, `run` does for any mix of `Job`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from PIL import Image
from torch import Tensor

from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.generate.engine import Engine, EngineConfig, Progress
from liquidmm.generate.jobs import (
    DEFAULT_CHAT_SAMPLING,
    GREEDY_SAMPLING,
    Job,
    RequestBuilder,
    one_seed_each,
)
from liquidmm.generate.pictures import ImageLike, Pictures
from liquidmm.generate.reply import Picture, Piece, Preview, Reply, TextPiece
from liquidmm.generate.requests import (
    ImageRequest,
    Request,
    TextRequest,
)
from liquidmm.generate.sampling import SamplingConfig, saved_sampling
from liquidmm.generate.score import Score, score
from liquidmm.generate.words import stop_ids, words
from liquidmm.generate.writer import Writer, replies, reply_of, stream
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.sequences import Turn


class Liquid:
    """One language model that draws, reads pictures and chats."""

    def __init__(self, checkpoint: Checkpoint, engine: EngineConfig | None = None) -> None:
        """See `from_checkpoint`."""
        processor = checkpoint.processor
        checkpoint.model.eval()  # type: ignore[no-untyped-call]
        self.checkpoint = checkpoint
        self.sizes = processor.sizes
        """Trained picture sizes, (width, height) in pixels, the default first; maybe none."""
        self.sampling = saved_sampling(processor.sampling, checkpoint.vocabulary.codebook_size)
        """How pictures are drawn unless told otherwise."""
        self._tokenizer = processor.tokenizer
        self._sequences = processor.sequences
        self._pictures = Pictures(checkpoint)
        self._reader = RequestBuilder(self._sequences, self._pictures, self.sampling)
        self.engine = Engine(
            checkpoint.model,
            checkpoint.vocabulary,
            unconditional=self._sequences.unconditional_prompt(),
            stop=stop_ids(checkpoint.model, self._sequences),
            config=engine,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, engine: EngineConfig | None = None) -> Liquid:
        """Wrap a loaded checkpoint; its model is put into eval mode.

        Args:
            checkpoint: Its parts. The weights are read when the first request comes.
            engine: How the model is run; None takes the defaults.

        Raises:
            ConfigError: The model can't be run that way.
        """
        return cls(checkpoint, engine)

    @property
    def parameters(self) -> int:
        """Number of weights of the language model."""
        return sum(weight.numel() for weight in self.checkpoint.model.parameters())

    def draw(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Image.Image:
        """Draw a picture.

        Args:
            prompt: What it shall show.
            size: Width and height in pixels, a trained size; None takes the first of `sizes`.
            seed: The same seed gives the same picture.
            sampling: None takes the checkpoint's defaults, `sampling`.

        Returns:
            The picture, RGB.

        Raises:
            DataError: The prompt is empty or too long for the context.
            ConfigError: The size was not trained, or a setting doesn't fit the codebook.
        """
        return self.generate_images([prompt], size=size, seeds=[seed], sampling=sampling)[0]

    def generate_images(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draw several pictures at once; each is what `draw` gives for its prompt and seed.

        Args:
            prompts: One for each picture.
            size: As in `draw`, for all of them.
            seeds: One for each picture; None takes 0, 1, 2, ...
            sampling: As in `draw`.
            progress: Told (codes drawn, codes to draw) after each step.

        Returns:
            The pictures, RGB, in order.

        Raises:
            DataError: A prompt is empty or too long for the context.
            ConfigError: The size was not trained, a setting doesn't fit the codebook, or seeds and
                prompts differ in number.
        """
        codes = self.generate_codes(
            prompts, size=size, seeds=seeds, sampling=sampling, progress=progress
        )
        return [self.decode(grid) for grid in codes]

    def generate_codes(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Draw the codes of several pictures; arguments and errors as in `generate_images`.

        Returns:
            Codes, (h, w), int64, on the CPU, in order.
        """
        size = self._pictures.size(size)
        requests = [
            ImageRequest(
                prompt=self._reader.picture_prompt(prompt, size),
                grid=self._pictures.grid(size),
                sampling=sampling or self.sampling,
                seed=seed,
            )
            for prompt, seed in zip(prompts, one_seed_each(prompts, seeds), strict=True)
        ]
        return self.engine.pictures(requests, progress=progress)

    def describe(self, image: ImageLike, *, max_tokens: int = 64) -> str:
        """Say in words what a picture shows.

        Args:
            image: The picture.
            max_tokens: Length at most.

        Returns:
            The caption.

        Raises:
            DataError: The picture can't be read.
        """
        return self.describe_many([image], max_tokens=max_tokens)[0]

    def describe_many(self, images: Sequence[ImageLike], *, max_tokens: int = 64) -> list[str]:
        """Describe several pictures at once; as `describe` for each."""
        return self._write([self._reader.caption_prompt(image) for image in images], max_tokens)

    def ask(
        self, image: ImageLike | list[ImageLike], question: str, *, max_tokens: int = 128
    ) -> str:
        """Answer a question about a picture.

        Args:
            image: The picture, or several in a list.
            question: The question.
            max_tokens: Length at most.

        Returns:
            The answer.

        Raises:
            DataError: A picture can't be read, or the question is empty or too long.
        """
        return self.ask_many([(image, question)], max_tokens=max_tokens)[0]

    def ask_many(
        self,
        questions: Sequence[tuple[ImageLike | list[ImageLike], str]],
        *,
        max_tokens: int = 128,
    ) -> list[str]:
        """Answer several (picture, question) pairs at once; as `ask` for each."""
        prompts = [
            self._reader.question_prompt(image if isinstance(image, list) else [image], question)
            for image, question in questions
        ]
        return self._write(prompts, max_tokens)

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike] = (),
        *,
        max_tokens: int = 512,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Reply:
        """Answer a conversation; see `stream`.

        Returns:
            The answer with its pictures.
        """
        request = self._chat_request(messages, images, max_tokens, seed, sampling)
        writer = self._writer(request)
        return reply_of(list(stream(self.engine, request, writer)), writer)

    def stream(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike] = (),
        *,
        max_tokens: int = 512,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Iterator[TextPiece | Picture]:
        """Answer a conversation piece by piece.

        Args:
            messages: Turns with `role` and `content`, mappings or objects; each `<image>` in a
                content stands for the next picture.
            images: The pictures, in order.
            max_tokens: Length of the text at most.
            seed: The same seed gives the same answer.
            sampling: How text is drawn; None takes `DEFAULT_CHAT_SAMPLING`.

        Yields:
            Text as it comes, and a picture wherever the model opens one.

        Raises:
            DataError: Nothing to answer, placeholders without pictures, or a conversation that is
                too long for the context.
        """
        request = self._chat_request(messages, images, max_tokens, seed, sampling)
        for piece in stream(self.engine, request, self._writer(request)):
            assert not isinstance(piece, Preview), "none was asked for"
            yield piece

    def run(self, jobs: Sequence[Job]) -> list[list[Reply]]:
        """Do any mix of jobs at once.

        Args:
            jobs: What to do.

        Returns:
            For each job, in order, a reply for each of its samples. A job that is wrong has a
            single reply, which holds the error; the others are done.
        """
        found: list[dict[int, Reply]] = [{} for _ in jobs]
        for place, sample, reply in self.run_as_done(jobs):
            found[place][sample] = reply
        return [[reply for _, reply in sorted(samples.items())] for samples in found]

    def run_as_done(
        self, jobs: Sequence[Job], progress: Progress | None = None
    ) -> Iterator[tuple[int, int, Reply]]:
        """Do any mix of jobs at once, and give what is finished.

        Args:
            jobs: What to do.
            progress: Told (codes drawn, codes to draw) of pictures after each step.

        Yields:
            Place of a job, number of a sample, its reply. A job that is wrong has a single one,
            which holds the error.
        """
        requests: list[tuple[int, int, Request]] = []
        for place, job in enumerate(jobs):
            try:
                requests += [(place, n, request) for n, request in enumerate(self._requests(job))]
            except LiquidError as error:
                yield place, 0, Reply(text="", images=(), finish="error", error=error)
        writers = [self._writer(request, jobs[place].stop) for place, _, request in requests]
        plain = [request for *_, request in requests]
        for index, reply in replies(self.engine, plain, writers, progress):
            place, sample, _ = requests[index]
            yield place, sample, reply

    def stream_job(self, job: Job) -> Iterator[Piece]:
        """Do one job with one answer, piece by piece.

        Args:
            job: What to do; its `n` must be 1.

        Yields:
            Text as it comes, previews of pictures (`Job.preview_rows`), and pictures.

        Raises:
            ConfigError: A field is out of range.
            DataError: The prompt is missing or too long, or a picture can't be read.
        """
        requests = self._requests(job)
        if len(requests) > 1:
            raise ConfigError(f"n: a stream has one answer ({job.n}). Give 1.")
        request = requests[0]
        yield from stream(self.engine, request, self._writer(request, job.stop))

    def score(
        self,
        prompt: str | Sequence[Turn | Mapping[str, str]],
        answers: Sequence[str],
        images: Sequence[ImageLike] = (),
    ) -> list[Score]:
        """Say how likely the model finds given answers.

        Args:
            prompt: A text that the answers go on with, or a conversation that they answer.
            answers: Texts; each is tokenized on its own.
            images: Pictures of the conversation, in order.

        Returns:
            A score for each answer.

        Raises:
            DataError: Prompt and answer don't fit the context, or an answer is empty.
        """
        if isinstance(prompt, str):
            if images:
                raise DataError("images: stand in a conversation. Give messages as the prompt.")
            ids: Sequence[int] = self._sequences.text_prompt(prompt)
        else:
            ids = self._reader.chat_prompt(prompt, images)
        wanted = [self._sequences.encode(answer) for answer in answers]
        return score(self.checkpoint.model, self.checkpoint.vocabulary.size, ids, wanted)

    def chat_prompt(
        self, messages: Sequence[Turn | Mapping[str, str]], images: Sequence[ImageLike] = ()
    ) -> list[int]:
        """Return the ids of a conversation up to the start of the answer."""
        return list(self._reader.chat_prompt(messages, images))

    def encode(self, image: ImageLike) -> Tensor:
        """Turn a picture into codes.

        Args:
            image: The picture; codes are returned as they are.

        Returns:
            Codes, (h, w), int64, on the CPU.

        Raises:
            DataError: The picture can't be read.
            CheckpointError: The checkpoint was not trained on pictures.
        """
        return self._pictures.encode(image)

    def decode(self, codes: Tensor) -> Image.Image:
        """Turn codes, (h, w), into a picture, RGB."""
        return self._pictures.decode(codes)

    def _chat_request(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike],
        max_tokens: int,
        seed: int,
        sampling: SamplingConfig | None,
    ) -> TextRequest:
        return TextRequest(
            prompt=self._reader.chat_prompt(messages, images),
            max_tokens=max_tokens,
            sampling=sampling or DEFAULT_CHAT_SAMPLING,
            picture_sampling=self.sampling,
            seed=seed,
            grid=self._pictures.grid(self.sizes[0]) if self._pictures.possible else None,
        )

    def _writer(self, request: Request, stop: Sequence[str] = ()) -> Writer:
        return Writer(self._tokenizer, self._pictures, request, stop)

    def _requests(self, job: Job) -> list[Request]:
        requests = self._reader.read(job)
        for request in requests:
            self.engine.check(request)
        return requests

    def _write(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[str]:
        requests = [
            TextRequest(
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=GREEDY_SAMPLING,
                picture_sampling=self.sampling,
            )
            for prompt in prompts
        ]
        texts = self.engine.texts(requests)
        return [words(self._tokenizer, text.ids).strip() for text in texts]

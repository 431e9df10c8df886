"""What users hold: words and pictures in, words and pictures out.

Contract: `load` gives a `Liquid`; each method does one thing and always returns the same type. The
same seed gives the same picture. Pictures are PIL images, RGB; wherever one is taken, a path or the
codes that `encode` returned are as good. A picture that goes in is fitted to a trained size the way
the checkpoint was trained; a size to draw must be a trained one. Pictures are drawn with the
checkpoint's own sampling defaults, or the release's where it has none; `describe` and `ask` are
greedy, `chat` samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from liquidmm.config import from_dict
from liquidmm.errors import ConfigError, DataError
from liquidmm.generate.engine import (
    Engine,
    PictureRequest,
    PictureStep,
    Progress,
    TextRequest,
    TextStep,
)
from liquidmm.generate.pictures import ImageLike, Pictures
from liquidmm.generate.reply import Picture, Reply, TextPiece
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.generate.words import Characters, stop_ids, words
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.prompts import IMAGE_PLACEHOLDER
from liquidmm.sequences import Turn

GREEDY = SamplingConfig(greedy=True)
"""How `describe` and `ask` write."""

CHATTY = SamplingConfig(temperature=0.7, top_k=50, top_p=0.9)
"""How `chat` and `stream` write."""

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
"""The checkpoint that comes with the package."""


def load(
    folder: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    image_tokenizer: Path | None = None,
) -> Liquid:
    """Load a checkpoint.

    Args:
        folder: Checkpoint folder, or owner/name on the Hugging Face hub; None takes the model that
            comes with the package.
        device: "cpu", "cuda", "mps"; None takes the best there is.
        dtype: "float32", "bfloat16", "float16"; "auto" takes what the device is fast with.
        image_tokenizer: For a checkpoint that comes without one, as the published
            `Junfeng5/Liquid_V1_7B` does: a folder of ours or a `vqgan.ckpt`.

    Returns:
        The model, ready to draw.

    Raises:
        CheckpointError: The folder is no checkpoint.
    """
    source = DEFAULT_MODEL if folder is None else folder
    return Liquid.from_checkpoint(Checkpoint.load(source, device, dtype, image_tokenizer))


class Liquid:
    """One language model that draws, reads pictures and chats."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """See `from_checkpoint`."""
        processor = checkpoint.processor
        checkpoint.model.eval()  # type: ignore[no-untyped-call]
        self.checkpoint = checkpoint
        self.sizes = processor.sizes
        """Trained picture sizes, (width, height) in pixels, the default first; maybe none."""
        self.sampling = from_dict(
            SamplingConfig, processor.sampling or {}, "processor_config.json: sampling"
        )
        """How pictures are drawn unless told otherwise."""
        self._tokenizer = processor.tokenizer
        self._sequences = processor.sequences
        self._pictures = Pictures(checkpoint)
        self.engine = Engine(
            checkpoint.model,
            checkpoint.vocabulary,
            unconditional=self._sequences.unconditional_prompt(),
            stop=stop_ids(checkpoint.model, self._sequences),
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Liquid:
        """Wrap a loaded checkpoint; its model is put into eval mode and shared, not copied."""
        return cls(checkpoint)

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
            ConfigError: The size was not trained.
        """
        return self.draw_many([prompt], size=size, seeds=[seed], sampling=sampling)[0]

    def draw_many(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draw several pictures, batched; each is what `draw` gives for its prompt and seed.

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
            ConfigError: The size was not trained, or seeds and prompts differ in number.
        """
        codes = self.draw_codes(
            prompts, size=size, seeds=seeds, sampling=sampling, progress=progress
        )
        return [self.decode(grid) for grid in codes]

    def draw_codes(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Draw the codes of several pictures; arguments and errors as in `draw_many`.

        Returns:
            Codes, (h, w), int64, on the CPU, in order.
        """
        size = self._pictures.size(size)
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ConfigError(
                f"seeds: {len(seeds)} for {len(prompts)} prompts. Give one for each prompt."
            )
        requests = [
            PictureRequest(
                prompt=self._picture_prompt(prompt, size),
                grid=self._pictures.grid(size),
                sampling=sampling or self.sampling,
                seed=seed,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
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
        """Describe several pictures, batched; as `describe` for each."""
        return self._write(
            [self._sequences.image_to_text_prompt(self.encode(image)) for image in images],
            max_tokens,
        )

    def ask(self, image: ImageLike, question: str, *, max_tokens: int = 128) -> str:
        """Answer a question about a picture.

        Args:
            image: The picture.
            question: The question.
            max_tokens: Length at most.

        Returns:
            The answer.

        Raises:
            DataError: The picture can't be read, or the question is empty or too long.
        """
        return self.ask_many([(image, question)], max_tokens=max_tokens)[0]

    def ask_many(
        self, questions: Sequence[tuple[ImageLike, str]], *, max_tokens: int = 128
    ) -> list[str]:
        """Answer several (picture, question) pairs, batched; as `ask` for each."""
        prompts = []
        for image, question in questions:
            if not question.strip():
                raise DataError("question: is empty. Ask something about the picture.")
            turn = {"role": "user", "content": IMAGE_PLACEHOLDER + question.strip()}
            prompts.append(self.chat_prompt([turn], [self.encode(image)]))
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
        text, pictures = "", []
        for piece in self.stream(
            messages, images, max_tokens=max_tokens, seed=seed, sampling=sampling
        ):
            if isinstance(piece, Picture):
                pictures.append(piece.image)
                text += IMAGE_PLACEHOLDER
            else:
                text += piece.text
        return Reply(text=text.strip(), images=tuple(pictures))

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
            sampling: How text is drawn; None takes `CHATTY`.

        Yields:
            Text as it comes, and a picture wherever the model opens one.

        Raises:
            DataError: Nothing to answer, placeholders without pictures, or a conversation that is
                too long for the context.
        """
        if not messages:
            raise DataError("chat: there is no message. Say something.")
        request = TextRequest(
            prompt=tuple(self.chat_prompt(messages, images)),
            max_tokens=max_tokens,
            sampling=sampling or CHATTY,
            picture_sampling=self.sampling,
            seed=seed,
            grid=self._pictures.grid(self.sizes[0]) if self._pictures.possible else None,
        )
        text = Characters(self._tokenizer)
        for step in self.engine.stream(request):
            piece = text.add(step.id) if isinstance(step, TextStep) else text.rest()
            if piece:
                yield TextPiece(text=piece)
            if isinstance(step, PictureStep):
                yield Picture(image=self.decode(step.codes), codes=step.codes)

    def chat_prompt(
        self, messages: Sequence[Turn | Mapping[str, str]], images: Sequence[ImageLike] = ()
    ) -> list[int]:
        """Return the ids of a conversation up to the start of the answer."""
        grids = [self.encode(image) for image in images]
        return self._sequences.chat(messages, grids, add_generation_prompt=True)[0]

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

    def _write(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        requests = [
            TextRequest(
                prompt=tuple(prompt),
                max_tokens=max_tokens,
                sampling=GREEDY,
                picture_sampling=self.sampling,
            )
            for prompt in prompts
        ]
        texts = self.engine.texts(requests)
        return [words(self._tokenizer, text.ids).strip() for text in texts]

    def _picture_prompt(self, prompt: str, size: tuple[int, int]) -> tuple[int, ...]:
        # A checkpoint of one size never saw a size hint.
        hint = size if len(self.sizes) > 1 else None
        return tuple(self._sequences.text_to_image_prompt(prompt, size=hint))

"""The Python API: a checkpoint that generates and describes images, answers questions and chats.

The same seed gives the same result. Generated images are PIL images, RGB; an input image can also
be a path or the codes that `encode` returned. Images use the checkpoint's own sampling defaults, or
those of the reference implementation; `describe` and `ask` are greedy, `chat` samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from liquidmm.errors import ConfigError, DataError, LiquidError
from liquidmm.generate.detokenize import Detokenizer, stop_tokens
from liquidmm.generate.engine import Engine, EngineConfig, Progress
from liquidmm.generate.images import ImageCodec, ImageLike
from liquidmm.generate.outputs import End, Piece, Reply
from liquidmm.generate.requests import (
    GenerationRequest,
    ImageRequest,
    RequestBuilder,
    TokenRequest,
    caption_request,
    chat_request,
    image_requests,
    question_request,
)
from liquidmm.generate.sampling import SamplingConfig, saved_sampling
from liquidmm.generate.score import Score, score
from liquidmm.model.checkpoint import Checkpoint
from liquidmm.sequences import Turn

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
"""The checkpoint shipped with the package."""


def load(
    folder: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    image_tokenizer: Path | None = None,
    engine: EngineConfig | None = None,
) -> Liquid:
    """Load a checkpoint.

    Args:
        folder: Checkpoint folder, or owner/name on the Hugging Face hub; None is the model shipped
            with the package.
        device: "cpu", "cuda" or "mps"; None is the fastest available.
        dtype: "float32", "bfloat16" or "float16"; "auto" is the fastest on the device.
        image_tokenizer: For a checkpoint without one, such as `Junfeng5/Liquid_V1_7B`: a folder
            of this package or a `vqgan.ckpt`.
        engine: How to run the model; None is the default.

    Raises:
        CheckpointError: The folder is not a checkpoint.
        ConfigError: The model cannot be run with these settings.
    """
    source = DEFAULT_MODEL if folder is None else folder
    return Liquid(Checkpoint.load(source, device, dtype, image_tokenizer), engine)


class Liquid:
    """A language model that generates and reads images and text."""

    def __init__(self, checkpoint: Checkpoint, engine: EngineConfig | None = None) -> None:
        """Use a loaded checkpoint; its model is set to eval mode."""
        processor = checkpoint.processor
        checkpoint.model.eval()  # type: ignore[no-untyped-call]
        self.checkpoint = checkpoint
        self.sizes = processor.sizes
        """Trained image sizes, (width, height) in pixels, the default first; empty if none."""
        self.sampling = saved_sampling(processor.sampling, checkpoint.vocabulary.codebook_size)
        """Default sampling of images."""
        self._tokenizer = processor.tokenizer
        self._sequences = processor.sequences
        self._images = ImageCodec(checkpoint)
        self._builder = RequestBuilder(self._sequences, self._images, self.sampling)
        self.engine = Engine(
            checkpoint.model,
            checkpoint.vocabulary,
            unconditional=self._sequences.unconditional_prompt(),
            stop=stop_tokens(checkpoint.model, self._sequences),
            config=engine,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters of the language model."""
        return sum(weight.numel() for weight in self.checkpoint.model.parameters())

    def generate_image(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Image.Image:
        """Generate an image.

        Args:
            prompt: What the image shows.
            size: Width and height in pixels, one of `sizes`; None is the first.
            seed: Random seed.
            sampling: None is the checkpoint's default, `sampling`.

        Raises:
            DataError: The prompt is empty or too long.
            ConfigError: The size is not a trained one, or a setting does not fit the codebook.
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
        """Generate several images at once, each the same as from `generate_image`.

        Args:
            prompts: One prompt per image.
            size: Size of all images.
            seeds: One seed per image; None is 0, 1, 2, ...
            sampling: Settings for all images.
            progress: Called with (image tokens generated, total image tokens) after each step.

        Raises:
            DataError: A prompt is empty or too long.
            ConfigError: The numbers of seeds and prompts differ, or as for `generate_image`.
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
        """Generate codes, (h, w), int64, on the CPU; arguments as in `generate_images`."""
        requests = image_requests(prompts, size=size, seeds=seeds, sampling=sampling)
        built = [one for request in requests for one in self._builder.build(request)]
        images = [one for one in built if isinstance(one, ImageRequest)]
        return self.engine.generate_codes(images, progress)

    def describe(self, image: ImageLike, *, max_tokens: int = 64) -> str:
        """Return a caption of an image."""
        return self.describe_many([image], max_tokens=max_tokens)[0]

    def describe_many(self, images: Sequence[ImageLike], *, max_tokens: int = 64) -> list[str]:
        """Describe several images at once, with the same results as `describe`."""
        return self._texts([caption_request(image, max_tokens) for image in images])

    def ask(
        self, image: ImageLike | Sequence[ImageLike], question: str, *, max_tokens: int = 128
    ) -> str:
        """Answer a question about an image or a list of images."""
        return self.ask_many([(image, question)], max_tokens=max_tokens)[0]

    def ask_many(
        self,
        questions: Sequence[tuple[ImageLike | Sequence[ImageLike], str]],
        *,
        max_tokens: int = 128,
    ) -> list[str]:
        """Answer several (image, question) pairs at once, with the same results as `ask`."""
        return self._texts([question_request(*pair, max_tokens) for pair in questions])

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike] = (),
        *,
        max_tokens: int = 512,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Reply:
        """Reply to a conversation with text and images.

        Args:
            messages: Turns with `role` and `content`, mappings or objects; the next image replaces
                each `<image>` in the content.
            images: The images, in order.
            max_tokens: Maximum number of text tokens.
            seed: Random seed.
            sampling: How text is sampled; None is `DEFAULT_CHAT_SAMPLING`.

        Raises:
            DataError: There are no messages, the numbers of placeholders and images differ, or the
                conversation is too long.
        """
        request = chat_request(
            messages, images, max_tokens=max_tokens, seed=seed, sampling=sampling
        )
        return self._replies([request])[0]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Reply]]:
        """Answer any mix of requests at once.

        Returns:
            For each request, in order, one reply per sample. An invalid request has a single reply,
            which contains the error; the others are still answered.
        """
        found: list[dict[int, Reply]] = [{} for _ in requests]
        for index, sample, reply in self.generate_as_completed(requests):
            found[index][sample] = reply
        return [[reply for _, reply in sorted(samples.items())] for samples in found]

    def generate_as_completed(
        self, requests: Sequence[GenerationRequest], progress: Progress | None = None
    ) -> Iterator[tuple[int, int, Reply]]:
        """Answer any mix of requests at once and yield each reply as soon as it is complete.

        Yields:
            The index of a request, the number of a sample, and its reply. An invalid request has a
            single reply, which contains the error.
        """
        places: list[tuple[int, int]] = []
        built: list[TokenRequest] = []
        failed: set[int] = set()
        for index, request in enumerate(requests):
            try:
                samples = self._builder.build(request)
            except LiquidError as error:
                yield index, 0, Reply(finish="error", error=error)
                continue
            places += [(index, sample) for sample in range(len(samples))]
            built += samples
        streams = [
            Detokenizer(self._tokenizer, self._images, request, requests[index].stop)
            for request, (index, _) in zip(built, places, strict=True)
        ]
        for handle, event in self.engine.run(built, progress):
            index, sample = places[handle.index]
            if isinstance(event, End) and event.error is not None:
                if index not in failed:
                    failed.add(index)
                    yield index, sample, Reply(finish="error", error=event.error)
                continue
            stream = streams[handle.index]
            stream.add(event)
            if stream.finish is not None:
                self.engine.cancel(handle)
                yield index, sample, stream.reply

    def stream(self, request: GenerationRequest) -> Iterator[Piece]:
        """Answer a request with one sample, streaming its pieces.

        Yields:
            Text as it is generated, previews of images (`GenerationRequest.preview_every`), and
            images.

        Raises:
            ConfigError: A field is out of range, or `n` is not 1.
            DataError: The prompt is missing or too long, or an image cannot be read.
        """
        built = self._builder.build(request)
        if len(built) > 1:
            raise ConfigError(f"n: expected 1 for a stream, got {request.n}.")
        detokenizer = Detokenizer(self._tokenizer, self._images, built[0], request.stop)
        # Closing this generator closes the engine's, which cancels the request.
        for _, event in self.engine.run(built):
            yield from detokenizer.add(event)
            if detokenizer.finish is not None:
                return

    def score(
        self,
        prompt: str | Sequence[Turn | Mapping[str, str]],
        answers: Sequence[str],
        images: Sequence[ImageLike] = (),
    ) -> list[Score]:
        """Return the log-probabilities of given answers.

        Args:
            prompt: A text that the answers continue, or a conversation that they answer.
            answers: Texts; each is tokenized on its own.
            images: Images of the conversation, in order.

        Raises:
            DataError: Prompt and answer exceed the context, or an answer is empty.
        """
        if isinstance(prompt, str):
            if images:
                raise DataError("images: expected a conversation as the prompt, got a text.")
            tokens: Sequence[int] = self._sequences.text_prompt(prompt)
        else:
            tokens = self._builder.chat_prompt(prompt, images)
        encoded = [self._sequences.encode(answer) for answer in answers]
        return score(self.checkpoint.model, self.checkpoint.vocabulary.size, tokens, encoded)

    def chat_prompt(
        self, messages: Sequence[Turn | Mapping[str, str]], images: Sequence[ImageLike] = ()
    ) -> list[int]:
        """Return the tokens of a conversation up to the start of the answer."""
        return list(self._builder.chat_prompt(messages, images))

    def encode(self, image: ImageLike) -> Tensor:
        """Return the codes of an image, (h, w), int64, on the CPU; codes are returned unchanged."""
        return self._images.encode(image)

    def decode(self, codes: Tensor) -> Image.Image:
        """Return the image of codes, (h, w), RGB."""
        return self._images.decode(codes)

    def _replies(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """Return one reply for each request, or raise the first error."""
        found: dict[int, Reply] = {}
        for index, _, reply in self.generate_as_completed(requests):
            if reply.error is not None:
                raise reply.error
            found[index] = reply
        return [found[index] for index in range(len(requests))]

    def _texts(self, requests: Sequence[GenerationRequest]) -> list[str]:
        return [reply.text for reply in self._replies(requests)]

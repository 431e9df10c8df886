"""Requests: what a user asks for, and its tokenized form for the engine.

`GenerationRequest` contains everything its replies depend on. `RequestBuilder` turns it into one
`ImageRequest` or `TextRequest` per sample, or raises a one-line error that names the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.generate.images import ImageCodec, ImageLike
from liquidmm.generate.rng import check_seed
from liquidmm.generate.sampling import DEFAULT_CHAT_SAMPLING, GREEDY_SAMPLING, SamplingConfig
from liquidmm.prompts import IMAGE_PLACEHOLDER
from liquidmm.ranges import check_ranges
from liquidmm.sequences import Sequences, Turn

MODES = ("image", "text", "caption", "interleaved")
"""In order: an image for a prompt or conversation; a text answer; a caption of an image; an answer
in which the model can also generate images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One thing to generate."""

    RENAMED: ClassVar[Mapping[str, str]] = {"preview_rows": "preview_every"}

    mode: str = "image"
    """One of `MODES`."""
    prompt: str = ""
    """What the image shows, or the question; input images come before it."""
    messages: tuple[Mapping[str, str], ...] = ()
    """A conversation instead of a prompt: turns with `role` and `content`. Each `<image>` in it is
    replaced by the next input image."""
    images: tuple[ImageLike, ...] = ()
    """Input images, for checkpoints that were trained on such requests."""
    size: tuple[int, int] | None = None
    """Width and height of a generated image in pixels, a trained size; None is the default."""
    n: Annotated[int, Ge(1)] = 1
    """Number of samples; sample i uses ``seed + i``."""
    seed: int = 0
    """Seed of the first sample."""
    guidance: float | None = None
    """Guidance for images, as in `SamplingConfig`; None is the checkpoint's default."""
    temperature: float | None = None
    """As in `SamplingConfig`, for codes in the mode "image" and for text in the other modes; None
    is the default of the checkpoint or the mode."""
    top_k: int | None = None
    """As `temperature`."""
    top_p: float | None = None
    """As `temperature`."""
    greedy: bool | None = None
    """As `temperature`."""
    max_tokens: Annotated[int, Ge(1)] = 512
    """Maximum number of text tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are removed from it."""
    preview_every: Annotated[int, Ge(0)] = 0
    """Rows of codes between two previews of an image; 0 disables previews."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One image to generate, in tokens."""

    prompt: tuple[int, ...]
    """Tokens up to and including boi."""
    grid: tuple[int, int]
    """Rows and columns of codes."""
    sampling: SamplingConfig
    seed: int = 0
    preview_every: Annotated[int, Ge(0)] = 0
    """Rows of codes between two `ImageRows` events; 0 disables them."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """One text to generate, in tokens; it can contain images."""

    prompt: tuple[int, ...]
    max_tokens: Annotated[int, Ge(1)]
    """Maximum number of text tokens; the context may end the text earlier."""
    sampling: SamplingConfig
    """How text is sampled; its guidance has no effect."""
    image_sampling: SamplingConfig
    """How the codes of an image in the text are sampled."""
    seed: int = 0
    grid: tuple[int, int] | None = None
    """Rows and columns of images in the text; None allows no images."""
    preview_every: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_ranges(self)


TokenRequest = ImageRequest | TextRequest


def image_requests(
    prompts: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    seeds: Sequence[int] | None = None,
    sampling: SamplingConfig | None = None,
) -> list[GenerationRequest]:
    """Return an image request for each prompt; the default seeds are 0, 1, 2, ...

    Raises:
        ConfigError: The numbers of seeds and prompts differ.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ConfigError(
            f"seeds: expected one for each prompt, got {len(seeds)} for {len(prompts)} prompts."
        )
    settings = {} if sampling is None else dataclasses.asdict(sampling)
    return [
        GenerationRequest(prompt=prompt, size=size, seed=seed, **settings)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def caption_request(image: ImageLike, max_tokens: int) -> GenerationRequest:
    """Return a request for a caption."""
    return GenerationRequest(mode="caption", images=(image,), max_tokens=max_tokens)


def question_request(
    image: ImageLike | Sequence[ImageLike], question: str, max_tokens: int
) -> GenerationRequest:
    """Return a request to answer a question about one or more images.

    Raises:
        DataError: The question is empty.
    """
    if not question.strip():
        raise DataError("question: is empty. Ask something about the image.")
    images = tuple(image) if isinstance(image, list | tuple) else (image,)
    return GenerationRequest(
        mode="text", prompt=question, images=images, greedy=True, max_tokens=max_tokens
    )


def chat_request(
    messages: Sequence[Turn | Mapping[str, str]],
    images: Sequence[ImageLike] = (),
    *,
    mode: str = "interleaved",
    max_tokens: int = 512,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
) -> GenerationRequest:
    """Return a request to reply to a conversation; ``sampling`` applies to text."""
    settings = {} if sampling is None else dataclasses.asdict(sampling)
    settings.pop("guidance", None)
    turns = (
        dict(turn) if isinstance(turn, Mapping) else {"role": turn.role, "content": turn.content}
        for turn in messages
    )
    return GenerationRequest(
        mode=mode,
        messages=tuple(turns),
        images=tuple(images),
        max_tokens=max_tokens,
        seed=seed,
        **settings,
    )


class RequestBuilder:
    """Turns requests into tokens for one checkpoint."""

    def __init__(self, sequences: Sequences, images: ImageCodec, sampling: SamplingConfig) -> None:
        """Keep the parts of a checkpoint; ``sampling`` is its default for images."""
        self._sequences = sequences
        self._images = images
        self._sampling = sampling

    def build(self, request: GenerationRequest) -> list[TokenRequest]:
        """Return one request in tokens for each sample.

        Raises:
            ConfigError: A field is out of range.
            DataError: The prompt is missing, or an image cannot be read.
            CheckpointError: The checkpoint was not trained on images.
        """
        _check(request)
        build = self._image if request.mode == "image" else self._text
        first = build(request)
        return [dataclasses.replace(first, seed=request.seed + i) for i in range(request.n)]

    def chat_prompt(
        self, messages: Sequence[Turn | Mapping[str, str]], images: Sequence[ImageLike]
    ) -> tuple[int, ...]:
        """Return the tokens of a conversation up to the start of the answer.

        Raises:
            DataError: There are no messages, or the numbers of placeholders and images differ.
        """
        if not messages:
            raise DataError("messages: expected at least one message, got none.")
        codes = [self._images.encode(image) for image in images]
        return tuple(self._sequences.chat(messages, codes, add_generation_prompt=True)[0])

    def _image(self, request: GenerationRequest) -> ImageRequest:
        size = self._images.check_size(request.size)
        if request.messages or request.images:
            prompt = (*self._conversation(request), self._sequences.vocabulary.boi)
        else:
            # A checkpoint with one size was trained without size hints.
            hint = size if len(self._images.sizes) > 1 else None
            prompt = tuple(self._sequences.text_to_image_prompt(request.prompt, size=hint))
        return ImageRequest(
            prompt=prompt,
            grid=self._images.grid(size),
            sampling=_override(self._sampling, request, guided=True),
            seed=request.seed,
            preview_every=request.preview_every,
        )

    def _text(self, request: GenerationRequest) -> TextRequest:
        image_sampling, grid = self._sampling, None
        if request.mode == "interleaved" and (request.size or self._images.available):
            grid = self._images.grid(self._images.check_size(request.size))
            if request.guidance is not None:
                image_sampling = dataclasses.replace(image_sampling, guidance=request.guidance)
        is_caption = request.mode == "caption"
        is_greedy = request.greedy or (is_caption and request.greedy is None)
        default = GREEDY_SAMPLING if is_greedy else DEFAULT_CHAT_SAMPLING
        return TextRequest(
            prompt=self._caption(request) if is_caption else self._conversation(request),
            max_tokens=request.max_tokens,
            sampling=_override(default, request, guided=False),
            image_sampling=image_sampling,
            seed=request.seed,
            grid=grid,
            preview_every=request.preview_every,
        )

    def _caption(self, request: GenerationRequest) -> tuple[int, ...]:
        if len(request.images) != 1 or request.prompt or request.messages:
            raise DataError(
                f"images: a caption needs exactly one image and no text, got "
                f"{len(request.images)} images. For questions, use the mode 'text'."
            )
        codes = self._images.encode(request.images[0])
        return tuple(self._sequences.image_to_text_prompt(codes))

    def _conversation(self, request: GenerationRequest) -> tuple[int, ...]:
        messages: Sequence[Mapping[str, str]] = request.messages
        if not messages:
            if not request.prompt.strip():
                raise DataError("prompt: is empty, and there are no messages. Pass one of them.")
            content = IMAGE_PLACEHOLDER * len(request.images) + request.prompt.strip()
            messages = [{"role": "user", "content": content}]
        return self.chat_prompt(messages, request.images)


def _check(request: GenerationRequest) -> None:
    if request.mode not in MODES:
        raise ConfigError(f"mode: '{request.mode}' is unknown.{suggest(request.mode, MODES)}")
    check_ranges(request)
    if not all(request.stop):
        raise ConfigError("stop: expected strings that are not empty.")
    if request.prompt and request.messages:
        raise DataError("prompt: cannot be combined with messages. Pass one of them.")
    for name in ("guidance", "size") if request.mode in ("caption", "text") else ():
        if getattr(request, name) is not None:
            raise ConfigError(
                f"{name}: has no effect in the mode '{request.mode}', which generates no images. "
                "Remove it, or use 'image' or 'interleaved'."
            )


def _override(
    default: SamplingConfig, request: GenerationRequest, *, guided: bool
) -> SamplingConfig:
    """Return sampling settings with the values that the request sets."""
    names = ("temperature", "top_k", "top_p", "greedy", *(("guidance",) if guided else ()))
    given: dict[str, Any] = {name: getattr(request, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if "greedy" not in given and set(given) - {"guidance"}:
        given["greedy"] = False  # a temperature implies sampling
    return dataclasses.replace(default, **given)

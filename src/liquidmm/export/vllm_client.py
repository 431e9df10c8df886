"""A client for a vLLM engine that serves a Liquid checkpoint.

`VLLMClient` has the prompts, sizes and defaults of `liquidmm.Liquid` but does not load weights: the
checkpoint's processor creates token ids, vLLM continues them (`vllm_backends`), and the processor
and the image tokenizer convert the result to text and images. An image is returned only if both
requests of its pair returned the same tokens: all codes, followed by eoi.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from liquidmm.errors import LiquidError
from liquidmm.export.vllm_backends import Backend, Completion, CompletionRequest
from liquidmm.export.vllm_pairs import CODES, GUIDANCE, PAIR, ROLE, ROLES, SEED
from liquidmm.generate.detokenize import detokenize, stop_tokens
from liquidmm.generate.images import ImageCodec, ImageLike
from liquidmm.generate.requests import (
    GenerationRequest,
    ImageRequest,
    RequestBuilder,
    TextRequest,
    TokenRequest,
    caption_request,
    chat_request,
    image_requests,
    question_request,
)
from liquidmm.generate.sampling import GREEDY_SAMPLING, SamplingConfig, saved_sampling
from liquidmm.model.checkpoint import Checkpoint, empty_language_model, load_parts, local_folder
from liquidmm.runtime import resolve_device
from liquidmm.sequences import Turn
from liquidmm.vocabulary import Vocabulary


class VLLMClient:
    """Generates images and text with vLLM."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        """Use a checkpoint, which needs no weights; `load` reads one from a folder."""
        processor = checkpoint.processor
        self.sizes = processor.sizes
        """Trained image sizes, (width, height) in pixels, the default first; may be empty."""
        self.sampling = saved_sampling(processor.sampling, checkpoint.vocabulary.codebook_size)
        """The default sampling of images."""
        self._backend = backend
        self._vocabulary = checkpoint.vocabulary
        self._sequences = processor.sequences
        self._tokenizer = processor.tokenizer
        self._images = ImageCodec(checkpoint)
        self._builder = RequestBuilder(self._sequences, self._images, self.sampling)
        self._stop = tuple(sorted(stop_tokens(checkpoint.model, self._sequences)))

    @classmethod
    def load(
        cls, folder: str | Path, backend: Backend, image_tokenizer: Path | None = None
    ) -> VLLMClient:
        """Read a checkpoint's processor and image tokenizer, not its weights.

        Args:
            folder: The folder that vLLM serves, or owner/name on the Hugging Face hub.
            backend: The vLLM engine.
            image_tokenizer: Another image tokenizer; None uses the folder's own.

        Raises:
            CheckpointError: The folder is not a checkpoint.
        """
        path = local_folder(folder)
        processor, images = load_parts(path, resolve_device(None), image_tokenizer)
        model = empty_language_model(path)
        return cls(Checkpoint(model=model, processor=processor, image_tokenizer=images), backend)

    def generate_image(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Image.Image:
        """Generate an image; arguments as in `Liquid.generate_image`.

        Raises:
            DataError: The prompt is empty.
            ConfigError: The checkpoint was not trained on this size.
            LiquidError: vLLM cannot be reached, rejected a request, or separated a pair.
        """
        codes = self.generate_codes([prompt], size=size, seeds=[seed], sampling=sampling)
        return self._images.decode(codes[0])

    def generate_codes(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
    ) -> list[Tensor]:
        """Generate the codes of several images at once; arguments as in `Liquid.generate_codes`.

        Returns:
            Codes, (h, w), int64, in order.
        """
        requests = image_requests(prompts, size=size, seeds=seeds, sampling=sampling)
        images = [one for one in self._build(requests) if isinstance(one, ImageRequest)]
        for image in images:
            image.sampling.check_vocabulary(self._vocabulary.codebook_size, "codes in the codebook")
        pairs = [self._pair(image) for image in images]
        completions = iter(self._backend.complete([one for pair in pairs for one in pair]))
        return [
            read_codes([next(completions) for _ in pair], self._vocabulary, image.grid)
            for image, pair in zip(images, pairs, strict=True)
        ]

    def describe(self, image: ImageLike, *, max_tokens: int = 64) -> str:
        """Describe an image, as in `Liquid.describe`."""
        return self.describe_many([image], max_tokens=max_tokens)[0]

    def describe_many(self, images: Sequence[ImageLike], *, max_tokens: int = 64) -> list[str]:
        """Describe several images at once."""
        return self._texts([caption_request(image, max_tokens) for image in images])

    def ask(self, image: ImageLike, question: str, *, max_tokens: int = 128) -> str:
        """Answer a question about an image, as in `Liquid.ask`.

        Raises:
            DataError: The question is empty.
        """
        return self._texts([question_request(image, question, max_tokens)])[0]

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike] = (),
        *,
        max_tokens: int = 512,
        seed: int = 0,
        sampling: SamplingConfig = GREEDY_SAMPLING,
    ) -> str:
        """Reply to a conversation with text.

        The next image replaces each `<image>` in the `content` of a message. ``seed`` is the seed
        of vLLM's own sampler.
        """
        request = chat_request(
            messages, images, mode="text", max_tokens=max_tokens, seed=seed, sampling=sampling
        )
        return self._texts([request])[0]

    def _build(self, requests: Sequence[GenerationRequest]) -> list[TokenRequest]:
        return [built for request in requests for built in self._builder.build(request)]

    def _texts(self, requests: Sequence[GenerationRequest]) -> list[str]:
        vocabulary = self._vocabulary
        completion_requests = [
            CompletionRequest(
                prompt=request.prompt,
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                seed=request.seed,
                stop=self._stop,
                forbidden=(vocabulary.boi, vocabulary.eoi, vocabulary.unconditional),
            )
            for request in self._build(requests)
            if isinstance(request, TextRequest)
        ]
        completions = self._backend.complete(completion_requests)
        return [detokenize(self._tokenizer, completion).strip() for completion in completions]

    def _pair(self, request: ImageRequest) -> list[CompletionRequest]:
        """Return the completion requests of one image."""
        codes, name = request.grid[0] * request.grid[1], uuid.uuid4().hex
        sampling = request.sampling
        prompts: list[Sequence[int]] = [request.prompt]
        if sampling.guidance != 1:
            prompts.append(self._sequences.unconditional_prompt())
        return [
            CompletionRequest(
                prompt=tuple(ids),
                max_tokens=codes + 1,
                sampling=sampling,
                stop=(self._vocabulary.eoi, self._vocabulary.unconditional),
                extra={
                    PAIR: name,
                    ROLE: role,
                    SEED: request.seed,
                    GUIDANCE: sampling.guidance,
                    CODES: codes,
                },
            )
            for ids, role in zip(prompts, ROLES, strict=False)
        ]


def read_codes(pair: Sequence[Completion], vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
    """Read the codes of an image, (h, w), int64, from the completions of its pair.

    Args:
        pair: Both completions, or the conditional one if the guidance is 1.
        vocabulary: The checkpoint's vocabulary.
        grid: Rows and columns of codes.

    Raises:
        LiquidError: The pair was stopped, or the completions are not an image.
    """
    count, marker = grid[0] * grid[1], vocabulary.unconditional
    stopped = [one.index(marker) for one in pair if marker in one]
    if stopped:
        raise LiquidError(
            f"image: stopped after {min(stopped)} of {count} codes because vLLM separated its two "
            "requests. Start vLLM with --scheduler-cls "
            "liquidmm.export.vllm_scheduler.PairScheduler; its log has the details."
        )
    ids = torch.tensor(pair[0])
    whole = all(one == pair[0] for one in pair) and len(ids) == count + 1
    if not whole or ids[-1] != vocabulary.eoi or not vocabulary.is_image(ids[:-1]).all():
        raise LiquidError(
            f"image: vLLM did not return {count} codes. Install liquidmm in vLLM's environment, "
            "serve this checkpoint and disable speculative decoding."
        )
    return vocabulary.to_codes(ids[:-1]).view(grid)

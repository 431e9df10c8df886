"""A client for a vLLM engine that serves a Liquid checkpoint.

`VLLMClient` has the prompts, sizes and defaults of `liquidmm.Liquid` and none of the weights: the
checkpoint's processor makes token ids, vLLM continues them (`vllm_backends`), and the processor and
the image tokenizer turn the result into text and images. An image is returned only if both requests
of its pair returned the same tokens: all codes, followed by eoi.
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
from liquidmm.generate.jobs import GREEDY_SAMPLING, RequestBuilder, one_seed_each
from liquidmm.generate.pictures import ImageLike, Pictures
from liquidmm.generate.sampling import SamplingConfig, saved_sampling
from liquidmm.generate.words import stop_ids, words
from liquidmm.model.checkpoint import Checkpoint, empty_language_model, load_parts, local_folder
from liquidmm.runtime import resolve_device
from liquidmm.sequences import Turn
from liquidmm.vocabulary import Vocabulary


class VLLMClient:
    """Generates images and text with vLLM."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        """Use a loaded checkpoint, whose weights are not needed; `load` is shorter."""
        processor = checkpoint.processor
        self.sizes = processor.sizes
        """Trained image sizes, (width, height) in pixels, the default first; may be empty."""
        self.sampling = saved_sampling(processor.sampling, checkpoint.vocabulary.codebook_size)
        """The default sampling of images."""
        self._backend = backend
        self._vocabulary = checkpoint.vocabulary
        self._sequences = processor.sequences
        self._tokenizer = processor.tokenizer
        self._pictures = Pictures(checkpoint)
        self._reader = RequestBuilder(self._sequences, self._pictures, self.sampling)
        self._stop = tuple(sorted(stop_ids(checkpoint.model, self._sequences)))

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
        return self._pictures.decode(codes[0])

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
        size = self._pictures.size(size)
        grid = self._pictures.grid(size)
        sampling = sampling or self.sampling
        sampling.check_vocabulary(self._vocabulary.codebook_size, "codes of the codebook")
        requests = [
            self._pair(self._reader.picture_prompt(prompt, size), grid, seed, sampling)
            for prompt, seed in zip(prompts, one_seed_each(prompts, seeds), strict=True)
        ]
        completions = iter(self._backend.complete([one for pair in requests for one in pair]))
        return [
            read_codes([next(completions) for _ in pair], self._vocabulary, grid)
            for pair in requests
        ]

    def describe(self, image: ImageLike, *, max_tokens: int = 64) -> str:
        """Describe an image, as `Liquid.describe`."""
        return self.describe_many([image], max_tokens=max_tokens)[0]

    def describe_many(self, images: Sequence[ImageLike], *, max_tokens: int = 64) -> list[str]:
        """Describe several images at once."""
        prompts = [self._reader.caption_prompt(image) for image in images]
        return self._write(prompts, max_tokens, GREEDY_SAMPLING, 0)

    def ask(self, image: ImageLike, question: str, *, max_tokens: int = 128) -> str:
        """Answer a question about an image, as `Liquid.ask`.

        Raises:
            DataError: The question is empty.
        """
        prompt = self._reader.question_prompt([image], question)
        return self._write([prompt], max_tokens, GREEDY_SAMPLING, 0)[0]

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, str]],
        images: Sequence[ImageLike] = (),
        *,
        max_tokens: int = 512,
        seed: int = 0,
        sampling: SamplingConfig = GREEDY_SAMPLING,
    ) -> str:
        """Answer a conversation with text.

        Args:
            messages: Turns with `role` and `content`; each `<image>` stands for the next image.
            images: The images, in order.
            max_tokens: Maximum length of the text.
            seed: Seed of vLLM's own sampler.
            sampling: How text is sampled.
        """
        prompt = self._reader.chat_prompt(messages, images)
        return self._write([prompt], max_tokens, sampling, seed)[0]

    def _write(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: SamplingConfig, seed: int
    ) -> list[str]:
        vocabulary = self._vocabulary
        requests = [
            CompletionRequest(
                prompt=tuple(prompt),
                max_tokens=max_tokens,
                sampling=sampling,
                seed=seed,
                stop=self._stop,
                forbidden=(vocabulary.boi, vocabulary.eoi, vocabulary.unconditional),
            )
            for prompt in prompts
        ]
        completions = self._backend.complete(requests)
        return [words(self._tokenizer, completion.ids).strip() for completion in completions]

    def _pair(
        self, prompt: Sequence[int], grid: tuple[int, int], seed: int, sampling: SamplingConfig
    ) -> list[CompletionRequest]:
        """Return the requests of one image."""
        codes, name = grid[0] * grid[1], uuid.uuid4().hex
        prompts = [prompt]
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
                    SEED: seed,
                    GUIDANCE: sampling.guidance,
                    CODES: codes,
                },
            )
            for ids, role in zip(prompts, ROLES, strict=False)
        ]


def read_codes(pair: Sequence[Completion], vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
    """Read the codes of an image from the completions of its pair.

    Args:
        pair: Both completions, or the conditional one if the guidance is 1.
        vocabulary: The checkpoint's vocabulary.
        grid: Rows and columns of codes.

    Returns:
        Codes, (h, w), int64.

    Raises:
        LiquidError: The pair was stopped, or the completions are not an image.
    """
    count, marker = grid[0] * grid[1], vocabulary.unconditional
    stopped = [one.ids.index(marker) for one in pair if marker in one.ids]
    if stopped:
        raise LiquidError(
            f"image: stopped after {min(stopped)} of {count} codes because vLLM separated its two "
            "requests. Start vLLM with --scheduler-cls "
            "liquidmm.export.vllm_scheduler.PairScheduler; its log has the details."
        )
    ids = torch.tensor(pair[0].ids)
    whole = all(one.ids == pair[0].ids for one in pair) and len(ids) == count + 1
    if not whole or ids[-1] != vocabulary.eoi or not vocabulary.is_image(ids[:-1]).all():
        raise LiquidError(
            f"image: vLLM did not return {count} codes. Install liquidmm in vLLM's environment, "
            "serve this checkpoint and leave speculative decoding off."
        )
    return vocabulary.to_codes(ids[:-1]).view(grid)

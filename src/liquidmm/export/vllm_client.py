"""Pictures and words from a vLLM that serves a Liquid checkpoint.

Contract: `VLLMClient` has the prompts, sizes and defaults of `liquidmm.Liquid` and none of the
weights: the checkpoint's processor makes ids, vLLM continues them (`vllm_backends`), and processor
and image tokenizer make words and pictures of the ids that come back. A picture is returned only if
it is one: the ids of both halves are the same, all of them codes, and eoi follows the last one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from liquidmm.errors import LiquidError
from liquidmm.export.pairs import CODES, GUIDANCE, PAIR, ROLE, ROLES, SEED
from liquidmm.export.vllm_backends import Answer, Backend, Completion
from liquidmm.generate.jobs import GREEDY_SAMPLING, RequestBuilder, one_seed_each
from liquidmm.generate.pictures import ImageLike, Pictures
from liquidmm.generate.sampling import SamplingConfig, saved_sampling
from liquidmm.generate.words import stop_ids, words
from liquidmm.model.checkpoint import Checkpoint, empty_language_model, load_parts, local_folder
from liquidmm.runtime import resolve_device
from liquidmm.sequences import Turn
from liquidmm.vocabulary import Vocabulary


class VLLMClient:
    """Draws, describes and answers through a vLLM."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        """Put the parts together; `load` is shorter.

        Args:
            checkpoint: What vLLM serves; its weights aren't used.
            backend: The vLLM.
        """
        processor = checkpoint.processor
        self.sizes = processor.sizes
        """Trained picture sizes, (width, height) in pixels, the default first; maybe none."""
        self.sampling = saved_sampling(processor.sampling, checkpoint.vocabulary.codebook_size)
        """How pictures are drawn unless told otherwise."""
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
            backend: The vLLM.
            image_tokenizer: Another image tokenizer; None takes the folder's own.

        Raises:
            CheckpointError: The folder is no checkpoint.
        """
        path = local_folder(folder)
        processor, images = load_parts(path, resolve_device(None), image_tokenizer)
        model = empty_language_model(path)
        return cls(Checkpoint(model=model, processor=processor, image_tokenizer=images), backend)

    def draw(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Image.Image:
        """Draw a picture; arguments as in `Liquid.draw`.

        Raises:
            DataError: The prompt is empty.
            ConfigError: The size was not trained.
            LiquidError: vLLM refused, can't be reached, or ran the halves apart.
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
        """Draw the codes of several pictures at once; arguments as in `Liquid.generate_codes`.

        Returns:
            Codes, (h, w), int64, in order.
        """
        size = self._pictures.size(size)
        grid = self._pictures.grid(size)
        sampling = sampling or self.sampling
        sampling.check_vocabulary(self._vocabulary.codebook_size, "codes of the codebook")
        requests = [
            self._halves(
                self._reader.picture_prompt(prompt, size),
                grid,
                seed,
                sampling,
            )
            for prompt, seed in zip(prompts, one_seed_each(prompts, seeds), strict=True)
        ]
        answers = iter(self._backend.complete([half for pair in requests for half in pair]))
        return [
            read_picture([next(answers) for _ in pair], self._vocabulary, grid) for pair in requests
        ]

    def describe(self, image: ImageLike, *, max_tokens: int = 64) -> str:
        """Say in words what a picture shows; as `Liquid.describe`."""
        return self.describe_many([image], max_tokens=max_tokens)[0]

    def describe_many(self, images: Sequence[ImageLike], *, max_tokens: int = 64) -> list[str]:
        """Describe several pictures at once."""
        prompts = [self._reader.caption_prompt(image) for image in images]
        return self._write(prompts, max_tokens, GREEDY_SAMPLING, 0)

    def ask(self, image: ImageLike, question: str, *, max_tokens: int = 128) -> str:
        """Answer a question about a picture; as `Liquid.ask`.

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
        """Answer a conversation in words.

        Args:
            messages: Turns with `role` and `content`; each `<image>` stands for the next picture.
            images: The pictures, in order.
            max_tokens: Length of the text at most.
            seed: Seed of the random numbers; vLLM draws text itself.
            sampling: How text is drawn.

        Returns:
            The answer.
        """
        prompt = self._reader.chat_prompt(messages, images)
        return self._write([prompt], max_tokens, sampling, seed)[0]

    def _write(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: SamplingConfig, seed: int
    ) -> list[str]:
        markers = self._vocabulary
        requests = [
            Completion(
                prompt=tuple(prompt),
                max_tokens=max_tokens,
                sampling=sampling,
                seed=seed,
                stop=self._stop,
                forbidden=(markers.boi, markers.eoi, markers.unconditional),
            )
            for prompt in prompts
        ]
        answers = self._backend.complete(requests)
        return [words(self._tokenizer, answer.ids).strip() for answer in answers]

    def _halves(
        self, prompt: Sequence[int], grid: tuple[int, int], seed: int, sampling: SamplingConfig
    ) -> list[Completion]:
        """Make the requests of one picture."""
        codes, name = grid[0] * grid[1], uuid.uuid4().hex
        prompts = [prompt]
        if sampling.guidance != 1:
            prompts.append(self._sequences.unconditional_prompt())
        return [
            Completion(
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


def read_picture(halves: Sequence[Answer], vocabulary: Vocabulary, grid: tuple[int, int]) -> Tensor:
    """Turn what came back for the halves of a picture into its codes.

    Args:
        halves: Both answers, or the conditional one where the guidance is 1.
        vocabulary: The checkpoint's.
        grid: Rows and columns of codes.

    Returns:
        Codes, (h, w), int64.

    Raises:
        LiquidError: The halves were stopped, or what came back is no picture.
    """
    count, marker = grid[0] * grid[1], vocabulary.unconditional
    stopped = [half.ids.index(marker) for half in halves if marker in half.ids]
    if stopped:
        raise LiquidError(
            f"picture: stopped after {min(stopped)} of {count} codes, vLLM ran its halves apart. "
            "Start vLLM with --scheduler-cls liquidmm.export.vllm_scheduler.PairScheduler; "
            "its log says more."
        )
    ids = torch.tensor(halves[0].ids)
    whole = all(half.ids == halves[0].ids for half in halves) and len(ids) == count + 1
    if not whole or ids[-1] != vocabulary.eoi or not vocabulary.is_image(ids[:-1]).all():
        raise LiquidError(
            f"picture: vLLM's ids are no picture of {count} codes. Install liquidmm beside vLLM, "
            "serve this checkpoint and leave speculative decoding off."
        )
    return vocabulary.to_codes(ids[:-1]).view(grid)

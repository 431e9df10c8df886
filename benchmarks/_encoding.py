"""Images to codes: `liquid encode` without its start, against the reference implementation.

Both candidates open, resize and encode the same files with the same weights, over and over. The
reference encodes one image at a time in float32, in one process with all cores. Ours encodes chunks
in as many processes as `liquid encode` would use, and writes a shard for each chunk.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from _harness import Candidate, Comparison, Pacer, compare
from _results import Result, progress
from liquidmm.data.readers import Chunk, SourceConfig, list_chunks, read_chunk
from liquidmm.data.shard_writer import write_shard
from liquidmm.encode import EncoderConfig, ImageTransform, TokenizerFile
from liquidmm.encode.chunk_encoder import ChunkEncoder
from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.images import center_crop, open_image, to_tensor
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer, load_image_tokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.runtime import cpu_count, tune_cpu_allocator
from liquidmm.train.flops import peak_of

MODELS = ("large", "small")
PRECISIONS = ("float32", "tf32", "bfloat16")
H100_SHARE = 0.3
"""Assumed share of an H100's dense bfloat16 peak, for the extrapolation."""
PAPER_IMAGES = 30_000_000
_DAY = 86_400.0
_COMPARED_IMAGES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingSizes:
    """What is encoded."""

    seconds: float
    """Time of each comparison."""
    models: tuple[str, ...] = MODELS
    precisions: tuple[str, ...] = ("float32",)
    """Precisions of our encoding, each a candidate."""
    workers: int = 0
    """Processes of our encoding; 0: one per core on a CPU, one on a GPU."""
    photo: tuple[int, int] = (1024, 768)
    """Width and height of the JPEG files for the large model; the small one gets PNG files of its
    own size, like icons."""
    shape: VQGANConfig = field(default_factory=VQGANConfig)
    """The large model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingTask:
    """Images to encode, and how our candidate does it."""

    tokenizer: TokenizerFile
    source: SourceConfig
    chunks: tuple[Chunk, ...]
    """The source in chunks, one shard each."""
    size: int
    """Side of the resized image in pixels."""
    out: Path
    """Where our candidate writes shards."""
    workers: int
    """Processes of our candidate."""
    decode_threads: int
    """Threads that open images, in each process."""


def measure_encoding(result: Result, sizes: EncodingSizes, checkpoint: Path, device: str) -> None:
    """Measure the models one after the other.

    Raises:
        CheckpointError: The image tokenizer cannot be loaded.
    """
    for model in sizes.models:
        with tempfile.TemporaryDirectory(prefix="liquid-bench-") as name:
            path = checkpoint / "image_tokenizer"
            if model == "large":
                path = Path(name) / "tokenizer"
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    VQGANTokenizer(VQGAN(sizes.shape, decoder=False)).save(path)
            tokenizer = TokenizerFile(path=path, device=device)
            _EncodingBenchmark(result, sizes, model, tokenizer, Path(name)).run()


class _EncodingBenchmark:
    """The comparison with one tokenizer, in a separate folder."""

    def __init__(
        self,
        result: Result,
        sizes: EncodingSizes,
        model: str,
        tokenizer: TokenizerFile,
        folder: Path,
    ) -> None:
        self.result = result
        self.sizes = sizes
        self.model = model
        self.config = load_image_tokenizer(tokenizer.path).model.config
        side = self.config.resolution
        on_cpu = tokenizer.device == "cpu"
        workers = sizes.workers or (cpu_count() if on_cpu else 1)
        # The large model takes seconds per image on a CPU, the small one 0.1 s per batch.
        records = 1 if on_cpu and model == "large" else 64
        photo = sizes.photo if model == "large" else (side, side)
        self.files = write_images(folder / "images", records * workers * 4, photo)
        source = SourceConfig(path=str(folder / "images" / "records.jsonl"))
        self.task = EncodingTask(
            tokenizer=tokenizer,
            source=source,
            chunks=tuple(list_chunks(source, records)),
            size=side,
            out=folder / "shards",
            workers=workers,
            decode_threads=1 if on_cpu else max(1, cpu_count() - 1),
        )

    def run(self) -> None:
        """Compare the codes, then the speed."""
        self._compare_codes()
        progress(f"encoding with the {self.model} tokenizer, interleaved")
        candidates: dict[str, Candidate] = {
            precision: partial(encode_ours, self._with_precision(precision))
            for precision in self.sizes.precisions
        }
        candidates["release"] = partial(
            encode_reference, self.files, self.task.size, self.task.tokenizer
        )
        device = str(self.task.tokenizer.device)
        compared = compare(candidates, device, seconds=self.sizes.seconds, rounds=12, warmup=1)
        self._report(compared)

    def _with_precision(self, precision: str) -> EncodingTask:
        changes: dict[str, Any] = {"precision": precision}
        tokenizer = replace(self.task.tokenizer, **changes)
        return replace(self.task, tokenizer=tokenizer, out=self.task.out / precision)

    def _compare_codes(self) -> None:
        """Compare the codes of some images with those of the reference."""
        loaded, side = self.task.tokenizer(), self.config.resolution
        images = [center_crop(open_image(file), side, side) for file in self.files]
        pixels = torch.stack([to_tensor(image) for image in images[:_COMPARED_IMAGES]])
        pixels = pixels.to(loaded.device)
        encode = stock_encoder(loaded) or loaded.model.encode
        with torch.no_grad():
            expected = torch.stack([encode(image[None]).flatten() for image in pixels]).cpu()
        for precision in self.sizes.precisions:
            figure = f"encode_agreement_{self.model}{_suffix(precision)}"
            try:
                ours = self._with_precision(precision).tokenizer()
                codes = ours.encode(pixels).flatten(1).cpu()
            except ConfigError as error:
                self.result.skip(figure, str(error))
                continue
            share = 100 * (codes == expected).float().mean().item()
            self.result.add(figure, share, "%", "codes equal to those of the reference")

    def _report(self, compared: Comparison) -> None:
        size, workers = self.config.resolution, self.task.workers
        for name in (*self.sizes.precisions, "release"):
            is_reference = name == "release"
            figure = f"{'release' if is_reference else 'encode'}_images_per_s_{self.model}"
            figure += "" if is_reference else _suffix(name)
            rate, reason = compared.rate(name, "images"), compared.failures.get(name, "")
            self.result.add_or_skip(figure, rate, "images/s", reason)
            note = f"{size} px, {workers} processes, {name}"
            if is_reference:
                stock = stock_encoder(self.task.tokenizer()) is not None
                note = f"{size} px, one at a time, {'ChameleonVQVAE' if stock else 'our modules'}"
            self.result.notes[figure] = note
        rates = compared.rate("float32", "images"), compared.rate("release", "images")
        self.result.add_ratio(f"encode_speedup_{self.model}", *rates, note="both in float32")
        flops = encoder_flops(self.config)
        self.result.settings[f"encoding_{self.model}"] = {
            "size": size,
            "gigaflops_per_image": round(flops / 1e9, 2),
            "workers": workers,
            "decode_threads": self.task.decode_threads,
            "rounds": min((len(found) for found in compared.rounds.values()), default=0),
        }
        if self.model == "large":
            extrapolate(self.result, flops)


def _suffix(precision: str) -> str:
    return "" if precision == "float32" else f"_{precision}"


def encode_ours(task: EncodingTask, pacer: Pacer) -> None:
    """Encode one chunk per worker and step, as `liquid encode` does; counts images."""
    with ExitStack() as stack:
        run: Callable[..., Any] = map
        if task.workers > 1:
            context: Any = get_context("fork")  # nothing has started a thread here
            run = stack.enter_context(ProcessPoolExecutor(task.workers, context)).map
        for step in count():
            if not pacer.wait():
                return
            first = step * task.workers
            numbers = range(first, first + task.workers)
            pacer.count(images=sum(run(partial(_encode_chunk, task), numbers)))


def _encode_chunk(task: EncodingTask, number: int) -> int:
    """Encode a chunk and write its shard; return the number of images."""
    tokenizer, encoder = _open_encoder(task)
    chunk = task.chunks[number % len(task.chunks)]
    found = read_chunk(task.source, chunk)
    samples, rejected = encoder.encode(found, task.source.paths[0], lambda _: None)
    write_shard(task.out, number, chunk.name, samples, rejected, tokenizer.codebook_size)
    return len(samples)


@cache
def _open_encoder(task: EncodingTask) -> tuple[VQGANTokenizer, ChunkEncoder]:
    """Prepare a process; its threads end with it."""
    tune_cpu_allocator()
    torch.set_num_threads(1)
    tokenizer = task.tokenizer()
    config = EncoderConfig(resolution=task.size)
    transform = ImageTransform(config, tokenizer.downsample_factor)
    return tokenizer, ChunkEncoder(tokenizer, transform, config.batch_size, task.decode_threads)


def extrapolate(result: Result, flops: float) -> None:
    """Extrapolate the speed of an H100 from the operations of an image."""
    peak = peak_of("H100", torch.bfloat16)
    assert peak is not None, "the table has an H100"
    speed = H100_SHARE * peak / flops
    note = (
        f"extrapolated, not measured: {flops / 1e9:.0f} GFLOP per image at an assumed "
        f"{H100_SHARE:.0%} of {peak / 1e12:.0f} TFLOP/s in bfloat16"
    )
    result.add("h100_images_per_s_extrapolated", speed, "images/s", note)
    result.add("h100_days_for_30m_extrapolated", PAPER_IMAGES / speed / _DAY, "days", note)


def encoder_flops(config: VQGANConfig) -> float:
    """Count the operations of encoding one image, without running them."""
    side = config.resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VQGAN(config, decoder=False).encode(torch.empty(1, config.in_channels, side, side))
    return float(counter.get_total_flops())


def write_images(folder: Path, number: int, size: tuple[int, int]) -> tuple[Path, ...]:
    """Write images with large shapes and fine grain, and a records.jsonl.

    Args:
        folder: A new folder.
        number: Number of images.
        size: Width and height; PNG up to 128 pixels, JPEG above.

    Returns:
        The image files.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    suffix = "png" if max(size) <= 128 else "jpg"
    files = []
    for index in range(number):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        shapes = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (size[1], size[0], 3))
        pixels = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{index:05d}.{suffix}")
        Image.fromarray(pixels).save(files[-1], quality=90)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for path in files:
            file.write(json.dumps({"image": path.name, "caption": "an image"}) + "\n")
    return tuple(files)


def encode_reference(
    files: Sequence[Path], size: int, open_tokenizer: Callable[[], VQGANTokenizer], pacer: Pacer
) -> None:
    """Encode one image per step, in a square of ``size`` pixels; counts images."""
    tokenizer = open_tokenizer()
    encode = stock_encoder(tokenizer) or tokenizer.model.encode
    with torch.no_grad():
        for file in cycle(files):
            if not pacer.wait():
                return
            image = center_crop(open_image(file), size, size)
            encode(to_tensor(image)[None].to(pacer.device)).flatten().tolist()
            pacer.count(images=1)


def stock_encoder(tokenizer: VQGANTokenizer) -> Callable[[Tensor], Tensor] | None:
    """Return transformers' own encoder with the tokenizer's weights, on its device.

    None if transformers cannot build this shape: it always normalizes in 32 groups.
    """
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = tokenizer.model.config
    if config.norm_groups != 32 or config.base_channels % 32:
        return None
    shape = ChameleonVQVAEConfig(
        embed_dim=config.code_dim,
        num_embeddings=config.codebook_size,
        resolution=config.resolution,
        in_channels=config.in_channels,
        base_channels=config.base_channels,
        channel_multiplier=list(config.channel_multipliers),
        num_res_blocks=config.num_res_blocks,
        latent_channels=config.latent_channels,
        attn_resolutions=list(config.attention_resolutions) or None,
    )
    model: Any = ChameleonVQVAE(shape)
    state = tokenizer.model.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.to(tokenizer.device).eval()
    return lambda pixels: model.encode(pixels).image_tokens

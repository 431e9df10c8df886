"""Pictures to codes a second: our encoding beside the release's way, on the same files and weights.

Contract: the sides take turns, and their codes are compared. Start-up is left out. What an H100
would do is an extrapolation from operations and a stated share of its peak, and says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from liquidmm.bench.encoding_sides import Task, our_side, release_side, stock_encoder
from liquidmm.bench.report import Result
from liquidmm.bench.worker import Lap, Worker, alternate, median_rate
from liquidmm.data.readers import SourceConfig, list_chunks
from liquidmm.encode import TokenizerFile
from liquidmm.errors import ConfigError, suggest
from liquidmm.image_tokenizer.images import center_crop, open_image, to_tensor
from liquidmm.image_tokenizer.tokenizer import Precision, VQGANTokenizer, load_image_tokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.runtime import cpu_count, resolve_device
from liquidmm.train.flops import peak_of

MODELS = ("large", "small")
"""Chameleon's VQGAN at 512 px with random weights; the checkpoint's own tokenizer at its size."""
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
"""Types that our side may compute in."""
H100_SHARE = 0.3
"""Share of an H100's dense bfloat16 peak that the extrapolation takes for reached: assumed."""
CORPUS = 30_000_000
"""Pictures of the paper."""
_ROUNDS = 12
_DAY = 86_400.0
_COMPARED = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingSizes:
    """What is encoded."""

    seconds: float = 90.0
    """Time of each comparison, about."""
    models: tuple[str, ...] = MODELS
    """Which of `MODELS` are measured."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Types that our side computes in, each a side of its own."""
    workers: int = 0
    """Processes of our side; 0: one per core, on a GPU one."""
    photo: tuple[int, int] = (1024, 768)
    """Width and height of the JPEG files for the large model; the small one gets PNG files of its
    own size, as icons are."""
    shape: VQGANConfig = field(default_factory=VQGANConfig)
    """The large model."""

    def __post_init__(self) -> None:
        """Check ranges and names."""
        if not self.seconds > 0:
            raise ConfigError(f"encoding seconds: must be above 0 ({self.seconds}).")
        for name, known, given in (
            ("models", MODELS, self.models),
            ("precisions", PRECISIONS, self.precisions),
        ):
            for value in given:
                if value not in known:
                    raise ConfigError(f"--{name}: '{value}' is unknown.{suggest(value, known)}")


def measure_encoding(
    result: Result,
    sizes: EncodingSizes,
    checkpoint: Path,
    device: str | None,
    progress: Callable[[str], None],
) -> None:
    """Measure the models one after the other.

    Args:
        result: Where figures go, or the reasons why there are none.
        sizes: What is encoded.
        checkpoint: Whose image tokenizer is the small model.
        device: Where; None takes the best there is.
        progress: Told what is being done.

    Raises:
        CheckpointError: The image tokenizer can't be loaded.
    """
    for model in sizes.models:
        with tempfile.TemporaryDirectory(prefix="liquid-bench-") as name:
            measured = _Encoding(result, sizes, model, str(resolve_device(device)), Path(name))
            measured.make(checkpoint)
            progress(f"encoding with the {model} tokenizer: by turns with the release's way")
            measured.measure()


class _Encoding:
    """The comparison of one model, in a folder of its own."""

    def __init__(
        self, result: Result, sizes: EncodingSizes, model: str, device: str, folder: Path
    ) -> None:
        self.result = result
        self.sizes = sizes
        self.model = model
        self.device = device
        self.folder = folder

    def make(self, checkpoint: Path) -> None:
        """Write pictures, and the tokenizer where it is random."""
        path = checkpoint / "image_tokenizer"
        if self.model == "large":
            path = self.folder / "tokenizer"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                VQGANTokenizer(VQGAN(self.sizes.shape, decoder=False)).save(path)
        config = load_image_tokenizer(path).model.config
        side = config.resolution
        cpu = self.device == "cpu"
        workers = self.sizes.workers or (cpu_count() if cpu else 1)
        # a picture of the large model takes seconds on a CPU, a batch of the small one 0.1
        records = 1 if cpu and self.model == "large" else 64
        photo = self.sizes.photo if self.model == "large" else (side, side)
        files = write_pictures(self.folder / "pictures", records * workers * 4, photo)
        source = SourceConfig(path=str(self.folder / "pictures/records.jsonl"))
        self.config = config
        self.task = Task(
            tokenizer=TokenizerFile(path=path, device=self.device),
            source=source,
            parts=tuple(list_chunks(source, records)),
            files=files,
            size=side,
            out=self.folder / "shards",
            workers=workers,
            decoders=1 if cpu else max(1, cpu_count() - 1),
        )

    def measure(self) -> None:
        """Compare codes, then let the sides take turns."""
        self._compare_codes()
        sides = {
            precision: replace(
                self.task,
                tokenizer=replace(self.task.tokenizer, precision=precision),
                out=self.folder / precision,
            )
            for precision in self.sizes.precisions
        }
        with ExitStack() as stack:
            workers: dict[str, Worker] = {
                name: stack.enter_context(Worker(our_side, self.device, task))
                for name, task in sides.items()
            }
            workers["release"] = stack.enter_context(Worker(release_side, self.device, self.task))
            laps, ended = alternate(workers, seconds=self.sizes.seconds, rounds=_ROUNDS, warm=1)
        self._report(laps, ended)

    def extrapolate(self, flops: float) -> None:
        """Say what an H100 would do, from the operations of a picture."""
        peak = peak_of("H100", torch.bfloat16)
        assert peak is not None, "the table has an H100"
        speed = H100_SHARE * peak / flops
        note = (
            f"extrapolated, not measured: {flops / 1e9:.0f} GFLOP a picture at an assumed "
            f"{H100_SHARE:.0%} of {peak / 1e12:.0f} TFLOP/s in bfloat16"
        )
        self.result.number("h100_images_per_s_extrapolated", speed, "images/s", note)
        self.result.number("h100_days_for_30m_extrapolated", CORPUS / speed / _DAY, "days", note)

    def _report(self, laps: dict[str, list[Lap]], ended: dict[str, str]) -> None:
        rates = {name: median_rate(found, "pictures") for name, found in laps.items()}
        for name in (*self.sizes.precisions, "release"):
            figure = f"{'release' if name == 'release' else 'encode'}_images_per_s_{self.model}"
            figure += "" if name in ("release", "float32") else f"_{name}"
            if name in ended:
                self.result.lacks(figure, ended[name])
            else:
                self.result.number(figure, rates[name], "images/s", self._note(name))
        speedup = f"encode_speedup_{self.model}"
        if {"float32", "release"} <= rates.keys():
            self.result.number(speedup, rates["float32"] / rates["release"], "x", "both in float32")
        else:
            self.result.lacks(speedup, "one of its two speeds is missing")
        flops = flops_of(self.config)
        self.result.settings[f"encoding_{self.model}"] = {
            "size": self.config.resolution,
            "gigaflops_a_picture": round(flops / 1e9, 2),
            "workers": self.task.workers,
            "decoders": self.task.decoders,
            "rounds": min((len(found) for found in laps.values()), default=0),
        }
        if self.model == "large":
            self.extrapolate(flops)

    def _note(self, name: str) -> str:
        size = self.config.resolution
        if name != "release":
            return f"{size} px, {self.task.workers} processes, {name}"
        stock = stock_encoder(self.task.tokenizer()) is not None
        return f"{size} px, one at a time, {'ChameleonVQVAE' if stock else 'our own modules'}"

    def _compare_codes(self) -> None:
        """Compare codes of some pictures with those of the release's side."""
        tokenizer = self.task.tokenizer()
        side = self.config.resolution
        images = [center_crop(open_image(file), side, side) for file in self.task.files[:_COMPARED]]
        pixels = torch.stack([to_tensor(image) for image in images]).to(tokenizer.device)
        encode = stock_encoder(tokenizer) or tokenizer.model.encode
        with torch.no_grad():
            wanted = torch.stack([encode(picture[None]).flatten() for picture in pixels]).cpu()
        for precision in self.sizes.precisions:
            try:
                ours = replace(self.task.tokenizer, precision=precision)()
                codes = ours.encode(pixels).flatten(1).cpu()
            except ConfigError as error:
                self.result.lacks(f"encode_agreement_{self.model}_{precision}", str(error))
                continue
            name = f"encode_agreement_{self.model}"
            name += "" if precision == "float32" else f"_{precision}"
            share = 100 * (codes == wanted).float().mean().item()
            self.result.number(name, share, "%", "codes that are those of the release's side")


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> tuple[Path, ...]:
    """Write pictures with large shapes and fine grain, and a file of records that names them.

    Args:
        folder: A new folder.
        count: How many.
        size: Width and height; PNG up to 128 pixels, JPEG above.

    Returns:
        The pictures.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    suffix = "png" if max(size) <= 128 else "jpg"
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        shapes = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (size[1], size[0], 3))
        pixels = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{number:05d}.{suffix}")
        Image.fromarray(pixels).save(files[-1], quality=90)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for path in files:
            file.write(json.dumps({"image": path.name, "caption": "a picture"}) + "\n")
    return tuple(files)


def flops_of(config: VQGANConfig) -> float:
    """Count the operations that encoding one picture takes, without running it."""
    side = config.resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VQGAN(config, decoder=False).encode(torch.empty(1, config.in_channels, side, side))
    return float(counter.get_total_flops())

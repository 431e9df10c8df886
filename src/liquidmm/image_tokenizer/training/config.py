"""The run file of ``liquid train-tokenizer``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.vqgan import VQGANConfig
from liquidmm.ranges import RangeChecked, check_ranges

Part = Literal["encoder", "codebook", "decoder"]
Weight = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDataConfig:
    """The training images and how they are resized and augmented."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "validation_splits": "eval_splits",
        "validation_fraction": "eval_fraction",
        "validation_images": "eval_samples",
        "size": "resolution",
        "prepare": "resize",
    }

    images: tuple[Path, ...]
    """Image folders, including subfolders, and ``.jsonl`` files in which each line has ``image``, a
    path relative to the file."""
    splits: tuple[str, ...] = ()
    """Values of ``split`` to train on; if empty, all except ``eval_splits``."""
    eval_splits: tuple[str, ...] = ()
    """Values of ``split`` to evaluate on; if empty, ``eval_fraction`` applies."""
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.02
    """Fraction of the training images to hold out if ``eval_splits`` is empty."""
    eval_samples: Annotated[int, Ge(0)] = 256
    """Maximum number of images per evaluation."""
    resolution: Annotated[int, Ge(1)] = 64
    """Width and height in pixels that images are resized to."""
    resize: Literal["crop", "pad"] = "crop"
    """Crop the central square, or pad to a white square."""
    shift: Annotated[int, Ge(0)] = 0
    """Maximum random shift in pixels in each direction, filled with white; 0 disables it."""
    flip: bool = False
    """Mirror half of the images; off by default because it reverses letters."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.shift >= self.resolution:
            raise ConfigError(
                f"shift: expected less than the resolution {self.resolution}, got {self.shift}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLossConfig:
    """The reconstruction losses; a weight of 0 disables a loss."""

    l1: Weight = 1.0
    """Weight of the mean absolute error on [-1, 1] pixels."""
    l2: Weight = 1.0
    """Weight of the mean squared error."""
    edges: Weight = 0.0
    """Weight of the mean absolute error of differences between adjacent pixels, which sharpens
    outlines at almost no cost."""
    chroma: Weight = 0.0
    """Weight of the mean absolute error of the color without the brightness. Brightness dominates
    the other errors, so without this loss, short runs learn hues late."""
    commitment: Weight = 0.25
    """Weight of the commitment loss, which pulls the latents toward their codebook vectors."""
    lpips: Weight = 0.0
    """Weight of the perceptual distance; requires ``vgg16``."""
    vgg16: Path | None = None
    """Weights of torchvision's VGG16 (``features.0.weight`` ...), safetensors or a torch pickle."""
    lpips_linear: Path | None = None
    """LPIPS's channel weights for VGG (``lin0.model.1.weight`` ...); None weights all equally."""
    adversarial: Weight = 0.0
    """Weight of the patch discriminator, multiplied by taming's adaptive weight."""
    adversarial_start: Annotated[int, Ge(0)] = 0
    """Step at which the discriminator starts."""
    discriminator_channels: Annotated[int, Ge(1)] = 64
    """Width of the first layer of the discriminator."""
    discriminator_layers: Annotated[int, Ge(0)] = 3
    """Number of layers after the first; each except the last halves width and height."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lpips and self.vgg16 is None:
            raise ConfigError(
                "vgg16: lpips needs the path of torchvision's vgg16-397923af.pth (BSD-3-Clause). "
                "Download it and set vgg16, or set lpips = 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookConfig(RangeChecked):
    """How to learn the codebook: by moving averages of the latents assigned to each code."""

    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps of plain autoencoding before the codebook is created."""
    samples: Annotated[int, Ge(1)] = 65536
    """Number of latents for the k-means that creates the codebook."""
    kmeans_iterations: Annotated[int, Ge(0)] = 10
    """Iterations of k-means; 0 uses random latents."""
    decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Decay of the moving averages per step."""
    restart_after: Annotated[int, Ge(0)] = 200
    """Steps after which an unused code is moved to a current latent; 0 means never."""
    restart_until: Annotated[float, Ge(0), Le(1)] = 0.8
    """Fraction of all steps after which codes are no longer moved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerLoopConfig(RangeChecked):
    """Length, optimizer, logging and checkpoints."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr",
        "clip": "grad_clip",
        "validate_every": "eval_every",
        "checkpoint_every": "save_every",
    }

    steps: Annotated[int, Ge(1)]
    """Optimizer steps in total."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Images per step."""
    lr: Annotated[float, Gt(0)] = 4e-4
    """Peak learning rate; after a linear warmup, a cosine decays it to a twentieth."""
    warmup_steps: Annotated[int, Ge(0)] = 50
    """Steps of linear warmup of the learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """AdamW weight decay for the convolution weights."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.99)
    """AdamW's betas."""
    grad_clip: Annotated[float, Ge(0)] = 1.0
    """Maximum gradient norm; 0 means no limit."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of the averaged weights, which are evaluated and saved; 0 saves the raw weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """dtype of the convolutions (autocast); weights and losses stay float32."""
    seed: int = 0
    """Random seed for the initial weights, the image order, shifts and restarts."""
    device: str | None = None
    """cpu, cuda or mps; None chooses the fastest."""
    threads: Annotated[int, Ge(0)] = 0
    """CPU threads; 0 uses PyTorch's default."""
    log_every: Annotated[int, Ge(1)] = 20
    """Steps between lines in metrics.jsonl."""
    eval_every: Annotated[int, Ge(0)] = 500
    """Steps between evaluations; 0 evaluates only at the end."""
    sample_every: Annotated[int, Ge(0)] = 500
    """Steps between sample reconstructions; 0 writes them only at the end."""
    save_every: Annotated[int, Ge(0)] = 500
    """Steps between checkpoints; 0 saves only at the end or when stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTokenizerConfig:
    """The training of an image tokenizer."""

    RENAMED: ClassVar[Mapping[str, str]] = {"storage": "save_dtype"}

    out: Path
    """Output folder: tokenizer/, metrics.jsonl, samples/ and the checkpoint."""
    data: ImageDataConfig
    """The images."""
    train: TokenizerLoopConfig
    """Length, optimizer, logging and checkpoints."""
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    """Shape of the model; must equal that of ``init_from``, if given."""
    loss: ImageLossConfig = field(default_factory=ImageLossConfig)
    """The losses."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    """How to learn the codebook."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the saved weights."""
    init_from: Path | None = None
    """An existing tokenizer to start from, in any supported format."""
    freeze: tuple[Part, ...] = ()
    """Parts to freeze. ["encoder", "codebook"] trains only the decoder, so the codes of every image
    stay the same."""

    def __post_init__(self) -> None:
        factor = self.vqgan.downsample_factor
        if self.data.resolution % factor:
            raise ConfigError(
                f"data.resolution: expected a multiple of the downsampling factor {factor}, got "
                f"{self.data.resolution}. Change it or vqgan.channel_multipliers."
            )
        if self.freeze and self.init_from is None:
            raise ConfigError(
                f"freeze: {list(self.freeze)} without init_from would keep random weights. Set "
                "init_from."
            )
        warmup_steps = self.codebook.warmup_steps
        if "codebook" in self.freeze and warmup_steps:
            raise ConfigError(
                "codebook.warmup_steps: creates a new codebook, but freeze keeps the old one. "
                "Remove one of them."
            )
        if not self.init_from and not warmup_steps:
            raise ConfigError(
                "codebook.warmup_steps: expected at least 1 for a new tokenizer, whose codebook is "
                "created from its latents, got 0. A tenth of train.steps works well."
            )
        if warmup_steps >= self.train.steps:
            raise ConfigError(
                f"codebook.warmup_steps: expected less than train.steps {self.train.steps}, got "
                f"{warmup_steps}."
            )

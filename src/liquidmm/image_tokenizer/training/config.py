"""The run file of ``liquid train-tokenizer``.

Contract: these dataclasses are the whole run file; every default is here and nowhere else.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from liquidmm.errors import ConfigError
from liquidmm.image_tokenizer.vqgan import VQGANConfig

Part = Literal["encoder", "codebook", "decoder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDataConfig:
    """Which pictures are learned from, and how they are prepared."""

    images: tuple[Path, ...]
    """Folders of pictures, searched below too, and ``.jsonl`` files whose lines have ``image``: a
    path relative to that file. Relative to the working directory."""
    splits: tuple[str, ...] = ()
    """Values of ``split`` of the lines to train on; empty means all that are not held out."""
    validation_splits: tuple[str, ...] = ()
    """Values of ``split`` of the lines to validate on; empty means take ``validation_fraction``."""
    validation_fraction: float = 0.02
    """Share of the training pictures held out when ``validation_splits`` is empty."""
    validation_images: int = 256
    """Most pictures a validation looks at."""
    size: int = 64
    """Side in pixels; other pictures are scaled and cropped or padded to it."""
    prepare: Literal["crop", "pad"] = "crop"
    """Cut the middle square out, or pad to a square with white."""
    shift: int = 0
    """Largest random shift in pixels in each direction, filled with white; 0 means none."""
    flip: bool = False
    """Mirror half of the pictures; off, because letters do not survive it."""

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        if self.size < 1:
            raise ConfigError(f"size: {self.size}. Give at least 1 pixel.")
        if not 0 <= self.shift < self.size:
            raise ConfigError(f"shift: {self.shift}. Give 0 or more, less than size.")
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(
                f"validation_fraction: {self.validation_fraction}. Give 0 or more, less than 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLossConfig:
    """What a reconstruction is judged by; each weight 0 switches its part off."""

    l1: float = 1.0
    """Weight of the mean absolute error on [-1, 1] pixels."""
    l2: float = 1.0
    """Weight of the mean squared error."""
    edges: float = 0.0
    """Weight of the mean absolute error between neighbouring-pixel differences: sharper outlines
    for the price of two subtractions."""
    chroma: float = 0.0
    """Weight of the mean absolute error of the colour apart from the brightness. Brightness makes
    up most of the other errors, so a short training learns hues late without it."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their codebook vectors."""
    lpips: float = 0.0
    """Weight of the perceptual distance; needs ``vgg16``."""
    vgg16: Path | None = None
    """Weights of torchvision's VGG16 (``features.0.weight`` ...), safetensors or a torch pickle."""
    lpips_linear: Path | None = None
    """LPIPS's channel weights for VGG (``lin0.model.1.weight`` ...); None weighs all equally."""
    adversarial: float = 0.0
    """Weight of the patch discriminator, times taming's adaptive weight."""
    adversarial_start: int = 0
    """Step at which the discriminator sets in."""
    discriminator_channels: int = 64
    """Width of the first layer of the discriminator."""
    discriminator_layers: int = 3
    """Halvings of the side in the discriminator."""

    def __post_init__(self) -> None:
        """Refuse negative weights and an LPIPS without its trunk."""
        for name in ("l1", "l2", "edges", "chroma", "commitment", "lpips", "adversarial"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}. Give 0 or more.")
        if self.lpips and self.vgg16 is None:
            raise ConfigError(
                "vgg16: lpips needs the path of torchvision's vgg16-397923af.pth (BSD-3-Clause). "
                "Download it and name it here, or set lpips = 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookConfig:
    """How the codebook is learned: moving averages of the latents that choose each code."""

    warmup_steps: int = 0
    """Steps of plain autoencoding before the codebook is made."""
    samples: int = 65536
    """Latents that k-means sees when the codebook is made; fewer if the data has fewer."""
    kmeans_iterations: int = 10
    """Rounds of k-means; 0 takes random latents as they are."""
    decay: float = 0.99
    """Share of the old average that is kept in one step."""
    restart_after: int = 200
    """Steps without any use after which a code is moved onto a current latent; 0 means never."""
    restart_until: float = 0.8
    """Share of all steps after which no code is moved any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerLoopConfig:
    """Length, optimizer and habits of the training."""

    steps: int
    """Optimizer steps in all."""
    batch_size: int = 32
    """Pictures in a step."""
    learning_rate: float = 4e-4
    """Peak of the schedule: linear warm-up, then cosine to a twentieth of it."""
    warmup_steps: int = 50
    """Steps of linear warm-up of the learning rate."""
    weight_decay: float = 1e-4
    """AdamW's decay of the convolution weights."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's averages."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 means no limit."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and saved; 0 saves the raw weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the convolutions (autocast); weights and losses stay float32."""
    seed: int = 0
    """Starts all random choices: first weights, order of the pictures, shifts, restarts."""
    device: str | None = None
    """cpu, cuda, mps; None takes the best there is."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl."""
    validate_every: int = 500
    """Steps between validations; 0 means only at the end."""
    sample_every: int = 500
    """Steps between reconstruction pictures; 0 means only at the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints to resume from; 0 means only at the end or when stopped."""

    def __post_init__(self) -> None:
        """Refuse an empty training."""
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}. Give at least 1.")
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"ema: {self.ema}. Give 0 or more, less than 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTokenizerConfig:
    """One training of an image tokenizer."""

    out: Path
    """Folder that gets tokenizer/, metrics.jsonl, samples/ and the checkpoint to resume from."""
    data: ImageDataConfig
    """The pictures."""
    train: TokenizerLoopConfig
    """The training."""
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    """Shape of the model; must agree with ``init_from`` if that is given."""
    loss: ImageLossConfig = field(default_factory=ImageLossConfig)
    """The losses."""
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    """The codebook's own training."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the saved weights."""
    init_from: Path | None = None
    """An earlier tokenizer to start from, in any form that can be loaded."""
    freeze: tuple[Part, ...] = ()
    """Parts that stay as they are. ["encoder", "codebook"] improves the decoder and leaves the
    codes of every picture unchanged."""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work."""
        if self.data.size % self.vqgan.downsample_factor:
            raise ConfigError(
                f"data: size {self.data.size} is not divisible by the model's factor "
                f"{self.vqgan.downsample_factor}. Change size or channel_multipliers."
            )
        if self.freeze and self.init_from is None:
            raise ConfigError(
                f"freeze: {list(self.freeze)} without init_from would keep random weights. "
                "Name a tokenizer to start from."
            )
        if "codebook" in self.freeze and self.codebook.warmup_steps:
            raise ConfigError(
                "codebook: warmup_steps makes a new codebook, but freeze keeps the old one. "
                "Drop one of them."
            )
        if not self.init_from and not self.codebook.warmup_steps:
            raise ConfigError(
                "codebook: warmup_steps must be at least 1 for a new tokenizer, because the "
                "codebook is made from its latents. A tenth of train.steps works well."
            )
        if self.codebook.warmup_steps >= self.train.steps:
            raise ConfigError(
                f"codebook: warmup_steps {self.codebook.warmup_steps} leaves nothing of the "
                f"{self.train.steps} steps. Give fewer."
            )

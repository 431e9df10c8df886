"""From a folder to a model that draws.

Contract: `load` is the one way in; everything it takes has a default.
"""

from __future__ import annotations

from pathlib import Path

from liquidmm.generate.engine import EngineConfig
from liquidmm.generate.liquid import Liquid
from liquidmm.model.checkpoint import Checkpoint

DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
"""The checkpoint that comes with the package."""


def load(
    folder: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    image_tokenizer: Path | None = None,
    engine: EngineConfig | None = None,
) -> Liquid:
    """Load a checkpoint.

    Args:
        folder: Checkpoint folder, or owner/name on the Hugging Face hub; None takes the model that
            comes with the package.
        device: "cpu", "cuda", "mps"; None takes the best there is.
        dtype: "float32", "bfloat16", "float16"; "auto" takes what the device is fast with.
        image_tokenizer: For a checkpoint that comes without one, as the published
            `Junfeng5/Liquid_V1_7B` does: a folder of ours or a `vqgan.ckpt`.
        engine: How the model is run; None takes the defaults.

    Returns:
        The model, ready to draw.

    Raises:
        CheckpointError: The folder is no checkpoint.
        ConfigError: The model can't be run that way.
    """
    source = DEFAULT_MODEL if folder is None else folder
    checkpoint = Checkpoint.load(source, device, dtype, image_tokenizer)
    return Liquid.from_checkpoint(checkpoint, engine)

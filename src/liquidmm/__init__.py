"""Liquid: one language model that reads and writes text and images as one sequence of tokens.

The names below are the public interface. They are imported on first use, so `import liquidmm` takes
milliseconds and imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liquidmm.errors import LiquidError
    from liquidmm.generate.engine import EngineConfig
    from liquidmm.generate.liquid import Liquid, load
    from liquidmm.generate.requests import GenerationRequest
    from liquidmm.generate.sampling import SamplingConfig
    from liquidmm.model.expand import expand
    from liquidmm.model.processor import LiquidProcessor
    from liquidmm.vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "EngineConfig",
    "GenerationRequest",
    "Liquid",
    "LiquidError",
    "LiquidProcessor",
    "SamplingConfig",
    "Vocabulary",
    "__version__",
    "expand",
    "load",
]

_HOMES = {
    "EngineConfig": "liquidmm.generate.engine",
    "GenerationRequest": "liquidmm.generate.requests",
    "Liquid": "liquidmm.generate.liquid",
    "LiquidError": "liquidmm.errors",
    "LiquidProcessor": "liquidmm.model.processor",
    "SamplingConfig": "liquidmm.generate.sampling",
    "Vocabulary": "liquidmm.vocabulary",
    "expand": "liquidmm.model.expand",
    "load": "liquidmm.generate.liquid",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'liquidmm' has no attribute '{name}'")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

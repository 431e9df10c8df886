"""What is sure to fail in the middle of a run, found at its start.

Contract: reads configurations and manifests only, never weights or rows. A run that passes may
still meet a text that is too long beside its picture; that error names the record.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from liquidmm.data.manifest import read_manifest
from liquidmm.data.mixture import Source
from liquidmm.data.render import KINDS
from liquidmm.errors import ConfigError, DataError
from liquidmm.train.config import TrainRun

# Around the codes of a picture: begin, end, and at least one id of something else.
_AROUND = 3


def check_length(run: TrainRun, config: PreTrainedConfig) -> None:
    """Refuse rows that are longer than the context of the model.

    Args:
        run: The run.
        config: Configuration of its language model.

    Raises:
        ConfigError: They are.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and run.data.length > context:
        raise ConfigError(
            f"data.length: rows have {run.data.length} ids, the model has max_position_embeddings "
            f"= {context}. Use shorter rows, or a model with a longer context."
        )


def check_quantized(run: TrainRun, ranks: int) -> None:
    """Refuse weights in 4 bits on several ranks, which FSDP2 can't share.

    Args:
        run: The run.
        ranks: Number of ranks.

    Raises:
        ConfigError: They are wanted there.
    """
    if ranks > 1 and run.model.lora is not None and run.model.lora.quantize:
        raise ConfigError(
            f"model.lora.quantize: works on one rank, this run has {ranks}. Leave it out; LoRA "
            "without it is shared by all ranks."
        )


def check_pictures(run: TrainRun) -> None:
    """Refuse sources with a picture that fits into no row.

    Args:
        run: The run.

    Raises:
        DataError: A source holds one, or is no folder of shards.
    """
    for table, sources in (("sources", run.data.sources), ("validation", run.data.validation)):
        for place, source in enumerate(sources):
            name, needed = _largest(source)
            if needed > run.data.length:
                raise DataError(
                    f"data.{table}.{place}: {source.path} has pictures of {name} codes, which take "
                    f"at least {needed} ids; rows have {run.data.length} (data.length). Use longer "
                    "rows, or encode smaller pictures."
                )


def _largest(source: Source) -> tuple[str, int]:
    """Give the size of a source's largest picture, as "width x height", and the ids it needs."""
    totals = read_manifest(source.path).totals
    kind = KINDS[source.task]
    others = {name for name, rows in totals.kinds.items() if rows} - {"text", kind}
    if kind == "text" or others or not totals.sizes:
        return "", 0  # a manifest doesn't tell which kind of row a picture belongs to
    needed = {name: _codes(name) + _AROUND for name in totals.sizes}
    name = max(needed, key=needed.__getitem__)
    return name, needed[name]


def _codes(size: str) -> int:
    width, height = size.split(" x ")
    return int(width) * int(height)

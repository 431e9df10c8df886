"""What is sure to fail in the middle of a run, found at its start.

Contract: reads configurations and manifests only, never weights or rows. A run that passes may
still meet a text that is too long beside its picture; that error names the record.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from liquidmm.data.draws import Source
from liquidmm.data.examples import KINDS
from liquidmm.data.manifest import read_manifest
from liquidmm.errors import ConfigError, DataError
from liquidmm.train.config import TrainConfig

# Around the codes of a picture: begin, end, and at least one id of something else.
_AROUND = 3


def check_length(run: TrainConfig, config: PreTrainedConfig) -> None:
    """Refuse sequences that are longer than the context of the model.

    Args:
        run: The run.
        config: Configuration of its language model.

    Raises:
        ConfigError: They are.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = run.data.packing.longest
    if context is not None and longest > context:
        name = "max_document_tokens" if run.data.max_document_tokens else "seq_len"
        raise ConfigError(
            f"data.{name}: sequences have up to {longest} ids, the model has "
            f"max_position_embeddings = {context}. Set data.max_document_tokens to at most that."
        )


def check_quantized(run: TrainConfig, ranks: int) -> None:
    """Refuse weights in 4 bits on several ranks, which FSDP2 can't share.

    Args:
        run: The run.
        ranks: Number of ranks.

    Raises:
        ConfigError: They are wanted there.
    """
    if ranks > 1 and run.model.lora is not None and run.model.lora.load_in_4bit:
        raise ConfigError(
            f"model.lora.load_in_4bit: works on one rank, this run has {ranks}. Leave it out; LoRA "
            "without it is shared by all ranks."
        )


def check_pictures(run: TrainConfig) -> None:
    """Refuse sources with a picture that fits into no row.

    Args:
        run: The run.

    Raises:
        DataError: A source holds one, or is no folder of shards.
    """
    longest = run.data.packing.longest
    leave_out = run.data.overlong == "drop"
    for table, sources in (("sources", run.data.sources), ("eval", run.data.eval)):
        for place, source in enumerate(sources):
            needed = _needed(source)
            if not needed:
                continue
            # the others can be left out
            pick = min if leave_out else max
            name = pick(needed, key=needed.__getitem__)
            if needed[name] > longest:
                raise DataError(
                    f"data.{table}.{place}: {source.path} has pictures of {name} codes, which take "
                    f"at least {needed[name]} ids; a sequence has {longest} (data.seq_len). Use "
                    "longer rows, or encode smaller pictures."
                )


def _needed(source: Source) -> dict[str, int]:
    """Give the ids that a picture of each size needs; sizes are "width x height"."""
    totals = read_manifest(source.path).totals
    kind = KINDS[source.task]
    others = {name for name, rows in totals.kinds.items() if rows} - {"text", kind}
    if kind == "text" or others:
        return {}  # a manifest doesn't tell which kind of row a picture belongs to
    return {name: _codes(name) + _AROUND for name in totals.sizes}


def _codes(size: str) -> int:
    width, height = size.split(" x ")
    return int(width) * int(height)

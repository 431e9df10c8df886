"""Opening and checking the files of a run before its weights are loaded.

Problems with the files are found here, in seconds and on every rank. A run that passes can still
contain a text that is too long together with its image; that error names the record.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from liquidmm.config import to_dict
from liquidmm.data.examples import TASK_KINDS, ExampleBuilder
from liquidmm.data.manifest import read_manifest
from liquidmm.data.mixture import Source
from liquidmm.data.packing import PackedSequence
from liquidmm.data.stream import TokenStream
from liquidmm.errors import ConfigError, DataError
from liquidmm.model.checkpoint import Checkpoint, load_parts, local_folder
from liquidmm.model.processor import LiquidProcessor
from liquidmm.runtime import get_logger
from liquidmm.train.checkpoint import latest_checkpoint, read_state
from liquidmm.train.config import TrainConfig, differences

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from liquidmm.image_tokenizer.tokenizer import ImageTokenizer

# Tokens around the codes of an image: begin, end, and at least one other token.
_AROUND_IMAGE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The opened files of a run; created by `open_setup`."""

    run: TrainConfig
    """The run file."""
    folder: Path
    """Local folder of the checkpoint."""
    config: PreTrainedConfig
    """Configuration of its language model."""
    processor: LiquidProcessor
    """Text tokenizer, token id layout, and the image sizes of the training data."""
    image_tokenizer: ImageTokenizer | None
    """The image tokenizer, if the checkpoint has one."""
    stream: TokenStream
    """The training data, one stream for each sequence of a step."""

    @property
    def digest(self) -> str:
        """Short hash of the vocabulary, tokenizer and data, which must be equal on all ranks."""
        tokenizer = self.image_tokenizer
        parts = {
            "vocabulary": self.processor.vocabulary.to_dict(),
            "image_tokenizer": None if tokenizer is None else tokenizer.fingerprint,
            "stream": self.stream.fingerprint(),
            "shards": [
                (manifest.provenance.source_digest, to_dict(manifest.totals))
                for manifest in (read_manifest(source.path) for source in self.run.data.sources)
            ],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def checkpoint(self, model: PreTrainedModel) -> Checkpoint:
        """Combine a language model with the other parts of the checkpoint."""
        return Checkpoint(
            model=model, processor=self.processor, image_tokenizer=self.image_tokenizer
        )

    def eval_sequences(self) -> Iterator[tuple[str, list[PackedSequence]]]:
        """Yield the name of each evaluation source and task, and its sequences, always the same."""
        folders = {source.path for source in self.run.data.eval}
        names = Counter(path.name for path in folders)
        for source in self.run.data.eval:
            stream = _open_eval(self.run, self.processor, self.image_tokenizer, source)
            sequences = [stream.next()[0] for _ in range(self.run.train.eval_samples)]
            # Folders with the same name must not share a metric.
            name = source.path.name if names[source.path.name] == 1 else source.path.as_posix()
            yield f"{name}/{source.task}", sequences


def checkpoint_to_resume(run: TrainConfig, resume: bool, *, log: bool) -> Path | None:
    """Return the checkpoint that a run resumes from, or None if the run starts from scratch.

    ``resume`` accepts changed settings, ``log`` logs them.

    Raises:
        ConfigError: The checkpoint has other settings, or ``resume`` is set but there is none.
        CheckpointError: The checkpoint is damaged or was written by an earlier version.
    """
    checkpoint = latest_checkpoint(run.out)
    if checkpoint is None:
        if resume:
            raise ConfigError(f"{run.out}: has no checkpoint to resume from. Omit --resume.")
        return None
    changed = differences(read_state(checkpoint).config, run)
    if changed and not resume:
        raise ConfigError(
            f"{run.out}: contains a run with other settings ({'; '.join(changed)}). Choose another "
            "out, restore the settings, or pass --resume to continue with the new ones."
        )
    for change in changed if log else ():
        get_logger(__name__).warning("resuming with a changed setting: %s", change)
    return checkpoint


def open_setup(run: TrainConfig, ranks: int, device: torch.device) -> Setup:
    """Open and check the files of a run; ``device`` is that of the image tokenizer.

    Raises:
        ConfigError: The sequences or the model cannot be divided among the ranks, or documents are
            longer than the model's context.
        CheckpointError: The checkpoint was not expanded, or is damaged.
        DataError: A folder of shards cannot be read, is empty, was made for another checkpoint, or
            contains an image that does not fit a sequence.
    """
    run.batch_size_per_rank(ranks)
    run.parallel.shards(ranks)
    if ranks > 1 and run.model.lora is not None and run.model.lora.load_in_4bit:
        # FSDP2 cannot shard such weights.
        raise ConfigError(
            f"model.lora.load_in_4bit: expected a single rank, got {ranks}. Set it to false; LoRA "
            "without it can be sharded."
        )
    check_image_sizes(run)
    folder = local_folder(str(run.checkpoint))
    processor, image_tokenizer = load_parts(folder, device)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    check_length(run, config)
    processor = _with_sizes(processor, image_tokenizer, run)
    stream = _open_stream(
        run,
        processor,
        image_tokenizer,
        num_streams=run.train.global_batch_size,
        num_workers=run.data.num_workers,
    )
    for source in run.data.eval:
        _open_eval(run, processor, image_tokenizer, source)
    return Setup(
        run=run,
        folder=folder,
        config=config,
        processor=processor,
        image_tokenizer=image_tokenizer,
        stream=stream,
    )


def check_length(run: TrainConfig, config: PreTrainedConfig) -> None:
    """Check that documents fit the context of the model, or raise a `ConfigError`."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = run.data.packing.document_limit
    if context is not None and longest > context:
        name = "max_document_tokens" if run.data.max_document_tokens else "seq_len"
        raise ConfigError(
            f"data.{name}: documents have up to {longest} tokens, but the model has "
            f"max_position_embeddings = {context}. Set data.max_document_tokens to at most that."
        )


def check_image_sizes(run: TrainConfig) -> None:
    """Check that the images of every source fit a sequence, or raise a `DataError`."""
    longest = run.data.packing.document_limit
    drop = run.data.overlong == "drop"
    for table, sources in (("sources", run.data.sources), ("eval", run.data.eval)):
        for number, source in enumerate(sources):
            needed = _tokens_of_sizes(source)
            if not needed:
                continue
            # Images that are too large can be dropped if others fit.
            size = (min if drop else max)(needed, key=needed.__getitem__)
            if needed[size] > longest:
                raise DataError(
                    f"data.{table}.{number}: {source.path} has images of {size} tokens, which take "
                    f"at least {needed[size]} tokens; documents have at most {longest}. Increase "
                    "data.seq_len, or encode smaller images."
                )


def _tokens_of_sizes(source: Source) -> dict[str, int]:
    """Return the tokens that an image of each size needs; sizes are "width x height"."""
    totals = read_manifest(source.path).totals
    kind = TASK_KINDS[source.task]
    others = {name for name, count in totals.kinds.items() if count} - {"text", kind}
    if kind == "text" or others:
        return {}  # the manifest does not record which kind of sample an image belongs to
    return {size: math.prod(_grid(size)) + _AROUND_IMAGE for size in totals.sizes}


def _grid(size: str) -> tuple[int, int]:
    """Read a size of a manifest, "width x height" in codes."""
    width, height = map(int, size.split(" x "))
    return width, height


def _open_eval(
    run: TrainConfig,
    processor: LiquidProcessor,
    image_tokenizer: ImageTokenizer | None,
    source: Source,
) -> TokenStream:
    samples = read_manifest(source.path).totals.kinds.get(TASK_KINDS[source.task], 0)
    data = replace(
        run.data,
        sources=(replace(source, weight=1.0),),
        format=replace(run.data.format, caption_dropout=0.0, first_row_only_prob=0.0),
        # A buffer that contains a sample twice would cover fewer samples.
        packing_buffer=max(1, min(run.data.packing_buffer, source.max_samples or samples)),
    )
    return _open_stream(replace(run, data=data), processor, image_tokenizer)


def _open_stream(
    run: TrainConfig,
    processor: LiquidProcessor,
    image_tokenizer: ImageTokenizer | None,
    **options: int,
) -> TokenStream:
    factor = fingerprint = None
    if image_tokenizer is not None:
        factor, fingerprint = image_tokenizer.downsample_factor, image_tokenizer.fingerprint
    return TokenStream(
        run.data.sources,
        ExampleBuilder(processor.sequences, run.data.format, factor),
        run.data.packing,
        run.seed,
        tokenizer_fingerprint=fingerprint,
        **options,
    )


def _with_sizes(
    processor: LiquidProcessor, image_tokenizer: ImageTokenizer | None, run: TrainConfig
) -> LiquidProcessor:
    """Record the image sizes of the training data, if the checkpoint has none."""
    if processor.sizes or image_tokenizer is None:
        return processor
    factor = image_tokenizer.downsample_factor
    counts: Counter[tuple[int, int]] = Counter()
    for source in run.data.sources:
        if source.task == "text_to_image":
            for size, count in read_manifest(source.path).totals.sizes.items():
                width, height = _grid(size)
                counts[width * factor, height * factor] += count
    sizes = tuple(size for size, _ in counts.most_common())
    return LiquidProcessor(processor.tokenizer, processor.vocabulary, sizes, processor.resize)

"""What a run is checked by before any weight is loaded: its checkpoint's parts and its data.

Contract: what can be wrong with the files of a run is found here, in seconds and on every rank;
afterwards the rows of training and of validation can be drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from liquidmm.config import to_dict
from liquidmm.data.draws import Source
from liquidmm.data.examples import KINDS, ExampleBuilder, ExampleConfig
from liquidmm.data.manifest import read_manifest
from liquidmm.data.mixture import TokenStream
from liquidmm.data.packing import PackedSequence
from liquidmm.errors import ConfigError
from liquidmm.model.checkpoint import Checkpoint, load_parts, local_folder
from liquidmm.model.processor import LiquidProcessor
from liquidmm.runtime import get_logger
from liquidmm.train.checkpoint import latest, read_progress
from liquidmm.train.checks import check_length, check_pictures, check_quantized
from liquidmm.train.config import TrainConfig, differences

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from liquidmm.image_tokenizer.tokenizer import ImageTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The files of a run, opened; made by `open_setup`."""

    run: TrainConfig
    """The run."""
    folder: Path
    """Local folder of its checkpoint."""
    config: PreTrainedConfig
    """Configuration of its language model."""
    processor: LiquidProcessor
    """Tokenizer and id layout, with the sizes of the pictures trained on."""
    images: ImageTokenizer | None
    """The image tokenizer, where the checkpoint has one."""
    stream: TokenStream
    """The data, one lane for each row of a step."""

    @property
    def digest(self) -> str:
        """Short hash of what all ranks must have alike: id layout, tokenizer and data."""
        told = {
            "vocabulary": self.processor.vocabulary.to_dict(),
            "images": None if self.images is None else self.images.fingerprint,
            "stream": self.stream.identity(),
            "shards": [
                (manifest.origin.source_digest, to_dict(manifest.totals))
                for manifest in (read_manifest(source.path) for source in self.run.data.sources)
            ],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def checkpoint(self, model: PreTrainedModel) -> Checkpoint:
        """Put a language model together with the other parts."""
        return Checkpoint(model=model, processor=self.processor, image_tokenizer=self.images)

    def validation_rows(self) -> Iterator[tuple[str, list[PackedSequence]]]:
        """Make the rows to measure on, which are always the same ones.

        Yields:
            Name of the source and task, and ``train.eval_samples`` rows.
        """
        # Folders of the same name must not share a figure.
        folders = {source.path for source in self.run.data.eval}
        names = Counter(path.name for path in folders)
        for source in self.run.data.eval:
            stream = _open_validation(self.run, self.processor, self.images, source)
            rows = [stream.take()[0] for _ in range(self.run.train.eval_samples)]
            name = source.path.name if names[source.path.name] == 1 else source.path.as_posix()
            yield f"{name}/{source.task}", rows


def save_to_resume(run: TrainConfig, resume: bool, *, told: bool) -> Path | None:
    """Find the save that a run goes on from.

    Args:
        run: The run.
        resume: Go on even though settings changed.
        told: Say which settings changed.

    Returns:
        The newest save in the folder of the run; None where there is none.

    Raises:
        ConfigError: The save has other settings, or there is none to resume.
        CheckpointError: The save is broken.
    """
    save = latest(run.out)
    if save is None:
        if resume:
            raise ConfigError(f"{run.out}: holds no save to resume. Leave --resume out.")
        return None
    changed = differences(read_progress(save).run, run)
    if changed and not resume:
        raise ConfigError(
            f"{run.out}: holds a run with other settings ({'; '.join(changed)}). Choose "
            "another out, restore the settings, or go on with the new ones: --resume."
        )
    for change in changed if told else ():
        get_logger(__name__).warning("resuming although %s", change)
    return save


def open_setup(run: TrainConfig, ranks: int, device: torch.device) -> Setup:
    """Open and check the files of a run.

    Args:
        run: The run.
        ranks: Number of ranks.
        device: Where the image tokenizer goes.

    Returns:
        The opened files.

    Raises:
        ConfigError: The rows or the model can't be shared by the ranks, or rows are longer than the
            model's context.
        CheckpointError: The checkpoint wasn't expanded, or is broken.
        DataError: A folder of shards can't be read, is empty, was made for another checkpoint, or
            holds a picture that fits no row.
    """
    run.rows_of_rank(ranks)
    run.parallel.shards(ranks)
    check_quantized(run, ranks)
    check_pictures(run)
    folder = local_folder(str(run.checkpoint))
    processor, images = load_parts(folder, device)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    check_length(run, config)
    processor = _with_sizes(processor, images, run)
    stream = TokenStream(
        run.data.sources,
        _renderer(run.data.format, processor, images),
        run.data.packing,
        run.seed,
        lanes=run.train.global_batch_size,
        fingerprint=None if images is None else images.fingerprint,
        workers=run.data.num_workers,
    )
    for source in run.data.eval:
        _open_validation(run, processor, images, source)
    return Setup(
        run=run, folder=folder, config=config, processor=processor, images=images, stream=stream
    )


def _open_validation(
    run: TrainConfig, processor: LiquidProcessor, images: ImageTokenizer | None, source: Source
) -> TokenStream:
    render = replace(run.data.format, guidance_dropout=0.0, opening_share=0.0)
    rows = read_manifest(source.path).totals.kinds.get(KINDS[source.task], 0)
    # A window with a row twice would measure fewer of them.
    window = max(1, min(run.data.packing_buffer, source.count or rows))
    return TokenStream(
        (replace(source, weight=1.0),),
        _renderer(render, processor, images),
        replace(run.data.packing, window=window),
        run.seed,
        fingerprint=None if images is None else images.fingerprint,
    )


def _renderer(
    render: ExampleConfig, processor: LiquidProcessor, images: ImageTokenizer | None
) -> ExampleBuilder:
    return ExampleBuilder(
        processor.sequences, render, None if images is None else images.downsample_factor
    )


def _with_sizes(
    processor: LiquidProcessor, images: ImageTokenizer | None, run: TrainConfig
) -> LiquidProcessor:
    """Write down the sizes of the pictures to be trained on, where the checkpoint names none."""
    if processor.sizes or images is None:
        return processor
    counts: Counter[tuple[int, int]] = Counter()
    for source in run.data.sources:
        if source.task == "text_to_image":
            for size, count in read_manifest(source.path).totals.sizes.items():
                width, height = (int(side) * images.downsample_factor for side in size.split(" x "))
                counts[width, height] += count
    sizes = tuple(size for size, _ in counts.most_common())
    return LiquidProcessor(processor.tokenizer, processor.vocabulary, sizes, processor.resize)

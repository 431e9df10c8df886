"""Data sets of Hugging Face: a folder of `save_to_disk`, or what `load_dataset` loads by a hub id.

Contract: `spans` cuts each split into ranges of rows, `items` reads a range as it is stored:
nothing is decoded, a picture stays `{bytes, path}`, a class becomes its name. The package
`datasets` (extra `hf`) is needed, and what comes from the hub is kept in its cache.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from liquidmm.data.readers import arrow
from liquidmm.data.readers.chunks import FileRange, RawRecord
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import is_url, reason
from liquidmm.errors import DataError
from liquidmm.runtime import require_extra

_SAVED = ("state.json", "dataset_dict.json")


def is_saved(names: Collection[str]) -> bool:
    """Whether a folder with these files was written by `save_to_disk`."""
    return any(name in names for name in _SAVED)


def spans(path: str, config: SourceConfig, records: int) -> Iterator[FileRange]:
    """Cut a data set into spans of `records` rows; splits that are not taken have none."""
    for split, dataset in _splits(path, config).items():
        if config.splits and config.fields.split is None and split not in config.splits:
            continue
        for start in range(0, len(dataset), records):
            stop = min(start + records, len(dataset))
            yield FileRange(
                file=path, split=split, start=start, stop=stop, first=start, count=stop - start
            )


def columns(path: str, config: SourceConfig) -> dict[str, frozenset[str]]:
    """Return the columns of each `path:split`, and what lies in them as `outer.inner`."""
    return {
        f"{path}:{split}": frozenset(arrow.columns(dataset.features.arrow_schema))
        for split, dataset in _splits(path, config).items()
    }


def fingerprints(path: str, config: SourceConfig) -> str:
    """Return what changes when the data set does."""
    splits = _splits(path, config)
    return "\n".join(f"{split}\0{dataset._fingerprint}" for split, dataset in splits.items())


def items(span: FileRange, config: SourceConfig, wanted: Collection[str]) -> Iterator[RawRecord]:
    """Yield the rows of a span.

    Args:
        span: Rows of one split.
        config: The source.
        wanted: Columns to read, of those there are.
    """
    dataset = _splits(span.file, config)[span.split]
    names = [name for name in dataset.column_names if name in wanted]
    classes = {
        name: dataset.features[name].names
        for name in names
        if hasattr(dataset.features[name], "names")
    }
    stored = dataset.select_columns(names).with_format("arrow")
    step = arrow.batch_rows(len(dataset), dataset.data.nbytes)
    name = f"{span.file}:{span.split}"
    stop = len(dataset) if span.stop is None else span.stop
    row = span.start
    try:
        for start in range(span.start, stop, step):
            for item in arrow.items(stored[start : min(start + step, stop)], name, start):
                if not item.problem:
                    item.value.update(
                        (column, _label(item.value[column], labels))
                        for column, labels in classes.items()
                    )
                    if config.fields.split is None:
                        item.value["split"] = span.split
                yield item
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f"{name}[{row}]"
        problem = (
            f"{where}: not readable ({reason(error)}). Rows {row} to {stop - 1} are lost; make or "
            "download the data set again."
        )
        yield RawRecord(where=where, line=row, problem=problem, broken=True)


def _label(value: int | None, labels: list[str]) -> str | None:
    """Return the name of a class; -1 stands for one that is not known."""
    return labels[value] if value is not None and value >= 0 else None


def _splits(path: str, config: SourceConfig) -> Mapping[str, Any]:
    """Open a data set: the name of a split -> its `datasets.Dataset`."""
    marks = [mark for name in _SAVED if (mark := Path(path) / name).is_file()]
    saved = max((mark.stat().st_mtime_ns for mark in marks), default=None)
    if is_url(path):
        saved = 0
    return _opened(path, config.subset, config.revision, saved)


@lru_cache(maxsize=2)
def _opened(path: str, subset: str, revision: str, saved: int | None) -> Mapping[str, Any]:
    """Open a data set as of `saved`: the time in ns when `save_to_disk` wrote it, None for the hub.

    Of what lies behind a URL the time is not asked.
    """
    datasets = require_extra("datasets", "hf")
    try:
        if saved is not None:
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, name=subset or None, revision=revision or None)
    except (
        datasets.exceptions.DatasetsError,
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        raise DataError(
            f"{path}: can't be loaded as a Hugging Face data set ({reason(error)}). Check the path "
            "or the hub id, 'subset' and 'revision'."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        return dict(found)
    return {str(found.split or "train"): found}

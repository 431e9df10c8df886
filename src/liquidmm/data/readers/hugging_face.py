"""Hugging Face datasets: a folder written by `save_to_disk`, or a hub id for `load_dataset`.

Values are read as stored, so an image stays `{bytes, path}`, but a class number becomes the class
name. Requires the package `datasets` (extra `hf`), which caches downloads.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from liquidmm.data.readers import parquet
from liquidmm.data.readers.chunks import FileRange, RawRecord, index_range, rejected
from liquidmm.data.readers.config import SourceConfig
from liquidmm.data.readers.files import is_url
from liquidmm.errors import DataError, one_line
from liquidmm.runtime import require_extra

_SAVED = ("state.json", "dataset_dict.json")


def is_saved(names: Collection[str]) -> bool:
    """Whether a folder with these files was written by `save_to_disk`."""
    return any(name in names for name in _SAVED)


def cut(path: str, config: SourceConfig, records: int) -> Iterator[FileRange]:
    """Divide the selected splits of a dataset into ranges of `records` rows."""
    for split, dataset in _splits(path, config).items():
        if config.splits and config.fields.split is None and split not in config.splits:
            continue
        for start in range(0, len(dataset), records):
            yield index_range(path, start, min(start + records, len(dataset)), split=split)


def column_names(path: str, config: SourceConfig) -> dict[str, frozenset[str]]:
    """Return the columns of each `path:split`, with nested fields as `outer.inner`."""
    return {
        f"{path}:{split}": frozenset(parquet.column_names(dataset.features.arrow_schema))
        for split, dataset in _splits(path, config).items()
    }


def fingerprints(path: str, config: SourceConfig) -> str:
    """Return text that changes when the dataset changes."""
    splits = _splits(path, config)
    return "\n".join(f"{split}\0{dataset._fingerprint}" for split, dataset in splits.items())


def read(rows: FileRange, config: SourceConfig, columns: Collection[str]) -> Iterator[RawRecord]:
    """Yield the rows of a range with the existing columns among `columns`."""
    dataset = _splits(rows.file, config)[rows.split]
    names = [name for name in dataset.column_names if name in columns]
    classes = {
        name: dataset.features[name].names
        for name in names
        if hasattr(dataset.features[name], "names")
    }
    stored = dataset.select_columns(names).with_format("arrow")
    step = parquet.batch_rows(len(dataset), dataset.data.nbytes)
    name = f"{rows.file}:{rows.split}"
    stop = len(dataset) if rows.stop is None else rows.stop
    row = rows.start
    try:
        for start in range(rows.start, stop, step):
            batch = stored[start : min(start + step, stop)]
            for record in parquet.batch_records(batch, name, start):
                if not record.problem:
                    for column, labels in classes.items():
                        number = record.value[column]
                        is_known = number is not None and number >= 0  # -1 marks an unknown class
                        record.value[column] = labels[number] if is_known else None
                    if config.fields.split is None:
                        record.value["split"] = rows.split
                yield record
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = (
            f"cannot be read ({one_line(error)}). Rows {row} to {stop - 1} are lost; create "
            "or download the dataset again."
        )
        yield rejected(f"{name}[{row}]", row, problem, rest_lost=True)


def _splits(path: str, config: SourceConfig) -> Mapping[str, Any]:
    """Open a dataset and return a mapping from split name to `datasets.Dataset`."""
    files = [file for name in _SAVED if (file := Path(path) / name).is_file()]
    saved = max((file.stat().st_mtime_ns for file in files), default=None)
    if is_url(path):
        saved = 0
    return _open(path, config.subset, config.revision, saved)


@lru_cache(maxsize=2)
def _open(path: str, subset: str, revision: str, saved: int | None) -> Mapping[str, Any]:
    """Open a dataset once; `saved` is the time of `save_to_disk`, or None for the hub."""
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
            f"{path}: cannot be loaded as a Hugging Face dataset ({one_line(error)}). Check "
            "the path or hub id, 'subset' and 'revision'."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        return dict(found)
    return {str(found.split or "train"): found}

"""Shards beside other formats: random rows a second and bytes a row.

Contract: every format holds the same rows, is read in one process from the page cache, and gives
the codes of a row as an array and its caption as text. Ours also compares the row's checksum.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module as array_record

from liquidmm.bench.report import Result
from liquidmm.bench.synthetic import CODEBOOK, pictures
from liquidmm.data.shard_writer import write_shard
from liquidmm.data.shards import ShardFile

_GROUPS = (16, 128)
"""Rows of a Parquet row group."""

Read = Callable[[int], tuple[Any, str]]
"""Gives the codes and the caption of a row."""


def measure_formats(result: Result, count: int, seconds: float, scratch: Path | None) -> None:
    """Write the same pictures of 1,024 codes in every format and read them at random.

    Args:
        result: Where figures go.
        count: Pictures.
        seconds: Time of each format, about.
        scratch: Where the files are made for the time being; None: the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="liquid-bench-") as name:
        folder = Path(name)
        ours = write_shard(folder, 0, "made up", pictures(count, 32, 40), [], CODEBOOK)
        _measure(result, "shard", ours, _open_shard(ours), count, seconds)
        table = pa.ipc.open_file(pa.memory_map(str(ours))).read_all()
        for group in _GROUPS:
            path = folder / f"{group}.parquet"
            pq.write_table(table, path, row_group_size=group, compression="zstd")
            _measure(result, f"parquet_{group}", path, _open_parquet(path, group), count, seconds)
        path = folder / "records"
        _write_records(path, ours, count)
        _measure(result, "array_record", path, _open_records(path), count, seconds)


def _measure(result: Result, name: str, path: Path, read: Read, count: int, seconds: float) -> None:
    order = np.random.default_rng(0).integers(0, count, 10_000).tolist()
    began, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds:
        codes, caption = read(order[done % len(order)])
        assert codes.size == 1024
        assert caption
        done += 1
    result.number(f"format_{name}_rows_per_s", done / taken, "rows/s")
    result.number(f"format_{name}_bytes_per_row", path.stat().st_size / count, "B")


def _open_shard(path: Path) -> Read:
    file = ShardFile(path)

    def read(index: int) -> tuple[Any, str]:
        row = file[index]
        return row.image_codes[0], row.captions[0]

    return read


def _open_parquet(path: Path, group: int) -> Read:
    file = pq.ParquetFile(path)

    def read(index: int) -> tuple[Any, str]:
        rows = file.read_row_group(index // group, columns=["captions", "image_codes"])
        row = rows.slice(index % group, 1).combine_chunks()
        codes = row["image_codes"].chunk(0).flatten().field("codes").flatten().to_numpy()
        return codes, row["captions"][0].as_py()[0]

    return read


def _write_records(path: Path, shard: Path, count: int) -> None:
    read = _open_shard(shard)
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
    for index in range(count):
        codes, caption = read(index)
        writer.write(codes.tobytes() + caption.encode())
    writer.close()


def _open_records(path: Path) -> Read:
    reader = array_record.ArrayRecordReader(
        str(path), "readahead_buffer_size:0,index_storage_option:in_memory"
    )

    def read(index: int) -> tuple[Any, str]:
        (record,) = reader.read([index])
        return np.frombuffer(record[:2048], dtype=np.uint16), record[2048:].decode()

    return read

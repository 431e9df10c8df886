import json

import pytest

from liquidmm.data.readers import SourceConfig, list_chunks, read_chunk


@pytest.fixture
def read():
    """All entries of a source, with a check that they don't depend on how it is cut."""

    def read(path, *, sizes=(1, 2, 3, 7, 1000), **values):
        path = path if isinstance(path, tuple) else str(path)
        config = SourceConfig(path=path, **values)
        found = {}
        for records in sizes:
            cut = list_chunks(config, records)
            found[records] = [entry for part in cut for entry in read_chunk(config, part)]
        first = found[sizes[-1]]
        for records, same in found.items():
            assert same == first, f"parts of {records}"
        return first

    return read


@pytest.fixture
def write_lines():
    def write(path, *lines):
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("\n".join(text) + "\n")
        return path

    return write

import json
import re

import pytest

from liquidmm.data.readers import SourceConfig, list_chunks, read_chunk


@pytest.fixture
def read():
    """Read all records of a source, and check that they do not depend on the size of chunks."""

    def read(path, *, sizes=(1, 2, 3, 7, 1000), **values):
        path = path if isinstance(path, tuple) else str(path)
        config = SourceConfig(path=path, **values)
        found = {}
        for records in sizes:
            chunks = list_chunks(config, records)
            found[records] = [record for chunk in chunks for record in read_chunk(config, chunk)]
        first = found[sizes[-1]]
        for records, same in found.items():
            assert same == first, f"chunks of {records}"
        return first

    return read


@pytest.fixture
def check_problems():
    """Compare the problems of all rejected records with patterns."""

    def check(found, *patterns):
        problems = [record.problem for record in found if record.record is None]
        assert len(problems) == len(patterns), problems
        for problem, pattern in zip(problems, patterns, strict=True):
            assert re.search(pattern, problem), (problem, pattern)
            assert "\n" not in problem

    return check


@pytest.fixture
def write_lines():
    def write(path, *lines):
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("\n".join(text) + "\n")
        return path

    return write

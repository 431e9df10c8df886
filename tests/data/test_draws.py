import subprocess
import sys
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest

from liquidmm.data.draws import Source, check_sources, mix, open_sources
from liquidmm.data.examples import ExampleBuilder, ExampleConfig
from liquidmm.data.shard_file import Row
from liquidmm.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_folder):
    texts = [Row(kind="text", key=f"t{n}", text="a red cat " * (n + 1)) for n in range(11)]
    path = tmp_path_factory.mktemp("draws") / "shards"
    return write_folder(path, texts[:4], [], texts[4:], codebook_size=64)


def draws_of(sequences, source, seed=0):
    renderer = ExampleBuilder(sequences, ExampleConfig())
    return open_sources([source], renderer, seed, None)[0]


def test_a_pass_shows_every_row_once_in_another_order(folder, sequences):
    size, draws = draws_of(sequences, Source(path=folder, task="text"))
    assert size == 11
    keys = [draws[n].key for n in range(33)]
    orders = [tuple(keys[start : start + 11]) for start in (0, 11, 22)]
    assert [sorted(order) for order in orders] == [sorted(f"t{n}" for n in range(11))] * 3
    assert len(set(orders)) == 3
    assert [draws_of(sequences, Source(path=folder, task="text"))[1][n].key for n in (32, 3)] == [
        keys[32],
        keys[3],
    ]
    other = draws_of(sequences, Source(path=folder, task="text"), seed=1)[1]
    assert [other[n].key for n in range(11)] != keys[:11]


def test_a_long_order_is_worked_out(sequences, tmp_path, write_folder):
    """Above some thousand rows no list of them is kept."""
    texts = [Row(kind="text", key=f"{n}", text="a") for n in range(5000)]
    folder = write_folder(tmp_path / "many", texts, codebook_size=64)
    size, draws = draws_of(sequences, Source(path=folder, task="text"))
    assert size == 5000
    orders = [[int(draws[n].key) for n in range(start, start + 5000)] for start in (0, 5000)]
    assert [sorted(order) for order in orders] == [list(range(5000))] * 2
    assert np.abs(np.corrcoef([*orders, range(5000)])[np.triu_indices(3, 1)]).max() < 0.06
    few = draws_of(sequences, Source(path=folder, task="text", count=4500))[1]
    assert len({few[n].key for n in range(4500)}) == 4500


def test_a_count_is_a_fixed_choice(folder, sequences):
    def chosen(count, seed):
        size, draws = draws_of(sequences, Source(path=folder, task="text", count=count), seed)
        assert size == count
        keys = [draws[n].key for n in range(2 * count)]
        assert sorted(keys) == sorted(2 * keys[:count])
        return set(keys)

    assert chosen(5, 0) == chosen(5, 1) < chosen(8, 0) < chosen(11, 3)
    with pytest.raises(DataError, match="has 11 rows of kind text, count asks for 12"):
        draws_of(sequences, Source(path=folder, task="text", count=12))


def test_pairs_are_turned_round(sequences, tmp_path, write_folder):
    codes = np.zeros((2, 2), dtype=np.uint16)
    pairs = [
        Row(kind="image_text", key=f"{n}", captions=("a cat",), pictures=(codes,))
        for n in range(500)
    ]
    folder = write_folder(tmp_path / "pairs", pairs, codebook_size=64)
    source = Source(path=folder, task="text_to_image", reverse=0.2)
    _, draws = draws_of(sequences, source)
    examples = [draws[n] for n in range(500)]
    assert len({example.key for example in examples}) == 500
    turned = {example.key for example in examples if example.task == "image_to_text"}
    assert 75 < len(turned) < 125
    again = {draws[n].key for n in range(500, 1000) if draws[n].task == "image_to_text"}
    assert len(again & turned) < 40  # others, the next time
    # what is rendered is what the task says
    by_task = {example.task: example for example in examples}
    assert by_task["image_to_text"].input_ids[1] == sequences.vocabulary.boi
    assert by_task["text_to_image"].input_ids[1] != sequences.vocabulary.boi


class Numbers:
    """A source whose draw n is (name, n)."""

    def __init__(self, name):
        self.name = name

    def __len__(self):
        return 2**62

    def __getitem__(self, n):
        return self.name, n


@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (1, 2, 1), (1, 1, 2), (0.8, 0.2), (0.26, 0.02, 0.52, 0.05), (3, 0, 1e-3)]
)
def test_shares_are_kept_all_along(weights):
    import grain

    parts = [grain.MapDataset.source(Numbers(place)) for place in range(len(weights))]
    mixed = mix(parts, weights)
    total = sum(Fraction(str(weight)) for weight in weights)
    counts = [0] * len(weights)
    for n in range(3000):
        place, draw = mixed[n]
        assert draw == counts[place]  # every draw of a source comes once, in order
        counts[place] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - (n + 1) * Fraction(str(weight)) / total) < 2
    # far out, without having gone there
    place, draw = mixed[10**15]
    assert abs(draw - 10**15 * Fraction(str(weights[place])) / total) < 2


def test_equal_shares_take_turns():
    import grain

    mixed = mix([grain.MapDataset.source(Numbers(name)) for name in "ab"], (1, 1))
    assert [name for name, _ in islice(mixed, 6)] == list("ababab")


def test_importing_grain_says_and_changes_nothing():
    """It logs a warning about jax and sets up the root logger; other warnings must get through."""
    code = (
        "import logging, liquidmm.data.draws; from absl import logging as absl; "
        "assert not logging.getLogger().handlers; absl.warning('no jax profiler')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "WARNING:absl:no jax profiler\n")


def test_bad_sources(folder, sequences, tmp_path, write_folder):
    with pytest.raises(DataError, match="no rows of kind chat, which chat needs"):
        draws_of(sequences, Source(path=folder, task="chat"))
    texts = [Row(kind="text", key="t", text="a")]
    other = write_folder(tmp_path / "texts", texts, codebook_size=32)
    with pytest.raises(DataError, match="with 32 codes, the checkpoint has 64"):
        draws_of(sequences, Source(path=other, task="text"))
    with pytest.raises(DataError, match="image tokenizer f00d, the checkpoint has beef"):
        open_sources([Source(path=folder, task="text")], ExampleBuilder(sequences), 0, "beef")
    with pytest.raises(ConfigError, match="sources: is empty"):
        check_sources([])
    with pytest.raises(ConfigError, match="their weights sum to 0"):
        check_sources([Source(path=folder, task="text", weight=0)] * 2)
    with pytest.raises(ConfigError, match="weight: is -1"):
        Source(path=folder, task="text", weight=-1)
    with pytest.raises(ConfigError, match="count: is -1"):
        Source(path=folder, task="text", count=-1)
    with pytest.raises(ConfigError, match="reverse: is 2"):
        Source(path=folder, task="text_to_image", reverse=2)
    with pytest.raises(ConfigError, match="reverse: text can't be turned round"):
        Source(path=folder, task="text", reverse=0.1)
    with pytest.raises(ConfigError, match="Did you mean 'chat'"):
        Source(path=folder, task="chats")

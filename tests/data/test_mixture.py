from fractions import Fraction

import numpy as np
import pytest

from liquidmm.config import from_dict
from liquidmm.data.examples import ExampleBuilder, ExampleConfig
from liquidmm.data.mixture import (
    Source,
    WeightedSampler,
    check_sources,
    open_sources,
)
from liquidmm.data.samples import Sample
from liquidmm.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_folder):
    texts = [Sample(kind="text", key=f"t{n}", text="a red cat " * (n + 1)) for n in range(11)]
    path = tmp_path_factory.mktemp("mixture") / "shards"
    return write_folder(path, texts[:4], [], texts[4:], codebook_size=64)


def opened(sequences, source, seed=0):
    (found,) = open_sources([source], ExampleBuilder(sequences, ExampleConfig()), seed, None)
    return found


def test_source_epoch_uses_every_sample_once_in_a_new_order(folder, sequences):
    source = Source(path=folder, task="text")
    examples = opened(sequences, source)
    assert examples.size == 11
    keys = [examples[n].key for n in range(33)]
    orders = [tuple(keys[start : start + 11]) for start in (0, 11, 22)]
    assert [sorted(order) for order in orders] == [sorted(f"t{n}" for n in range(11))] * 3
    assert len(set(orders)) == 3
    again = opened(sequences, source)
    assert [again[n].key for n in (32, 3)] == [keys[32], keys[3]]
    other = opened(sequences, source, seed=1)
    assert [other[n].key for n in range(11)] != keys[:11]


def test_sources_of_one_folder_have_different_orders(folder, sequences):
    source = Source(path=folder, task="text")
    first, second = open_sources([source, source], ExampleBuilder(sequences), 0, None)
    assert [first[n].key for n in range(11)] != [second[n].key for n in range(11)]


def test_source_max_samples_is_a_fixed_subset(folder, sequences):
    def chosen(count, seed):
        examples = opened(sequences, Source(path=folder, task="text", max_samples=count), seed)
        assert examples.size == count
        keys = [examples[n].key for n in range(2 * count)]
        assert sorted(keys) == sorted(2 * list(dict.fromkeys(keys[:count])))
        return set(keys)

    assert chosen(5, 0) == chosen(5, 1) < chosen(8, 0) < chosen(11, 3)
    with pytest.raises(DataError, match=r"11 samples of kind text.*max_samples.*12"):
        opened(sequences, Source(path=folder, task="text", max_samples=12))


def test_source_swap_ratio_swaps_other_samples_every_epoch(sequences, tmp_path, write_folder):
    codes = np.zeros((2, 2), dtype=np.uint16)
    pairs = [
        Sample(kind="image_text", key=f"{n}", captions=("a cat",), image_codes=(codes,))
        for n in range(500)
    ]
    folder = write_folder(tmp_path / "pairs", pairs, codebook_size=64)
    source = opened(sequences, Source(path=folder, task="text_to_image", swap_ratio=0.2))
    examples = [source[n] for n in range(500)]
    assert len({example.key for example in examples}) == 500
    swapped = {example.key for example in examples if example.task == "image_to_text"}
    assert 75 < len(swapped) < 125
    again = {source[n].key for n in range(500, 1000) if source[n].task == "image_to_text"}
    assert len(again & swapped) < 40
    # the format agrees with the task
    by_task = {example.task: example for example in examples}
    assert by_task["image_to_text"].input_ids[1] == sequences.vocabulary.boi
    assert by_task["text_to_image"].input_ids[1] != sequences.vocabulary.boi


@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (1, 2, 1), (1, 1, 2), (0.8, 0.2), (0.26, 0.02, 0.52, 0.05), (3, 0, 1e-3)]
)
def test_sampler_never_deviates_by_two_samples(weights):
    sampler = WeightedSampler(weights)
    total = sum(Fraction(str(weight)) for weight in weights)
    counts = [0] * len(weights)
    for n in range(3000):
        place, index = sampler[n]
        assert index == counts[place]  # every sample of a source comes once, in order
        counts[place] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - (n + 1) * Fraction(str(weight)) / total) < 2
    # far ahead, in one step
    place, index = sampler[10**15]
    assert abs(index - 10**15 * Fraction(str(weights[place])) / total) < 2


def test_sampler_alternates_with_equal_weights():
    sampler = WeightedSampler((1, 1))
    assert [sampler[n] for n in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_sources_of_another_checkpoint_are_rejected(folder, sequences, tmp_path, write_folder):
    with pytest.raises(DataError, match="kind chat"):
        opened(sequences, Source(path=folder, task="chat"))
    texts = [Sample(kind="text", key="t", text="a")]
    other = write_folder(tmp_path / "texts", texts, codebook_size=32)
    with pytest.raises(DataError, match=r"32 codes.*64"):
        opened(sequences, Source(path=other, task="text"))
    with pytest.raises(DataError, match=r"f00d.*beef"):
        open_sources([Source(path=folder, task="text")], ExampleBuilder(sequences), 0, "beef")


def test_source_values_out_of_range_are_rejected(folder):
    with pytest.raises(ConfigError, match="sources: is empty"):
        check_sources([])
    with pytest.raises(ConfigError, match=r"sources: .*weights are 0"):
        check_sources([Source(path=folder, task="text", weight=0)] * 2)
    with pytest.raises(ConfigError, match=r"weight: .*-1"):
        Source(path=folder, task="text", weight=-1)
    with pytest.raises(ConfigError, match=r"weight: .*inf"):
        Source(path=folder, task="text", weight=float("inf"))
    with pytest.raises(ConfigError, match=r"max_samples: .*-1"):
        Source(path=folder, task="text", max_samples=-1)
    with pytest.raises(ConfigError, match=r"swap_ratio: .*2"):
        Source(path=folder, task="text_to_image", swap_ratio=2)
    with pytest.raises(ConfigError, match=r"swap_ratio: text.*text_to_image"):
        Source(path=folder, task="text", swap_ratio=0.1)
    with pytest.raises(ConfigError, match="Did you mean 'chat'"):
        Source(path=folder, task="chats")


@pytest.mark.parametrize(("old", "new"), [("count", "max_samples"), ("reverse", "swap_ratio")])
def test_source_old_keys_suggest_new_ones(old, new):
    with pytest.raises(ConfigError, match=rf"{old}: unknown key.*'{new}'"):
        from_dict(Source, {"path": "p", "task": "text", old: 1}, "run.toml")

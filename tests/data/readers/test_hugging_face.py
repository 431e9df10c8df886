import datasets
import pytest

from liquidmm.data.readers import Fields, SourceConfig, digest, list_chunks
from liquidmm.data.records import ImageTextRecord, TextRecord
from liquidmm.errors import ConfigError, DataError, MissingExtraError


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def dataset(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )

    def rows(count):
        return datasets.Dataset.from_dict(
            {
                # not an image: nothing may try to decode it
                "image": [b"PNG%d" % n for n in range(count)],
                "text": [f"a {n}" for n in range(count)],
                "label": [n % 2 if n else -1 for n in range(count)],
            },
            features=features,
        )

    return datasets.DatasetDict(train=rows(5), test=rows(2))


def test_read_saved_dataset_splits_and_classes(dataset, tmp_path, read):
    path = tmp_path / "saved"
    dataset.save_to_disk(path)
    found = read(path)
    assert [item.where for item in found] == [
        *(f"{path}:train[{n}]" for n in range(5)),
        *(f"{path}:test[{n}]" for n in range(2)),
    ]
    assert found[3].record == ImageTextRecord(
        key=f"{path}:train[3]", image=b"PNG3", captions=("a 3",), split="train"
    )
    assert [chunk.name for chunk in list_chunks(SourceConfig(path=str(path)), 3)] == [
        f"{path}:train[0:3]",
        f"{path}:train[3:5]",
        f"{path}:test[0:2]",
    ]
    found = read(path, splits=("test",), fields=Fields(captions="label"), license="MIT")
    assert [item.record for item in found] == [
        None,
        ImageTextRecord(
            key=f"{path}:test[1]", image=b"PNG1", captions=("dog",), split="test", license="MIT"
        ),
    ]
    with pytest.raises(ConfigError, match="fields.image: .*saved:train has no field 'jpg'. It ha"):
        read(path, fields=Fields(image="jpg"))


def test_read_saved_dataset_from_url(dataset, read):
    dataset.save_to_disk("memory://saved/set")
    found = read("memory://saved/set", splits=("test",), sizes=(1, 9))
    assert [item.record.image for item in found] == [b"PNG0", b"PNG1"]
    assert found[1].where == "memory:///saved/set:test[1]"


def test_read_column_named_split_used_if_named(tmp_path, read):
    path = tmp_path / "saved"
    rows = {"text": ["one", "two"], "split": ["a", "b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(path)
    assert [item.record.split for item in read(path)] == ["train", "train"]
    (item,) = read(path, fields=Fields(split="split"), splits=("b",))
    assert item.record == TextRecord(key=f"{path}:train[1]", text="two", split="b")
    with pytest.raises(DataError, match="contains no records"):
        read(path, splits=("b",))


def test_read_hub_id_loaded_with_load_dataset(dataset, tmp_path, read, monkeypatch):
    (tmp_path / "repository").mkdir()
    path = str(tmp_path / "repository")
    dataset["train"].to_parquet(f"{path}/train-00000-of-00001.parquet")
    found = read(path, format="huggingface")
    assert [item.record.image for item in found] == [b"PNG%d" % n for n in range(5)]
    assert {item.record.split for item in found} == {"train"}
    # and without the package's help
    assert [item.record.image for item in read(path)] == [b"PNG%d" % n for n in range(5)]
    with pytest.raises(DataError, match="cannot be loaded .*'nope'"):
        read(path, format="huggingface", subset="nope")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/nothing: cannot be loaded"):
        read("nobody/nothing", format="huggingface")


def test_digest_follows_saved_and_loaded_dataset(dataset, tmp_path, monkeypatch):
    path = tmp_path / "saved"
    dataset.save_to_disk(path)
    config = SourceConfig(path=str(path))
    first = digest(config)
    assert digest(config) == first
    dataset.pop("test")
    dataset.save_to_disk(path)
    assert digest(config) != first
    loaded = {"data": dataset}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded["data"])
    config = SourceConfig(path="some/set", format="huggingface")
    first = digest(config)
    loaded["data"] = datasets.DatasetDict(train=dataset["train"].select([0, 1]))
    assert digest(SourceConfig(path="some/set", format="huggingface", revision="v2")) != first


def test_cut_without_datasets_package_names_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"liquidmm\[hf\]\""):
        list_chunks(SourceConfig(path="a/b", format="huggingface"), 10)

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liquidmm.data.readers import Fields, SourceConfig, list_chunks
from liquidmm.data.records import ImageTextRecord, TextRecord
from liquidmm.errors import ConfigError


def test_parse_fields_named_by_run_file(tmp_path, write_lines, read, check_problems):
    row = {
        "no": 7,
        "jpg": "a.jpg",
        "blip": "a cat",
        "alt": ["cat", "tabby"],
        "meta": {"set": "coco", "licenses": ["MIT", "CC-BY-4.0"]},
        "text": "a document?",
    }
    path = write_lines(tmp_path / "r.jsonl", row, {"text": "x"})
    fields = Fields(
        key="no",
        image="jpg",
        captions=("blip", "alt"),
        source="meta.set",
        license="meta.licenses",
    )
    first, second = read(path, fields=fields, name="other", license="CC0-1.0", split="train")
    assert first.record == ImageTextRecord(
        key="7",
        image=tmp_path / "a.jpg",
        captions=("a cat", "cat", "tabby"),
        source="coco",
        license="MIT AND CC-BY-4.0",
        split="train",
    )
    assert second.record == TextRecord(
        key=f"{path}:2", text="x", source="other", license="CC0-1.0", split="train"
    )
    # text alone makes documents of everything
    found = read(path, fields=Fields(text="alt"))
    check_problems(found, "text.* list", "matches no known layout")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"fields": Fields(image="img")},
            "fields.image: {path} has no field 'img'. It has: blip, meta, picture.",
        ),
        (
            {"fields": Fields(image="pictures", captions="blip")},
            (
                "fields.image: {path} has no field 'pictures'. It has: blip, meta, picture. "
                "Did you mean 'picture'?"
            ),
        ),
        (
            {"fields": Fields(image="picture", captions=("blip", "meta.alt"))},
            (
                "fields.captions: {path} has no field 'meta.alt'. It has: blip, meta, picture. "
                "Did you mean 'meta.set'?"
            ),
        ),
        (
            {},
            (
                "layout: {path} has none of the fields messages, conversations, conversation, "
                "image, text, img_path, content. It has: blip, meta, picture."
            ),
        ),
        (
            {"layout": "journeydb"},
            "layout: {path} has none of the fields img_path. It has: blip, meta, picture.",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_check_fields_wrong_name_fails_before_reading(tmp_path, values, message, suffix):
    rows = [{"picture": "a.png", "blip": "a", "meta": {"set": "coco"}}] * 3
    path = tmp_path / f"r{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError) as error:
        list_chunks(SourceConfig(path=str(path), **values), 2)
    assert str(error.value).startswith(message.format(path=path))


def test_parse_splits_selected_rejected_records_always_kept(tmp_path, write_lines, read):
    rows = [{"text": str(n), "split": split} for n, split in enumerate(["a", "b", "a", ""])]
    path = write_lines(tmp_path / "r.jsonl", *rows, {"text": 5, "split": "a"})
    found = read(path, splits=("b",))
    assert [item.line for item in found] == [2, 5]
    found = read(path, splits=("b",), split="b")
    assert [item.line for item in found] == [2, 4, 5]

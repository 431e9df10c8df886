"""The `[source]` table of a run file. Nothing is opened here."""

from dataclasses import dataclass, field
from typing import Literal

from liquidmm.errors import ConfigError

Format = Literal["auto", "jsonl", "json", "csv", "parquet", "webdataset", "folder", "huggingface"]
Layout = Literal[
    "auto",
    "liquid",
    "llava",
    "sharegpt",
    "lmsys",
    "journeydb",
    "imagefolder",
    "dclm",
    "slimpajama",
    "starcoder",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Names of the fields in this source, if they differ from the usual ones.

    A dot selects a nested field: `meta.set_name` is `set_name` in `meta`. A field that is named
    here must exist. If only `text` is named, every record is a document.
    """

    key: str | None = None
    """Name of the record, a string or a number."""
    image: str | None = None
    """Image: a path, the content of a file, or `{bytes, path}` as in Hugging Face datasets."""
    captions: str | tuple[str, ...] | None = None
    """Captions: one or more fields, each with a caption or a list of captions. The first caption is
    the canonical one."""
    text: str | None = None
    """Text of a document."""
    messages: str | None = None
    """Turns of a conversation."""
    images: str | None = None
    """Images of a conversation."""
    source: str | None = None
    """Name of the record's dataset."""
    license: str | None = None
    """SPDX identifier of the license; a list is joined with AND."""
    split: str | None = None
    """Split of the dataset, such as `train`."""

    def given(self) -> dict[str, tuple[str, ...]]:
        """Return a mapping from our name of each named field to its names in the source."""
        given = ((name, getattr(self, name)) for name in self.__slots__)
        return {
            name: (value,) if isinstance(value, str) else value
            for name, value in given
            if value is not None
        }

    def __post_init__(self) -> None:
        for name, values in self.given().items():
            if not values or not all(value.strip() for value in values):
                raise ConfigError(f"{name}: is empty. Enter the name of a field or remove the key.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A dataset to read."""

    path: str | tuple[str, ...]
    """A file, a folder, a glob pattern (`*`, `**`, `?`, `{00..99}`) or a URL that fsspec supports
    (`s3://`, `gs://`, `hf://`), or a list of these, read in that order. With the format
    `huggingface`, a hub id."""
    format: Format = "auto"
    """File format; `auto` detects it from the file name or the content of the folder."""
    layout: Layout = "auto"
    """Layout of the records; `auto` detects the layout of each record from its keys."""
    subset: str = ""
    """Configuration of a Hugging Face dataset that has several configurations."""
    revision: str = ""
    """Commit, tag or branch of a dataset on the hub; empty uses the newest commit."""
    classes: str = ""
    """File with one class name per line, for captions that are class numbers, starting at 0."""
    image_root: str | None = None
    """Folder or URL that image paths are relative to; None means the folder of the file."""
    fields: Fields = field(default_factory=Fields)
    """Names of the fields, if they differ from the usual ones."""
    splits: tuple[str, ...] = ()
    """Splits to read; empty reads all records."""
    name: str = ""
    """Name of the dataset, for records without a `source`."""
    license: str = ""
    """SPDX identifier of the license, for records without one."""
    split: str = ""
    """Split, for records without one."""

    def __post_init__(self) -> None:
        if not self.paths or not all(path.strip() for path in self.paths):
            raise ConfigError("path: is empty. Enter a file, a folder, a pattern or a URL.")

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

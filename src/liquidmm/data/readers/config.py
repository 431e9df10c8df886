"""What a source is, as a run file says it: where, in which format and layout, under which names.

Contract: configuration only; nothing is opened here.
"""

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
    """Names that the fields of an entry have in this source.

    None takes the usual names. A dot steps into an object: `meta.set_name` is `set_name` in `meta`.
    A field that is named here must exist. Naming `text` and nothing else makes every entry a
    document, whatever other fields it has.
    """

    key: str | None = None
    """Name of the record; numbers are taken too."""
    image: str | None = None
    """The picture: a path, the content of a file, or `{bytes, path}` as Hugging Face stores it."""
    captions: str | tuple[str, ...] | None = None
    """What the picture shows; each named field holds one caption or a list, the first is the
    canonical one."""
    text: str | None = None
    """A document."""
    messages: str | None = None
    """The turns of a conversation."""
    images: str | None = None
    """The pictures of a conversation."""
    source: str | None = None
    """Data set that an entry comes from."""
    license: str | None = None
    """SPDX name of the licence; of several, all hold."""
    split: str | None = None
    """Part of the data set, such as `train`."""

    def given(self) -> dict[str, tuple[str, ...]]:
        """Return the fields that are named, each with its names in the source."""
        named: dict[str, tuple[str, ...]] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                named[name] = (value,) if isinstance(value, str) else value
        return named

    def __post_init__(self) -> None:
        """Refuse empty names."""
        for name, values in self.given().items():
            if not values or not all(value.strip() for value in values):
                raise ConfigError(f"{name}: is empty. Give the name of a field or leave it out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A source of records: the `[source]` table of a run file."""

    path: str | tuple[str, ...]
    """A file, a folder, a pattern (`*`, `**`, `?`, `{00..99}`) or a URL that fsspec knows (`s3://`,
    `gs://`, `hf://`, `memory://`), or several of them, read in that order; with the format
    `huggingface` a hub id."""
    format: Format = "auto"
    """How the entries are stored; `auto` goes by the name of the file or what a folder holds."""
    layout: Layout = "auto"
    """What fields the entries have, see `layouts`; `auto` tells it of each entry by its keys."""
    subset: str = ""
    """Configuration of a Hugging Face data set, where it has several."""
    revision: str = ""
    """Commit, tag or branch of a data set on the hub; empty takes the newest."""
    classes: str = ""
    """File with one name per line, for captions that are numbers of classes (from 0)."""
    image_root: str | None = None
    """Folder or URL that relative picture paths start from; None: the folder of the file."""
    fields: Fields = field(default_factory=Fields)
    """Names of the fields, where they are not the usual ones."""
    splits: tuple[str, ...] = ()
    """Only records of these splits are taken; empty takes all records."""
    name: str = ""
    """Name of the data set, for records that don't say where they come from."""
    license: str = ""
    """SPDX name of the licence, for records that don't say it."""
    split: str = ""
    """Split of the records that don't say it."""

    def __post_init__(self) -> None:
        """Refuse empty paths."""
        if not self.paths or not all(path.strip() for path in self.paths):
            raise ConfigError("path: is empty. Name a file, a folder, a pattern or a URL.")

    @property
    def paths(self) -> tuple[str, ...]:
        """What `path` names, one or several."""
        return (self.path,) if isinstance(self.path, str) else self.path

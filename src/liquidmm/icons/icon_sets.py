"""Icon sets of the `@iconify/json` package: drawings, names and licenses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from liquidmm.errors import ConfigError, DataError, suggest
from liquidmm.icons.io import read_package

PERMISSIVE = frozenset({
    "Apache-2.0", "MIT", "ISC", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense",
    "OFL-1.1",
})  # fmt: skip
"""SPDX identifiers of licenses that require at most attribution."""
SHARE_ALIKE = frozenset({"CC-BY-SA-3.0", "CC-BY-SA-4.0"})
"""SPDX identifiers of licenses that also apply to derived works."""
_BRANDS = frozenset({"devicon", "skill-icons", "gcp", "k8s", "unjs", "thesvg"})
"""Sets of trademarks outside the logo category."""
_OWN_PADDING = frozenset({"fluent-emoji-flat", "fluent-emoji", "streamline-emojis"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """The entry of one set in `collections.json`."""

    prefix: str
    """The set's short name: `noto`."""
    title: str
    """The set's full name: `Noto Emoji`."""
    author: str
    """Author, with a link if there is one."""
    license: str
    """SPDX identifier."""
    category: str
    """Category in iconify; empty if hidden."""
    color: bool
    """True if the icons are colored."""

    @property
    def is_emoji(self) -> bool:
        """Whether the set contains the official emoji."""
        return self.category == "Emoji" or "emoji" in self.prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class IconSet:
    """One set, as read from its JSON file."""

    collection: Collection
    """Author and license."""
    icons: Mapping[str, Mapping[str, Any]]
    """Icon name -> body and optional width, height, left, top, hFlip, vFlip."""
    aliases: Mapping[str, tuple[str, ...]]
    """Icon name -> other names of the same drawing."""
    codes: Mapping[str, tuple[str, ...]]
    """Icon name -> code sequences that the set declares for the icon."""
    categories: Mapping[str, str]
    """Icon name -> the set's own category."""
    width: float
    """Default width of an icon, in its own units."""
    height: float
    """Default height of an icon, in its own units."""

    def svg(self, name: str, size: int, margin: int) -> str:
        """Return one icon as a square SVG document.

        Args:
            name: Name of an icon of this set.
            size: Width and height of the image in pixels.
            margin: Empty border in pixels, not added if the set's drawings already have a border.

        Returns:
            The document; the drawing is centered and keeps its aspect ratio.
        """
        icon = self.icons[name]
        width, height = float(icon.get("width", self.width)), float(icon.get("height", self.height))
        left, top = float(icon.get("left", 0)), float(icon.get("top", 0))
        border = 0 if self.collection.prefix in _OWN_PADDING else margin
        pad = max(width, height) * border / max(1, size - 2 * border)
        body = str(icon["body"])
        if icon.get("hFlip") or icon.get("vFlip"):
            across, down = (-1 if icon.get("hFlip") else 1), (-1 if icon.get("vFlip") else 1)
            x = 2 * left + width if across < 0 else 0
            y = 2 * top + height if down < 0 else 0
            body = f'<g transform="translate({x} {y}) scale({across} {down})">{body}</g>'
        box = f"{left - pad} {top - pad} {width + 2 * pad} {height + 2 * pad}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{box}" color="#000000">{body}</svg>'
        )


def read_json(tarball: Path, members: Sequence[str]) -> list[Any]:
    """Read JSON files from an npm tarball, in the order of `members`.

    Raises:
        DataError: The tarball is missing or damaged, or lacks a file.
    """
    found = read_package(tarball, members)
    try:
        return [json.loads(found[member]) for member in members]
    except ValueError as error:
        raise DataError(
            f"{tarball}: cannot be read ({error}). Download it again with `make icons`."
        ) from error


def read_collections(tarball: Path) -> dict[str, Collection]:
    """Read the sets listed in an `@iconify/json` tarball, by prefix.

    Raises:
        DataError: The tarball is missing or damaged, or contains another package.
    """
    found = {}
    for prefix, entry in read_json(tarball, ["collections.json"])[0].items():
        author = entry.get("author") or {}
        link = f", {author['url']}" if author.get("url") else ""
        found[prefix] = Collection(
            prefix=prefix,
            title=str(entry.get("name", prefix)),
            author=f"{author.get('name', 'unknown author')}{link}",
            license=str((entry.get("license") or {}).get("spdx") or "unknown"),
            category=str(entry.get("category") or ""),
            color=bool(entry.get("palette")),
        )
    return found


def license_terms(
    collection: Collection,
) -> Literal["permissive", "share-alike", "brand", "rejected"]:
    """Return the terms of use of a set."""
    if collection.prefix in _BRANDS or collection.category in {"Logos", "Brands / Social"}:
        return "brand"
    if collection.license in PERMISSIVE:
        return "permissive"
    return "share-alike" if collection.license in SHARE_ALIKE else "rejected"


def check_license(
    collections: Mapping[str, Collection], style: str, share_alike: bool
) -> Collection:
    """Return the set called `style` if its license allows use.

    Args:
        collections: All sets of the tarball.
        style: Prefix of the set.
        share_alike: Accept share-alike licenses.

    Raises:
        ConfigError: The set does not exist, or its license does not allow its use.
    """
    if style not in collections:
        raise ConfigError(f"styles: unknown icon set {style!r}.{suggest(style, collections)}")
    collection = collections[style]
    terms = license_terms(collection)
    if terms == "brand":
        raise ConfigError(
            f"styles: {style} contains trademarks ({collection.title}). Remove it from the list."
        )
    if terms == "rejected":
        raise ConfigError(
            f"styles: the license of {style} is {collection.license}, which is not permissive. "
            "Remove it from the list."
        )
    if terms == "share-alike" and not share_alike:
        raise ConfigError(
            f"styles: the license of {style} is {collection.license}, which also applies to "
            "everything made from it. Remove it from the list, or accept it with --share-alike."
        )
    return collection


def color_styles(collections: Mapping[str, Collection]) -> tuple[str, ...]:
    """Return the names of all permissively licensed color sets except flags and map markers."""
    return tuple(
        prefix
        for prefix, entry in sorted(collections.items())
        if entry.color
        and license_terms(entry) == "permissive"
        and entry.category not in {"Flags / Maps", "Programming"}
    )


def read_trademarks(tarball: Path, collections: Mapping[str, Collection]) -> frozenset[str]:
    """Read the names of all logos in the tarball; empty if it has no set of logos.

    Raises:
        DataError: The tarball is damaged or lacks the set.
    """
    if "logos" not in collections:
        return frozenset()
    return frozenset(read_json(tarball, ["json/logos.json"])[0]["icons"])


def read_sets(tarball: Path, collections: Sequence[Collection]) -> list[IconSet]:
    """Read the given sets, in order.

    Raises:
        DataError: The tarball is damaged or lacks a set.
    """
    files = read_json(tarball, [f"json/{entry.prefix}.json" for entry in collections])
    return [_icon_set(entry, data) for entry, data in zip(collections, files, strict=True)]


def _icon_set(collection: Collection, data: Mapping[str, Any]) -> IconSet:
    icons: dict[str, Mapping[str, Any]] = {
        name: icon for name, icon in data["icons"].items() if not icon.get("hidden")
    }
    aliases: dict[str, list[str]] = {}
    for name, alias in (data.get("aliases") or {}).items():
        changes = {key: value for key, value in alias.items() if key != "parent"}
        if not changes:
            aliases.setdefault(alias["parent"], []).append(name)
        elif set(changes) <= {"hFlip", "vFlip"} and alias["parent"] in icons:
            icons[name] = {**icons[alias["parent"]], **changes}
    codes: dict[str, list[str]] = {}
    for code, name in (data.get("chars") or {}).items():
        codes.setdefault(name, []).append(code)
    categories = (data.get("categories") or {}).items()
    return IconSet(
        collection=collection,
        icons=icons,
        aliases={name: tuple(sorted(names)) for name, names in aliases.items()},
        codes={name: tuple(sorted(found)) for name, found in codes.items()},
        categories={name: category for category, names in categories for name in names},
        width=float(data.get("width", 16)),
        height=float(data.get("height", data.get("width", 16))),
    )

"""Icon sets as the `@iconify/json` package carries them: drawings, names and licences.

Contract: `read_collections` and `read_sets` read the package's tarball in place, `check_license`
says whether a set may be used, and `IconSet.svg` gives a complete SVG document. A damaged tarball
is a `DataError` that names it, an unknown set a `ConfigError`.
"""

import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from liquidmm.errors import ConfigError, DataError, suggest

PERMISSIVE = frozenset(
    {
        "Apache-2.0",
        "MIT",
        "ISC",
        "BSD-3-Clause",
        "CC0-1.0",
        "CC-BY-3.0",
        "CC-BY-4.0",
        "Unlicense",
        "OFL-1.1",
    }
)
"""SPDX identifiers that allow use with at most attribution."""
SHARE_ALIKE = frozenset({"CC-BY-SA-3.0", "CC-BY-SA-4.0"})
"""SPDX identifiers that pass their own terms on to what is made from the work."""
_BRANDS = frozenset({"devicon", "skill-icons", "gcp", "k8s", "unjs", "thesvg"})
"""Sets of trademarks that are filed under another category than the one for logos."""
_OWN_PADDING = frozenset({"fluent-emoji-flat", "fluent-emoji", "streamline-emojis"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """What `collections.json` says about one set."""

    prefix: str
    """The set's short name: `noto`."""
    title: str
    """The set's full name: `Noto Emoji`."""
    author: str
    """Who made it, with a link where one is given."""
    licence: str
    """SPDX identifier."""
    category: str
    """The category iconify files it under; empty when hidden."""
    colour: bool
    """True when the icons have colours of their own."""

    @property
    def emoji(self) -> bool:
        """Whether it draws the official emoji."""
        return self.category == "Emoji" or "emoji" in self.prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class IconSet:
    """One set, as read from its JSON file."""

    collection: Collection
    """Author and licence."""
    icons: Mapping[str, Mapping[str, Any]]
    """Icon name to body and optional width, height, left, top, hFlip, vFlip."""
    aliases: Mapping[str, tuple[str, ...]]
    """Icon name to the other names of the same drawing."""
    codes: Mapping[str, tuple[str, ...]]
    """Icon name to the code sequences it is declared for."""
    categories: Mapping[str, str]
    """Icon name to the set's own category."""
    width: float
    """Default width of an icon, in its own units."""
    height: float
    """Default height of an icon, in its own units."""

    def svg(self, name: str, size: int, margin: int) -> str:
        """Write one icon as a square SVG document.

        Args:
            name: Name of an icon of this set.
            size: Side of the picture in pixels.
            margin: Empty border in pixels; sets that are drawn with a border of their own get none.

        Returns:
            The document, with the drawing centred and its aspect ratio kept.
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
    """Read JSON files of an npm tarball, in one pass.

    Args:
        tarball: A `.tgz` file as `npm pack` writes it.
        members: Paths inside the package: `json/noto.json`.

    Returns:
        The parsed files, in the order of `members`.

    Raises:
        DataError: The tarball is missing or broken, or lacks a member.
    """
    wanted = {f"package/{member}" for member in members}
    found: dict[str, Any] = {}
    try:
        with tarfile.open(tarball, "r|*") as archive:
            for entry in archive:
                if entry.name in wanted and (handle := archive.extractfile(entry)) is not None:
                    found[entry.name] = json.load(handle)
                if len(found) == len(wanted):
                    break
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{tarball}: can't be read ({error}). Fetch it again with npm pack."
        ) from error
    if missing := sorted(wanted - set(found)):
        raise DataError(f"{tarball}: no file {missing[0]}. Is it the tarball of the right package?")
    return [found[f"package/{member}"] for member in members]


def read_collections(tarball: Path) -> dict[str, Collection]:
    """Read the list of sets of an `@iconify/json` tarball, by prefix.

    Raises:
        DataError: The tarball is missing, broken or another package.
    """
    found = {}
    for prefix, entry in read_json(tarball, ["collections.json"])[0].items():
        author = entry.get("author") or {}
        link = f", {author['url']}" if author.get("url") else ""
        found[prefix] = Collection(
            prefix=prefix,
            title=str(entry.get("name", prefix)),
            author=f"{author.get('name', 'unknown author')}{link}",
            licence=str((entry.get("license") or {}).get("spdx") or "unknown"),
            category=str(entry.get("category") or ""),
            colour=bool(entry.get("palette")),
        )
    return found


def licence_verdict(
    collection: Collection,
) -> Literal["permissive", "share-alike", "brand", "refused"]:
    """Say under which terms a set may be used."""
    if collection.prefix in _BRANDS or collection.category in {"Logos", "Brands / Social"}:
        return "brand"
    if collection.licence in PERMISSIVE:
        return "permissive"
    return "share-alike" if collection.licence in SHARE_ALIKE else "refused"


def check_license(
    collections: Mapping[str, Collection], style: str, share_alike: bool
) -> Collection:
    """Return the set called `style` if it may be used.

    Args:
        collections: All sets of the tarball.
        style: Prefix of the wanted set.
        share_alike: Whether share-alike licences were asked for.

    Raises:
        ConfigError: No such set, or its licence does not allow it.
    """
    if style not in collections:
        raise ConfigError(f"styles: no icon set {style!r}.{suggest(style, collections)}")
    collection = collections[style]
    verdict = licence_verdict(collection)
    if verdict == "brand":
        raise ConfigError(f"styles: {style} holds trademarks ({collection.title}). Leave it out.")
    if verdict == "refused":
        raise ConfigError(
            f"styles: {style} is under {collection.licence}, which is not permissive. Leave it out."
        )
    if verdict == "share-alike" and not share_alike:
        raise ConfigError(
            f"styles: {style} is under {collection.licence}, which binds whatever is made from it. "
            "Leave it out, or ask for it with --share-alike."
        )
    return collection


def color_styles(collections: Mapping[str, Collection]) -> tuple[str, ...]:
    """Name every permissively licensed set with colours of its own, flags and marker sets aside."""
    return tuple(
        prefix
        for prefix, entry in sorted(collections.items())
        if entry.colour
        and licence_verdict(entry) == "permissive"
        and entry.category not in {"Flags / Maps", "Programming"}
    )


def read_trademarks(tarball: Path, collections: Mapping[str, Collection]) -> frozenset[str]:
    """Read the names of all drawings of the tarball's set of logos; empty where it has none.

    Raises:
        DataError: The tarball is broken or lacks the set.
    """
    if "logos" not in collections:
        return frozenset()
    return frozenset(read_json(tarball, ["json/logos.json"])[0]["icons"])


def read_sets(tarball: Path, collections: Sequence[Collection]) -> list[IconSet]:
    """Read the drawings of some sets, in the order given.

    Raises:
        DataError: The tarball is broken or lacks a set.
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
    categories = {
        name: key for key, names in (data.get("categories") or {}).items() for name in names
    }
    return IconSet(
        collection=collection,
        icons=icons,
        aliases={name: tuple(sorted(names)) for name, names in aliases.items()},
        codes={name: tuple(sorted(found)) for name, found in codes.items()},
        categories=categories,
        width=float(data.get("width", 16)),
        height=float(data.get("height", data.get("width", 16))),
    )

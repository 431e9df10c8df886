"""Guided images in an engine that supports only independent requests.

An image is a guided pair of requests: one with the prompt (conditional) and one with the
unconditional prompt (not needed when the guidance is 1). The extra arguments of each request name
its pair (`liquid_pair`), its role (`liquid_role`), the seed of the image, its guidance and its
number of codes. In every step, both requests are limited to a single token: the guided, sampled
code, or eoi after the last code. The engine's own sampler therefore cannot make them differ, and an
image depends only on its own seed.

If a request's partner is not in the same step at the same code, the request is never sampled. From
that step on, it gets the unconditional token, which images never contain: the request stops, and
the reason is reported once. `vllm_plugin` connects this module to vLLM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from liquidmm.errors import ConfigError
from liquidmm.generate.rng import check_seed, exponential
from liquidmm.generate.sampling import Sampler, SamplingConfig, guide
from liquidmm.vocabulary import Vocabulary

PAIR, ROLE, SEED = "liquid_pair", "liquid_role", "liquid_seed"
GUIDANCE, CODES = "liquid_guidance", "liquid_codes"
ARGUMENTS = (PAIR, ROLE, SEED, GUIDANCE, CODES)
"""Names of a request's extra arguments."""

ROLES = ("conditional", "unconditional")
"""Values of `liquid_role`."""

_MAX_REMEMBERED = 4096
"""Number of stopped pairs to remember; far more than an engine runs at once."""


class RequestSettings(Protocol):
    """An engine's settings of a request, such as vLLM's `SamplingParams`."""

    extra_args: Mapping[str, Any] | None
    n: int
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedRequest:
    """One of the two requests of a guided pair."""

    pair: str
    """Name of the pair, unique among all pairs."""
    conditional: bool
    """Whether this request has the prompt."""
    codes: int
    """Number of codes of the image, at least 1."""
    seed: int
    """Seed of the image; vLLM's own `seed` is not used."""
    sampling: SamplingConfig
    """How to sample codes, including guidance."""

    @property
    def needs_partner(self) -> bool:
        """Whether the other request is needed; with a guidance of 1, the scores do not change."""
        return self.sampling.guidance != 1

    def __post_init__(self) -> None:
        if not self.pair:
            raise ConfigError(
                f"{PAIR}: expected a name, got ''. Give both requests of an image the same name."
            )
        if self.codes < 1:
            raise ConfigError(
                f"{CODES}: expected at least 1, got {self.codes}. Give height x width."
            )
        check_seed(self.seed)

    @classmethod
    def from_settings(cls, settings: RequestSettings) -> GuidedRequest | None:
        """Read the settings of a request; return None if it does not belong to a pair.

        A temperature of 0 is greedy; a top_k of 0 or -1 is off.

        Raises:
            ConfigError: An argument is missing or out of range.
        """
        extra = settings.extra_args or {}
        missing = [name for name in ARGUMENTS if name not in extra]
        if len(missing) == len(ARGUMENTS):
            return None
        if missing:
            raise ConfigError(f"{missing[0]}: is missing. Give all of {', '.join(ARGUMENTS)}.")
        if extra[ROLE] not in ROLES:
            raise ConfigError(f"{ROLE}: expected {' or '.join(ROLES)}, got {extra[ROLE]!r}.")
        if settings.n != 1:
            raise ConfigError(
                f"n: expected 1 for a request of a pair, got {settings.n}. Send more pairs."
            )
        greedy = settings.temperature == 0
        return cls(
            pair=str(extra[PAIR]),
            conditional=extra[ROLE] == ROLES[0],
            codes=_integer(CODES, extra[CODES]),
            seed=_integer(SEED, extra[SEED]),
            sampling=SamplingConfig(
                guidance=_number(GUIDANCE, extra[GUIDANCE]),
                temperature=1.0 if greedy else settings.temperature,
                top_k=max(settings.top_k, 0),
                top_p=settings.top_p,
                greedy=greedy,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActiveRequest:
    """A guided request in one step of the engine."""

    row: int
    """Row of the step's logits."""
    request: GuidedRequest
    """The request of this row."""
    generated: int
    """Number of tokens that the request has received so far."""


GuidedPair: TypeAlias = Sequence[ActiveRequest]
"""The requests of one image, at the same code: the conditional one, and the other if needed."""


class PairSampler:
    """Samples the tokens of guided pairs, step by step."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stopped: dict[str, None] = {}

    @property
    def stopped(self) -> Collection[str]:
        """Names of stopped pairs; only the latest 4,096 are kept."""
        return self._stopped.keys()

    def apply(self, logits: Tensor, requests: Sequence[ActiveRequest]) -> list[str]:
        """Limit every row of a pair to a single possible token.

        Args:
            logits: Scores of the step, (R, V), V at least `vocabulary.size`. Only the rows of pairs
                are changed, in place.
            requests: The guided requests in this step.

        Returns:
            One sentence for each pair that must stop; each problem is reported once.
        """
        pairs, problems = match_pairs(requests, self._stopped)
        complete = []
        groups: dict[int, list[GuidedPair]] = defaultdict(list)
        for pair in pairs:
            if pair[0].generated < pair[0].request.codes:
                groups[len(pair)].append(pair)
            else:
                complete += [active.row for active in pair]
        for group in groups.values():
            problems |= self._sample(logits, group)
        self._stopped |= dict.fromkeys(problems)
        while len(self._stopped) > _MAX_REMEMBERED:
            del self._stopped[next(iter(self._stopped))]
        stopped = [active.row for active in requests if active.request.pair in self._stopped]
        _force(logits, stopped, self._vocabulary.unconditional)
        _force(logits, complete, self._vocabulary.eoi)
        return [f"pair {name}: {problem}" for name, problem in problems.items()]

    def _sample(self, logits: Tensor, pairs: Sequence[GuidedPair]) -> dict[str, str]:
        """Sample a code for each pair, where all or none are guided; return problems by name."""
        firsts = [pair[0] for pair in pairs]
        settings = [active.request.sampling for active in firsts]
        rows = [[active.row for active in column] for column in zip(*pairs, strict=True)]
        codes = self._vocabulary.image_slice
        scores = logits[rows[0]][:, codes]
        if len(rows) == 2:
            scale = torch.tensor([[one.guidance] for one in settings], device=logits.device)
            scores = guide(scores, logits[rows[1]][:, codes], scale)
        sampler = Sampler(settings, logits.device)
        columns, valid = sampler.sample(scores, _noise(firsts, sampler, scores))
        only = torch.full((len(pairs), logits.shape[1]), -torch.inf, device=logits.device)
        only[:, codes].scatter_(1, columns[:, None], 0.0)
        for part in rows:
            logits[part] = only.to(logits.dtype)
        return {
            active.request.pair: "the model's scores are not finite."
            for active, fine in zip(firsts, valid.tolist(), strict=True)
            if not fine
        }


def match_pairs(
    requests: Sequence[ActiveRequest], stopped: Collection[str]
) -> tuple[list[GuidedPair], dict[str, str]]:
    """Find the pairs among the requests of one step; pairs in ``stopped`` stay stopped.

    Returns:
        The pairs to sample, and the problem of each newly incomplete pair by its name.
    """
    found: dict[str, list[ActiveRequest]] = defaultdict(list)
    for active in requests:
        found[active.request.pair].append(active)
    pairs: list[GuidedPair] = []
    problems: dict[str, str] = {}
    for name, members in found.items():
        if name in stopped:
            continue
        members.sort(key=lambda active: not active.request.conditional)
        if problem := _problem(members):
            problems[name] = problem
        else:
            pairs.append(members)
    return pairs, problems


def _problem(members: Sequence[ActiveRequest]) -> str | None:
    """Explain why these requests are not a pair; the conditional ones come first."""
    first, *others = members
    if not others:
        if first.request.conditional and not first.request.needs_partner:
            return None
        there, missing = ROLES if first.request.conditional else reversed(ROLES)
        return (
            f"its {missing} request is not in the same step as the {there} one "
            f"after {first.generated} tokens."
        )
    second = others[0]
    if len(members) > 2 or first.request.conditional == second.request.conditional:
        return f"{len(members)} requests have this name, expected one {' and one '.join(ROLES)}."
    if replace(second.request, conditional=True) != first.request:
        return "its requests differ in seed, codes, guidance or sampling."
    if first.generated != second.generated:
        return f"its requests have {first.generated} and {second.generated} tokens."
    return None


def _noise(requests: Sequence[ActiveRequest], sampler: Sampler, scores: Tensor) -> Tensor | None:
    """Return the random numbers of each row's step, the same as in this package's engine."""
    if sampler.all_greedy:
        return None
    seeds = torch.tensor([active.request.seed for active in requests], device=scores.device)
    steps = torch.tensor([active.generated for active in requests], device=scores.device)
    return exponential(seeds, steps, torch.arange(scores.shape[1], device=scores.device))


def _force(logits: Tensor, rows: list[int], token: int) -> None:
    if rows:
        logits[rows] = -torch.inf
        logits[rows, token] = 0.0


def _integer(name: str, value: object) -> int:
    number = _number(name, value)
    if isinstance(number, float) and not number.is_integer():
        raise ConfigError(f"{name}: expected an integer, got {value!r}.")
    return int(number)


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: expected a number, got {value!r}.")
    return value

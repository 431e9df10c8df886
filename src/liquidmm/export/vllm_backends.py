"""Where vLLM runs: in this process, or behind the OpenAI completions API.

Contract: ids go in and ids come back, in order; both ways take the same `Completion` and do the
same with it. Whatever vLLM refuses is a `LiquidError` with vLLM's words.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.runtime import require_extra

_NEVER = -100.0
"""Logit bias of a marker in text, the least that the API takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Ids to continue."""

    prompt: tuple[int, ...]
    """Ids to continue."""
    max_tokens: int
    """Ids to add at most."""
    sampling: SamplingConfig
    """How ids are drawn."""
    stop: tuple[int, ...]
    """Ids that end it; the one that came is the last id of the answer."""
    seed: int | None = None
    """Seed of vLLM's own random numbers; pictures have theirs among the extra arguments."""
    forbidden: tuple[int, ...] = ()
    """Ids that may not come."""
    extra: Mapping[str, str | int | float] = field(default_factory=dict)
    """Arguments for the plugin."""

    def fields(self) -> dict[str, Any]:
        """Return what vLLM's sampling parameters and the API's fields have in common."""
        sampling = self.sampling
        return {
            "max_tokens": self.max_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": self.seed,
            "stop_token_ids": list(self.stop),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Ids that vLLM added."""

    ids: tuple[int, ...]
    """All of them, the id that ended it included."""


class Backend(Protocol):
    """A vLLM somewhere."""

    def complete(self, requests: Sequence[Completion]) -> list[Answer]:
        """Continue several prompts at once; answers come in order.

        Raises:
            LiquidError: vLLM can't be reached or refused a request.
        """


class InProcess:
    """A `vllm.LLM`, made with `scheduler_cls="liquidmm.export.vllm_scheduler.PairScheduler"`."""

    def __init__(self, llm: Any) -> None:
        """Keep it.

        Raises:
            MissingExtraError: vLLM isn't installed.
        """
        self._llm = llm
        self._parameters = require_extra("vllm", "vllm").SamplingParams
        self._refusals = (ValueError, require_extra("vllm.exceptions", "vllm").VLLMError)

    def complete(self, requests: Sequence[Completion]) -> list[Answer]:
        """Continue several prompts at once."""
        parameters = [
            self._parameters(
                **request.fields(),
                logit_bias=dict.fromkeys(request.forbidden, _NEVER) or None,
                extra_args=dict(request.extra) or None,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        try:
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        except self._refusals as error:
            raise LiquidError(f"vllm: refused a request ({_first_line(str(error))}).") from error
        return [Answer(ids=tuple(output.outputs[0].token_ids)) for output in outputs]


class Server:
    """A server with the OpenAI completions API, as `vllm serve` starts it."""

    def __init__(
        self, url: str, model: str | None = None, timeout: float = 600.0, connections: int = 64
    ) -> None:
        """Remember where it is.

        Args:
            url: Its address, as http://localhost:8000.
            model: Name of the model there; None asks the server.
            timeout: Seconds to wait for an answer.
            connections: Requests sent at once, even: a picture needs two.

        Raises:
            ConfigError: The address or the number is none.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {url!r} is no address. Give one as http://localhost:8000.")
        if connections < 2 or connections % 2:
            raise ConfigError(f"connections: {connections} is not even. Give 2, 4, 6, ...")
        self.url = url.rstrip("/").removesuffix("/v1")
        """Its address."""
        self._model = model
        self._timeout = timeout
        self._connections = connections

    def complete(self, requests: Sequence[Completion]) -> list[Answer]:
        """Continue several prompts at once."""
        if self._model is None:
            self._model = self.models()[0]
        with ThreadPoolExecutor(min(len(requests), self._connections) or 1) as pool:
            return list(pool.map(self._complete, requests))

    def models(self) -> list[str]:
        """Ask what is served.

        Raises:
            LiquidError: The server gives no answer.
        """
        return [model["id"] for model in self._call("/v1/models", None)["data"]]

    def body(self, request: Completion) -> dict[str, Any]:
        """Return the JSON body of one request to /v1/completions.

        With OpenAI's own client, what it doesn't know goes into `extra_body`.
        """
        bias = {str(token): _NEVER for token in request.forbidden}
        return {
            "model": self._model,
            "prompt": list(request.prompt),
            **request.fields(),
            **({"logit_bias": bias} if bias else {}),
            **({"vllm_xargs": dict(request.extra)} if request.extra else {}),
            "return_token_ids": True,
        }

    def _complete(self, request: Completion) -> Answer:
        answer = self._call("/v1/completions", self.body(request))
        ids = answer["choices"][0].get("token_ids")
        if ids is None:
            raise LiquidError(
                f"{self.url}: returns no token ids. Serve the checkpoint with vLLM 0.32 or newer."
            )
        return Answer(ids=tuple(ids))

    def _call(self, path: str, body: dict[str, Any] | None) -> Any:
        request = Request(  # noqa: S310 (the scheme is checked above)
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                return json.load(answer)
        except HTTPError as error:
            told = _first_line(error.read().decode(errors="replace"))
            raise LiquidError(f"{self.url}: refused a request ({error.code}: {told}).") from error
        except (OSError, HTTPException, ValueError) as error:
            raise LiquidError(
                f"{self.url}: gives no answer ({error}). Is it `vllm serve`, and is it running?"
            ) from error


def _first_line(text: str) -> str:
    """Give the message of an error, without what stands around it in JSON."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return (text.strip() or "no reason given").splitlines()[0]

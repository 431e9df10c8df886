"""A vLLM engine, in this process or behind the OpenAI completions API.

Input and output are token ids, in order. Both backends handle a `CompletionRequest` in the same
way. A request that vLLM rejects raises a `LiquidError` with vLLM's message.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol, TypeAlias
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.runtime import require_extra

_FORBIDDEN_BIAS = -100.0
"""Logit bias of a forbidden token, the lowest that the API accepts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """Token ids to continue."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingConfig
    stop: tuple[int, ...]
    """Token ids that end the completion; the one that occurs is its last token."""
    seed: int | None = None
    """Seed of vLLM's own random numbers; the seeds of images are in the extra arguments."""
    forbidden: tuple[int, ...] = ()
    """Token ids that must not be generated."""
    extra: Mapping[str, str | int | float] = field(default_factory=dict)
    """Arguments for the plugin."""

    def fields(self) -> dict[str, Any]:
        """Return the fields that vLLM's sampling parameters and the API have in common."""
        sampling = self.sampling
        return {
            "max_tokens": self.max_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": self.seed,
            "stop_token_ids": list(self.stop),
        }


Completion: TypeAlias = tuple[int, ...]
"""All token ids that vLLM generated, including the one that ended the completion."""


class Backend(Protocol):
    """A vLLM engine."""

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Continue several prompts at once; completions are in the order of the requests.

        Raises:
            LiquidError: vLLM cannot be reached or rejected a request.
        """


class InProcess:
    """A `vllm.LLM`, made with `scheduler_cls="liquidmm.export.vllm_scheduler.PairScheduler"`."""

    def __init__(self, llm: Any) -> None:
        """Wrap an LLM, or raise a `MissingExtraError` if vLLM is not installed."""
        self._llm = llm
        self._parameters = require_extra("vllm", "vllm").SamplingParams
        self._errors = (ValueError, require_extra("vllm.exceptions", "vllm").VLLMError)

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Continue several prompts at once."""
        parameters = [
            self._parameters(
                **request.fields(),
                logit_bias=dict.fromkeys(request.forbidden, _FORBIDDEN_BIAS) or None,
                extra_args=dict(request.extra) or None,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        try:
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        except self._errors as error:
            raise LiquidError(f"vllm: rejected a request ({_message(str(error))}).") from error
        return [tuple(output.outputs[0].token_ids) for output in outputs]


class Server:
    """A server with the OpenAI completions API, as started by `vllm serve`."""

    def __init__(
        self, url: str, model: str | None = None, timeout: float = 600.0, connections: int = 64
    ) -> None:
        """Check the settings without sending anything.

        Args:
            url: Address, such as http://localhost:8000.
            model: Name of the model on the server; None asks the server.
            timeout: Seconds to wait for an answer.
            connections: Requests to send at once; an even number because an image needs two.

        Raises:
            ConfigError: The address or the number of connections is invalid.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"url: expected an address such as http://localhost:8000, got {url!r}."
            )
        if connections < 2 or connections % 2:
            raise ConfigError(f"connections: expected 2, 4, 6, ..., got {connections}.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._timeout = timeout
        self._connections = connections

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Continue several prompts at once."""
        if self._model is None:
            self._model = self.models()[0]
        with ThreadPoolExecutor(min(len(requests), self._connections) or 1) as pool:
            return list(pool.map(self._complete, requests))

    def models(self) -> list[str]:
        """Return the names of the served models, or raise a `LiquidError` without an answer."""
        return [model["id"] for model in self._call("/v1/models", None)["data"]]

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """Return the JSON body of one request to /v1/completions.

        In OpenAI's own client, pass the fields it does not know in `extra_body`.
        """
        bias = {str(token): _FORBIDDEN_BIAS for token in request.forbidden}
        return {
            "model": self._model,
            "prompt": list(request.prompt),
            **request.fields(),
            **({"logit_bias": bias} if bias else {}),
            **({"vllm_xargs": dict(request.extra)} if request.extra else {}),
            "return_token_ids": True,
        }

    def _complete(self, request: CompletionRequest) -> Completion:
        answer = self._call("/v1/completions", self.body(request))
        ids = answer["choices"][0].get("token_ids")
        if ids is None:
            raise LiquidError(
                f"{self.url}: returns no token ids. Serve the checkpoint with vLLM 0.32 or newer."
            )
        return tuple(ids)

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
            reason = _message(error.read().decode(errors="replace"))
            raise LiquidError(
                f"{self.url}: rejected a request ({error.code}: {reason})."
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            raise LiquidError(
                f"{self.url}: does not answer ({error}). Check that `vllm serve` is running there."
            ) from error


def _message(text: str) -> str:
    """Return the first line of an error message, which may be wrapped in JSON."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return (text.strip() or "no reason given").splitlines()[0]

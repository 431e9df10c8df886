"""Requests and answers of the backends, with a stand-in for vLLM."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest

from liquidmm.errors import ConfigError, LiquidError, MissingExtraError
from liquidmm.export.vllm_backends import CompletionRequest, InProcess, Server
from liquidmm.generate.sampling import SamplingConfig

EXTRA = {"liquid_pair": "a", "liquid_role": "conditional"}


def completion(prompt=(1, 2), **changes):
    fields = {"max_tokens": 3, "sampling": SamplingConfig(), "seed": 7, "stop": (5, 6)}
    return CompletionRequest(prompt=prompt, **fields | changes)


@pytest.fixture
def served():
    """A server that records requests and answers with a function of path and body."""
    state = SimpleNamespace(got=[], answer=lambda path, body: (200, {}))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            state.got.append((self.path, body))
            status, answer = state.answer(self.path, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def test_server_complete_sends_and_returns_ids(served):
    def answer(path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "icons"}]}
        return 200, {"choices": [{"text": "", "token_ids": [body["prompt"][0], 5]}]}

    served.answer = answer
    requests = [completion((8,), extra=EXTRA), completion((9,), forbidden=(4,))]
    answers = Server(served.url + "/v1/").complete(requests)
    assert answers == [(8, 5), (9, 5)]
    assert served.got[0] == ("/v1/models", None)
    bodies = sorted((body for _, body in served.got[1:]), key=lambda body: body["prompt"])
    common = {
        "model": "icons",
        "max_tokens": 3,
        "temperature": 0.99,
        "top_k": 4096,
        "top_p": 0.96,
        "seed": 7,
        "stop_token_ids": [5, 6],
        "return_token_ids": True,
    }
    assert bodies == [
        {**common, "prompt": [8], "vllm_xargs": EXTRA},
        {**common, "prompt": [9], "logit_bias": {"4": -100.0}},
    ]


def test_in_process_complete_passes_sampling_parameters(monkeypatch):
    class VLLMError(Exception):
        pass

    for name, attribute in [("vllm", SimpleNamespace), ("vllm.exceptions", VLLMError)]:
        module = ModuleType(name)
        module.SamplingParams = module.VLLMError = attribute
        monkeypatch.setitem(sys.modules, name, module)
    calls = []

    def generate(prompts, parameters, use_tqdm):
        calls.extend(zip(prompts, parameters, strict=True))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[3, 5])]) for _ in prompts]

    backend = InProcess(SimpleNamespace(generate=generate))
    greedy = completion(sampling=SamplingConfig(greedy=True), extra=EXTRA, forbidden=(4,))
    assert backend.complete([greedy, completion()]) == [(3, 5)] * 2
    (prompt, first), (_, second) = calls
    assert prompt == {"prompt_token_ids": [1, 2]}
    assert (first.temperature, first.extra_args, first.logit_bias) == (0.0, EXTRA, {4: -100.0})
    assert (second.temperature, second.extra_args, second.logit_bias) == (0.99, None, None)
    assert (first.seed, first.stop_token_ids, first.detokenize) == (7, [5, 6], False)

    def reject(*_, **__):
        raise VLLMError("too long\nand more")

    with pytest.raises(LiquidError, match=r"vllm: .*too long\)\.$"):
        InProcess(SimpleNamespace(generate=reject)).complete([greedy])


def test_in_process_without_vllm_names_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r'pip install "liquidmm\[vllm\]"'):
        InProcess(None)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (400, {"error": {"message": "seed: is missing.\nMore."}}),
            "400: seed: is missing.",
        ),
        ((500, b"oh"), "500: oh"),
        ((503, b""), "503: no reason given"),
        ((200, b"<html>"), "Expecting value"),
        ((200, {"choices": [{"text": "a"}]}), "no token ids"),
    ],
)
def test_server_error_is_one_line(served, answer, words):
    served.answer = lambda path, body: answer
    with pytest.raises(LiquidError) as caught:
        Server(served.url, model="icons").complete([completion()])
    assert str(caught.value).startswith(f"{served.url}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_server_unreachable_names_url():
    with pytest.raises(LiquidError, match=r"http://127.0.0.1:9: .*vllm serve"):
        Server("http://127.0.0.1:9").complete([completion()])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, "url: .*'localhost:8000'"),
        ({"url": "file:///etc/passwd"}, "url: .*passwd"),
        ({"url": "http://x", "connections": 3}, "connections: .*3"),
        ({"url": "http://x", "connections": 0}, "connections: .*0"),
    ],
)
def test_server_invalid_setting_raises(options, words):
    with pytest.raises(ConfigError, match=words):
        Server(**options)

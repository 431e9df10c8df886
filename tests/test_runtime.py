import logging
import subprocess
import sys

import pytest
import torch

from liquidmm.errors import ConfigError, MissingExtraError
from liquidmm.runtime import generator, get_logger, require_extra, resolve_device, resolve_dtype


def test_resolve_device_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(None).type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match="device: .*'cdua'.*Did you mean 'cuda'"):
        resolve_device("cdua")
    with pytest.raises(ConfigError, match="device: .*'meta'"):
        resolve_device("meta")


def test_resolve_device_unavailable_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: 'cuda' is not available"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="'cuda:1' is not available"):
        resolve_device("cuda:1")


def test_resolve_dtype_by_name_or_device(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("float16", cpu) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype: .*'bf16'"):
        resolve_dtype("bf16", cpu)


def test_generator_is_independent_of_global_state():
    first, second = generator(3), generator(3)
    torch.rand(5)
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
    with pytest.raises(ConfigError, match=r"seed: .*-1"):
        generator(-1)


def test_require_extra_imports_or_names_the_extra():
    assert require_extra("json", "x").__name__ == "json"
    with pytest.raises(MissingExtraError, match=r'pip install "liquidmm\[gguf\]"'):
        require_extra("no_such_package_here.sub", "gguf")


def test_require_extra_keeps_other_import_errors(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_here") as caught:
        require_extra("needs_more", "x")
    assert not isinstance(caught.value, MissingExtraError)


def test_logger_writes_each_message_to_stderr_once(capsys):
    script = (
        "from liquidmm.runtime import get_logger\n"
        "get_logger('liquidmm.a').info('one'); get_logger('liquidmm.b').info('two')\n"
        "get_logger('liquidmm.a').debug('hidden')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "one\ntwo\n"
    assert done.stdout == ""


def test_logger_can_be_captured(caplog):
    with caplog.at_level(logging.INFO):
        get_logger("liquidmm.test").info("seen")
    assert caplog.messages == ["seen"]
